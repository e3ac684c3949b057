"""Progress of Keras' training: a line with rows/s, the share of time waiting for data, and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from featurestore.limits import resident_bytes
from featurestore.units import format_bytes
from training.hooks.keras import KerasBatches, keras

EVERY_SECONDS: Final = 10.0


class Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells observers how many steps are done, and says a line at the end of each epoch and now and then.

    Parameters
    ----------
    batches : KerasBatches
        What ``fit`` gets.
    epochs : int
    advance : function
        Gets the number of steps done, those before a restart included.
    say : function, optional
        Gets the line.
    """

    def __init__(
        self,
        batches: KerasBatches,
        epochs: int,
        advance: Callable[[int], None],
        say: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        self._batches = batches
        self._epochs = epochs
        self._advance = advance
        self._say = say
        self._epoch = 0
        self._first = 0
        self._began = self._said = self._waited = 0.0
        self._trained = ""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._first = epoch, self._batches.loader.position.start[1]
        self._began = self._said = time.perf_counter()
        self._waited = self._waited_seconds()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        loader = self._batches.loader
        epoch, step = loader.position.next
        step = step if epoch == loader.epoch and step else len(loader)
        self._advance(self._epoch * len(loader) + step)
        now = time.perf_counter()
        ended = step == len(loader)
        if not ended and now - self._said < EVERY_SECONDS:
            return
        self._said = now
        rows = min(loader.batch_size * (step - self._first), loader.rows)
        taken = now - self._began
        waited = self._waited_seconds() - self._waited
        self._trained = (
            f"{rows / taken:,.0f} rows/s, {waited / taken:.0%} waiting for data, "
            f"{format_bytes(resident_bytes())} held"
        )
        if not ended:
            self._speak(f"step {step} of {len(loader)}", logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._speak("", logs)

    def _speak(self, where: str, logs: Any) -> None:
        if self._say is None:
            return
        numbers = "".join(f", {name} {float(value):.4f}" for name, value in (logs or {}).items())
        shown = f", {where}" if where else ""
        self._say(f"epoch {self._epoch + 1} of {self._epochs}{shown}{numbers}; {self._trained}")

    def _waited_seconds(self) -> float:
        feed = self._batches.feed
        return 0.0 if feed is None else feed.waited_seconds
