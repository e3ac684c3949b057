"""Power failures, full disks and failed syncs at every step of creating, writing and committing.

A scenario makes a store, writes partitions, journals and publishes them, moves a tag and keeps a
state. It is stopped at every step that changes the disk; then the disk is looked at as it may be
found after a reboot, in several ways. Always: the store is as it was after some commit, no earlier
than the last acknowledged one; everything it names is sound; the state is right or not there; and
the scenario can be run again.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import (
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    NameTakenError,
    NotFoundError,
)
from featurestore.schema import Field
from featurestore.storage.column_group import read_columns, sync_partition, write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset, write_fileset
from featurestore.storage.journal import Journal
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import gc, verify_store
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import (
    GroupEntry,
    PartitionEntry,
    Snapshot,
    TableEntry,
    group_key,
    table_key,
)
from featurestore.storage.states import StateStore
from featurestore.storage.tensor_group import read_tensor
from featurestore.testing.simulated_disk import PowerFailure, SimulatedDisk, Survival
from featurestore.testing.unsynced_disk import UnsyncedDisk

PARTITIONS = ("p1", "p2")
STATE = {"n": pa.table({"x": [1, 2]})}
STATE_KEY = "ab" * 16
FIELDS = (Field("a", pa.int64()), Field("e", pa.float32(), (2,)))
WAYS: tuple[tuple[Survival, int], ...] = (("lost", 0), ("kept", 1), ("mixed", 2), ("mixed", 3))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where the system has one: thousands of directories come and go."""
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


class Scenario:
    """Runs the whole story on one store and keeps what was acknowledged."""

    def __init__(self) -> None:
        self.committed = -1
        self.journalled: set[str] = set()
        self.computed: list[str] = []
        self.tag = -1

    def run(self, store: LocalStore) -> None:
        try:
            log = CommitLog.open(store)
        except NotFoundError:
            log = CommitLog.create(store)
        self.committed = max(self.committed, 0)
        states = StateStore(store)
        states.put(STATE_KEY, STATE)
        journal = Journal(store, "t")
        for count in (1, 2):
            entries = [self._partition(store, journal, name) for name in PARTITIONS[:count]]
            snapshot = log.commit(f"publish {count}", _publish(store, entries))
            self.committed = count
            log.tag("newest", snapshot.version)
            self.tag = snapshot.version
        journal.clear(PARTITIONS)

    def _partition(self, store: LocalStore, journal: Journal, name: str) -> PartitionEntry:
        found = journal.finished({name}).get(name)
        if found is not None:
            return found
        self.computed.append(name)
        entry = write_partition(
            store,
            table="t",
            group="base",
            partition=name,
            columns=pa.table({"a": [1, 2, 3]}),
            tensors={"e": np.full((3, 2), 7, np.float32)},
            provenance=Provenance("d", name),
        )
        sync_partition(store, entry)
        journal.record_all([(name, entry)])
        self.journalled.add(name)
        return entry


def _publish(
    store: LocalStore, entries: list[PartitionEntry]
) -> Callable[[Snapshot], Mapping[str, Mapping[str, Any] | None]]:
    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        groups = {} if not head.entries else {one.group: one for one in head.groups("t")}
        if "base" in groups:
            present = read_fileset(store, groups["base"].fileset)
            if len(present) >= len(entries):
                return {}
        ref = write_fileset(store, entries)
        return {
            table_key("t"): TableEntry("t", (), None, 1000).to_json(),
            group_key("t", "base"): GroupEntry("t", "base", FIELDS, ref).to_json(),
        }

    return change


def _check(root: Path, told: Scenario) -> None:
    """Look at a store after a reboot, then run the story again on it."""
    # After the reboot only the logic is of interest: real syncs would just take time.
    store = LocalStore(root, UnsyncedDisk())
    try:
        log = CommitLog.open(store)
    except NotFoundError:
        assert told.committed == -1, "an acknowledged store is gone"
    else:
        head = log.head()
        before = head.version
        assert told.committed <= before <= told.committed + 1
        assert [one.operation for one in log.history()[1:]] == [
            f"publish {count}" for count in range(1, before + 1)
        ]
        if before:
            entries = read_fileset(store, head.groups("t")[0].fileset)
            assert [entry.partition for entry in entries] == list(PARTITIONS[:before])
            for entry in entries:
                assert read_columns(store, entry, ["a"]).to_pydict() == {"a": [1, 2, 3]}
                assert np.array_equal(read_tensor(store, entry, "e"), np.full((3, 2), 7))
        report = verify_store(log)
        assert report.ok, str(report)
        if told.tag >= 0:
            assert told.tag <= log.tags()["newest"] <= told.tag + 1
        found = StateStore(store).get(STATE_KEY)
        assert found is None or found["n"].equals(STATE["n"])
    again = Scenario()
    again.run(store)
    # Finished work is not done again. The story clears its journal at the end; a commit that landed
    # makes even the first partition of the next one unnecessary only through the journal.
    if told.tag < len(PARTITIONS):
        assert not told.journalled & set(again.computed)
    log = CommitLog.open(store)
    assert log.head().version == len(PARTITIONS)
    assert log.tags() == {"newest": len(PARTITIONS)}
    for one in store.list("tmp"):  # gc takes young ones for files that are being written
        os.utime(store.root / one.path, (1, 1))
    gc(log, safety_age_seconds=0, keep_versions=10, state_age_seconds=3600)
    gc(log, safety_age_seconds=0, keep_versions=10, state_age_seconds=3600)
    report = verify_store(log)
    assert report.ok, str(report)
    kept = {info.path for info in store.list("data")}
    named = {
        file.path
        for version in (1, 2)
        for entry in read_fileset(store, log.read(version).groups("t")[0].fileset)
        for file in entry.all_files()
    }
    assert kept == named, "gc left an orphan"
    assert list(store.list("tmp")) == []


