"""The journal of builds: which partitions are finished but not published yet.

A build records what it finished under keys that cover everything the values depend on, in one file per
task. A build that starts after a kill finds those entries and does not compute them again. Readers
never look here. Always true: an entry found names files that were durable before it was written and
that exist with their sizes.

The trade-off: a task records at its end (and every few seconds, if it takes long) rather than after each
feature, which would cost a sync of two directories and a file for every one of them. So a kill costs the
features that the tasks under way had finished since; a task that fails loses none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from featurestore.errors import (
    CorruptionError,
    FeatureStoreError,
    NotFoundError,
)
from featurestore.fingerprint import fingerprint
from featurestore.schema import check_name
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, check_path
from featurestore.storage.sealed_json import seal, unseal

JOURNAL: Final = "journal"

_log: Final = logging.getLogger(__name__)


class Journal:
    """The journal of one table.

    Parameters
    ----------
    store : ObjectStore
    table : str
        Its name.
    """

    def __init__(self, store: ObjectStore, table: str) -> None:
        self._store = store
        self._directory = f"{JOURNAL}/{check_name(table, 'table')}"

    def finished(self, keys: AbstractSet[str] | None = None) -> dict[str, PartitionEntry]:
        """Return the entries of finished partitions whose files are all there, by key.

        Files with an entry that is returned are written again, which makes them young: gc leaves the
        journal of a table alone while any of its files is younger than the safety age.

        Parameters
        ----------
        keys : set of str, optional
            Those that are of interest; all by default.
        """
        found: dict[str, PartitionEntry] = {}
        for path, data, entries in self._files():
            usable = {
                key: entry
                for key, entry in entries.items()
                if key not in found and (keys is None or key in keys) and self._is_complete(entry)
            }
            if usable:
                self._store.replace(path, data)
                found.update(usable)
        return found

    def record_all(self, entries: Iterable[tuple[str, PartitionEntry]]) -> None:
        """Make partitions' files durable, then their entries, together in one file."""
        content = dict(entries)
        if not content:
            return
        self._store.sync([file.path for one in content.values() for file in one.all_files()])
        # Named by what it holds, so that a task that is repeated writes the same file.
        name = next(iter(content)) if len(content) == 1 else fingerprint(sorted(content))
        self._store.replace(self._path(name), _sealed(content))

    def clear(self, keys: Iterable[str]) -> None:
        """Forget entries, after they were published; those that are gone are no error.

        Others in the same files stay. What is published is published: where a file cannot be
        removed or written again, that is logged; gc removes it with time.
        """
        gone = frozenset(keys)
        if not gone:
            return
        emptied = []
        try:
            for path, _, entries in self._files():
                left = {key: entry for key, entry in entries.items() if key not in gone}
                if not left:
                    emptied.append(path)
                elif len(left) < len(entries):
                    self._store.replace(path, _sealed(left))
            self._store.delete(emptied)
        except FeatureStoreError as error:
            _log.warning("the journal %s was not tidied: %s", self._directory, error.problem)

    def _files(self) -> Iterator[tuple[str, bytes, Mapping[str, PartitionEntry]]]:
        """Yield what can be read: path, bytes, entries. The rest is as if it were not there."""
        for info in list(self._store.list(self._directory)):
            try:
                data = self._store.read(info.path)
                yield info.path, data, read_journal_file(info.path, data)
            except (NotFoundError, CorruptionError):  # cleared meanwhile, or not to be trusted
                continue

    def _is_complete(self, entry: PartitionEntry) -> bool:
        try:
            return all(self._store.size(file.path) == file.bytes for file in entry.all_files())
        except NotFoundError:
            return False

    def _path(self, name: str) -> str:
        return check_path(f"{self._directory}/{name}.json")


def read_journal_file(path: str, data: bytes) -> dict[str, PartitionEntry]:
    """Return the entries that a journal file holds, by key.

    Files of earlier versions hold one entry, whose key is the name of the file.

    Raises
    ------
    CorruptionError
        If the file is torn or damaged.
    """
    remedy = "delete the file; the partitions are computed again"
    content = unseal(data, path, remedy)
    try:
        entries: Mapping[str, Any] = content.get("entries") or {_stem(path): content}
        return {key: PartitionEntry.from_json(one) for key, one in entries.items()}
    except FeatureStoreError as error:
        raise CorruptionError(f"{path} is no journal file: {error.problem}", remedy) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is no journal file: {error!r}", remedy) from error


def _sealed(entries: Mapping[str, PartitionEntry]) -> bytes:
    return seal({"entries": {key: entry.to_json() for key, entry in entries.items()}})


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".json")
