"""The benchmark of as-of joins runs: its cases on few rows, with one answer everywhere."""

from __future__ import annotations

from pathlib import Path

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from importlib.util import find_spec
from pathlib import Path
sys.path.insert(0, "benchmarks")
import asof_join

place = Path(sys.argv[1])
arguments = {
    "folder": str(place), "store": str(place / "store"),
    "memory_limit": "2GiB", "partition_bytes": "64KiB",
    "rows": str(asof_join.write_events(place / "rows.parquet", 5000, 20, 0)),
    "events": str(asof_join.write_events(place / "events.parquet", 2000, 20, 1)),
}
asof_join.ingest(arguments)
cases = [one for one in asof_join.LABELS if one == "featurestore" or find_spec(one) is not None]
found = {one: asof_join.CASES[one](arguments) for one in cases}
for one in found.values():
    assert (one["rows"], one["matched"]) == (5000, found["featurestore"]["matched"]), found
    assert abs(one["check"] - found["featurestore"]["check"]) < 1e-9, found
print(sorted(found))
"""


def test_its_cases_run_and_agree(tmp_path: Path) -> None:
    printed = run_code(SCRIPT, ROOT, str(tmp_path))
    assert "featurestore" in printed
    assert "polars" in printed
