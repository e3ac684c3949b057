"""Reading one partition: columns of several column groups, put side by side.

A column group is one file per partition, aligned with the base group by row position. So this is the
one place where alignment is checked: the partition ids must be equal and the row counts too, both
as recorded and as read; anything else is corruption, never a truncated or padded column.

The source is a small picklable value (metadata only); data is read where the task runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.arrow import read_arrow
from featurestore.engines.coded import split_coded
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError
from featurestore.fingerprint import fingerprint
from featurestore.schema import TableSchema
from featurestore.storage.column_group import iter_batches
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import GroupEntry, PartitionEntry
from featurestore.transforms.base import Partition


@dataclass(frozen=True, slots=True)
class PartitionSource:
    """Where the columns of one partition are.

    Parameters
    ----------
    base : PartitionEntry
        The base group's entry: it says how many rows there are and which times they span.
    groups : tuple of (GroupEntry, PartitionEntry)
        Every column group that may be read from, the base group among them if its columns are
        wanted, each with its entry for this partition.

    Raises
    ------
    CorruptionError
        If an entry is of another partition, or has another number of rows than the base.
    """

    base: PartitionEntry
    groups: tuple[tuple[GroupEntry, PartitionEntry], ...]

    def __post_init__(self) -> None:
        for group, entry in self.groups:
            if entry.partition != self.base.partition:
                raise CorruptionError(
                    f"column group {group.group!r} of table {group.table!r} offers partition "
                    f"{entry.partition} where {self.base.partition} was asked for",
                    "run verify",
                )
            if entry.rows != self.base.rows:
                raise self._row_mismatch(group, entry.rows)

    @property
    def partition(self) -> str:
        return self.base.partition

    @property
    def rows(self) -> int:
        return self.base.rows

    def decoded_bytes(self, columns: Sequence[str]) -> int:
        """Return the bytes these columns take in memory, as recorded when they were written."""
        return sum(self.column_bytes(columns).values())

    def column_bytes(self, columns: Sequence[str]) -> dict[str, int]:
        """Return the bytes of each of some columns, as recorded; 0 for those that are not here."""
        found = dict.fromkeys(columns, 0)
        for group, entry in self.groups:
            for one in group.fields:
                if one.name in found:
                    found[one.name] += entry.column_bytes.get(one.name, 0)
        return found

    def nulls(self, column: str) -> int:
        """Return how many nulls a column has here, as recorded; 0 for tensors."""
        return self._entry(column)[1].nulls.get(column, 0)

    def provenance(self, columns: Sequence[str]) -> str:
        """Return a fingerprint of the values of these columns in this partition.

        Equal for equal values however the table's other columns or partitions changed; the order
        of ``columns`` does not matter.
        """
        found = {name: entry for name, (_, entry) in self._entries(columns).items()}
        # Of each entry once: hundreds of columns share one.
        entries = {id(entry): entry for entry in found.values()}
        known = {key: entry.provenance.fingerprint for key, entry in entries.items()}
        return fingerprint("columns", [[name, known[id(found[name])]] for name in sorted(found)])

    def read(
        self,
        store: ObjectStore,
        engine: Engine,
        columns: Sequence[str],
        schema: TableSchema,
        rows: tuple[int, int] | None = None,
        coded: Collection[str] = (),
        until: int | None = None,
    ) -> Partition:
        """Return columns of this partition, scalars in the order asked for.

        Parameters
        ----------
        store : ObjectStore
        engine : Engine
            Its library holds the frame and its array module the tensors.
        columns : sequence of str
            Scalar and tensor columns. None at all gives a frame without columns, hence without
            rows.
        schema : TableSchema
            Of the whole table; the result carries it.
        rows : tuple of int, optional
            Only the rows ``start <= row < stop``: a slice. Of each file, only the row groups that
            hold some of them are read.
        coded : collection of str
            Columns of texts that may be dictionaries beside the frame (``Partition.coded``).
        until : int, optional
            Rows after this time, in steps of the time column, may be left out.

        Raises
        ------
        InvalidInputError
            If the rows are not within the partition.
        NotFoundError
            If no group here has a column.
        CorruptionError
            If a file is damaged or its rows do not match the base group's.
        """
        columns = tuple(dict.fromkeys(columns))
        start, stop = (0, self.rows) if rows is None else rows
        if not 0 <= start <= stop <= self.rows:
            raise InvalidInputError(
                f"rows {start} to {stop} are not within partition {self.partition} of {self.rows}"
            )
        tensor_names = self._tensors(columns)
        scalars = [name for name in columns if name not in tensor_names]
        coded = {one for one in coded if one in scalars and pa.types.is_string(schema[one].type)}
        frames, beside = [], dict[str, pa.DictionaryArray]()
        reads = self._reads(scalars)
        last = None
        if until is not None and rows is None and len(reads) == 1 and schema.time in scalars:
            last = schema.time, until
        for group, entry, names in reads:
            if (coded or last is not None) and engine.xp is np:
                table = read_arrow(store, entry.files, names, entry, rows, coded, last)
                found = len(table)
                table, more = split_coded(table, [one for one in names if one in coded])
                frame, beside = engine.from_arrow(table), {**beside, **more}
                stop = found if last is not None else stop
            else:
                frame = engine.read_parquet(store, entry.files, names, entry, rows)
                found = len(frame)
            if found != stop - start:
                raise self._row_mismatch(group, self.rows - (stop - start) + found)
            frames += [frame] if frame.columns else []
        tensors = {
            name: self._read_tensor(store, engine, name, start, stop)
            for name in columns
            if name in tensor_names
        }
        plain = [name for name in scalars if name not in beside]
        frame = _side_by_side(frames, engine).select(plain)
        return Partition(frame, schema, tensors, coded=beside)

    def blocks(self, store: ObjectStore, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield scalar columns of this partition side by side, a few rows at a time.

        One pass over each file, with all checks of a whole read and of the null counts as well.

        Raises
        ------
        NotFoundError, CorruptionError
            As :meth:`read` does.
        """
        self._entries(columns)  # or refuse
        found = [
            _Blocks(iter_batches(store, entry, names)) for _, entry, names in self._reads(columns)
        ]
        done = 0
        while done < self.rows:
            rows = min(one.waiting() for one in found)
            parts = [one.take(rows) for one in found]
            yield pa.table(
                {name: part[name] for part in parts for name in part.column_names}
            ).select(list(columns))
            done += rows
        for one in found:
            one.finish()

    def _reads(self, scalars: Sequence[str]) -> list[tuple[GroupEntry, PartitionEntry, list[str]]]:
        """Return what to read: a file that several groups share once, for all their columns."""
        found: dict[tuple[str, ...], tuple[GroupEntry, PartitionEntry, list[str]]] = {}
        for group, entry in self.groups:
            held = set(group.names)
            names = [name for name in scalars if name in held]
            if names:
                paths = tuple(file.path for file in entry.files)
                first, known, earlier = found.get(paths, (group, entry, []))
                sizes = {**known.column_bytes, **entry.column_bytes}  # of all columns in the file
                found[paths] = first, replace(known, column_bytes=sizes), [*earlier, *names]
        return list(found.values())

    def zarr(self, store: ObjectStore, column: str) -> Any:
        """Return a tensor column of this partition as a read-only ``zarr.Array``."""
        from featurestore.storage.tensor_group import open_tensor

        return open_tensor(store, self._entry(column)[1], column)

    def _read_tensor(
        self, store: ObjectStore, engine: Engine, name: str, start: int, stop: int
    ) -> Array:
        from featurestore.storage.tensor_group import read_tensor

        group, entry = self._entry(name)
        values = read_tensor(store, entry, name, start, stop)
        if values.shape[0] != stop - start:
            raise self._row_mismatch(group, int(values.shape[0]))
        return engine.from_host(values)

    def _entry(self, column: str) -> tuple[GroupEntry, PartitionEntry]:
        return self._entries((column,))[column]

    def _entries(self, columns: Sequence[str]) -> dict[str, tuple[GroupEntry, PartitionEntry]]:
        """Return where each of some columns is, in one go through all there are."""
        wanted = set(columns)
        found = {
            one.name: pair
            for pair in reversed(self.groups)
            for one in pair[0].fields
            if one.name in wanted
        }
        for name in columns:
            if name not in found:
                raise NotFoundError(
                    f"there is no column {name!r} in partition {self.partition}",
                    f"columns are {[one for group, _ in self.groups for one in group.names]}",
                )
        return found

    def _tensors(self, columns: Sequence[str]) -> set[str]:
        """Return those of some columns that are tensors; refuse columns that are not here."""
        wanted = self._entries(columns).keys()
        fields = (one for group, _ in self.groups for one in group.fields)
        return {one.name for one in fields if one.is_tensor and one.name in wanted}

    def _row_mismatch(self, group: GroupEntry, rows: int) -> CorruptionError:
        return CorruptionError(
            f"column group {group.group!r} of table {group.table!r} has {rows} rows in partition "
            f"{self.partition}, the base group has {self.rows}",
            "run verify, then rebuild this feature",
        )


class _Blocks:
    """A stream of rows that can be taken in other portions than it comes in."""

    def __init__(self, stream: Iterator[pa.Table]) -> None:
        self._stream = stream
        self._block: pa.Table | None = None

    def waiting(self) -> int:
        """Return how many rows can be taken; more than 0, as fewer than announced are an error."""
        if self._block is None:
            self._block = next(self._stream)
        return int(self._block.num_rows)

    def take(self, rows: int) -> pa.Table:
        assert self._block is not None
        taken, rest = self._block.slice(0, rows), self._block.slice(rows)
        self._block = rest if rest.num_rows else None
        return taken

    def finish(self) -> None:
        """Let the stream check what it has seen in all."""
        next(self._stream, None)


def _side_by_side(frames: Sequence[Frame], engine: Engine) -> Frame:
    if not frames:
        return engine.from_arrow(pa.table({}))
    if len(frames) == 1:
        return frames[0]
    return nw.concat(list(frames), how="horizontal")
