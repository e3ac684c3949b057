"""JAX: a loader as pytrees of device arrays, one batch ahead of the training loop.

    for inputs, label in loader.jax(): params = step(params, inputs, label)

``inputs`` is a dict of arrays: ``numeric`` float32 ``[batch, n]``, each categorical input int32
``[batch]``, each tensor ``[batch, ...]``; ``label`` is float32 or an integer ``[batch]``.

Always true: while a batch is with its consumer, exactly one more is read and on its way to the device;
it counts as handed out when the consumer asks for it. No thread runs: the next batch is read when one is
asked for, while the device still computes on those before (JAX returns before it is done). So an error
in reading surfaces in the loop at once, one batch early, and stopping leaves nothing behind.

The trade-off: reading takes the loop's own time where a step returns only when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import InvalidInputError, UnsupportedError
from training.hooks.device_rows import DeviceRows
from training.hooks.elements import element
from training.loading.memory import OWN_BATCHES, Projection
from training.loading.mixing import Rows

if TYPE_CHECKING:
    from training.loading.loader import Loader
    from training.loading.position import Turn

__all__ = ["JaxBatches", "JaxDeviceRows", "jax"]

Element: TypeAlias = "tuple[Any, ...]"

_AHEAD: Final = 1
_LATE: Final = 1
"""Batches that JAX lets go of when it is called next: after another was read."""
_HELD: Final = OWN_BATCHES + _AHEAD + _LATE
_NARROWED: Final = {"int64": np.iinfo(np.int32), "uint64": np.iinfo(np.uint32)}
"""Integers that JAX cuts to 32 bits unless told not to, and what fits those."""


class JaxBatches:
    """What is left of a loader's epoch, each time it is iterated, as arrays on a device.

    Each element is ``(inputs, label)``, with a float32 weight ``[batch]`` as the third if batches have
    weights, or ``(inputs,)`` without a label. The last batch of an epoch may be smaller, for which
    ``jit`` compiles once more: ``last="pad"`` or ``last="drop"`` avoids it. float64 becomes
    float32 unless ``jax_enable_x64`` is set. On CPUs, arrays share the memory of the batch.

    Parameters
    ----------
    loader : Loader
    device : jax.Device or jax.sharding.Sharding, optional
        Where to; JAX's default device if not given. A sharding has to divide the batches' rows.

    Raises
    ------
    MemoryLimitError
        If the batches in flight do not fit the loader's memory limit.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> batches = Loader(numbered_part(10), 4, cache=cache.name).jax()
    >>> for inputs, label in batches:
    ...     print(inputs["numeric"].shape, label.dtype)
    (4, 3) float32
    (4, 3) float32
    (2, 3) float32
    >>> cache.cleanup()
    """

    def __init__(self, loader: Loader, device: Any = None) -> None:
        loader.ragged.refuse("JAX")
        self._loader = loader
        self._device = device
        self.memory.require()

    @property
    def memory(self) -> Projection:
        """What feeding takes, the batch ahead included; of a device's memory, nothing."""
        return self._loader.epoch_memory(_HELD)

    def __len__(self) -> int:
        """Batches of an epoch; of the rest of a resumed one there are ``loader.steps_left``."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Element]:
        loader = self._loader
        sent = map(self._sent, loader.steps.rest(loader.begin(_HELD), loader.position))
        ahead = next(sent, None)
        while ahead is not None:
            (turn, now), ahead = ahead, next(sent, None)
            turn.hand_out()
            yield now

    def _sent(self, one: tuple[Turn, Batch]) -> tuple[Turn, Element]:
        """Return a batch on its way to the device."""
        turn, batch = one
        return turn, jax.device_put(_kept(batch), self._device)


class JaxDeviceRows(DeviceRows):
    """A loader's rows on a device, put there once; each batch is gathered there.

    Elements are those of :class:`JaxBatches`. No batch is ahead: JAX returns before it is gathered.

    Parameters
    ----------
    loader : Loader
        Its pack is built or opened at once, and put on the device.
    device : jax.Device, optional
        JAX's default device if not given.

    Raises
    ------
    MemoryLimitError
        If the rows do not fit what is left of the device's memory; on a CPU, the memory limit.
    UnsupportedError
        If JAX cannot tell so many rows apart.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(numbered_part(10), 4, cache=cache.name, hold="device")
    >>> for inputs, label in loader.jax():
    ...     print(inputs["numeric"].shape, label.dtype)
    (4, 3) float32
    (4, 3) float32
    (2, 3) float32
    >>> cache.cleanup()
    """

    def __init__(self, loader: Loader, device: Any = None) -> None:
        super().__init__(loader)
        if loader.rows > np.iinfo(np.int32).max:
            raise UnsupportedError(
                f"{loader.rows} rows are more than the int32 numbers that JAX gathers by",
                "leave hold='device' out",
            )
        self.device = jax.devices()[0] if device is None else device
        stats = self.device.memory_stats()
        free = None if stats is None else stats["bytes_limit"] - stats["bytes_in_use"]
        self._require(free, self.device, narrow=True)
        # One array after the other, from the mapped files.
        self._held = jax.tree.map(self._put, _kept(self._pack.view(0, self._pack.rows)))

    def _put(self, values: HostArray) -> Any:
        return jax.device_put(values, self.device, may_alias=False)

    def _gathered(self, rows: Rows, real: int) -> Element:
        found: Element = _taken(self._held, jax.device_put(rows.astype(np.int32), self.device))
        if not self._loader.weighted or len(found) == 1:
            return found
        counts = jax.device_put((np.arange(len(rows)) < real).astype(np.float32), self.device)
        return (*found[:2], found[2] * counts if len(found) == 3 else counts)


def _rows_taken(arrays: Any, rows: Any) -> Any:
    """Return some rows of arrays, where these are; numbers are right."""
    return jax.tree.map(lambda one: jnp.take(one, rows, axis=0, mode="clip"), arrays)


_taken: Final = jax.jit(_rows_taken)


def _kept(batch: Batch) -> Element:
    """Return a batch as an element whose values JAX keeps as they are."""
    found = element(batch)
    inputs, *others = found
    # One label has no name of its own here; several are a dict.
    several = others[0] if others and isinstance(others[0], dict) else {}
    for name, one in {**inputs, **several}.items():
        _require_kept(name, one)
    if batch.label is not None:
        _require_kept("label", others[0])
    return found


def _require_kept(name: str, values: HostArray) -> None:
    """Refuse values that JAX would not keep as they are."""
    kept = _NARROWED.get(values.dtype.name)
    if kept is None or jax.config.jax_enable_x64 or values.size == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low < kept.min or high > kept.max:
        raise InvalidInputError(
            f"array {name!r} has integers from {low} to {high}; JAX would keep 32 bits of them",
            "set jax.config.update('jax_enable_x64', True) before arrays are made",
        )
