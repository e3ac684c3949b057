"""What each row sees of the rows before it, as folds of a tree over time (:mod:`time_trees`).

Three ways: up to the row itself or the one before it, in table order; all rows of earlier times; or all
rows up to a time that lies a while before the row's. For the last, that place in time is put among the rows
as a leaf of its own which holds nothing, so that a value depends on when its row is and on the rows it
sees, and not on rows in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from featurestore.engines.protocol import Array
from featurestore.engines.running import Fold
from featurestore.engines.time_trees import Parts, TimeTree, join_levels
from featurestore.engines.windows import (
    INT64_MIN,
    Groups,
    changes,
    numbered,
    subtract_floor,
    time_windows,
)

Own: TypeAlias = "tuple[Array | slice, Array]"
"""Which sorted positions are asked for, and which rows they are."""


@dataclass(frozen=True, slots=True)
class View:
    """The rows that are asked for, and where in the tree what they see ends.

    Parameters
    ----------
    xp : module
    tree : TimeTree
    order : Array
        ``int64 [n]``: the row at each sorted position.
    slot : Array, optional
        ``int64 [n]``: the leaf of each sorted row, if places in time are leaves too.
    at : Array or slice
        The leaf of each row asked for: it sees what comes before that.
    inclusive : bool
        It sees the leaf as well.
    target, times : Array
        ``int64 [q]``: which rows they are, and their times.
    blind : Array, optional
        ``bool [q]``: which see nothing.
    """

    xp: Any
    tree: TimeTree
    order: Array
    slot: Array | None
    at: Array | slice
    inclusive: bool
    target: Array
    times: Array
    blind: Array | None = None

    @classmethod
    def plain(cls, xp: Any, groups: Groups, times: Array, own: Own, *, inclusive: bool) -> View:
        """Return the view of rows that see what comes before them in table order."""
        when = times[groups.order]
        tree = TimeTree.of(xp, join_levels(xp, groups.number, when))
        return cls(xp, tree, groups.order, None, own[0], inclusive, own[1], when[own[0]])

    @classmethod
    def earlier(cls, xp: Any, groups: Groups, times: Array, own: Own) -> View:
        """Return the view of rows that see all rows of earlier times."""
        when = times[groups.order]
        fresh = changes(xp, groups.number) | changes(xp, when)
        at = xp.flatnonzero(fresh)[numbered(xp, fresh)][own[0]]
        tree = TimeTree.of(xp, join_levels(xp, groups.number, when))
        return cls(xp, tree, groups.order, None, at, False, own[1], when[own[0]])

    @classmethod
    def lagged(cls, xp: Any, groups: Groups, times: Array, own: Own, lag: int, closed: str) -> View:
        """Return the view of rows that see all rows up to ``lag`` before their time.

        Those of that time themselves only with ``closed="right"``.
        """
        when = times[groups.order]
        _, end = time_windows(xp, groups, times, width=1, lag=lag, closed=closed)
        number, own_times, end = groups.number[own[0]], when[own[0]], end[own[0]]
        fresh = changes(xp, number) | changes(xp, own_times)
        until, blind = subtract_floor(xp, own_times, lag)
        if closed == "right":
            until = xp.where(blind, INT64_MIN, until + 1)
        # One place for all rows of a group and time; none where time has no beginning before it.
        asked = xp.flatnonzero(fresh & ~blind)
        place = xp.cumsum(fresh & ~blind, dtype=xp.int64)
        place -= 1
        slots = xp.concatenate([end[asked] * 2, xp.arange(when.shape[0], dtype=xp.int64) * 2 + 1])
        order = xp.argsort(slots, kind="stable").astype(xp.int64, copy=False)
        slot = xp.empty_like(order)
        slot[order] = xp.arange(order.shape[0], dtype=xp.int64)
        places = asked.shape[0]
        numbers = xp.concatenate([number[asked], groups.number])[order]
        every = xp.concatenate([until[asked], when])[order]
        tree = TimeTree.of(xp, join_levels(xp, numbers, every, order < places))
        at = slot[:places][xp.maximum(place, 0)] if places else place
        return cls(xp, tree, groups.order, slot[places:], at, False, own[1], own_times, blind)

    def seen(self, leaves: Parts, fold: Fold) -> Parts:
        """Return the fold of what each row sees, for the folds of rows in table order."""
        xp = self.xp
        held = tuple(part[self.order] for part in leaves)
        if self.slot is not None:
            held = tuple(map(self._spread, held, fold.empty))
        before = self.tree.before(held, fold.empty, fold.merge)
        if not before[0].shape[0]:
            return before
        out = tuple(part[self.at] for part in before)
        del before
        if self.inclusive:
            with np.errstate(all="ignore"):
                out = fold.merge(xp, out, tuple(part[self.at] for part in held))
        if self.blind is not None:
            out = tuple(
                xp.where(self.blind, part.dtype.type(one), part)
                for part, one in zip(out, fold.empty, strict=True)
            )
        return out

    def _spread(self, part: Array, empty: float) -> Array:
        out = self.xp.full(self.tree.size, empty, dtype=part.dtype)
        out[self.slot] = part
        return out
