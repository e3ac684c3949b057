"""The last batch of an epoch: kept as it is, dropped, or padded to the size of the others.

Always true: padding repeats a row that exists, the last of the epoch, so that every operation of a model
stays well-behaved on it, and has weight 0; where the last batch is padded, every batch has weights, so
that all batches of an epoch have the same shapes and types.

Trade-off: a padded batch is computed in full; in exchange a compiled step is compiled once.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Final

import numpy as np

from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import InvalidInputError
from training.loading.mixing import Rows

WEIGHT_BYTES: Final = 4
"""Of each row of a batch that has weights."""
PADDING_BYTES: Final = 16
"""Of each row of a batch while it is gathered: its number once more, and that of a repeated row."""


class Last(StrEnum):
    """What becomes of the rows that do not fill a last batch."""

    KEEP = "keep"
    DROP = "drop"
    PAD = "pad"

    @classmethod
    def parse(cls, value: str) -> Last:
        """Return the mode of ``"keep"``, ``"drop"`` or ``"pad"``.

        Raises
        ------
        InvalidInputError
            For anything else.

        Examples
        --------
        >>> Last.parse("pad")
        <Last.PAD: 'pad'>
        """
        if value in ("keep", "drop", "pad"):
            return cls(value)
        raise InvalidInputError(
            f"last={value!r} does not say what becomes of the last batch",
            "use 'keep', 'drop' or 'pad'",
        )


def fill_up(rows: Rows, filler: Rows, size: int) -> Rows:
    """Return row numbers, and ``filler``, one row, as often after them as make ``size``."""
    if rows.size == size:
        return rows
    return np.concatenate([rows, np.repeat(filler, size - rows.size)])


def weighted(batch: Batch, real: int) -> Batch:
    """Return a batch of which rows from ``real`` on weigh 0, the others what they weigh, else 1."""
    weight: HostArray = np.zeros(batch.rows, dtype=np.float32)
    weight[:real] = 1 if batch.weight is None else batch.weight[:real]
    return replace(batch, weight=weight)
