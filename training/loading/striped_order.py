"""The order of a first epoch: stripe after stripe, so that it can begin before the pack is whole.

Stripes come in a permutation of their own; within one, blocks and windows are permuted as in any epoch.
The order is the same whether the pack is being written or was there already.

The trade-off: rows of different stripes do not meet in a batch of this epoch. Later epochs permute the
blocks of all stripes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np

from featurestore.errors import InvalidInputError
from training.loading.mixing import Rows, key_of, permutation
from training.loading.order import EpochOrder


@dataclass(frozen=True)
class StripedOrder:
    """An epoch that visits stripes one after the other.

    Parameters
    ----------
    order : EpochOrder
        The order whose seed, epoch and windows these are.
    stripes : tuple of int
        Rows of each stripe, as they lie in the pack; together ``order.rows``.

    Examples
    --------
    >>> order = StripedOrder(EpochOrder(6, block_rows=1, window_blocks=2), (3, 3))
    >>> {int(one) // 3 for one in order.indices(0, 3)} == set(order.visited[:1])
    True
    """

    order: EpochOrder
    stripes: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.stripes) != self.order.rows:
            raise InvalidInputError(
                f"stripes of {sum(self.stripes)} rows are no epoch of {self.order.rows}"
            )

    @cached_property
    def visited(self) -> tuple[int, ...]:
        """The stripes' numbers, in the order in which they are visited."""
        key = key_of(self.order.seed, self.order.epoch, 3)
        return tuple(permutation(len(self.stripes), key).tolist())

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self._windows[-1]

    def indices(self, start: int, stop: int) -> Rows:
        """Return the row numbers at positions ``[start, stop)``; see :meth:`EpochOrder.indices`."""
        if not 0 <= start <= stop <= self.order.rows:
            return self.order.indices(start, stop)  # which refuses it
        pieces: list[Rows] = []
        while start < stop:
            visit = self._visit_at(start)
            first, last = self._starts[visit : visit + 2]
            within = _stripe_order(self, visit)
            pieces.append(within.indices(start - first, min(stop, last) - first))
            pieces[-1] += self._bases[self.visited[visit]]  # indices are arrays of their own
            start = min(stop, last)
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.int64), *pieces])

    def window_at(self, position: int) -> int:
        """Return the window that position ``position`` of the epoch lies in."""
        visit = self._visit_at(position)
        inner = _stripe_order(self, visit).window_at(position - self._starts[visit])
        return self._windows[visit] + inner

    def starts_of(self, window: int) -> Rows:
        """Return the first rows of the blocks that a window mixes."""
        visit = bisect_right(self._windows, window) - 1
        inner = _stripe_order(self, visit).starts_of(window - self._windows[visit])
        return inner + self._bases[self.visited[visit]]

    def stripes_from(self, position: int) -> tuple[int, ...]:
        """Return the numbers of the stripes that are visited from a position on, in order."""
        return self.visited[self._visit_at(position) :] if position < self.order.rows else ()

    def _visit_at(self, position: int) -> int:
        return bisect_right(self._starts, position) - 1

    @cached_property
    def _bases(self) -> list[int]:
        return [0, *accumulate(self.stripes)]

    @cached_property
    def _starts(self) -> list[int]:
        """Positions of the epoch at which stripes begin, and its end."""
        return [0, *accumulate(self.stripes[one] for one in self.visited)]

    @cached_property
    def _windows(self) -> list[int]:
        """Windows before each visit, and all."""
        counts = (_stripe_order(self, visit).windows for visit in range(len(self.visited)))
        return [0, *accumulate(counts)]


@lru_cache(maxsize=4)
def striped(order: EpochOrder, stripes: tuple[int, ...]) -> StripedOrder:
    """Return a striped order, with what it computed kept for the batches that follow."""
    return StripedOrder(order, stripes)


@lru_cache(maxsize=1024)
def _stripe_order(order: StripedOrder, visit: int) -> EpochOrder:
    """Return the order of the rows of the stripe that is visited as number ``visit``."""
    number = order.visited[visit]
    seed = key_of(order.order.seed, order.order.epoch, 4, number)
    return replace(order.order, rows=order.stripes[number], seed=seed)
