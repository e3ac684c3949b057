"""Comparisons: what is planted is found, what leaks is flagged, what is nothing is called nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

import featurestore as fs
import training
from featurestore.errors import (
    CorruptionError,
    FeatureStoreError,
    InvalidInputError,
    MissingColumnError,
    NameTakenError,
    NotFoundError,
)
from training.cli import main
from training.comparison import cells
from training.comparison.result import Comparison, Verdict

pytest.importorskip("xgboost")

TRAIN = {"epochs": 12, "learning_rate": 0.3, "batch_size": 512}
SPLIT = fs.WalkForward(1200, n_splits=2, valid=400, horizon=10)


def planted(folder: Path, days: int = 200, noises: int = 2) -> fs.FeatureStore:
    """Rows of 20 entities and ``days`` days, whose label is driven by news that is known a day late."""
    random, entities = np.random.default_rng(0), 20
    rows = days * entities
    day, entity = np.repeat(np.arange(days), entities), np.tile(np.arange(entities), days)
    news, x = random.standard_normal(rows), random.standard_normal(rows)
    label = (0.8 * news + 0.4 * x + random.standard_normal(rows)).astype(np.float32)
    store = fs.FeatureStore.create(folder / "store")
    # What is of day d happened by then and is published by d + 1, when it moves the label.
    store.ingest(
        "news",
        pa.table({"k": entity, "t": day * 10 - 12, "available": day * 10 - 2, "value": news}),
        key="k", time="t",
    )  # fmt: skip
    columns = {"k": entity, "t": day * 10, "x": x, "y": label, "up": label > 0}
    columns |= {f"noise{i}": random.standard_normal(rows) for i in range(noises)}
    table = store.ingest("rows", pa.table(columns), key="k", time="t")
    join: dict[str, Any] = {"columns": ["value"], "by": "k"}
    table.add(fs.AsOfJoin("news", **join, available="available", rename={"value": "news"}))
    # The newest news at any time is of the day to come: known too early.
    table.add(fs.AsOfJoin("news", **join, rename={"value": "early"}))
    return store


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> fs.Table:
    return planted(tmp_path_factory.mktemp("compared")).table("rows")


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    train = {**TRAIN, "cache": str(tmp_path / "cache")}
    model = {"kind": "xgboost", "params": {"nthread": 1}}  # tests run beside each other
    return {"split": SPLIT, "model": model, "train": train, "output": tmp_path / "found", **more}


def test_what_is_planted_is_found_and_what_leaks_is_flagged(
    table: fs.Table, tmp_path: Path
) -> None:
    variants = {"same": [], "news": ["news"], "early": ["early"], "noise": ["noise0"]}
    said: list[str] = []
    found = training.compare(table, "y", ["x"], variants, say=said.append, **options(tmp_path))
    verdicts = {one.name: one.verdict for one in found.results}
    assert verdicts == {
        "base": Verdict.BASE, "same": Verdict.SAME, "news": Verdict.HELPS,
        "early": Verdict.LEAKS, "noise": Verdict.SAME,
    }  # fmt: skip
    same = found["same"].difference
    assert same is not None
    assert (same.mean, same.lower, same.upper, found["same"].p) == (0, 0, 0, 1)
    news = found["news"].difference
    assert news is not None
    assert news.upper < 0  # an error: less is better
    assert found["early"].leaks == ("early",)
    assert found["news"].importance["news"] > 0.1 > abs(found["noise"].importance["noise0"])
    assert found["news"].feature_bytes["news"] >= 8 * table.rows
    assert found.unchecked == dict.fromkeys(["x", "noise0"], "ingested, not computed")
    assert len(found.periods) == 12
    assert all(one.scores["news"] < one.scores["base"] for one in found.periods[::3])
    assert len([one for one in said if one.startswith("[")]) == 10
    shown = str(found)
    assert "news: helps; rmse -0." in shown
    assert "delete-block jackknife over " in shown
    assert "<table" in found._repr_html_()
    again = Comparison.open(found.path)
    assert again == found
    json.dumps(found.to_json(), allow_nan=False)
    # A cell is a run like any other.
    run = found.path / "runs" / "2-fold1-seed0"
    assert training.RunBundle.load(run).features == ("x", "news")


def test_one_fold_is_judged_by_stretches_of_its_time(table: fs.Table, tmp_path: Path) -> None:
    found = training.compare(
        table, "up", ["x"], {"news": ["news"], "noise": ["noise0"]}, seeds=[3, 4],
        **options(tmp_path, split=fs.TimeSplit(valid=1500)),
    )  # fmt: skip
    assert found.metric == "auc"
    assert found["news"].verdict is Verdict.HELPS
    assert found["noise"].verdict is not Verdict.HELPS
    assert "delete-block jackknife over 50 stretches of time" in found["news"].reason
    assert [one[:2] for one in found["base"].by_cell] == [(0, 3), (0, 4)]
    assert found["news"].scores["ic"] > 0.3


def test_entities_are_compared_by_hash(table: fs.Table, tmp_path: Path) -> None:
    split = fs.HashSplit(valid=0.3, test=0, by="k")
    made = options(tmp_path, split=split, metric="ic", pipeline={"standardize": False})
    made["compare"] = {"leakage": False, "importance": False}
    found = training.compare(table, "y", ["x"], {"news": ["news"]}, **made)
    assert found["news"].verdict is Verdict.HELPS
    assert found["news"].importance == {}
    assert found.unchecked == dict.fromkeys(["x", "news"], "not asked for")


def test_an_interrupted_comparison_goes_on_and_finds_the_same(
    table: fs.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"noise": ["noise0"]}
    split = fs.WalkForward(1500, n_splits=2, valid=200)
    whole = training.compare(table, "y", ["x"], variants, **options(tmp_path, split=split))
    fit, done = cells.fit, list[Path]()

    def interrupted(config: Any, output: Path, **more: Any) -> Any:
        done.append(output)
        if len(done) == 3:
            raise KeyboardInterrupt
        return fit(config, output, **more)

    made = options(tmp_path, split=split, output=tmp_path / "other")
    monkeypatch.setattr(cells, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        training.compare(table, "y", ["x"], variants, **made)
    monkeypatch.setattr(cells, "fit", fit)
    assert "--resume" in caught.value.__notes__[0]
    with pytest.raises(NotFoundError, match="no finished comparison"):
        Comparison.open(tmp_path / "other")
    with pytest.raises(NameTakenError, match="holds a comparison already"):
        training.compare(table, "y", ["x"], variants, **made)
    with pytest.raises(NameTakenError, match="variants"):
        training.compare(table, "y", ["x"], {"other": ["noise1"]}, resume=True, **made)
    said: list[str] = []
    found = training.compare(table, "y", ["x"], variants, resume=True, say=said.append, **made)
    assert [one for one in said if one.startswith("[")] == [
        "[3/4] base, fold 1, seed 0", "[4/4] noise, fold 1, seed 0",
    ]  # fmt: skip
    assert known(found) == known(whole)
    told = found.path / "predictions" / "1-fold1-seed0.parquet"
    told.write_bytes(b"damaged")
    with pytest.raises(CorruptionError, match="delete it, and go on"):
        training.compare(table, "y", ["x"], variants, resume=True, **made)
    told.unlink()
    again = training.compare(table, "y", ["x"], variants, resume=True, **made)
    assert known(again) == known(whole)


def known(found: Comparison) -> dict[str, Any]:
    """What a comparison found, but for seconds and places."""
    content: Any = found.to_json()
    for one in content["results"]:
        del one["training_seconds"]
    del content["config"]
    return dict(content)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"base": ["nope"]}, FeatureStoreError, "nope"),
        ({"variants": {"a": ["nope"]}}, MissingColumnError, "nope"),
        ({"variants": {}}, InvalidInputError, "no variants"),
        ({"variants": {"base": ["news"]}}, InvalidInputError, "no name of a variant"),
        ({"variants": {"a": ["x"]}}, InvalidInputError, "which the base has"),
        ({"variants": {"a": ["news", "news"]}}, InvalidInputError, "comes twice"),
        ({"variants": {"a": ["y"]}}, InvalidInputError, "is the label"),
        ({"seeds": []}, InvalidInputError, "seeds"),
        ({"seeds": [1, 1]}, InvalidInputError, "seeds"),
        ({"seeds": 3}, InvalidInputError, "seeds = 3"),
        ({"base": "x"}, InvalidInputError, "features = 'x'"),
        ({"variants": {"a": "news"}}, InvalidInputError, "list of column names"),
        ({"variants": {"a": None}}, InvalidInputError, "list of column names"),
        ({"variants": ["news"]}, InvalidInputError, "no variants"),
        ({"model": None}, InvalidInputError, "model is None"),
        ({"train": [1]}, InvalidInputError, r"train is \[1\]"),
        ({"compare": None}, InvalidInputError, "compare=None is no section"),
        ({"data": {"label": "up"}}, InvalidInputError, "other arguments say"),
        ({"output": "/dev/null/x"}, InvalidInputError, "cannot be written"),
        ({"metric": "auc"}, InvalidInputError, "none of a regression task"),
        ({"label": "nope"}, FeatureStoreError, "nope"),
        ({"split": None}, InvalidInputError, "no split"),
        ({"split": fs.TimeSplit(valid=99999)}, InvalidInputError, "no rows"),
        ({"train": {"seed": 3}}, InvalidInputError, "seeds"),
        ({"model": "forest"}, InvalidInputError, "kind"),
        ({"compare": {"leaks": 1}}, InvalidInputError, "leak"),
        ({"train": {"early_stopping": 3}}, InvalidInputError, "early_stopping"),
        ({"split": fs.WalkForward(1500, 3, 300)}, InvalidInputError, "valid part has no rows"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(
    table: fs.Table, tmp_path: Path, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {
        "label": "y", "base": ["x"], "variants": {"a": ["news"]}, **options(tmp_path), **changes,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        training.compare(table, **given)
    assert not (tmp_path / "found" / "comparison.json").exists()


def test_a_base_that_leaks_is_named_before_anything_is_trained(
    table: fs.Table, tmp_path: Path
) -> None:
    said: list[str] = []
    made = options(tmp_path, split=fs.TimeSplit(valid=1500), say=said.append)
    found = training.compare(table, "y", ["x", "early"], {"news": ["news"]}, **made)
    assert said[0] == "these features know what was not known yet: ['early']"
    assert found["base"].leaks == ("early",)
    assert "early leak" in found["base"].reason
    assert found["news"].verdict is not Verdict.LEAKS


def test_a_fold_of_one_class_is_undecided(tmp_path: Path) -> None:
    rows = 400
    columns = {"k": np.zeros(rows, int), "t": np.arange(rows), "x": np.arange(rows) % 7 * 1.0}
    columns["up"] = (np.arange(rows) < 300) & (np.arange(rows) % 2 == 0)
    store = fs.FeatureStore.create(tmp_path / "store")
    table = store.ingest("rows", pa.table(columns), key="k", time="t")
    table.add(fs.Lag("x", by="k", periods=1))
    found = training.compare(
        table, "up", ["x"], {"lag": ["x_lag_1"]}, **options(tmp_path, split=fs.TimeSplit(valid=300))
    )
    assert math.isnan(found["base"].score)
    assert found["lag"].verdict is Verdict.UNDECIDED
    assert Comparison.open(found.path)["lag"].verdict is Verdict.UNDECIDED


def test_a_last_fold_without_rows_is_refused_before_anything_is_trained(
    table: fs.Table, tmp_path: Path
) -> None:
    split = fs.WalkForward(1500, n_splits=4, valid=200)
    with pytest.raises(InvalidInputError, match="'fold': 3"):
        training.compare(table, "y", ["x"], {"a": ["noise0"]}, **options(tmp_path, split=split))
    assert not (tmp_path / "found").exists()


def test_rank_correlations_within_a_time_want_a_time(tmp_path: Path) -> None:
    store, rows = fs.FeatureStore.create(tmp_path / "store"), np.arange(40)
    columns = {"k": rows, "x": rows * 1.0, "z": rows * 1.0, "y": rows * 1.0}
    table = store.ingest("rows", pa.table(columns), key="k")
    made = options(tmp_path, split=fs.HashSplit(valid=0.5, test=0), metric="ic")
    with pytest.raises(InvalidInputError, match="has no time"):
        training.compare(table, "y", ["x"], {"a": ["z"]}, **made)


def test_what_lies_in_the_folder_is_not_believed(table: fs.Table, tmp_path: Path) -> None:
    split = fs.WalkForward(1500, n_splits=2, valid=200)
    made = options(tmp_path, split=split, resume=True, compare={"leakage": False})
    made["train"]["epochs"] = 2

    def again() -> Comparison:
        return training.compare(table, "y", ["x"], {"noise": ["noise0"]}, **made)

    whole = known(again())
    folder = tmp_path / "found"

    def refused(name: str, content: bytes, words: str) -> None:
        path = folder / name
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(CorruptionError, match=words):
            again()
        path.write_bytes(before)

    # Of another fold: as many rows, whose times are others.
    told = "predictions/1-fold1-seed0.parquet"
    other = (folder / "predictions/1-fold0-seed0.parquet").read_bytes()
    refused(told, other, "not of the same rows")
    other = (folder / "cells/0-fold1-seed0.json").read_bytes()
    refused("cells/1-fold1-seed0.json", other, "it is of .'base', 1, 0.")
    mine = json.loads((folder / "cells/1-fold1-seed0.json").read_text())
    for scores in ([], {}, {"rmse": 1.0}):
        broken = json.dumps({**mine, "scores": scores}).encode()
        refused("cells/1-fold1-seed0.json", broken, "no result of a cell")
    refused("compare.json", b"{}", "holds no configuration")
    begun = json.loads((folder / "compare.json").read_text())
    refused("compare.json", json.dumps({**begun, "task": None}).encode(), "no snapshot or no task")
    assert known(again()) == whole
    run = folder / "runs/1-fold1-seed0/run.json"
    (folder / "cells/1-fold1-seed0.json").unlink()
    run.write_text("{}")
    with pytest.raises(CorruptionError, match="names no snapshot"):
        again()
    (folder / "comparison.json").write_text('{"version": 1}')
    with pytest.raises(CorruptionError, match="is no comparison"):
        Comparison.open(folder)


def test_one_process_works_in_a_folder(table: fs.Table, tmp_path: Path) -> None:
    made = options(tmp_path, split=fs.TimeSplit(valid=1500), resume=True)
    held = (
        "import fcntl, os, sys; handle = os.open(sys.argv[1], os.O_RDONLY); "
        "fcntl.flock(handle, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    )
    (tmp_path / "found").mkdir()
    # What a process leaves that was killed in its first moment keeps no other from beginning.
    (tmp_path / "found" / ".compare.json.building").write_text('{"snap')
    command = [sys.executable, "-c", held, str(tmp_path / "found")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(NameTakenError, match="another process works"):
            training.compare(table, "y", ["x"], {"noise": ["noise0"]}, **made)
        process.kill()  # what it held goes with it
    assert training.compare(table, "y", ["x"], {"noise": ["noise0"]}, **made)["noise"]


def test_a_store_that_was_written_to_says_how_a_comparison_goes_on(tmp_path: Path) -> None:
    table = planted(tmp_path, days=60).table("rows")
    made = options(tmp_path, split=fs.TimeSplit(valid=400), compare={"leakage": False})
    first = training.compare(table, "y", ["x"], {"noise": ["noise0"]}, **made)
    version = table.version
    store = fs.FeatureStore.open(table.store_url)
    row = {"k": [0], "t": [600], "x": [0.0], "y": np.zeros(1, np.float32), "up": [True]}
    store.table("rows").append(pa.table({**row, "noise0": [0.0], "noise1": [0.0]}))
    again = store.table("rows")
    with pytest.raises(NameTakenError, match=rf"store.checkout\({version}\).table\('rows'\)"):
        training.compare(again, "y", ["x"], {"noise": ["noise0"]}, resume=True, **made)
    there = store.checkout(version).table("rows")
    found = training.compare(there, "y", ["x"], {"noise": ["noise0"]}, resume=True, **made)
    assert known(found) == known(first)


CONFIG = """
[data]
store = "store"
table = "rows"
features = ["x"]
label = "y"

