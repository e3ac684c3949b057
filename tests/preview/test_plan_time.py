"""How long a project's plan takes: estimated from a partition of each feature, when it is asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import main
from featurestore.testing.tables import observations

ROWS = observations(200).sort("t", "k")
FEATURES = """
import featurestore as fs
import narwhals as nw
rows = fs.Definitions('rows')
other = fs.Definitions('other')
rows.add(fs.Lag('double', by='k'))
rows.add(fs.Expression(double=nw.col('x') * 2))
rows.add(fs.Expression(kept=nw.col('n') + 1))
rows.add(fs.AsOfJoin('other', columns=['twice'], lag='1h'))
other.add(fs.Expression(twice=nw.col('y') * 2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    store = fs.FeatureStore.create(tmp_path / "golden", workers=1)
    table = store.ingest("rows", ROWS.head(150), key="k", time="t", partition_bytes=2000)
    table.add(fs.Expression(kept=nw.col("n") + 1))
    table.append(ROWS.tail(50).filter(ROWS.tail(50)["t"] > ROWS["t"][149]))
    store.ingest("other", observations(60, 3, column="y"), key="k", time="t")
    (tmp_path / "featurestore.toml").write_text(
        '[project]\nstore = "golden"\nfeatures = "features.py"\n'
    )
    (tmp_path / "features.py").write_text(FEATURES)
    paths = list(sys.path)
    yield tmp_path
    sys.path[:] = paths
    sys.modules.pop("features", None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


def test_each_feature_is_timed_and_nothing_is_written(folder: Path) -> None:
    before = sorted((folder / "golden").rglob("*"))
    said = json.loads(run("plan", "--time", "--json").output)
    assert sorted((folder / "golden").rglob("*")) == before
    seconds = {one["columns"][0]: one["seconds"] for one in said["changes"]}
    assert {"double_lag_1", "double", "kept", "twice"} <= set(seconds)
    timed = [one["seconds"] for one in said["changes"] if one["seconds"] is not None]
    assert said["seconds"] == pytest.approx(sum(timed))
    assert all(one > 0 for one in timed)
    assert seconds["kept"] is not None  # stale on the new partitions
    joined = [one for one in said["changes"] if one["kind"] == "AsOfJoin"]
    assert [one["seconds"] for one in joined] == [None]  # what it reads is not there yet
    text = run("plan", "--time").output
    assert "one after the other, without 1 that cannot be timed yet" in text
    assert "partitions, about " in text


def test_it_is_not_timed_unasked(folder: Path) -> None:
    said = json.loads(run("plan", "--json").output)
    assert said["seconds"] is None
    assert {one["seconds"] for one in said["changes"]} == {None}
    assert run("plan", "golden", "rows", "--time").exit_code == 2
