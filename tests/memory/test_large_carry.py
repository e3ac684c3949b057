"""What is carried of more keys than fit memory lies in scratch space: within the limit, with the same values.

Each feature is built in a process of its own, after a small one, and its peak is the kernel's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT: Final = Path(__file__).parent / "carried_steps.py"
MIB: Final = 2**20
NEW: Final = {"lag": "x_lag_1", "count": "cum_count", "asof": "price"}


def key_numbers(rows: int, keys: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the key of each row: every key once in any order, then some of them again."""
    random = np.random.default_rng(0)
    again = random.integers(0, keys, rows - keys)
    return np.concatenate([random.permutation(keys), again])


def rows_of(numbers: np.ndarray[Any, np.dtype[np.int64]], value: str) -> pa.Table:
    keys = np.char.add("the key number ", numbers.astype("U9")).astype(object)
    rows = np.arange(len(numbers))
    return pa.table({"t": rows, "key": pa.array(keys, pa.string()), value: rows * 0.5})


def make_store(folder: Path, rows: int, keys: int, partitions: int) -> None:
    numbers = key_numbers(rows, keys)
    for name, count in (("few", 2000), ("golden", rows)):
        store = fs.FeatureStore.create(folder / name, workers=2)
        for table, value in (("rows", "x"), ("other", "price")):
            # The other table has the same keys in another order.
            given = rows_of(numbers[:count] if table == "rows" else numbers[:count][::-1], value)
            size = given.nbytes // partitions
            made = store.ingest(table, given, key="key", time="t", partition_bytes=size)
            assert made.partitions >= partitions - 2
    (folder / "scratch").mkdir()


def started(work: str, folder: Path, room: int, way: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), work, str(folder), str(room), way]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def built(work: str, folder: Path, room: int, way: str = "any") -> dict[str, Any]:
    with started(work, folder, room, way) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(lines[-1])
    added, scratch = found["added"] / MIB, found["scratch"] / MIB
    print(f"{work}: {added:.1f} of {room / MIB:.0f} MiB, {scratch:.1f} MiB of scratch space")
    assert list((folder / "scratch").iterdir()) == []
    return found


def expected(work: str, rows: int, keys: int) -> list[float | None]:
    """Return the values that going through all rows gives."""
    numbers = key_numbers(rows, keys).tolist()
    known: dict[int, float] = {}
    found: list[float | None] = []
    other = numbers[::-1]
    for row, key in enumerate(numbers):
        if work == "asof":
            known[other[row]] = row * 0.5  # visible at its own time
        found.append(known.get(key, 0 if work == "count" else None))
        if work == "lag":
            known[key] = row * 0.5
        elif work == "count":
            known[key] = known.get(key, 0) + 1
    return found


def values(folder: Path, work: str) -> list[float | None]:
    read = fs.FeatureStore.open(folder / "golden").table("rows").read(["t", NEW[work]])
    found: list[float | None] = read.sort("t")[NEW[work]].to_list()
    return found


def check(
    folder: Path, works: Iterable[str], rows: int, keys: int, partitions: int, room: int
) -> None:
    make_store(folder, rows, keys, partitions)
    for work in works:
        refused = built(work, folder, room, "memory")
        assert refused["refused"].startswith("MemoryLimitError: ")
        assert refused["scratch"] == 0
        found = built(work, folder, room)
        assert found["refused"] == ""
        assert found["scratch"] > 0
        assert found["added"] <= room
        assert values(folder, work) == expected(work, rows, keys)


def test_a_carry_that_does_not_fit_memory_is_combined_in_scratch_space(tmp_path: Path) -> None:
    check(tmp_path, ("lag", "asof"), 250_000, 200_000, 12, 60 * MIB)


@pytest.mark.slow
def test_a_carry_of_a_million_keys_is_combined(tmp_path: Path) -> None:
    check(tmp_path, NEW, 1_300_000, 1_000_000, 40, 80 * MIB)


def test_killed_while_combining_it_leaves_nothing_and_runs_again(tmp_path: Path) -> None:
    rows, keys, scratch = 150_000, 140_000, tmp_path / "scratch"
    make_store(tmp_path, rows, keys, 8)
    with started("lag", tmp_path, 45 * MIB, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "combining\n"
        held = [os.readlink(one) for one in Path(f"/proc/{process.pid}/fd").iterdir()]  # noqa: PTH115 - no path
        assert any(one.startswith(str(scratch)) for one in held)
        process.send_signal(signal.SIGKILL)
    assert list(scratch.iterdir()) == []
    found = built("lag", tmp_path, 45 * MIB)
    assert found["refused"] == ""
    assert values(tmp_path, "lag") == expected("lag", rows, keys)
