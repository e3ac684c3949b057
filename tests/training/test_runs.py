"""From a table to a run folder to predictions, with Keras and with XGBoost."""

from __future__ import annotations

import csv
import gc
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("xgboost")

from click.testing import CliRunner

import featurestore as fs
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FeatureStoreError,
    FormatError,
    InvalidInputError,
    MemoryLimitError,
    NameTakenError,
    NotFoundError,
    NotReadyError,
    SchemaError,
    SourceError,
)
from featurestore.store import FeatureStore
from training import Run, RunBundle, RunConfig, fit, predict
from training.cli import main
from training.environment import environment, processor
from training.loading.memory import row_bytes
from training.run_loaders import held_rows, held_together, loaders_of
from training.source import open_dataset, open_table

ROWS = 3000

# TensorFlow's variables do not know NumPy 2's copy= yet; Keras converts them when it saves a model.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def rows(count: int, start: int, seed: int) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    x = random.normal(size=count)
    colour = np.array(["red", "green", "blue"])[random.integers(0, 3, count)]
    return pl.DataFrame(
        {
            "id": np.arange(count) % 7,
            "day": np.arange(start, start + count),
            "x": x,
            "gaps": pl.Series(x + random.normal(size=count)).set(
                pl.Series(random.random(count) < 0.1), None
            ),
            "colour": colour,
            "late": (x + (colour == "red")) > 0.3,
            "delay": 10 * x + (colour == "red"),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "store"
    FeatureStore.create(path).ingest(
        "t", rows(ROWS, 0, 0), key="id", time="day", partition_bytes="40kB"
    )
    return path


def configuration(store: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "data": {
            "store": str(store),
            "table": "t",
            "features": ["x", "gaps", "colour"],
            "label": "late",
        },
        "split": {"kind": "time", "valid": 2000, "test": 2500},
        "model": {"params": {"hidden": [16]}},
        "train": {"epochs": 4, "batch_size": 128, "learning_rate": 0.01, "cache": str(cache)},
    }
    for section, values in changes.items():
        content[section] = {**content.get(section, {}), **values}
    return content


@pytest.fixture(scope="module")
def keras_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("keras")
    return fit(configuration(store, folder / "packs"), folder / "run")


@pytest.fixture(scope="module")
def xgboost_run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("xgboost")
    content = configuration(
        store,
        folder / "packs",
        model={"kind": "xgboost", "params": {"max_depth": 3, "nthread": 2}},
        train={"epochs": 20, "learning_rate": 0.3, "early_stopping": 5},
    )
    return fit(content, folder / "run")


@pytest.fixture(params=["keras_run", "xgboost_run"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


def test_a_run_folder_holds_everything(run: Run) -> None:
    model = "model.ubj" if run.config.model.kind == "xgboost" else "model.keras"
    assert {one.name for one in run.path.iterdir()} == {
        "run.json", "config.json", "schema.json", "pipeline.json", "states.arrow", model,
        "metrics.json", "memory.json", "history.csv", "curves.png", "environment.json",
        "definitions.json", "memory_series.csv",
    }  # fmt: skip
    memory = json.loads((run.path / "memory.json").read_text())
    assert 0 < memory["before_framework"] <= memory["framework_imported"] + (64 << 20)
    assert memory["framework_imported"] <= memory["fit_peak"] + (64 << 20)
    assert memory["before_framework"] < memory["projected_peak"] <= memory["memory_limit"]
    assert 0 <= memory["framework"] < memory["fit_peak"]
    with (run.path / "memory_series.csv").open() as file:
        moments = list(csv.DictReader(file))
    assert 2 <= len(moments) <= 240
    assert max(int(one["anonymous_bytes"]) for one in moments) > 0
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["task"] == "binary"
    assert {name: part["rows"] for name, part in metrics["parts"].items()} == {
        "train": 2000,
        "valid": 500,
        "test": 500,
    }
    for part in metrics["parts"].values():
        assert part["auc"] > 0.95
        assert part["accuracy"] > 0.85
    with (run.path / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == metrics["epochs"]
    assert float(history[-1]["val_loss"]) < float(history[0]["val_loss"])
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    info = json.loads((run.path / "run.json").read_text())
    assert info["snapshot"] == run.snapshot
    assert "auc" in str(run)


def test_a_bundle_predicts_what_was_measured(run: Run, store: Path) -> None:
    table = FeatureStore.open(store).table("t")
    frame = table.read(["day", "x", "gaps", "colour", "late"])
    part = frame.filter(pl.col("day") >= 2500)
    bundle = RunBundle.load(run.path)
    probability = bundle.predict(part)
    accuracy = ((probability >= 0.5) == part["late"].to_numpy()).mean()
    assert accuracy == pytest.approx(run.metrics["parts"]["test"]["accuracy"])
    # One row at a time, other order of columns, other types: the same answer.
    alone = bundle.predict(part.select("colour", "gaps", pl.col("x")).head(1))
    np.testing.assert_allclose(alone, probability[:1], atol=1e-6)
    assert bundle.predict(part.head(0)).shape == (0,)


def test_unseen_categories_and_nulls_predict(run: Run) -> None:
    frame = pl.DataFrame({"x": [0.5, None], "gaps": [None, 1.0], "colour": ["violet", None]})
    assert np.isfinite(RunBundle.load(run.path).predict(frame)).all()


def test_rows_that_lack_features_are_refused(run: Run) -> None:
    bundle = RunBundle.load(run.path)
    with pytest.raises(SchemaError, match=r"lack columns \['gaps', 'colour'\]"):
        bundle.predict(pl.DataFrame({"x": [1.0]}))
    with pytest.raises(SchemaError, match="'x' is"):
        bundle.predict(pl.DataFrame({"x": ["one"], "gaps": [1.0], "colour": ["red"]}))


FRAMES: dict[str, Callable[[pl.DataFrame], Any]] = {
    "arrow": lambda frame: frame.to_arrow(),
    "record batch": lambda frame: frame.to_arrow().combine_chunks().to_batches()[0],
    "reader": lambda frame: frame.to_arrow().to_reader(max_chunksize=7),
    "pandas": lambda frame: pytest.importorskip("pandas") and frame.to_pandas(),
    "narwhals": nw.from_native,
    "duckdb": lambda frame: pytest.importorskip("duckdb").from_arrow(frame.to_arrow()),
}


@pytest.mark.parametrize("library", FRAMES)
def test_frames_of_every_library_get_equal_predictions(xgboost_run: Run, library: str) -> None:
    new = rows(50, ROWS, 1).drop("late", "delay")
    bundle = RunBundle.load(xgboost_run.path)
    expected = bundle.predict(new)
    np.testing.assert_array_equal(bundle.predict(FRAMES[library](new)), expected)
    found = predict(bundle, FRAMES[library](new))
    assert found.select("id", "day").equals(new.select("id", "day"))
    np.testing.assert_array_equal(found["prediction"].to_numpy(), expected.reshape(-1))


def test_frames_without_rows_are_refused(xgboost_run: Run) -> None:
    bundle = RunBundle.load(xgboost_run.path)
    lazy = rows(5, ROWS, 1).lazy()
    for frame in (lazy, nw.from_native(lazy), 3):
        with pytest.raises(
            SourceError, match=r"(?s)rows are a .*which Arrow cannot.*lazy one first"
        ):
            bundle.predict(frame)
        with pytest.raises(SourceError):
            predict(bundle, frame)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_new_rows_get_a_prediction_each(run: Run, suffix: str, tmp_path: Path) -> None:
    new = rows(50, ROWS, 1)
    new.drop("late", "delay").write_parquet(tmp_path / "new.parquet")
    output = tmp_path / f"out.{suffix}"
    found = predict(run.path, tmp_path / "new.parquet", output)
    assert found.columns == ["id", "day", "prediction"]
    assert found["day"].to_list() == new["day"].to_list()
    written = pl.read_csv(output) if suffix == "csv" else pl.read_parquet(output)
    assert len(written) == 50
    expected = RunBundle.load(run.path).predict(new)
    np.testing.assert_allclose(written["prediction"].to_numpy(), expected, atol=1e-5)


def test_equal_configurations_give_equal_metrics(keras_run: Run, tmp_path: Path) -> None:
    again = fit(keras_run.config, tmp_path / "again")
    assert again.metrics["parts"] == keras_run.metrics["parts"]


def test_a_run_is_trained_again_by_the_command_in_its_folder(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    table = store.ingest("t", rows(600, 0, 0), key="id", time="day")
    table.add(fs.Expression(twice=nw.col("x") * 2), fs.Expression(is_late=nw.col("late") | False))
    content = configuration(
        tmp_path / "store",
        tmp_path / "packs",
        data={"features": ["twice"], "label": "is_late"},
        split={"valid": 300, "test": 400},
        model={"kind": "xgboost", "params": {"nthread": 1, "subsample": 0.5}},
        train={"seed": 5},
    )
    first = fit(content, tmp_path / "first run")
    table.add(fs.Expression(twice=nw.col("x") * 3), replace=True)
    info = json.loads((first.path / "run.json").read_text())
    assert info["seeds"]["train"] == 5
    python, *command = shlex.split(info["command"])
    assert (python, command[:3]) == ("python", ["-m", "training", "fit"])
    done = CliRunner().invoke(main, command[2:])
    assert done.exit_code == 0, done.output
    again = tmp_path / "first run-again"
    for name in ("model.ubj", "definitions.json", "history.csv", "states.arrow"):
        assert (again / name).read_bytes() == (first.path / name).read_bytes()
    defined = json.loads((again / "definitions.json").read_text())
    assert [one["columns"] for one in defined["t"]] == [["twice"], ["is_late"]]
    assert "Error: " in CliRunner().invoke(main, ["fit", str(tmp_path / "packs")]).output


def test_the_environment_has_versions_and_no_variables(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.loads((run.path / "environment.json").read_text())
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == np.__version__
    assert found["memory_bytes"] > 0
    monkeypatch.setenv("API_TOKEN", "swordfish")
    environment.cache_clear()
    assert "swordfish" not in json.dumps(environment())


def test_a_processor_is_named_where_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A: B 3000\n")
    assert processor(tmp_path / "cpuinfo") == "A: B 3000"
    assert processor(tmp_path / "nothere") == platform.processor()


def test_regression_and_hash_split(store: Path, tmp_path: Path) -> None:
    content = configuration(
        store,
        tmp_path / "packs",
        data={"label": "delay"},
        split={"kind": "hash", "valid": 0.3, "test": None},
        model={"kind": "xgboost", "params": {"nthread": 2}},
        train={"learning_rate": None},
    )
    del content["split"]["test"], content["train"]["learning_rate"]
    run = fit(content, tmp_path / "run")
    assert run.metrics["task"] == "regression"
    assert set(run.metrics["parts"]) == {"train", "valid"}
    assert run.metrics["parts"]["valid"]["rmse"] < 6


def test_an_output_that_cannot_be_written_is_said(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    content = configuration(store, tmp_path / "packs")
    with pytest.raises(InvalidInputError, match=r"(?s)file.run cannot be written.*name an output"):
        fit(content, tmp_path / "file" / "run")

    def refused(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(InvalidInputError, match=r"(?s)Permission denied.*can be written to"):
        fit(content, tmp_path / "runs" / "first")


def test_a_column_to_sample_by_that_there_is_not_is_named(store: Path, tmp_path: Path) -> None:
    content = configuration(store, tmp_path / "packs")
    for sample in (
        {"kind": "balanced", "by": ["x", "sector"]},
        {"kind": "weighted", "by": "sector"},
    ):
        with pytest.raises(SchemaError, match=r"(?s)\[loader\] sample = .*'sector'.*columns are"):
            fit({**content, "loader": {"sample": sample}}, tmp_path / "run")


def test_rows_of_all_parts_that_do_not_fit_together_are_not_held(
    store: Path, tmp_path: Path
) -> None:
    content = configuration(store, tmp_path / "packs")
    config = RunConfig.from_mapping({**content, "loader": {"hold": "memory"}})
    loaders = loaders_of(config, open_dataset(config, open_table(config)))
    train = max(one.peak for one in loaders["train"].memory().activities)
    together = held_together(loaders)
    others = sum(one.bytes for one in held_rows({**loaders}) if "train" not in one.what)
    assert others == 1000 * row_bytes(loaders["train"].schema)
    assert max(one.peak for one in together if "train" in one.activity) == train + others
    tight = replace(together[0], limit=together[0].peak - 1)
    with pytest.raises(
        MemoryLimitError, match=r"(?s)of the train part is projected.*leave hold out"
    ):
        tight.require()


def test_a_model_of_ones_own(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model.py").write_text(
        "import keras\n"
        "from training.models import tabular\n"
        "def build(schema, task, units):\n"
        "    return tabular(schema, task, hidden=(units,))\n"
        "def nothing(schema, task):\n"
        "    tabular(schema, task)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content = configuration(
        store,
        tmp_path / "packs",
        model={"kind": "own_model:build", "params": {"units": 4}},
        train={"epochs": 1},
    )
    run = fit(content, tmp_path / "run")
    assert RunBundle.load(run.path).task == "binary"
    content["model"] = {"kind": "own_model:build", "params": {"layers": 4}}
    with pytest.raises(InvalidInputError, match="does not take params"):
        fit(content, tmp_path / "other")
    content["model"] = {"kind": "own_model:missing"}
    with pytest.raises(InvalidInputError, match="cannot be imported"):
        fit(content, tmp_path / "other")
    content["model"] = {"kind": "own_model:nothing"}
    with pytest.raises(
        InvalidInputError, match=r"(?s)own_model:nothing' returned None.*keras.Model"
    ):
        fit(content, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"features": ["x", "nope"]}}, "nope"),
        ({"data": {"table": "other"}}, "no table 'other'"),
        ({"data": {"store": "/nowhere/at/all"}}, "nowhere"),
        ({"split": {"valid": 90_000, "test": 95_000}}, "no rows"),
        ({"pipeline": {"impute": ["late"]}}, "not among the features"),
        ({"pipeline": {"categorify": ["x"], "standardize": ["x"]}}, "both categories and numbers"),
        ({"pipeline": {"impute": False}}, "columns .'gaps'. hold NaN"),
        ({"data": {"label": "id", "features": ["x"]}}, "class or a number"),
        (
            {
                "data": {"label": "id", "features": ["x"]},
                "model": {"task": "multiclass", "classes": 3},
            },
            r"the train part: a multiclass label holds \[3, 4, 5, 6\].* from 0 to 2",
        ),
        (
            {"data": {"label": "delay", "features": ["x"]}, "model": {"task": "binary"}},
            "the train part: a binary label holds",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_and_leaves_nothing(
    changes: dict[str, Any], message: str, store: Path, tmp_path: Path
) -> None:
    content = configuration(store, tmp_path / "packs", **changes)
    with pytest.raises(FeatureStoreError, match=message):
        fit(content, tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []


def test_rows_too_many_to_be_judged_are_refused_before_training(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run_memory.judging_bytes", lambda *_: 2**50)
    monkeypatch.setattr("training.run._train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(MemoryLimitError, match=r"judging the model .* predictions of 2000 rows"):
        fit(configuration(store, tmp_path / "packs"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_never_replaces_another(keras_run: Run) -> None:
    with pytest.raises(NameTakenError):
        fit(keras_run.config, keras_run.path)


# --- damaged and hostile folders -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.json", "pipeline.json", "states.arrow", "schema.json", "model"]
)
def test_an_altered_run_is_not_believed(name: str, keras_run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(keras_run.path, tmp_path / "copy"))
    file = copy / ("model.keras" if name == "model" else name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match="checksum"):
        RunBundle.load(copy)
    file.unlink()
    with pytest.raises(CorruptionError, match="cannot be read"):
        RunBundle.load(copy)


def test_folders_that_are_no_runs(keras_run: Run, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no run folder"):
        RunBundle.load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"version": 99, "files": {}}))
    with pytest.raises(FormatError, match="version 99"):
        RunBundle.load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"version": 1, "files": {"../x": ""}}))
    with pytest.raises(CorruptionError, match="outside"):
        RunBundle.load(tmp_path)


# --- the command line ----------------------------------------------------------------------------------


def test_command_line_fits_and_predicts(store: Path, tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text(
        f"""
        [data]
        store = "{store}"
        table = "t"
        features = ["x", "colour"]
        label = "late"
        [split]
        kind = "time"
        valid = 2000
        [model]
        kind = "xgboost"
        params = {{ nthread = 2 }}
        [train]
        epochs = 3
        cache = "packs"
        """
    )
    rows(5, ROWS, 2).write_parquet(tmp_path / "new.parquet")
    run = CliRunner()
    folder = tmp_path / "run"
    done = run.invoke(main, ["fit", str(tmp_path / "train.toml"), "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert "valid: loss" in done.output
    shown = done.stdout
    done = run.invoke(main, ["fit", str(tmp_path / "train.toml"), "-o", str(folder), "--resume"])
    assert (done.exit_code, done.stdout) == (0, shown)
    folder = tmp_path / "enforced"
    asked = ["fit", str(tmp_path / "train.toml"), "--enforce", "-o", str(folder)]
    done = run.invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert ", kept by " in done.stderr
    out = tmp_path / "p.csv"
    done = run.invoke(main, ["predict", str(folder), str(tmp_path / "new.parquet"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert done.output == f"5 predictions in {out}\n"
    assert len(pl.read_csv(out)) == 5


def test_command_line_errors_are_a_paragraph(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["fit", str(tmp_path / "none.toml")])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: there is no file")
    assert "Remedy:" in done.stderr
    assert "Traceback" not in done.output
    done = CliRunner().invoke(main, ["--traceback", "fit", str(tmp_path / "none.toml")])
    assert isinstance(done.exception, NotFoundError)


def test_interrupting_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        error = KeyboardInterrupt()
        error.add_note("It is saved; go on with --resume")
        raise error

    monkeypatch.setattr("training.run.fit", interrupted)
    done = CliRunner().invoke(main, ["fit", "examples/train.toml"])
    assert done.exit_code == 130
    assert done.stderr.endswith(
        "Interrupted; no run folder was made. It is saved; go on with --resume\n"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.txt", "cannot be written as 'out.txt'"), ("no/dir/out.csv", "no directory")],
)
def test_outputs_are_checked_first(name: str, message: str, keras_run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        predict(keras_run.path, tmp_path / "none.parquet", tmp_path / name)


def test_importing_training_loads_no_framework() -> None:
    code = (
        "import sys, training; from training import Loader, RunConfig; "
        "print([m for m in ('tensorflow', 'keras', 'xgboost', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_config_of_a_run_reads_back(keras_run: Run) -> None:
    content = json.loads((keras_run.path / "config.json").read_text())
    assert RunConfig.from_mapping(content).to_json() == keras_run.config.to_json()


def test_a_condition_selects_rows(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rows.py").write_text(
        "import narwhals as nw\nred = nw.col('colour') == 'red'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content = configuration(
        store,
        tmp_path / "packs",
        data={"where": "own_rows:red"},
        model={"kind": "xgboost", "params": {"nthread": 2}},
    )
    run = fit(content, tmp_path / "run")
    red = FeatureStore.open(store).table("t").read(["day", "colour"])
    expected = red.filter((pl.col("colour") == "red") & (pl.col("day") < 2000)).height
    assert run.metrics["parts"]["train"]["rows"] == expected


def test_rows_without_a_label_are_left_out_when_asked(tmp_path: Path) -> None:
    # One label in four is missing, in every part.
    known = pl.col("day") % 4 != 0
    gone = rows(ROWS, 0, 5).with_columns(pl.when(known).then(pl.col("late")).alias("late"))
    path = tmp_path / "store"
    FeatureStore.create(path).ingest("t", gone, key="id", time="day", partition_bytes="40kB")
    model = {"kind": "xgboost", "params": {"nthread": 2}}
    with pytest.raises(DefinitionError, match="is_null"):
        fit(configuration(path, tmp_path / "p", model=model), tmp_path / "a")
    wanted = configuration(path, tmp_path / "p", data={"drop_unlabelled": True}, model=model)
    parts = fit(wanted, tmp_path / "b").metrics["parts"]
    assert sum(one["rows"] for one in parts.values()) == ROWS - gone["late"].null_count() < ROWS


def test_a_model_that_holds_code_is_refused(tmp_path: Path) -> None:
    import keras

    from featurestore.testing.datasets import numbered_part
    from training.fitting.keras_model import FILE, KerasModel

    inputs = keras.Input((3,), name="numeric")
    unsafe = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs))
    unsafe.save(tmp_path / FILE)
    with pytest.raises(CorruptionError, match="cannot be loaded safely"):
        KerasModel.load(tmp_path, numbered_part(1).schema)


def test_a_feature_redefined_since_training_is_refused(tmp_path: Path) -> None:
    import narwhals as nw

    from featurestore import Expression

    path = tmp_path / "store"
    table = FeatureStore.create(path).ingest(
        "t", rows(ROWS, 0, 3), key="id", time="day", partition_bytes="40kB"
    )
    table.add(Expression(score=nw.col("x") * 2))
    content = configuration(
        path,
        tmp_path / "p",
        data={"features": ["score", "colour"]},
        model={"kind": "xgboost", "params": {"nthread": 2}},
    )
    run = fit(content, tmp_path / "run")
    new = rows(50, ROWS, 4)
    before = predict(run.path, new)
    table.append(rows(100, ROWS, 9))
    table.build()
    assert predict(run.path, rows(50, ROWS + 100, 4)).height == before.height
    table.add(Expression(score=nw.col("x") * -2), replace=True)
    with pytest.raises(NotReadyError, match=r"'score'.*defined otherwise"):
        predict(run.path, rows(50, ROWS + 100, 4))
    table.add(Expression(score=nw.col("x") * 2), replace=True)
    assert predict(run.path, rows(50, ROWS + 100, 4)).height == before.height


def test_codes_stored_in_the_table_are_categories(tmp_path: Path) -> None:
    from featurestore import Categorify
    from training.stored_pipeline import load_pipeline

    path = tmp_path / "store"
    table = FeatureStore.create(path).ingest(
        "t", rows(ROWS, 0, 3), key="id", time="day", partition_bytes="40kB"
    )
    table.add(Categorify("colour", suffix="_code"), fit_on=(0, 2000))
    assert table.cardinalities("colour_code", "x") == {"colour_code": 5}
    content = configuration(
        path,
        tmp_path / "p",
        data={"features": ["x", "colour_code"]},
        model={"kind": "xgboost", "params": {"nthread": 2}},
    )
    run = fit(content, tmp_path / "run")
    schema = load_pipeline(run.path).model_schema
    assert [(one.name, str(one.role), one.cardinality) for one in schema.columns[:2]] == [
        ("x", "numeric", None),
        ("colour_code", "categorical", 5),
    ]
    assert predict(run.path, rows(50, ROWS, 4)).height == 50


def test_a_served_pipeline_sees_the_time_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore import Calendar, Categorify, Pipeline
    from training import source
    from training.stored_pipeline import load_pipeline

    pipeline = Pipeline(Categorify("colour"), Calendar(parts=("hour", "weekday")))
    monkeypatch.setattr(source, "pipeline_of", lambda *_, **__: pipeline)
    hours = pl.col("day").cast(pl.Int64) * 3_600_000_000
    at = hours.cast(pl.Datetime("us")).alias("day")
    new = rows(50, ROWS, 4).with_columns(at)
    path = tmp_path / "store"
    table = FeatureStore.create(path).ingest(
        "t", rows(ROWS, 0, 3).with_columns(at), key="id", time="day", partition_bytes="40kB"
    )
    content = configuration(
        path,
        tmp_path / "p",
        data={"features": ["x", "colour"]},
        split={"valid": "1970-03-20", "test": "1970-04-10"},
        model={"kind": "xgboost", "params": {"nthread": 2}},
    )
    run = fit(content, tmp_path / "run")
    bundle = RunBundle.load(run.path)
    assert bundle.features == ("x", "colour")
    assert bundle.columns == ("x", "colour", "day")

    dataset = table.dataset(
        features=["x", "colour"], label="late", split=run.config.split.split(),
        pipeline=pipeline,
    )  # fmt: skip
    trained = [dataset.test.arrays(i) for i in range(len(dataset.test.partition_rows))]
    held = table.read(["day", "x", "colour"]).filter(
        pl.col("day") >= pl.lit("1970-04-10").str.to_datetime(time_unit="us")
    )
    served = load_pipeline(run.path).apply(held.to_arrow())
    assert served.inputs["numeric"].shape == (len(held), 3)
    for name, values in served.inputs.items():
        expected = np.concatenate([np.asarray(one.inputs[name]) for one in trained])
        np.testing.assert_array_equal(np.asarray(values), expected)

    expected = bundle.predict(new)
    np.testing.assert_allclose(predict(run.path, new)["prediction"], expected, atol=1e-6)
    with pytest.raises(SchemaError, match=r"lack columns \['day'\]"):
        bundle.predict(new.drop("day"))


def test_a_misspelt_xgboost_parameter_is_refused(store: Path, tmp_path: Path) -> None:
    content = configuration(
        store,
        tmp_path / "packs",
        model={"kind": "xgboost", "params": {"nthread": 2, "maxdepth": 3}},
    )
    with pytest.raises(InvalidInputError, match="maxdepth"):
        fit(content, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_snapshot_of_a_run_reopens_what_it_was_trained_on(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "store")
    table = store.ingest("t", rows(600, 0, 0), key="id", time="day", partition_bytes="10kB")
    content = configuration(
        tmp_path / "store",
        tmp_path / "packs",
        split={"kind": "time", "valid": 400, "test": 500},
        model={"kind": "xgboost", "params": {"max_depth": 2, "nthread": 1}},
        train={"epochs": 2, "learning_rate": 0.3},
    )
    run = fit(content, tmp_path / "run")
    trained_on = table.read()
    table.replace(rows(50, 100, 7), (100, 150))
    table.delete(nw.col("x") > 1)
    table.append(rows(40, 600, 8))
    table.compact("1MiB")
    assert not store.diff(run.snapshot).is_empty
    old = FeatureStore.open(tmp_path / "store").checkout(run.snapshot)
    assert old.table("t").read().equals(trained_on)
    changed = store.diff(run.snapshot)["t"].rows
    now, then = set(table.read().rows()), set(trained_on.rows())
    assert (changed.added, changed.removed) == (len(now - then), len(then - now))
    del old
    store.tag("trained", int(run.snapshot.partition("-")[0]))
    store.gc(safety_age="0s", keep_versions=1)
    assert store.checkout(run.snapshot).table("t").read().equals(trained_on)
    store.untag("trained")
    gc.collect()  # datasets hold their version as long as they live
    store.gc(safety_age="0s", keep_versions=1)
    with pytest.raises(NotFoundError, match="gc"):
        store.checkout(run.snapshot)
