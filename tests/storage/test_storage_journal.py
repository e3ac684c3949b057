"""Journal files with several entries: what is synced, found, kept young, forgotten and collected."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import CorruptionError, DiskFullError
from featurestore.storage.column_group import write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.journal import Journal, read_journal_file
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import gc
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, TableEntry, table_key
from featurestore.storage.sealed_json import seal
from featurestore.testing.journals import journal_keys

DAY = 86_400.0


def entry(store: ObjectStore, group: str, partition: str = "p1") -> PartitionEntry:
    return write_partition(
        store,
        table="t",
        group=group,
        partition=partition,
        columns=pa.table({"a": [1, 2]}),
        tensors={},
        provenance=Provenance("d", group),
    )


def entries(store: ObjectStore, *groups: str) -> list[tuple[str, PartitionEntry]]:
    return [(f"key-{group}", entry(store, group)) for group in groups]


def files(store: ObjectStore) -> list[str]:
    return [info.path for info in store.list("journal")]


def test_one_sync_and_one_file_for_all(tmp_path: Path) -> None:
    calls: list[tuple[str, Any]] = []

    class Recorder(LocalStore):
        def sync(self, paths: Any) -> None:
            paths = list(paths)
            calls.append(("sync", paths))
            super().sync(paths)

        def replace(self, path: str, data: bytes) -> None:
            calls.append(("replace", path))
            super().replace(path, data)

    store = Recorder(tmp_path)
    journal = Journal(store, "t")
    written = entries(store, "a", "b", "c")
    journal.record_all(written)
    (path,) = files(store)
    assert calls == [
        ("sync", [file.path for _, one in written for file in one.all_files()]),
        ("replace", path),
    ]
    assert journal.finished() == dict(written)
    assert journal_keys(store, "t") == ["key-a", "key-b", "key-c"]
    journal.record_all([])
    assert files(store) == [path]


def test_the_same_work_has_the_same_file(store: ObjectStore) -> None:
    journal = Journal(store, "t")
    journal.record_all(entries(store, "a", "b"))
    again = entries(store, "b", "a")
    journal.record_all(again)
    assert len(files(store)) == 1
    assert journal.finished() == dict(again)


def test_only_what_is_asked_for_is_found(store: ObjectStore) -> None:
    journal = Journal(store, "t")
    written = dict(entries(store, "a", "b", "c"))
    journal.record_all(written.items())
    assert journal.finished(frozenset()) == {}
    assert journal.finished({"key-b", "key-x"}) == {"key-b": written["key-b"]}
    assert journal.finished({"key-c"}) == {"key-c": written["key-c"]}


def test_an_entry_without_its_files_does_not_hide_another(store: ObjectStore) -> None:
    journal = Journal(store, "t")
    first = dict(entries(store, "a", "b"))
    journal.record_all(first.items())
    store.delete([file.path for file in first["key-a"].all_files()])
    assert journal.finished() == {"key-b": first["key-b"]}
    anew = entry(store, "a")
    journal.record_all([("key-a", anew)])
    assert journal.finished() == {"key-a": anew, "key-b": first["key-b"]}


def test_clearing_some_keeps_the_others(store: ObjectStore) -> None:
    journal = Journal(store, "t")
    written = dict(entries(store, "a", "b", "c"))
    journal.record_all(written.items())
    journal.record_all(entries(store, "d", "e"))
    journal.clear(["key-a", "key-d", "key-e", "key-x"])
    assert journal.finished() == {key: written[key] for key in ("key-b", "key-c")}
    assert len(files(store)) == 1
    journal.clear(["key-b", "key-c"])
    assert files(store) == []


def test_files_of_older_packages_are_read_found_and_cleared(store: ObjectStore) -> None:
    journal = Journal(store, "t")
    old, new = entry(store, "a"), entry(store, "b")
    store.replace("journal/t/0ld.json", seal(old.to_json()))
    journal.record_all([("new", new)])
    assert journal.finished() == {"0ld": old, "new": new}
    assert journal.finished({"0ld"}) == {"0ld": old}
    journal.clear(["0ld"])
    assert journal_keys(store, "t") == ["new"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"entries": []},
        {"entries": {"k": 3}},
        {"entries": {"k": {}}},
        {"entries": {"k": {"partition": "../../p"}}},
        {"partition": "p"},
    ],
)
def test_sealed_nonsense(store: ObjectStore, content: dict[str, Any]) -> None:
    journal = Journal(store, "t")
    full = entry(store, "a").to_json()
    if "../../p" in str(content):
        content = {"entries": {"k": {**full, "partition": "../../p"}}}
    data = seal(content)
    with pytest.raises(CorruptionError, match="computed again"):
        read_journal_file("journal/t/x.json", data)
    store.replace("journal/t/x.json", data)
    assert journal.finished() == {}
    journal.clear(["k"])
    assert files(store) == ["journal/t/x.json"]


def test_a_path_out_of_the_store_is_refused(store: ObjectStore) -> None:
    full: dict[str, Any] = dict(entry(store, "a").to_json())
    full["files"] = [["../secret", 1, "0", ""]]
    store.replace("journal/t/x.json", seal({"entries": {"k": full}}))
    assert Journal(store, "t").finished() == {}


def test_what_is_used_becomes_young_and_keeps_all_alive(tmp_path: Path) -> None:
    """gc leaves the journal of a table alone while any of its files is young."""
    store = LocalStore(tmp_path)
    log = CommitLog.create(store)
    log.commit("a table", lambda head: {table_key("t"): TableEntry("t", (), None, 9).to_json()})
    journal = Journal(store, "t")
    used, other = dict(entries(store, "a", "b")), dict(entries(store, "c", "d"))
    journal.record_all(used.items())
    journal.record_all(other.items())
    before = time.time() - 3 * DAY
    for info in [*store.list("journal"), *store.list("data")]:
        os.utime(tmp_path / info.path, (before, before))
    assert gc(log, dry_run=True).removed
    assert journal.finished({"key-a"}) == {"key-a": used["key-a"]}
    ages = [time.time() - info.modified > DAY for info in store.list("journal")]
    assert sorted(ages) == [False, True]
    assert gc(log).removed == ()
    assert journal.finished() == {**used, **other}


def test_a_dead_journal_goes_with_all_it_names(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log = CommitLog.create(store)
    Journal(store, "t").record_all(entries(store, "a", "b"))
    before = time.time() - 3 * DAY
    for info in [*store.list("journal"), *store.list("data")]:
        os.utime(tmp_path / info.path, (before, before))
    assert {one.path.split("/")[0] for one in gc(log).removed} == {"journal"}
    assert len(gc(log).removed) == 2
    assert list(store.list("data")) == []


def test_tidying_up_never_fails_what_was_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(LocalStore):
        full = False

        def replace(self, path: str, data: bytes) -> None:
            if self.full:
                raise DiskFullError(os.strerror(errno.ENOSPC), "free space")
            super().replace(path, data)

    store = Full(tmp_path)
    journal = Journal(store, "t")
    journal.record_all(entries(store, "a", "b"))
    store.full = True
    journal.clear(["key-a"])
    assert "was not tidied" in caplog.text
    store.full = False
    assert journal_keys(store, "t") == ["key-a", "key-b"]
