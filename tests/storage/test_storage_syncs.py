"""Syncing many files at once: what fails, what is condemned, and what one process knows of a store.

And the descriptors that wrote them, which are kept until then: through which of them files are
synced, and how many stay open.
"""

from __future__ import annotations

import errno
import gc
import itertools
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import (
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    NotFoundError,
)
from featurestore.schema import Field
from featurestore.storage.column_group import write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import write_fileset
from featurestore.storage.local import LocalStore
from featurestore.storage.local_io import LocalIO
from featurestore.storage.maintenance import verify_store
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import GroupEntry, TableEntry, group_key, table_key
from featurestore.storage.unsynced import MOST
from featurestore.testing.simulated_disk import SimulatedDisk, Survival

MANY = 40


class _Disk(LocalIO):
    """Counts syncs by path, from any thread, and fails those of some files."""

    def __init__(self, failing: frozenset[str] = frozenset(), code: int = errno.EIO) -> None:
        self.synced: Counter[str] = Counter()
        self.failing = failing
        self.code = code
        self.threads: set[int] = set()
        self._names: dict[int, str] = {}
        self._links: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(self, path: str, flags: int) -> int:
        descriptor = super().open(path, flags)
        with self._lock:
            self._names[descriptor] = Path(path).name
        return descriptor

    def fsync(self, descriptor: int) -> None:
        with self._lock:
            name = self._names[descriptor]
            name = self._links.get(name, name)
            self.synced[name] += 1
            self.threads.add(threading.get_ident())
        if name in self.failing:
            raise OSError(self.code, os.strerror(self.code))
        super().fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        with self._lock:
            self._links[Path(source).name] = Path(target).name
        super().link(source, target)

    def fsync_dir(self, path: str) -> None:
        with self._lock:
            self.synced[path] += 1
        super().fsync_dir(path)


def _fill(store: LocalStore, count: int, keep: bool = False) -> list[str]:
    paths = [f"data/t/g{number % 4}/x{number}" for number in range(count)]
    for path in paths:
        if keep:
            _write(store, path)
        else:
            store.write(path, path.encode())
    return paths


def _write(store: LocalStore, path: str) -> None:
    """Write a file that is to be durable."""
    with store.open_write(path) as stream:
        stream.write(path.encode())


def _descriptors(root: Path) -> list[str]:
    """Return the names of the files below a directory that this process has open."""
    names = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            target = str(one.readlink())
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith(str(root) + "/"):
            names.append(target)
    return names


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("count", [3, MANY])
def test_each_file_and_each_directory_once(tmp_path: Path, count: int, keep: bool) -> None:
    disk = _Disk()
    store = LocalStore(tmp_path / "store", disk)
    paths = _fill(store, count, keep)
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


@pytest.mark.parametrize("keep", [False, True])
def test_exactly_the_failed_files_are_condemned(tmp_path: Path, keep: bool) -> None:
    disk = _Disk(frozenset({"x7", "x30"}))
    store = LocalStore(tmp_path, disk)
    paths = _fill(store, MANY, keep)
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


# --- descriptors that are kept ----------------------------------------------------------------------


class _Reopening(LocalStore):
    """Closes what it wrote, and syncs it through another descriptor."""

    @contextmanager
    def open_write(self, path: str, *, named: bool = True) -> Iterator[BinaryIO]:
        with self._writing(path, keep=False) as stream:
            yield stream


def _publish(store: ObjectStore) -> None:
    """Write two partitions, make them durable together, as ingest does, and commit."""
    log = CommitLog.create(store)
    entries = [
        write_partition(
            store,
            table="t",
            group="base",
            partition=name,
            columns=pa.table({"a": [1, 2, 3]}),
            tensors={"e": np.full((3, 2), 7, np.float32)},
            provenance=Provenance("d", name),
        )
        for name in ("p1", "p2")
    ]
    fields = (Field("a", pa.int64()), Field("e", pa.float32(), (2,)))
    store.sync([file.path for one in entries for file in one.all_files()])
    files = write_fileset(store, entries)
    content = {
        table_key("t"): TableEntry("t", (), None, 1000).to_json(),
        group_key("t", "base"): GroupEntry("t", "base", fields, files).to_json(),
    }
    log.commit("publish", lambda head: content)


