"""The benchmark of features of one column runs, and both libraries find the same values."""

from __future__ import annotations

from pathlib import Path

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import row_wise

folder = sys.argv[1]
source = row_wise.write_rows(Path(folder) / "source.parquet", 6_000, 2)
arguments = {"folder": folder, "source": str(source), "store": f"{folder}/store", "memory_limit": "1GiB"}
row_wise.CASES["ingest"](arguments)
arguments["files"] = row_wise.stored_files(arguments["store"])
results = [
    {"kind": kind, "case": case, **row_wise.CASES[case]({**arguments, "kind": kind})}
    for kind in row_wise.KINDS
    for case in row_wise.LIBRARIES
]
assert row_wise.differing(results) == []
assert all(one["count"] > 5_800 and one["written_bytes"] > 0 for one in results)
results[0]["check"] += 1.0
assert row_wise.differing(results)
print(len(results), "results")
"""


def test_its_cases_run_and_agree(tmp_path: Path) -> None:
    assert "18 results" in run_code(SCRIPT, ROOT, str(tmp_path))
