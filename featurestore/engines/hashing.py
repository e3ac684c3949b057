"""A stable hash of column values: the same on every engine, machine and version.

Folds, hash splits and hashed features stand on it, so its values can never change; the tests hold
published vectors. 64 bits, not cryptographic.

* Integers, booleans, dates and times: SplitMix64 of the value as ``int64`` (``uint64`` keeps its bits),
  so ``int8`` 5 and ``int64`` 5 are equal. Times count in their own unit.
* Floats: of the bits of the value as ``float64``, with one NaN and one zero.
* Strings: FNV-1a over the UTF-8 bytes, then SplitMix64.
* Null: a constant. Columns are combined in the order given.

Sources: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014;
G. Fowler, L. C. Noll, K.-P. Vo, FNV-1a (RFC 9923).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import narwhals as nw

from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import InvalidInputError

HASH_VERSION: Final = 1
"""Part of what is kept under a selection by hash: raise it should the values ever have to change."""

_GAMMA: Final = 0x9E3779B97F4A7C15
_FNV_OFFSET: Final = 0xCBF29CE484222325
_FNV_PRIME: Final = 0x100000001B3
_NULL: Final = 0x6E756C6C00000000  # "null"
_TAGS: Final = {"i": 0, "f": 0x666C6F6174000000, "s": 0x737472696E670000}
_LONG_STRING: Final = 16


def splitmix64(xp: Any, bits: Array) -> Array:
    """Return the SplitMix64 step of each ``uint64``."""
    bits = bits + xp.uint64(_GAMMA)
    bits ^= bits >> xp.uint64(30)
    bits *= xp.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> xp.uint64(27)
    bits *= xp.uint64(0x94D049BB133111EB)
    bits ^= bits >> xp.uint64(31)
    return bits


def hash_numbers(xp: Any, values: Array) -> Array:
    """Return the hash of each number: integers by value, floats by the bits of their ``float64``."""
    if values.dtype.kind == "f":
        numbers = values.astype(xp.float64) + 0.0  # -0.0 + 0.0 is 0.0
        numbers = xp.where(xp.isnan(numbers), xp.nan, numbers)
        return splitmix64(xp, numbers.view(xp.uint64) ^ xp.uint64(_TAGS["f"]))
    if values.dtype == xp.uint64:
        return splitmix64(xp, values)
    return splitmix64(xp, values.astype(xp.int64).view(xp.uint64))


def hash_strings(xp: Any, offsets: Array, data: Array) -> Array:
    """Return the hash of each string, from UTF-8 bytes and ``int64`` offsets ``[n + 1]``."""
    length = offsets[1:] - offsets[:-1]
    rows = int(length.shape[0])
    state = xp.full(rows, xp.uint64(_FNV_OFFSET), dtype=xp.uint64)
    if rows:
        longest, alike = int(length.max()), int(length.min()) == int(length.max())
        # Longest first: at byte j the strings that still have one are a prefix.
        order = None if alike else _longest_first(xp, length, longest)
        at = offsets[:-1].copy() if order is None else offsets[:-1][order]
        counts = [rows] * longest
        if order is not None:
            steps = -xp.arange(1, longest + 1)
            counts = xp.searchsorted(-length[order], steps, side="right").tolist()
        for active in counts:
            some, where = state[:active], at[:active]
            some ^= data[where]
            some *= xp.uint64(_FNV_PRIME)
            where += 1
        if order is not None:
            restored = xp.empty_like(state)
            restored[order] = state
            state = restored
    return splitmix64(xp, state ^ xp.uint64(_TAGS["s"]))


def _longest_first(xp: Any, length: Array, longest: int) -> Array:
    shorter = longest - length
    # Of 16 bits they are sorted by counting.
    return xp.argsort(shorter.astype(xp.uint16) if longest < 2**16 else shorter, kind="stable")


def _hash_string_column(engine: Engine, frame: Frame, name: str) -> tuple[Array, Array]:
    xp = engine.xp
    offsets, data, valid = engine.strings(frame[name])
    if data.shape[0] <= _LONG_STRING * valid.shape[0]:
        return hash_strings(xp, offsets, data), valid
    # Long strings that repeat are hashed once.
    _, first, inverse = xp.unique(
        engine.codes(frame, [name]), return_index=True, return_inverse=True
    )
    if 2 * first.shape[0] > valid.shape[0]:
        return hash_strings(xp, offsets, data), valid
    offsets, data, _ = engine.strings(engine.take(frame.select(name), first)[name])
    return hash_strings(xp, offsets, data)[inverse.reshape(-1)], valid


def hash_columns(engine: Engine, frame: Frame, columns: Sequence[str], seed: int = 0) -> Array:
    """Return a 64-bit hash of some columns, per row.

    Parameters
    ----------
    engine : Engine
    frame : Frame
    columns : sequence of str
        Numbers, booleans, dates, times or strings; at least one. The order matters.
    seed : int
        Another seed gives independent hashes.

    Returns
    -------
    Array
        ``uint64 [rows]``, on the engine's device.

    Raises
    ------
    InvalidInputError
        Without columns.
    UnsupportedError
        For lists.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> frame = engine.from_arrow(pa.table({"k": ["a", None], "n": [1, 2]}))
    >>> [f"{one:016x}" for one in hash_columns(engine, frame, ["k", "n"]).tolist()]
    ['f0dbd69990f4d922', '2ecf6e500727806b']
    """
    if not columns:
        raise InvalidInputError("a hash needs at least one column", "name key columns")
    xp = engine.xp
    total = xp.full(len(frame), xp.uint64(seed % 2**64), dtype=xp.uint64)
    total = splitmix64(xp, total)
    for name in columns:
        if frame[name].dtype in (nw.String, nw.Categorical, nw.Enum):
            hashed, valid = _hash_string_column(engine, frame, name)
        else:
            values, valid = engine.values(frame[name])
            hashed = hash_numbers(xp, values)
        if not bool(valid.all()):
            hashed = xp.where(valid, hashed, xp.uint64(_NULL))
        total = splitmix64(xp, total ^ hashed)
    return total
