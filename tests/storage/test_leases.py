"""Leases keep from gc what somebody uses, for as long as they use it and no longer."""

from __future__ import annotations

import gc as collector
import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import ConflictError, FeatureStoreError, NotFoundError
from featurestore.execution.events import observed_by
from featurestore.storage import condemned, garbage, holder, leases
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import Change, CommitLog
from featurestore.storage.condemned import Condemned, GoneVersions, as_ranges
from featurestore.storage.holder import Holder
from featurestore.storage.leases import LEASE_SECONDS, LEASES, LeaseFile, Leases
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import gc
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.storage.sealed_json import seal, unseal
from featurestore.storage.tags import Tag, Tags

NOW: dict[str, Any] = {"safety_age_seconds": 0.0, "keep_versions": 1}


def _setting(key: str, value: Any) -> Change:
    return lambda head: {key: {"v": value}}


def _log(store: ObjectStore, versions: int = 3) -> CommitLog:
    log = CommitLog.create(store)
    for number in range(versions):
        log.commit("set", _setting("a", number))
    return log


def _files(store: ObjectStore) -> list[str]:
    return [one.path for one in store.list(LEASES)]


class TestTaking:
    def test_one_file_for_all_holders_of_a_process(self, store: ObjectStore) -> None:
        log = _log(store)
        first = Leases(store).take(log.read(2))
        second = Leases(open_object_store(store.url)).take(log.read(2))
        (path,) = _files(store)
        content = unseal(store.read(path), path)
        assert (content["version"], content["commit"]) == (2, log.read(2).commit)
        assert content["process"] == os.getpid()
        assert content["writes"] is False
        first.release()
        first.release()
        assert _files(store) == [path]
        with second:
            assert [one.version for one in Leases(store).live()] == [2]
        assert _files(store) == []

    def test_forgotten_leases_are_released(self, store: ObjectStore) -> None:
        log = _log(store)
        lease = Leases(store).take(log.read(2))
        assert len(_files(store)) == 1
        del lease
        collector.collect()
        assert Leases(store).live() == []
        assert _files(store) == []

    def test_version_zero_needs_none(self, store: ObjectStore) -> None:
        log = _log(store, 0)
        with Leases(store).take(log.head()) as lease:
            lease.touch()
            assert _files(store) == []

    def test_a_copy_holds_nothing(self, store: ObjectStore) -> None:
        log = _log(store)
        with Leases(store).take(log.read(1)) as lease:
            copy = pickle.loads(pickle.dumps(lease))
            copy.touch()
            copy.release()
            assert len(_files(store)) == 1

    def test_a_place_that_cannot_be_written(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(tmp_path / "store")
        log = _log(store)

        def refuse(path: str, data: bytes) -> None:
            raise FeatureStoreError(f"cannot write {path}", "the file system is mounted read-only")

        monkeypatch.setattr(store, "write", refuse)
        with caplog.at_level(logging.INFO), Leases(store).take(log.read(1)) as lease:
            lease.touch()
        assert "without a lease" in caplog.text
        assert all(one.levelno == logging.INFO for one in caplog.records)

    def test_a_version_that_is_gone(self, store: ObjectStore) -> None:
        log = _log(store)
        snapshot = log.read(1)
        assert gc(log, **NOW).expired == (1, 2)
        with pytest.raises(NotFoundError, match="let version 1 go"):
            Leases(store).take(snapshot)
        assert _files(store) == []


class TestTouching:
    def test_young_files_are_not_written_again(self, store: ObjectStore) -> None:
        log = _log(store)
        with Leases(store).take(log.read(1)) as lease:
            before = _files(store)
            lease.touch()
            assert _files(store) == before

    def test_a_file_that_came_of_age(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store)
        with Leases(store).take(log.read(1), writes=True) as lease:
            (before,) = Leases(store).live()
            files = _files(store)
            start = time.time()
            monkeypatch.setattr(time, "time", lambda: start + LEASE_SECONDS / 9)
            lease.touch()
            monkeypatch.undo()
            assert len(_files(store)) == 1
            assert _files(store) != files
            assert Leases(store).live() == [before]  # since when it is held stays
        assert _files(store) == []

    def test_a_holder_that_slept_too_long(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(tmp_path / "store")
        log = _log(store)
        lease = Leases(store).take(log.read(1))
        for path in _files(store):
            os.utime(store.root / path, (1, 1))
        report = gc(log, **NOW)
        assert report.expired == (1, 2)
        assert [one.reason for one in report.removed] == ["lease that ended"]
        start = time.time()
        monkeypatch.setattr(time, "time", lambda: start + LEASE_SECONDS + 1)
        with pytest.raises(NotFoundError, match="let version 1 go"):
            lease.touch()
        monkeypatch.undo()
        lease.release()


class TestOldFiles:
    """Whoever takes a lease on a file that came of age renews it, and looks after the version."""

    def _let_pass(self, store: LocalStore, seconds: float) -> None:
        for shared in leases._shared.values():
            shared._written -= seconds
        for path in _files(store):
            then = (store.root / path).stat().st_mtime - seconds
            os.utime(store.root / path, (then, then))

    @pytest.mark.parametrize("age", [0.2, 1.1])
    @pytest.mark.parametrize("kind", ["take", "join"])
    def test_a_new_holder_of_an_old_file(self, local: LocalStore, kind: str, age: float) -> None:
        log = _log(local)
        with Leases(local).take(log.read(1), writes=kind == "join"):
            self._let_pass(local, LEASE_SECONDS * age)
            again = Leases(local)
            with again.take(log.read(1)) if kind == "take" else again.join(log.read(0)):
                self._let_pass(local, LEASE_SECONDS * 0.9)
                assert [one.version for one in Leases(local).live()] == [1]
                assert gc(log, **NOW).kept == (1, 3)

    def test_a_version_that_went_while_nobody_worked(self, local: LocalStore) -> None:
        log = _log(local)
        snapshot = log.read(1)
        with Leases(local).take(snapshot) as first:
            self._let_pass(local, LEASE_SECONDS + 1)
            assert gc(log, **NOW).expired == (1, 2)
            for _ in range(2):  # the file is young now, the version is still gone
                with pytest.raises(NotFoundError, match="let version 1 go"):
                    Leases(local).take(snapshot)
                with pytest.raises(NotFoundError, match="let version 1 go"):
                    first.touch()
        assert _files(local) == []

    def test_a_commit_beside_work_that_lost_its_version(self, local: LocalStore) -> None:
        log = _log(local)
        with Leases(local).take(log.read(1), writes=True):
            self._let_pass(local, LEASE_SECONDS + 1)
            assert gc(log, **NOW).expired == (1, 2)
            with Leases(local).join(log.read(0)):
                assert 0 in [one.version for one in Leases(local).live() if one.writes]


class TestForgetting:
    """A lease may be forgotten wherever a thread allocates memory, whatever locks it holds there."""

    def test_nothing_but_a_note_at_that_moment(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store)
        deleted: list[Any] = []
        real = store.delete

        def delete(paths: Any, durable: bool = False) -> None:
            deleted.append(list(paths))
            real(deleted[-1], durable)

        monkeypatch.setattr(store, "delete", delete)
        holder: dict[str, Any] = {"lease": Leases(store).take(log.read(1))}
        holder["itself"] = holder
        before = _files(store)
        del holder
        collector.collect()
        assert deleted == []
        with Leases(store).take(log.read(2)):
            assert deleted == [before]

    def test_under_the_locks_that_removing_takes(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        log = _log(store)
        done: list[bool] = []

        def forget() -> None:
            holder: dict[str, Any] = {"lease": Leases(store).take(log.read(1))}
            holder["itself"] = holder
            del holder
            with store._known.unsynced._lock, store._known.lock, leases._lock:
                collector.collect()
            done.append(True)

        thread = threading.Thread(target=forget, daemon=True)
        thread.start()
        thread.join(20)
        assert done
        assert Leases(store).live() == []
        assert _files(store) == []

    def test_a_touch_that_a_release_overtakes(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file that a touch is writing goes too."""
        log = _log(store)
        lease = Leases(store).take(log.read(1))
        assert lease._file is not None
        lease._file._written -= LEASE_SECONDS / 5
        real, threads = store.write, []

        def write(path: str, data: bytes) -> None:
            threads.append(threading.Thread(target=lease.release))
            threads[-1].start()
            threads[-1].join(0.05)  # it waits for the touch, if it is right
            real(path, data)

        monkeypatch.setattr(store, "write", write)
        lease.touch()
        threads[0].join()
        assert len(threads) == 1
        assert _files(store) == []

    def test_the_end_of_a_process(self, tmp_path: Path) -> None:
        """What it holds, keeps and has forgotten goes."""
        script = (
            "import sys\n"
            "from featurestore.storage.commit_log import CommitLog\n"
            "from featurestore.storage.leases import Leases\n"
            "from featurestore.storage.local import LocalStore\n"
            "store = LocalStore(sys.argv[1])\n"
            "log = CommitLog.open(store)\n"
            "held = Leases(store).take(log.read(1))\n"
            "Leases(store).take(log.read(2)).keep()\n"
            "Leases(store).take(log.read(3), writes=True)\n"
            "print(len(list(store.list('leases'))))\n"
        )
        store = LocalStore(tmp_path / "store")
        _log(store)
        command = [sys.executable, "-c", script, str(store.root)]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (ended.stdout, ended.stderr) == ("3\n", "")
        assert _files(store) == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
    def test_a_fork_while_a_lease_is_taken(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        log = _log(store)
        process = multiprocessing.get_context("fork").Process(
            target=_hold, args=(str(store.root),), daemon=True
        )
        with Leases(store).take(log.read(1)), leases._lock:  # as another thread may have it
            process.start()
            process.join(30)
            assert process.exitcode == 0
        assert _files(store) == []


def _hold(root: str) -> None:
    store = LocalStore(root)
    with Leases(store).take(CommitLog.open(store).read(1)) as lease:
        lease.touch()


def _hold_and_die(root: str) -> None:
    store = LocalStore(root)
    lease = Leases(store).take(CommitLog.open(store).read(1))
    lease.touch()
    os.kill(os.getpid(), 9)


class TestGc:
    def test_a_leased_version_stays_with_all_it_builds_on(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        log.commit("big", lambda head: {f"k{i}": {"v": "x" * 500} for i in range(200)})
        for number in range(80):
            log.commit("x", _setting(f"k{number}", "y" * 2000))
        snapshot = log.read(2)
        assert log.read_file(2).base == 1
        with Leases(store).take(snapshot):
            report = gc(log, **NOW)
            assert {1, 2} <= set(report.kept)
            assert report.reasons[2] == "in use"
            assert report.reasons[1] == "what version 2 builds on"
            assert CommitLog.open(store).read(2).entries == snapshot.entries
        assert {1, 2} <= set(gc(log, **NOW).expired)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is gone")
    def test_a_killed_process_holds_nothing(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        log = _log(store)
        process = multiprocessing.get_context("fork").Process(
            target=_hold_and_die, args=(str(store.root),)
        )
        process.start()
        process.join(30)
        assert process.exitcode == -9
        (path,) = _files(store)
        report = gc(log, **NOW)
        assert report.expired == (1, 2)
        assert [one.path for one in report.removed] == [path]
        assert _files(store) == []

    def test_another_machine_is_believed(self, store: ObjectStore) -> None:
        log = _log(store)
        other = Holder("elsewhere", 1, "another boot/pid:[1]")
        there = LeaseFile(1, log.read(1).commit, time.time(), writes=False, holder=other)
        store.write(f"{LEASES}/{'ab' * 8}.json", there.encode())
        assert gc(log, **NOW).kept == (1, 3)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            seal({"version": "1"}),
            seal({"version": 1, "commit": "x", "created": 3, "writes": False}),
        ],
    )
    def test_a_torn_lease_holds_nothing(self, store: ObjectStore, content: bytes) -> None:
        log = _log(store)
        path = f"{LEASES}/{'ab' * 8}.json"
        store.write(path, content)
        assert gc(log, **NOW).expired == (1, 2)
        assert not store.exists(path)

    def test_foreign_files_are_left_alone(self, store: ObjectStore) -> None:
        log = _log(store)
        for path in ("leases/README.txt", "gc/notes.txt", "tags/README.md", "journal/t/x.txt"):
            store.write(path, b"mine")
        gc(log, **NOW)
        assert store.read("leases/README.txt") == b"mine"
        assert store.read("gc/notes.txt") == b"mine"
        assert log.tags() == {}

    def test_files_of_a_writer_at_work(self, store: ObjectStore) -> None:
        """Whatever the safety age, files that are younger than a writer's lease stay."""
        log = _log(store)
        path = f"data/t/base/p1-{'0' * 12}.parquet"
        with Leases(store).take(log.head(), writes=True):
            store.write(path, b"not published yet")
            time.sleep(0.01)
            assert gc(log, **NOW).removed == ()
        assert [one.path for one in gc(log, **NOW).removed] == [path]


class TestRaces:
    """Every place at which a tag or lease can meet a running gc: one of both sees the other."""

    @contextmanager
    def _meanwhile(self, monkeypatch: pytest.MonkeyPatch, where: str, do: Any) -> Iterator[None]:
        done: list[bool] = []

        def once() -> None:
            if not done:
                done.append(True)
                do()

        if where == "decided":  # and nothing said yet
            real_announced = Condemned.announced

            def announced(own: Condemned, versions: Any) -> Any:
                once()
                return real_announced(own, versions)

            monkeypatch.setattr(Condemned, "announced", announced)
        elif where == "announced":
            real_holds = garbage._Findings.still_holds

            def still_holds(own: Any, store: ObjectStore) -> bool:
                once()
                return real_holds(own, store)

            monkeypatch.setattr(garbage._Findings, "still_holds", still_holds)
        else:
            real_carry = garbage._carry_out

            def carry_out(store: ObjectStore, found: Any) -> None:
                if where == "looked":
                    once()
                real_carry(store, found)
                if where == "done":
                    once()

            monkeypatch.setattr(garbage, "_carry_out", carry_out)
        yield
        assert done

    @pytest.mark.parametrize("where", ["decided", "announced", "looked", "done"])
    @pytest.mark.parametrize("kind", ["tag", "lease"])
    def test_either_sees_the_other(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, where: str, kind: str
    ) -> None:
        log = _log(store, 5)
        snapshot = log.read(2)
        taken: list[Any] = []
        refused: list[str] = []

        def take() -> None:
            other = CommitLog.open(store)
            try:
                if kind == "tag":
                    taken.append(other.tag("late", 2))
                else:
                    taken.append(Leases(store).take(snapshot))
            except NotFoundError as error:
                refused.append(error.problem)

        with self._meanwhile(monkeypatch, where, take):
            report = gc(log, **NOW)
        assert bool(taken) == (where == "decided")
        assert bool(taken) != any("version 2" in one and "go" in one for one in refused)
        assert (2 in report.kept) == bool(taken)
        assert bool(taken) == (2 not in report.expired)
        if taken:
            assert CommitLog.open(store).read(2).entries == snapshot.entries
        else:
            assert log.tags() == {}
            assert _files(store) == []
        assert not any(one.path.startswith("gc/run-") for one in store.list("gc"))

    def test_a_gc_killed_before_it_lets_go(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 5)

        class Killed(BaseException):
            pass

        def carry_out(store: ObjectStore, found: Any) -> None:
            raise Killed

        monkeypatch.setattr(garbage, "_carry_out", carry_out)
        monkeypatch.setattr(store, "delete", lambda paths: None)  # nothing is tidied up
        with pytest.raises(Killed):
            gc(log, **NOW)
        monkeypatch.undo()
        (left,) = [one.path for one in store.list("gc")]
        assert log.tag("still", 2).version == 2  # what a dead gc said binds nobody
        report = gc(log, **NOW)
        assert report.kept == (2, 5)
        assert (left, "dead gc") in [(one.path, one.reason) for one in report.removed]
        assert not store.exists(left)

    def test_tags_that_never_stop(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 3)
        monkeypatch.setattr(garbage._Findings, "still_holds", lambda own, store: False)
        before = {one.path: one.bytes for one in store.list("")}
        with pytest.raises(ConflictError, match="run gc again"):
            gc(log, **NOW)
        assert {one.path: one.bytes for one in store.list("")} == before


class TestTagging:
    def test_a_tag_that_cannot_be_moved_stays(self, store: ObjectStore) -> None:
        log = _log(store, 5)
        kept = log.tag("prod", 5)
        with (
            Condemned(store).announced([2]),
            pytest.raises(NotFoundError, match="let version 2 go"),
        ):
            log.tag("prod", 2)
        assert Tags(store).get("prod") == kept
        assert _files(store) == []

    def test_the_tag_is_there_before_the_lease_ends(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store, 5)
        seen: list[tuple[list[int], list[str]]] = []
        real = store.delete

        def delete(paths: Any, durable: bool = False) -> None:
            seen.append(([one.version for one in Leases(store).live()], Tags(store).names()))
            real(paths, durable)

        monkeypatch.setattr(store, "delete", delete)
        log.tag("prod", 2)
        assert seen == [([2], ["prod"])]

    def test_gc_looks_at_leases_before_tags(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tag that is written right after gc read the leases, under a lease that it saw."""
        log = _log(store, 5)
        real = garbage._Findings.still_holds
        done: list[bool] = []

        def still_holds(own: Any, objects: ObjectStore) -> bool:
            holds = real(own, objects)
            if not done:
                done.append(holds)
                lease.release()
            return holds

        lease = Leases(store).take(log.read(2))
        live = Leases.live
        looks: list[int] = []

        def late(own: Leases) -> list[LeaseFile]:
            looks.append(1)
            if len(looks) == 1:
                return []  # as if it had been taken after the decision
            found = live(own)
            if not done:
                Tags(store).put(Tag("late", 2, log.read(2).commit, log.created))
            return found

        monkeypatch.setattr(Leases, "live", late)
        monkeypatch.setattr(garbage._Findings, "still_holds", still_holds)
        assert gc(log, **NOW).kept == (2, 5)
        assert done == [False]

    def test_no_lease_no_tag(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        log = _log(store)

        def refuse(path: str, data: bytes) -> None:
            raise FeatureStoreError(f"cannot write {path}", "try again")

        monkeypatch.setattr(store, "write", refuse)
        with pytest.raises(FeatureStoreError, match="cannot write leases/"):
            log.tag("x", 2)
        assert log.tags() == {}


class TestListing:
    @pytest.mark.parametrize(("when", "times"), [("listed", 1), ("listed", 3), ("scanned", 1)])
    def test_a_lease_that_is_written_anew_while_gc_looks(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, when: str, times: int
    ) -> None:
        """``listed``: its old name is listed, and gone when it is read; ``scanned``: neither name is."""
        log = _log(store)
        renewed: list[int] = []
        with Leases(store).take(log.read(1), writes=True) as lease:
            real = Leases._files

            def files(own: Leases) -> Any:
                found = real(own)
                if len(renewed) < times:
                    renewed.append(1)
                    assert lease._file is not None
                    lease._file._renew()
                    return found if when == "listed" else []
                return found

            monkeypatch.setattr(Leases, "_files", files)
            assert [one.version for one in Leases(store).live()] == [1]
            assert len(renewed) == times

    def test_another_spelling_of_the_place(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = _log(store)
        with Leases(store).take(log.read(1)):
            kind = type(store)
            monkeypatch.setattr(kind, "url", property(lambda own: "spelt://otherwise/"))
            assert [one.version for one in Leases(store).live()] == [1]
            assert gc(log, **NOW).kept == (1, 3)
            monkeypatch.undo()
        assert Leases(store).live() == []

    def test_a_writer_that_was_overlooked(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last look at leases finds who wrote the files that are to go."""
        log = _log(store)
        path = f"data/t/base/p1-{'0' * 12}.parquet"
        real, looks = Leases.live, []

        def live(own: Leases) -> list[LeaseFile]:
            looks.append(1)
            return [] if len(looks) == 1 else real(own)

        monkeypatch.setattr(Leases, "live", live)
        with Leases(store).take(log.head(), writes=True):
            store.write(path, b"not published yet")
            time.sleep(0.01)
            assert gc(log, **NOW).removed == ()
            assert len(looks) == 4

    def test_joining(self, store: ObjectStore) -> None:
        log = _log(store)
        with Leases(store).take(log.read(2), writes=True):
            before = _files(store)
            with Leases(store).join(log.read(0)):
                assert _files(store) == before
            assert _files(store) == before
        assert _files(store) == []
        with Leases(store).take(log.read(2)), Leases(store).join(log.read(0)) as lease:
            lease.release()
            assert [one.version for one in Leases(store).live()] == [2]
        with Leases(store).join(log.read(0)):
            assert [(one.version, one.writes) for one in Leases(store).live()] == [(0, True)]
        assert _files(store) == []

    def test_joining_outlives_the_first_holder(self, store: ObjectStore) -> None:
        log = _log(store)
        first = Leases(store).take(log.read(2), writes=True)
        second = Leases(store).join(log.read(0))
        first.release()
        assert [one.version for one in Leases(store).live()] == [2]
        second.release()
        assert _files(store) == []


class TestHolders:
    def test_this_process(self) -> None:
        assert Holder.this().is_this
        assert not Holder.this().is_gone

    def test_one_that_ended(self) -> None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        gone = Holder(Holder.this().host, ended.pid, Holder.this().boot)
        assert gone.is_gone == bool(holder._boot())
        assert not Holder("x", ended.pid, "").is_gone
        assert not Holder("x", 1, Holder.this().boot).is_gone

    def test_ranges(self) -> None:
        assert as_ranges([]) == ()
        assert as_ranges({3, 1, 2, 9}) == ((1, 3), (9, 9))

    def test_what_is_gone_is_only_a_hint(self, store: ObjectStore) -> None:
        found = GoneVersions(10.0, ((1, 3),))
        found.write(store)
        assert GoneVersions.read(store) == found
        assert found.among({1: 9.0, 2: 10.0, 3: 11.0, 4: 1.0}) == {1}
        for damaged in (b"", seal({"as_of": "x", "versions": []}), seal({"as_of": 1.0})):
            store.replace(condemned.GONE_FILE, damaged)
            assert GoneVersions.read(store) == GoneVersions()


class TestSessions:
    """Who reads holds: gc with no safety age takes nothing from under them."""

    @pytest.fixture
    def golden(self, tmp_path: Path) -> fs.FeatureStore:
        store = fs.FeatureStore.create(tmp_path / "golden", workers=1)
        rows = pl.DataFrame({"id": range(8), "day": range(8), "x": [float(n) for n in range(8)]})
        store.ingest("t", rows, key="id", time="day", partition_bytes=64)
        return store

    def _supersede(self, store: fs.FeatureStore) -> None:
        store.table("t").append(pl.DataFrame({"id": [9], "day": [99], "x": [9.0]}))
        time.sleep(0.01)

    def test_a_checkout(self, golden: fs.FeatureStore) -> None:
        old = golden.checkout(1)
        self._supersede(golden)
        assert golden.gc("0s", keep_versions=1).expired == ()
        assert len(old.table("t").read()) == 8
        table = old.table("t")
        del old
        assert golden.gc("0s", keep_versions=1).expired == ()
        assert len(table.read()) == 8
        del table
        collector.collect()
        assert golden.gc("0s", keep_versions=1).expired == (1,)
        with pytest.raises(NotFoundError, match="let go"):
            golden.checkout(1)

    def test_a_dataset(self, golden: fs.FeatureStore) -> None:
        data = golden.table("t").dataset(features=["x"])
        self._supersede(golden)
        assert golden.gc("0s", keep_versions=1).expired == ()
        part = data.all
        del data
        collector.collect()
        assert golden.gc("0s", keep_versions=1).expired == ()
        assert len(part.read()) == 8
        del part
        collector.collect()
        assert golden.gc("0s", keep_versions=1).expired == (1,)

    def test_a_build(self, golden: fs.FeatureStore) -> None:
        """gc without any safety age, at every task of a build."""
        seen: list[dict[str, Any]] = []
        root = Path(golden.url.removeprefix("file://"))

        def collect(event: Any) -> None:
            seen.extend(json.loads(one.read_bytes()) for one in (root / LEASES).iterdir())
            fs.FeatureStore.open(root).gc("0s", keep_versions=1)

        version = golden.version
        with observed_by(collect):
            golden.table("t").add(fs.Expression(twice=nw.col("x") * 2))
        assert {(one["version"], one["writes"]) for one in seen} == {(version, True)}
        assert golden.table("t").read("twice")["twice"].to_list() == [2.0 * n for n in range(8)]
        assert golden.verify(all_versions=True).ok
        assert not list((root / LEASES).iterdir())

    @pytest.mark.parametrize("kind", ["define", "drop", "drop table"])
    def test_what_writes_filesets_in_its_commit(
        self, golden: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """gc without any safety age between writing the filesets and publishing them."""
        table = golden.table("t")
        golden.ingest("u", pl.DataFrame({"id": [1]}), key="id")
        table.add(fs.Expression(twice=nw.col("x") * 2))
        log, collections = golden._session.log, []
        real = log._publish

        def publish(new: Any) -> bool:
            time.sleep(0.01)
            collections.append(fs.FeatureStore.open(golden.url).gc("0s", keep_versions=1))
            return real(new)

        monkeypatch.setattr(log, "_publish", publish)
        if kind == "define":

            def thrice(df: Any) -> Any:
                return df["x"] * 3

            table.feature(thrice, inputs=["x"], dtypes="float64")
        elif kind == "drop":
            table.drop("twice")
        else:
            golden.drop("u")
        monkeypatch.undo()
        assert collections
        assert golden.verify(all_versions=True).ok
        golden.table("t").build()
        root = Path(golden.url.removeprefix("file://"))
        assert not list((root / LEASES).iterdir())

    def test_a_dask_frame(self, golden: fs.FeatureStore) -> None:
        frame = golden.table("t").to_dask(["x"])
        self._supersede(golden)
        assert golden.gc("0s", keep_versions=1).expired == ()
        assert len(frame.compute()) == 8
        for lease in list(leases._kept.values()):
            lease.release()
        leases._kept.clear()


def test_snapshots_of_another_store_are_not_held(store: ObjectStore) -> None:
    """A lease names version and commit; gc goes by the version."""
    log = _log(store)
    with Leases(store).take(Snapshot(1, "0" * 16, "", "", {})):
        assert gc(log, **NOW).kept == (1, 3)
