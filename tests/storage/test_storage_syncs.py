"""Syncing many files at once: what fails, what is condemned, and what one process knows of a store."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections import Counter
from pathlib import Path

import pytest

from featurestore.errors import CorruptionError, DiskFullError, FeatureStoreError
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.local import LocalStore
from featurestore.storage.local_io import LocalIO

MANY = 40


class _Disk(LocalIO):
    """Counts syncs by path, from any thread, and fails those of some files."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.synced: Counter[str] = Counter()
        self.failing = failing
        self.threads: set[int] = set()
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()

    def open(self, path: str, flags: int) -> int:
        descriptor = super().open(path, flags)
        with self._lock:
            self._names[descriptor] = Path(path).name
        return descriptor

    def fsync(self, descriptor: int) -> None:
        with self._lock:
            name = self._names[descriptor]
            self.synced[name] += 1
            self.threads.add(threading.get_ident())
        if name in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fsync(descriptor)

    def fsync_dir(self, path: str) -> None:
        with self._lock:
            self.synced[path] += 1
        super().fsync_dir(path)


def _fill(store: LocalStore, count: int) -> list[str]:
    paths = [f"data/t/g{number % 4}/x{number}" for number in range(count)]
    for path in paths:
        store.write(path, path.encode())
    return paths


@pytest.mark.parametrize("count", [3, MANY])
def test_each_file_and_each_directory_once(tmp_path: Path, count: int) -> None:
    disk = _Disk()
    store = LocalStore(tmp_path / "store", disk)
    paths = _fill(store, count)
    disk.synced.clear()
    store.sync([*paths, *paths])
    assert {name: disk.synced.pop(name) for name in (f"x{n}" for n in range(count))} == {
        f"x{n}": 1 for n in range(count)
    }
    root = tmp_path / "store"
    folders = [tmp_path, root, root / "data", root / "data/t"]
    folders += [root / f"data/t/g{n}" for n in range(min(4, count))]
    assert disk.synced == {str(folder): 1 for folder in folders}
    assert (len(disk.threads) > 1) == (count == MANY)


def test_many_directories_side_by_side(tmp_path: Path) -> None:
    disk = _Disk()
    store = LocalStore(tmp_path / "store", disk)
    paths = [f"data/t/g{number}/x" for number in range(MANY)]
    for path in paths:
        store.write(path, b"1")
    disk.synced.clear()
    store.sync(paths)
    assert disk.synced.pop("x") == MANY
    assert set(disk.synced.values()) == {1}
    assert len(disk.synced) == MANY + 4  # with data/t, data, the root and what holds it


def test_exactly_the_failed_files_are_condemned(tmp_path: Path) -> None:
    disk = _Disk(frozenset({"x7", "x30"}))
    store = LocalStore(tmp_path, disk)
    paths = _fill(store, MANY)
    with pytest.raises(CorruptionError, match="cannot make durable"):
        store.sync(paths)
    disk.failing = frozenset()
    condemned = []
    for path in paths:
        try:
            LocalStore(tmp_path, disk).sync([path])  # whichever object asks
        except CorruptionError as error:
            assert "earlier sync" in error.problem  # noqa: PT017
            condemned.append(path)
    assert condemned
    assert set(condemned) <= {paths[7], paths[30]}
    with pytest.raises(CorruptionError, match="earlier sync"):
        store.sync(paths)


def test_store_objects_of_one_disk_share_what_they_know(tmp_path: Path) -> None:
    disk = _Disk()
    first = LocalStore(tmp_path / "store", disk)
    first.write("data/t/x", b"1")
    first.sync(["data/t/x"])
    disk.synced.clear()
    second = LocalStore(tmp_path / "store", disk)
    second.write("data/t/y", b"1")
    second.sync(["data/t/y"])
    assert disk.synced == {"y": 1, str(tmp_path / "store/data/t"): 1}
    disk.synced.clear()
    second.write("data/u/y", b"1")
    first.sync(["data/u/y"])
    assert disk.synced == {
        "y": 1,
        str(tmp_path / "store/data/u"): 1,
        str(tmp_path / "store/data"): 1,
    }
    # Another disk, or the same store after all who knew it are gone, is looked at anew.
    other = _Disk()
    LocalStore(tmp_path / "store", other).sync(["data/t/x"])
    assert other.synced[str(tmp_path)] == 1
    del first, second
    disk.synced.clear()
    LocalStore(tmp_path / "store", disk).sync(["data/t/x"])
    assert disk.synced[str(tmp_path)] == 1


