"""Training a Keras model for a run: built, compiled, fitted with checkpoints, and gone on with.

Always true: the same configuration and data give the same weights on a CPU, stopped and resumed or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.arguments import shown
from featurestore.dataset.batch import NUMERIC, Batch, DatasetSchema
from featurestore.errors import InvalidInputError
from featurestore.execution.events import FRAMEWORK, step
from training.config import RunConfig
from training.fitting.progress import Progress
from training.fitting.steps_per_execution import measured
from training.hooks.checkpoint import Checkpoint
from training.hooks.early_stopping import StopEarly
from training.hooks.keras import KerasBatches, keras
from training.models import loss_of, tabular
from training.source import import_object
from training.unfinished import Unfinished

if TYPE_CHECKING:
    from training.loading.loader import Loader


def trained(
    config: RunConfig,
    task: str,
    train: Loader,
    valid: Loader,
    work: Unfinished,
    say: Callable[[str], None] | None,
) -> tuple[Any, list[dict[str, float]]]:
    """Return the trained model and one line of history per epoch; see ``KerasModel.fit``."""
    settings = config.train
    kind = _FiniteBatches if config.model.kind == "tabular" else KerasBatches
    batches = kind(train, _class_weight(config, task, train))
    with step("build model", 1, kind=FRAMEWORK):
        steps_per_execution = _steps_per_execution(config, task, batches, work)
        model = compiled(config, task, train.schema, steps_per_execution)
    checkpoint = Checkpoint(
        work.checkpoints,
        batches,
        every_steps=settings.checkpoint_steps or None,
        keep=settings.checkpoint_keep,
        best="val_loss" if settings.early_stopping else None,
    )
    early = StopEarly(checkpoint, "val_loss", settings.early_stopping)
    epoch = checkpoint.restore(model)
    done = train.position.start
    if done > (settings.epochs, 0) and say is not None:
        say(
            f"{done[0]} epochs and {done[1]} steps are done already, more than epochs = "
            f"{settings.epochs}: they are the run"
        )
    if epoch < settings.epochs and not early.stopped:
        validation = valid.keras()
        with (
            step("train (steps)", settings.epochs * len(train), kind=FRAMEWORK) as advance,
            checkpoint.saving_on_interrupt(),
            batches.surfacing_errors(),
            validation.surfacing_errors(),
        ):
            model.fit(
                batches,
                validation_data=validation,
                initial_epoch=epoch,
                epochs=settings.epochs,
                callbacks=[
                    _StopOnNaN(train),
                    early,
                    *_tensorboard(config),
                    Progress(batches, settings.epochs, advance, say),
                    checkpoint,
                ],
                verbose=0,
            )
    if settings.early_stopping:
        checkpoint.restore_best(model)
    return model, [
        {"epoch": float(number), **logs} for number, logs in enumerate(checkpoint.history)
    ]


def compiled(config: RunConfig, task: str, schema: DatasetSchema, steps: int = 1) -> Any:
    """Return the configured model as it is before training, the same each time."""
    settings = config.train
    keras.utils.set_random_seed(settings.seed % 2**32)
    with _precision(settings.mixed_precision):
        model = _build(config, task, schema)
        if not getattr(model, "compiled", False):
            model.compile(
                optimizer=keras.optimizers.Adam(settings.learning_rate or 1e-3),
                loss=loss_of(task),
            )
        model.steps_per_execution = steps
    return model


@contextmanager
def _precision(name: str | None) -> Iterator[None]:
    """Let layers made inside the block compute in half precision, their weights in float32."""
    if name is None:
        yield
        return
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(f"mixed_{name}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _steps_per_execution(
    config: RunConfig, task: str, batches: KerasBatches, work: Unfinished
) -> int:
    """Return the configured number, or the measured one, with which a run then goes on."""
    asked = config.train.steps_per_execution
    if isinstance(asked, int):
        return asked
    known = work.begun().get("steps_per_execution")
    if known is None:
        schema = batches.loader.schema
        known = measured(lambda steps: compiled(config, task, schema, steps), batches)
        work.note(steps_per_execution=known)
    return int(known)


def _class_weight(config: RunConfig, task: str, loader: Loader) -> dict[int, float] | None:
    """Return the weight of each class: as configured, or such that all classes weigh the same."""
    asked = config.train.class_weight
    if asked is not None and task == "regression":
        raise InvalidInputError(
            f"[train] class_weight = {asked!r} weighs classes, and the task is regression",
            "leave it out, or set task in [model]",
        )
    if asked is None or not isinstance(asked, str):
        return None if asked is None else {int(key): float(v) for key, v in asked.items()}
    counts: dict[int, int] = {}
    for partition in range(len(loader.part.partition_rows)):
        label = loader.part.numbers(partition, config.data.label)
        for one, count in zip(*np.unique(label, return_counts=True), strict=True):
            counts[int(one)] = counts.get(int(one), 0) + int(count)
    return {one: loader.rows / (len(counts) * count) for one, count in counts.items()}


def _tensorboard(config: RunConfig) -> list[Any]:
    if config.train.tensorboard is None:
        return []
    from training.hooks.tensorboard import TensorBoard

    return [TensorBoard(config.train.tensorboard)]


def _build(config: RunConfig, task: str, schema: DatasetSchema) -> Any:
    chosen = config.model
    params: dict[str, Any] = {
        key: list(v) if isinstance(v, tuple) else v for key, v in chosen.params.items()
    }
    try:
        if chosen.kind == "tabular":
            params.setdefault("seed", config.train.seed % 2**31)
            return tabular(schema, task, classes=chosen.classes, **params)
        model = import_object(chosen.kind)(schema, task, **params)
    except TypeError as error:
        raise InvalidInputError(
            f"model {chosen.kind!r} does not take params {sorted(params)}: {error}",
            "see training.models.tabular for the built-in model's parameters; a function of your "
            "own is called with (schema, task, **params)",
        ) from error
    if not isinstance(model, keras.Model):
        raise InvalidInputError(
            f"[model] kind = {chosen.kind!r} returned {shown(model)}, which is no Keras model",
            "let the function return a keras.Model, compiled or not",
        )
    return model


class _StopOnNaN(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training at the first epoch whose loss is not a number, and says which column it was."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self._loader = loader

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        losses = [(logs or {}).get(name, 0.0) for name in ("loss", "val_loss")]
        if all(map(math.isfinite, losses)):
            return
        steps = range(len(self._loader))
        columns = _not_finite(self._loader, (self._loader.batch(one, epoch) for one in steps))
        raise InvalidInputError(
            f"the loss of epoch {epoch} is {losses[0]}, that of validation {losses[1]}"
            + (f"; columns {columns} hold NaN or infinity after the pipeline" if columns else ""),
            "set impute = true, and clip or drop infinite values"
            if columns
            else "lower learning_rate, or scale the label",
        )


class _FiniteBatches(KerasBatches):
    """Batches of which the first epoch's are looked at: some losses clip NaN to a number and go on.

    In the epoch itself, not in a pass before it, which would read all rows before training begins.
    """

    def __init__(self, loader: Loader, class_weight: dict[int, float] | None) -> None:
        super().__init__(loader, class_weight)
        self._first = loader.epoch

    def element(self, batch: Batch) -> Any:
        if self.loader.epoch == self._first:
            columns = _not_finite(self.loader, [batch])
            if columns:
                raise InvalidInputError(
                    f"columns {columns} hold NaN or infinity after the pipeline, which the built-in "
                    "network cannot learn from",
                    "set impute = true, clip or drop infinite values, or use kind = 'xgboost'",
                )
        return super().element(batch)


def _not_finite(loader: Loader, batches: Iterable[Batch]) -> list[str]:
    """Return the numeric columns in which some row holds NaN or an infinity."""
    names = loader.schema.numeric
    bad = np.zeros(len(names), dtype=bool)
    for one in batches:
        values = one.inputs.get(NUMERIC)
        if values is None:
            continue
        with np.errstate(all="ignore"):
            total = values.sum()
        if not np.isfinite(total):
            bad |= ~np.isfinite(values).all(axis=0)
    return [name for name, is_bad in zip(names, bad, strict=True) if is_bad]
