"""Sequences: each row together with the rows of the same entity before it, as ``[batch, rows, n]``.

    Loader(data.train, 256, shuffle=True, window=Window(60))

The pack holds each row once, in table order. Beside it lies an index in a scratch file: for each row the
number of the entity's row before. A batch follows it ``rows - 1`` times and gathers what it found.

Always true: a sequence never holds a row of another entity, nor one that comes later in the table, nor one
that is not of the part; its last row is the sample, whose labels and weight are the batch's. Memory does
not grow with the rows of the part, only with how many entities it has.

The trade-off: the index is made anew in each process, by reading the key columns once; and each row of a
sequence is gathered by itself, so that a batch costs what ``rows`` batches cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema, HostArray
from featurestore.errors import DefinitionError, InvalidInputError, MemoryLimitError
from featurestore.execution.events import step
from featurestore.fingerprint import fingerprint
from featurestore.units import format_bytes
from training.loading.mixing import Rows
from training.loading.scratch import ScratchFiles
from training.loading.steps import KeptSamples

MASK: Final = "mask"
_ENTITY_BYTES: Final = 3 * 24
"""Of each entity: its hash, last row and length, and copies of them while new ones are put in between."""
FOLLOWING_BYTES: Final = 32
"""Of each row of a sequence, while a batch is made: its number, and copies of it."""
_ROW_BYTES: Final = 64
"""Of each row of a partition while it is looked at."""

Hashes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True, slots=True)
class Window:
    """Which sequences a loader gives.

    Parameters
    ----------
    rows : int
        Rows of a sequence, the sample itself included; at least 1.
    short : {"pad", "drop"}
        What is done with a sample that has fewer rows before it: its sequence begins with zeros (and
        code 0 of categorical columns, which is that of null), or it is left out.
    mask : bool
        Also give an input ``mask``, bool ``[batch, rows]``: where a sequence holds rows.
    by : str or sequence of str, optional
        The columns that tell entities apart; the table's key if not given. A table without a key is one
        entity.

    Raises
    ------
    InvalidInputError

    Examples
    --------
    >>> Window(60, short="drop").rows
    60
    """

    rows: int
    short: str = "pad"
    mask: bool = False
    by: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if type(self.rows) is not int or self.rows < 1:
            raise InvalidInputError(f"a window of {self.rows!r} rows", "give a number from 1 on")
        if self.short not in ("pad", "drop"):
            raise InvalidInputError(
                f"short={self.short!r} is not known", "use 'pad', or 'drop' to leave samples out"
            )
        if self.by is not None:
            names = (self.by,) if isinstance(self.by, str) else tuple(self.by)
            object.__setattr__(self, "by", names)

    @property
    def entities(self) -> tuple[str, ...] | None:
        """The columns that tell entities apart, if they are not the table's key."""
        return None if self.by is None else tuple(self.by)

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints choose equal sequences of equal parts."""
        by = None if self.by is None else list(self.by)
        return fingerprint("window", self.rows, self.short, self.mask, by)

    @classmethod
    def of(cls, value: int | Window) -> Window:
        """Return a window of so many rows, or the one that is given."""
        return value if isinstance(value, Window) else cls(value)

    def array_specs(self, schema: DatasetSchema) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return ``{array name: (dtype, shape of one sample)}`` of the inputs.

        Raises
        ------
        DefinitionError
            If a column has the name of the mask.
        """
        specs = schema.array_specs()
        found = {name: (dtype, (self.rows, *shape)) for name, (dtype, shape) in specs.items()}
        if self.mask:
            if MASK in specs:
                raise DefinitionError(
                    f"an input is called {MASK!r}, as the mask of sequences is",
                    "rename the column, or leave mask= out",
                )
            found[MASK] = ("bool", (self.rows,))
        return found


class SequenceIndex:
    """For each row of a part its entity's row before, and which rows are samples.

    Parameters
    ----------
    part : DatasetPart
    window : Window
    root : Path
        The cache; the index is removed with this object.
    room : int
        Bytes that making it may take.

    Raises
    ------
    MemoryLimitError
        If the part has too many entities, or too many rows in one partition.
    """

    def __init__(self, part: DatasetPart, window: Window, root: Path, room: int) -> None:
        self.window = window
        self._rows = part.rows
        self._files = ScratchFiles(root)
        self.samples = _write(part, window, self._files, room)
        self._map()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a path: another process maps the same files."""
        return _open_again, (self.window, self._rows, self.samples, self._files)

    def _map(self) -> None:
        self._previous = self._files.mapped("previous", np.int64, self._rows)
        dropped = self.window.short == "drop"
        self.chosen = self._files.mapped("samples", np.int64, self.samples) if dropped else None
        """The rows that are samples, ascending; None if all are."""

    def rows_of(self, samples: Rows) -> Rows:
        """Return the rows of a part that samples are."""
        return samples if self.chosen is None else self.chosen[samples]

    def follow(self, rows: Rows) -> Rows:
        """Return the rows of each row's sequence, int64 ``[n, window.rows]``; -1 before it begins."""
        found = np.empty((len(rows), self.window.rows), dtype=np.int64)
        at = rows
        for place in range(self.window.rows - 1, -1, -1):
            found[:, place] = at
            if place:
                at = np.where(at >= 0, self._previous[np.maximum(at, 0)], -1)
        return found


