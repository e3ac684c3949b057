"""The order of an epoch: a pure function of ``(seed, epoch)`` and the number of rows.

Blocks of consecutive rows are permuted; ``window_blocks`` of them form a window, whose rows are
permuted. Positions ``[start, stop)`` of the epoch are computable without those before them, so the
order does not depend on threads, workers, ranks or where training was interrupted.

Always true: every row occurs exactly once per epoch. The permutations are made of SplitMix64 [1]_ and
a sort of unique keys, nothing of NumPy's random generators, whose streams may change: the same seed
gives the same order on every version and machine. ``ORDER_VERSION`` names this construction and is
part of every digest.

The trade-off: a window is a limited shuffle. Sorted data read in small windows gives batches that
differ from independent samples; ``shuffle="global"`` mixes all rows at the price of scattered reads.

.. [1] G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint

ORDER_VERSION: Final = 1
DEFAULT_BLOCK_ROWS: Final = 8192
DEFAULT_WINDOW_BLOCKS: Final = 16

Rows: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
_Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB
_ROUNDS: Final = 8
# Below this a global permutation is sorted like a window: a Feistel network of a few bits mixes
# badly, and the sort of so few keys costs nothing.
_SORTED_ROWS: Final = 1 << 17
_KEPT: Final = 4  # windows, and orders of blocks, of the newest epochs
_KEPT_GLOBAL: Final = 2
_SORT_COPIES: Final = 5  # arrays of 8 bytes a row that exist while one is sorted
_FEISTEL_COPIES: Final = 8  # the same, per position of a global order that is being computed
_CHUNK: Final = 1 << 15  # such positions at a time: they and their copies fit a processor's cache


class Shuffle(StrEnum):
    """How the rows of an epoch are ordered."""

    NONE = "none"
    WINDOW = "window"
    GLOBAL = "global"

    @classmethod
    def parse(cls, value: bool | str) -> Shuffle:
        """Return the mode of ``False``, ``True``, ``"window"`` or ``"global"``.

        Raises
        ------
        InvalidInputError
            For anything else.
        """
        if isinstance(value, bool):
            return cls.WINDOW if value else cls.NONE
        if value in ("none", "window", "global"):
            return cls(value)
        raise InvalidInputError(
            f"shuffle={value!r} is not an order", "use True (windows of blocks), False or 'global'"
        )


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """In which order the rows of a part are visited in one epoch.

    Parameters
    ----------
    rows : int
        Rows of the part, 0 or more.
    block_rows : int
        Consecutive rows that stay together until the window is permuted.
    window_blocks : int
        Blocks whose rows are mixed with each other.
    seed, epoch : int
        Not negative, less than 2**64. Seed 0 is a seed like any other.
    shuffle : Shuffle

    Examples
    --------
    >>> order = EpochOrder(6, block_rows=2, window_blocks=2, seed=0, epoch=0)
    >>> sorted(order.indices(0, 6).tolist())
    [0, 1, 2, 3, 4, 5]
    >>> bool((order.indices(2, 5) == order.indices(0, 6)[2:5]).all())
    True
    """

    rows: int
    block_rows: int = DEFAULT_BLOCK_ROWS
    window_blocks: int = DEFAULT_WINDOW_BLOCKS
    seed: int = 0
    epoch: int = 0
    shuffle: Shuffle = Shuffle.WINDOW

    def __post_init__(self) -> None:
        if self.rows < 0:
            raise InvalidInputError(f"an order of {self.rows} rows does not exist")
        if self.block_rows < 1 or self.window_blocks < 1:
            raise InvalidInputError(
                f"block_rows={self.block_rows} and window_blocks={self.window_blocks} must be >= 1"
            )
        for name, value in (("seed", self.seed), ("epoch", self.epoch)):
            if isinstance(value, bool) or not 0 <= value <= _MASK:
                raise InvalidInputError(f"{name}={value!r} is not an integer in [0, 2**64)")

    @property
    def digest(self) -> str:
        """Fingerprint of everything but the epoch: equal digests visit rows in equal order."""
        return fingerprint(
            "order", ORDER_VERSION, self.rows, self.block_rows, self.window_blocks, self.seed,
            str(self.shuffle),
        )  # fmt: skip

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self._blocks // self.window_blocks)

    def memory(self, count: int) -> int:
        """Return the bytes that :meth:`indices` of ``count`` positions takes, what it keeps included.

        Windows are kept as arrays; a global order of many rows is computed where it is asked for,
        so it costs the same for any number of rows.
        """
        if self.shuffle is Shuffle.NONE:
            return 8 * count
        if self.shuffle is Shuffle.GLOBAL:
            sorted_ = self.rows if self.rows <= _SORTED_ROWS else 0
            chunk = min(count, _CHUNK)
            return 8 * ((_KEPT_GLOBAL + _SORT_COPIES) * sorted_ + count + _FEISTEL_COPIES * chunk)
        window = min(self.rows, self.window_blocks * self.block_rows)
        blocks = (_KEPT + _SORT_COPIES) * self._blocks
        return 8 * (blocks + (_KEPT + _SORT_COPIES) * window + 2 * count)

    def indices(self, start: int, stop: int) -> Rows:
        """Return the row numbers at positions ``[start, stop)`` of the epoch.

        Parameters
        ----------
        start, stop : int
            ``0 <= start <= stop <= rows``.

        Returns
        -------
        int64 array [stop - start]

        Raises
        ------
        InvalidInputError
            If the range lies outside the epoch.
        """
        if not 0 <= start <= stop <= self.rows:
            raise InvalidInputError(
                f"positions {start} to {stop} lie outside an epoch of {self.rows} rows"
            )
        if self.shuffle is Shuffle.NONE or start == stop:
            return np.arange(start, stop, dtype=np.int64)
        if self.shuffle is Shuffle.GLOBAL:
            return self._scattered(start, stop)
        pieces = []
        window = self.window_at(start)
        while start < stop:
            first, last = self._window_start(window), self._window_start(window + 1)
            rows = _window_rows(self, window)
            pieces.append(rows[start - first : min(stop, last) - first])
            start, window = min(stop, last), window + 1
        return pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces)

    def blocks_of(self, window: int) -> Rows:
        """Return the blocks whose rows window number ``window`` mixes, in the epoch's order."""
        blocks = _block_order(self)
        return blocks[window * self.window_blocks : (window + 1) * self.window_blocks]

    @property
    def _blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def _window_start(self, window: int) -> int:
        """Return the position at which a window begins: full blocks, less what the short one lacks."""
        before = min(window * self.window_blocks, self._blocks)
        lacking = self._blocks * self.block_rows - self.rows
        return before * self.block_rows - (lacking if _short_position(self) < before else 0)

    def window_at(self, position: int) -> int:
        """Return the window that position ``position`` of the epoch lies in."""
        # A short block moves later windows forward by less than a block: at most one window further.
        window = position // (self.window_blocks * self.block_rows)
        return window + (self._window_start(window + 1) <= position)

    def _scattered(self, start: int, stop: int) -> Rows:
        if self.rows <= _SORTED_ROWS:
            return _global_rows(self)[start:stop].copy()
        key = _key(self.seed, self.epoch, 2)
        out = np.empty(stop - start, dtype=np.int64)
        for first in range(start, stop, _CHUNK):
            last = min(first + _CHUNK, stop)
            positions = np.arange(first, last, dtype=np.uint64)
            out[first - start : last - start] = _bijection(positions, self.rows, key)
        return out


