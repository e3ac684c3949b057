"""Rows held on a device: put there once, then each batch is gathered there.

Always true: batches have the rows and the order of the loader, bit for bit; the loader's position is after
the batch that was handed out. Of a batch only row numbers go to the device.

The trade-off: all rows and a batch have to fit the device's memory, which is looked at before; what a
framework takes there later is not known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.errors import MemoryLimitError, UnsupportedError
from featurestore.units import format_bytes
from training.hooks.elements import element
from training.loading.mixing import Rows
from training.loading.pack import Pack

if TYPE_CHECKING:
    from training.loading.loader import Loader

Element: TypeAlias = "tuple[Any, ...]"


class DeviceRows(ABC):
    """What is left of a loader's epoch, each time it is iterated, gathered on a device.

    Parameters
    ----------
    loader : Loader
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        rows = loader.samples
        if not isinstance(rows, Pack):
            raise UnsupportedError(
                "sequences cannot be held on a device: each repeats rows of others",
                "leave hold='device' out, or use hold='memory'",
            )
        self._pack = rows

    def __len__(self) -> int:
        """Batches of an epoch; of the rest of a resumed one there are ``loader.steps_left``."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Element]:
        steps = self._loader.steps
        for turn in self._loader.position.begin().turns(len(steps)):
            found = self._gathered(*steps.rows_of(turn.step, turn.epoch))
            turn.hand_out()
            yield found

    @abstractmethod
    def _gathered(self, rows: Rows, real: int) -> Element:
        """Return the batch of some rows of the pack, of which those from ``real`` on weigh 0."""

    def _require(self, free: int | None, device: object, *, narrow: bool) -> None:
        """Refuse rows that do not fit a device with so many bytes; None if that is this process's memory.

        Raises
        ------
        MemoryLimitError
        """
        if free is None:
            self._loader.held_memory().require()
            return
        one = element(self._pack.read(0, min(1, self._pack.rows)), narrow=narrow)
        row = sum(int(leaf.nbytes) for leaf in leaves(one))
        needed = row * (self._pack.rows + self._loader.batch_size)
        if needed > free:
            raise MemoryLimitError(
                f"{self._pack.rows} rows and a batch take {format_bytes(needed)} on {device}, which "
                f"has {format_bytes(free)} left",
                "leave hold='device' out, use dtype='float16', or name fewer features",
            )


def leaves(tree: Any) -> list[Any]:
    """Return the arrays of an element, or of a part of one."""
    if isinstance(tree, dict):
        return [leaf for one in tree.values() for leaf in leaves(one)]
    if isinstance(tree, tuple):
        return [leaf for one in tree for leaf in leaves(one)]
    return [tree]
