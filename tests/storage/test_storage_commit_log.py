"""The commit log: linear, exclusive, small, and honest about damage."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    FeatureStoreError,
    FormatError,
    InvalidInputError,
    LimitError,
    NameTakenError,
    NotFoundError,
)
from featurestore.storage import commit_log, snapshot_file
from featurestore.storage.backends import open_object_store
from featurestore.storage.checksum import write_sealed
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import write_fileset
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.storage.remote import RemoteStore
from featurestore.storage.sealed_json import seal, unseal
from featurestore.storage.snapshot_file import SnapshotFile, difference, merge, snapshot_path


class CountingStore:
    """Passes everything on and keeps which paths were read and how many bytes were created."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.reads: list[str] = []
        self.looks: list[str] = []
        self.created: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        self.reads.append(path)
        return self._inner.read(path, start, length)

    def exists(self, path: str) -> bool:
        self.looks.append(path)
        return self._inner.exists(path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        raise AssertionError(f"nothing here may list {prefix!r}")

    def create(self, path: str, data: bytes) -> None:
        self.created.append(len(data))
        self._inner.create(path, data)


def _memory() -> ObjectStore:
    return open_object_store(f"memory://{uuid.uuid4().hex}")


def _put(key: str, value: object) -> Any:
    return lambda head: {key: {"value": value}}


class TestLife:
    def test_an_empty_store(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        assert log.head().version == 0
        assert log.head().entries == {}
        assert log.versions() == [0]
        assert CommitLog.open(store).head() == log.head()
        assert [record.operation for record in log.history()] == ["create"]

    def test_create_twice(self, store: ObjectStore) -> None:
        CommitLog.create(store)
        with pytest.raises(NameTakenError):
            CommitLog.create(store)

    def test_no_store(self, store: ObjectStore) -> None:
        with pytest.raises(NotFoundError, match=r"store\.json is missing"):
            CommitLog.open(store)

    def test_a_newer_format(self, store: ObjectStore) -> None:
        store.create("store.json", seal({"format": 99, "id": "x", "created": ""}))
        with pytest.raises(FormatError, match="99"):
            CommitLog.open(store)

    def test_a_damaged_store_file(self, store: ObjectStore) -> None:
        CommitLog.create(store)
        store.replace("store.json", store.read("store.json").replace(b'"format":', b'"format":0'))
        with pytest.raises(CorruptionError, match=r"store\.json"):
            CommitLog.open(store)

    def test_commits_and_time_travel(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        first = log.commit("one", _put("a", 1))
        second = log.commit("two", lambda head: {"a": None, "b": {"value": 2}})
        assert (first.version, second.version) == (1, 2)
        assert first.entries == {"a": {"value": 1}}
        assert second.entries == {"b": {"value": 2}}
        for other in (log, CommitLog.open(store), pickle.loads(pickle.dumps(log))):
            assert other.head() == second
            assert other.read(1) == first
            assert other.read(0).entries == {}
            assert other.versions() == [0, 1, 2]
        history = log.history()
        assert [(one.version, one.operation, one.id) for one in history[1:]] == [
            (1, "one", first.id),
            (2, "two", second.id),
        ]
        assert [one.version for one in log.history(last=1)] == [2]

    def test_two_logs_see_each_other(self, store: ObjectStore) -> None:
        one = CommitLog.create(store)
        two = CommitLog.open(store)
        one.commit("a", _put("a", 1))
        assert two.head().version == 1
        two.commit("b", _put("b", 1))
        assert set(one.head().entries) == {"a", "b"}

    def test_a_commit_that_changes_nothing(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        first = log.commit("a", _put("a", 1))
        assert log.commit("again", _put("a", 1)) == first
        assert log.versions() == [0, 1]

    def test_a_change_that_raises_publishes_nothing(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)

        def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
            raise ConflictError("no longer applies")

        with pytest.raises(ConflictError):
            log.commit("a", change)
        assert log.versions() == [0]

    @pytest.mark.parametrize("version", [-1, 7])
    def test_no_such_version(self, store: ObjectStore, version: int) -> None:
        with pytest.raises(NotFoundError):
            CommitLog.create(store).read(version)

    def test_filesets_are_synced_before_they_are_published(self, tmp_path: Path) -> None:
        steps: list[str] = []

        class Recorder(LocalStore):
            def sync(self, paths: Any) -> None:
                paths = list(paths)
                steps.extend(paths)
                super().sync(paths)

            def create(self, path: str, data: bytes) -> None:
                steps.append(path)
                super().create(path, data)

        log = CommitLog.create(Recorder(tmp_path))
        ref = write_fileset(log.store, [])
        log.commit("a", lambda head: {"group:t:base": {"fileset": ref.to_json()}})
        assert steps == ["store.json", ref.file.path, snapshot_path(1)]


class TestRequiredFiles:
    """A commit does not publish what gc removed between writing and publishing."""

    def test_all_there(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        files = [write_sealed(store, f"data/t/g/{name}", b"abc") for name in "ab"]
        assert log.commit("add", _put("a", 1), requires=iter(files)).version == 1

    @pytest.mark.parametrize(
        ("left", "kind", "said", "remedy"),
        [
            (None, ConflictError, "removed meanwhile: data/t/g/b", "longer safety age"),
            (b"ab", CorruptionError, "data/t/g/b.* has 2 bytes, not 3", "who else writes"),
        ],
    )
    def test_one_was_removed_or_cut(
        self,
        store: ObjectStore,
        left: bytes | None,
        kind: type[FeatureStoreError],
        said: str,
        remedy: str,
    ) -> None:
        log = CommitLog.create(store)
        log.commit("first", _put("a", 1))
        files = [write_sealed(store, f"data/t/g/{name}", b"abc") for name in "ab"]
        store.delete(["data/t/g/b"])
        if left is not None:
            store.write("data/t/g/b", left)
        with pytest.raises(kind, match=said) as caught:
            log.commit("add", _put("b", 1), requires=files)
        assert "run it again" in caught.value.remedy
        assert remedy in caught.value.remedy
        assert log.newest_version() == CommitLog.open(store).newest_version() == 1

    def test_looked_at_before_every_attempt(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        file = write_sealed(store, "data/t/g/a", b"abc")
        looks: list[int] = []

        def lose_the_race_once(head: Snapshot) -> Mapping[str, Any]:
            looks.append(head.version)
            if len(looks) == 1:
                CommitLog.open(store).commit("other", _put("other", 1))
            else:
                store.delete([file.path])
            return {"mine": {"x": 1}}

        with pytest.raises(ConflictError, match="removed meanwhile"):
            log.commit("mine", lose_the_race_once, requires=iter([file]))
        assert looks == [0, 1]
        assert log.newest_version() == 1


class TestNames:
    def test_tags(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        log.tag("empty")
        log.commit("a", _put("a", 1))
        log.tag("first", 1)
        log.commit("b", _put("b", 1))
        log.tag("last")
        assert log.tags() == {"empty": 0, "first": 1, "last": 2}
        assert log.resolve("first") == log.read(1)
        assert log.resolve("empty").entries == {}
        log.tag("first", 2)
        assert CommitLog.open(store).tags()["first"] == 2
        log.untag("first")
        log.untag("first")
        assert set(log.tags()) == {"empty", "last"}

    def test_names_of_tags_are_checked(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        with pytest.raises(InvalidInputError):
            log.tag("../x")
        with pytest.raises(NotFoundError):
            log.tag("x", 5)
        assert log.tags() == {}

    def test_ids(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        snapshot = log.commit("a", _put("a", 1))
        assert log.resolve(snapshot.id) == snapshot
        assert log.resolve(1) == snapshot
        assert log.resolve(log.read(0).id).version == 0
        for wrong in ("1-0000000000000000", "2-" + snapshot.commit, "nothing", "1", "1-", "x-y"):
            with pytest.raises(NotFoundError):
                log.resolve(wrong)


class TestSize:
    def test_reading_takes_two_files_and_few_looks(self) -> None:
        store = _memory()
        log = CommitLog.create(store)
        for version in range(1, 1200):
            log.commit("x", _put(f"k{version % 7}", version))
        counting = CountingStore(store)
        again = CommitLog.open(counting)
        assert again.head().version == 1199
        snapshots = [path for path in counting.reads if path.startswith("snapshots/")]
        assert len(snapshots) <= 2
        assert len(counting.looks) <= 16
        counting.looks.clear()
        again.head()
        assert len(counting.looks) == 2  # the next version, and the one after, had that been lost

    def test_the_hint_is_only_a_hint(self) -> None:
        store = _memory()
        log = CommitLog.create(store)
        for version in range(1, 70):
            log.commit("x", _put("k", version))
        newest = log.head()
        assert unseal(store.read("latest.json"), "latest.json") == {"version": 64}
        for content in (b"", b"nonsense", seal({"version": 9999}), seal({"version": "x"})):
            store.replace("latest.json", content)
            assert CommitLog.open(store).head() == newest
        store.delete(["latest.json"])
        assert CommitLog.open(store).head() == newest

    def test_a_commit_does_not_grow_with_the_store(self) -> None:
        """2,000 groups: most commits stay near 32 KiB, complete ones are rare."""

        def entry(key: int, value: int) -> dict[str, Any]:
            return {"value": value, "definition": f"{key:0400d}"}

        memory = _memory()
        CommitLog.create(memory)
        store = CountingStore(memory)
        log = CommitLog.open(store)
        log.commit("many", lambda head: {f"group:t:{i}": entry(i, 0) for i in range(2000)})
        complete = store.created[-1]
        store.created.clear()
        for i in range(400):
            log.commit("one", lambda head, i=i: {f"group:t:{i}": entry(i, 1)})
        assert complete > 800_000
        assert sorted(store.created)[len(store.created) // 2] < 32 * 2**10
        assert sum(store.created) / 400 < 48 * 2**10
        assert len(log.head().entries) == 2000

    @given(
        st.lists(
            st.dictionaries(
                st.sampled_from([f"k{i}" for i in range(12)]),
                st.none() | st.integers(0, 3).map(lambda size: {"v": "x" * 6000 * size}),
                max_size=4,
            ),
            max_size=25,
        )
    )
    @settings(deadline=None, max_examples=40)
    def test_any_changes_read_back(self, changes: list[dict[str, Any]]) -> None:
        store = _memory()
        log = CommitLog.create(store)
        states = [log.head().entries]
        for change in changes:
            snapshot = log.commit("x", lambda head, change=change: change)
            expected = {k: v for k, v in {**states[-1], **change}.items() if v is not None}
            assert snapshot.entries == expected
            if expected != states[-1]:
                states.append(expected)
        again = CommitLog.open(store)
        assert again.versions() == list(range(len(states)))
        for version, expected in enumerate(states):
            assert again.read(version).entries == expected

    @given(
        *[st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2).map(lambda v: {"v": v}))] * 2
    )
    def test_difference_and_merge_are_inverse(self, old: Any, new: Any) -> None:
        assert merge(old, difference(old, new)) == new


class TestRaces:
    def test_a_lost_race_is_evaluated_again(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        rival = CommitLog.open(store)
        seen: list[int] = []

        def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
            seen.append(head.version)
            if len(seen) < 3:
                rival.commit("rival", _put(f"rival{len(seen)}", 1))
            return {"mine": {"value": head.version}}

        snapshot = log.commit("mine", change)
        assert seen == [0, 1, 2]
        assert snapshot.version == 3
        assert set(snapshot.entries) == {"rival1", "rival2", "mine"}
        assert snapshot.entries["mine"] == {"value": 2}

    def test_retries_are_bounded(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        from featurestore.storage import commit_log

        monkeypatch.setattr(commit_log, "_ATTEMPTS", 3)
        log = CommitLog.create(store)
        rival = CommitLog.open(store)

        def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
            rival.commit("rival", _put("rival", head.version + 1))
            return {"mine": {"value": 1}}

        with pytest.raises(ConflictError, match="3 times"):
            log.commit("mine", change)
        assert [one.operation for one in log.history()] == ["create", *["rival"] * 3]

    def test_an_answer_that_was_lost(self) -> None:
        """The create lands, but its writer is told that the name exists."""

        class Liar(RemoteStore):
            def create(self, path: str, data: bytes) -> None:
                super().create(path, data)
                if path.startswith("snapshots/"):
                    raise ConflictError("exists")

        inner = _memory()
        assert isinstance(inner, RemoteStore)
        log = CommitLog.create(Liar(inner._client, inner.url, shared=False))
        assert log.commit("a", _put("a", 1)).version == 1
        assert log.commit("b", _put("b", 1)).version == 2
        assert log.versions() == [0, 1, 2]

    def test_an_unknown_outcome_leaves_everything(self) -> None:
        class Broken(RemoteStore):
            def create(self, path: str, data: bytes) -> None:
                super().create(path, data)
                if path.startswith("snapshots/"):
                    raise FeatureStoreError("whether it was created is unknown")

        inner = _memory()
        assert isinstance(inner, RemoteStore)
        log = CommitLog.create(Broken(inner._client, inner.url, shared=False))
        with pytest.raises(FeatureStoreError, match="unknown"):
            log.commit("a", _put("a", 1))
        assert CommitLog.open(inner).head().entries == {"a": {"value": 1}}

    def test_threads(self, store: ObjectStore) -> None:
        CommitLog.create(store)
        acknowledged: list[str] = []

        def work(writer: int) -> None:
            log = CommitLog.open(store)
            for number in range(6):
                snapshot = log.commit(f"{writer}/{number}", _put(f"{writer}/{number}", number))
                acknowledged.append(snapshot.id)

        threads = [threading.Thread(target=work, args=(writer,)) for writer in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _check_linear(CommitLog.open(store), acknowledged, 96)

    def test_processes(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        CommitLog.create(store)
        script = (
            "import sys\n"
            "from featurestore.storage.backends import open_object_store\n"
            "from featurestore.storage.commit_log import CommitLog\n"
            "log = CommitLog.open(open_object_store(sys.argv[1]))\n"
            "for number in range(25):\n"
            "    name = f'{sys.argv[2]}/{number}'\n"
            "    print(log.commit(name, lambda head: {name: {'v': number}}).id)\n"
        )
        root = Path(__file__).parents[2]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script, store.url, str(writer)],
                stdout=subprocess.PIPE,
                cwd=root,
                text=True,
            )
            for writer in range(4)
        ]
        acknowledged = [line for process in running for line in process.communicate()[0].split()]
        assert [process.returncode for process in running] == [0] * 4
        _check_linear(CommitLog.open(store), acknowledged, 100)


def _check_linear(log: CommitLog, acknowledged: list[str], count: int) -> None:
    history = log.history()
    assert len(acknowledged) == len(set(acknowledged)) == count
    assert [one.version for one in history] == list(range(count + 1))
    assert sorted(acknowledged) == sorted(one.id for one in history[1:])
    assert len({one.operation for one in history[1:]}) == count
    assert set(log.head().entries) == {one.operation for one in history[1:]}
    parents = [log.read_file(version).parent for version in range(1, count + 1)]
    assert parents == [one.commit for one in history[:-1]]
    for version in range(1, count + 1):
        before, after = log.read(version - 1).entries, log.read(version).entries
        assert set(after) - set(before) == {history[version].operation}


class TestDamage:
    @pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 300])
    def test_a_torn_newest_version_is_never_skipped(
        self, store: ObjectStore, content: bytes
    ) -> None:
        log = CommitLog.create(store)
        log.commit("a", _put("a", 1))
        log.commit("b", _put("b", 1))
        store.replace(snapshot_path(2), content)
        again = CommitLog.open(store)
        for call in (again.head, lambda: again.commit("c", _put("c", 1)), lambda: again.read(2)):
            with pytest.raises(CorruptionError) as caught:
                call()
            assert snapshot_path(2) in str(caught.value)
            assert "give_up" in caught.value.remedy
        assert again.read(1).entries == {"a": {"value": 1}}

    def test_giving_up_goes_on(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        log.commit("a", _put("a", 1))
        log.commit("b", _put("b", 1))
        store.replace(snapshot_path(2), b"")
        again = CommitLog.open(store)
        snapshot = again.give_up(2)
        assert snapshot.version == 2
        assert snapshot.entries == {"a": {"value": 1}}
        assert "give up" in snapshot.operation
        assert again.commit("c", _put("c", 1)).version == 3
        assert set(CommitLog.open(store).head().entries) == {"a", "c"}

    def test_only_damaged_newest_versions_are_given_up(self, store: ObjectStore) -> None:
        log = CommitLog.create(store)
        log.commit("a", _put("a", 1))
        log.commit("b", _put("b", 1))
        for version in (0, 1, 2, 3):
            with pytest.raises(InvalidInputError):
                log.give_up(version)

    def test_every_flipped_byte_is_found(self) -> None:
        store = _memory()
        CommitLog.create(store).commit("a", _put("a", 1))
        sound = store.read(snapshot_path(1))
        for position in range(len(sound)):
            for bit in (0, 5, 7):
                damaged = bytearray(sound)
                damaged[position] ^= 1 << bit
                with pytest.raises(CorruptionError):
                    SnapshotFile.decode(bytes(damaged), 1)

    def test_a_file_under_another_version(self) -> None:
        store = _memory()
        log = CommitLog.create(store)
        log.commit("a", _put("a", 1))
        store.create(snapshot_path(2), store.read(snapshot_path(1)))
        with pytest.raises(CorruptionError, match="holds version 1"):
            CommitLog.open(store).head()

    def test_large_snapshots_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inner = _memory()
        CommitLog.create(inner)
        store = CountingStore(inner)
        log = CommitLog.open(store)
        log.commit("a", _put("a", 1))
        size = store.size(snapshot_path(1))
        monkeypatch.setattr(commit_log, "MAX_BYTES", size)
        assert CommitLog.open(store).head().version == 1
        with pytest.raises(LimitError, match="more than"):
            log.commit("b", _put("b", "x" * size))
        assert log.newest_version() == 1
        monkeypatch.setattr(snapshot_file, "MAX_BYTES", size - 1)
        store.reads.clear()
        with pytest.raises(CorruptionError, match="more than"):
            CommitLog.open(store).head()
        assert snapshot_path(1) not in store.reads

    def test_a_newer_snapshot_format(self) -> None:
        store = _memory()
        log = CommitLog.create(store)
        log.commit("a", _put("a", 1))
        content = json.loads(store.read(snapshot_path(1)))
        content.pop("checksum")
        store.replace(snapshot_path(1), seal({**content, "format": 9}))
        with pytest.raises(FormatError, match="9"):
            CommitLog.open(store).head()


class TestSealedJson:
    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4).filter(
                lambda key: key != "checksum"
            ),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
                lambda inner: st.lists(inner, max_size=3),
                max_leaves=6,
            ),
            max_size=4,
        )
    )
    def test_round_trip(self, content: dict[str, Any]) -> None:
        assert unseal(seal(content), "x") == content

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"{" * 100_000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            b'{"a":1}',
            b"\xff",
            b"1" * 5000,
        ],
    )
    def test_others_are_refused(self, data: bytes) -> None:
        with pytest.raises(CorruptionError):
            unseal(data, "x")

    def test_space_is_damage(self) -> None:
        data = seal({"a": 1})
        for changed in (data + b" ", b" " + data, data.replace(b":", b": ", 1), data + data):
            with pytest.raises(CorruptionError):
                unseal(changed, "x")


def test_a_lost_version_does_not_hide_later_ones(tmp_path: Path) -> None:
    """Nor is a second history published over the first, fresh or with the log open."""
    store = LocalStore(tmp_path)
    log = CommitLog.create(store)
    other = CommitLog.open(store)
    for number in range(1, 10):
        log.commit("x", _put(f"k{number}", number))
    for lost in range(1, 9):
        path = tmp_path / snapshot_path(lost)
        data = path.read_bytes()
        path.unlink()
        assert CommitLog.open(store).head().version == 9, lost
        assert CommitLog.open(store).commit("again", lambda head: {}).version == 9, lost
        path.write_bytes(data)
    (tmp_path / snapshot_path(1)).unlink()
    assert other.commit("y", _put("y", 1)).version == 10
    assert set(log.head().entries) == {*(f"k{number}" for number in range(1, 10)), "y"}