[split]
kind = "walk_forward"
first = 1500
n_splits = 2
valid = 200
horizon = 10

[model]
kind = "xgboost"
params = { nthread = 1 }

[train]
epochs = 3
cache = "cache"

[compare]
seeds = [0]

[variants]
"../with news" = ["news"]
"""


def test_the_command_line_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(tmp_path)
    (tmp_path / "compare.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(main, ["compare", "compare.toml", "-o", "out", "--json"])
    assert made.exit_code == 0, made.output
    content = json.loads(made.stdout)
    assert [one["name"] for one in content["results"]] == ["base", "../with news"]
    assert sorted(one.name for one in (tmp_path / "out" / "runs").iterdir()) == [
        "0-fold0-seed0", "0-fold1-seed0", "1-fold0-seed0", "1-fold1-seed0",
    ]  # fmt: skip
    again = CliRunner().invoke(main, ["compare", "compare.toml", "-o", "out"])
    assert again.exit_code == 1
    assert "holds a comparison already" in again.stderr
    shown = CliRunner().invoke(main, ["compare", "compare.toml", "-o", "out", "--resume"])
    assert shown.exit_code == 0
    assert "rmse (less is better) of 2 variants" in shown.stdout
    one_fold = (tmp_path / "compare.toml").read_text().replace("[variants]", "").split('"../')[0]
    (tmp_path / "train.toml").write_text(one_fold.replace("[compare]\nseeds = [0]", ""))
    refused = CliRunner().invoke(main, ["fit", "train.toml", "-o", "run"])
    assert refused.exit_code == 1
    assert "has 2 folds, and a run trains on one" in refused.stderr


@pytest.mark.slow
def test_nineteen_of_twenty_noises_are_rejected(tmp_path: Path) -> None:
    table = planted(tmp_path, noises=20).table("rows")
    variants = {f"noise {i}": [f"noise{i}"] for i in range(20)}
    found = training.compare(table, "y", ["x"], {"news": ["news"], **variants}, **options(tmp_path))
    assert found["news"].verdict is Verdict.HELPS
    helping = [one.name for one in found.results if one.verdict is Verdict.HELPS]
    assert len(helping) <= 2


@pytest.mark.slow
def test_a_killed_comparison_finds_the_same(tmp_path: Path) -> None:
    planted(tmp_path)
    (tmp_path / "compare.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "training", "compare", "compare.toml", "--output"]
    environment = {**os.environ, "PYTHONPATH": str(Path(fs.__file__).parent.parent)}
    subprocess.run([*command, "whole"], cwd=tmp_path, env=environment, check=True)
    whole = known(Comparison.open(tmp_path / "whole"))
    more: list[str] = []
    for done in range(4):
        process = subprocess.Popen(
            [*command, "killed", *more], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"[{done + 1}/4]".encode()):
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        process.stderr.close()
        more = ["--resume"]
    subprocess.run([*command, "killed", *more], cwd=tmp_path, env=environment, check=True)
    assert known(Comparison.open(tmp_path / "killed")) == whole
