"""How good the predictions of a cell are, and the part of them that is asked for.

Besides the metrics of ``training.metrics``: the information coefficient, the mean over times of the rank
correlation between prediction and label of the rows of a time, which is what a cross-sectional model is
judged by (R. Grinold, R. Kahn, "Active Portfolio Management", 1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError
from training.metrics import evaluate

IC: Final = "ic"
_LEAST: Final = 3
"""Rows of a time whose ranks can be correlated in earnest."""
_RISING: Final = ("auc", "accuracy", "r2", IC, "ic_ir")
"""Metrics of which more is better; of the others less is."""
CHOICES: Final = {
    "binary": ("auc", "loss", "accuracy"),
    "regression": ("rmse", "mae", "loss", "r2", IC),
    "multiclass": ("loss", "accuracy"),
}
"""By what a task may be compared; first what it is by default."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said of the rows it is judged by, in the order of the table.

    Parameters
    ----------
    label : array [rows]
    prediction : array [rows] or [rows, classes]
    time : int64 array [rows], optional
        In steps of the time column, never falling.
    """

    label: HostArray
    prediction: HostArray
    time: HostArray | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.label), len(self.prediction)} | (
            set() if self.time is None else {len(self.time)}
        )
        if len(lengths) != 1:
            raise InvalidInputError(f"labels, predictions and times of {sorted(lengths)} rows")

    def __len__(self) -> int:
        return len(self.label)

    def same_rows(self, other: Predictions) -> bool:
        """Whether others are of the same rows in the same order, as far as labels and times tell."""
        times = (self.time is None) == (other.time is None)
        if times and self.time is not None and other.time is not None:
            times = np.array_equal(self.time, other.time)
        return times and np.array_equal(self.label, other.label)

    def rows(self, which: HostArray | slice) -> Predictions:
        """Return some of them."""
        time = None if self.time is None else self.time[which]
        return Predictions(self.label[which], self.prediction[which], time)


def rises(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric in _RISING


def score(task: str, metric: str, rows: Predictions) -> float:
    """Return one metric; NaN where it is not defined.

    Raises
    ------
    InvalidInputError
        If the task has no such metric.
    """
    if metric not in CHOICES.get(task, ()):
        raise InvalidInputError(
            f"metric {metric!r} is none of a {task} task",
            f"use one of {list(CHOICES.get(task, ()))}",
        )
    if not len(rows):
        return math.nan
    if metric == IC:
        return _mean(information_coefficients(rows))
    if metric == "r2":
        return _r2(rows)
    return evaluate(task, rows.label, rows.prediction)[metric]


def scores(task: str, rows: Predictions) -> dict[str, float]:
    """Return all metrics of a task; with times, the information coefficient and its ratio (``ic_ir``)."""
    found = {metric: score(task, metric, rows) for metric in CHOICES[task] if metric != IC}
    if task != "multiclass" and rows.time is not None:
        each = information_coefficients(rows)
        spread = float(each.std(ddof=1)) if len(each) > 1 else math.nan
        found[IC] = _mean(each)
        found["ic_ir"] = found[IC] / spread if spread > 0 else math.nan
    return found


def information_coefficients(rows: Predictions) -> HostArray:
    """Return the rank correlation of prediction and label of each time.

    Times of fewer than three rows, or of equal labels or predictions, have none and are left out.

    Returns
    -------
    float64 array [times]

    Examples
    --------
    >>> at = np.array([1, 1, 1, 2, 2, 2])
    >>> rows = Predictions(np.array([1, 2, 3, 1, 2, 3.0]), np.array([1, 2, 3, 3, 2, 1.0]), at)
    >>> information_coefficients(rows).tolist()
    [1.0, -1.0]
    """
    if rows.time is None or not len(rows):
        return np.empty(0)
    starts = np.flatnonzero(np.concatenate([[True], rows.time[1:] != rows.time[:-1]]))
    counts = np.diff(np.append(starts, len(rows)))
    group = np.repeat(np.arange(len(starts)), counts)
    one, other = (
        _centred_ranks(values, group, starts, counts) for values in (rows.label, rows.prediction)
    )
    product, left, right = (
        np.add.reduceat(values, starts) for values in (one * other, one * one, other * other)
    )
    known = (counts >= _LEAST) & (left > 0) & (right > 0)
    found: HostArray = product[known] / np.sqrt(left[known] * right[known])
    return found


def _centred_ranks(
    values: HostArray, group: HostArray, starts: HostArray, counts: HostArray
) -> HostArray:
    """Return the rank of each value within its group, of equal ones the mean, less the group's mean rank."""
    values = np.asarray(values, dtype=np.float64).reshape(len(group))
    order = np.lexsort((values, group))
    by, of = values[order], group[order]
    fresh = np.concatenate([[True], (by[1:] != by[:-1]) | (of[1:] != of[:-1])])
    first = np.flatnonzero(fresh)
    length = np.diff(np.append(first, len(by)))
    place = np.repeat(first + (length - 1) / 2, length) - np.repeat(starts, counts)
    ranks = np.empty(len(values))
    ranks[order] = place
    return ranks - np.repeat((counts - 1) / 2, counts)


def _r2(rows: Predictions) -> float:
    label = np.asarray(rows.label, dtype=np.float64)
    left = label - np.asarray(rows.prediction, dtype=np.float64).reshape(label.shape)
    spread = float(((label - label.mean()) ** 2).sum())
    return 1 - float((left * left).sum()) / spread if spread > 0 else math.nan


def _mean(values: HostArray) -> float:
    return float(values.mean()) if len(values) else math.nan
