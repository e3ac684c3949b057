"""The history of a training: what was logged per epoch or round, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def best_epoch(history: Sequence[Mapping[str, float]], metric: str) -> int | None:
    """Return the first epoch whose metric is the least; None if it never was a number.

    Examples
    --------
    >>> best_epoch([{"loss": 2.0}, {"loss": 1.0}, {"loss": float("nan")}, {"loss": 1.0}], "loss")
    1
    """
    best: tuple[float, int] | None = None
    for epoch, logs in enumerate(history):
        value = logs.get(metric, float("nan"))
        if value < (float("inf") if best is None else best[0]):
            best = (value, epoch)
    return None if best is None else best[1]


def waited_enough(history: Sequence[Mapping[str, float]], metric: str, patience: int) -> bool:
    """Return whether the last ``patience`` epochs were not better than one before; never with 0.

    Examples
    --------
    >>> losses = [{"loss": 1.0}, {"loss": 2.0}, {"loss": 1.5}]
    >>> waited_enough(losses, "loss", 2), waited_enough(losses, "loss", 3)
    (True, False)
    """
    best = best_epoch(history, metric)
    return len(history) - (0 if best is None else best + 1) >= patience > 0