def _failed_writebacks(folder: Path, kind: type[LocalStore]) -> Iterator[tuple[bool, bool]]:
    """Yield for each step before which writing out failed: was it said; is what was said true?"""
    for step in itertools.count():
        place = folder / str(step)
        (place / "disk").mkdir(parents=True)
        disk = SimulatedDisk(place / "disk", failed_writeback=step)
        said = False
        try:
            _publish(kind(place / "disk" / "store", disk))
        except FeatureStoreError as error:
            said = True
            assert error.remedy  # noqa: PT017
        survivals: tuple[Survival, ...] = ("lost", "kept", "mixed")
        yield (
            said,
            all(
                _is_sound(disk.survivors(place / survival, survival, step) / "store", not said)
                for survival in survivals
            ),
        )
        if "writeback" not in disk.steps:
            return


def _is_sound(root: Path, published: bool) -> bool:
    try:
        log = CommitLog.open(LocalStore(root))
    except NotFoundError:
        return not published
    except CorruptionError:
        return False
    return log.head().version >= published and verify_store(log).ok


def test_bytes_that_got_lost_before_the_sync_are_never_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = list(_failed_writebacks(tmp_path, LocalStore))
    assert all(sound for _, sound in found)
    said = sum(said for said, _ in found)
    with capsys.disabled():
        print(f"\n{len(found)} failed writebacks, {said} said", end=" ")
    assert said > 10
    assert found[-1] == (False, True)


def test_the_simulation_sees_who_closes_and_opens_again(tmp_path: Path) -> None:
    found = list(_failed_writebacks(tmp_path, _Reopening))
    silent = sum(not said and not sound for said, sound in found)
    assert silent > 10
    assert found[-1] == (False, True)


def test_a_written_file_stays_open_until_it_is_synced_or_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _write(store, "data/x")
    _write(store, "data/y")
    store.write("states/z", b"1")
    with store.open_write("states/large", named=False) as stream:
        stream.write(b"1")
    with pytest.raises(ZeroDivisionError), store.open_write("data/w"):
        raise ZeroDivisionError
    assert len(_descriptors(tmp_path)) == len(store._known.unsynced) == 2
    LocalStore(tmp_path).sync(["data/x"])  # whichever object asks
    assert len(_descriptors(tmp_path)) == 1
    store.delete(["data/y"])
    assert _descriptors(tmp_path) == []
    store.sync(["data/x"])
    with pytest.raises(NotFoundError):
        store.sync(["data/y"])
    _write(store, "data/y")
    store.replace("data/y", b"durable")
    assert _descriptors(tmp_path) == []


