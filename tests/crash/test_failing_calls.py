"""Calls that fail once during an operation: a full disk, and a sync whose bytes may be lost.

These need a real run for every failing call, so a normal test run takes a sample of them. Always: the
error is of the package's tree, the store is as before or as after, also after a power failure right
then; and the operation can be run again in the same process.
"""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from featurestore.errors import ConflictError, DiskFullError, FeatureStoreError
from featurestore.testing.crash_states import (
    Expected,
    Prepared,
    Rehearsal,
    Way,
    any_seed,
)
from featurestore.testing.simulated_disk import SimulatedDisk, attach
from featurestore.testing.store_operations import OPERATIONS

RUNS = 5
"""Failing calls of each kind, for each operation, in a normal run."""

WAYS: tuple[Way, ...] = (("lost", 0), ("mixed", 1))
KINDS = {
    "full disk": (errno.ENOSPC, frozenset({"open", "write", "link", "mkdir", "rename"})),
    "failed sync": (errno.EIO, frozenset({"fsync", "fsync_dir"})),
}


def run_with_error(
    expected: Expected, prepared: Prepared, folder: Path, kind: str, number: int, seed: int
) -> bool:
    """Run an operation in which one call fails, check everything, return whether it raised."""
    code, names = KINDS[kind]
    root = folder / "disk"
    root.mkdir(parents=True)
    prepared.copy(expected.operation.stage, root / "store")
    disk = SimulatedDisk(root, error=(number, code), error_steps=lambda name: name in names)
    url = attach("failing", root / "store", disk)
    raised = False
    try:
        expected.operation.run(url)
    except FeatureStoreError as error:
        raised = True
        assert error.problem  # noqa: PT017
        assert kind != "full disk" or isinstance(error, DiskFullError), repr(error)  # noqa: PT017
    assert disk.errors_met
    new = expected.check(root / "store", values=True, same_ids=False)
    assert new or raised, "the operation was acknowledged and is not there"
    for way in WAYS:
        found = disk.survivors(folder / way[0], way[0], seed + way[1])
        survived = expected.check(found / "store", values=False, same_ids=False)
        assert survived or raised, "the acknowledged operation did not survive"
    if not new:
        expected.run_again(url)
        found = disk.survivors(folder / "again", "lost")
        assert expected.check(found / "store", values=True, same_ids=False)
    return raised


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_one_call_fails(
    name: str, kind: str, memory: Path, prepared: Prepared, request: pytest.FixtureRequest
) -> None:
    seed = any_seed()
    print(f"seed {seed}")
    folder = memory / f"{name} {kind}"
    rehearsal = Rehearsal(OPERATIONS[name], prepared, folder / "rehearsal")
    calls = list(range(sum(step in KINDS[kind][1] for step in rehearsal.disk.steps)))
    if not request.config.getoption("--slow"):
        # The first call of each operation is one that it cannot do without. Some later ones it can:
        # gc makes room on a full disk and goes on.
        drawn = random.Random(seed).sample(calls[1:], min(RUNS, len(calls) - 1)) if calls else []
        calls = [*calls[:1], *sorted(drawn)]
    raised = 0
    for number in calls:
        try:
            raised += run_with_error(
                rehearsal.expected, prepared, folder / str(number), kind, number, seed
            )
        except (AssertionError, ConflictError) as error:
            raise AssertionError(f"{name}, {kind} at {number}, seed {seed}: {error}") from error
        shutil.rmtree(folder / str(number))
    assert raised or not calls, "no failure was noticed"
