"""Keras: a callback that checkpoints model, optimizer and loader together, to go on at the next batch.

    batches = loader.keras()
    checkpoint = Checkpoint("checkpoints", batches, every_steps=500)
    with checkpoint.saving_on_interrupt():
        model.fit(
            batches,
            epochs=10,
            initial_epoch=checkpoint.restore(model),    # 0 if there is no checkpoint yet
            validation_data=valid.keras(),
            callbacks=[..., checkpoint],                # last: what the others did at the end of an epoch is in it
        )

A checkpoint holds ``model.weights.h5`` (Keras' own format: weights and optimizer), ``rest.npz`` (what Keras
leaves out: seed generators, and metrics of the epoch under way), ``best.weights.h5`` if asked for, and
``state.json`` (epoch, loader, history, digest of all variables).

Always true: killed at any moment and run again until it ends, training gives the same weights, bit for bit, and
the same history as undisturbed training (on CPUs; a GPU's sums may differ in themselves); no checkpoint
is between the last batch of an epoch and its validation, so that an epoch ends as a whole.

What is not in it: Python's and NumPy's random state, ``tf.random``'s stateful generators, and what other
callbacks keep in Python (Keras' ``EarlyStopping`` and ``ReduceLROnPlateau`` count anew; ``StopEarly`` of ``early_stopping`` does
not). Random numbers of layers have to come from ``keras.random``, as those of Keras' own layers do.

Trade-off: a save waits for the disk within the training loop; one variable at a time is copied for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from featurestore.errors import InvalidInputError
from training.checkpoints import Checkpoints, damaged, read_state, write_state
from training.history import best_epoch
from training.hooks.keras import KerasBatches, keras
from training.hooks.keras_state import WEIGHTS, Written, load_weights, read, write
from training.interrupts import Interrupts

BEST: Final = "best.weights.h5"
_SHORT_EPOCH: Final = "the rest of an epoch is trained"
"""Ends Keras' loop over batches, which counts on a whole epoch, and no more: it is not ``True``."""