@lru_cache(maxsize=_KEPT)
def _block_order(order: EpochOrder) -> Rows:
    return _frozen(_permutation(order._blocks, _key(order.seed, order.epoch, 0)))


@lru_cache(maxsize=_KEPT)
def _short_position(order: EpochOrder) -> int:
    """Return where in the epoch the last, possibly short block comes."""
    return int(np.flatnonzero(_block_order(order) == order._blocks - 1)[0])


@lru_cache(maxsize=_KEPT)
def _window_rows(order: EpochOrder, window: int) -> Rows:
    """Return the rows of a window in order: 8 bytes a row, kept for the batches that follow."""
    blocks = order.blocks_of(window)
    starts = blocks * order.block_rows
    rows = (starts[:, None] + np.arange(order.block_rows, dtype=np.int64)).ravel()
    if rows.size and int(blocks.max()) == order._blocks - 1:
        rows = rows[rows < order.rows]
    return _frozen(rows[_permutation(rows.size, _key(order.seed, order.epoch, 1, window))])


@lru_cache(maxsize=_KEPT_GLOBAL)
def _global_rows(order: EpochOrder) -> Rows:
    return _frozen(_permutation(order.rows, _key(order.seed, order.epoch, 2)))


def _frozen(rows: Rows) -> Rows:
    rows.flags.writeable = False
    return rows


def _key(*words: int) -> int:
    """Return 64 bits that depend on every bit of every word and on their order."""
    state = ORDER_VERSION
    for word in words:
        state = _mix_word((state ^ _mix_word((word + _GOLDEN) & _MASK)) + _GOLDEN & _MASK)
    return state


def _mix_word(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix(words: _Words) -> _Words:
    """SplitMix64's finaliser, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    return words


def _permutation(count: int, key: int) -> Rows:
    """Return a permutation of ``range(count)``: its numbers sorted by 64 random bits each.

    A key is random bits above the number itself, so keys are unique and any correct sort gives the
    same order; sorting plain integers is several times faster than an argsort.
    """
    if count <= 1:
        return np.zeros(count, dtype=np.int64)
    numbers = np.arange(count, dtype=np.uint64)
    keys = _mix((numbers + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key))
    low = np.uint64((1 << (count - 1).bit_length()) - 1)
    keys &= ~low
    keys |= numbers
    keys.sort()
    keys &= low
    return keys.astype(np.int64)


def _bijection(positions: _Words, count: int, key: int) -> _Words:
    """Return a permutation of ``range(count)`` at some positions, in memory for those alone.

    A Feistel network permutes the smallest power of two that holds ``count``; values outside are
    sent through again until they fall inside (cycle walking), fewer than twice on average.
    """
    bits = (count - 1).bit_length()
    round_keys = [_key(key, number) for number in range(_ROUNDS)]
    values = _feistel(positions, bits, round_keys)
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = _feistel(values[outside], bits, round_keys)
        outside = outside[values[outside] >= count]
    return values


def _feistel(values: _Words, bits: int, round_keys: list[int]) -> _Words:
    width = np.uint64(bits // 2)
    left, right = values >> width, values & np.uint64((1 << (bits // 2)) - 1)
    left_shift = np.uint64(64 - (bits - bits // 2))
    right_shift = np.uint64(64 - bits // 2)
    for number, key in enumerate(round_keys):
        if number % 2 == 0:
            left ^= _round(right, key) >> left_shift
        else:
            right ^= _round(left, key) >> right_shift
    return (left << width) | right


def _round(half: _Words, key: int) -> _Words:
    words = (half + np.uint64(key)) * np.uint64(_MIX_1)
    words ^= words >> np.uint64(32)
    words *= np.uint64(_MIX_2)
    return words
