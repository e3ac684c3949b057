"""Checkpoints of Keras: stopped anywhere, training gives what undisturbed training gives."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow")

import keras

from featurestore.errors import CorruptionError, DiskFullError, FormatError, InvalidInputError
from featurestore.testing.datasets import numbered_part
from training.checkpoints import Checkpoints, read_state, write_state
from training.history import best_epoch
from training.hooks.checkpoint import BEST, Checkpoint
from training.hooks.early_stopping import StopEarly
from training.hooks.keras_state import REST, WEIGHTS
from training.models import tabular

sys.path.insert(0, str(Path(__file__).parent))

from checkpointed_training import compiled, loaders, state

SCRIPT = Path(__file__).with_name("checkpointed_training.py")
EPOCHS, ROWS = 3, 90  # 3 steps an epoch

# TensorFlow's variables do not know NumPy 2's copy= yet; Keras converts them when it saves a model.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


class StoppedError(Exception):
    """Training was stopped by a test."""


class Stop(keras.callbacks.Callback):  # type: ignore[misc]
    """Breaks off after so many calls of a hook."""

    def __init__(self, after: int, hook: str = "on_train_batch_end") -> None:
        super().__init__()
        self._left = after
        setattr(self, hook, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise StoppedError


@functools.cache
def kept_model(steps_per_execution: int) -> tuple[Any, list[Any]]:
    """Return a model that has been trained, so that it is compiled, and how it was before."""
    model = compiled(steps_per_execution)
    model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    return model, [(one, one.numpy().copy()) for one in variables]


class Training:
    """One process' part of a training: new loaders and callback on the same folder, and a model as new.

    What a model was trained on before is not to be seen after a restart either.
    """

    def __init__(self, folder: Path, steps_per_execution: int = 1, **options: Any) -> None:
        self.train, self.valid = loaders(folder / "packs", ROWS)
        self.model, initial = kept_model(steps_per_execution)
        for variable, value in initial:
            variable.assign(value)
        self.batches = self.train.keras()
        options = {"every_steps": 2, "best": "val_loss", **options}
        self.checkpoint = Checkpoint(folder / "checkpoints", self.batches, **options)

    def run(self, *callbacks: Any, epochs: int = EPOCHS) -> Training:
        self.model.fit(
            self.batches,
            epochs=epochs,
            initial_epoch=self.checkpoint.restore(self.model),
            validation_data=self.valid.keras(),
            callbacks=[*callbacks, self.checkpoint],
            verbose=0,
        )
        return self

    def result(self) -> Any:
        return state(self.model), json.dumps(self.checkpoint.history)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a new model gives."""
    training = Training(tmp_path_factory.mktemp("undisturbed"))
    training.model = compiled()
    return training.run().result()


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_stopped_after_any_step_it_goes_on_at_the_next(
    stop: int, undisturbed: Any, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        Training(tmp_path, every_steps=1).run(Stop(stop))
    assert Training(tmp_path).run().result() == undisturbed


def test_stopped_after_every_step(undisturbed: Any, tmp_path: Path) -> None:
    for _ in range(3 * EPOCHS - 1):
        with pytest.raises(StoppedError):
            Training(tmp_path, every_steps=1).run(Stop(2))
    assert Training(tmp_path).run().result() == undisturbed


@pytest.mark.parametrize("hook", ["on_test_batch_end", "on_epoch_end", "on_epoch_begin"])
def test_stopped_between_epochs_an_epoch_ends_as_a_whole(
    hook: str, undisturbed: Any, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        Training(tmp_path).run(Stop(2, hook))
    assert Training(tmp_path).run().result() == undisturbed


@pytest.mark.parametrize("stop", [1, 3])
def test_several_steps_per_execution(stop: int, tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole", 2).run().result()
    with pytest.raises(StoppedError):
        Training(tmp_path / "cut", 2, every_steps=1).run(Stop(stop))
    assert Training(tmp_path / "cut", 2).run().result() == whole


def test_a_training_that_ended_is_not_trained_further(undisturbed: Any, tmp_path: Path) -> None:
    Training(tmp_path, every_steps=None, keep=1).run(epochs=2)
    again = Training(tmp_path).run(epochs=2)
    assert [one["loss"] for one in again.checkpoint.history] == [
        one["loss"] for one in json.loads(undisturbed[1])[:2]
    ]
    assert Training(tmp_path).run().result() == undisturbed


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    training = Training(tmp_path, keep=2).run()
    names = [one.name for one in training.checkpoint.checkpoints.all()]
    assert names == ["000002-000000002", "000003-000000000"]
    files = {one.name for one in training.checkpoint.checkpoints.all()[-1].iterdir()}
    assert files == {WEIGHTS, REST, BEST, "state.json"}
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_best_weights_survive_restarts(tmp_path: Path) -> None:
    class Worse(keras.callbacks.Callback):  # type: ignore[misc]
        """Makes epoch 1 the best."""

        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            logs["val_loss"] = [1.0, 0.5, 0.7][epoch]
            if epoch == 1:
                best.append([one.copy() for one in self.model.get_weights()])

    best: list[Any] = []
    with pytest.raises(StoppedError):
        Training(tmp_path, every_steps=1).run(Worse(), Stop(8))
    training = Training(tmp_path)
    training.run(Worse())
    training.checkpoint.restore_best(training.model)
    assert all((a == b).all() for a, b in zip(training.model.get_weights(), best[0], strict=True))


@pytest.mark.parametrize("stop", [None, 8])
def test_stopping_early_counts_on_over_restarts(stop: int | None, tmp_path: Path) -> None:
    class Losses(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any) -> None:
            logs["val_loss"] = [1.0, 0.5, 0.7, 0.6, 0.4, 0.3][epoch]

    def part() -> tuple[Training, StopEarly]:
        training = Training(tmp_path, every_steps=1)
        return training, StopEarly(training.checkpoint, "val_loss", 2)

    if stop is not None:
        training, early = part()
        with pytest.raises(StoppedError):
            training.run(Losses(), early, Stop(stop), epochs=6)
    training, early = part()
    training.run(Losses(), early, epochs=6)
    assert len(training.checkpoint.history) == 4
    assert early.stopped
    assert best_epoch(training.checkpoint.history, "val_loss") == 1


def test_an_interrupt_saves_after_the_step_under_way(undisturbed: Any, tmp_path: Path) -> None:
    class Interrupt(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self, hook: str) -> None:
            super().__init__()
            setattr(self, hook, self._send)

        def _send(self, batch: int, logs: Any = None) -> None:
            if batch == 2 or logs is None or "val_loss" not in logs:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    for hook, expected in [
        ("on_train_batch_begin", "000000-000000001"),
        ("on_test_batch_begin", "000001-000000000"),
    ]:
        training = Training(tmp_path, every_steps=None)
        with pytest.raises(KeyboardInterrupt), training.checkpoint.saving_on_interrupt():
            training.run(Interrupt(hook))
        assert training.checkpoint.checkpoints.newest() == tmp_path / "checkpoints" / expected
        assert signal.getsignal(signal.SIGINT) is before
    assert Training(tmp_path).run().result() == undisturbed


# --- what is refused -----------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    with pytest.raises(StoppedError):
        Training(tmp_path).run(Stop(3))
    return tmp_path


def test_checkpoints_of_another_training_are_not_overwritten(stopped: Path) -> None:
    training = Training(stopped)
    with pytest.raises(InvalidInputError, match=r"(?s)another training.*restore\(model\)"):
        training.model.fit(training.batches, callbacks=[training.checkpoint], verbose=0)
    training = Training(stopped, every_steps=None)
    assert training.run(epochs=1).checkpoint.restore(training.model) == 1
    with pytest.raises(InvalidInputError, match="fit begins with epoch 0"):
        training.model.fit(training.batches, callbacks=[training.checkpoint], verbose=0)


def test_other_models_data_and_batches_are_refused(stopped: Path) -> None:
    training = Training(stopped)
    other = tabular(numbered_part(1).schema, hidden=(9,), seed=4)
    other.compile("adam", "binary_crossentropy", metrics=["accuracy", "auc"])
    with pytest.raises(InvalidInputError, match="of another model"):
        training.checkpoint.restore(other)
    batches = loaders(stopped / "packs", 80)[0].keras()
    with pytest.raises(InvalidInputError, match="other data"):
        Checkpoint(stopped / "checkpoints", batches).restore(compiled())
    training = Training(stopped / "new")
    with pytest.raises(InvalidInputError, match="epochs of 2 steps, the loader of 3"):
        training.model.fit(
            training.batches, steps_per_epoch=2, callbacks=[training.checkpoint], verbose=0
        )
    with pytest.raises(InvalidInputError, match="did not move"):
        training.model.fit(
            loaders(stopped / "packs", ROWS)[0].keras(), callbacks=[training.checkpoint], verbose=0
        )


@pytest.mark.parametrize("name", [WEIGHTS, REST, "state.json"])
def test_a_damaged_checkpoint_is_not_believed(name: str, stopped: Path) -> None:
    newest = Checkpoints(stopped / "checkpoints").newest()
    assert newest is not None
    whole = (newest / name).read_bytes()
    for changed in (b"", whole[: len(whole) // 2], None):
        if changed is None:
            (newest / name).unlink()
        else:
            (newest / name).write_bytes(changed)
        with pytest.raises(CorruptionError, match=r"(?s)cannot be read.*delete that folder"):
            Training(stopped).checkpoint.restore(compiled())


def test_numbers_that_were_altered_are_noticed(stopped: Path) -> None:
    newest = Checkpoints(stopped / "checkpoints").newest()
    assert newest is not None
    other = compiled()
    loader, _ = loaders(stopped / "packs", ROWS)
    other.fit(loader.keras(), verbose=0)
    other.save_weights(newest / WEIGHTS)
    with pytest.raises(CorruptionError, match="digest"):
        Training(stopped).checkpoint.restore(compiled())


@pytest.mark.parametrize(
    "change", [{"epoch": 99}, {"epoch": -1}, {"epoch": "a"}, {"history": None}, {"loader": 3}]
)
def test_a_state_of_strange_values_is_not_believed(change: dict[str, Any], stopped: Path) -> None:
    newest = Checkpoints(stopped / "checkpoints").newest()
    assert newest is not None
    whole = read_state(newest)
    write_state(newest, {**whole, **change})
    with pytest.raises(CorruptionError, match="cannot be read"):
        Training(stopped).checkpoint.restore(compiled())
    write_state(newest, {name: value for name, value in whole.items() if name not in change})
    with pytest.raises(CorruptionError, match="cannot be read"):
        Training(stopped).checkpoint.restore(compiled())


def test_a_metric_that_is_not_logged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"(?s)best='val_los'.*val_loss"):
        Training(tmp_path, best="val_los").run()
    training = Training(tmp_path / "other", best=None).run(epochs=1)
    with pytest.raises(InvalidInputError, match="keeps no best weights"):
        training.checkpoint.restore_best(training.model)


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        "training.hooks.keras_state.shutil.disk_usage", lambda _: usage._replace(free=10_000)
    )
    with pytest.raises(DiskFullError, match=r"(?s)checkpoint.*make room"):
        Training(tmp_path).run()
    assert Checkpoints(tmp_path / "checkpoints").newest() is None


def test_newer_formats_are_refused(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path).save(0, 1, lambda folder: write_state(folder, {"version": 2}))
    with pytest.raises(FormatError, match="version 2"):
        read_state(saved)


def test_options_are_checked(tmp_path: Path) -> None:
    batches = loaders(tmp_path)[0].keras()
    with pytest.raises(InvalidInputError, match="every_steps=0"):
        Checkpoint(tmp_path, batches, every_steps=0)
    with pytest.raises(InvalidInputError, match="keep=0"):
        Checkpoint(tmp_path, batches, keep=0)


def test_what_was_begun_and_not_finished_is_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for name in (".building-1", ".removing-000000-000000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert checkpoints.newest() is None
    saved = checkpoints.save(0, 2, lambda folder: write_state(folder, {}))
    assert list(tmp_path.iterdir()) == [saved]
    with pytest.raises(StoppedError):
        checkpoints.save(0, 3, lambda _: (_ for _ in ()).throw(StoppedError))
    assert list(tmp_path.iterdir()) == [saved]


# --- killed processes ------------------------------------------------------------------------------------


def start(folder: Path, epochs: int, steps_per_execution: int, backend: str) -> Any:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(epochs), str(steps_per_execution)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def finish(process: Any) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def killed_training(
    folder: Path, kills: int, steps_per_execution: int, backend: str, epochs: int
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chosen = random.Random(seed)
    whole, cut = folder / "whole", folder / "cut"
    # A process of its own: sums in this one may be rounded otherwise, by what earlier tests set up.
    finish(start(whole, epochs, steps_per_execution, backend))
    for _ in range(kills):
        process = start(cut, epochs, steps_per_execution, backend)
        for _ in range(chosen.randint(1, 25)):
            if not process.stdout.readline():
                break
        time.sleep(chosen.random() * 0.05)
        process.kill()
        process.communicate()
    finish(start(cut, epochs, steps_per_execution, backend))
    assert (cut / "result.json").read_text() == (whole / "result.json").read_text()


def test_a_killed_training_gives_the_same_weights(tmp_path: Path) -> None:
    killed_training(tmp_path, 1, 1, "tensorflow", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "steps_per_execution"),
    [("tensorflow", 1), ("tensorflow", 4), ("jax", 1), ("jax", 4), ("torch", 1)],
)
def test_a_training_killed_many_times(
    backend: str, steps_per_execution: int, tmp_path: Path
) -> None:
    pytest.importorskip(backend)
    killed_training(tmp_path, 12, steps_per_execution, backend, 12)
