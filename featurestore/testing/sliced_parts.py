"""A part whose partitions come in slices, and that can be told to wait or to fail."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from featurestore.dataset.batch import Batch
from featurestore.errors import CorruptionError
from featurestore.testing.datasets import ArrayPart, numbered_part


class SlicedPart(ArrayPart):
    """A part whose partitions come in slices of uneven sizes.

    Those of ``behind`` wait for ``gate``, if there is one; ``fails`` is a partition that cannot be read.
    """

    gate: threading.Event | None = None
    fails: int | None = None
    behind: tuple[int, ...] = ()

    def slices(self, partition: int, within: int) -> Iterator[Batch]:
        if partition in self.behind and self.gate is not None:
            assert self.gate.wait(30)
        batch = self.arrays(partition)
        start = 0
        for size in itertools.cycle((1, 7, 3)):
            if start >= batch.rows:
                return
            if partition == self.fails and start:
                raise CorruptionError("a partition is damaged")
            rows = slice(start, start + size)
            yield Batch(
                {name: one[rows] for name, one in batch.inputs.items()},
                None if batch.label is None else batch.label[rows],
                None if batch.weight is None else batch.weight[rows],
                {name: one[rows] for name, one in batch.labels.items()},
            )
            start += size


def sliced(rows: int, partitions: int, **options: Any) -> SlicedPart:
    """Return a :func:`numbered_part` of so many partitions, as even as can be.

    Examples
    --------
    >>> sliced(5, 2).partition_rows
    (3, 2)
    """
    sizes = tuple(len(one) for one in np.array_split(np.arange(rows), partitions) if len(one))
    made = numbered_part(rows, partitions=sizes, **options)
    return in_slices(made)


def in_slices(part: ArrayPart) -> SlicedPart:
    """Return a part of the same rows."""
    return SlicedPart(
        part.schema,
        part.inputs,
        part.label,
        part.partition_rows,
        part.name,
        weight=part.weight,
        labels=part.labels,
    )
