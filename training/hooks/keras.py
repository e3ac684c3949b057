"""Keras: what ``model.fit``, ``evaluate`` and ``predict`` accept directly, on the TensorFlow backend.

Keras asks its data through an adapter; this is one. ``fit`` therefore neither permutes batches
(``fit(shuffle=True)`` does that to everything else) nor peeks at any: shapes and types come from the
dataset's schema. Each pass over the data is one epoch of the loader in the loader's own order, drawn
when its first batch is asked for, so passes that Keras prepares and drops cost nothing.

``x`` is a dict: ``numeric`` float32 ``[batch, n]``, each categorical input int32 ``[batch]``, each
tensor ``[batch, ...]``; inputs of a functional model carry these names. ``y`` is the label ``[batch]``,
float32 or an integer.

To go on in the middle of an epoch after ``load_state_dict``, train its rest as an epoch of its own:
``model.fit(loader.keras(), steps_per_epoch=loader.steps_left, epochs=1)``, then the others.
``fit(class_weight=)`` does not reach adapters: give the weights to ``loader.keras``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import InvalidInputError, UnsupportedError
from training.loading.memory import Projection, row_bytes

if TYPE_CHECKING:
    from training.loading.loader import Loader

__all__ = ["KerasBatches", "keras"]

Element: TypeAlias = "tuple[Any, ...]"


class KerasBatches(DataAdapter):  # type: ignore[misc]
    """A loader as Keras' data adapter.

    Parameters
    ----------
    loader : Loader
    class_weight : mapping of int to float, optional
        Weight of the rows of each class; classes not named weigh 1.
    inputs : {"dict", "tuple"}
        How ``x`` is structured. ``"tuple"`` is for models whose inputs have no names: arrays in the
        order of ``schema.array_specs()``, a single one as it is.

    Raises
    ------
    InvalidInputError
        If the loader has no batches, or class weights are given without a label.
    MemoryLimitError
        If the batches in flight do not fit the loader's memory limit.
    """

    def __init__(
        self,
        loader: Loader,
        class_weight: Mapping[int, float] | None = None,
        inputs: str = "dict",
    ) -> None:
        if inputs not in ("dict", "tuple"):
            raise InvalidInputError(f"inputs={inputs!r} is no structure", "use 'dict' or 'tuple'")
        if len(loader) == 0:
            raise InvalidInputError(
                f"a loader of {loader.rows} rows has no batch of {loader.batch_size}",
                "select more rows, or use a smaller batch_size without drop_last",
            )
        if class_weight and loader.schema.label is None:
            raise InvalidInputError("class_weight needs a label", "name the dataset's label")
        self.loader = loader
        self.memory.require()
        self._class_weight = dict(class_weight or {})
        self._by_position = inputs == "tuple"

    @property
    def memory(self) -> Projection:
        """What feeding takes, batches that wait in ``tf.data``'s queue included; nothing of Keras' own."""
        from training.hooks.tf_data import feeding_memory

        return feeding_memory(self.loader)

    # --- what Keras asks -------------------------------------------------------------------------

    def get_tf_dataset(self) -> Any:
        """Return a ``tf.data.Dataset`` that is one epoch each time it is iterated."""
        from training.hooks.tf_data import from_batches

        return from_batches(self._elements, self.signature(), len(self.loader), self._batch_bytes())

    def get_numpy_iterator(self) -> Iterator[Element]:
        return self._elements()

    def get_jax_iterator(self) -> Iterator[Element]:
        raise self._other_backend()

    def get_torch_dataloader(self) -> Any:
        raise self._other_backend()

    @property
    def num_batches(self) -> int:
        return len(self.loader)

    @property
    def batch_size(self) -> int:
        return self.loader.batch_size

    @property
    def has_partial_batch(self) -> bool:
        return not self.loader.drop_last and self.loader.rows % self.loader.batch_size != 0

    @property
    def partial_batch_size(self) -> int | None:
        return self.loader.rows % self.loader.batch_size if self.has_partial_batch else None

    # --- elements --------------------------------------------------------------------------------

    def signature(self) -> Element:
        """Return the ``tf.TensorSpec`` of an element: any number of rows."""
        from training.hooks.tf_data import signature

        return self._structured(signature(self.loader.schema, weighted=bool(self._class_weight)))

    def _elements(self) -> Iterator[Element]:
        for batch in self.loader:
            yield self._element(batch)

    def _element(self, batch: Batch) -> Element:
        from training.hooks.tf_data import element

        plain = element(batch)
        if self._class_weight:
            plain = (*plain, self._weights(plain[1]))
        return self._structured(plain)

    def _structured(self, element: Element) -> Element:
        if not self._by_position:
            return element
        values = tuple(element[0][name] for name in self.loader.schema.array_specs())
        return (values if len(values) > 1 else values[0], *element[1:])

    def _weights(self, label: HostArray) -> HostArray:
        weights = np.ones(label.shape, dtype=np.float32)
        for class_, weight in self._class_weight.items():
            weights[label == class_] = weight
        return weights

    def _batch_bytes(self) -> int:
        return row_bytes(self.loader.schema) * self.loader.batch_size

    def _other_backend(self) -> UnsupportedError:
        return UnsupportedError(
            f"this hook feeds Keras on TensorFlow, not on {keras.backend.backend()}",
            "set KERAS_BACKEND=tensorflow, or iterate over the loader in a loop of your own",
        )
