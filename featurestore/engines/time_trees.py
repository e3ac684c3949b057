"""Folds of everything before a row, in an order that depends on the rows only.

A running sum in floating point depends on where it began to be added up, so it would change with the
partitions. Here the rows of a group are the leaves of a binary tree over time itself: halves of the
range of 64-bit times, halves of those, and so on (the compressed trie of the times' bits; the Cartesian
tree of M. Apetrei, "Fast and Simple Agglomerative LBVH Construction", 2014). A node's fold is that of
its older half, then its younger half. What comes before a row is the older halves beside its path from
the root, oldest first. Rows of one time are told apart by their number within group and time, as times
are never divided between partitions.

Always true: a node is the same whatever else there is, and once no row can be added to its stretch of time
it can be kept instead of its rows. So of a run of rows at most two nodes per bit of time remain for each
group, and what follows has the bits that it would have without cuts. A fold that is exact needs no more
than one.

Written once for NumPy and CuPy (``xp``); about three merges per row, in at most 128 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.protocol import Array
from featurestore.engines.windows import Groups, changes

Parts: TypeAlias = "tuple[Array, ...]"
Merge: TypeAlias = "Callable[[Any, Parts, Parts], Parts]"
"""``merge(xp, older, younger)``: the fold of two adjacent runs, all arrays of one length."""

_TIES: Final = 64
"""Levels up to it are within one time; the level of a query is just that."""
_SIGN: Final = 2**63


def bit_length(xp: Any, numbers: Array) -> Array:
    """Return ``uint8 [n]``: how many bits ``uint64`` numbers have.

    Examples
    --------
    >>> bit_length(np, np.array([0, 1, 2, 255, 2**53 + 1, 2**64 - 1], np.uint64)).tolist()
    [0, 1, 2, 8, 54, 64]
    """
    high = xp.frexp((numbers >> xp.uint64(32)).astype(xp.float64))[1]
    low = xp.frexp((numbers & xp.uint64(2**32 - 1)).astype(xp.float64))[1]
    return xp.where(high > 0, high + 32, low).astype(xp.uint8)


def unsigned(xp: Any, times: Array) -> Array:
    """Return ``int64`` times as ``uint64`` of the same order."""
    return times.astype(xp.int64, copy=False).view(xp.uint64) ^ xp.uint64(_SIGN)


def join_levels(xp: Any, number: Array, times: Array, query: Array | None = None) -> Array:
    """Return ``uint8 [n]``: how far up each row meets the one before it; 0 where a group begins.

    Parameters
    ----------
    number, times : Array
        ``int64 [n]``: group and time, in order of both.
    query : Array, optional
        ``bool [n]``: places in time without a row, at most one per group and time, before its rows.
    """
    level = xp.zeros(times.shape[0], dtype=xp.uint8)
    if times.shape[0] < 2:
        return level
    bits = unsigned(xp, times)
    level[1:] = bit_length(xp, bits[1:] ^ bits[:-1])
    level += xp.uint8(_TIES)
    level[changes(xp, number)] = 0
    tied = level == _TIES
    if query is not None:
        begins = ~tied
        begins[1:] |= query[:-1]
    else:
        begins = ~tied
    here = xp.arange(times.shape[0], dtype=xp.int64)
    first = xp.maximum.accumulate(xp.where(begins, here, 0)) if xp is np else _running(xp, begins)
    nth = (here - first).view(xp.uint64)
    tied &= ~begins
    level[tied] = bit_length(xp, nth[tied] ^ (nth[tied] - xp.uint64(1)))
    return level


def _running(xp: Any, begins: Array) -> Array:
    # CuPy has no running maximum: the begins, numbered.
    return xp.flatnonzero(begins)[xp.cumsum(begins) - 1]


def is_closed(xp: Any, level: Array, times: Array, low: int, high: int, *, exact: bool) -> Array:
    """Return ``bool [n]``: which joins of rows can be made, now that all rows of a time span are known.

    Parameters
    ----------
    level, times : Array
    low, high : int
        No row will be added between these times, both included.
    exact : bool
        Whether the fold is the same in any order: then everything up to ``high`` is joined.
    """
    if exact:
        return (level > 0) & (times <= high)
    bits = unsigned(xp, times)
    size = level.astype(xp.int64) - _TIES
    size = xp.maximum(size, 0)
    # A shift by 64 is undefined: the whole range is named by itself.
    inside = (xp.uint64(1) << xp.minimum(size, 63).astype(xp.uint64)) - xp.uint64(1)
    inside[size == 64] = xp.uint64(2**64 - 1)
    closed = (bits & ~inside) >= xp.uint64(low + _SIGN)
    closed &= (bits | inside) <= xp.uint64(max(high + _SIGN, 0))
    closed &= (level > 0) & (times <= high)
    return closed


@dataclass(frozen=True, slots=True)
class TimeTree:
    """The tree of sorted rows: which runs are joined, from the leaves up.

    Parameters
    ----------
    xp : module
    size : int
        Rows.
    steps : tuple of (Array, Array)
        ``int64``: where the younger runs begin that are joined in a step, and where the older do.
    """

    xp: Any
    size: int
    steps: tuple[tuple[Array, Array], ...]

    @classmethod
    def of(cls, xp: Any, level: Array, closed: Array | None = None) -> TimeTree:
        """Return the tree of rows that meet at these levels; with ``closed``, of these joins only."""
        if closed is not None:
            level = xp.where(closed, level, xp.uint8(0))
        order = xp.argsort(level, kind="stable")
        counts = xp.bincount(level, minlength=1).tolist()
        first = xp.arange(level.shape[0], dtype=xp.int64)
        last = first.copy()
        steps, at = [], counts[0]
        for count in counts[1:]:
            if count:
                younger = order[at : at + count].astype(xp.int64, copy=False)
                older, end = first[younger - 1], last[younger]
                first[end], last[older] = older, end
                steps.append((younger, older))
            at += count
        return cls(xp, level.shape[0], tuple(steps))

    def roots(self) -> Array:
        """Return ``int64``: where the runs begin that are not joined to one before them."""
        root = self.xp.ones(self.size, dtype=self.xp.bool_)
        for younger, _ in self.steps:
            root[younger] = False
        return self.xp.flatnonzero(root)

    def fold(self, leaves: Parts, merge: Merge) -> Parts:
        """Return the folds of runs, each where its run begins; elsewhere of parts of them."""
        return self._up(leaves, merge)[0]

    def before(self, leaves: Parts, empty: Parts, merge: Merge) -> Parts:
        """Return the fold of what comes before each row in its group; ``empty`` before the first."""
        xp = self.xp
        _, beside = self._up(leaves, merge)
        out = tuple(
            xp.full(self.size, one, dtype=part.dtype)
            for one, part in zip(empty, leaves, strict=True)
        )
        with np.errstate(all="ignore"):
            for younger, older in reversed(self.steps):
                earlier = tuple(part[older] for part in out)
                made = merge(xp, earlier, tuple(part[younger] for part in beside))
                for part, new in zip(out, made, strict=True):
                    part[younger] = new
        return out

    def _up(self, leaves: Parts, merge: Merge) -> tuple[Parts, Parts]:
        """Return the folds, and for the younger of two runs the fold of the older one."""
        xp = self.xp
        folds = tuple(part.copy() for part in leaves)
        beside = tuple(xp.empty_like(part) for part in leaves)
        with np.errstate(all="ignore"):
            for younger, older in self.steps:
                early = tuple(part[older] for part in folds)
                made = merge(xp, early, tuple(part[younger] for part in folds))
                for part, new, side, old in zip(folds, made, beside, early, strict=True):
                    part[older] = new
                    side[younger] = old
        return folds, beside


@dataclass(frozen=True, slots=True)
class Nodes:
    """What is left of the rows of a span of time once all joins are made that no other row can change.

    Parameters
    ----------
    tree : TimeTree
    order : Array
        ``int64 [n]``: the row at each sorted position.
    at : Array
        ``int64 [m]``: sorted positions at which what is left begins.
    rows : Array
        ``int64 [m]``: the first row of each, ascending.
    """

    tree: TimeTree
    order: Array
    at: Array
    rows: Array

    @classmethod
    def of(
        cls, xp: Any, groups: Groups, times: Array, span: tuple[int, int], *, exact: bool
    ) -> Nodes:
        """Join rows in table order that have these times; ``span`` is as in :func:`is_closed`."""
        when = times[groups.order]
        level = join_levels(xp, groups.number, when)
        tree = TimeTree.of(xp, level, is_closed(xp, level, when, *span, exact=exact))
        at = tree.roots()
        rows = groups.order[at]
        ascending = xp.argsort(rows)
        return cls(tree, groups.order, at[ascending], rows[ascending])

    def fold(self, leaves: Parts, merge: Merge) -> Parts:
        """Return the folds of what is left, for the folds of rows in table order."""
        folded = self.tree.fold(tuple(part[self.order] for part in leaves), merge)
        return tuple(part[self.at] for part in folded)
