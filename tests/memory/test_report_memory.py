"""A report takes the same memory however many rows and columns there are: measured in a fresh process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.report.collecting import _SAMPLE_BYTES
from featurestore.testing.scripts import run_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ROOT = Path(__file__).parent.parent.parent
MIB = 2**20
REPORTING = """
import json, sys
import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.watermark import watermark

folder, table, output = sys.argv[1:]
store = fs.FeatureStore.open(folder, memory_limit="4GiB", workers=1)
store.report(output, tables="warm")
release_freed()
with watermark() as mark:
    store.report(output, tables=table)
print(json.dumps(mark.added_bytes))
"""


def added(folder: Path, table: str) -> int:
    output = str(folder.parent / f"{table}.html")
    return int(json.loads(run_code(REPORTING, ROOT, str(folder), table, output)))


@pytest.mark.slow
def test_a_report_takes_a_sample_whatever_the_table_has(tmp_path: Path) -> None:
    """Of 60 MB and of 600 MB, with texts among the columns."""
    store = fs.FeatureStore.create(tmp_path / "store")
    random = np.random.default_rng(0)
    for name, rows in (("warm", 100), ("small", 100_000), ("large", 1_000_000)):
        columns = {f"x{one:03}": random.normal(size=rows) for one in range(70)}
        words = pl.Series([f"word {one % 5000}" for one in range(rows)])
        frame = pl.DataFrame({"t": np.arange(rows), "word": words, **columns})
        store.ingest(name, frame, time="t", partition_bytes="32MiB")
        del frame, columns
    small, large = added(tmp_path / "store", "small"), added(tmp_path / "store", "large")
    assert large < _SAMPLE_BYTES + 16 * MIB
    assert large < small + 16 * MIB
    assert small > MIB  # or nothing was measured
