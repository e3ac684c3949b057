"""The journal of builds: which partitions are finished but not published yet.

A build records each finished partition under a key that covers everything its values depend on. A
build that starts after a kill finds those entries and does not compute them again. Readers never
look here. Always true: an entry found names files that were synced before it was written and that
exist with their sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.schema import check_name
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, check_path
from featurestore.storage.sealed_json import seal, unseal

JOURNAL: Final = "journal"


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

    def find(self, key: str) -> PartitionEntry | None:
        """Return the entry of a finished partition if its files are all there, else None.

        The entry is written again, which makes it young: gc leaves the journal of a table alone
        while any of its entries is younger than the safety age.
        """
        path = self._path(key)
        try:
            data = self._store.read(path)
            entry = read_journal_entry(path, data)
            complete = all(self._store.size(file.path) == file.bytes for file in entry.all_files())
        except (NotFoundError, CorruptionError):  # not finished, or not to be trusted: do it again
            return None
        if not complete:
            return None
        self._store.replace(path, data)
        return entry

    def record(self, key: str, entry: PartitionEntry) -> None:
        """Make a partition's files durable, then its entry."""
        self._store.sync(file.path for file in entry.all_files())
        self._store.replace(self._path(key), seal(entry.to_json()))

    def keys(self) -> list[str]:
        """Return the keys of all entries, in order."""
        start = len(self._directory) + 1
        return [
            info.path[start:].removesuffix(".json") for info in self._store.list(self._directory)
        ]

    def clear(self, keys: Iterable[str]) -> None:
        """Forget entries, after they were published; those that are gone are no error."""
        self._store.delete(self._path(key) for key in keys)

    def _path(self, key: str) -> str:
        return check_path(f"{self._directory}/{key}.json")


def read_journal_entry(path: str, data: bytes) -> PartitionEntry:
    """Return the entry that a journal file holds.

    Raises
    ------
    CorruptionError
        If the file is torn or damaged.
    """
    remedy = "delete the file; the partition is computed again"
    content = unseal(data, path, remedy)
    try:
        return PartitionEntry.from_json(content)
    except (KeyError, TypeError) as error:
        raise CorruptionError(f"{path} is no journal entry: {error!r}", remedy) from error
