"""verify finds every damage; gc removes what nothing needs and nothing else."""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import CorruptionError, InvalidInputError, NameTakenError, NotFoundError
from featurestore.schema import Field
from featurestore.storage import fileset, garbage
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import sync_partition, write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset, write_fileset
from featurestore.storage.journal import Journal
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import gc, verify, verify_store
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import (
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
    group_key,
    table_key,
)
from featurestore.storage.snapshot_file import snapshot_path
from featurestore.storage.states import StateStore

FIELDS = {
    "base": (Field("a", pa.int64()), Field("e", pa.float32(), (2,))),
    "f1": (Field("s", pa.string()),),
}


def _partition(store: ObjectStore, group: str, partition: str, rows: int = 3) -> PartitionEntry:
    columns = {"a": range(rows)} if group == "base" else {"s": ["x"] * rows}
    entry = write_partition(
        store,
        table="t",
        group=group,
        partition=partition,
        columns=pa.table(columns),
        tensors={"e": np.ones((rows, 2), np.float32)} if group == "base" else {},
        provenance=Provenance("d", "i"),
    )
    sync_partition(store, entry)
    return entry


def _publish(log: CommitLog, group: str, entries: list[PartitionEntry]) -> Snapshot:
    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        ref = write_fileset(log.store, entries)
        found: dict[str, Mapping[str, Any] | None] = {
            group_key("t", group): GroupEntry("t", group, FIELDS[group], ref).to_json()
        }
        if group == "base":
            found[table_key("t")] = TableEntry("t", (), None, 1000).to_json()
        return found

    return log.commit(f"publish {group}", change)


def _small_store(store: ObjectStore) -> CommitLog:
    """Two versions, two partitions, two groups, a tag, a state, a journal entry."""
    log = CommitLog.create(store)
    _publish(log, "base", [_partition(store, "base", "p1"), _partition(store, "base", "p2")])
    _publish(log, "f1", [_partition(store, "f1", "p1"), _partition(store, "f1", "p2")])
    log.tag("v1", 1)
    StateStore(store).put("ab" * 16, {"n": pa.table({"x": [1]})})
    Journal(store, "t").record_all([("k", _partition(store, "f1", "p3"))])
    return log


def _snapshot_faults(log: CommitLog, full: bool) -> set[str]:
    fileset._cache.clear()
    return {fault.file for fault in verify(log.store, log.head(), full).faults}


