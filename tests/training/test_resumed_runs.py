"""Runs of Keras models that are stopped and go on, and the options of their training."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("tensorflow")
pytest.importorskip("xgboost")

import keras
import tensorflow as tf

from featurestore.errors import CorruptionError, InvalidInputError, NameTakenError
from featurestore.store import FeatureStore
from featurestore.testing.datasets import numbered_part
from training import Loader, Run, RunBundle, RunConfig, fit
from training.checkpoints import Checkpoints, write_state
from training.fitting import keras_fit, xgboost_model
from training.fitting.keras_model import FILE
from training.fitting.steps_per_execution import measured
from training.loading.pack_cache import list_packs
from training.models import tabular
from training.unfinished import Unfinished, different_keys

ROWS, EPOCHS = 900, 3

# TensorFlow's variables do not know NumPy 2's copy= yet; Keras converts them when it saves a model.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


class StoppedError(Exception):
    """A run was stopped by a test."""


def rows(count: int, start: int) -> pl.DataFrame:
    random = np.random.default_rng(start)
    x = random.normal(size=count)
    return pl.DataFrame(
        {
            "id": np.arange(count) % 7,
            "day": np.arange(start, start + count),
            "x": x,
            "late": x + random.normal(size=count) > 1,
            "delay": x,
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "store"
    FeatureStore.create(path).ingest("t", rows(ROWS, 0), key="id", time="day")
    return path


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packs")


def configuration(store: Path, packs: Path, **train: Any) -> RunConfig:
    return RunConfig.from_mapping(
        {
            "data": {"store": str(store), "table": "t", "features": ["x"], "label": "late"},
            "split": {"kind": "time", "valid": 600},
            "model": {"params": {"hidden": [4], "dropout": 0.2}},
            "train": {
                "epochs": EPOCHS,
                "batch_size": 64,
                "cache": str(packs),
                "checkpoint_steps": 2,
                **train,
            },
        }
    )


def weights(run: Run) -> list[Any]:
    model = keras.saving.load_model(run.path / FILE, compile=False)
    found: list[Any] = model.get_weights()
    return found


def same(one: Run, other: Run) -> bool:
    """Whether two runs have the same weights, bit for bit, and history."""
    history = [(run.path / "history.csv").read_text() for run in (one, other)]
    return history[0] == history[1] and all(
        (a == b).all() for a, b in zip(weights(one), weights(other), strict=True)
    )


def stopping(epoch: int) -> Any:
    """Return what breaks off a run as it says how an epoch went."""

    def say(line: str) -> None:
        if line.startswith(f"epoch {epoch} of"):
            raise StoppedError

    return say


@pytest.fixture(scope="module")
def undisturbed(store: Path, packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(configuration(store, packs), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def stopped(store: Path, packs: Path, tmp_path: Path) -> Path:
    """The output of a run that was stopped after its second epoch's last step."""
    with pytest.raises(StoppedError):
        fit(configuration(store, packs), tmp_path / "run", say=stopping(2))
    assert not (tmp_path / "run").exists()
    return tmp_path / "run"


def test_a_stopped_run_goes_on_where_it_was(
    stopped: Path, store: Path, packs: Path, undisturbed: Run
) -> None:
    config = configuration(store, packs, checkpoint_keep=5)  # may differ
    with pytest.raises(NameTakenError, match=r"(?s)begun and is not finished.*--resume"):
        fit(config, stopped)
    with pytest.raises(InvalidInputError, match=r"another configuration: \['train.seed'\]"):
        fit(configuration(store, packs, seed=1), stopped, resume=True)
    with pytest.raises(StoppedError):
        fit(config, stopped, resume=True, say=stopping(3))
    again = fit(config, stopped, resume=True)
    assert same(again, undisturbed)
    assert list(stopped.parent.iterdir()) == [stopped]
    # Once more it is what it was.
    assert fit(config, stopped, resume=True).metrics == again.metrics
    with pytest.raises(NameTakenError, match=r"\['train.seed'\] differ"):
        fit(configuration(store, packs, seed=1), stopped, resume=True)


