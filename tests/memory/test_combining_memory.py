"""What combining by ranges takes is what was held for it, at most and not far less, in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from featurestore.storage.backends import open_object_store
from featurestore.storage.states import StateStore

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT = Path(__file__).parent / "combining_steps.py"
MIB = 2**20
# Allocators, whatever the size; half of it is what is expected.
CONSTANT = 16 * MIB


def counts(numbers: np.ndarray[tuple[int], np.dtype[np.int64]], kind: str) -> pa.Table:
    values = pa.array(numbers)
    if kind != "numbers":
        width = 300 if kind == "long" else 16
        values = pa.array([f"{one:0{width}d}" for one in numbers.tolist()], pa.string())
    table = pa.table({"value": values, "count": np.ones(len(numbers), np.int64)})
    return table.take(pc.sort_indices(table, sort_keys=[("value", "ascending")]))


def make_states(place: Path, kind: str, states: int, values: int, columns: int = 1) -> None:
    """Keep counts of which a value of one state is in others about twice."""
    random = np.random.default_rng(0)
    store = StateStore(open_object_store(place))
    for number in range(states):
        found = {
            f"c{column}": counts(np.unique(random.integers(0, states * values // 2, values)), kind)
            for column in range(columns)
        }
        store.put(f"{number:08x}", found)


@pytest.mark.parametrize(
    ("kind", "states", "values", "columns", "room", "most", "runs"),
    [
        ("numbers", 20, 100_000, 1, 120, 1000, 20),
        ("words", 20, 80_000, 1, 300, 0, 20),  # all are kept
        pytest.param("long", 12, 10_000, 1, 80, 1000, 12, marks=pytest.mark.slow),
        ("words", 40, 20_000, 1, 14, 1000, 5),  # in two passes
        pytest.param("words", 12, 1000, 60, 60, 10, 12, marks=pytest.mark.slow),
    ],
)
def test_what_it_takes_is_held(
    tmp_path: Path,
    kind: str,
    states: int,
    values: int,
    columns: int,
    room: int,
    most: int,
    runs: int,
) -> None:
    make_states(tmp_path / "few", kind, 3, 50, columns)
    make_states(tmp_path / "many", kind, states, values, columns)
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(room * MIB), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: round(one / MIB, 1) for name, one in found.items()})
    assert found["fan_in"] == runs
    assert found["took"] <= found["held"] <= 2 * found["took"] + CONSTANT
    assert found["held"] <= room * MIB
    assert 0 < found["scratch"] <= found["said"]


def make_carries(place: Path, kind: str, states: int, rows: int) -> None:
    """Keep rows by key of which a key of one state is in others about twice."""
    random = np.random.default_rng(0)
    store = StateStore(open_object_store(place))
    for number in range(states):
        keys = random.permutation(states * rows // 2)[:rows]
        by = pa.array(keys)
        if kind != "numbers":
            width = 200 if kind == "long" else 16
            by = pa.array([f"{one:0{width}d}" for one in keys.tolist()], pa.string())
        store.put(f"{number:08x}", {"tail": pa.table({"by_0": by, "column_0": keys * 0.5})})


@pytest.mark.parametrize(
    ("kind", "states", "rows", "room"),
    [
        ("words", 10, 40_000, 32),
        pytest.param("numbers", 16, 200_000, 40, marks=pytest.mark.slow),
        pytest.param("words", 40, 20_000, 14, marks=pytest.mark.slow),
        pytest.param("long", 12, 20_000, 60, marks=pytest.mark.slow),
    ],
)
def test_what_carrying_by_ranges_takes_is_held(
    tmp_path: Path, kind: str, states: int, rows: int, room: int
) -> None:
    make_carries(tmp_path / "few", kind, 4, 50)
    make_carries(tmp_path / "many", kind, states, rows)
    script = SCRIPT.with_name("chaining_steps.py")
    command = [sys.executable, str(script), str(tmp_path), str(room * MIB)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: round(one / MIB, 1) for name, one in found.items()})
    assert found["took"] <= found["held"] <= 2 * found["took"] + CONSTANT
    assert found["held"] <= room * MIB
    assert found["scratch"] > 0
