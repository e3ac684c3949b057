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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.engines.blocks import blocks, whole_runs
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


def is_closed(
    xp: Any, level: Array, times: Array, low: Array, high: Array, *, exact: bool
) -> Array:
    """Return ``bool [n]``: which joins of rows can be made, now that all rows of a time span are known.

    Parameters
    ----------
    level, times : Array
    low, high : Array
        ``int64 [n]`` or ``[1]``: no row will be added between these times, both included.
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
    closed = (bits & ~inside) >= unsigned(xp, low)
    closed &= (bits | inside) <= unsigned(xp, high)
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
        folds = tuple(part.copy() for part in leaves)
        self._up(folds, merge)
        return folds

    def before(self, leaves: Parts, empty: Parts, merge: Merge) -> Parts:
        """Return the fold of what comes before each row in its group; ``empty`` before the first."""
        out = tuple(part.copy() for part in leaves)
        self._up(out, merge)
        roots = self.roots()
        for part, one in zip(out, empty, strict=True):
            part[roots] = one
        with np.errstate(all="ignore"):
            for younger, older in self._joins(reversed(self.steps)):
                beside = tuple(part.take(younger) for part in out)
                made = merge(self.xp, tuple(part.take(older) for part in out), beside)
                for part, new in zip(out, made, strict=True):
                    part[younger] = new
        return out

    def _up(self, folds: Parts, merge: Merge) -> None:
        """Put the folds of runs where these begin, and of each older one of two where the younger does."""
        with np.errstate(all="ignore"):
            for younger, older in self._joins(self.steps):
                early = tuple(part.take(older) for part in folds)
                made = merge(self.xp, early, tuple(part.take(younger) for part in folds))
                for part, new, old in zip(folds, made, early, strict=True):
                    part[older] = new
                    part[younger] = old

    def _joins(self, steps: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
        """Yield the joins of steps, some at a time: those of one step do not touch each other."""
        for younger, older in steps:
            for some in blocks(younger.shape[0], self.xp):
                yield younger[some], older[some]


@dataclass(frozen=True, slots=True)
class Nodes:
    """What is left of the rows of a span of time once all joins are made that no other row can change.

    Parameters
    ----------
    trees : tuple of (slice, TimeTree)
        Sorted positions, and their tree.
    order : Array
        ``int64 [n]``: the row at each sorted position.
    at : Array
        ``int64 [m]``: sorted positions at which what is left begins.
    rows : Array
        ``int64 [m]``: the first row of each, ascending.
    """

    trees: tuple[tuple[slice, TimeTree], ...]
    order: Array
    at: Array
    rows: Array

    @classmethod
    def of(
        cls, xp: Any, groups: Groups, times: Array, low: Array, high: Array, *, exact: bool
    ) -> Nodes:
        """Join rows in table order that have these times.

        ``low`` and ``high`` are as in :func:`is_closed`, for each row or for all.
        """
        trees, roots = [], [xp.zeros(0, dtype=xp.int64)]
        for where in whole_runs(xp, groups.number):
            rows = groups.order[where]
            when = times[rows]
            level = join_levels(xp, groups.number[where], when)
            span = [one if one.shape[0] == 1 else one[rows] for one in (low, high)]
            tree = TimeTree.of(xp, level, is_closed(xp, level, when, *span, exact=exact))
            trees.append((where, tree))
            roots.append(tree.roots() + where.start)
        at = xp.concatenate(roots)
        first = groups.order[at]
        ascending = xp.argsort(first)
        return cls(tuple(trees), groups.order, at[ascending], first[ascending])

    def folds(
        self, leaves: Callable[[slice], Mapping[str, Parts]], merges: Mapping[str, Merge | None]
    ) -> dict[str, Parts]:
        """Return the folds of what is left, by name, for the folds of rows at sorted positions.

        A fold without ``merge`` is of integers that are added.
        """
        found: dict[str, list[Parts]] = {name: [] for name in merges}
        for where, tree in self.trees or ((slice(0, 0), None),):
            roots = None if tree is None else tree.roots()
            for name, parts in leaves(where).items():
                merge = merges[name]
                if tree is None or roots is None:
                    made = parts
                elif merge is None:
                    made = tuple(_added(tree.xp, part, roots) for part in parts)
                else:
                    made = tuple(part[roots] for part in tree.fold(parts, merge))
                found[name].append(made)
        return {name: self._in_order(pieces) for name, pieces in found.items()}

    def _in_order(self, pieces: list[Parts]) -> Parts:
        """Return parts, as they are at ascending positions, in the order of ``rows``."""
        if not self.trees:
            return pieces[0]
        xp = self.trees[0][1].xp
        sorted_ = xp.argsort(self.at)  # where in ``rows`` those at ascending positions are
        out = []
        for part in zip(*pieces, strict=True):
            joined = xp.concatenate(part)
            put = xp.empty_like(joined)
            put[sorted_] = joined
            out.append(put)
        return tuple(out)


def _added(xp: Any, part: Array, roots: Array) -> Array:
    """Return the sums of integers of the runs that begin at these places."""
    before = xp.cumsum(part)
    before -= part
    totals = before[roots]
    out = xp.empty_like(totals)
    out[:-1] = totals[1:] - totals[:-1]
    out[-1:] = before[-1:] + part[-1:] - totals[-1:]
    return out