class SequencePack:
    """A pack whose rows are given as sequences: what ``Steps`` reads from.

    Parameters
    ----------
    pack : KeptSamples
        Rows in table order: a pack, or rows in memory.
    index : SequenceIndex
    """

    def __init__(self, pack: KeptSamples, index: SequenceIndex) -> None:
        self.pack = pack
        self.index = index
        self.rows = index.samples
        self.schema = pack.schema
        self.shared = pack.shared

    def read(self, start: int, stop: int) -> Batch:
        """Return samples ``[start, stop)`` in table order."""
        return self.gather(np.arange(start, stop, dtype=np.int64))

    def gather(self, samples: Rows) -> Batch:
        """Return some samples in the order given.

        Raises
        ------
        InvalidInputError
            If one is outside.
        """
        if samples.size and (int(samples.min()) < 0 or int(samples.max()) >= self.rows):
            raise InvalidInputError(
                f"samples {samples.min()} to {samples.max()} lie outside {self.rows} sequences"
            )
        rows, window = self.index.rows_of(samples), self.index.window
        sequences = self.index.follow(rows)
        missing = sequences < 0
        flat = self.pack.gather(np.maximum(sequences, 0).reshape(-1))
        inputs = {}
        for name, values in flat.inputs.items():
            made = values.reshape(len(rows), window.rows, *values.shape[1:])
            made[missing] = 0
            inputs[name] = made
        if window.mask:
            inputs[MASK] = ~missing

        def own(values: HostArray) -> HostArray:
            several = values.reshape(len(rows), window.rows, *values.shape[1:])
            return np.ascontiguousarray(several[:, -1])

        return Batch(
            inputs,
            None if flat.label is None else own(flat.label),
            None if flat.weight is None else own(flat.weight),
            {name: own(one) for name, one in flat.labels.items()},
            None if flat.group is None else own(flat.group),
            None if flat.base_margin is None else own(flat.base_margin),
        )

    def prefetch(self, starts: Rows, count: int) -> None:
        """Do nothing: where the rows before lie is only known when they are followed."""

    def ahead(self, stripes: Iterable[int]) -> AbstractContextManager[None]:
        """Write what is missing of the pack; see :meth:`Pack.ahead`."""
        return self.pack.ahead(stripes)

    def complete(self) -> SequencePack:
        """Return it when the pack's rows are all written."""
        self.pack.complete()
        return self


# --- making the index --------------------------------------------------------------------------------


class _Entities:
    """The last row of each entity seen so far, and how many it has, up to the length of a window."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._last: Rows = np.empty(0, dtype=np.int64)
        self._counts: Rows = np.empty(0, dtype=np.int64)

    def add(self, hashes: Hashes, base: int) -> tuple[Rows, Rows]:
        """Take the entities of the rows from ``base`` on.

        Returns the row before each, -1 if there is none, and how many are before it.
        """
        self._require(len(hashes))
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        first = np.ones(len(order), dtype=np.bool_)
        np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
        begins = np.flatnonzero(first)
        group = np.cumsum(first) - 1
        last, counts = self._known(ordered[begins])
        rows = order + base
        before = np.empty(len(order), dtype=np.int64)
        before[order] = np.where(first, last[group], np.concatenate([[-1], rows[:-1]]))
        numbers = np.empty(len(order), dtype=np.int64)
        numbers[order] = np.arange(len(order)) - begins[group] + counts[group]
        ends = np.append(begins[1:], len(order)) - 1
        self._note(ordered[begins], rows[ends], counts + ends - begins + 1)
        return before, numbers

    def _known(self, hashes: Hashes) -> tuple[Rows, Rows]:
        if not len(self._hashes):
            return np.full(len(hashes), -1, dtype=np.int64), np.zeros(len(hashes), dtype=np.int64)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        there = self._hashes[at] == hashes
        return np.where(there, self._last[at], -1), np.where(there, self._counts[at], 0)

    def _note(self, hashes: Hashes, last: Rows, counts: Rows) -> None:
        at = np.searchsorted(self._hashes, hashes)
        there = np.zeros(len(hashes), dtype=np.bool_)
        if len(self._hashes):
            there = self._hashes[np.minimum(at, len(self._hashes) - 1)] == hashes
        self._last[at[there]], self._counts[at[there]] = last[there], counts[there]
        fresh = ~there
        if fresh.any():
            self._hashes = np.insert(self._hashes, at[fresh], hashes[fresh])
            self._last = np.insert(self._last, at[fresh], last[fresh])
            self._counts = np.insert(self._counts, at[fresh], counts[fresh])

    def _require(self, rows: int) -> None:
        entities = len(self._hashes) + rows
        needed = _ROW_BYTES * rows + _ENTITY_BYTES * entities
        if needed > self._room:
            raise MemoryLimitError(
                f"finding the rows before each of {rows} rows of up to {entities} entities takes "
                f"{format_bytes(needed)}; {format_bytes(max(0, self._room))} are left of the memory "
                f"limit",
                f"raise memory_limit by {format_bytes(needed - self._room)}, or ingest with smaller "
                f"partition_bytes",
            )


def _write(part: DatasetPart, window: Window, files: ScratchFiles, room: int) -> int:
    """Write the index; return the number of samples."""
    entities, base, samples = _Entities(room), 0, 0
    with (
        files.writing("previous") as previous,
        files.writing("samples") as chosen,
        step("index sequences (rows)", part.rows) as advance,
    ):
        for partition in range(len(part.partition_rows)):
            before, numbers = entities.add(part.entities(partition, window.entities), base)
            previous.write(before.tobytes())
            if window.short == "drop":
                whole = np.flatnonzero(numbers >= window.rows - 1) + base
                chosen.write(whole.astype(np.int64).tobytes())
                samples += len(whole)
            base += len(before)
            advance(base)
    return samples if window.short == "drop" else base


def _open_again(window: Window, rows: int, samples: int, files: ScratchFiles) -> SequenceIndex:
    """Return the index that another process made, which removes it."""
    made = SequenceIndex.__new__(SequenceIndex)
    made.window, made.samples, made._rows, made._files = window, samples, rows, files
    made._map()
    return made
