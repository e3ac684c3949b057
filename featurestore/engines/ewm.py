"""Exponentially weighted means and deviations, as folds for :mod:`time_trees`.

A run of rows knows the place of its first and its last value (a time, or how many rows of the group came
before), so that two runs can be put together without their rows. Distances are counted in half-lives.

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
_NEVER: Final = -(2**63)
"""The place of the last value where there is none: not after any other."""
_FOREVER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Decay:
    """How weights fall.

    Parameters
    ----------
    half_life : float
        In rows, or in steps of the time.
    timed : bool
    adjust : bool
    """

    half_life: float
    timed: bool
    adjust: bool

    def folds(self) -> tuple[Fold, Fold]:
        """Return the folds of means and of deviations."""
        shift = None if self.timed else self._shifted
        places = (_NEVER, _FOREVER)[: self._places]
        mean: tuple[float, ...]
        if self.adjust:
            mean, leaves, merge = (0.0, -0.0), self._sum_leaves, self._merge_sums
            std, rest, merge_rest = 5, self._moment_leaves, self._merge_moments
        else:
            mean, leaves, merge = (0.0, 0.0, -0.0), self._lead_leaves, self._merge_leads
            std, rest, merge_rest = 7, self._rest_leaves, self._merge_rests
        return (
            Fold("mean", (*places, *mean), leaves, merge, exact=False, shift=shift),
            Fold("std", (*places, *[0.0] * std), rest, merge_rest, exact=False, shift=shift),
        )

    # --- where values are ------------------------------------------------------------------------

    @property
    def _places(self) -> int:
        """How many parts of a fold are places: the last value's, and perhaps the first's."""
        return 1 if self.adjust else 2

    def _shifted(self, xp: Any, parts: Parts, by: Array) -> Parts:
        moved = [
            xp.where(part == empty, part, part + by)
            for part, empty in zip(parts[: self._places], (_NEVER, _FOREVER), strict=False)
        ]
        return (*moved, *parts[self._places :])

    def _half_lives(self, xp: Any, older: Array, younger: Array) -> Array:
        """Return how many lie between two places."""
        # As unsigned: the distance of two int64 fits, its sign apart.
        distance = younger.view(xp.uint64) - older.view(xp.uint64)
        lives = distance.astype(xp.float64)
        lives /= self.half_life
        return lives

    def _left(self, xp: Any, older: Parts, younger: Parts) -> tuple[Array, Array]:
        """Return the place of the last value of two runs, and what weights of the older keep until then.

        All of them where the younger run has no values; where the older has none it has no weights.
        """
        last = xp.maximum(older[0], younger[0])
        lives = self._half_lives(xp, older[0], last)
        xp.negative(lives, out=lives)
        return last, xp.exp2(lives, out=lives)

    # --- adjusted --------------------------------------------------------------------------------

    def _sum_leaves(self, xp: Any, values: Array, valid: Array, places: Array) -> Parts:
        numbers = xp.where(valid, values.astype(xp.float64, copy=False), -0.0)
        return xp.where(valid, places, _NEVER), valid.astype(xp.float64), numbers

    def _merge_sums(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        last, left = self._left(xp, older, younger)
        weight = older[1] * left
        weight += younger[1]
        left *= older[2]
        left += younger[2]
        return last, weight, left

    def _moment_leaves(self, xp: Any, values: Array, valid: Array, places: Array) -> Parts:
        zero = xp.zeros(values.shape[0], dtype=xp.float64)
        mean = _finite(xp, values, valid)
        last = xp.where(valid, places, _NEVER)
        return last, valid.astype(xp.float64), mean, zero, zero, zero

    def _merge_moments(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        last, left = self._left(xp, older, younger)
        before, after = _scaled(older[1:5], left), younger[1:5]
        pairs = older[5] * left * left + younger[5] + 2.0 * before[0] * after[0]
        return last, *merge_weighted(xp, before, after), pairs

    # --- recursive -------------------------------------------------------------------------------

    def _shares(self, xp: Any, older: Parts, younger: Parts) -> tuple[Array, Array]:
        """Return the shares of what came before and of the younger run's first value, when it came."""
        lives = self._half_lives(xp, older[0], younger[1])
        decay = xp.exp2(-lives)
        gain = -xp.expm1(-_LN2 * (lives if self.timed else xp.full_like(lives, 1 / self.half_life)))
        total = decay + gain
        return decay / total, gain / total

    def _either(self, xp: Any, older: Parts, younger: Parts, made: Parts) -> Parts:
        """Return what was made of two runs, or the one that has values."""
        none, alone = younger[0] < younger[1], older[0] < older[1]
        rest = tuple(
            xp.where(none, a, xp.where(alone, b, c))
            for a, b, c in zip(older[2:], younger[2:], made, strict=True)
        )
        return xp.maximum(older[0], younger[0]), xp.minimum(older[1], younger[1]), *rest

    def _first_leaf(self, xp: Any, valid: Array, places: Array) -> Parts:
        return xp.where(valid, places, _NEVER), xp.where(valid, places, _FOREVER)

    def _lead_leaves(self, xp: Any, values: Array, valid: Array, places: Array) -> Parts:
        numbers = xp.where(valid, values.astype(xp.float64, copy=False), 0.0)
        rest = xp.full(values.shape[0], -0.0)
        return (*self._first_leaf(xp, valid, places), numbers, valid.astype(xp.float64), rest)

    def _merge_leads(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        """Merge ``(first value, its weight, weighted sum of the others)``; weights sum to 1."""
        before, gain = self._shares(xp, older, younger)
        kept = younger[3] * before
        share = younger[3] * gain
        # What came at the time of another value has no weight, and is not there, be it infinite.
        own = xp.where(share > 0, share * younger[2], 0.0)
        rest = kept * older[4] + own + younger[4]
        return self._either(xp, older, younger, (older[2], older[3] * kept, rest))

    def _rest_leaves(self, xp: Any, values: Array, valid: Array, places: Array) -> Parts:
        zero = xp.zeros(values.shape[0], dtype=xp.float64)
        first = _finite(xp, values, valid)
        weight = valid.astype(xp.float64)
        places_ = self._first_leaf(xp, valid, places)
        return (*places_, first, weight, zero, zero, zero, zero, zero)

    def _merge_rests(self, xp: Any, older: Parts, younger: Parts) -> Parts:
        """Merge ``(first value, its weight, moments of the others, weights of pairs of them)``."""
        before, gain = self._shares(xp, older, younger)
        kept = younger[3] * before
        zero = xp.zeros_like(kept)
        early = _scaled(older[4:8], kept)
        own = (younger[3] * gain, younger[2], zero, zero)
        late = younger[4:8]
        pairs = older[8] * kept * kept + younger[8]
        pairs = pairs + 2.0 * (early[0] * own[0] + early[0] * late[0] + own[0] * late[0])
        moments = merge_weighted(xp, merge_weighted(xp, early, own), late)
        return self._either(xp, older, younger, (older[2], older[3] * kept, *moments, pairs))

    # --- what comes out ----------------------------------------------------------------------------

    def means(self, xp: Any, parts: Parts) -> Array:
        """Return weighted means; whatever without values."""
        with np.errstate(all="ignore"):
            if self.adjust:
                return parts[2] / parts[1]
            # A weight that is nothing keeps nothing of a value, be it infinite.
            return xp.where(parts[3] > 0, parts[2] * parts[3], 0.0) + parts[4]

    def deviations(self, xp: Any, parts: Parts) -> tuple[Array, Array]:
        """Return unbiased weighted standard deviations, and where two values or more have weight."""
        with np.errstate(all="ignore"):
            if self.adjust:
                moments, pairs = parts[1:5], parts[5]
            else:
                zero = xp.zeros_like(parts[2])
                moments = merge_weighted(xp, (parts[3], parts[2], zero, zero), parts[4:8])
                pairs = parts[8] + 2.0 * parts[3] * parts[4]
            return xp.sqrt(moments[3] * moments[0] / pairs), pairs > 0


def _finite(xp: Any, values: Array, valid: Array) -> Array:
    numbers = values.astype(xp.float64, copy=False)
    numbers = xp.where(xp.isfinite(numbers), numbers, xp.nan)
    return xp.where(valid, numbers, 0.0)


def _scaled(moments: Parts, weight: Array) -> Parts:
    """Return ``(weight, mean, low, squares)`` with all weights made smaller."""
    return moments[0] * weight, moments[1], moments[2], moments[3] * weight
