"""What each row sees of the rows before it, as folds of a tree over time (:mod:`time_trees`).

Three ways: up to the row itself or the one before it, in table order; all rows of earlier times; or all
rows up to a time that lies a while before the row's. For the last, that place in time is put among the rows
as a leaf of its own which holds nothing, so that a value depends on when its row is and on the rows it
sees, and not on rows in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.running import Fold
from featurestore.engines.time_trees import Parts, TimeTree, join_levels
from featurestore.engines.windows import INT64_MIN, changes, numbered, subtract_floor


@dataclass(frozen=True, slots=True)
class Sorted:
    """Some whole groups of rows, sorted by group.

    Parameters
    ----------
    order : Array
        ``int64 [n]``: the row at each position.
    number, begin, times : Array
        ``int64 [n]``: its group, where that begins, and its time.
    own : Array or slice
        The positions of the rows that are asked for.
    target : Array
        ``int64 [q]``: which rows they are.
    """

    order: Array
    number: Array
    begin: Array
    times: Array
    own: Array | slice
    target: Array


@dataclass(frozen=True)
class View:
    """Where in the tree what rows see ends.

    Parameters
    ----------
    xp : module
    rows : Sorted
    number, begin, when : Array
        ``int64 [m]``: of each leaf the group, where that begins, and the time.
    at : Array or slice
        The leaf of each row asked for: it sees what comes before that.
    inclusive : bool
        It sees the leaf as well.
    slot : Array, optional
        ``int64 [n]``: the leaf of each row, if places in time are leaves too.
    query : Array, optional
        ``bool [m]``: which leaves are such places.
    blind : Array, optional
        ``bool [q]``: which rows see nothing.
    """

    xp: Any
    rows: Sorted
    number: Array
    begin: Array
    when: Array
    at: Array | slice
    inclusive: bool
    slot: Array | None = None
    query: Array | None = None
    blind: Array | None = None

    @classmethod
    def plain(cls, xp: Any, rows: Sorted, *, inclusive: bool) -> View:
        """Return the view of rows that see what comes before them in table order."""
        return cls(xp, rows, rows.number, rows.begin, rows.times, rows.own, inclusive)

    @classmethod
    def earlier(cls, xp: Any, rows: Sorted) -> View:
        """Return the view of rows that see all rows of earlier times."""
        fresh = changes(xp, rows.number) | changes(xp, rows.times)
        at = xp.flatnonzero(fresh)[numbered(xp, fresh)][rows.own]
        return cls(xp, rows, rows.number, rows.begin, rows.times, at, False)

    @classmethod
    def lagged(cls, xp: Any, rows: Sorted, end: Array, lag: int, closed: str) -> View:
        """Return the view of rows that see all rows up to ``lag`` before their time.

        Those of that time themselves only with ``closed="right"``. ``end`` is where they end, ``int64 [n]``.
        """
        number, times, end = (one[rows.own] for one in (rows.number, rows.times, end))
        fresh = changes(xp, number) | changes(xp, times)
        until, blind = subtract_floor(xp, times, lag)
        if closed == "right":
            until = xp.where(blind, INT64_MIN, until + 1)
        # One place for all rows of a group and time; none where time has no beginning before it.
        asked = xp.flatnonzero(fresh & ~blind)
        place = xp.cumsum(fresh & ~blind, dtype=xp.int64)
        place -= 1
        size = rows.times.shape[0]
        slots = xp.concatenate([end[asked] * 2, xp.arange(size, dtype=xp.int64) * 2 + 1])
        order = xp.argsort(slots, kind="stable").astype(xp.int64, copy=False)
        slot = xp.empty_like(order)
        slot[order] = xp.arange(order.shape[0], dtype=xp.int64)
        places = asked.shape[0]
        numbers = xp.concatenate([number[asked], rows.number])[order]
        every = xp.concatenate([until[asked], rows.times])[order]
        starts = changes(xp, numbers)
        begin = xp.flatnonzero(starts)[numbered(xp, starts)]
        at = slot[:places][xp.maximum(place, 0)] if places else place
        query = order < places
        return cls(xp, rows, numbers, begin, every, at, False, slot[places:], query, blind)

    @cached_property
    def tree(self) -> TimeTree:
        """The tree of the leaves."""
        return TimeTree.of(self.xp, join_levels(self.xp, self.number, self.when, self.query))

    def seen(self, leaves: Parts, fold: Fold) -> Parts:
        """Return the fold of what each row sees, for the folds of rows at their positions."""
        xp, held = self.xp, leaves
        if self.slot is not None:
            held = tuple(
                self._spread(part, one) for part, one in zip(held, fold.empty, strict=True)
            )
        if fold.scan is not None:
            before = fold.scan(xp, held, self.begin)
        else:
            before = self.tree.before(held, fold.empty, fold.merge)
        out = tuple(part[self.at] for part in before) if before[0].shape[0] else before
        if self.inclusive:
            self._add_own(out, held, fold)
        if self.blind is not None:
            out = tuple(
                xp.where(self.blind, part.dtype.type(one), part)
                for part, one in zip(out, fold.empty, strict=True)
            )
        return out

    def _add_own(self, out: Parts, held: Parts, fold: Fold) -> None:
        at = self.at
        with np.errstate(all="ignore"):
            for some in blocks(out[0].shape[0], self.xp):
                here = some if isinstance(at, slice) else at[some]
                earlier, own = (
                    tuple(part[one] for part in parts) for parts, one in ((out, some), (held, here))
                )
                for part, new in zip(out, fold.merge(self.xp, earlier, own), strict=True):
                    part[some] = new

    def _spread(self, part: Array, empty: float) -> Array:
        out = self.xp.full(self.number.shape[0], empty, dtype=part.dtype)
        out[self.slot] = part
        return out