def test_ctrl_c_saves_and_says_how_to_go_on(
    store: Path, packs: Path, undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configuration(store, packs, checkpoint_steps=0)

    def say(line: str) -> None:
        if line.startswith("epoch 2 of"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(config, say=say)
    (note,) = caught.value.__notes__
    found = Unfinished.newest(config, Path("runs"))
    assert found is not None
    assert note == f"It is saved; go on with --resume --output {found.target}"
    assert [one.name for one in found.checkpoints.iterdir()][-1:] == ["000002-000000000"] or (
        "000002-000000000" in {one.name for one in found.checkpoints.iterdir()}
    )
    assert Unfinished.newest(configuration(store, packs, seed=9), Path("runs")) is None
    # Without an output, the newest unfinished run of this configuration goes on.
    run = fit(config, resume=True)
    assert run.path == found.target
    assert same(run, undisturbed)


def test_a_run_goes_on_with_the_rows_it_began_with(
    packs: Path, undisturbed: Run, tmp_path: Path
) -> None:
    table = FeatureStore.create(tmp_path / "store").ingest("t", rows(ROWS, 0), key="id", time="day")
    config = configuration(tmp_path / "store", packs)
    with pytest.raises(StoppedError):
        fit(config, tmp_path / "run", say=stopping(2))
    table.append(rows(100, ROWS))
    again = fit(config, tmp_path / "run", resume=True)
    assert again.metrics["parts"]["valid"]["rows"] == ROWS - 600
    assert same(again, undisturbed)


def test_a_run_that_failed_early_leaves_nothing_and_begins_anew(
    store: Path, packs: Path, undisturbed: Run, tmp_path: Path
) -> None:
    config = configuration(store, packs, checkpoint_steps=0)
    with pytest.raises(StoppedError):
        fit(config, tmp_path / "run", say=stopping(1))
    assert list(tmp_path.iterdir()) == []
    # What a killed process left before its first checkpoint is in nobody's way.
    left = Unfinished.of(tmp_path / "run").path
    left.mkdir()
    (left / "config.json").write_text("{}")
    assert same(fit(config, tmp_path / "run"), undisturbed)


def test_fewer_epochs_than_are_done_end_the_run_with_those(
    stopped: Path, store: Path, packs: Path
) -> None:
    lines: list[str] = []
    run = fit(configuration(store, packs, epochs=1), stopped, resume=True, say=lines.append)
    assert lines == [
        "1 epochs and 8 steps are done already, more than epochs = 1: they are the run"
    ]
    assert run.metrics["epochs"] == 1


def test_a_damaged_working_folder_is_said(stopped: Path, store: Path, packs: Path) -> None:
    (Unfinished.of(stopped).path / "config.json").write_text("{")
    with pytest.raises(CorruptionError, match=r"(?s)config.json cannot be read.*delete"):
        fit(configuration(store, packs), stopped, resume=True)


def test_a_damaged_run_does_not_hide_another(
    stopped: Path, store: Path, packs: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run.RUNS", stopped.parent)
    other = stopped.parent / ".other.unfinished"
    other.mkdir()
    for content in ("{", "[]"):
        (other / "config.json").write_text(content)
        with pytest.warns(UserWarning, match=r"(?s)left alone.*other\.unfinished"):
            found = Unfinished.newest(configuration(store, packs), stopped.parent)
        assert found == Unfinished.of(stopped)
    (other / "config.json").unlink()
    assert same(fit(configuration(store, packs), resume=True), undisturbed)


def test_a_run_killed_when_all_but_the_tidying_was_done(
    stopped: Path, store: Path, packs: Path, undisturbed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Unfinished.of(stopped).path
    shutil.copytree(left, left.with_name("copy"))
    run = fit(configuration(store, packs), stopped, resume=True)
    assert not left.exists()
    monkeypatch.setattr("training.run.RUNS", stopped.parent)
    for output in (None, stopped):
        shutil.copytree(left.with_name("copy"), left)
        assert fit(configuration(store, packs), output, resume=True) == run
        assert not left.exists()
    assert same(run, undisturbed)
    assert "training_rows_per_second" not in run.metrics  # nobody knows what the first part took
    assert undisturbed.metrics["training_rows_per_second"] > 0


def test_a_run_goes_on_under_another_memory_limit(
    store: Path, packs: Path, tmp_path: Path, undisturbed: Run
) -> None:
    def limited(limit: str) -> RunConfig:
        content = configuration(store, packs).to_json()
        return RunConfig.from_mapping(
            {**content, "data": {**content["data"], "memory_limit": limit}}
        )

    with pytest.raises(StoppedError):
        fit(limited("3GiB"), tmp_path / "run", say=stopping(2))
    left = Unfinished.of(tmp_path / "run")
    left.note(window_blocks=7)  # as under a limit so small that fewer fit
    with pytest.raises(InvalidInputError, match="another shuffle"):
        fit(limited("4GiB"), tmp_path / "run", resume=True)
    left.note(window_blocks=64)
    assert same(fit(limited("4GiB"), tmp_path / "run", resume=True), undisturbed)


def test_a_network_that_blew_up_is_no_run(store: Path, packs: Path, tmp_path: Path) -> None:
    config = configuration(store, packs, epochs=1, learning_rate=1e30)
    with pytest.raises(InvalidInputError, match=r"(?s)loss.*learning_rate"):
        fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["flip", "empty", "digest"])
def test_a_damaged_round_is_not_believed(
    damage: str, store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = boosting(store, packs)
    with stopped_saving(5, monkeypatch), pytest.raises(StoppedError):
        fit(config, tmp_path / "run")
    newest = Checkpoints(Unfinished.of(tmp_path / "run").checkpoints).newest()
    assert newest is not None
    model = bytearray((newest / "model.ubj").read_bytes())
    if damage == "flip":
        model[len(model) // 2] ^= 1
        (newest / "model.ubj").write_bytes(model)
    elif damage == "empty":
        (newest / "model.ubj").write_bytes(b"")
    else:
        write_state(newest, {"history": []})
    with pytest.raises(CorruptionError, match=r"(?s)cannot be read.*delete that folder"):
        fit(config, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_early_stopping_is_the_same_over_restarts(store: Path, packs: Path, tmp_path: Path) -> None:
    config = configuration(
        store, packs, epochs=30, early_stopping=2, learning_rate=0.5, checkpoint_steps=0
    )
    whole = fit(config, tmp_path / "whole")
    count = whole.metrics["epochs"]
    assert count < 30
    with pytest.raises(StoppedError):
        fit(config, tmp_path / "cut", say=stopping(count))
    assert same(fit(config, tmp_path / "cut", resume=True), whole)


def test_keys_that_an_older_run_lacks_have_their_defaults(store: Path, packs: Path) -> None:
    now = configuration(store, packs).to_json()
    before = {name: dict(section) for name, section in now.items() if name != "loader"}
    del before["train"]["steps_per_execution"]
    assert different_keys(before, now) == []
    fewer = {**now, "loader": {**now["loader"], "dtype": "float16", "hold": "memory"}}
    assert different_keys(before, fewer) == ["loader.dtype"]


@pytest.mark.parametrize(
    ("loader", "drawn"),
    [
        ({"sample": {"kind": "balanced", "rows": 300}, "hold": "memory", "dtype": "float16"}, 300),
        ({"pack": False}, 600),
    ],
)
def test_runs_go_on_wherever_their_rows_come_from(
    loader: dict[str, Any], drawn: int, store: Path, tmp_path: Path
) -> None:
    content = configuration(store, tmp_path / "packs", epochs=2).to_json()
    config = RunConfig.from_mapping({**content, "loader": loader})
    whole = fit(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        fit(config, tmp_path / "cut", say=stopping(2))
    with pytest.raises(InvalidInputError, match=r"\['loader\.[^]]*\] differ"):
        fit(RunConfig.from_mapping(content), tmp_path / "cut", resume=True)
    assert same(fit(config, tmp_path / "cut", resume=True), whole)
    assert list(list_packs(tmp_path / "packs")) == []
    metrics = whole.metrics
    assert metrics["training_rows_per_second"] * metrics["training_seconds"] == pytest.approx(
        2 * drawn
    )
    # What is judged is every row once, drawn or not.
    assert {name: one["rows"] for name, one in metrics["parts"].items()} == {
        "train": 600,
        "valid": 300,
    }
    model = keras.saving.load_model(whole.path / FILE, compile=False)
    assert model.inputs[0].dtype == loader.get("dtype", "float32")


def test_different_keys_are_named() -> None:
    one = {"data": {"table": "a", "memory_limit": 1}, "train": {"seed": 1, "epochs": 2}}
    other = {"data": {"table": "b"}, "train": {"seed": 1, "epochs": 3}, "split": {"valid": 1}}
    assert different_keys(one, other) == ["data.table", "split.valid"]


# --- XGBoost ---------------------------------------------------------------------------------------------


def boosting(store: Path, packs: Path, **train: Any) -> RunConfig:
    content = configuration(
        store, packs, **{"epochs": 12, "checkpoint_steps": 1, **train}
    ).to_json()
    model = {
        "kind": "xgboost",
        "params": {"max_depth": 3, "nthread": 1, "eval_metric": ["auc", "logloss"]},
    }
    return RunConfig.from_mapping({**content, "model": model})


def files(run: Run) -> list[bytes]:
    return [(run.path / name).read_bytes() for name in ("model.ubj", "history.csv")]


@contextmanager
def stopped_saving(after: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Break off while the checkpoint after so many rounds is written."""

    def fill(self: Any, booster: Any, folder: Path) -> None:
        if len(self.history) == after:
            raise StoppedError
        plain(self, booster, folder)

    plain = xgboost_model._Rounds._fill
    with monkeypatch.context() as patch:
        patch.setattr(xgboost_model._Rounds, "_fill", fill)
        yield


@pytest.mark.parametrize("stop", [2, 7, 12])
def test_boosting_goes_on_at_the_next_round(
    stop: int, store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = boosting(store, packs)
    whole = fit(boosting(store, packs, checkpoint_steps=0), tmp_path / "whole")
    with stopped_saving(stop, monkeypatch), pytest.raises(StoppedError):
        fit(config, tmp_path / "cut")
    assert files(fit(config, tmp_path / "cut", resume=True)) == files(whole)


def test_fewer_rounds_than_are_done_end_the_run_with_those(
    store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_saving(6, monkeypatch), pytest.raises(StoppedError):
        fit(boosting(store, packs), tmp_path / "cut")
    lines: list[str] = []
    run = fit(boosting(store, packs, epochs=3), tmp_path / "cut", resume=True, say=lines.append)
    assert lines == ["5 rounds are done already, more than epochs = 3: they are the run"]
    assert run.metrics["epochs"] == 5
    assert files(run) == files(fit(boosting(store, packs, epochs=5), tmp_path / "whole"))


def test_boosting_from_held_rows_of_half_precision(
    store: Path, packs: Path, tmp_path: Path
) -> None:
    content = boosting(store, packs, epochs=3).to_json()
    halves = RunConfig.from_mapping({**content, "loader": {"dtype": "float16"}})
    held = RunConfig.from_mapping({**content, "loader": {"dtype": "float16", "hold": "memory"}})
    runs = [fit(one, tmp_path / name) for name, one in (("halves", halves), ("held", held))]
    assert files(runs[0]) == files(runs[1])
    bundle = RunBundle.load(runs[0].path)
    with pytest.raises(InvalidInputError, match="float16 nothing beyond 65504"):
        bundle.predict(pl.DataFrame({"x": [1e9]}))
    # Rows between which float16 does not tell are the same to the model.
    near = bundle.predict(pl.DataFrame({"x": [0.1, 0.1 + 1e-6]}))
    assert near[0] == near[1]


@pytest.mark.parametrize("bins", [1, "many", 2.5, True])
def test_bins_that_are_none_are_refused(
    bins: Any, store: Path, packs: Path, tmp_path: Path
) -> None:
    content = boosting(store, packs).to_json()
    model = {"kind": "xgboost", "params": {"max_bin": bins}}
    with pytest.raises(InvalidInputError, match=r"(?s)\[model.params\] max_bin = .*from 2 on"):
        fit({**content, "model": model}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_boosting_stops_early_over_restarts(
    store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = boosting(store, packs, epochs=200, early_stopping=3, learning_rate=0.9)
    whole = fit(config, tmp_path / "whole")
    rounds = whole.metrics["epochs"]
    assert rounds < 200
    with stopped_saving(rounds, monkeypatch), pytest.raises(StoppedError):
        fit(config, tmp_path / "cut")
    assert files(fit(config, tmp_path / "cut", resume=True)) == files(whole)
    losses = pl.read_csv(whole.path / "history.csv")["val_loss"]
    booster = xgboost_model.xgboost.Booster(model_file=str(whole.path / "model.ubj"))
    assert losses.arg_min() == booster.num_boosted_rounds() - 1 == rounds - 4


def test_ctrl_c_saves_the_round_under_way(
    store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = boosting(store, packs, checkpoint_steps=0)
    monkeypatch.setattr(xgboost_model, "_EVERY_SECONDS", -1.0)

    def say(line: str) -> None:
        if line.startswith("round 5 of 12, loss 0."):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(config, tmp_path / "cut", say=say)
    assert "--resume" in caught.value.__notes__[0]
    (saved,) = Unfinished.of(tmp_path / "cut").checkpoints.iterdir()
    assert saved.name == "000005-000000000"
    whole = fit(config, tmp_path / "whole")
    (saved / "model.ubj").write_bytes(b"{")
    with pytest.raises(CorruptionError, match="delete that folder"):
        fit(config, tmp_path / "cut", resume=True)
    (saved / "model.ubj").unlink()
    (saved / "state.json").unlink()
    saved.rmdir()
    assert files(fit(config, tmp_path / "cut", resume=True)) == files(whole)


# --- options ---------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Return what TensorBoard would show."""
    found: dict[tuple[str, int], float] = {}
    for file in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                assert value.metadata.plugin_data.plugin_name == "scalars"
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    return found


def test_all_options_together(store: Path, packs: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = configuration(
        store,
        packs,
        class_weight="balanced",
        mixed_precision="bfloat16",
        steps_per_execution="auto",
        tensorboard=str(tmp_path / "logs"),
        epochs=2,
    )
    run = fit(config, tmp_path / "run", say=lines.append)
    model = keras.saving.load_model(run.path / FILE, compile=False)
    assert {
        one.dtype_policy.name for one in model.layers if isinstance(one, keras.layers.Dense)
    } == {
        "mixed_bfloat16",
        "float32",
    }
    assert keras.config.dtype_policy().name == "float32"
    logged = scalars(tmp_path / "logs")
    assert set(logged) == {(name, epoch) for name in ("loss", "val_loss") for epoch in (0, 1)}
    history = pl.read_csv(run.path / "history.csv")
    assert history["loss"].to_list() == pytest.approx([logged["loss", 0], logged["loss", 1]])
    assert len(lines) == 2
    assert re.fullmatch(
        r"epoch 2 of 2, loss \d\.\d{4}, val_loss \d\.\d{4}; [\d,]+ rows/s, \d+% waiting for data, "
        r"[\d.]+ [KMG]iB held",
        lines[1],
    )


def test_class_weights_balance_classes(store: Path, packs: Path, tmp_path: Path) -> None:
    part = numbered_part(300)
    loader = Loader(part, 64, cache=tmp_path)
    label = loader.pack.read(0, 300).label
    assert label is not None
    balanced = keras_fit._class_weight(
        configuration(store, packs, class_weight="balanced"), "binary", loader
    )
    assert balanced is not None
    assert balanced[0] * (label == 0).sum() == pytest.approx(balanced[1] * (label == 1).sum())
    assert sum(balanced[int(one)] for one in label) == pytest.approx(300)
    given = configuration(store, packs, class_weight={"1": 4})
    assert keras_fit._class_weight(given, "binary", loader) == {1: 4.0}
    with pytest.raises(InvalidInputError, match="the task is regression"):
        keras_fit._class_weight(given, "regression", loader)


def test_steps_per_execution_are_measured_without_moving_the_loader(tmp_path: Path) -> None:
    built: list[int] = []

    def build(steps: int) -> Any:
        built.append(steps)
        model = tabular(loader.schema, hidden=(4,))
        model.compile("sgd", "binary_crossentropy", steps_per_execution=steps)
        return model

    loader = Loader(numbered_part(300), 32, shuffle=True, cache=tmp_path)
    found = measured(build, loader.keras())
    assert found in built
    assert built[0] == 1
    assert max(built) <= 4  # an epoch has 10 steps
    assert (
        loader.state_dict()
        == Loader(numbered_part(300), 32, shuffle=True, cache=tmp_path).state_dict()
    )


def test_the_measured_steps_stay_over_restarts(
    store: Path, packs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(store, packs, steps_per_execution="auto")
    monkeypatch.setattr(keras_fit, "measured", lambda *_: 2)
    with pytest.raises(StoppedError):
        fit(config, tmp_path / "run", say=stopping(2))
    assert (
        json.loads((Unfinished.of(tmp_path / "run").path / "begun.json").read_text())[
            "steps_per_execution"
        ]
        == 2
    )
    monkeypatch.setattr(keras_fit, "measured", lambda *_: pytest.fail("measured again"))
    assert fit(config, tmp_path / "run", resume=True).metrics["epochs"] == EPOCHS
