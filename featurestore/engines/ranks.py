"""Ranks and standard scores within groups.

Written once for NumPy and CuPy (``xp``). Values are sorted within their group before anything is
added up, so the result depends on the group's values and not on the order of its rows.

Null rule: rows whose value is null or NaN are not counted and keep what they have; an infinity is the
largest or smallest value of its group, and its group has no standard scores (NaN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.windows import changes, fold, merge_moments, numbered, stable_order


@dataclass(frozen=True, slots=True)
class SortedGroups:
    """The rows that count, sorted by group and value.

    Parameters
    ----------
    xp : module
    rows : int
        Number of rows, counted ones and others.
    order : Array
        ``int64 [m]``: the row at each sorted position.
    values : Array
        ``[m]``: its value.
    begin, end : Array
        ``int64 [g]``: group ``i`` holds the positions ``[begin[i], end[i])``.
    group : Array
        ``int64 [m]``: the group of each sorted position.
    """

    xp: Any
    rows: int
    order: Array
    values: Array
    begin: Array
    end: Array
    group: Array

    @classmethod
    def of(cls, xp: Any, codes: Array, values: Array, counted: Array) -> SortedGroups:
        """Sort the ``counted`` rows by group code, then value."""
        if bool(counted.all()):
            by_value = xp.argsort(values, kind="stable")
        else:
            kept = xp.flatnonzero(counted)
            by_value = kept[xp.argsort(values[kept], kind="stable")]
            del kept
        order = by_value[stable_order(xp, codes[by_value])]
        starts = changes(xp, codes[order])
        begin = xp.flatnonzero(starts)
        end = xp.empty_like(begin)
        end[:-1] = begin[1:]
        end[-1:] = order.shape[0]
        del by_value
        group = numbered(xp, starts)
        return cls(xp, values.shape[0], order, values[order], begin, end, group)

    def rank(self) -> Array:
        """Return average ranks divided by the group's count, in ``(0, 1]``; 0 where not counted.

        The smallest of ``n`` different values has ``1 / n``, the largest 1; equal values share the
        mean of their ranks.
        """
        xp = self.xp
        ties = changes(xp, self.group) | changes(xp, self.values)
        first = xp.flatnonzero(ties)
        after = xp.empty_like(first)
        after[:-1] = first[1:]
        after[-1:] = self.order.shape[0]
        # Positions count from 0, ranks from 1: ties first..after-1 share (first + after + 1) / 2.
        after += first
        after += 1
        tie, counts = numbered(xp, ties), 2 * (self.end - self.begin)
        out = xp.zeros(self.rows, dtype=xp.float64)
        for where in blocks(self.order.shape[0], xp):
            group = self.group[where]
            twice = after[tie[where]] - 2 * self.begin[group]
            out[self.order[where]] = twice / counts[group]
        return out

    def zscore(self) -> Array:
        """Return ``(value - mean) / std`` (``ddof=1``); 0 in groups of equal values or of one."""
        xp = self.xp
        numbers = self.values.astype(xp.float64, copy=False)
        mean, squares = fold(
            xp, (numbers, xp.zeros_like(numbers)), self.end, self.end - self.begin, merge_moments
        )
        constant = self.values[self.begin] == self.values[self.end - 1]
        infinite = xp.isinf(numbers[self.begin]) | xp.isinf(numbers[self.end - 1])
        out = xp.zeros(self.rows, dtype=xp.float64)
        with np.errstate(all="ignore"):
            deviation = xp.sqrt(squares / xp.maximum(self.end - self.begin - 1, 1))
            flat = constant | (deviation == 0.0)
            for where in blocks(self.order.shape[0], xp):
                group = self.group[where]
                scores = (numbers[where] - mean[group]) / deviation[group]
                scores[flat[group]] = 0.0
                scores[infinite[group]] = xp.nan
                out[self.order[where]] = scores
        return out
