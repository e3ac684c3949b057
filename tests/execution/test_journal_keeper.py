"""Finished partitions are in the journal when a build goes on, and errors on the way there are raised."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from threading import Event

import pyarrow as pa
import pytest

from featurestore.errors import DiskFullError
from featurestore.execution.journal_keeper import keeping, record
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import write_partition
from featurestore.storage.journal import Journal
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry


class WatchedJournal(Journal):
    """Says what was written down together; may be held up, or out of room."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store, "rows")
        self.batches: list[list[str]] = []
        self.begun, self.free = Event(), Event()
        self.free.set()
        self.full = False

    def record_all(self, entries: Iterable[tuple[str, PartitionEntry]]) -> None:
        entries = list(entries)
        self.begun.set()
        assert self.free.wait(30)
        if self.full:
            raise DiskFullError("the disk is full")
        super().record_all(entries)
        self.batches.append([key for key, _ in entries])


@pytest.fixture
def store() -> ObjectStore:
    return open_object_store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def journal(store: ObjectStore) -> WatchedJournal:
    return WatchedJournal(store)


@pytest.fixture
def entry(store: ObjectStore) -> PartitionEntry:
    return write_partition(
        store, table="rows", group="f", partition="p1", columns=pa.table({"x": [1]}), tensors={},
        provenance=Provenance("feature", ""),
    )  # fmt: skip


def test_what_comes_while_the_disk_is_busy_is_written_down_at_once(
    journal: WatchedJournal, entry: PartitionEntry
) -> None:
    journal.free.clear()
    with keeping(journal, 2) as keeper:
        record(journal, [("a1", entry)], keeper)
        assert journal.begun.wait(30)
        for key in ("a2", "a3"):
            record(journal, [(key, entry)], keeper)
        record(journal, [], keeper)
        assert journal.batches == []
        journal.free.set()
    assert journal.batches == [["a1"], ["a2", "a3"]]
    assert journal.finished().keys() == {"a1", "a2", "a3"}


def test_without_a_keeper_it_is_written_down_before_the_task_ends(
    journal: WatchedJournal, entry: PartitionEntry
) -> None:
    with keeping(journal, 1) as keeper:
        record(journal, [("a1", entry)], keeper)
        assert journal.batches == [["a1"]]
    record(journal, [("a2", entry)], "of another process")
    assert journal.batches == [["a1"], ["a2"]]


def test_what_was_finished_is_kept_if_a_task_fails(
    journal: WatchedJournal, entry: PartitionEntry
) -> None:
    with pytest.raises(ZeroDivisionError), keeping(journal, 2) as keeper:  # noqa: PT012
        record(journal, [("a1", entry)], keeper)
        raise ZeroDivisionError
    assert journal.finished().keys() == {"a1"}


def test_what_cannot_be_written_down_is_raised_by_the_build(
    journal: WatchedJournal, entry: PartitionEntry
) -> None:
    journal.full = True
    with pytest.raises(DiskFullError), keeping(journal, 2) as keeper:
        record(journal, [("a1", entry)], keeper)
    with pytest.raises(ZeroDivisionError), keeping(journal, 2) as keeper:  # noqa: PT012
        record(journal, [("a1", entry)], keeper)
        raise ZeroDivisionError  # this came first


def test_tasks_that_end_later_hear_of_it(journal: WatchedJournal, entry: PartitionEntry) -> None:
    journal.full = True
    with pytest.raises(DiskFullError), keeping(journal, 2) as keeper:  # noqa: PT012
        for number in range(1000):
            record(journal, [(f"a{number}", entry)], keeper)
            journal.begun.wait(0.01)
        pytest.fail("nobody said that the disk is full")
