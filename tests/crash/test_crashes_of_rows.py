"""Power failures while a store is made, and while rows come, change and go.

Each operation runs once through the public API; every crash state is derived from the calls it made,
see ``featurestore.testing.crash_states``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.testing.crash_states import (
    MORE_WAYS,
    WAYS,
    Count,
    Prepared,
    Rehearsal,
    Share,
    any_seed,
)
from featurestore.testing.simulated_disk import SimulatedDisk
from featurestore.testing.store_operations import OPERATIONS

NAMES = ("create", "ingest", "append", "replace", "delete")
STATES = 2_800
"""At least this many in a normal run; with the other files of this kind 10,000."""

counts: dict[str, Count] = {}


@pytest.mark.parametrize("name", NAMES)
def test_power_failure_at_every_call(
    name: str, memory: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = any_seed()
    rehearsal = Rehearsal(OPERATIONS[name], prepared, memory / name)
    counts[name] = rehearsal.check(WAYS, Share(), seed)
    with capsys.disabled():
        print(f"\n{counts[name]}, seed {seed}", end=" ")


def test_there_were_enough_states() -> None:
    if counts.keys() != set(NAMES):
        pytest.skip("not all operations were asked for")
    assert sum(one.states for one in counts.values()) >= STATES
    assert all(0 < one.new < one.distinct for one in counts.values())
    assert all(one.again for one in counts.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_power_failure_in_many_more_ways(
    name: str, memory: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = any_seed()
    rehearsal = Rehearsal(OPERATIONS[name], prepared, memory / f"more {name}")
    count = rehearsal.check(MORE_WAYS, Share(), seed)
    with capsys.disabled():
        print(f"\n{count}, seed {seed}", end=" ")


class NoFileSync(SimulatedDisk):
    """Forgets to sync files."""

    def fsync(self, descriptor: int) -> None:
        """Do nothing."""


class NoDirectorySync(SimulatedDisk):
    """Forgets to sync directories."""

    def fsync_dir(self, path: str) -> None:
        """Do nothing."""


class PublishesFirst(SimulatedDisk):
    """Syncs files only after they have got their names: when their directory is synced."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._late: list[int] = []

    def fsync(self, descriptor: int) -> None:
        self._late.append(self.number(descriptor))

    def fsync_dir(self, path: str) -> None:
        super().fsync_dir(path)
        for file in self._late:
            self.fsync_number(file)
        self._late.clear()


@pytest.mark.parametrize("name", ["append", "tag", "create"])
@pytest.mark.parametrize("kind", [NoFileSync, NoDirectorySync, PublishesFirst])
def test_a_careless_writer_is_caught(
    name: str, kind: type[SimulatedDisk], memory: Path, prepared: Prepared
) -> None:
    rehearsal = Rehearsal(OPERATIONS[name], prepared, memory / f"{name} with {kind.__name__}", kind)
    with pytest.raises(AssertionError, match=r"gone|torn|verify|damaged|checksum"):
        rehearsal.check(WAYS, Share(), any_seed())
