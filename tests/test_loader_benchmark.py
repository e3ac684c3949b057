"""The benchmark of loaders runs: its cases on few rows, all of which see the same values."""

from __future__ import annotations

from pathlib import Path

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import loader, measuring

folder = Path(sys.argv[1])
options = {
    "memory_limit": "2GiB", "seconds": 30, "epochs": 1, "batch_size": 512, "cache": f"{folder}/packs",
    "scratch": f"{folder}/scratch",
}

def results(name, source, cases, **more):
    arguments = {**options, **more, "source": str(source), "store": f"{folder}/{name}"}
    loader.CASES["ingest"](arguments)
    arguments["files"] = measuring.stored_files(arguments["store"])
    arguments.update(loader.CASES["pack"](arguments))
    return [{"case": one, **loader.CASES[one](arguments)} for one in cases]

# An odd number of rows, more than a window of blocks has.
source = measuring.write_data(folder / "source.parquet", 140_001, 4, label=True)
found = results("rows", source, {**loader.FIRST, **loader.LIMITS, **loader.OURS}, rows=140_001, columns=4)
assert loader.differing(found) == [] and all(one["complete"] for one in found)
assert {one["rows"] for one in found} == {140_001} and found[0]["check"] != "0" * 16
found[-1]["check"] = "0" * 16
assert loader.differing(found)

source = loader.write_vectors(folder / "vectors.parquet", 1_500)
found = results("vectors", source, loader.VECTORS, rows=1_500, columns=384, tensor=True)
assert loader.differing(found) == [] and {one["rows"] for one in found} == {1_500}
print("agreed")
"""


def test_its_cases_run_and_agree(tmp_path: Path) -> None:
    assert "agreed" in run_code(SCRIPT, ROOT, str(tmp_path))
