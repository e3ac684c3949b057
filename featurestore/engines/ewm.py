"""Exponentially weighted means and deviations, as folds for :mod:`time_trees`.

A run of rows knows how far its first and its last value lie from its ends (in rows), or when they are
(in time), so that two runs can be put together without their rows. Distances are counted in half-lives.

``adjust``: a value ``d`` half-lives before the last one has weight ``2 ** -d``. Without, the recurrence
``y = (decay * y + gain * x) / (decay + gain)`` of each value over those before, where ``decay`` is
``2 ** -d`` from value to value, and ``gain`` is ``1 - decay`` of one row, or of the same length of time; a
run then keeps its first value apart, as its weight depends on whether anything came before.

Always true: all terms of weights are positive, so nothing cancels; NaN and infinities stay in what
follows them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from featurestore.engines.protocol import Array
from featurestore.engines.running import Fold, merge_weighted
from featurestore.engines.time_trees import Parts

_LN2: Final = math.log(2.0)
_PLACE: Final = (0, 0, 0, 0)
"""Of every fold, first: rows, values, and where the first and the last value are; ``int64``."""


@dataclass(frozen=True, slots=True)
class Decay:
    """How weights fall.

    Parameters
    ----------
    half_life : float
        In rows, or in steps of the time.
    timed : bool
    adjust : bool
    ignore_nulls : bool
        Whether rows without value do not count as rows.
    """

    half_life: float
    timed: bool
    adjust: bool
    ignore_nulls: bool

    def folds(self) -> tuple[Fold, Fold]:
        """Return the folds of means and of deviations."""
        if self.adjust:
            return (
                Fold("mean", (*_PLACE, 0.0, -0.0), self._sum_leaves, self._merge_sums, exact=False),
                Fold(
                    "std",
                    (*_PLACE, *[0.0] * 5),
                    self._moment_leaves,
                    self._merge_moments,
                    exact=False,
                ),
            )
        return (
            Fold("mean", (*_PLACE, 0.0, 0.0, -0.0), self._lead_leaves, self._merge_leads, exact=False),
            Fold(
                "std", (*_PLACE, *[0.0] * 7), self._rest_leaves, self._merge_rests, exact=False
            ),
        )  # fmt: skip

    # --- where values are ------------------------------------------------------------------------

    def _place(self, xp: Any, valid: Array, times: Array) -> Parts:
        count = valid.astype(xp.int64)
        if self.timed:
            at = xp.where(valid, times, 0)
            return xp.zeros_like(count), count, at, at
        rows = count if self.ignore_nulls else xp.ones_like(count)
        return rows, count, xp.zeros_like(count), xp.zeros_like(count)

    def _placed(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        rows = older[0]
        first = xp.where(older[1] > 0, older[2], rows + younger[2])
        last = xp.where(younger[1] > 0, rows + younger[3], older[3])
        return rows + younger[0], older[1] + younger[1], first, last

    def _half_lives(self, xp: Any, older: Parts, until: Array) -> Array:
        """Return how many lie between the older run's last value and a place in the younger."""
        # As unsigned: the distance of two int64 fits, its sign apart.
        distance = (older[0] + until).view(xp.uint64) - older[3].view(xp.uint64)
        return distance.astype(xp.float64) / self.half_life

    def _either(self, xp: Any, older: Parts, younger: Parts, made: Parts) -> Parts:
        """Return what was made of two runs, or the one that has values."""
        none, alone = younger[1] == 0, older[1] == 0
        rest = tuple(
            xp.where(none, a, xp.where(alone, b, c))
            for a, b, c in zip(older[4:], younger[4:], made, strict=True)
        )
        return (*self._placed(xp, older, younger), *rest)

    # --- adjusted --------------------------------------------------------------------------------

    def _sum_leaves(self, xp: Any, values: Array, valid: Array, times: Array) -> Parts:
        numbers = xp.where(valid, values.astype(xp.float64, copy=False), -0.0)
        return (*self._place(xp, valid, times), valid.astype(xp.float64), numbers)

    def _merge_sums(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        left = xp.exp2(-self._half_lives(xp, older, younger[3]))
        made = older[4] * left + younger[4], older[5] * left + younger[5]
        return self._either(xp, older, younger, made)

    def _moment_leaves(self, xp: Any, values: Array, valid: Array, times: Array) -> Parts:
        zero = xp.zeros(values.shape[0], dtype=xp.float64)
        mean = _finite(xp, values, valid)
        return (*self._place(xp, valid, times), valid.astype(xp.float64), mean, zero, zero, zero)

    def _merge_moments(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        left = xp.exp2(-self._half_lives(xp, older, younger[3]))
        before, after = _scaled(older[4:8], left), younger[4:8]
        pairs = older[8] * left * left + younger[8] + 2.0 * before[0] * after[0]
        return self._either(xp, older, younger, (*merge_weighted(xp, before, after), pairs))

    # --- recursive -------------------------------------------------------------------------------

    def _shares(self, xp: Any, older: Parts, younger: Parts) -> tuple[Array, Array]:
        """Return the shares of what came before and of the younger run's first value, when it came."""
        lives = self._half_lives(xp, older, younger[2])
        decay = xp.exp2(-lives)
        gain = -xp.expm1(-_LN2 * (lives if self.timed else xp.full_like(lives, 1 / self.half_life)))
        total = decay + gain
        return decay / total, gain / total

    def _lead_leaves(self, xp: Any, values: Array, valid: Array, times: Array) -> Parts:
        numbers = xp.where(valid, values.astype(xp.float64, copy=False), 0.0)
        rest = xp.full(values.shape[0], -0.0)
        return (*self._place(xp, valid, times), numbers, valid.astype(xp.float64), rest)

    def _merge_leads(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        """Merge ``(first value, its weight, weighted sum of the others)``; weights sum to 1."""
        before, gain = self._shares(xp, older, younger)
        kept = younger[5] * before
        rest = kept * older[6] + younger[5] * gain * younger[4] + younger[6]
        return self._either(xp, older, younger, (older[4], older[5] * kept, rest))

    def _rest_leaves(self, xp: Any, values: Array, valid: Array, times: Array) -> Parts:
        zero = xp.zeros(values.shape[0], dtype=xp.float64)
        first = _finite(xp, values, valid)
        weight = valid.astype(xp.float64)
        return (*self._place(xp, valid, times), first, weight, zero, zero, zero, zero, zero)

    def _merge_rests(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        """Merge ``(first value, its weight, moments of the others, weights of pairs of them)``."""
        before, gain = self._shares(xp, older, younger)
        kept = younger[5] * before
        zero = xp.zeros_like(kept)
        early = _scaled(older[6:10], kept)
        own = (younger[5] * gain, younger[4], zero, zero)
        late = younger[6:10]
        pairs = older[10] * kept * kept + younger[10]
        pairs = pairs + 2.0 * (early[0] * own[0] + early[0] * late[0] + own[0] * late[0])
        moments = merge_weighted(xp, merge_weighted(xp, early, own), late)
        return self._either(xp, older, younger, (older[4], older[5] * kept, *moments, pairs))

    # --- what comes out ----------------------------------------------------------------------------

    def means(self, xp: Any, parts: Parts) -> Array:
        """Return weighted means; whatever without values."""
        with np.errstate(all="ignore"):
            if self.adjust:
                return parts[5] / parts[4]
            # A weight that is nothing keeps nothing of a value, be it infinite.
            return xp.where(parts[5] > 0, parts[4] * parts[5], 0.0) + parts[6]

    def deviations(self, xp: Any, parts: Parts) -> tuple[Array, Array]:
        """Return unbiased weighted standard deviations, and where two values or more have weight."""
        with np.errstate(all="ignore"):
            if self.adjust:
                moments, pairs = parts[4:8], parts[8]
            else:
                zero = xp.zeros_like(parts[4])
                moments = merge_weighted(xp, (parts[5], parts[4], zero, zero), parts[6:10])
                pairs = parts[10] + 2.0 * parts[5] * parts[6]
            return xp.sqrt(moments[3] * moments[0] / pairs), pairs > 0


def _finite(xp: Any, values: Array, valid: Array) -> Array:
    numbers = values.astype(xp.float64, copy=False)
    numbers = xp.where(xp.isfinite(numbers), numbers, xp.nan)
    return xp.where(valid, numbers, 0.0)


def _scaled(moments: Parts, weight: Array) -> Parts:
    """Return ``(weight, mean, low, squares)`` with all weights made smaller."""
    return moments[0] * weight, moments[1], moments[2], moments[3] * weight
