"""Writing one partition of a column group, at once or in slices of its rows.

Always true: what was written is gone from memory, but for a tensor's rows that do not fill a chunk yet;
the partition's entry does not depend on how its rows were cut, nor do the bytes of tensors. Row groups
of Parquet end where slices end, so those of one slice are what they always were. After an error the
files written so far stay: nothing refers to them, gc finds them.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import InvalidInputError, SchemaError
from featurestore.fingerprint import digest
from featurestore.schema import check_name, normalise_type
from featurestore.storage.checksum import FileWriter, hashed_file
from featurestore.storage.codecs import CODEC, LEVEL, column_forms
from featurestore.storage.column_size import ColumnSize
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.parquet_footer import parquet_footer
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.storage.row_width import widest_row
from featurestore.storage.tensor_group import TensorLayout, TensorWriter, tensor_layout

DATA: Final = "data"
ROW_GROUP_ROWS: Final = 65_536
ROW_GROUP_BYTES: Final = 64 * 2**20
_LEAST_REMEDY: Final = "give every slice the same columns, and all rows of the partition"

Tensors = Mapping[str, npt.NDArray[Any]]


def begin_partition(
    store: ObjectStore, *, table: str, group: str, partition: str, rows: int
) -> GroupWriter:
    """Begin one partition of a column group under new names; to be used in a ``with``.

    Parameters
    ----------
    store : ObjectStore
    table, group, partition : str
        Become part of the path.
    rows : int
        Of the whole partition: how tensors are laid out depends on it.

    Examples
    --------
    >>> from featurestore.storage.backends import open_object_store
    >>> store = open_object_store("memory://writer-example")
    >>> with begin_partition(store, table="t", group="base", partition="p", rows=3) as writer:
    ...     writer.write(pa.table({"x": [1, 2]}))
    ...     writer.write(pa.table({"x": [3]}))
    ...     entry = writer.finish(Provenance("ingest", ""))
    >>> entry.rows, entry.column_bytes
    (3, {'x': 24})
    """
    check_name(table, "table")
    check_name(group, "column group")
    check_name(partition, "partition")
    if rows < 0:
        raise InvalidInputError(f"a partition cannot have {rows} rows", "give 0 or more")
    stem = f"{DATA}/{table}/{group}/{partition}-{secrets.token_hex(6)}"
    return GroupWriter(store, stem, partition, rows)


class GroupWriter:
    """Takes a partition's rows slice by slice; see :func:`begin_partition`."""

    def __init__(self, store: ObjectStore, stem: str, partition: str, rows: int) -> None:
        self._store = store
        self._stem = stem
        self._partition = partition
        self._rows = rows
        self._open = ExitStack()
        self._written = 0
        self._form: _Form | None = None
        self._parquet: _ParquetWriter | None = None
        self._tensors: dict[str, TensorWriter] = {}
        self._sizes: dict[str, ColumnSize] = {}
        self._nulls: dict[str, int] = {}
        self._widest = 0
        self._writing = False

    def __enter__(self) -> GroupWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._open.__exit__(kind, error, trace)
        except Exception:  # what a file says when it is given up, if that is not what went wrong
            if error is None or self._writing:
                raise
            raise error from None

    def write(self, columns: pa.Table | None, tensors: Tensors | None = None) -> None:
        """Write the next rows.

        Parameters
        ----------
        columns : pyarrow.Table, optional
            Scalar columns of normalised types, unique names. May have no rows.
        tensors : mapping of str to array ``[rows, ...]``, optional

        Raises
        ------
        SchemaError
            If a type cannot be stored, names repeat, there is no column at all, or columns or types
            are not those of the slices before.
        InvalidInputError
            If columns and tensors differ in their row counts, or there are more rows than announced.
        DiskFullError
            If the disk is full.
        """
        self._writing = True
        tensors = tensors or {}
        scalars = pa.table({}) if columns is None else columns.replace_schema_metadata(None)
        rows = _check(scalars, tensors)
        self._written += rows
        if self._written > self._rows:
            raise self._miscounted()
        if self._form is None:
            self._begin(scalars, tensors)
        assert self._form is not None
        self._form.require(scalars, tensors)
        if self._parquet is not None:
            self._parquet.write(scalars)
        for name, values in tensors.items():
            self._tensors[name].write(values)
        for name in scalars.column_names:
            self._sizes[name].add(scalars.column(name))
            self._nulls[name] += scalars.column(name).null_count
        tensor_bytes = self._form.tensor_bytes
        found = widest_row(scalars, tensor_bytes) if self._parquet else tensor_bytes * (rows > 0)
        self._widest = max(self._widest, found)
        self._writing = False

    def finish(
        self, provenance: Provenance, time_range: tuple[int, int] | None = None
    ) -> PartitionEntry:
        """Complete the files, which are not synced; return the partition's entry.

        Parameters
        ----------
        provenance : Provenance
        time_range : tuple of int, optional
            First and last event time, in steps of its unit.

        Raises
        ------
        InvalidInputError
            If there were fewer rows than announced.
        DiskFullError
            If the disk is full.
        """
        self._writing = True
        if self._form is None:
            raise SchemaError("a column group needs at least one column", _LEAST_REMEDY)
        if self._written != self._rows:
            raise self._miscounted()
        files: tuple[StoredFile, ...] = ()
        if self._parquet is not None:
            footer = self._parquet.finish()
            self._open.close()
            files = (self._parquet.file.stored(footer),)
        column_bytes = {name: size.bytes for name, size in self._sizes.items()}
        for name, layout in self._form.tensors.items():
            column_bytes[name] = self._rows * layout.row_bytes
        return PartitionEntry(
            partition=self._partition,
            rows=self._rows,
            files=files,
            tensors={name: writer.finish() for name, writer in self._tensors.items()},
            provenance=provenance,
            decoded_bytes=sum(column_bytes.values()),
            column_bytes=column_bytes,
            widest_row=self._widest,
            nulls=self._nulls,
            time_min=None if time_range is None else time_range[0],
            time_max=None if time_range is None else time_range[1],
        )

    def _begin(self, scalars: pa.Table, tensors: Tensors) -> None:
        """Open the files, now that columns and types are known."""
        layouts = {
            name: tensor_layout(name, values.dtype, (self._rows, *values.shape[1:]))
            for name, values in tensors.items()
        }
        self._form = _Form(scalars.schema, layouts)
        self._sizes = {one.name: ColumnSize(one.type) for one in scalars.schema}
        self._nulls = dict.fromkeys(scalars.column_names, 0)
        if scalars.num_columns:
            file = self._open.enter_context(hashed_file(self._store, f"{self._stem}.parquet"))
            parquet = self._open.enter_context(_parquet_file(file, scalars))
            self._parquet = _ParquetWriter(file, parquet)
        for index, (name, layout) in enumerate(layouts.items()):
            directory = f"{self._stem}.{index}.zarr"
            self._tensors[name] = TensorWriter(self._store, directory, name, layout)

    def _miscounted(self) -> InvalidInputError:
        return InvalidInputError(
            f"partition {self._partition} was announced with {self._rows} rows and got "
            f"{self._written}",
            _LEAST_REMEDY,
        )


