"""Ten times the rows take no more memory: the peak of the whole process, for operations on tables.

Each measurement runs in a fresh process, after the same operation on a small table. The smaller table
already has more partitions than the limit and two workers let in at once, and fills the buffers of what
sorts, so what is seen is what grows with rows and partitions: entries, journals, states, graphs of
tasks. Ingest and epochs have tests of their own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.testing.chain_data import SENSORS, write_quotes, write_readings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT: Final = Path(__file__).parent / "flat_steps.py"
MIB: Final = 2**20
ROWS: Final = {"warm": 5_000, "one": 200_000, "ten": 2_000_000}
MOST: Final = 1.05
ATTEMPTS: Final = 3
ALWAYS: Final = ("rolling", "fit", "pack", "verify", "delete")
SLOW: Final = (
    "expression",
    "calendar",
    "function",
    "lag",
    "cross_section",
    "as_of",
    "lookup",
    "categorify",
    "standardize",
    "impute",
    "expanding",
    "ewm",
    "expanding_target",
    "median",
    "forward",
    "as_of_aggregate",
    "as_of_window",
    "rank",
    "text_hash",
    "one_hot",
    "target_encode",
    "group_stats",
    "quantile_transform",
    "pca",
    "tf_idf",
    "read",
    "compact",
    "replace",
)
WIDE: Final = {"warm": 1_000, "one": 50_000, "ten": 200_000}
"""Rows of tables of 250 columns, in partitions of some 125 rows."""
OF_A_WIDE_PARTITION: Final = 25 * 2**10


def make_store(files: Path, place: Path, sizes: Sequence[str], partition_bytes: str) -> Path:
    store = fs.FeatureStore.create(place, memory_limit="16GiB", workers=2)  # of the test's process
    names = [f"sensor {one:06d}" for one in range(SENSORS)]
    weights = pl.DataFrame({"sensor": names, "weight": [float(len(one)) for one in names]})
    store.ingest("sensors", weights, key="sensor")
    for size in sizes:
        # Of quotes there are few: their partitions are full in the smaller table too.
        for name, target in (("readings", partition_bytes), ("quotes", "128KiB")):
            source = str(files / size / f"{name}*.parquet")
            store.ingest(
                f"{size}_{name}", source, key="sensor", time="time", partition_bytes=target
            )
    return place


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all sizes, and a store of all of them in partitions of 3 MiB (128 KiB for quotes)."""
    folder = tmp_path_factory.mktemp("flatness")
    for size, rows in ROWS.items():
        write_readings(folder / size, rows, 8)
        write_quotes(folder / size / "quotes.parquet", rows // SENSORS)
    make_store(folder, folder / "store", list(ROWS), "3MiB")
    return folder


def place(operation: str, files: Path, folder: Path) -> Path:
    """Return a folder with files and stores of its own, which the operation may change."""
    folder.mkdir()
    for size in ROWS:
        (folder / size).symlink_to(files / size)
    if operation == "compact":
        return make_store(files, folder / "store", list(ROWS), "1MiB").parent
    shutil.copytree(files / "store", folder / "store")
    if operation == "verify":
        for size in ROWS:
            shutil.copytree(files / "store", folder / f"store_{size}")
            keep_only(size, folder / f"store_{size}")
    return folder


def keep_only(size: str, place: Path) -> None:
    store = fs.FeatureStore.open(place)
    for name in store.tables():
        if not name.startswith(size) and name != "sensors":
            store.drop(name)


def peak(operation: str, folder: Path, size: str) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), operation, str(folder), size]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def require_flat(operation: str, files: Path, folder: Path, allowed: int = 0) -> None:
    """Compare the peaks of both sizes, each of up to three runs; by default 5% is allowed.

    What allocators happen to keep only adds, so of the larger table the least counts. A peak is where two
    tasks happen to be at their largest together, for which the smaller table has a tenth of the
    occasions: of its runs the largest counts.
    """
    peaks: dict[str, int] = {}
    for attempt in range(ATTEMPTS):
        at = place(operation, files, folder / str(attempt))
        for size in ("one", "ten"):
            found, choose = peak(operation, at, size)["peak"], max if size == "one" else min
            peaks[size] = choose(found, peaks.get(size, found))
        text = f"{operation}: " + " and ".join(
            f"{size} {found / MIB:.1f} MiB at the peak" for size, found in peaks.items()
        )
        print(text)
        if peaks["ten"] <= (peaks["one"] + allowed if allowed else MOST * peaks["one"]):
            return
        shutil.rmtree(at)
    raise AssertionError(text)


@pytest.mark.parametrize("operation", ALWAYS)
def test_ten_times_the_rows_take_no_more(operation: str, files: Path, tmp_path: Path) -> None:
    require_flat(operation, files, tmp_path)


@pytest.mark.slow
def test_partitions_of_a_wide_table_take_what_is_known_of_them(tmp_path: Path) -> None:
    """That is all that grows: docs/MEMORY.md says how much, for 250 columns."""
    files = tmp_path / "files"
    store = fs.FeatureStore.create(files / "store", memory_limit="16GiB", workers=2)
    for size, rows in WIDE.items():
        (files / size).mkdir()
        data = wide_rows(rows)
        store.ingest(f"{size}_wide", data, key="k", time="time", partition_bytes="128KiB")
    partitions = {size: store.table(f"{size}_wide").partitions for size in ("one", "ten")}
    more = partitions["ten"] - partitions["one"]
    assert more > 1_000
    require_flat("wide", files, tmp_path, allowed=OF_A_WIDE_PARTITION * more)


def wide_rows(rows: int) -> pa.Table:
    values = np.random.default_rng(0).standard_normal((250, rows), dtype=np.float32)
    times = pa.array(np.arange(rows) // 10).cast(pa.timestamp("s"))
    return pa.table(
        {"k": np.arange(rows), "time": times, **{f"x{at}": one for at, one in enumerate(values)}}
    )


@pytest.mark.slow
@pytest.mark.parametrize("operation", SLOW)
def test_ten_times_the_rows_take_no_more_anywhere(
    operation: str, files: Path, tmp_path: Path
) -> None:
    require_flat(operation, files, tmp_path)
