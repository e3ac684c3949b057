"""TensorFlow: a loader as ``tf.data.Dataset`` with known signature and cardinality.

Batches are made by the loader; ``tf.data`` only takes them, a few ahead in a thread of its own that
ends with its iterator. Aligned arrays are taken without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tensorflow as tf

from featurestore.dataset.batch import Batch, DatasetSchema, HostArray
from featurestore.errors import InvalidInputError
from training.loading.memory import OWN_BATCHES, Projection, row_bytes

if TYPE_CHECKING:
    from training.loading.loader import Loader

_AHEAD_BYTES: Final = 64 * 2**20
_AHEAD_BATCHES: Final = 4


def dataset(loader: Loader) -> Any:
    """Return a dataset of ``(inputs, label)``, or ``(inputs,)`` without a label; each iteration is
    one epoch in the loader's order.

    Raises
    ------
    InvalidInputError
        If the loader has no batches.
    MemoryLimitError
        If the batches in flight do not fit the loader's memory limit.
    """
    if len(loader) == 0:
        raise InvalidInputError(f"a loader of {loader.rows} rows has no batches")
    feeding_memory(loader).require()

    def elements() -> Iterator[tuple[Any, ...]]:
        for batch in loader:
            yield element(batch)

    batch_bytes = row_bytes(loader.schema) * loader.batch_size
    return from_batches(elements, signature(loader.schema), len(loader), batch_bytes)


def batches_ahead(batch_bytes: int) -> int:
    """Return how many batches ``tf.data`` draws before it is asked for them."""
    return max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(1, batch_bytes)))


def feeding_memory(loader: Loader) -> Projection:
    """Return what an epoch takes with the batches that wait in ``tf.data``'s queue."""
    waiting = batches_ahead(row_bytes(loader.schema) * loader.batch_size)
    return loader.epoch_memory(OWN_BATCHES + waiting)


def from_batches(
    elements: Callable[[], Iterator[Any]], signature_: Any, batches: int, batch_bytes: int
) -> Any:
    """Return a dataset over an iterator of whole batches, prefetched up to 64 MiB."""
    ahead = batches_ahead(batch_bytes)
    made = tf.data.Dataset.from_generator(elements, output_signature=signature_)
    options = tf.data.Options()
    # Without these, tf.data may size its own buffers by the machine's memory and start drawing
    # from iterators nobody has asked for a batch yet.
    options.autotune.enabled = False
    options.experimental_warm_start = False
    options.deterministic = True
    return (
        made.apply(tf.data.experimental.assert_cardinality(batches))
        .prefetch(ahead)
        .with_options(options)
    )


def compiled(function: Callable[[Any], Any], schema: DatasetSchema) -> Callable[[Any], Any]:
    """Return a function of a batch's inputs as one graph for any number of rows."""
    graph: Callable[[Any], Any] = tf.function(function, input_signature=[signature(schema)[0]])
    return graph


def signature(schema: DatasetSchema, *, weighted: bool = False) -> tuple[Any, ...]:
    """Return the ``tf.TensorSpec`` of a batch: inputs, label if there is one, weights if asked."""
    inputs = {
        name: tf.TensorSpec((None, *shape), tf.as_dtype(dtype), name=None)
        for name, (dtype, shape) in schema.array_specs().items()
    }
    if schema.label is None:
        return (inputs,)
    label = tf.TensorSpec((None,), tf.as_dtype(label_dtype(np.dtype(schema.label.dtype)).name))
    weights = [tf.TensorSpec((None,), tf.float32)] if weighted else []
    return (inputs, label, *weights)


def label_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type under which losses get a label: float32, int32, or int64 where needed."""
    if dtype.kind == "f":
        return np.dtype(np.float32)
    narrow = np.can_cast(dtype, np.int32)
    return np.dtype(np.int32 if narrow else np.int64)


def element(batch: Batch) -> tuple[Any, ...]:
    """Return a batch as ``(inputs, label)`` or ``(inputs,)``."""
    inputs: dict[str, HostArray] = dict(batch.inputs)
    if batch.label is None:
        return (inputs,)
    return (inputs, batch.label.astype(label_dtype(batch.label.dtype), copy=False))
