"""How far one sample's distribution is from another's.

Two measures that people know, because each fails where the other does not.

Population stability index
    ``sum((a - b) * ln(a / b))`` over the shares of bins: the symmetric form of the Kullback-Leibler
    divergence (Jeffreys 1946), used for scorecards with deciles of the first sample as bins (Siddiqi,
    *Credit Risk Scorecards*, 2006). It has no upper bound. By his rule of thumb less than 0.1 is little,
    more than 0.25 much. Samples of the same distribution have about ``(bins - 1) * (1/n + 1/m)``
    (Yurdakul, *Statistical Properties of Population Stability Index*, 2018), which for 4,096 rows and ten
    bins is 0.004.

Kolmogorov-Smirnov distance
    The largest difference between the two distribution functions (Smirnov 1948), from 0 to 1. No p-value
    is given: rows that were sampled side by side are not independent, which would make it far too small.

Nulls, NaN and infinities take no part in either; their share is told beside them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LITTLE: Final = 0.1
MUCH: Final = 0.25
BINS: Final = 10
FEWEST: Final = 200
"""Values that each side must have to be compared: of fewer, chance alone makes an index of 0.1."""
_HALF_A_ROW: Final = 0.5


def decile_bins(reference: Floats) -> Floats:
    """Return the inner boundaries between bins of about equally many values.

    Parameters
    ----------
    reference : array of float64 ``[rows]``
        Finite and sorted. Where many values are equal there are fewer bins than ten.

    Returns
    -------
    array of float64 ``[<= 9]``
        Ascending, each once; a bin is ``boundary <= value < next boundary``.
    """
    at = np.arange(1, BINS) * len(reference) // BINS
    inner = np.unique(reference[at])
    # A boundary at the smallest value has nothing below it.
    found: Floats = inner[inner > reference[0]]
    return found


def psi(reference: Counts, other: Counts) -> float | None:
    """Return the population stability index of counts per bin; None if a side has no value.

    A bin that is empty on one side counts as half a row there, so that the index stays finite; one that
    is empty on both is left out.

    Examples
    --------
    >>> round(psi(np.array([50, 50]), np.array([80, 20])), 3)
    0.416
    """
    some = (reference > 0) | (other > 0)
    first, second = (np.maximum(one[some], _HALF_A_ROW) for one in (reference, other))
    if not reference.sum() or not other.sum():
        return None
    a, b = first / first.sum(), second / second.sum()
    return float(((b - a) * np.log(b / a)).sum())


def psi_of_numbers(reference: Floats, other: Floats) -> float | None:
    """Return the index of two sorted, finite samples, by the deciles of the first.

    Examples
    --------
    >>> same = np.arange(1000.0)
    >>> psi_of_numbers(same, same)
    0.0
    """
    if not len(reference) or not len(other):
        return None
    inner = decile_bins(reference)
    counts = [
        np.bincount(np.searchsorted(inner, one, side="right"), minlength=len(inner) + 1)
        for one in (reference, other)
    ]
    return psi(*counts)


def ks(reference: Floats, other: Floats) -> float | None:
    """Return the Kolmogorov-Smirnov distance of two sorted, finite samples; None if one is empty.

    Examples
    --------
    >>> ks(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    if not len(reference) or not len(other):
        return None
    points = np.concatenate([reference, other])
    below = [np.searchsorted(one, points, side="right") / len(one) for one in (reference, other)]
    return float(np.abs(below[0] - below[1]).max())
