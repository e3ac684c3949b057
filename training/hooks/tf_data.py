"""TensorFlow: a loader as ``tf.data.Dataset`` with known signature and cardinality.

Batches are made by the loader; ``tf.data`` only takes them, a few ahead in a thread of its own that
ends with its iterator. Aligned arrays are taken without a copy.

Always true: the loader's position is after the batches that came out of ``tf.data``'s queue, however many
wait in it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod

import numpy as np
import tensorflow as tf

from featurestore.dataset.batch import Batch, DatasetSchema
from training.hooks.elements import element, label_dtype
from training.loading.memory import OWN_BATCHES, Projection
from training.loading.position import Turn

if TYPE_CHECKING:
    from training.loading.loader import Loader

_AHEAD_BYTES: Final = 64 * 2**20
_AHEAD_BATCHES: Final = 4


def dataset(loader: Loader) -> Any:
    """Return a dataset of ``(inputs, label)``, or ``(inputs,)`` without a label, weights last if batches
    have them; each iteration is one epoch in the loader's order.

    Its cardinality is the number of batches of an epoch; unknown if it is made in the middle of one,
    whose rest is then the first iteration. Make it after ``load_state_dict``.

    Raises
    ------
    MemoryLimitError
        If the batches in flight do not fit the loader's memory limit.
    """
    feeding_memory(loader).require()
    return Feed(loader, element).dataset(loader_signature(loader))


def batches_ahead(batch_bytes: int) -> int:
    """Return how many batches ``tf.data`` draws before it is asked for them."""
    return max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(1, batch_bytes)))


def feeding_memory(loader: Loader) -> Projection:
    """Return what an epoch takes with the batches that wait in ``tf.data``'s queue."""
    return loader.epoch_memory(_held(loader))


def _waiting(loader: Loader) -> int:
    return batches_ahead(loader.sample_bytes * loader.batch_size)


def _held(loader: Loader) -> int:
    """Return how many batches exist at once."""
    return OWN_BATCHES + _waiting(loader)


class Feed:
    """A loader's batches on their way through ``tf.data``'s queue.

    Parameters
    ----------
    loader : Loader
    element : function
        Of a batch, to what ``tf.data`` gets.
    """

    def __init__(self, loader: Loader, element: Callable[[Batch], Any]) -> None:
        self._loader = loader
        self._element = element
        self._numbers = itertools.count()
        self._turns: dict[int, Turn] = {}
        """The batches that were read and are not handed out, by number."""
        self.error: Exception | None = None
        """What reading a batch failed with; ``tf.data`` raises an error of its own that quotes it."""
        self.waited_seconds = 0.0
        """How long consumers waited for batches."""

    def dataset(self, signature_: Any) -> Any:
        """Return a dataset whose elements are of this signature; each iteration is an epoch."""
        loader = self._loader
        loader.begin(
            _held(loader)
        )  # here, not in a thread of TensorFlow's: errors stay what they are
        # TensorFlow keeps Python functions for ever; what these need ends with the dataset.
        read, hand_out = _weakly(self._read), _weakly(self._hand_out)
        made = tf.data.Dataset.from_generator(
            read, output_signature=(tf.TensorSpec((), tf.int64), signature_)
        ).prefetch(_waiting(loader))
        # A zip asks its parts in turn: this one is when the consumer asked.
        asked = tf.data.Dataset.counter().map(lambda _: _now())
        made = tf.data.Dataset.zip(asked, made).map(_counting(hand_out))
        if loader.steps_left == len(loader):
            made = made.apply(tf.data.experimental.assert_cardinality(len(loader)))
        options = tf.data.Options()
        # Without these, tf.data may size its own buffers by the machine's memory and start drawing
        # from iterators nobody has asked for a batch yet.
        options.autotune.enabled = False
        options.experimental_warm_start = False
        options.deterministic = True
        made = made.with_options(options)
        made.feed = self
        return made

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Yield number and element of each batch; in a thread of ``tf.data``'s."""
        loader = self._loader
        self._turns.clear()  # of passes that were given up
        try:
            rest = loader.steps.rest(loader.begin(_held(loader)), loader.position)
            for number, (turn, batch) in zip(self._numbers, rest, strict=False):
                self._turns[number] = turn
                yield number, self._element(batch)
        except Exception as error:
            self.error = error
            raise

    def _hand_out(self, number: int, waited: float) -> None:
        self.waited_seconds += float(waited)
        turn = self._turns.pop(int(number), None)
        if turn is not None:
            turn.hand_out()


def _now() -> Any:
    """Return seconds of a clock when the graph runs; ``tf.timestamp`` is refused where operations are to be
    deterministic.
    """
    return tf.numpy_function(time.monotonic, [], tf.float64)


def _counting(hand_out: Callable[..., None]) -> Callable[[Any, Any], Any]:
    """Return what lets through elements and hands out the batches they are."""

    def out(asked: Any, counted: Any) -> Any:
        number, element = counted
        waited = _now() - asked
        # A stateful operation: it runs with the element, before anyone has it.
        tf.numpy_function(hand_out, [number, waited], [])
        return element

    return out


def _weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls a method of an object without keeping that."""
    weak = WeakMethod(method)

    def call(*arguments: Any) -> Any:
        found = weak()
        if found is None:
            raise RuntimeError("a tf.data iterator outlived its dataset")
        return found(*arguments)

    return call


def compiled(function: Callable[[Any], Any], schema: DatasetSchema) -> Callable[[Any], Any]:
    """Return a function of a batch's inputs as one graph for any number of rows."""
    graph: Callable[[Any], Any] = tf.function(function, input_signature=[signature(schema)[0]])
    return graph


def loader_signature(loader: Loader, *, weighted: bool = False) -> tuple[Any, ...]:
    """Return the :func:`signature` of a loader's batches."""
    made = signature(loader.schema, loader.array_specs(), weighted=weighted or loader.weighted)
    for name, (dtype, shape) in loader.list_specs().items():
        made[0][name] = tf.TensorSpec(shape, tf.as_dtype(dtype))
    return made


def signature(
    schema: DatasetSchema,
    specs: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
    *,
    weighted: bool = False,
) -> tuple[Any, ...]:
    """Return the ``tf.TensorSpec`` of a batch: inputs, label if there is one, weights if asked.

    ``specs`` are those of the inputs; of single rows if not given.
    """
    inputs = {
        name: tf.TensorSpec((None, *shape), tf.as_dtype(dtype), name=None)
        for name, (dtype, shape) in (schema.array_specs() if specs is None else specs).items()
    }
    if not schema.labels:
        return (inputs,)
    labels = {
        one.name: tf.TensorSpec((None,), tf.as_dtype(label_dtype(np.dtype(one.dtype)).name))
        for one in schema.labels
    }
    weights = [tf.TensorSpec((None,), tf.float32)] if weighted else []
    return (inputs, labels if schema.label is None else labels[schema.label.name], *weights)


def repeated(element: Any, signature_: Any) -> Any:
    """Return a dataset of one element for ever: for measurements."""
    one = tf.nest.map_structure(
        lambda value, spec: tf.convert_to_tensor(value, spec.dtype), element, signature_
    )
    return tf.data.Dataset.from_tensors(one).repeat()
