"""What is in a table's journal, whether or not the files that its entries name are there."""

from __future__ import annotations

from featurestore.storage.journal import JOURNAL, read_journal_file
from featurestore.storage.object_store import ObjectStore


def journal_keys(store: ObjectStore, table: str) -> list[str]:
    """Return the keys of all entries, in order.

    Raises
    ------
    CorruptionError
        If a file is torn or damaged.
    """
    paths = [info.path for info in store.list(f"{JOURNAL}/{table}")]
    return sorted({key for path in paths for key in read_journal_file(path, store.read(path))})