class TestVerify:
    def test_a_sound_store(self, store: ObjectStore) -> None:
        log = _small_store(store)
        for full in (True, False):
            report = verify(store, log.head(), full)
            assert report.ok
            assert "no fault" in str(report)
            assert (report.snapshots, report.groups, report.partitions) == (1, 2, 4)
            assert report.files == 2 + 2 * 3 + 2
            report = verify_store(log, full)
            assert report.ok, str(report)
            assert report.snapshots == 2
            assert report.groups == 2

    def test_an_empty_store(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        assert verify(store, log.head()).ok
        assert verify_store(log).ok

    def test_every_flipped_byte_of_a_store_is_found(self) -> None:
        """All files of a small store, every byte of the small ones, a sample of the others."""
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        log = _small_store(store)
        journalled = {file.path for file in Journal(store, "t").finished({"k"})["k"].all_files()}
        tried = 0
        for info in list(store.list("")):
            if info.path in journalled:
                continue
            sound = store.read(info.path)
            step = 1 if len(sound) < 100 else max(1, len(sound) // 20)
            for position in range(0, len(sound), step):
                damaged = bytearray(sound)
                damaged[position] ^= 1 << (position % 8)
                store.replace(info.path, bytes(damaged))
                fileset._cache.clear()
                faults = verify_store(log).faults
                assert info.path in {fault.file for fault in faults}, (info.path, position)
                tried += 1
            store.replace(info.path, sound)
        fileset._cache.clear()
        assert verify_store(log).ok
        assert tried > 200

    def test_faults_name_what_they_touch(self, store: ObjectStore) -> None:
        log = _small_store(store)
        snapshot = log.head()
        by_group = {group.group: group for group in snapshot.groups("t")}
        entry = read_fileset(store, by_group["base"].fileset)[1]
        chunk = entry.tensors["e"][1].path
        data = store.read(chunk)
        store.replace(chunk, bytes([data[0] ^ 1]) + data[1:])
        assert verify(store, snapshot, full=False).ok
        report = verify(store, snapshot)
        (fault,) = report.faults
        assert not report.ok
        assert (fault.table, fault.group, fault.columns, fault.partition) == (
            "t",
            "base",
            ("e",),
            "p2",
        )
        assert fault.file == chunk
        assert "ingest" in fault.remedy
        assert chunk in str(report)
        feature = read_fileset(store, by_group["f1"].fileset)[0]
        store.delete([chunk, feature.files[0].path])
        report = verify(store, snapshot, full=False)
        assert {(fault.columns, fault.problem) for fault in report.faults} == {
            (("e",), "is missing"),
            (("s",), "is missing"),
        }
        assert any("build" in fault.remedy for fault in report.faults)

    def test_rows_across_groups(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        _publish(log, "base", [_partition(store, "base", "p1", 3)])
        _publish(log, "f1", [_partition(store, "f1", "p1", 4), _partition(store, "f1", "p9", 1)])
        problems = {fault.partition: fault.problem for fault in verify(store, log.head()).faults}
        assert set(problems) == {"p1", "p9"}
        assert "4 rows" in problems["p1"]
        assert "no such partition" in problems["p9"]

    def test_columns_that_differ(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        _publish(log, "f1", [_partition(store, "base", "p1")])
        log.commit("t", lambda head: {table_key("t"): TableEntry("t", (), None, 1).to_json()})
        (fault,) = [one for one in verify(store, log.head()).faults if "columns" in one.problem]
        assert "['a', 'e']" in fault.problem

    def test_a_missing_fileset(self, store: ObjectStore) -> None:
        log = _small_store(store)
        path = log.head().groups("t")[1].fileset.file.path  # type: ignore[union-attr]
        store.delete([path])
        assert _snapshot_faults(log, full=False) == {path}

    def test_a_history_that_was_mixed(self, store: ObjectStore, tmp_path: Path) -> None:
        log = _small_store(store)
        other = _small_store(LocalStore(tmp_path / "other"))
        store.replace(snapshot_path(2), other.store.read(snapshot_path(2)))
        problems = [
            fault.problem for fault in verify_store(log).faults if fault.file == snapshot_path(2)
        ]
        assert any("is before it" in problem for problem in problems)


def _age(store: ObjectStore, seconds: float, prefix: str = "") -> None:
    """Make files of a local store look old."""
    assert isinstance(store, LocalStore)
    then = time.time() - seconds
    for info in store.list(prefix):
        os.utime(store.root / info.path, (then, then))


def _paths(store: ObjectStore) -> set[str]:
    return {info.path for info in store.list("")}


class TestGc:
    def test_nothing_young_is_removed(self, store: ObjectStore) -> None:
        log = _small_store(store)
        _partition(store, "f1", "p1")
        before = _paths(store)
        report = gc(log, keep_versions=1)
        assert report.removed == ()
        assert report.expired == ()
        assert _paths(store) == before

    def test_orphans_go_and_the_rest_stays(self, local: LocalStore) -> None:
        log = _small_store(local)
        before = _paths(local)
        orphan = _partition(local, "f1", "p1")
        both = _partition(local, "base", "p7")
        (local.root / "tmp").mkdir(exist_ok=True)
        (local.root / "tmp" / "123-abc").write_bytes(b"torn")
        loose = write_fileset(local, [orphan])
        _age(local, 3600)
        _age(local, 3600, "tmp")
        _age(local, 0, "journal")
        expected = {file.path for file in (*orphan.all_files(), *both.all_files(), loose.file)}
        expected.add("tmp/123-abc")
        dry = gc(log, safety_age_seconds=60, dry_run=True)
        assert {one.path for one in dry.removed} == expected
        assert dry.dry_run
        assert "would remove" in str(dry)
        assert _paths(local) > before
        report = gc(log, safety_age_seconds=60)
        assert report.removed == dry.removed
        assert report.bytes == sum(one.bytes for one in report.removed) > 0
        assert _paths(local) == before
        assert list(local.list("tmp")) == []
        assert verify_store(log).ok
        assert gc(log, safety_age_seconds=60).removed == ()
        folders = [path for path in local.root.rglob("*.zarr") if not any(path.iterdir())]
        assert folders == []

    def test_old_versions_go_but_their_numbers_stay(self, local: LocalStore) -> None:
        log = CommitLog.create(local)
        for _ in range(5):
            _publish(log, "base", [_partition(local, "base", "p1")])
        log.tag("keep", 2)
        _age(local, 3600)
        report = gc(log, safety_age_seconds=60, keep_versions=2)
        assert report.expired == (1, 3)
        assert report.kept == (2, 4, 5)
        for again in (log, CommitLog.open(local)):
            assert again.head().version == 5
            assert [one.kept for one in again.history()] == [True, False, True, False, True, True]
            assert again.history()[1].operation == "publish base"
            assert again.resolve("keep").version == 2
            with pytest.raises(NotFoundError, match="let go"):
                again.read(3)
        assert verify_store(log).ok
        assert len({info.path for info in local.list("filesets")}) == 3
        assert _publish(log, "base", [_partition(local, "base", "p1")]).version == 6
        with pytest.raises(NotFoundError):
            log.tag("gone", 3)

    def test_versions_others_build_on_are_kept(self, local: LocalStore) -> None:
        log = CommitLog.create(local)
        log.commit("big", lambda head: {f"k{i}": {"v": "x" * 500} for i in range(200)})
        for number in range(80):
            log.commit("x", lambda head, number=number: {f"k{number}": {"v": "y" * 2000}})
        _age(local, 3600)
        expected = log.head().entries
        report = gc(log, safety_age_seconds=60, keep_versions=1)
        base = log.read_file(log.newest_version()).base
        assert base is not None
        assert set(report.kept) == {base, 81}
        assert CommitLog.open(local).head().entries == expected
        assert verify_store(log).ok

    def test_journals_protect_their_files(self, local: LocalStore) -> None:
        log = _small_store(local)
        files = {file.path for file in Journal(local, "t").finished({"k"})["k"].all_files()}
        _age(local, 3600)
        Journal(local, "t").record_all([("young", _partition(local, "f1", "p4"))])
        assert gc(log, safety_age_seconds=60).removed == ()
        Journal(local, "t").clear(["young"])
        first = gc(log, safety_age_seconds=60)
        assert {one.path for one in first.removed} == {"journal/t/k.json"}
        assert files <= _paths(local)
        second = gc(log, safety_age_seconds=60)
        assert {one.path for one in second.removed} == files

    def test_finding_an_entry_makes_it_young(self, local: LocalStore) -> None:
        log = _small_store(local)
        _age(local, 3600)
        assert Journal(local, "t").finished({"k"})
        assert gc(log, safety_age_seconds=60).removed == ()

    def test_states_stay_longer(self, local: LocalStore) -> None:
        log = _small_store(local)
        _age(local, 3600, "states")
        assert gc(log, safety_age_seconds=60).removed == ()
        report = gc(log, safety_age_seconds=60, state_age_seconds=600)
        assert [one.path for one in report.removed] == [f"states/{'ab' * 16}.arrow"]

    def test_a_damaged_store_is_left_alone(self, local: LocalStore) -> None:
        log = _small_store(local)
        orphan = _partition(local, "f1", "p1")
        _age(local, 3600)
        path = log.head().groups("t")[0].fileset.file.path  # type: ignore[union-attr]
        (local.root / path).write_bytes(b"torn")
        fileset._cache.clear()
        with pytest.raises(CorruptionError):
            gc(log, safety_age_seconds=60)
        assert local.exists(orphan.files[0].path)

    def test_a_commit_while_gc_looks(
        self, local: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files listed as old and unreferenced, and published before gc looks at the versions."""
        log = CommitLog.create(local)
        _publish(log, "base", [_partition(local, "base", "p1")])
        late = [_partition(local, "base", "p2")]
        _age(local, 3600)
        real = garbage._old_files

        def publish_after(store: ObjectStore, before: float) -> Any:
            found = real(store, before)
            assert late[0].files[0].path in {info.path for info in found}
            _publish(CommitLog.open(local), "base", late)
            return found

        monkeypatch.setattr(garbage, "_old_files", publish_after)
        gc(log, safety_age_seconds=60)
        assert verify_store(log).ok
        assert local.exists(late[0].files[0].path)

    def test_each_fileset_is_read_once(
        self, local: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = CommitLog.create(local)
        _publish(log, "base", [_partition(local, "base", "p1")])
        for number in range(40):
            log.commit("x", lambda head, number=number: {"x": {"v": number}})
        reads: Counter[str] = Counter()
        real = local.read

        def counting(path: str, start: int = 0, length: int | None = None) -> bytes:
            reads[path] += 1
            return real(path, start, length)

        fileset._cache.clear()
        monkeypatch.setattr(local, "read", counting)
        gc(log, keep_versions=100)
        assert sum(count for path, count in reads.items() if path.startswith("filesets/")) == 1
        assert max(count for path, count in reads.items() if path.startswith("snapshots/")) == 1

    @pytest.mark.parametrize(
        "options",
        [{"safety_age_seconds": -1.0}, {"keep_versions": 0}, {"state_age_seconds": float("nan")}],
    )
    def test_nonsense_is_refused(self, local: LocalStore, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError):
            gc(CommitLog.create(local), **options)


def test_gc_leaves_files_alone_that_the_store_did_not_name(tmp_path: Path) -> None:
    log = CommitLog.create(LocalStore(tmp_path))
    foreign = [
        "data/raw/mine.parquet",
        "data/raw/2024/part-000.parquet",
        "data/notes.txt",
        "filesets/mine.arrow",
        "states/notes.txt",
        "journal/monday.md",
        "tmp/draft.txt",
        "snapshots/readme",
    ]
    for path in foreign:
        log.store.write(path, b"mine")
        os.utime(tmp_path / path, (1, 1))
    assert gc(log, safety_age_seconds=0).removed == ()
    assert all((tmp_path / path).read_bytes() == b"mine" for path in foreign)


def test_a_store_is_not_created_among_other_files(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw.csv"
    raw.parent.mkdir()
    raw.write_text("a")
    with pytest.raises(NameTakenError, match=r"data/raw\.csv"):
        CommitLog.create(LocalStore(tmp_path))
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [raw]


def test_a_store_is_not_created_on_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(InvalidInputError, match="is a file"):
        CommitLog.create(LocalStore(tmp_path / "file"))


def test_a_long_gc_report_is_cut() -> None:
    removed = tuple(garbage.Garbage(f"data/{n}", 1, "why") for n in range(500))
    lines = str(garbage.GcReport(True, removed, (), (1,))).splitlines()
    assert lines[0].startswith("would remove 500 files")
    assert lines[-1] == "  and 480 more"
    assert len(lines) == 22
