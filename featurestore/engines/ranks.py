"""Ranks, standard scores, deviations and quantiles within groups.

Written once for NumPy and CuPy (``xp``). Values are sorted within their group before anything is
added up, so the result depends on the group's values and not on the order of its rows.

Null rule: rows whose value is null or NaN are not counted and keep what they have; an infinity is the
largest or smallest value of its group, and its group has no standard scores (NaN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array
from featurestore.engines.windows import changes, fold, merge_moments, numbered, stable_order

METHODS: Final = ("average", "min", "max", "dense")
_HUGE: Final = 1025
"""An exponent above those of differences of ``float64``."""
_REVERSED: Final = {"min": "max", "max": "min"}


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

    def shifted(self) -> SortedGroups:
        """Return the groups with values counted from the smallest of each, as ``float64``.

        So that a mean that is far larger than the spread costs no digits. Integers are subtracted
        exactly. Groups whose spread is no finite number keep their values (:meth:`lowest` is 0).
        """
        xp = self.xp
        out = xp.empty(self.values.shape[0], dtype=xp.float64)
        if self.values.dtype.kind == "f":
            base = self.lowest()
            for where in blocks(out.shape[0], xp):
                out[where] = self.values[where].astype(xp.float64) - base[self.group[where]]
        else:
            # Modulo 2**64, so that a difference of any two 64-bit integers is exact.
            base = _bits(xp, self.values[self.begin])
            for where in blocks(out.shape[0], xp):
                out[where] = _bits(xp, self.values[where]) - base[self.group[where]]
        return replace(self, values=out)

    def scaled(self) -> SortedGroups:
        """Return :meth:`shifted` groups divided by a power of two, so that each spread is about 1.

        Exact: squares of what is far from 1 would leave the range of ``float64``.
        """
        xp = self.xp
        with np.errstate(all="ignore"):
            spread = self.values[self.end - 1] - self.values[self.begin]
        _, exponent = xp.frexp(spread)
        exponent[~xp.isfinite(spread)] = _HUGE
        out = xp.empty_like(self.values)
        for where in blocks(out.shape[0], xp):
            out[where] = xp.ldexp(self.values[where], -exponent[self.group[where]])
        return replace(self, values=out)

    def lowest(self) -> Array:
        """Return what :meth:`shifted` takes off the values of each group, as ``float64``."""
        xp = self.xp
        low = self.values[self.begin].astype(xp.float64)
        if self.values.dtype.kind == "f":
            with np.errstate(all="ignore"):
                low[~xp.isfinite(self.values[self.end - 1] - low)] = 0.0
        return low

    def rank(
        self, method: str = "average", *, normalized: bool = True, ascending: bool = True
    ) -> Array:
        """Return ranks as ``float64``; 0 where not counted.

        Parameters
        ----------
        method : {"average", "min", "max", "dense"}
            The rank of equal values: the mean, smallest or largest of the places that they take
            together, or their place among the different values.
        normalized : bool
            Divide by the group's count (of different values for ``dense``): of ``n`` different values
            the first has ``1 / n`` and the last 1.
        ascending : bool
            Whether the smallest value is the first.
        """
        xp, counted = self.xp, self.order.shape[0]
        starts = changes(xp, self.group) | changes(xp, self.values)
        tie, found = numbered(xp, starts), xp.flatnonzero(starts)
        edges = xp.empty(found.shape[0] + 1, dtype=xp.int64)
        edges[:-1] = found
        edges[-1:] = counted
        del found, starts
        lead = tie[self.begin]
        last = tie[self.end - 1] - lead + 1 if method == "dense" else self.end - self.begin
        share = xp.empty(edges.shape[0] - 1, dtype=xp.float64)
        how = method if ascending else _REVERSED.get(method, method)
        for where in blocks(share.shape[0], xp):
            # Places count from 0, ranks from 1: ties low..high-1 share (low + high + 1) / 2.
            low, high = edges[where], edges[where.start + 1 : where.stop + 1]
            group = self.group[low]
            if how == "dense":
                twice = 2 * (xp.arange(where.start, where.stop) - lead[group] + 1)
            elif how == "average":
                twice = low + high + 1 - 2 * self.begin[group]
            else:
                twice = 2 * ((low + 1 if how == "min" else high) - self.begin[group])
            if not ascending:
                twice = 2 * (last[group] + 1) - twice
            share[where] = twice / (2 * last[group] if normalized else 2)
        out = xp.zeros(self.rows, dtype=xp.float64)
        for where in blocks(counted, xp):
            out[self.order[where]] = share[tie[where]]
        return out

    def moments(self) -> tuple[Array, Array]:
        """Return each group's mean and sum of squared deviations."""
        xp = self.xp
        numbers = self.values.astype(xp.float64, copy=False)
        zeros = xp.zeros_like(numbers)
        mean, squares, _ = fold(
            xp, (numbers, zeros, zeros), self.end, self.end - self.begin, merge_moments
        )
        return mean, squares

    def demean(self) -> Array:
        """Return ``value - mean``; NaN in groups with an infinity, 0 where not counted."""
        xp = self.xp
        mean, _ = self.moments()
        with np.errstate(all="ignore"):
            mean[~xp.isfinite(self.values[self.end - 1] - self.values[self.begin])] = xp.nan
            out = xp.zeros(self.rows, dtype=xp.float64)
            for where in blocks(self.order.shape[0], xp):
                out[self.order[where]] = self.values[where] - mean[self.group[where]]
        return out

    def quantiles(self, share: float) -> Array:
        """Return each group's quantile, between its two nearest values in proportion (``linear``).

        Values have to be finite.
        """
        xp = self.xp
        last = self.end - self.begin - 1
        place = last * share
        whole = xp.floor(place).astype(xp.int64)
        part = place - whole
        low = self.values[self.begin + whole].astype(xp.float64)
        high = self.values[self.begin + xp.minimum(whole + 1, last)].astype(xp.float64)
        with np.errstate(all="ignore"):
            between = low + (high - low) * part
            # A difference beyond float64 is never formed here.
            return xp.where(xp.isfinite(between), between, low * (1.0 - part) + high * part)

    def of_codes(self, codes: Array, values: Array, otherwise: float) -> Array:
        """Return a value per group as a table by group code: ``table[codes]`` has it for every row."""
        xp = self.xp
        table = xp.full(self.rows, otherwise, dtype=values.dtype)
        table[codes[self.order[self.begin]]] = values
        return table

    def zscore(self) -> Array:
        """Return ``(value - mean) / std`` (``ddof=1``); 0 in groups of equal values or of one."""
        xp = self.xp
        numbers = self.values.astype(xp.float64, copy=False)
        mean, squares = self.moments()
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


def _bits(xp: Any, whole: Array) -> Array:
    """Return integers modulo 2**64, as ``uint64``."""
    return whole if whole.dtype == xp.uint64 else whole.astype(xp.int64).view(xp.uint64)
