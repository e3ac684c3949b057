"""Power failures while a store is made, and while rows come, change and go.

Each operation runs once through the public API; every crash state is derived from the calls it made,
see ``featurestore.testing.crash_states``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.testing.crash_states import Prepared, Rehearsal, Share, any_seed
from featurestore.testing.power_failures import FLOORS, STATES, WAYS, PowerFailureTests
from featurestore.testing.simulated_disk import SimulatedDisk
from featurestore.testing.store_operations import OPERATIONS


class TestPowerFailures(PowerFailureTests):
    file = "rows"


def test_all_files_together_have_every_operation_and_enough_states() -> None:
    names = [name for file in FLOORS.values() for name in file]
    assert sorted(names) == sorted(OPERATIONS)
    assert sum(floor for file in FLOORS.values() for floor in file.values()) >= STATES


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
