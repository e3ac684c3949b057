"""An open log beside a store that was made anew, restored or gave a version up; and lost versions."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import ConflictError, CorruptionError
from featurestore.storage import acknowledged
from featurestore.storage.commit_log import Change, CommitLog
from featurestore.storage.fileset import write_fileset
from featurestore.storage.head_search import find_newest_version, last_version
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.sealed_json import seal, unseal
from featurestore.storage.snapshot_file import SnapshotFile, read_commit, snapshot_path
from featurestore.storage.verification import verify, verify_store


def _setting(key: str) -> Change:
    return lambda head: {key: {"v": head.version}}


def _commit(log: CommitLog, times: int, name: str = "k") -> None:
    for number in range(times):
        log.commit("set", _setting(f"{name}{number}"))


def _log(store: ObjectStore, versions: int) -> CommitLog:
    log = CommitLog.create(store)
    _commit(log, versions)
    return log


def _files(store: ObjectStore) -> dict[str, bytes]:
    return {one.path: store.read(one.path) for one in store.list("")}


def _restore(store: ObjectStore, files: dict[str, bytes]) -> None:
    store.delete([one.path for one in store.list("")])
    for path, data in files.items():
        store.write(path, data)


def _now_and_then(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    """Readers of object stores look once a minute; do as if one had passed."""
    if store.local_path("x") is None:
        monkeypatch.setattr(acknowledged, "LOOK_AGAIN_SECONDS", 0.0)


def _refused(log: CommitLog, store: ObjectStore) -> None:
    """Assert that neither reading nor writing goes on, again and again, and nothing is written."""
    before = _files(store)
    for use in (log.head, lambda: _commit(log, 1, "mine"), log.head, lambda: _commit(log, 1, "x")):
        with pytest.raises(ConflictError) as caught:
            use()
        assert "open the store again" in caught.value.remedy
    assert _files(store) == before


class TestReplaced:
    @pytest.mark.parametrize("versions", [0, 1, 3, 4, 5, 6, 7, 9])
    def test_made_anew(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, versions: int
    ) -> None:
        log = _log(store, 5)
        _restore(store, {})
        other = _log(store, versions)
        _now_and_then(monkeypatch, store)
        _refused(log, store)
        assert CommitLog.open(store).head() == other.head()
        assert verify_store(CommitLog.open(store)).ok

    @pytest.mark.parametrize("versions", [0, 1])
    def test_made_anew_beside_a_log_of_an_empty_one(
        self, store: ObjectStore, versions: int
    ) -> None:
        log = CommitLog.create(store)
        _restore(store, {})
        other = _log(store, versions)
        with pytest.raises(ConflictError, match="made anew"):
            _commit(log, 1)
        assert CommitLog.open(store).head() == other.head()

    def test_removed(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        log = _log(store, 5)
        _restore(store, {})
        _now_and_then(monkeypatch, store)
        with pytest.raises(ConflictError, match="is gone"):
            log.head()
        with pytest.raises(ConflictError, match="is gone"):
            _commit(log, 1)
        assert not _files(store)

    @pytest.mark.parametrize("more", [0, 1, 2, 3, 5])
    def test_an_older_copy(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, more: int
    ) -> None:
        log = _log(store, 3)
        copy = _files(store)
        _commit(log, 3, "later")
        _restore(store, copy)
        _commit(CommitLog.open(store), more, "other")
        _now_and_then(monkeypatch, store)
        _refused(log, store)
        assert len(CommitLog.open(store).head().entries) == 3 + more

    def test_a_copy_of_the_version_before(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It looks as if the newest file were lost, but the files it names are not there either."""
        log = _log(store, 3)
        copy = _files(store)
        ref = write_fileset(store, [])
        log.commit("a", lambda head: {"group:t:base": {"fileset": ref.to_json()}})
        _restore(store, copy)
        _now_and_then(monkeypatch, store)
        _refused(log, store)

    def test_features_of_another_store(self, tmp_path: Path) -> None:
        rows = pl.DataFrame({"id": [1], "x": [1]})
        store = fs.FeatureStore.create(tmp_path / "s", workers=1)
        for number in range(3):
            store.ingest(f"old{number}", rows, key="id")
        shutil.rmtree(tmp_path / "s")
        other = fs.FeatureStore.create(tmp_path / "s", workers=1)
        other.ingest("new", rows, key="id")
        for use in (store.tables, lambda: store.drop("old0"), lambda: store.ingest("z", rows)):
            with pytest.raises(ConflictError, match="made anew"):
                use()
        assert fs.FeatureStore.open(tmp_path / "s").tables() == ("new",)
        assert other.verify(all_versions=True).ok


def _adding(entries: dict[str, Any]) -> Change:
    return lambda head: entries


