"""The benchmarks of training run on few rows, and what is trained in several ways is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

KERAS = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import keras_fit, measuring

folder = Path(sys.argv[1])
source = measuring.write_data(folder / "source.parquet", 9_000, 4, label=True)
arguments = {
    "source": str(source), "store": f"{folder}/store", "cache": f"{folder}/packs", "columns": 4,
    "rounds": 1, "memory_limit": "4GiB", "steps": 1,
}
keras_fit.CASES["ingest"](arguments)
arguments["files"] = measuring.stored_files(arguments["store"])
found = keras_fit.separated(1, 9_000, keras_fit.CASES["fit"](arguments))
assert [one["case"] for one in found] == ["arrays", "store"]
assert keras_fit.differing(found) == [] and all(one["rows_per_second"] > 0 for one in found)
found[1]["start"] += 0.1
assert keras_fit.differing(found)
print("agreed")
"""

XGBOOST = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import measuring, xgboost_external

folder = Path(sys.argv[1])
source = measuring.write_data(folder / "source.parquet", 20_000, 4, label=True)
arguments = {
    "source": str(source), "store": f"{folder}/store", "cache": f"{folder}/packs", "columns": 4,
    "scratch": f"{folder}/scratch", "rows": 20_000, "rounds": 2, "depth": 3, "memory_limit": "2GiB",
}
xgboost_external.CASES["ingest"](arguments)
arguments["files"] = measuring.stored_files(arguments["store"])
found = [{"case": one, **xgboost_external.CASES[one](arguments)} for one in xgboost_external.LABELS]
assert xgboost_external.differing(found) == []
assert {one["held_out_rows"] for one in found} == {2_000}
assert all(0 < one["round_seconds"] < 60 and 0.3 < one["loss"] < 0.68 for one in found)
found[0]["loss"] += 0.1
assert xgboost_external.differing(found)
print("agreed")
"""


SHUFFLE = """
import sys
sys.path.insert(0, "benchmarks")
import shuffle

found = {(one["pack"], one["shuffle"]): one for one in shuffle.measure(2_000_000, 16, 64, 512)}
assert found["mixed", "window"]["stripes"] == 2
assert found["in table order", "window"]["epoch 1"] > 2
assert found["mixed", "window"]["epoch 1"] < 1.6
assert all(0.9 < found[pack, "global"]["epoch 0"] < 1.1 for pack in ("mixed", "in table order"))
print("agreed")
"""


@pytest.mark.parametrize(
    ("library", "script"),
    [
        pytest.param("keras", KERAS, id="keras", marks=pytest.mark.slow),
        pytest.param("xgboost", XGBOOST, id="xgboost"),
        pytest.param("numpy", SHUFFLE, id="shuffle"),
    ],
)
def test_its_cases_run_and_agree(library: str, script: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    assert "agreed" in run_code(script, ROOT, str(tmp_path))