@dataclass(frozen=True, slots=True)
class _Form:
    """The columns of a partition: what all its slices share."""

    scalars: pa.Schema
    tensors: Mapping[str, TensorLayout]

    @property
    def tensor_bytes(self) -> int:
        return sum(layout.row_bytes for layout in self.tensors.values())

    def require(self, scalars: pa.Table, tensors: Tensors) -> None:
        """Refuse a slice of other columns; what a tensor's rows are, its own writer looks at."""
        found = [(one.name, one.type) for one in scalars.schema]
        known = [(one.name, one.type) for one in self.scalars]
        if found != known or tensors.keys() != self.tensors.keys():
            raise SchemaError(
                f"a slice has columns {found} and tensors {sorted(tensors)}, the ones before "
                f"{known} and {sorted(self.tensors)}",
                _LEAST_REMEDY,
            )


class _ParquetWriter:
    """A Parquet file that is being written."""

    def __init__(self, file: FileWriter, parquet: pq.ParquetWriter) -> None:
        self.file = file
        self._parquet = parquet

    def write(self, columns: pa.Table) -> None:
        for part, row_group in _row_groups(columns):
            self._parquet.write_table(part, row_group_size=row_group)

    def finish(self) -> str:
        """Write the footer; return its checksum."""
        self.file.stream.keep_the_rest()
        self._parquet.close()
        return digest(parquet_footer(self.file.stream.kept))


def _parquet_file(file: FileWriter, first: pa.Table) -> pq.ParquetWriter:
    """Return the writer of a file, given its first rows."""
    forms = column_forms(first)
    texts = [
        field.name
        for field in first.schema
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type)
    ]
    return pq.ParquetWriter(
        file.stream,
        first.schema,
        compression={path: form.codec for path, form in forms.items()},
        compression_level={path: LEVEL for path, form in forms.items() if form.codec == CODEC},
        column_encoding={path: form.encoding for path, form in forms.items() if form.encoding},
        # One name means one top-level column here, unless it holds dots: then the whole path
        # is looked up, finds nothing, and the column is written without a dictionary.
        use_dictionary=texts or False,
        write_statistics=True,
        write_page_checksum=True,
    )


def _row_groups(columns: pa.Table) -> Iterator[tuple[pa.Table, int]]:
    """Yield runs of rows and the row group size to write them with.

    Row groups of equal size by average, as long as none is far larger than the others; where one
    is, for a few rows that are wider by far, it is halved until none is.
    """
    rows = columns.num_rows
    row_bytes = max(1, columns.nbytes // max(1, rows))
    size = max(1, min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // row_bytes))
    begins = range(0, rows, size)
    if rows <= 1 or all(_fits(columns.slice(begin, size)) for begin in begins):
        yield columns, size
        return
    waiting = [(begin, min(size, rows - begin)) for begin in reversed(begins)]
    while waiting:
        begin, count = waiting.pop()
        part = columns.slice(begin, count)
        if count == 1 or _fits(part):
            yield part, count
        else:
            half = count // 2
            waiting += [(begin + half, count - half), (begin, half)]


def _fits(rows: pa.Table) -> bool:
    return bool(rows.nbytes <= 2 * ROW_GROUP_BYTES)


def _check(columns: pa.Table, tensors: Tensors) -> int:
    """Return the common row count, or refuse the columns."""
    names = list(columns.column_names)
    repeated = sorted(name for name, count in Counter([*names, *tensors]).items() if count > 1)
    if repeated:
        raise SchemaError(f"columns {repeated} occur more than once", "rename them")
    if not names and not tensors:
        raise SchemaError("a column group needs at least one column")
    counts = {name: len(values) for name, values in tensors.items()}
    if names:
        for field in columns.schema:
            if normalise_type(field.type) != field.type:
                raise SchemaError(
                    f"column {field.name!r} has type {field.type}", "normalise it before writing"
                )
        counts[names[0]] = columns.num_rows
    if len(set(counts.values())) != 1:
        raise InvalidInputError(f"columns of one partition differ in rows: {counts}")
    return next(iter(counts.values()))
