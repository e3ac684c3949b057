"""Builds leave nothing behind: what a process holds after a hundred is what it held after the third.

A feature is added and dropped each time, so that versions, journals and states come and go. Held is
anonymous memory after what was freed is given back: pages of files are the kernel's to take back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BUILDS = 100
MIB = 2**20

SCRIPT = """
import json, os, sys, threading
import narwhals as nw
import featurestore as fs
from featurestore.testing.held_memory import kept_bytes

table = fs.FeatureStore.open(sys.argv[1], memory_limit="1GiB", workers=2).table("rows")
found = []
for number in range(int(sys.argv[2])):
    # A definition of its own each time, so that no state or file of an earlier one does.
    table.add(
        fs.Expression(double=nw.col("x") * number),
        fs.Rolling("x", window=f"{number + 2}ms", stats=["mean"], by="k", rename={
            f"x_mean_{number + 2}ms": "mean"}),
        fs.Standardize("x", suffix="_std"),
        fit_on="all",
    )
    table.drop("double", "mean", "x_std")
    found.append([kept_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()])
print(json.dumps(found))
"""


def test_a_hundred_builds_leave_nothing_behind(tmp_path: Path) -> None:
    random, rows = np.random.default_rng(0), 2000
    table = pa.table(
        {
            "t": pa.array(np.arange(rows) * 1000).cast(pa.timestamp("ms")),
            "k": random.integers(0, 10, rows),
            "x": random.random(rows),
        }
    )
    store = fs.FeatureStore.create(tmp_path / "golden")
    store.ingest("rows", table, key="k", time="t", partition_bytes="16KiB")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "golden"), str(BUILDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    held, files, threads = zip(*found, strict=True)
    print([round(one / MIB, 1) for one in held[:5]], "...", round(held[-1] / MIB, 1), "MiB")
    assert held[-1] <= 1.05 * held[2]
    assert files[-1] <= files[2]
    assert threads[-1] <= threads[2]
