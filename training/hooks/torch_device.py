"""PyTorch: all rows of a loader as tensors on a device, each batch gathered there.

    loader = Loader(data.train, 4096, shuffle=True, hold="device")
    for inputs, label in loader.torch(device="cuda"): ...

Elements are those of ``training.hooks.torch``, on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from featurestore.errors import UnsupportedError
from training.hooks.device_rows import DeviceRows, leaves
from training.hooks.elements import element
from training.loading.mixing import Rows

if TYPE_CHECKING:
    from training.loading.loader import Loader

__all__ = ["TorchDeviceRows", "torch"]

Element: TypeAlias = "tuple[Any, ...]"
_PIECE_BYTES: Final = 16 * 2**20
"""Of rows that are read before they go to the device."""


class TorchDeviceRows(DeviceRows):
    """A loader's rows on a device.

    Parameters
    ----------
    loader : Loader
        Its pack is built or opened at once, and put on the device.
    device : str or torch.device, optional
        ``"cuda"`` if there is one, else ``"cpu"``.

    Raises
    ------
    MemoryLimitError
        If the rows do not fit what is left of the device's memory; on a CPU, the memory limit.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(numbered_part(10), 4, cache=cache.name, hold="device")
    >>> for inputs, label in loader.torch(device="cpu"):
    ...     print(tuple(inputs["numeric"].shape), label.dtype)
    (4, 3) torch.float32
    (4, 3) torch.float32
    (2, 3) torch.float32
    >>> cache.cleanup()
    """

    def __init__(self, loader: Loader, device: Any = None) -> None:
        super().__init__(loader)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None
        self._require(free, self.device, narrow=False)
        self._held = self._put()

    def loader(self, num_workers: int = 0) -> TorchDeviceRows:
        """Return itself, as ``TorchBatches.loader`` returns a ``DataLoader``; workers are refused."""
        if num_workers:
            raise UnsupportedError(
                f"num_workers={num_workers} cannot read rows that are held on {self.device}",
                "use num_workers=0: nothing is left for workers to do",
            )
        return self

    def _put(self) -> Element:
        rows = self._pack.rows
        size = max(1, _PIECE_BYTES // max(1, self._pack.row_bytes))
        empty = element(self._pack.read(0, 0), narrow=False)
        held: Element = _mapped(
            lambda one: torch.empty(
                (rows, *one.shape[1:]), dtype=torch.from_numpy(one).dtype, device=self.device
            ),
            empty,
        )
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            piece = element(self._pack.read(start, stop), narrow=False)
            for out, one in zip(leaves(held), leaves(piece), strict=True):
                out[start:stop].copy_(torch.from_numpy(one))
        return held

    def _gathered(self, rows: Rows, real: int) -> Element:
        numbers = torch.from_numpy(rows).to(self.device)
        found: Element = _mapped(lambda one: one.index_select(0, numbers), self._held)
        if not self._loader.weighted or len(found) == 1:
            return found
        weight = found[2] if len(found) == 3 else torch.ones(len(rows), device=self.device)
        weight[real:] = 0
        return (*found[:2], weight)


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return an element, or a part of one, with a function applied to its arrays."""
    if isinstance(tree, dict):
        return {key: _mapped(function, one) for key, one in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(function, one) for one in tree)
    return function(tree)
