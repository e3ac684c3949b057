"""Runs whose train.toml names weights, queries or a base margin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("xgboost")

from featurestore.errors import InvalidInputError, SchemaError
from featurestore.store import FeatureStore
from training import RunBundle, RunConfig, fit, predict

ROWS = 1200

# TensorFlow's variables do not know NumPy 2's copy= yet; Keras converts them when it saves a model.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    x, z = random.normal(size=(2, ROWS))
    frame = pl.DataFrame(
        {
            "id": np.arange(ROWS) % 20,
            "day": np.arange(ROWS) // 20,
            "x": x,
            "z": z,
            "grade": np.clip(np.round(x + z + random.normal(size=ROWS) / 4 + 2), 0, 4),
            "value": 3 * z + x,
            "margin": 3 * z,
            "share": np.where(x > 0, 0.0, 1.0),
            "side": np.where(x > 0, x, -x),
        }
    )
    path = tmp_path_factory.mktemp("golden") / "store"
    FeatureStore.create(path).ingest("t", frame, key="id", time="day", partition_bytes="16kB")
    return path


def configuration(
    store: Path, cache: Path, data: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    return {
        "data": {"store": str(store), "table": "t", "features": ["x"], **data},
        "split": {"kind": "time", "valid": 45},
        "model": {"kind": "xgboost", "params": {"nthread": 2, "max_depth": 3}, **model},
        "train": {"epochs": 12, "cache": str(cache)},
    }


def test_a_ranking_is_trained_judged_and_predicts(store: Path, tmp_path: Path) -> None:
    data = {"label": "grade", "group": "day", "features": ["x", "z"]}
    content = configuration(store, tmp_path / "packs", data, {})
    content["train"]["early_stopping"] = 8
    run = fit(content, tmp_path / "run")
    assert run.metrics["task"] == "ranking"
    scores = run.metrics["parts"]
    assert scores["train"]["ndcg"] > 0.9
    assert scores["valid"]["ndcg"] > 0.9
    bundle = RunBundle.load(run.path)
    losses = [
        float(line.split(",")[1]) for line in (run.path / "history.csv").read_text().split()[1:]
    ]
    assert losses[-1] < losses[0], "a loss that falls: 1 - NDCG"
    frame = pl.DataFrame({"x": [-3.0, 3.0], "z": [-3.0, 3.0]})
    low, high = bundle.predict(frame.to_arrow())
    assert low < high


def test_predictions_begin_from_the_base_margin(store: Path, tmp_path: Path) -> None:
    data = {"label": "value", "base_margin": "margin"}
    content = configuration(store, tmp_path / "packs", data, {})
    content["pipeline"] = {"standardize": False}
    run = fit(content, tmp_path / "run")
    assert run.metrics["parts"]["valid"]["rmse"] < 0.5, "the margin says what x does not"
    without = configuration(store, tmp_path / "packs", {"label": "value"}, {})
    assert fit(without, tmp_path / "plain").metrics["parts"]["valid"]["rmse"] > 2
    bundle = RunBundle.load(run.path)
    assert bundle.columns == ("x", "margin")
    rows = pl.DataFrame({"x": [0.5, 0.5], "margin": [0.0, 10.0]})
    first, second = bundle.predict(rows.to_arrow())
    assert second - first == pytest.approx(10, abs=1e-4)
    with pytest.raises(SchemaError, match="margin"):
        bundle.predict(rows.select("x").to_arrow())
    with pytest.raises(SchemaError, match="has 1 nulls"):
        bundle.predict(rows.with_columns(margin=pl.Series([None, 1.0])).to_arrow())
    new = pl.DataFrame({"id": [1], "day": [60], "x": [0.5], "margin": [10.0]})
    assert predict(run.path, new)["prediction"][0] == pytest.approx(second, abs=1e-5)


@pytest.mark.parametrize("kind", ["xgboost", "tabular"])
def test_rows_that_weigh_nothing_teach_nothing(kind: str, store: Path, tmp_path: Path) -> None:
    if kind == "tabular":
        pytest.importorskip("tensorflow")
    # |x| is x in the rows that weigh nothing, and -x in the others.
    data = {"label": "side", "weight": "share"}
    content = configuration(store, tmp_path / "packs", data, {"kind": kind})
    content["pipeline"] = {"standardize": False}
    if kind == "tabular":
        content["model"]["params"] = {"hidden": []}
        content["train"] |= {"epochs": 30, "batch_size": 64, "learning_rate": 0.05}
    run = fit(content, tmp_path / "run")
    frame = pl.DataFrame({"x": [-1.5, 1.5]})
    below, above = RunBundle.load(run.path).predict(frame.to_arrow()).reshape(-1)
    assert below == pytest.approx(1.5, abs=0.25)
    assert above < 0.5, "not 1.5, as the rows without weight have it"


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"group": "day"}, {"kind": "tabular"}, "group = 'day' is for XGBoost"),
        ({"base_margin": "z"}, {"kind": "tabular"}, "base_margin = 'z' is for XGBoost"),
        ({"group": "day"}, {"task": "binary"}, "do not fit"),
        ({}, {"task": "ranking"}, "do not fit"),
        ({"weight": 3}, {}, "weight = 3 is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused(
    data: dict[str, Any], model: dict[str, Any], message: str, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        RunConfig.from_mapping(configuration(store, tmp_path, {"label": "grade", **data}, model))


def test_relevances_beyond_what_xgboost_holds_are_refused(store: Path, tmp_path: Path) -> None:
    data = {"label": "value", "group": "day"}
    with pytest.raises(InvalidInputError, match="relevances from 0 to 31"):
        fit(configuration(store, tmp_path / "packs", data, {}), tmp_path / "run")
