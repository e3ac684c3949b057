"""Keras: stopping early, by the history of a training over all its restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.history import waited_enough
from training.hooks.keras import keras

if TYPE_CHECKING:
    from training.hooks.checkpoint import Checkpoint


class StopEarly(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training when a metric was not less for some epochs, restarts or not.

    Parameters
    ----------
    checkpoint : Checkpoint
        Comes after it among the callbacks; made with ``best=`` the metric.
    metric : str
    patience : int
        Epochs that are waited for.
    """

    def __init__(self, checkpoint: Checkpoint, metric: str, patience: int) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._metric = metric
        self._patience = patience

    @property
    def stopped(self) -> bool:
        """Whether the epochs so far end training: asked before a training goes on."""
        return self._ends(self._checkpoint.history)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._ends([*self._checkpoint.history, dict(logs or {})]):
            self._model.stop_training = True

    def _ends(self, history: list[dict[str, float]]) -> bool:
        return waited_enough(history, self._metric, self._patience)
