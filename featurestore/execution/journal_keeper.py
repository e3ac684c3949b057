"""Finished partitions on their way to the journal: made durable while the next ones are computed.

To make a file durable is to wait for a disk, with nothing to compute. So the tasks of a build that run in
threads hand over what they finished, and one thread writes it down: all that has come meanwhile at once, with
one sync of the directories and one file for many partitions where they come faster than the disk takes them.

Always true: when the block of ``keeping`` is left, by an error too, all that was handed over is in the
journal, or the error that kept it from there is raised; tasks that end later raise it as well. A process that
is killed loses what was handed over in the last moments; it is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from secrets import token_hex
from threading import Condition, Thread
from typing import Final

from featurestore.storage.journal import Journal
from featurestore.storage.records import PartitionEntry

Finished = tuple[str, PartitionEntry]
"""The key of a partition's values in the journal, and their entry."""


class JournalKeeper:
    """Writes down what it is handed, in a thread of its own.

    Parameters
    ----------
    journal : Journal
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._changed = Condition()
        self._waiting: list[Finished] = []
        self._ended = False
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._work, name="featurestore-journal")
        self._thread.start()

    def hand_over(self, entries: Sequence[Finished]) -> None:
        """Have entries written down soon.

        Raises
        ------
        FeatureStoreError
            If some could not be written down before.
        """
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._waiting += entries
            self._changed.notify()

    def end(self) -> BaseException | None:
        """Return when all that was handed over is written down, or what kept it from that."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        return self._failure

    def _work(self) -> None:
        while entries := self._next():
            try:
                self._journal.record_all(entries)
            except BaseException as error:  # noqa: BLE001 - raised in the threads that wait for it
                with self._changed:
                    self._failure = error
                return

    def _next(self) -> list[Finished]:
        """Return what has come since it was asked last; nothing once that was all."""
        with self._changed:
            while not self._waiting and not self._ended:
                self._changed.wait()
            entries, self._waiting = self._waiting, []
            return entries


_keepers: Final[dict[str, JournalKeeper]] = {}


@contextmanager
def keeping(journal: Journal, threads: int) -> Iterator[str]:
    """Keep a journal for tasks of this process while they run in so many threads.

    Yields
    ------
    str
        What the tasks hand to :func:`record`; empty for one thread, which has nobody to wait beside.
    """
    if threads < 2:
        yield ""
        return
    name, keeper = token_hex(8), JournalKeeper(journal)
    _keepers[name] = keeper
    try:
        yield name
    except BaseException:
        # Whatever ends the work, Ctrl-C too, what came before it is recorded; it is raised again, and comes
        # before what the keeper says went wrong.
        keeper.end()
        raise
    finally:
        del _keepers[name]
    failure = keeper.end()
    if failure is not None:
        raise failure


def record(journal: Journal, entries: Sequence[Finished], keeper: str) -> None:
    """Write down entries, or hand them to a keeper of this process.

    Parameters
    ----------
    journal : Journal
    entries : sequence of (str, PartitionEntry)
    keeper : str
        What :func:`keeping` gave; where there is none of that name, as in other processes, entries
        are written down before this returns.
    """
    found = _keepers.get(keeper)
    if found is None:
        journal.record_all(entries)
    else:
        found.hand_over(entries)