class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]
    """Checkpoints a training, and goes on where the newest checkpoint was made.

    Parameters
    ----------
    folder : path
        Of this training alone.
    batches : KerasBatches
        What ``fit`` gets: ``loader.keras()``.
    every_steps : int, optional
        Save after so many steps within an epoch; at the end of each epoch it is saved anyway.
    keep : int
        How many checkpoints stay.
    best : str, optional
        Name of a metric, the smaller the better, such as ``"val_loss"``: weights of the epoch where it was
        least are kept for :meth:`restore_best`.

    Raises
    ------
    InvalidInputError
    """

    def __init__(
        self,
        folder: str | Path,
        batches: KerasBatches,
        *,
        every_steps: int | None = None,
        keep: int = 2,
        best: str | None = None,
    ) -> None:
        super().__init__()
        if every_steps is not None and (isinstance(every_steps, bool) or every_steps < 1):
            raise InvalidInputError(f"every_steps={every_steps!r} must be at least 1, or None")
        self.checkpoints = Checkpoints(Path(folder), keep)
        self.history: list[dict[str, float]] = []
        """What Keras logged at the end of each epoch, those before the restart included."""
        self._batches = batches
        self._loader = batches.loader
        self._every = every_steps
        self._best = best
        self._epoch = 0
        self._at: Path | None = None  # the checkpoint that training is at or past
        self._metrics: list[Any] | None = None
        self._saved_at = (0, 0)
        self._began_at = (0, 0)
        self._interrupts = Interrupts()

    # --- going on ------------------------------------------------------------------------------------

    def restore(self, model: Any) -> int:
        """Put model, optimizer and loader where the newest checkpoint has them.

        Parameters
        ----------
        model : keras.Model
            Compiled, and made as it was made then.

        Returns
        -------
        int
            The epoch to go on in, for ``fit(initial_epoch=)``; 0 if there is no checkpoint.

        Raises
        ------
        InvalidInputError
            If the checkpoint is of another model, or of other data, order or batch size.
        CorruptionError, FormatError
        """
        newest = self.checkpoints.newest()
        if newest is None:
            return 0
        state = read_state(newest)
        try:
            epoch, history = int(state["epoch"]), list(state["history"])
            loader, written = dict(state["loader"]), Written(state["model"], state["digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(newest, error) from error
        if not 0 <= epoch == len(history):
            raise damaged(newest, f"it is of epoch {epoch} and has the history of {len(history)}")
        self._loader.load_state_dict(loader)
        self._build(model)
        self._metrics = read(model, newest, written)
        self.history, self._epoch = history, epoch
        self._saved_at = self._loader.position.next
        self._at = newest
        return self._epoch

    def restore_best(self, model: Any) -> None:
        """Load the weights of the epoch whose ``best`` metric was least, as of the newest checkpoint.

        Raises
        ------
        InvalidInputError
            If none were kept: no epoch has ended, or its metric never was a number.
        """
        newest = self.checkpoints.newest()
        if newest is None or not (newest / BEST).exists():
            raise InvalidInputError(
                f"{self.checkpoints.folder} keeps no best weights (best={self._best!r})",
                "give Checkpoint(best=), and train an epoch whose metric is a number",
            )
        load_weights(model, newest / BEST)

    def _build(self, model: Any) -> None:
        """Let a model make all its variables: those of metrics are made with the first batch."""
        batch = self._batches.element(self._loader.batch(0, 0))
        x, y, *weight = (*batch, None) if len(batch) == 1 else batch
        model.test_on_batch(x, y, *weight)
        model.optimizer.build(model.trainable_variables)

    # --- what Keras calls ----------------------------------------------------------------------------

    def on_train_begin(self, logs: Any = None) -> None:
        steps = len(self._loader)
        if self.params["steps"] != steps:
            raise InvalidInputError(
                f"fit has epochs of {self.params['steps']} steps, the loader of {steps}; a "
                "checkpoint is of a place in the loader's epochs",
                "leave steps_per_epoch out, and fit the batches that the checkpoint was given",
            )
        newest = self.checkpoints.newest()
        if newest is not None and self._at is None:
            raise InvalidInputError(
                f"{self.checkpoints.folder} holds checkpoints of another training, up to "
                f"{newest.name}",
                "go on with fit(initial_epoch=checkpoint.restore(model)), or name another folder",
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._at is not None and epoch < self._epoch:
            raise InvalidInputError(
                f"fit begins with epoch {epoch}, the checkpoint {self._at.name} is of epoch "
                f"{self._epoch}",
                "use fit(initial_epoch=checkpoint.restore(model))",
            )
        self._epoch = epoch
        self._began_at = self._loader.position.start
        if self._metrics is not None:
            # Keras has just reset them; in the middle of an epoch they go on as well.
            if self._began_at[1]:
                for variable, value in zip(
                    self.model.metrics_variables, self._metrics, strict=True
                ):
                    variable.assign(value)
            self._metrics = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        place = self._loader.position.next
        if place == self._began_at:
            raise InvalidInputError(
                "a step was trained, and the loader of the checkpoint did not move",
                "fit the batches that the checkpoint was given",
            )
        if place[0] != self._began_at[0]:
            if self._began_at[1] and not self._model.stop_training:
                self._model.stop_training = _SHORT_EPOCH
            return  # what ends an epoch comes first: see on_epoch_end
        last = self._saved_at[1] if self._saved_at[0] == place[0] else 0
        due = self._every is not None and place[1] // self._every > last // self._every
        asked = self._interrupts.asked  # once: what comes later is saved after the next step
        if due or asked:
            self._save(self._epoch)
        if asked:
            self._interrupts.raise_asked()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._model.stop_training is _SHORT_EPOCH:
            self._model.stop_training = False
        asked = self._interrupts.asked
        if self._loader.position.next == (self._began_at[0] + 1, 0):
            self.history.append({name: float(value) for name, value in (logs or {}).items()})
            self._save(epoch + 1)
        if asked:
            self._interrupts.raise_asked()

    # --- saving --------------------------------------------------------------------------------------

    def _save(self, epoch: int) -> None:
        before = self.checkpoints.newest()
        self._saved_at = self._loader.position.next

        def fill(folder: Path) -> None:
            written = write(self.model, folder)
            self._keep_best(folder, before, ended=epoch != self._epoch)
            state = {
                "epoch": epoch,
                "loader": self._loader.state_dict(),
                "model": written.shapes,
                "digest": written.digest,
                "history": self.history,
            }
            write_state(folder, state)

        self._at = self.checkpoints.save(*self._saved_at, fill)

    def _keep_best(self, folder: Path, before: Path | None, *, ended: bool) -> None:
        """Link the best weights so far: those of this epoch if it is the best, else those before."""
        if self._best is None:
            return
        if ended and self._best not in self.history[-1]:
            raise InvalidInputError(
                f"best={self._best!r} was not logged at the end of an epoch, {list(self.history[-1])} were",
                "name one of these; 'val_...' needs fit(validation_data=)",
            )
        if ended and best_epoch(self.history, self._best) == len(self.history) - 1:
            os.link(folder / WEIGHTS, folder / BEST)
        elif before is not None and (before / BEST).exists():
            os.link(before / BEST, folder / BEST)

    # --- interrupts ----------------------------------------------------------------------------------

    @contextmanager
    def saving_on_interrupt(self) -> Iterator[None]:
        """Let Ctrl-C save after the step under way, or after validation, before it interrupts.

        A second Ctrl-C interrupts at once. Outside the main thread this does nothing.
        """
        with self._interrupts.noted():
            yield
