"""A preview and a validation keep the memory limit, and a table of twice the rows takes no more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

MIB = 2**20
LIMIT = 400 * MIB

STEPS = """
import json, sys
import narwhals as nw
import numpy as np
import pyarrow as pa
import featurestore as fs
from featurestore.watermark import watermark

folder, rows, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if what == "ingest":
    draw = np.random.default_rng(0)
    columns = {"id": np.arange(rows), "t": pa.array(np.arange(rows) * 1000, pa.timestamp("ms"))}
    columns |= {f"x{number}": draw.normal(size=rows) for number in range(6)}
    columns["text"] = pa.array(np.arange(rows)).cast(pa.string())
    store = fs.FeatureStore.create(folder)
    store.ingest("rows", pa.table(columns), key="id", time="t", partition_bytes="24MiB")
    sys.exit()
table = fs.FeatureStore.open(folder, memory_limit=400 * 2**20).table("rows")
with watermark() as mark:
    if what == "preview":
        found = table.preview(
            [fs.Rolling("x0", window="60s", by=[], stats=["mean"]), fs.Expression(z=nw.col("x1") * 2)],
            label="x3",
        )
        assert found["z"].closest[0].column == "x1"
    else:
        table.expect(
            fs.ExpectRange("x0", low=-9), fs.ExpectNulls("text"), fs.ExpectUnique("text"), replace=True
        )
        assert table.validate().ok
print(json.dumps(mark.peak_bytes))
"""


def peak(folder: Path, rows: int, what: str) -> int:
    """Return the most bytes that a process held in which this was done."""
    run = [sys.executable, "-c", STEPS, str(folder / str(rows)), str(rows), what]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout or "0"))


def test_the_limit_is_kept_and_more_rows_take_no_more(tmp_path: Path) -> None:
    sizes = (1_500_000, 3_000_000)
    for rows in sizes:
        peak(tmp_path, rows, "ingest")
    for what in ("preview", "validate"):
        small, large = (peak(tmp_path, rows, what) for rows in sizes)
        assert large <= LIMIT
        assert large <= small + 24 * MIB, (what, small // MIB, large // MIB)
