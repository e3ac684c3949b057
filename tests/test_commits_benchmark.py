"""The benchmark of commits runs: its cases on small stores, with the figures that must not grow."""

from __future__ import annotations

from pathlib import Path

from featurestore.testing.scripts import run_code

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
sys.path.insert(0, "benchmarks")
import commits

def curve(case, name, points, **given):
    found = []
    for point in points:
        arguments = {**given, name: point, "place": f"{sys.argv[1]}/{case}-{point}"}
        found.append({**arguments, **commits.CASES[case](arguments)})
    return found

versions = curve("versions", "until", [40, 400])
features = curve("features", "features", [5, 50], partitions=5, more=5)
print(commits._markdown("versions", commits.VERSION_COLUMNS, versions))
print(commits._markdown("features", commits.FEATURE_COLUMNS, features))
assert all(one["snapshot_reads"] <= 2 for one in versions + features)
assert all(one["columns_filesets"] <= 1 and one["read_filesets"] <= 3 for one in features)
for few, many in (versions, features):
    assert many["bytes_mean"] < 1.2 * few["bytes_mean"] + 500, (few, many)
"""


def test_its_cases_run_and_show_a_flat_curve(tmp_path: Path) -> None:
    printed = run_code(SCRIPT, ROOT, str(tmp_path))
    print(printed)
    assert "bytes/commit" in printed
