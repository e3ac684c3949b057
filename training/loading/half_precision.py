"""A dataset part whose floating-point inputs are float16: half the bytes in packs, memory and batches.

    Loader(data.train, 4096, shuffle=True, dtype="float16")

Always true: what was NaN or infinite stays so; no finite value becomes infinite: one beyond 65504, the
largest of float16, is refused with its column. Labels and weights keep their types.

The trade-off: float16 keeps 11 bits, three digits; values below 6e-8 become 0, and those below 6e-5 keep
fewer. Standardize first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from featurestore.dataset.batch import (
    NUMERIC,
    Batch,
    DatasetPart,
    DatasetSchema,
    HostArray,
    Input,
    Role,
)
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint

FLOAT16: Final = "float16"
_LARGEST: Final = float(np.finfo(np.float16).max)
_CHECKED_BYTES: Final = 2**20
"""Of an array, while it is converted: the copies made of a piece fit a processor's cache."""


def in_dtype(part: DatasetPart, dtype: str) -> DatasetPart:
    """Return a part whose floating-point inputs are of a type: itself for ``"float32"``.

    Raises
    ------
    InvalidInputError
        For another type than ``"float32"`` and ``"float16"``.
    """
    if dtype not in ("float32", FLOAT16):
        raise InvalidInputError(
            f"dtype={dtype!r} is no type of inputs", "use 'float32' or 'float16'"
        )
    return part if dtype == "float32" or isinstance(part, HalfPart) else HalfPart(part)


def half_schema(schema: DatasetSchema) -> DatasetSchema:
    """Return a schema whose floating-point inputs are float16."""
    return DatasetSchema(tuple(map(_half, schema.columns)))


def half_batch(batch: Batch, schema: DatasetSchema) -> Batch:
    """Return a batch whose floating-point inputs are float16; raises what :func:`to_half` does.

    ``schema`` names the columns of ``numeric``; it may be of either precision.
    """
    inputs = {}
    for name, values in batch.inputs.items():
        columns = schema.numeric if name == NUMERIC else (name,)
        inputs[name] = to_half(values, columns) if values.dtype.kind == "f" else values
    return replace(batch, inputs=inputs)


class HalfPart:
    """A ``DatasetPart`` of the same rows in float16.

    Parameters
    ----------
    part : DatasetPart

    Examples
    --------
    >>> from featurestore.testing.datasets import numbered_part
    >>> HalfPart(numbered_part(3)).arrays(0).inputs["numeric"].dtype
    dtype('float16')
    """

    def __init__(self, part: DatasetPart) -> None:
        self.full = part
        """The part with its inputs as they are."""
        self._schema = half_schema(part.schema)

    @property
    def schema(self) -> DatasetSchema:
        return self._schema

    @property
    def rows(self) -> int:
        return self.full.rows

    @property
    def partition_rows(self) -> tuple[int, ...]:
        return self.full.partition_rows

    @property
    def digest(self) -> str:
        return fingerprint(FLOAT16, self.full.digest)

    @property
    def snapshot_id(self) -> str:
        return self.full.snapshot_id

    @property
    def memory_limit(self) -> int:
        return self.full.memory_limit

    @property
    def reserved_bytes(self) -> int:
        return self.full.reserved_bytes

    @property
    def workers(self) -> int:
        return self.full.workers

    def arrays(self, partition: int) -> Batch:
        """Return all rows of a partition; raises what :meth:`slices` does."""
        return half_batch(self.full.arrays(partition), self._schema)

    def entities(self, partition: int, by: Sequence[str] | None = None) -> HostArray:
        """Return a hash of each row's entity; see ``DatasetPart``."""
        return self.full.entities(partition, by)

    def numbers(self, partition: int, column: str) -> HostArray:
        """Return a number of each row; see ``DatasetPart``."""
        return self.full.numbers(partition, column)

    def times(self, partition: int) -> HostArray:
        """Return the event time of each row; see ``DatasetPart``."""
        return self.full.times(partition)

    def list_items(self, partition: int, column: str) -> tuple[int, int]:
        """Return how many items lists have; see ``DatasetPart``."""
        return self.full.list_items(partition, column)

    def slices(self, partition: int, within: int) -> Iterator[Batch]:
        """Yield a partition's rows in order; see ``DatasetPart``.

        Raises
        ------
        InvalidInputError
            If a finite value is beyond what float16 holds.
        """
        for batch in self.full.slices(partition, _share(within)):
            yield half_batch(batch, self._schema)

    def memory(self, partition: int, within: int) -> int:
        """Return the bytes that the largest of :meth:`slices` takes, its float16 copy included."""
        need = self.full.memory(partition, _share(within))
        halves = [one for one in self._schema.columns if one.dtype == FLOAT16]
        row = sum(2 * int(np.prod(one.shape, dtype=np.int64)) for one in halves)
        # Of a slice, whose arrays are at most all of what it takes, the copy is at most half.
        return need + min(need // 2, self.partition_rows[partition] * row)


def to_half(values: HostArray, columns: Sequence[str]) -> HostArray:
    """Return values as float16, rounded to the nearest.

    Parameters
    ----------
    values : floating-point array [rows, ...]
    columns : sequence of str
        What the second dimension are called, or one name for all.

    Raises
    ------
    InvalidInputError
        If a finite value would become infinite, naming its column.
    """
    out = np.empty(values.shape, dtype=np.float16)
    rows = max(1, _CHECKED_BYTES // max(1, values.nbytes // max(1, len(values))))
    for start in range(0, len(values), rows):
        piece, half = values[start : start + rows], out[start : start + rows]
        with np.errstate(over="ignore", under="ignore"):
            half[...] = piece
        infinite = np.isinf(half)
        if infinite.any() and (lost := infinite & np.isfinite(piece)).any():
            at = np.unravel_index(int(np.argmax(lost)), lost.shape)
            name = columns[int(at[1])] if len(columns) > 1 else columns[0]
            raise InvalidInputError(
                f"column {name!r} holds {float(piece[at]):g}, and float16 nothing beyond {_LARGEST:g}",
                "scale it (fs.Standardize), clip it, or use dtype='float32'",
            )
    return out


def _half(column: Input) -> Input:
    floating = column.role is Role.NUMERIC or (
        column.role is Role.TENSOR and np.dtype(column.dtype).kind == "f"
    )
    return replace(column, dtype=FLOAT16) if floating else column


def _share(within: int) -> int:
    """Return what a slice may take of ``within`` bytes, of which its copy takes half as much."""
    return within * 2 // 3
