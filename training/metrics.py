"""How good predictions are: exact, over all rows of a part.

Labels and predictions of a part are held at once (a few bytes a row); features are not.
Sums run in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError
from training.ranking import ndcg

NETWORK_TASKS: Final = ("binary", "regression", "multiclass")
TASKS: Final = (*NETWORK_TASKS, "ranking")
_CLIP: Final = 1e-7
_MOST_RELEVANT: Final = 31
_ROW_BYTES: Final = {"binary": 108, "regression": 52, "multiclass": 48, "ranking": 136}
"""What judging a row takes (measured: 102, 44 and 39): its label as it comes, put together and as float64, its
prediction so too, and what is computed of both; ranks most of all, and orders within queries."""
_CLASS_BYTES: Final = 8
"""Of each class of a row: predictions as they come, and put together."""


def evaluate(
    task: str, label: HostArray, prediction: HostArray, group: HostArray | None = None
) -> dict[str, float]:
    """Return the metrics of a task.

    Parameters
    ----------
    task : {"binary", "regression", "multiclass", "ranking"}
    label : array [rows]
        0 or 1; a number; a class from 0 on; or how relevant a row is, from 0 on.
    prediction : array [rows] or [rows, classes]
        Probabilities, the number itself, or scores that rank.
    group : array [rows], optional
        For ``ranking``: the query of each row, each one run of rows.

    Returns
    -------
    dict
        binary: ``loss`` (log loss), ``auc``, ``accuracy``; regression: ``loss`` (mean squared
        error), ``rmse``, ``mae``; multiclass: ``loss``, ``accuracy``; ranking: ``loss`` (1 - NDCG),
        ``ndcg``. NaN where not defined.

    Raises
    ------
    InvalidInputError
        If shapes disagree, or a label is not of the task.

    Examples
    --------
    >>> evaluate("regression", np.array([1.0, 2.0]), np.array([1.0, 4.0]))["mae"]
    1.0
    """
    if task not in TASKS:
        raise InvalidInputError(f"there is no task {task!r}", f"use one of {list(TASKS)}")
    label = np.asarray(label, dtype=np.float64)
    prediction = np.asarray(prediction)
    if task != "multiclass":
        prediction = prediction.astype(np.float64)
        prediction = (
            prediction.reshape(label.shape) if prediction.size == label.size else prediction
        )
    if prediction.shape[:1] != label.shape or label.ndim != 1:
        raise InvalidInputError(
            f"predictions of shape {list(prediction.shape)} do not fit labels {list(label.shape)}"
        )
    if label.size == 0:
        return dict.fromkeys(_NAMES[task], math.nan)
    if task == "ranking":
        if group is None:
            raise InvalidInputError("a ranking is judged within queries", "give the group")
        found = ndcg(label, prediction, group)
        return {"loss": 1 - found, "ndcg": found}
    return _METRICS[task](label, prediction)


def judging_bytes(task: str, rows: int, classes: int | None = None) -> int:
    """Return what labels and predictions of some rows take while they are judged, at most.

    Examples
    --------
    >>> judging_bytes("multiclass", 1000, classes=10)
    128000
    """
    return rows * (_ROW_BYTES[task] + _CLASS_BYTES * (classes or 0) * (task == "multiclass"))


def auc(label: HostArray, score: HostArray) -> float:
    """Return the area under the ROC curve: the share of (positive, negative) pairs in right order.

    Exact; a pair of equal scores counts one half. NaN if a class is absent.

    Examples
    --------
    >>> auc(np.array([0, 1, 1]), np.array([0.1, 0.1, 0.9]))
    0.75
    """
    positive = np.asarray(label) > 0
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        return math.nan
    # The rank of a group of ties is the mean of the ranks it covers (Mann-Whitney).
    ranks = np.cumsum(counts) - (counts - 1) / 2
    wins = float(ranks[group[positive]].sum()) - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def require_labels(task: str, label: HostArray | None, classes: int | None, where: str) -> None:
    """Refuse labels that do not fit the task.

    Parameters
    ----------
    task : str
    label : array [rows]
    classes : int, optional
        How many there are; for ``multiclass``.
    where : str
        Whose labels they are, in words.

    Raises
    ------
    InvalidInputError
        If a binary label is not 0 or 1, a class is not a whole number from 0 to ``classes - 1``, a
        number to predict is infinite, or a relevance is not from 0 to 31, whose gains XGBoost holds.

    Examples
    --------
    >>> require_labels("multiclass", np.array([0, 1, 2]), 3, "training")
    """
    if label is None:
        return
    if task == "regression":
        bad = ~np.isfinite(label.astype(np.float32))
        wanted, remedy = "finite float32 numbers", "clip them, or leave these rows out with where="
    elif task == "binary":
        bad = ~np.isin(label, (0, 1))
        wanted = "0 and 1"
        remedy = "make it 0 and 1, or set task to 'regression' or 'multiclass'"
    elif task == "ranking":
        bad = ~((label >= 0) & (label <= _MOST_RELEVANT))
        wanted = f"relevances from 0 to {_MOST_RELEVANT}"
        remedy = "make grades of it, as fs.Expression or QuantileBins does"
    else:
        bad = ~np.isin(label, np.arange(classes or 0))
        wanted = f"whole numbers from 0 to {(classes or 0) - 1}"
        remedy = "set classes, or number the classes from 0"
    if bad.any():
        raise InvalidInputError(
            f"{where}: a {task} label holds {np.unique(label[bad])[:5].tolist()}, not only {wanted}",
            remedy,
        )


def _binary(label: HostArray, probability: HostArray) -> dict[str, float]:
    require_labels("binary", label, None, "the judged rows")
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    loss = -np.where(label == 1, np.log(clipped), np.log1p(-clipped)).mean()
    return {
        "loss": float(loss),
        "auc": auc(label, probability),
        "accuracy": float(((probability >= 0.5) == (label == 1)).mean()),
    }


def _regression(label: HostArray, value: HostArray) -> dict[str, float]:
    error = value - label
    squared = float((error * error).mean())
    return {"loss": squared, "rmse": math.sqrt(squared), "mae": float(np.abs(error).mean())}


def _multiclass(label: HostArray, probability: HostArray) -> dict[str, float]:
    classes = probability.shape[1] if probability.ndim == 2 else 0
    codes = label.astype(np.int64)
    if (codes != label).any() or codes.min() < 0 or codes.max() >= classes:
        raise InvalidInputError(
            f"labels from {label.min()} to {label.max()} are not classes of a model with {classes}",
            "number the classes from 0 on and set classes to their count",
        )
    # Not all of them as float64: there are as many as classes times rows.
    chosen = np.clip(probability[np.arange(codes.size), codes].astype(np.float64), _CLIP, 1.0)
    return {
        "loss": float(-np.log(chosen).mean()),
        "accuracy": float((probability.argmax(axis=1) == codes).mean()),
    }


_METRICS: Final[dict[str, Callable[[Any, Any], dict[str, float]]]] = {
    "binary": _binary,
    "regression": _regression,
    "multiclass": _multiclass,
}
_NAMES: Final = {
    "binary": ("loss", "auc", "accuracy"),
    "regression": ("loss", "rmse", "mae"),
    "multiclass": ("loss", "accuracy"),
    "ranking": ("loss", "ndcg"),
}
