"""Sums of floats as a fold of everything before a row that is exact: see :mod:`exact_sums` and :mod:`running`.

Always true: a sum is a function of the set of values, so runs may be merged in any order, and one fold per group is
all that a state keeps. Trade-off: 48 bytes where a sum in the order of a tree would keep 8 for each of some 20
runs. Infinities and NaN are not values here. A group has fewer than 2**31 rows (``exact_sums``).

Written once for NumPy and CuPy (``xp``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from featurestore.engines.blocks import blocks
from featurestore.engines.exact_sums import LIMBS, NOTHING, Sums, as_numbers, float_limbs
from featurestore.engines.protocol import Array
from featurestore.engines.running import COUNT, Fold, added_before
from featurestore.engines.time_trees import Parts


def _counted(xp: Any, values: Array, valid: Array, places: Array) -> Parts:
    if values.dtype.kind == "f":
        valid = valid & xp.isfinite(values)
    return COUNT.leaves(xp, values, valid, places)


FINITE: Final = replace(COUNT, leaves=_counted)
"""How many values are finite: ``(int64,)``."""


def _leaves(xp: Any, values: Array, valid: Array, places: Array) -> Parts:
    numbers = values.astype(xp.float64, copy=False)
    numbers = xp.where(valid & xp.isfinite(numbers), numbers, 0.0)
    top, limbs = float_limbs(xp, numbers)
    empty = xp.zeros(top.shape[0], dtype=xp.int64)
    return top, *limbs, *(empty.copy() for _ in range(LIMBS - len(limbs)))


def _merged(xp: Any, older: Parts, younger: Parts) -> Parts:
    top = xp.maximum(older[0], younger[0])
    limbs = [xp.zeros(top.shape[0], dtype=xp.int64) for _ in range(LIMBS)]
    for its_top, *its_limbs in (older, younger):
        # What stands at a place of the merged sum stands so much higher in its own.
        shift = top.astype(xp.int64) - its_top
        for own, part in enumerate(its_limbs):
            for place in range(own, LIMBS):
                limbs[place] += xp.where(shift == place - own, part, 0)
    return top, *limbs


def _before(xp: Any, leaves: Parts, begin: Array) -> Parts:
    """Return the sums before each leaf in its group: place by place, of which few are in use."""
    tops, size = leaves[0], begin.shape[0]
    top = xp.full(size, NOTHING, dtype=xp.int32)
    used = [one for one in xp.unique(tops).tolist() if one != NOTHING]
    for place in used:
        (seen,) = added_before(xp, (tops == place,), begin)
        top[seen > 0] = place
    limbs = tuple(xp.zeros(size, dtype=xp.int64) for _ in range(LIMBS))
    lowest, highest = (min(used) - LIMBS + 1, max(used)) if used else (0, -1)
    for place in range(lowest, highest + 1):
        here = xp.zeros(size, dtype=xp.int64)
        for own, limb in enumerate(leaves[1:]):
            at = tops == place + own
            here[at] = limb[at]
        (before,) = added_before(xp, (here,), begin)
        for own, limb in enumerate(limbs):
            at = top == place + own
            limb[at] = before[at]
    return top, *limbs


EXACT_SUM: Final = Fold("exact", (NOTHING, *[0] * LIMBS), _leaves, _merged, scan=_before)
"""Exact sums of the finite values: their place and limbs, ``(int32, int64, ...)``."""


def exact_numbers(xp: Any, parts: Parts) -> Array:
    """Return such sums as ``float64``, rounded once; beyond its range they are infinite."""
    out = xp.empty(parts[0].shape[0], dtype=xp.float64)
    for where in blocks(out.shape[0], xp):
        limbs = xp.stack([part[where] for part in parts[1:]])
        out[where] = as_numbers(xp, Sums(parts[0][where], limbs))
    return out
