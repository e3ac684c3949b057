"""The benchmark of windows runs, and all libraries find the same values."""

from __future__ import annotations

from pathlib import Path

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from importlib.util import find_spec
from pathlib import Path
sys.path.insert(0, "benchmarks")
import windows

folder = sys.argv[1]
source = windows.write_rows(Path(folder) / "source.parquet", 6_000, 5)
arguments = {"folder": folder, "source": str(source), "store": f"{folder}/store", "memory_limit": "1GiB",
    "partition_bytes": "128MiB"}
windows.CASES["ingest"](arguments)
results = [
    {"library": one, "statistic": statistic, **windows.CASES[one]({**arguments, "statistic": statistic})}
    for one, known in windows.LIBRARIES.items() if find_spec(one) is not None
    for statistic in known if statistic in ("median", "ewm", "lag")
]
assert windows.differing(results) == []
assert all(one["count"] > 5_900 for one in results)
results[0]["check"] += 1.0
assert windows.differing(results)
print(len(results), "results")
"""


def test_its_cases_run_and_agree(tmp_path: Path) -> None:
    assert "results" in run_code(SCRIPT, ROOT, str(tmp_path))
