"""gc beside damage, other collections and writers; the history beside damage; a head looked after."""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
)
from featurestore.storage import acknowledged, commit_log, fileset
from featurestore.storage.commit_log import Change, CommitLog
from featurestore.storage.condemned import GONE_FILE
from featurestore.storage.leases import Leases
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import GcReport, gc
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.snapshot_file import is_let_go, snapshot_path

NOW: dict[str, Any] = {"safety_age_seconds": 0.0, "keep_versions": 1}


def _setting(key: str) -> Change:
    return lambda head: {key: {"v": "y"}}


def _commit(log: CommitLog, times: int) -> None:
    for _ in range(times):
        log.commit("set", lambda head: {"a": {"v": head.version}})


def _log(store: ObjectStore, versions: int) -> CommitLog:
    log = CommitLog.create(store)
    _commit(log, versions)
    return log


def _based(store: ObjectStore) -> CommitLog:
    """A log whose newest versions are differences to version 1."""
    log = CommitLog.create(store)
    log.commit("big", lambda head: {f"k{i}": {"v": "x" * 500} for i in range(200)})
    for number in range(3):
        log.commit("small", _setting(f"k{number}"))
    assert [log.read_file(one).base for one in (2, 3, 4)] == [1, 1, 1]
    return log


def _counted(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> Counter[str]:
    reads: Counter[str] = Counter()
    real = store.read

    def read(path: str, start: int = 0, length: int | None = None) -> bytes:
        reads[path] += 1
        return real(path, start, length)

    monkeypatch.setattr(store, "read", read)
    return reads


def _damage(store: ObjectStore, version: int, data: bytes = b"") -> None:
    store.replace(snapshot_path(version), data)


class TestDamageBesideGc:
    def test_an_old_version_is_left_alone(self, store: ObjectStore) -> None:
        log = _log(store, 5)
        _damage(store, 2, b"torn")
        time.sleep(0.01)
        report = gc(log, **NOW)
        assert report.expired == (1, 3, 4)
        assert list(report.unreadable) == [2]
        assert "version 2 cannot be read" in str(report)
        assert store.read(snapshot_path(2)) == b"torn"

    @pytest.mark.parametrize("why", ["newest", "tagged", "leased", "recent", "young", "base"])
    def test_one_that_must_be_kept_stops_everything(self, local: LocalStore, why: str) -> None:
        log = _based(local)
        loose = f"data/t/base/p1-{'0' * 12}.parquet"
        local.write(loose, b"garbage")
        version, options = {"newest": 4, "base": 1, "recent": 3}.get(why, 2), dict(NOW)
        lease = None
        if why == "tagged":
            log.tag("old", 2)
        elif why == "leased":
            lease = Leases(local).take(log.read(2))
        elif why == "recent":
            options["keep_versions"] = 2
        elif why == "young":
            options["safety_age_seconds"] = 3600.0
        _damage(local, version)
        for info in list(local.list("")):
            if why != "young" or info.path != snapshot_path(version):
                os.utime(local.root / info.path, (time.time() - 7200,) * 2)
        if lease is not None:
            lease.touch()
            for info in local.list("leases"):
                os.utime(local.root / info.path)
        before = {info.path: local.read(info.path) for info in local.list("")}
        with pytest.raises(CorruptionError, match=f"version {version} is"):
            gc(CommitLog.open(local), **options)
        assert {info.path: local.read(info.path) for info in local.list("")} == before

    def test_a_tag_that_cannot_be_read(self, store: ObjectStore) -> None:
        log = _log(store, 3)
        store.replace("tags/x.json", b"torn")
        with pytest.raises(CorruptionError, match=r"tags/x\.json"):
            gc(log, **NOW)
        assert log.read(1).version == 1


class TestCost:
    def test_versions_that_are_gone_are_not_read_again(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 60)
        time.sleep(1.01 if not isinstance(store, LocalStore) else 0.01)
        assert len(gc(log, **NOW).expired) == 59
        _commit(log, 2)
        assert gc(log, **NOW).expired == (60, 61)  # reads what it let go once more, to be sure
        reads = _counted(monkeypatch, store)
        _commit(log, 1)
        reads.clear()
        report = gc(log, **NOW)
        assert report.expired == (62,)
        assert report.kept == (63,)
        snapshots = [path for path in reads if path.startswith("snapshots/")]
        assert len(snapshots) <= 6, snapshots

    def test_the_file_may_be_missing_or_damaged(self, store: ObjectStore) -> None:
        log = _log(store, 6)
        log.tag("keep", 2)
        for content in (None, b"", b"{}", b"[1]"):
            if content is None:
                store.delete([GONE_FILE])
            else:
                store.replace(GONE_FILE, content)
            _commit(log, 1)
            newest = log.newest_version()
            assert gc(log, **NOW).kept == (2, newest)
            assert [one.version for one in log.history() if one.kept] == [0, 2, newest]

    def test_a_version_that_was_restored_is_seen(self, store: ObjectStore) -> None:
        log = _log(store, 4)
        sound = store.read(snapshot_path(2))
        for _ in range(3):
            gc(log, **NOW)
        assert is_let_go(store, 2)
        time.sleep(1.01 if not isinstance(store, LocalStore) else 0.01)
        store.replace(snapshot_path(2), sound)
        assert log.tag("back", 2).version == 2
        assert gc(log, **NOW).kept == (2, 4)


@pytest.fixture
def golden(tmp_path: Path) -> fs.FeatureStore:
    store = fs.FeatureStore.create(tmp_path / "golden", workers=1)
    for name in ("t", "u"):
        rows = pl.DataFrame({"id": range(4), "day": range(4), "x": [0.5] * 4})
        store.ingest(name, rows, key="id", time="day", partition_bytes=48)
    for day in range(10, 14):
        store.table("t").append(pl.DataFrame({"id": [1], "day": [day], "x": [1.0]}))
    return store


class TestDryRun:
    def test_says_exactly_what_a_run_does(self, golden: fs.FeatureStore) -> None:
        root = Path(golden.url.removeprefix("file://"))
        golden.tag("keep", 3)
        log = CommitLog.open(LocalStore(root))
        journal = log.store
        for path, data in {
            f"data/t/base/p9-{'1' * 12}.parquet": b"orphan",
            f"filesets/{'1' * 24}.arrow": b"orphan",
            f"journal/t/{'1' * 32}.json": b"torn",
            f"journal/gone/{'2' * 32}.json": b"torn",
            f"leases/{'3' * 16}.json": b"torn",
            f"gc/run-{'4' * 16}.json": b"torn",
            "foreign.txt": b"mine",
            "data/t/notes.txt": b"mine",
        }.items():
            journal.write(path, data)
        (root / "tmp").mkdir(exist_ok=True)
        (root / "tmp" / "1-abc").write_bytes(b"torn")
        os.utime(root / "tmp" / "1-abc", (1, 1))
        time.sleep(0.02)
        before = self._files(root)
        dry = golden.gc("0s", keep_versions=2, dry_run=True)
        assert self._files(root) == before
        report = golden.gc("0s", keep_versions=2)
        assert dataclasses.replace(report, dry_run=True) == dry
        after = self._files(root)
        assert set(before) - set(after) == {one.path for one in report.removed}
        assert set(after) - set(before) <= {GONE_FILE}
        changed = {path for path in after if path in before and after[path] != before[path]}
        assert changed == {snapshot_path(version) for version in report.expired}
        assert len(report.removed) >= 8
        assert len(report.expired) == 3
        assert set(report.reasons) == set(report.kept)
        assert {"foreign.txt", "data/t/notes.txt"} <= set(after)
        assert golden.verify(all_versions=True).ok
        again = golden.gc("0s", keep_versions=2)
        assert (again.removed, again.expired) == ((), ())

    def _files(self, root: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }

    def test_journals_of_tables_that_are_gone(self, local: LocalStore) -> None:
        log = CommitLog.create(local)
        log.commit("t", lambda head: {"table:t": {"name": "t"}})
        paths = {
            (table, age): f"journal/{table}/{age}.json"
            for table in ("t", "gone")
            for age in ("old", "young")
        }
        for (_, age), path in paths.items():
            local.write(path, b"torn")
            if age == "old":
                os.utime(local.root / path, (1, 1))
        report = gc(log, safety_age_seconds=3600)
        assert [one.path for one in report.removed] == [paths["gone", "old"]]


class TestFullDisk:
    """gc is what a full disk is told to run, so it begins with what takes no space."""

    @pytest.fixture
    def full(self, golden: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A disk that takes no byte before some file was deleted; and the files that were."""
        deleted: list[str] = []
        delete, write, replace = LocalStore.delete, LocalStore.write, LocalStore.replace

        def deleting(self: LocalStore, paths: Any) -> None:
            paths = list(paths)
            deleted.extend(path for path in paths if self.exists(path))
            delete(self, paths)

        def unless_full(inner: Any) -> Any:
            def wrapped(self: LocalStore, path: str, data: bytes) -> None:
                if not deleted and not path.startswith("leases/"):
                    raise DiskFullError(f"no space for {path}", "gc removes unused files")
                inner(self, path, data)

            return wrapped

        monkeypatch.setattr(LocalStore, "delete", deleting)
        monkeypatch.setattr(LocalStore, "write", unless_full(write))
        monkeypatch.setattr(LocalStore, "replace", unless_full(replace))
        return deleted

    def test_files_of_no_version_make_room(self, golden: fs.FeatureStore, full: list[str]) -> None:
        root = Path(golden.url.removeprefix("file://"))
        orphan = f"data/t/base/p9-{'1' * 12}.parquet"
        (root / orphan).write_bytes(b"left by a build that died")
        report = golden.gc("0s", keep_versions=2)
        assert full[0] == orphan
        assert orphan in {one.path for one in report.removed}
        assert len(report.expired) == 4
        assert golden.verify(all_versions=True).ok

    def test_with_nothing_to_remove_it_says_that_the_disk_is_full(
        self, golden: fs.FeatureStore, full: list[str]
    ) -> None:
        with pytest.raises(DiskFullError):
            golden.gc("0s", keep_versions=2)
        assert full == []
        assert golden.verify(all_versions=True).ok


class TestAtOnce:
    @pytest.mark.parametrize("based", [False, True])
    def test_another_collection_lets_go_what_was_the_newest(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, based: bool
    ) -> None:
        """Between looking which version is the newest, or reading it, and what it builds on."""
        log = _based(store) if based else _log(store, 2)
        newest = log.newest_version()
        done: list[str] = []
        name, late = ("read_file", 1) if based else ("newest_version", None)
        real = getattr(CommitLog, name)

        def overtaken(self: CommitLog, *arguments: int) -> Any:
            before = real(self, *arguments) if late is None else None
            if self is log and not done and (late is None or arguments == (late,)):
                done.append(name)
                other = CommitLog.open(store)
                other.commit("big", lambda head: {f"k{i}": {"v": "y" * 500} for i in range(200)})
                gc(other, **NOW)
            return real(self, *arguments) if late is not None else before

        monkeypatch.setattr(CommitLog, name, overtaken)
        report = gc(log, **NOW)
        assert done
        assert report.kept == (newest + 1,)
        assert is_let_go(store, newest)

    def test_collections_commits_tags_and_leases(self, tmp_path: Path) -> None:
        """Threads that each open the store anew, as processes would."""
        seed = int.from_bytes(os.urandom(4), "little")
        print("seed", seed)
        root = tmp_path / "store"
        CommitLog.create(LocalStore(root))
        stop = threading.Event()
        faults: list[Exception] = []
        counted: Counter[str] = Counter()

        def worker(kind: str, own: random.Random) -> None:
            store = LocalStore(root)
            log = CommitLog.open(store)
            try:
                while not stop.is_set():
                    counted[kind] += bool(ACTIONS[kind](log, own, f"{kind}{own.random():.9f}"))
            except Exception as error:  # noqa: BLE001 - raised again by the test
                faults.append(error)
                stop.set()

        kinds = ["commit", "commit", "gc", "gc", "tag", "lease"]
        threads = [
            threading.Thread(target=worker, args=(kind, random.Random(seed + n)))
            for n, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        time.sleep(2.5)
        stop.set()
        for thread in threads:
            thread.join(60)
        if faults:
            raise faults[0]
        log = CommitLog.open(LocalStore(root))
        for name, version in log.tags().items():
            assert log.read(version).entries["n"]["v"] >= 0, name
        parent = log.store_id
        for version in range(1, log.newest_version() + 1):
            assert log.read_file(version).parent == parent
            parent = log.read_file(version).commit
        assert list(log.store.list("leases")) == []
        assert not any("run-" in one.path for one in log.store.list("gc"))
        assert all(counted[kind] for kind in kinds), counted


def _act_commit(log: CommitLog, own: random.Random, name: str) -> bool:
    log.commit(name, lambda head: {"n": {"v": head.version}, f"k{own.randrange(40)}": {"v": name}})
    return True


def _act_gc(log: CommitLog, own: random.Random, name: str) -> bool:
    try:
        return bool(gc(log, safety_age_seconds=0.0, keep_versions=own.randint(1, 3)).kept)
    except ConflictError:
        return False


def _old_version(log: CommitLog, own: random.Random) -> int:
    newest = log.newest_version()
    return max(1, newest - own.randint(0, 4))


def _act_tag(log: CommitLog, own: random.Random, name: str) -> bool:
    try:
        tag = log.tag("t" + name.replace(".", ""), _old_version(log, own))
    except NotFoundError:
        return False
    assert log.read(tag.version).commit == tag.commit
    if own.random() < 0.8:
        log.untag(tag.name)
    return True


def _act_lease(log: CommitLog, own: random.Random, name: str) -> bool:
    try:
        snapshot = log.read(_old_version(log, own))
        with Leases(log.store).take(snapshot):
            for _ in range(3):
                assert log.read(snapshot.version).entries == snapshot.entries
    except NotFoundError:
        return False
    return True


ACTIONS: dict[str, Callable[[CommitLog, random.Random, str], bool]] = {
    "commit": _act_commit,
    "gc": _act_gc,
    "tag": _act_tag,
    "lease": _act_lease,
}


class TestHistory:
    def test_unreadable_versions_are_listed(self, store: ObjectStore) -> None:
        log = _log(store, 4)
        _damage(store, 2, b"torn")
        records = log.history()
        assert [one.version for one in records] == [0, 1, 2, 3, 4]
        assert [bool(one.fault) for one in records] == [False, False, True, False, False]
        assert "snapshots/" in records[2].fault
        assert (records[2].kept, records[2].id) == (False, "2")
        assert [one.version for one in log.history(2)] == [3, 4]
        assert log.history(0) == []

    def test_times_never_run_backwards(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 1)
        monkeypatch.setattr(commit_log, "_now", lambda: "2001-01-01T00:00:00.000000+00:00")
        _commit(log, 2)
        created = [one.created for one in log.history()]
        assert created == sorted(created)

    def _at(self, log: CommitLog, version: int) -> dt.datetime:
        return dt.datetime.fromisoformat(log.read_file(version).created)

    def test_the_version_of_a_time(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 100)
        times = {version: self._at(log, version) for version in range(1, 101)}
        reads = _counted(monkeypatch, store)
        step = dt.timedelta(microseconds=1)
        for version in (1, 2, 37, 99, 100):
            reads.clear()
            assert log.at(times[version]).version == version
            assert log.at(times[version] - step).version == version - 1
            assert sum(reads.values()) < 30
        assert log.at(times[100] + dt.timedelta(days=1)).version == 100
        with pytest.raises(NotFoundError, match="younger than"):
            log.at(times[1] - dt.timedelta(days=1))

    def test_beside_damage_and_expired_versions(self, store: ObjectStore) -> None:
        log = _log(store, 20)
        times = {version: self._at(log, version) for version in range(1, 21)}
        log.tag("keep", 8)
        time.sleep(0.01)
        gc(log, safety_age_seconds=0.0, keep_versions=8)
        for version in (9, 10, 11, 15):
            _damage(store, version, b"torn")
        for version in (8, 13, 14, 16, 20):
            if version in (8, 14):
                with pytest.raises(CorruptionError, match=f"{version} is not later"):
                    log.at(times[version])
            else:
                assert log.at(times[version]).version == version
        with pytest.raises(NotFoundError, match="let go"):
            log.at(times[5])

    def test_checkouts(self, golden: fs.FeatureStore) -> None:
        root = Path(golden.url.removeprefix("file://"))
        (root / snapshot_path(2)).write_bytes(b"")
        opened = fs.FeatureStore.open(root)
        assert len(opened.history()) == 7
        assert "unreadable" in str(opened.history())
        created = opened.history()[4].created
        assert opened.checkout(created).version == 4
        assert opened.checkout(4).version == 4


class TestHeadLookedAfter:
    """A process that holds the newest content in memory writes damaged files of it again."""

    @pytest.mark.parametrize("version", [1, 4])
    @pytest.mark.parametrize("data", [b"", None])
    def test_torn_or_lost(
        self,
        local: LocalStore,
        version: int,
        data: bytes | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        log = _based(local)
        sound = local.read(snapshot_path(version))
        if data is None:
            local.delete([snapshot_path(version)])
        else:
            _damage(local, version, data)
        with caplog.at_level(logging.WARNING):
            new = log.commit("on", lambda head: {"k1": {"v": "z"}})
        assert "written again" in caplog.text
        assert local.read(snapshot_path(version)) == sound
        assert new.version == 5
        assert CommitLog.open(local).head().entries == new.entries

    def test_a_flipped_byte(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        log = _based(store)
        sound = store.read(snapshot_path(1))
        _damage(store, 1, sound.replace(b"x", b"w", 1))
        monkeypatch.setattr(acknowledged, "LOOK_AGAIN_SECONDS", 0.0)
        log.commit("on", lambda head: {"k1": {"v": "z"}})
        assert store.read(snapshot_path(1)) == sound
        assert len(CommitLog.open(store).head().entries) == 200

    def test_a_version_somebody_gave_up(self, local: LocalStore) -> None:
        log = _based(local)
        _damage(local, 4)
        other = CommitLog.open(local)
        given = other.give_up(4)
        new = log.commit("on", lambda head: {"k9": {"v": head.commit}})
        assert new.entries["k9"]["v"] == given.commit
        assert log.read_file(5).parent == given.commit

    def test_nothing_is_read_while_all_is_well(
        self, local: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _based(local)

        def refuse(*_: Any) -> Any:
            raise AssertionError("a whole snapshot is read")

        monkeypatch.setattr(acknowledged, "read_snapshot_file", refuse)
        monkeypatch.setattr(commit_log, "read_snapshot_file", refuse)
        reads = _counted(monkeypatch, local)
        _commit(log, 20)
        assert max(reads.values()) == 1  # of each head the commit, before the next one


def test_a_torn_newest_version_says_what_to_do(local: LocalStore) -> None:
    _log(local, 2)
    _damage(local, 2)
    with pytest.raises(CorruptionError) as caught:
        CommitLog.open(local).head()
    assert "give" in caught.value.remedy
    assert "backup" in caught.value.remedy


def test_reports_say_why(store: ObjectStore) -> None:
    log = _log(store, 3)
    log.tag("mine", 1)
    report = gc(log, **NOW)
    assert report.reasons == {1: "tagged mine", 3: "the newest"}
    assert "version 1 is kept: tagged mine" in str(report)
    assert isinstance(report, GcReport)
    fileset._cache.clear()
    with pytest.raises(InvalidInputError):
        gc(log, keep_versions=0)
    assert issubclass(ConflictError, FeatureStoreError)
