"""Power failures while features are added, built, dropped and repaired, and while tables go.

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
from featurestore.testing.store_operations import OPERATIONS

NAMES = ("add", "build", "drop feature", "drop table", "repair")
STATES = 3_200
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