def test_without_a_store_object_nothing_stays_open(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _write(store, "data/x")
    assert _descriptors(tmp_path)
    del store
    gc.collect()
    assert _descriptors(tmp_path) == []
    LocalStore(tmp_path).sync(["data/x"])


@pytest.mark.parametrize("threads", [1, 4])
def test_few_files_stay_open_and_each_is_synced_once(tmp_path: Path, threads: int) -> None:
    disk = _Disk()
    store = LocalStore(tmp_path, disk)
    paths = [f"data/x{number}" for number in range(5 * MOST)]

    def write(path: str) -> int:
        _write(store, path)
        return len(store._known.unsynced)

    with ThreadPoolExecutor(threads) as pool:
        assert max(pool.map(write, paths)) < MOST + threads
    early = sum(count for name, count in disk.synced.items() if name.startswith("x"))
    assert 5 * MOST - MOST <= early < 5 * MOST
    assert len(_descriptors(tmp_path)) == 5 * MOST - early
    store.sync(paths)
    assert {disk.synced[f"x{number}"] for number in range(5 * MOST)} == {1}
    assert _descriptors(tmp_path) == []


@pytest.mark.parametrize(("code", "kind"), [(errno.EIO, CorruptionError), (28, DiskFullError)])
def test_a_failure_of_an_early_sync_is_told_to_who_asks(
    tmp_path: Path, code: int, kind: type[FeatureStoreError]
) -> None:
    disk = _Disk(frozenset({"x3"}), code)
    store = LocalStore(tmp_path, disk)
    paths = [f"data/x{number}" for number in range(2 * MOST)]
    for path in paths:
        _write(store, path)  # others are not troubled
    assert disk.synced["x3"] == 1
    disk.failing = frozenset()
    store.sync([path for path in paths if path != "data/x3"])
    with pytest.raises(kind, match="data/x3"):
        store.sync(["data/x3"])
    with pytest.raises(CorruptionError, match="earlier sync of data/x3"):
        LocalStore(tmp_path, disk).sync(["data/x3"])


def test_what_is_known_of_a_name_does_not_pass_to_another_file(tmp_path: Path) -> None:
    """Somebody else deletes files, and writes one of them again."""
    disk = _Disk(frozenset({"x1"}))
    store = LocalStore(tmp_path, disk)
    paths = [f"data/x{number}" for number in range(2 * MOST)]
    for path in paths:
        _write(store, path)
    disk.failing = frozenset()
    again = ["data/x2", paths[-1]]  # synced, and open here; x1 failed
    LocalStore(tmp_path).delete([*again, "data/x1", paths[-2]])
    for path in again:
        LocalStore(tmp_path).write(path, b"another")
    disk.synced.clear()
    store.sync(again)
    assert [disk.synced[Path(path).name] for path in again] == [1, 1]
    for path in ("data/x1", paths[-2]):
        with pytest.raises(NotFoundError):
            store.sync([path])


def test_a_deleted_file_is_not_synced_to_be_given_back(tmp_path: Path) -> None:
    disk = _Disk()
    store = LocalStore(tmp_path, disk)
    _write(store, "data/gone")
    (tmp_path / "data/gone").unlink()
    for number in range(MOST):
        _write(store, f"data/x{number}")
    assert disk.synced["gone"] == 0
    assert not any("gone" in name for name in _descriptors(tmp_path))


class _Scarce(_Disk):
    """Has few descriptors for files."""

    most = 10

    def open(self, path: str, flags: int) -> int:
        if len(_descriptors(Path(path).parents[1])) >= self.most:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().open(path, flags)


def test_fewer_are_kept_when_descriptors_run_out(tmp_path: Path) -> None:
    disk = _Scarce()
    store = LocalStore(tmp_path, disk)
    paths = _fill(store, MANY, keep=True)
    assert len(store._known.unsynced) <= disk.most // 2
    store.sync(paths)
    assert {disk.synced[f"x{number}"] for number in range(MANY)} == {1}
    disk.most = 0
    with pytest.raises(FeatureStoreError, match="data/y") as caught:
        _write(store, "data/y")
    assert "ulimit" in caught.value.remedy


def test_one_of_two_that_want_a_file_syncs_it(tmp_path: Path) -> None:
    """The other waits, and is told of the failure."""
    begun, both = threading.Event(), threading.Event()

    class Slow(_Disk):
        def fsync(self, descriptor: int) -> None:
            begun.set()
            both.wait(5)
            super().fsync(descriptor)

    disk = Slow(frozenset({"x"}))
    store = LocalStore(tmp_path, disk)
    _write(store, "data/x")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.sync, ["data/x"])
        assert begun.wait(5)
        second = pool.submit(store.sync, ["data/x"])
        both.set()
        for one in (first, second):
            with pytest.raises(CorruptionError):
                one.result(5)
    assert disk.synced["x"] == 1


def _in_a_child(root: Path, store: LocalStore, answers: multiprocessing.Queue[object]) -> None:
    before = _descriptors(root)
    store.sync(["data/x"])
    _write(store, "data/y")
    answers.put((before, len(_descriptors(root))))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_none_of_them(tmp_path: Path) -> None:
    """Descriptors of a child share with the parent's what was reported."""
    store = LocalStore(tmp_path)
    _write(store, "data/x")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_a_child, args=(tmp_path, store, answers))
    child.start()
    assert answers.get(timeout=30) == ([], 1)
    child.join(30)
    assert len(_descriptors(tmp_path)) == len(store._known.unsynced) == 1
    store.sync(["data/x", "data/y"])
    assert _descriptors(tmp_path) == []
