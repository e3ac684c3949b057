"""TensorBoard: what is logged at the end of each epoch as event files, without the package ``tensorboard``.

That package is needed to look at them, not to write them. Files of a run that was stopped and went on lie
side by side in one folder; TensorBoard shows them as one run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from training.hooks.keras import keras


class TensorBoard(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the numbers of each epoch.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder))
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        self._scalar = tf.compat.v1.SummaryMetadata(plugin_data=plugin)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._writer.as_default():
            for name, value in (logs or {}).items():
                number = tf.constant(float(value), tf.float32)
                tf.summary.write(name, number, step=epoch, metadata=self._scalar)
        self._writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        self._writer.close()
