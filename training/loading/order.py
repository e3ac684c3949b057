"""The order of an epoch: a pure function of ``(seed, epoch)`` and the number of rows.

Blocks of consecutive rows are permuted; ``window_blocks`` of them form a window, whose rows are
permuted. Positions ``[start, stop)`` of the epoch are computable without those before them, so the
order does not depend on threads, workers, ranks or where training was interrupted.

Always true: every row occurs exactly once per epoch; the same seed gives the same order on every
version and machine (``mixing``). ``ORDER_VERSION`` names this construction and is part of every digest.

The trade-off: a window is a limited shuffle. Sorted data read in small windows gives batches that
differ from independent samples; ``shuffle="global"`` mixes all rows at the price of scattered reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint
from training.loading.mixing import MASK, Rows, bijection, key_of, permutation

ORDER_VERSION: Final = 1
DEFAULT_BLOCK_ROWS: Final = 2048
DEFAULT_WINDOW_BLOCKS: Final = 64

# Below this a global permutation is sorted like a window: a Feistel network of a few bits mixes
# badly, and the sort of so few keys costs nothing.
_SORTED_ROWS: Final = 1 << 17
_KEPT: Final = 4  # windows, and orders of blocks, of the newest epochs
_KEPT_GLOBAL: Final = 2
_SORT_COPIES: Final = 5  # arrays of 8 bytes a row that exist while one is sorted
_FEISTEL_COPIES: Final = 8  # the same, per position of a global order that is being computed
# Such positions at a time: they and their copies fit a processor's cache. The fewer at a time, the
# more each costs, so that a batch is cut from a whole chunk, kept for its neighbours.
_CHUNK: Final = 1 << 14


class Shuffle(StrEnum):
    """How the rows of an epoch are ordered."""

    NONE = "none"
    WINDOW = "window"
    STRIPES = "stripes"
    GLOBAL = "global"

    @classmethod
    def parse(cls, value: bool | str) -> Shuffle:
        """Return the mode of ``False``, ``True``, ``"window"``, ``"stripes"`` or ``"global"``.

        Raises
        ------
        InvalidInputError
            For anything else.
        """
        if isinstance(value, bool):
            return cls.WINDOW if value else cls.NONE
        if value in tuple(cls):
            return cls(value)
        raise InvalidInputError(
            f"shuffle={value!r} is not an order",
            "use True (windows of blocks), 'stripes', 'global' or False",
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
            if isinstance(value, bool) or not 0 <= value <= MASK:
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
            if self.rows <= _SORTED_ROWS:
                return 8 * ((_KEPT_GLOBAL + _SORT_COPIES) * self.rows + count)
            return 8 * ((_KEPT_GLOBAL + _FEISTEL_COPIES) * _CHUNK + count)
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

    def starts_of(self, window: int) -> Rows:
        """Return the first rows of the blocks that window number ``window`` mixes."""
        return self.blocks_of(window) * self.block_rows

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
        out = np.empty(stop - start, dtype=np.int64)
        for chunk in range(start // _CHUNK, -(-stop // _CHUNK)):
            begin = chunk * _CHUNK
            first, last = max(start, begin), min(stop, begin + _CHUNK)
            out[first - start : last - start] = _chunk_rows(self, chunk)[
                first - begin : last - begin
            ]
        return out


@lru_cache(maxsize=_KEPT)
def _block_order(order: EpochOrder) -> Rows:
    return _frozen(permutation(order._blocks, key_of(order.seed, order.epoch, 0)))


@lru_cache(maxsize=_KEPT)
def _short_position(order: EpochOrder) -> int:
    """Return where in the epoch the last, possibly short block comes."""
    return int(np.flatnonzero(_block_order(order) == order._blocks - 1)[0])


@lru_cache(maxsize=_KEPT)
def _window_rows(order: EpochOrder, window: int) -> Rows:
    """Return the rows of a window in order: 8 bytes a row, kept for the batches that follow."""
    starts = order.starts_of(window)
    rows = (starts[:, None] + np.arange(order.block_rows, dtype=np.int64)).ravel()
    if rows.size and int(starts.max()) + order.block_rows > order.rows:
        rows = rows[rows < order.rows]
    return _frozen(rows[permutation(rows.size, key_of(order.seed, order.epoch, 1, window))])


@lru_cache(maxsize=_KEPT_GLOBAL)
def _global_rows(order: EpochOrder) -> Rows:
    return _frozen(permutation(order.rows, key_of(order.seed, order.epoch, 2)))


@lru_cache(maxsize=_KEPT_GLOBAL)
def _chunk_rows(order: EpochOrder, chunk: int) -> Rows:
    """Return the rows at ``_CHUNK`` positions of a global order."""
    stop = min((chunk + 1) * _CHUNK, order.rows)
    positions = np.arange(chunk * _CHUNK, stop, dtype=np.uint64)
    found = bijection(positions, order.rows, key_of(order.seed, order.epoch, 2))
    return _frozen(found.view(np.int64))


def _frozen(rows: Rows) -> Rows:
    rows.flags.writeable = False
    return rows