class TestBases:
    def _complete(self, log: CommitLog) -> int:
        """Commit until a complete version is the newest; each adds an entry of its own."""
        log.commit("many", lambda head: {f"k{i}": {"v": "x" * 300} for i in range(40)})
        for n in range(1, 40):
            wide = {f"k{j % 40}": {"v": f"{n}" * 200} for j in range(n * 7, n * 7 + 5)}
            made = log.commit("c", _adding({**wide, f"only{n}": {"v": n}}))
            if n > 3 and log.read_file(made.version).base is None:
                return made.version
        raise AssertionError("no complete version came")

    def test_differences_say_which_commit_they_build_on(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        version = self._complete(log)
        assert log.read_file(1).base_commit is None
        _commit(log, 1)
        file = log.read_file(version + 1)
        assert (file.base, file.base_commit) == (version, log.read(version).commit)
        assert file.parent == log.read(version).commit
        assert unseal(file.data, "x")["base_commit"] == file.base_commit

    def test_a_complete_version_that_was_given_up(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        version = self._complete(log)
        damaged = bytearray(store.read(snapshot_path(version)))
        damaged[50] ^= 1
        store.replace(snapshot_path(version), bytes(damaged))
        other = CommitLog.open(store)
        other.give_up(version)
        _commit(other, 1, "other")
        assert log.head() == CommitLog.open(store).head() == other.head()
        _commit(log, 1, "mine")
        assert log.head() == CommitLog.open(store).head()
        assert verify_store(CommitLog.open(store)).ok

    def test_a_base_of_another_commit_is_damage(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        version = self._complete(log)
        _commit(log, 1)
        content = unseal(store.read(snapshot_path(version)), "x")
        store.replace(snapshot_path(version), seal({**content, "commit": "0" * 16}))
        with pytest.raises(CorruptionError, match="written against"):
            CommitLog.open(store).head()

    def test_files_that_do_not_say(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        version = self._complete(log)
        _commit(log, 2)
        for one in (version + 1, version + 2):
            content = unseal(store.read(snapshot_path(one)), "x")
            del content["base_commit"]
            store.replace(snapshot_path(one), seal(content))
        again = CommitLog.open(store)
        assert again.head() == log.head()
        _commit(again, 1, "more")
        assert again.read_file(version + 3).base_commit == log.read(version).commit
        assert CommitLog.open(store).head() == again.head()

    def test_the_commit_is_in_the_first_bytes(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        version = self._complete(log)
        _commit(log, 2)
        for one in range(1, version + 3):
            assert read_commit(store, one) == log.read_file(one).commit
        huge = SnapshotFile(
            10**15 - 1, "a" * 16, "b" * 16, log.created, "x", 10**15 - 2, {}, "c" * 16
        )
        store.write(snapshot_path(huge.version), huge.encode())
        assert read_commit(store, huge.version) == "a" * 16
        assert store.size(snapshot_path(huge.version)) > 160


class TestAsItWas:
    @pytest.mark.parametrize("change", [{"format": 1}, {"later": {"a": 1}}])
    def test_what_another_package_wrote(self, local: LocalStore, change: dict[str, Any]) -> None:
        _log(local, 3)
        path = snapshot_path(3)
        content = unseal(local.read(path), path)
        written = seal({**content, **change})
        local.replace(path, written)
        log = CommitLog.open(local)
        log.head()
        local.replace(path, written[:-5])
        _commit(log, 1, "new")
        assert local.read(path) == written


class TestLostVersions:
    @pytest.mark.parametrize("lost", [(5,), (5, 6), (4, 5, 6, 7), tuple(range(2, 19))])
    def test_none_hides_what_came_later(
        self, local: LocalStore, lost: tuple[int, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        log = _log(local, 20)  # without a hint
        local.delete([snapshot_path(one) for one in lost])
        again = CommitLog.open(local)
        with caplog.at_level(logging.WARNING):
            assert again.head() == log.head()
        # Doubling steps may pass over few without seeing that they are lost; verify lists them.
        assert "lost" in caplog.text or len(lost) < 3
        _commit(again, 1, "more")
        assert again.newest_version() == 21
        for report in (verify(local, again.head()), verify_store(again)):
            found = [one.file for one in report.faults]
            assert found == [snapshot_path(one) for one in lost]

    def test_a_log_that_was_open(self, local: LocalStore) -> None:
        log = _log(local, 4)
        other = CommitLog.open(local)
        _commit(other, 8, "other")
        local.delete([snapshot_path(one) for one in (5, 6, 7)])
        log._list_at = 0.0  # as after a minute
        _commit(log, 1, "mine")
        assert log.newest_version() == 13

    def test_names(self) -> None:
        names = [f"{12:020d}.json", f"{10**15:020d}.json", "x.json", f"{13:020d}.json.bak", "tmp"]
        assert last_version(names) == 12
        assert last_version([]) == 0

    def test_only_local_names_are_listed(self, store: ObjectStore) -> None:
        _log(store, 9)
        store.delete([snapshot_path(one) for one in (3, 4, 5)])
        listed = isinstance(store, LocalStore)
        assert find_newest_version(store, 2, listing=True) == (9 if listed else 2)

    def test_a_plain_verification_tells(self, tmp_path: Path) -> None:
        rows = pl.DataFrame({"id": [1], "x": [1]})
        store = fs.FeatureStore.create(tmp_path / "s", workers=1)
        for number in range(3):
            store.ingest(f"t{number}", rows, key="id")
        (tmp_path / "s" / snapshot_path(2)).unlink()
        report = fs.FeatureStore.open(tmp_path / "s").verify()
        assert not report.ok
        assert [one.file for one in report.faults] == [snapshot_path(2)]
        assert json.dumps(report.to_json())


@pytest.mark.parametrize("where", ["sync", "publish"])
def test_a_fileset_that_went_before_it_was_published(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    log = _log(store, 1)
    ref = write_fileset(store, [])
    real = store.sync

    def sync(paths: Any) -> None:
        if where == "sync":
            store.delete([ref.file.path])
        real(paths)
        store.delete([ref.file.path])

    monkeypatch.setattr(store, "sync", sync)
    with pytest.raises(ConflictError, match="removed meanwhile"):
        log.commit("a", _adding({"group:t:base": {"fileset": ref.to_json()}}))
    assert CommitLog.open(store).newest_version() == 1
