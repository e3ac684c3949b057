"""Arrays for batches: aligned so that frameworks take them without a copy, in memory that is used again.

A batch that was handed out is never written again as long as anybody can read it: its arrays are its own,
and so is all memory they are views of. Only once the last of them is gone, as where memory would be
freed, is it used for a batch that follows. Memory that is fresh from the system costs more than filling it
(a page fault for each 4 KiB), and allocators return large blocks to the system at once, in threads above all.

Trade-off: within a pass, a few batches' memory stays after they are gone. It was counted when they were
there, and goes with the pass.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.dataset.batch import HostArray

ALIGNMENT: Final = 64
"""Bytes: what TensorFlow, XLA and AVX-512 want of the first element."""
_WORTH: Final = 64 * 1024
"""Bytes: less is taken from the allocator, which has it at hand."""
_KEPT: Final = 8
"""Blocks of one size that wait to be used again."""

Empty: TypeAlias = "Callable[[tuple[int, ...], np.dtype[Any]], HostArray]"
"""Gives an uninitialised array of a shape and a type."""


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    """Return an uninitialised C-contiguous array whose data starts at a multiple of 64 bytes.

    Examples
    --------
    >>> aligned_empty((3, 2), np.dtype("float32")).ctypes.data % 64
    0
    """
    return _within(_block(math.prod(shape) * dtype.itemsize), shape, dtype)


class Buffers:
    """Gives arrays as :func:`aligned_empty` does; during a pass, of memory that earlier ones had.

    Safe from several threads: what is shared are operations that Python does not divide.

    Examples
    --------
    >>> buffers = Buffers()
    >>> with buffers.used():
    ...     first = buffers.empty((1000, 100), np.dtype("float32"))
    ...     where, part = first.ctypes.data, first[:10]
    ...     del first
    ...     other = buffers.empty((1000, 100), np.dtype("float32"))
    ...     assert other.ctypes.data != where  # there is a view of it
    ...     del part
    ...     assert buffers.empty((1000, 100), np.dtype("float32")).ctypes.data == where
    """

    def __init__(self) -> None:
        self._passes: deque[None] = deque()
        self._free: dict[int, deque[HostArray]] = {}
        self._lent: dict[int, weakref.ref[_Lent]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep memory that is given back, inside the block."""
        self._passes.append(None)
        try:
            yield
        finally:
            self._passes.pop()
            if not self._passes:
                self._free.clear()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        """Return an uninitialised C-contiguous array, aligned, that shares memory with no other."""
        size = math.prod(shape) * dtype.itemsize
        if size < _WORTH or not self._passes:
            return aligned_empty(shape, dtype)
        try:
            block = self._free[size].pop()
        except (KeyError, IndexError):
            block = _block(size)
        lent = _Lent(block)
        number = id(block)
        self._lent[number] = weakref.ref(lent, partial(_given_back, weakref.ref(self), block))
        return _within(np.asarray(lent), shape, dtype)

    def _take_back(self, block: HostArray) -> None:
        self._lent.pop(id(block), None)
        if self._passes:
            self._free.setdefault(block.size - ALIGNMENT, deque(maxlen=_KEPT)).append(block)


class _Lent:
    """A block, handed out: lives as long as any array that was made of it.

    It is what the chain of ``base`` ends at: who walks that down to the owner of the memory and keeps what is
    found, as caches and shared-memory tools do, keeps this, never the block alone.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_block")

    def __init__(self, block: HostArray) -> None:
        self._block = block
        self.__array_interface__ = block.__array_interface__


def _given_back(owner: weakref.ref[Buffers], block: HostArray, _: object) -> None:
    buffers = owner()
    if buffers is not None:
        buffers._take_back(block)


def _block(size: int) -> HostArray:
    return np.empty(size + ALIGNMENT, dtype=np.uint8)


def _within(block: HostArray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + block.size - ALIGNMENT].view(dtype).reshape(shape)
