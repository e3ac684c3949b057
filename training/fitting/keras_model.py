"""Training, saving and loading a Keras model for a run.

Loading is Keras' safe mode: a saved model that holds code (a Lambda layer) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from featurestore.dataset.batch import Batch, DatasetSchema, HostArray
from featurestore.errors import CorruptionError
from training.config import RunConfig
from training.hooks.keras import keras
from training.hooks.tf_data import compiled

if TYPE_CHECKING:
    from training.loading.loader import Loader
    from training.unfinished import Unfinished

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
    def fit(
        cls, config: RunConfig, task: str, train: Loader, valid: Loader, work: Unfinished, say: Any
    ) -> KerasModel:
        """Build and train the configured model, or go on where it was stopped; equal configurations
        and data give equal weights on a CPU.

        Raises
        ------
        InvalidInputError
            If the model cannot be built from these parameters, or its loss is not a number.
        """
        from training.fitting.keras_fit import trained

        model, history = trained(config, task, train, valid, work, say)
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
