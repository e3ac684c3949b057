"""Training, saving and loading a Keras model for a run.

Loading is Keras' safe mode: a saved model that holds code (a Lambda layer) is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featurestore.dataset.batch import NUMERIC, Batch, DatasetSchema, HostArray
from featurestore.errors import CorruptionError, InvalidInputError
from featurestore.execution.events import FRAMEWORK, step
from training.config import RunConfig
from training.hooks.keras import keras
from training.hooks.tf_data import compiled
from training.models import loss_of, tabular
from training.source import import_object

if TYPE_CHECKING:
    from training.loading.loader import Loader

FILE: Final = "model.keras"


class KerasModel:
    """A Keras model with the history of its training."""

    file = FILE

    def __init__(
        self, model: Any, schema: DatasetSchema, history: Sequence[dict[str, float]] = ()
    ) -> None:
        self.model = model
        self._predict = compiled(lambda inputs: model(inputs, training=False), schema)
        self.history = list(history)

    @classmethod
    def fit(cls, config: RunConfig, task: str, train: Loader, valid: Loader) -> KerasModel:
        """Build and train the configured model; equal configurations and data give equal weights
        on a CPU.

        Raises
        ------
        InvalidInputError
            If the model cannot be built from these parameters, or its loss is not a number.
        """
        settings = config.train
        if config.model.kind == "tabular":
            _require_finite(train)
        keras.utils.set_random_seed(settings.seed % 2**32)
        with step("build model", 1, kind=FRAMEWORK):
            model = _build(config, task, train.schema)
            if not getattr(model, "compiled", False):
                model.compile(
                    optimizer=keras.optimizers.Adam(settings.learning_rate or 1e-3),
                    loss=loss_of(task),
                )
        callbacks: list[Any] = [_StopOnNaN(train)]
        if settings.early_stopping:
            callbacks.append(
                keras.callbacks.EarlyStopping(
                    monitor="val_loss",
                    patience=settings.early_stopping,
                    restore_best_weights=True,
                )
            )
        with step("train (steps)", settings.epochs * len(train), kind=FRAMEWORK) as advance:
            callbacks.append(_Progress(advance))
            fitted = model.fit(
                train.keras(),
                validation_data=valid.keras(),
                epochs=settings.epochs,
                callbacks=callbacks,
                verbose=0,
            )
        columns = fitted.history
        history = [
            {
                "epoch": float(epoch),
                **{name: float(values[epoch]) for name, values in columns.items()},
            }
            for epoch in range(len(columns["loss"]))
        ]
        return cls(model, train.schema, history)

    def predict(self, batches: Iterable[Batch]) -> HostArray:
        """Return predictions for batches in their order: ``[rows]``, or ``[rows, classes]``."""
        found = [self._predict(dict(one.inputs)).numpy() for one in batches if one.rows]
        if not found:
            return np.empty(0, dtype=np.float32)
        values: HostArray = np.concatenate(found)
        return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values

    def save(self, folder: Path) -> None:
        self.model.save(folder / FILE)

    @classmethod
    def load(cls, folder: Path, schema: DatasetSchema) -> KerasModel:
        """Load a saved model without running code from it.

        Raises
        ------
        CorruptionError
            If it cannot be loaded, or only by running code.
        """
        try:
            model = keras.saving.load_model(folder / FILE, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise CorruptionError(
                f"the model {folder / FILE} cannot be loaded safely: {error}",
                "if it has custom layers, import the module that registers them first",
            ) from error
        return cls(model, schema)


def _build(config: RunConfig, task: str, schema: DatasetSchema) -> Any:
    chosen = config.model
    params: dict[str, Any] = {
        key: list(v) if isinstance(v, tuple) else v for key, v in chosen.params.items()
    }
    try:
        if chosen.kind == "tabular":
            params.setdefault("seed", config.train.seed % 2**31)
            return tabular(schema, task, classes=chosen.classes, **params)
        return import_object(chosen.kind)(schema, task, **params)
    except TypeError as error:
        raise InvalidInputError(
            f"model {chosen.kind!r} does not take params {sorted(params)}: {error}",
            "see training.models.tabular for the built-in model's parameters; a function of your "
            "own is called with (schema, task, **params)",
        ) from error


class _Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the observers how many steps are done."""

    def __init__(self, advance: Any) -> None:
        super().__init__()
        self._advance = advance
        self._done = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._done += 1
        self._advance(self._done)


class _StopOnNaN(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training at the first epoch whose loss is not a number, and says which column it was."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self._loader = loader

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if math.isfinite(loss):
            return
        columns = _not_finite(self._loader)
        raise InvalidInputError(
            f"the loss of epoch {epoch} is {loss}"
            + (f"; columns {columns} hold NaN or infinity after the pipeline" if columns else ""),
            "set impute = true, and clip or drop infinite values"
            if columns
            else "lower learning_rate, or scale the label",
        )


def _require_finite(loader: Loader) -> None:
    """Refuse NaN and infinity before training: some losses clip them to a number and go on."""
    columns = _not_finite(loader)
    if columns:
        raise InvalidInputError(
            f"columns {columns} hold NaN or infinity after the pipeline, which the built-in network "
            "cannot learn from",
            "set impute = true, clip or drop infinite values, or use kind = 'xgboost'",
        )


def _not_finite(loader: Loader) -> list[str]:
    names = loader.schema.numeric
    bad = np.zeros(len(names), dtype=bool)
    for start in range(0, loader.rows, 65536):
        values = loader.pack.read(start, min(start + 65536, loader.rows)).inputs.get(NUMERIC)
        if values is not None:
            bad |= ~np.isfinite(values).all(axis=0)
    return [name for name, is_bad in zip(names, bad, strict=True) if is_bad]