def test_a_store_that_travels_uses_the_systems_calls(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    again = pickle.loads(pickle.dumps(store))
    assert again._io is store._io
    assert again._known is store._known


def test_a_directory_left_unsynced_by_somebody_who_was_stopped(tmp_path: Path) -> None:
    """Of the directories that lead to the root, the last may have been made and not synced."""
    (tmp_path / "a").mkdir()  # whoever made it was killed here
    disk = _Disk()
    store = LocalStore(tmp_path / "a/b/store", disk)
    store.create("x", b"1")
    assert disk.synced[str(tmp_path)]
    assert disk.synced[str(tmp_path / "a")]


class _Unreadable(_Disk):
    """A directory that may be entered, but not opened."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = str(directory)

    def fsync_dir(self, path: str) -> None:
        if path == self.directory:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        super().fsync_dir(path)


def test_a_directory_further_up_need_not_be_readable(tmp_path: Path) -> None:
    (tmp_path / "home/mine").mkdir(parents=True)
    store = LocalStore(tmp_path / "home/mine/store", _Unreadable(tmp_path / "home"))
    store.create("x", b"1")
    assert store.read("x") == b"1"
    (tmp_path / "home/there").mkdir()
    store = LocalStore(tmp_path / "home/there", _Unreadable(tmp_path / "home"))
    store.create("x", b"1")
    assert store.read("x") == b"1"


def test_a_root_whose_entry_cannot_be_made_durable_is_refused_every_time(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    store = LocalStore(tmp_path / "home/store", _Unreadable(tmp_path / "home"))
    for _ in range(2):
        with pytest.raises(FeatureStoreError, match="Permission denied") as caught:
            store.create("x", b"1")
        assert "permissions" in caught.value.remedy
    assert not (tmp_path / "home/store").exists()


@pytest.mark.parametrize("how", ["write", "create", "replace"])
def test_an_error_on_closing_is_one_of_the_tree(tmp_path: Path, how: str) -> None:
    """A network file system may find out only then that the disk is full."""

    class Late(_Disk):
        fail = True

        def close(self, descriptor: int) -> None:
            super().close(descriptor)
            if self.fail:
                self.fail = False
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    store = LocalStore(tmp_path, Late())
    with pytest.raises(DiskFullError, match="x"):
        getattr(store, how)("x", b"data")
    assert list(store.list("tmp")) == []


def test_a_tag_does_not_outlive_the_version_it_names(tmp_path: Path) -> None:
    """The version may have been published by somebody who has not synced its directory yet."""
    disk = _Disk()
    log = CommitLog.create(LocalStore(tmp_path / "store", disk))
    log.commit("by somebody else", lambda head: {"table:t": {"name": "t"}})
    other = _Disk()
    log = CommitLog.open(LocalStore(tmp_path / "store", other))
    log.tag("now")
    assert other.synced[str(tmp_path / "store/snapshots")] == 1
    assert other.synced["00000000000000000001.json"] == 1


def test_a_failed_directory_sync_is_said_and_not_forgotten(tmp_path: Path) -> None:
    class Failing(_Disk):
        fail = True

        def fsync_dir(self, path: str) -> None:
            super().fsync_dir(path)
            if self.fail:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk = Failing()
    disk.fail = False
    store = LocalStore(tmp_path, disk)
    store.write("data/x", b"1")
    disk.fail = True
    with pytest.raises(FeatureStoreError, match="directory"):
        store.sync(["data/x"])
    disk.fail = False
    disk.synced.clear()
    store.sync(["data/x"])
    assert disk.synced[str(tmp_path / "data")] == 1


def test_a_hint_that_cannot_be_left_fails_no_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(LocalStore):
        def replace(self, path: str, data: bytes) -> None:
            raise DiskFullError("the disk is full", "free space")

    log = CommitLog.create(Full(tmp_path))
    for number in range(1, 34):
        log.commit("count", lambda head: {"table:t": {"name": str(head.version)}})
        assert log.newest_version() == number
    assert "latest.json was not written" in caplog.text
    assert not (tmp_path / "latest.json").exists()
