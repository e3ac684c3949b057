"""Keras: what ``model.fit``, ``evaluate`` and ``predict`` accept directly, on TensorFlow, JAX and PyTorch.

Keras asks its data through an adapter; this is one. ``fit`` therefore neither permutes batches
(``fit(shuffle=True)`` does that to everything else) nor peeks at any: shapes and types come from the
dataset's schema. Each pass over the data is one epoch of the loader in the loader's own order, drawn
when its first batch is asked for, so passes that Keras prepares and drops cost nothing.

``x`` is a dict: ``numeric`` float32 ``[batch, n]``, each categorical input int32 ``[batch]``, each
tensor ``[batch, ...]``; inputs of a functional model carry these names. ``y`` is the label ``[batch]``,
float32 or an integer.

To go on in the middle of an epoch use ``training.hooks.checkpoint``; or, after ``load_state_dict``, train
its rest as an epoch of its own, ``model.fit(loader.keras(), steps_per_epoch=loader.steps_left,
epochs=1)``, then the others.
``fit(class_weight=)`` does not reach adapters: give the weights to ``loader.keras``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import keras
import numpy as np
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from featurestore.arguments import as_whole
from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import InvalidInputError
from training.hooks.elements import element
from training.loading.memory import OWN_BATCHES, Projection

if TYPE_CHECKING:
    from training.hooks.tf_data import Feed
    from training.loading.loader import Loader
    from training.loading.position import Turn

__all__ = ["KerasBatches", "keras"]

Element: TypeAlias = "tuple[Any, ...]"

_AHEAD: Final = 2
"""Batches that JAX holds beside: one on its way to a device, and one it lets go of when it is called next."""


class KerasBatches(DataAdapter):  # type: ignore[misc]
    """A loader as Keras' data adapter.

    Parameters
    ----------
    loader : Loader
    class_weight : mapping of int to float, optional
        Weight of the rows of each class; classes not named weigh 1.
    inputs : {"dict", "tuple"}
        How ``x`` is structured. ``"tuple"`` is for models whose inputs have no names: arrays in the
        order of ``loader.array_specs()``, then ``loader.list_specs()``, a single one as it is.

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
        loader.ragged.refuse("Keras")
        if len(loader) == 0:
            raise InvalidInputError(
                f"a loader of {loader.rows} rows has no batch of {loader.batch_size}",
                "select more rows, or use a smaller batch_size without last='drop'",
            )
        if class_weight and loader.schema.label is None:
            raise InvalidInputError("class_weight needs one label", "name the dataset's label")
        if loader.weighted and not loader.schema.labels:
            raise InvalidInputError(
                "batches have weights, of a padded last one or of a column, and no label",
                "name the dataset's label, or leave weight= and last='pad' out to predict",
            )
        self.loader = loader
        self.memory.require()
        self._class_weight = _checked(class_weight or {})
        self._by_position = inputs == "tuple"
        self._drawn, self._before = 0, loader.position.start
        self.feed: Feed | None = None
        """What ``tf.data`` was handed for the newest ``fit``, ``evaluate`` or ``predict``."""

    @property
    def memory(self) -> Projection:
        """What feeding takes, batches that wait in ``tf.data``'s queue included; nothing of Keras' own."""
        if keras.backend.backend() != "tensorflow":
            return self.loader.epoch_memory(OWN_BATCHES + _AHEAD)
        from training.hooks.tf_data import feeding_memory

        return feeding_memory(self.loader)

    @contextmanager
    def surfacing_errors(self) -> Iterator[None]:
        """Raise what reading a batch failed with, where TensorFlow raises an error that quotes it."""
        try:
            yield
        except Exception as error:
            cause = None if self.feed is None else self.feed.error
            if cause is None or cause is error:
                raise
            raise cause from error

    # --- what Keras asks -------------------------------------------------------------------------

    def get_tf_dataset(self) -> Any:
        """Return a ``tf.data.Dataset`` that is one epoch each time it is iterated."""
        from training.hooks.tf_data import Feed

        self.feed = Feed(self.loader, self.element)
        return self.feed.dataset(self.signature())

    def get_numpy_iterator(self) -> Iterator[Element]:
        return map(self.element, self.loader)

    def get_jax_iterator(self) -> Iterator[Element]:
        self._drawn = 0
        # On an accelerator Keras draws one batch more than it trains on: it is on its way there.
        late = not keras.distribution.list_devices()[0].startswith("cpu")
        return self._read(late=late)

    def get_torch_dataloader(self) -> Iterator[Element]:
        self._drawn = 0
        # Tensors share the memory of the arrays on a CPU; Keras has no queue in front of it.
        return map(_tensors, self._read(late=False))

    def on_epoch_begin(self) -> None:
        self._drawn, self._before = 0, self.loader.position.start

    def on_epoch_end(self) -> None:
        if self._drawn == 1 and self.loader.position.start != self._before:
            # To learn shapes, fit drew one batch, gave it up, and it was the last of an epoch.
            self.loader.position.move(*self._before)

    @property
    def num_batches(self) -> int:
        return len(self.loader)

    @property
    def batch_size(self) -> int:
        return self.loader.batch_size

    @property
    def has_partial_batch(self) -> bool:
        return self._last_rows != self.loader.batch_size

    @property
    def partial_batch_size(self) -> int | None:
        return self._last_rows if self.has_partial_batch else None

    @property
    def _last_rows(self) -> int:
        """Rows of an epoch's last batch, on this rank."""
        if self.loader.last != "keep":
            return self.loader.batch_size
        start, stop = self.loader.steps.span(len(self.loader) - 1)
        return stop - start

    # --- elements --------------------------------------------------------------------------------

    def signature(self) -> Element:
        """Return the ``tf.TensorSpec`` of an element: any number of rows."""
        from training.hooks.tf_data import loader_signature

        return self._structured(loader_signature(self.loader, weighted=bool(self._class_weight)))

    def _read(self, *, late: bool) -> Iterator[Element]:
        """Yield what is left of the epoch; ``late`` counts a batch when the next is asked for."""
        loader = self.loader
        before: Turn | None = None
        for turn, batch in loader.steps.rest(loader.begin(OWN_BATCHES + _AHEAD), loader.position):
            self._drawn += 1
            now, before = (before, turn) if late else (turn, None)
            if now is not None:
                now.hand_out()
            yield self.element(batch)
        if before is not None:
            before.hand_out()

    def element(self, batch: Batch) -> Element:
        """Return a batch as Keras gets it."""
        plain = element(batch)
        if self._class_weight:
            plain = (*plain[:2], self._weights(plain[1], *plain[2:]))
        return self._structured(plain)

    def _structured(self, element: Element) -> Element:
        if not self._by_position:
            return element
        names = (*self.loader.array_specs(), *self.loader.list_specs())
        values = tuple(element[0][name] for name in names)
        return (values if len(values) > 1 else values[0], *element[1:])

    def _weights(self, label: HostArray, weight: HostArray | None = None) -> HostArray:
        weights = np.ones(label.shape, dtype=np.float32)
        for class_, of_class in self._class_weight.items():
            weights[label == class_] = of_class
        return weights if weight is None else weights * weight


def _tensors(element: Element) -> Element:
    found: Element = keras.tree.map_structure(keras.ops.convert_to_tensor, element)
    return found


def _checked(class_weight: Any) -> dict[int, float]:
    """Return weights of classes; refuse what is none."""
    items = class_weight.items() if isinstance(class_weight, Mapping) else None
    if items is None or any(
        as_whole(key) is None
        or isinstance(weight, bool)
        or not isinstance(weight, int | float | np.number)
        or not 0 <= weight < math.inf
        for key, weight in items
    ):
        raise InvalidInputError(
            f"class_weight={class_weight!r} are no weights of classes",
            "give {class number: weight}, each weight a number from 0 on",
        )
    return {int(key): float(weight) for key, weight in items}
