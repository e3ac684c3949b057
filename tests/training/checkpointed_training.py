"""A training that checkpoints, run as a process by the tests that kill it.

    python checkpointed_training.py FOLDER EPOCHS STEPS_PER_EXECUTION

Goes on where the checkpoints in FOLDER are and ends with ``result.json``: digest of weights and optimizer,
history.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from featurestore.testing.datasets import numbered_part
from training import Loader
from training.hooks.checkpoint import Checkpoint
from training.models import tabular

ROWS, BATCH = 1000, 32


def compiled(steps_per_execution: int = 1, **options: Any) -> Any:
    """Return a model with everything that has a state: dropout, moving averages, slots, metrics."""
    schema = numbered_part(1).schema
    model = tabular(schema, hidden=(8,), dropout=0.3, batch_norm=True, seed=4, **options)
    model.compile(
        keras.optimizers.Adam(0.01),
        "binary_crossentropy",
        metrics=["accuracy", "auc"],
        steps_per_execution=steps_per_execution,
    )
    return model


def loaders(cache: Path, rows: int = ROWS) -> tuple[Loader, Loader]:
    part = numbered_part(rows)
    part.inputs["numeric"][:, 0] = 0  # the row number is no feature
    train = Loader(part, BATCH, shuffle=True, seed=3, cache=cache, block_rows=64, window_blocks=4)
    return train, Loader(part, 500, cache=cache)


def state(model: Any) -> str:
    """Return a digest of all that training changed."""
    found = hashlib.blake2b(digest_size=16)
    for one in (*model.variables, *model.optimizer.variables):
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(one)))
    return found.hexdigest()


class Announce(keras.callbacks.Callback):  # type: ignore[misc]
    """Says that steps are trained: what kills waits for it."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        print("step", batch, flush=True)


def main(folder: Path, epochs: int, steps_per_execution: int) -> None:
    train, valid = loaders(folder / "packs")
    model = compiled(steps_per_execution)
    batches = train.keras()
    checkpoint = Checkpoint(folder / "checkpoints", batches, every_steps=3, best="val_loss")
    with checkpoint.saving_on_interrupt():
        model.fit(
            batches,
            epochs=epochs,
            initial_epoch=checkpoint.restore(model),
            validation_data=valid.keras(),
            callbacks=[Announce(), checkpoint],
            verbose=0,
        )
    result = {"state": state(model), "history": checkpoint.history}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
