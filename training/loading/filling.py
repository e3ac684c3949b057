"""A pack that is being written while its first rows are read already.

Partitions are written by whoever has time: threads that work ahead of an epoch, or the reader that
needs rows nobody has begun to write. A reader waits for the stripes of its rows, no others. Once all
are there, the pack is made durable and published by one rename.

Always true: nothing exists under the pack's name until all its files are durable; a partition that was
left half-way is written again, to the same places; the work that this class admits at a time fits what
was projected; what is not published is removed when nobody has it any more, and what a killed process
left by the next that writes in that cache. If another process published the same pack first, that one
stays, and who reads from this one goes on.

The trade-off: a pack that is left half-way lives as long as the process; the next one begins again.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from featurestore.dataset.batch import DatasetPart
from featurestore.errors import FeatureStoreError
from featurestore.execution.budget import WorkStoppedError, budget_of
from featurestore.execution.events import step
from featurestore.fingerprint import Json
from training.loading.arrangement import Arrangement, Stripe
from training.loading.layout import (
    GROUP_JSON,
    MANIFEST,
    PACK_VERSION,
    encode_manifest,
    pack_layout,
)
from training.loading.memory import Writing
from training.loading.pack_cache import disk_full, make_room
from training.loading.pack_files import PackFiles, array_checksum
from training.loading.pack_writer import PartitionWriter
from training.loading.scratch import scratch_directory

_STATM: Final = Path("/proc/self/statm")


class Filling:
    """The pack of a part on its way.

    Parameters
    ----------
    part : DatasetPart
    path : Path
        Where the pack will be.
    arrangement : Arrangement
    writing : Writing
        What it may hold, and how many partitions at a time.
    limit : int, optional
        Bytes that all packs of the cache may take together.

    Raises
    ------
    DiskFullError
        If there is not enough space; checked before the first byte, taken with the files' creation and
        honoured at any later one.
    MemoryLimitError
        Before anything is read, if a partition does not fit, nor a slice of it.
    """

    def __init__(
        self,
        part: DatasetPart,
        path: Path,
        arrangement: Arrangement,
        writing: Writing,
        limit: int | None = None,
    ) -> None:
        writing.projection.require()
        self.part = part
        self.path = path
        self.arrangement = arrangement
        self.writing = writing
        self._layout = pack_layout(part.schema, part.rows)
        self._needed = sum(one.file_bytes for one in self._layout.values())
        with self._disk_errors():
            self.build = scratch_directory(path.parent)
            # What a build that is given up leaves: removed when nobody refers to it, or at exit.
            self._remove = weakref.finalize(self, _remove, self.build, os.getpid())
            try:
                make_room(path.parent, self._needed, limit)
                self._files = PackFiles(self.build, self._layout)
            except BaseException:
                self._remove()
                raise
        # With the last reference, which threads that write have: a number that is free again may be
        # another file's. At exit the system closes them.
        weakref.finalize(self, self._files.close).atexit = False
        self._writer = PartitionWriter(part, arrangement, self._layout, self._files, writing.within)
        self._state = threading.Condition()
        stripes = arrangement.stripes
        self._open = [deque(one.partitions) for one in stripes]  # that nobody writes or wrote
        self._missing = [len(one.partitions) for one in stripes]  # partitions not written
        self._digests: dict[int, dict[str, bytes]] = {}
        self._wanted: deque[int] = deque()  # stripes that a reader waits for
        self._plan: deque[int] = deque()  # those that are read next
        self._threads = 0
        self._failed: BaseException | None = None
        self._ending = threading.Lock()
        self._published = False
        self._file_pages = _file_pages()

    @property
    def published(self) -> bool:
        """Whether the pack is whole, durable and under its name."""
        return self._published

    def require(self, first: int, last: int) -> None:
        """Return once the pack's rows ``first`` to ``last`` are there; raises what went wrong."""
        if not self._published:
            self._wait_for(self.arrangement.stripes_of(first, last))

    def complete(self) -> None:
        """Write all that is missing, and publish."""
        with self.ahead(()):
            self._wait_for(range(len(self.arrangement.stripes)))

    def give_up(self) -> None:
        """Remove what was written."""
        self._remove()

    @contextmanager
    def ahead(self, stripes: Iterable[int]) -> Iterator[None]:
        """Write in threads of their own inside the block: ``stripes`` first, then all others.

        Leaving the block ends the threads, after the slices they are at. If all is there then, the pack
        is published.

        Raises
        ------
        FeatureStoreError
            At the end, what went wrong in a thread.
        """
        if self._published:
            yield
            return
        numbers = dict.fromkeys([*stripes, *range(len(self.arrangement.stripes))])
        stop = threading.Event()
        with self._announced(sum(self._rows_left(one) for one in numbers)) as advance:
            with self._state:
                self._plan = deque(numbers)
            with self._working(stop, _Progress(advance)):
                yield
        self._end()

    @contextmanager
    def _working(self, stop: threading.Event, progress: _Progress) -> Iterator[None]:
        working: set[int] = set()
        try:
            for number in range(self.writing.workers):
                one = threading.Thread(
                    target=self._work,
                    args=(number, working, stop, progress),
                    name=f"pack {number}",
                    daemon=True,
                )
                with self._state:
                    # It waits for this lock at its end: it cannot end before it is counted.
                    one.start()
                    working.add(number)
                    self._threads += 1
            yield
        finally:
            stop.set()
            budget_of().wake()
            # Not joined: that would make Python keep a thread of a framework, which may run this.
            with self._state:
                while working:
                    self._state.wait(1.0)
            failed, self._failed = self._failed, None  # who tries again begins anew
        if failed is not None:
            raise failed

    @contextmanager
    def _announced(self, rows: int) -> Iterator[Callable[[int], None]]:
        if not rows:
            yield _silent
            return
        memory = self.writing.projection
        with step(
            "write pack (rows)", rows, projected_bytes=memory.peak, memory_limit=memory.limit
        ) as advance:
            yield advance

    def _rows_left(self, number: int) -> int:
        return self.arrangement.stripes[number].rows if self._missing[number] else 0

    # --- who writes what ----------------------------------------------------------------------------

    def _wait_for(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            while True:
                with self._state:
                    if not self._missing[number]:
                        break
                    if self._failed is not None:
                        raise self._failed
                    task = None if self._threads else self._take(number)
                    if task is None:
                        if number not in self._wanted:
                            self._wanted.append(number)
                        self._state.wait(1.0)
                        continue
                self._write(*task, threading.Event(), _Progress(_silent))

    def _work(
        self, number: int, working: set[int], stop: threading.Event, progress: _Progress
    ) -> None:
        """Write partition after partition until all are taken."""
        try:
            while not stop.is_set():
                with self._state:
                    task = self._next()
                if task is None:
                    return
                self._write(*task, stop, progress)
        except BaseException as error:  # noqa: BLE001 - it is raised where the rows are read
            self._failed = error
        finally:
            with self._state:
                working.discard(number)
                self._threads -= 1
                self._state.notify_all()

    def _next(self) -> tuple[Stripe, int] | None:
        for queue in (self._wanted, self._plan):
            while queue:
                task = self._take(queue[0])
                if task is not None:
                    return task
                queue.popleft()
        return None

    def _take(self, number: int) -> tuple[Stripe, int] | None:
        """Return a partition of a stripe that nobody has begun to write, for the caller to write."""
        if not self._open[number]:
            return None
        return self.arrangement.stripes[number], self._open[number].popleft()

    def _write(
        self, stripe: Stripe, partition: int, stop: threading.Event, progress: _Progress
    ) -> None:
        written = False
        try:
            with self._disk_errors(), self._admitted(partition, stop):
                written = self._writer.write(
                    stripe, partition, lambda: not stop.is_set(), progress.add
                )
        except WorkStoppedError:
            pass
        finally:
            with self._state:
                if written:
                    self._missing[stripe.number] -= 1
                else:
                    self._open[stripe.number].appendleft(partition)
                    self._plan.append(stripe.number)
                self._state.notify_all()
        if written and not self._missing[stripe.number]:
            self._settle(stripe)

    @contextmanager
    def _admitted(self, partition: int, stop: threading.Event) -> Iterator[None]:
        # Pages of the pack that a reader has mapped count as resident, and are the kernel's to take.
        mapped = max(0, _file_pages() - self._file_pages)
        limit = self.writing.projection.limit + mapped
        with budget_of().admit(self.writing.partitions[partition], limit, stopped=stop.is_set):
            yield

    def _settle(self, stripe: Stripe) -> None:
        """Note the checksums of a stripe that is there."""
        with self._disk_errors():
            digests = self._files.digest(stripe.start, stripe.stop)
        with self._state:
            self._digests[stripe.number] = digests

    # --- the end ------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Publish the pack if all is there."""
        with self._ending:
            if self._published or any(self._missing):
                return
            for one in self.arrangement.stripes:
                if one.number not in self._digests:  # the first try failed
                    self._settle(one)
            with self._disk_errors():
                self._publish()
            self._published = True

    def _publish(self) -> None:
        self._seal()
        try:
            self.build.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._remove()  # another process published the same rows first
        else:
            self._remove.detach()
            _sync_directory(self.path.parent)

    def _seal(self) -> None:
        rest = self._files.rest_digest()
        stripes = self.arrangement.stripes
        content: dict[str, Json] = {
            "version": PACK_VERSION,
            "part": self.part.digest,
            "snapshot": self.part.snapshot_id,
            "rows": self.part.rows,
            "order": self.arrangement.name,
            "stripes": [one.rows for one in stripes],
            "schema": self.part.schema.to_json(),
            "checksums": {
                self._layout[key].path: array_checksum(
                    [*(self._digests[one.number][key] for one in stripes), last]
                )
                for key, last in rest.items()
            },
        }
        self._files.sync()
        for one in self._layout.values():
            _write_file(self.build / one.path / "zarr.json", one.zarr_json())
        for group in {
            self.build,
            *((self.build / one.path).parent for one in self._layout.values()),
        }:
            _write_file(group / "zarr.json", GROUP_JSON)
        _write_file(self.build / MANIFEST, encode_manifest(content))
        for directory, _, _ in os.walk(self.build):
            _sync_directory(Path(directory))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        root = self.path.parent
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(root, self._needed, shutil.disk_usage(root).free) from error
            raise FeatureStoreError(
                f"the pack cannot be written in {root}: {error}",
                "make the directory writable, or name another with cache= or $FEATURESTORE_CACHE",
            ) from error


class _Progress:
    """Adds up the rows that several threads wrote."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._lock = threading.Lock()
        self._done = 0

    def add(self, rows: int) -> None:
        with self._lock:
            self._done += rows
            self._advance(self._done)


def _silent(done: int) -> None:
    """Progress that nobody is told of."""


def _remove(build: Path, process: int) -> None:
    """Remove a build, unless this is a fork of the process that it belongs to."""
    if os.getpid() == process:
        shutil.rmtree(build, ignore_errors=True)


def _file_pages() -> int:
    """Return the bytes of files that are resident in this process because they are mapped."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
