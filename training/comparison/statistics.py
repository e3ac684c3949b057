"""Whether a difference is more than chance: intervals of differences between two models.

Both are judged on the same rows of the same folds, so that differences are paired. Two sources of chance are
told apart:

* Several folds: the *corrected resampled t-test*. Folds share training rows, so that their differences are
  alike and a plain t interval is far too narrow; the variance is multiplied by ``1/n + valid/train`` instead
  of ``1/n`` (C. Nadeau, Y. Bengio, "Inference for the generalization error", Machine Learning 52, 2003).
* Fewer than five folds say little about each other: the *delete-block jackknife* over stretches of time of the rows
  that both are judged by (H. Künsch, "The jackknife and the bootstrap for general stationary observations",
  Annals of Statistics 17, 1989), which holds for the models as they were trained. Labels that look ahead make rows
  of neighbouring times alike: a stretch is at least twice as long as they look.

Of several variants, the smallest p-values have to be smaller by as much as there are variants (S. Holm, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestore.dataset.batch import HostArray

LEVEL: Final = 0.05
FOLDS: Final = 5
"""So many folds have a variance among them worth asking."""
BLOCKS: Final = 50
_FEWEST_BLOCKS: Final = 8
_HORIZONS: Final = 2
"""How often a stretch is as long as labels look ahead, at least."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference, how far it may be off, and how likely it is by chance.

    Parameters
    ----------
    mean, lower, upper : float
        The 95% confidence interval; NaN where there is too little to say.
    p : float
        Of a difference as far from 0, were there none; two-sided.
    method : str
        In words.
    """

    mean: float
    lower: float
    upper: float
    p: float
    method: str


def corrected_t(differences: Sequence[float], valid_share: float) -> Interval:
    """Return the interval of the mean of one difference per fold.

    Parameters
    ----------
    differences : sequence of float
        Two or more.
    valid_share : float
        Rows validated on per row trained on.

    Examples
    --------
    >>> found = corrected_t([0.1, 0.12, 0.08, 0.11], 0.25)
    >>> round(found.mean, 4), found.lower > 0, found.p < 0.05
    (0.1025, True, True)
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    variance = float(values.var(ddof=1)) * (1 / count + valid_share)
    method = f"corrected resampled t over {count} folds"
    return _interval(float(values.mean()), variance, count - 1, method)


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows that two models are judged by, and how a difference between them is computed.

    Parameters
    ----------
    rows : int
    time : int64 array [rows], optional
        Rows of one time are left out together. Without, stretches of rows in the order of the table are.
    difference : function
        Of a mask ``bool [rows]`` of the rows that are left.
    horizon : int
        How far labels look ahead, in steps of the time.
    """

    rows: int
    time: HostArray | None
    difference: Callable[[HostArray], float]
    horizon: int = 0

    def left_out(self) -> tuple[float, float, int]:
        """Return the difference, the variance of it by leaving out a stretch at a time, and how many there are."""
        block = blocks_of(self.rows, self.time, _HORIZONS * self.horizon)
        count = int(block[-1]) + 1 if self.rows else 0
        whole = self.difference(np.ones(self.rows, dtype=bool))
        if count < _FEWEST_BLOCKS:
            return whole, math.nan, count
        left = np.array([self.difference(block != one) for one in range(count)])
        return whole, float(((left - left.mean()) ** 2).sum()) * (count - 1) / count, count


def jackknife(folds: Iterable[Judged]) -> Interval:
    """Return the interval of the mean difference over folds by leaving out one stretch of rows at a time.

    Folds are taken to err together, as those of overlapping times do: their standard errors are averaged. One
    fold is looked at after the other.
    """
    found, what = [], "rows"
    for one in folds:
        found.append(one.left_out())
        what = "rows" if one.time is None else "time"
    blocks = sum(count for _, _, count in found)
    method = f"delete-block jackknife over {blocks} stretches of {what}"
    error = float(np.mean([math.sqrt(variance) for _, variance, _ in found]))
    mean = float(np.mean([whole for whole, _, _ in found]))
    return _interval(mean, error * error, blocks - len(found), method)


def blocks_of(rows: int, time: HostArray | None, least: int = 0) -> HostArray:
    """Return the block of each row: at most 50 of about equal size, none of which parts a time.

    With ``least``, none but a lone one is shorter than so many steps of the time.

    Examples
    --------
    >>> blocks_of(4, np.array([7, 7, 7, 9])).tolist()
    [0, 0, 0, 1]
    >>> blocks_of(4, np.array([1, 2, 5, 9]), least=4).tolist()
    [0, 0, 1, 1]
    """
    if time is None:
        return np.arange(rows) * min(BLOCKS, rows) // max(1, rows)
    starts = np.flatnonzero(np.concatenate([[True], time[1:] != time[:-1]])) if rows else time
    counts = np.diff(np.append(starts, rows))
    # A time belongs where its first row does.
    place = starts * BLOCKS // max(1, rows)
    _, number = np.unique(place, return_inverse=True)
    if least > 0 and rows:
        number = _lengthened(number, time[starts], int(time[-1]), least)
    return np.repeat(number, counts)


def _lengthened(number: HostArray, time: HostArray, last: int, least: int) -> HostArray:
    """Return the block of each time, those put together that begin less than ``least`` before the next one."""
    begins = [int(time[np.argmax(number == one)]) for one in range(int(number[-1]) + 1)]
    kept = [begins[0]]
    for begin in begins[1:]:
        # The last one needs its length, too.
        if begin - kept[-1] >= least and last + 1 - begin >= least:
            kept.append(begin)
    return np.searchsorted(np.array(kept), time, side="right") - 1


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several; NaN stays NaN and does not count.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((value, place) for place, value in enumerate(p) if not math.isnan(value))
    found, highest = [math.nan] * len(p), 0.0
    for rank, (value, place) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - rank)))
        found[place] = highest
    return found


def _interval(mean: float, variance: float, freedom: int, method: str) -> Interval:
    if math.isnan(mean) or math.isnan(variance) or freedom < 1:
        return Interval(mean, math.nan, math.nan, math.nan, f"{method}: too little to say")
    if variance <= 0 and mean:  # by as much everywhere: how much is chance cannot be told
        return Interval(mean, math.nan, math.nan, math.nan, f"{method}: all differences are equal")
    if variance <= 0:
        return Interval(mean, mean, mean, 1.0, method)
    error = math.sqrt(variance)
    wide = t_quantile(1 - LEVEL / 2, freedom) * error
    return Interval(mean, mean - wide, mean + wide, t_tail(mean / error, freedom), method)


def t_tail(t: float, freedom: int) -> float:
    """Return the probability that Student's t is as far from 0, on either side.

    By the regularised incomplete beta function (W. Press et al., "Numerical Recipes", 6.4).

    Examples
    --------
    >>> round(t_tail(2.2281388519649385, 10), 10)
    0.05
    """
    near = t * t / (freedom + t * t)
    if near < 0.5:  # where the other way round would lose digits
        return 1 - _beta(near, 0.5, freedom / 2)
    return _beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(probability: float, freedom: int) -> float:
    """Return Student's t below which it is with some probability above one half.

    Examples
    --------
    >>> round(t_quantile(0.975, 10), 6)
    2.228139
    """
    low, high = 0.0, 1.0
    while t_tail(high, freedom) / 2 > 1 - probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if t_tail(middle, freedom) / 2 > 1 - probability else (low, middle)
        )
    return (low + high) / 2


def _beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function (Lentz's method)."""
    tiny = 1e-300
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + factor * d, tiny)
            c = _not_zero(1 + factor / c, tiny)
            change = c * d
            value *= change
        if abs(change - 1) < 1e-15:
            break
    return value


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
