"""Arrays for batches: fresh ones, aligned so that frameworks take them without a copy.

A batch that was handed out is never written again: its arrays are its own. Memory that a consumer
lets go of returns to the allocator and is used for the batches that follow.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

ALIGNMENT: Final = 64
"""Bytes: what TensorFlow, XLA and AVX-512 want of the first element."""


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an uninitialised C-contiguous array whose data starts at a multiple of 64 bytes.

    Examples
    --------
    >>> aligned_empty((3, 2), np.dtype("float32")).ctypes.data % 64
    0
    """
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)
