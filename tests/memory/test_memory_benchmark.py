"""The memory benchmark runs: its small variant's cases, once, on tiny data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featurestore.testing.scripts import run_code

pytest.importorskip("xgboost")
pytest.importorskip("pandas")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ROOT = Path(__file__).parent.parent.parent

SCRIPT = """
import sys
sys.path.insert(0, "benchmarks")
import memory
cases = memory.small_cases()
results = memory.measure_all(cases, 20_000, 4, [1], "256KiB", "8GiB")
assert [one["case"] for one in results] == cases
memory.report(results, [1], "8GiB", "256KiB")
failed = {one["case"]: one["error"] for one in results if "error" in one}
assert not failed, failed
for one in results:
    assert 0 < one["anonymous_bytes"] <= one["peak_bytes"], one
"""


def test_every_case_of_the_small_variant_runs() -> None:
    printed = run_code(SCRIPT, ROOT)
    print(printed)
    assert "featurestore xgboost" in printed