def _folders(base: Path) -> Iterator[Path]:
    for number in itertools.count():
        folder = base / str(number)
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)


def test_an_undisturbed_run(tmp_path: Path) -> None:
    disk = SimulatedDisk(tmp_path)
    told = Scenario()
    told.run(LocalStore(tmp_path / "store", disk))
    assert told.committed == 2
    assert {"open", "write", "fsync", "link", "rename", "unlink", "mkdir", "fsync_dir"} <= set(
        disk.steps
    )
    for index, (survival, seed) in enumerate(WAYS):
        found = disk.survivors(tmp_path / f"after {index}", survival, seed)
        _check(found / "store", told)


def test_power_failure_at_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = 0
    folders = _folders(tmp_path)
    for step in itertools.count():
        folder = next(folders)
        (folder / "disk").mkdir()
        disk = SimulatedDisk(folder / "disk", power_failure=step)
        told = Scenario()
        finished = False
        try:
            told.run(LocalStore(folder / "disk" / "store", disk))
            finished = True
        except PowerFailure:
            pass
        for index, (survival, seed) in enumerate(WAYS):
            found = disk.survivors(folder / f"after {index}", survival, seed + 10 * step)
            _check(found / "store", told)
            states += 1
        if finished:
            break
    with capsys.disabled():
        print(f"\n{states} crash states of {step} steps", end=" ")
    assert step > 80


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_a_full_disk_at_every_step(tmp_path: Path, code: int) -> None:
    """The call fails once; what was there stays, and running again completes."""
    folders = _folders(tmp_path)
    writes = {"open", "write", "link", "mkdir", "rename"}
    for step in itertools.count(0, 1 if code == errno.ENOSPC else 5):
        folder = next(folders)
        disk = SimulatedDisk(folder, error=(step, code), error_steps=lambda name: name in writes)
        store = LocalStore(folder / "store", disk)
        told = Scenario()
        try:
            told.run(store)
        except FeatureStoreError as error:
            assert isinstance(error, DiskFullError) == (code != errno.EMFILE), repr(error)  # noqa: PT017
            assert error.remedy  # noqa: PT017
        assert list(store.list("tmp")) == []
        _check(folder / "store", told)
        if not disk.errors_met:
            break
    assert step > 30


def test_a_failed_sync_at_every_step(tmp_path: Path) -> None:
    """The call fails once, an error is raised, and then the power fails."""
    folders = _folders(tmp_path)
    for step in itertools.count():
        folder = next(folders)
        (folder / "disk").mkdir()
        disk = SimulatedDisk(
            folder / "disk", error=(step, errno.EIO), error_steps=lambda name: "fsync" in name
        )
        told = Scenario()
        failed = False
        try:
            told.run(LocalStore(folder / "disk" / "store", disk))
        except (FeatureStoreError, OSError) as error:
            assert not isinstance(error, OSError), "errors are of the package's tree"  # noqa: PT017
            failed = True
        assert failed == disk.errors_met
        for index, (survival, seed) in enumerate(WAYS):
            found = disk.survivors(folder / f"after {index}", survival, seed + 10 * step)
            _check(found / "store", told)
        if not failed:
            break
    assert step > 30


def test_two_creators(tmp_path: Path) -> None:
    CommitLog.create(LocalStore(tmp_path))
    with pytest.raises(NameTakenError):
        CommitLog.create(LocalStore(tmp_path))


class TestTheDiskItself:
    """The simulation has teeth: a writer that skips a sync is caught."""

    def test_without_file_sync(self, tmp_path: Path) -> None:
        class Careless(SimulatedDisk):
            def fsync(self, descriptor: int) -> None:
                """Forget it."""

        self._caught(tmp_path, Careless)

    def test_without_directory_sync(self, tmp_path: Path) -> None:
        class Careless(SimulatedDisk):
            def fsync_dir(self, path: str) -> None:
                """Forget it."""

        self._caught(tmp_path, Careless)

    def _caught(self, tmp_path: Path, kind: type[SimulatedDisk]) -> None:
        (tmp_path / "disk").mkdir()
        disk = kind(tmp_path / "disk")
        told = Scenario()
        told.run(LocalStore(tmp_path / "disk" / "store", disk))
        caught = 0
        for index, (survival, seed) in enumerate(WAYS):
            found = disk.survivors(tmp_path / f"after {index}", survival, seed)
            try:
                _check(found / "store", told)
            except (AssertionError, CorruptionError):
                caught += 1
        assert caught >= 2

    def test_tears_and_losses(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        disk = SimulatedDisk(tmp_path / "disk")
        store = LocalStore(tmp_path / "disk", disk)
        store.write("data/x", b"0123456789")
        assert not (disk.survivors(tmp_path / "1", "lost") / "data").exists()
        sizes = {
            len((disk.survivors(tmp_path / f"kept {seed}", "kept", seed) / "data/x").read_bytes())
            for seed in range(20)
        }
        assert len(sizes) > 3
        store.sync(["data/x"])
        for survival in ("lost", "kept", "mixed"):
            found = disk.survivors(tmp_path / survival, survival)
            assert (found / "data/x").read_bytes() == b"0123456789"
        store.replace("data/x", b"new")
        store.delete(["data/x"])
        assert (disk.survivors(tmp_path / "back", "lost") / "data/x").read_bytes() == b"new"
