"""Sources: what is ingested, whatever it is, as columns of known types and repeatable batches.

Always true: every batch has exactly the source's schema, whose types are those that the store
keeps; the rows come in the same order in every pass; rows are never all in memory (unless the
source itself holds them). Files of one source may differ in the order of their columns and in the
width of their numbers, in nothing else.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.errors import SchemaError, SourceError
from featurestore.ingest.columns import arrow_type, castable, conform, field_of, type_text, unify
from featurestore.ingest.formats import Input, open_file
from featurestore.ingest.streams import open_stream
from featurestore.schema import Field, type_from_text
from featurestore.storage.scratch import Scratch

BATCH_BYTES: Final = 16 << 20
Types: TypeAlias = Mapping[str, "str | pa.DataType"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A batch and where it came from: the input's name and the position of its first row there."""

    where: str
    start: int
    batch: pa.RecordBatch


class Source:
    """Rows to ingest, in a fixed order, in bounded batches, as often as wanted.

    Parameters
    ----------
    inputs : sequence of Input
    types : mapping of str to str or pyarrow.DataType, optional
        Column types that replace those found.
    target : tuple of Field, optional
        The columns that a table already has: the source must have the same, losslessly castable.
    extra : bool
        Whether columns beside ``target`` are passed over instead of refused.
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        types: Types | None = None,
        target: tuple[Field, ...] | None = None,
        extra: bool = False,
    ) -> None:
        self._inputs = tuple(inputs)
        self._types = dict(types or {})
        self._target = target
        self._extra = extra

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The columns, in the order of the first input.

        Raises
        ------
        SchemaError
            If inputs disagree, a type cannot be stored, or a column has no type.
        """
        columns = [_columns(one) for one in self._inputs]
        if self._target is not None and self._extra:
            wanted = {one.name for one in self._target}
            columns = [{n: one for n, one in found.items() if n in wanted} for found in columns]
        first = self._inputs[0].name
        for one, found in zip(self._inputs, columns, strict=True):
            _same_names(columns[0], found, first, one.name)
        asked = {name: _asked_field(name, type_) for name, type_ in self._types.items()}
        unknown = sorted(asked.keys() - columns[0].keys())
        if unknown:
            raise SchemaError(
                f"types= names columns {unknown}, which {first} does not have",
                f"columns are {list(columns[0])}",
            )
        if self._target is not None:
            return self._fit(columns)
        return tuple(asked.get(name) or self._unified(name, columns) for name in columns[0])

    def _unified(self, name: str, columns: Sequence[Mapping[str, Field]]) -> Field:
        result, since = columns[0][name], self._inputs[0]
        for one, found in zip(self._inputs[1:], columns[1:], strict=True):
            wider = unify(result, found[name], one.text and since.text)
            if wider is None:
                raise _disagreement(name, result, since.name, found[name], one.name)
            if wider != result:
                result, since = wider, one
        if pa.types.is_null(result.type):
            raise SchemaError(
                f"column {name!r} of {self._label()} has no value where its type is looked for "
                "(CSV: the first 4 MiB of each file)",
                f"give it a type (ingest and append take types={{{name!r}: 'float64'}}), or leave the "
                "column out",
            )
        return result

    def _fit(self, columns: Sequence[Mapping[str, Field]]) -> tuple[Field, ...]:
        """Return the target columns once every input was seen to have them, and no others."""
        target = {one.name: one for one in self._target or ()}
        for one, found in zip(self._inputs, columns, strict=True):
            _same_names(target, found, "the table", one.name)
            for name, field in found.items():
                # Text is parsed as what the table holds; all else must fit as it is.
                if not one.text and not castable(field, target[name]):
                    raise _disagreement(name, target[name], "the table", field, one.name)
        return tuple(target.values())

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every batch; tensors are flat fixed-size lists, see ``fields``."""
        return pa.schema([(one.name, arrow_type(one)) for one in self.fields])

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the inputs, in the order of their rows."""
        return tuple(one.name for one in self._inputs)

    @property
    def reading_bytes(self) -> int:
        """Bytes that a reader holds besides its batches, at most."""
        return max(one.reading_bytes for one in self._inputs)

    def conforming(self, target: tuple[Field, ...]) -> Source:
        """Return the same rows as columns of a table that exists: same names, castable types.

        The new source shares scratch space with this one; close either.
        """
        return Source(self._inputs, self._types, target)

    def selecting(self, target: tuple[Field, ...]) -> Source:
        """Return some columns of the same rows, as given types; all others are passed over."""
        return Source(self._inputs, self._types, target, extra=True)

    def between(self, before: Sequence[Input], after: Sequence[Input]) -> Source:
        """Return the same rows with those of other inputs before and after them."""
        return Source((*before, *self._inputs, *after), self._types, self._target, self._extra)

    def pieces(
        self, columns: Sequence[str] | None = None, batch_bytes: int = BATCH_BYTES
    ) -> Iterator[Piece]:
        """Yield batches with their places; see :meth:`batches`."""
        chosen = [one for one in self.fields if columns is None or one.name in set(columns)]
        names = [one.name for one in chosen]
        schema = pa.schema([(one.name, arrow_type(one)) for one in chosen])
        for one in self._inputs:
            start = 0
            for batch in one.batches(names, schema, batch_bytes):
                arrays = [
                    conform(batch.column(i), field, one.name) for i, field in enumerate(chosen)
                ]
                yield Piece(one.name, start, pa.RecordBatch.from_arrays(arrays, schema=schema))
                start += batch.num_rows
                del batch, arrays
                release_freed()  # Arrow's pool keeps what it frees for each thread

    def batches(
        self, columns: Sequence[str] | None = None, batch_bytes: int = BATCH_BYTES
    ) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in order; each call starts again.

        Parameters
        ----------
        columns : sequence of str, optional
            All, if not given. Batches have them in the order of ``fields``.
        batch_bytes : int
            About how large a batch may be; at most 65,536 rows.

        Raises
        ------
        SourceError
            If an input cannot be read to its end.
        SchemaError
            If a value does not fit its column's type.
        """
        for piece in self.pieces(columns, batch_bytes):
            yield piece.batch

    def describe(self) -> str:
        """Return in words what is ingested.

        Examples
        --------
        >>> open_source(pa.table({"a": [1]})).describe()
        '1 pyarrow Table, 1 column'
        """
        counts = Counter(one.format for one in self._inputs)
        things = ", ".join(
            f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts.items()
        )
        return f"{things}, {len(self.fields)} column{'s' if len(self.fields) != 1 else ''}"

    def _label(self) -> str:
        more = len(self._inputs) - 1
        return self._inputs[0].name + (f" and {more} more" if more else "")

    def close(self) -> None:
        """Give scratch space back; a source that is dropped does so too."""
        for one in self._inputs:
            one.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _columns(one: Input) -> dict[str, Field]:
    names = one.types.names
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise SchemaError(f"columns {repeated} of {one.name} occur more than once", "rename them")
    if not names:
        raise SchemaError(f"{one.name} has no columns", "leave it out")
    return {field.name: field_of(field.name, field.type, one.name) for field in one.types}


def _same_names(
    first: Mapping[str, Field], second: Mapping[str, Field], first_name: str, second_name: str
) -> None:
    missing = [name for name in first if name not in second]
    extra = [name for name in second if name not in first]
    if missing or extra:
        said = [f"lacks columns {missing}"] if missing else []
        said += [f"has extra columns {extra}"] if extra else []
        raise SchemaError(
            f"{second_name} {' and '.join(said)}, compared with {first_name}",
            "give all parts the same columns: add the missing ones (nulls will do), drop the extra",
        )


def _asked_field(name: str, type_: str | pa.DataType) -> Field:
    found = type_from_text(type_) if isinstance(type_, str) else type_
    field = field_of(name, found, "types=")
    if pa.types.is_null(field.type):
        raise SchemaError(f"types= gives column {name!r} the type null", "name a type with values")
    return field


def _disagreement(
    name: str, first: Field, first_name: str, second: Field, second_name: str
) -> SchemaError:
    a, b = type_text(first), type_text(second)
    remedy = f"cast it in one of them, or say what it is: types={{{name!r}: {a!r}}}"
    if pa.types.is_timestamp(first.type) and pa.types.is_timestamp(second.type):
        zones = [one.type.tz or "no time zone" for one in (first, second)]
        return SchemaError(
            f"column {name!r} has {zones[0]} in {first_name} but {zones[1]} in {second_name}",
            "convert both to one time zone (UTC is best) before ingest",
        )
    return SchemaError(
        f"column {name!r} is {a} in {first_name} but {b} in {second_name}",
        remedy if first_name != "the table" else f"cast it to {a}",
    )


def open_source(
    source: Any, *, types: Types | None = None, scratch: Path | Scratch | None = None
) -> Source:
    """Return rows to ingest.

    Parameters
    ----------
    source : path, glob, directory, stream, or a list of them
        Paths and globs (``**`` goes into folders) name Parquet, CSV or Arrow IPC files; a directory
        means the files in it, all of one format, in order of their names. Anything with
        ``__arrow_c_stream__`` (pandas, Polars, DuckDB, pyarrow) and database cursors with
        ``fetch_record_batch`` stream their rows. A pandas index is left out.
    types : mapping of str to str or pyarrow.DataType, optional
        Types for columns, instead of those found: ``{"zip": "string"}``.
    scratch : Path or Scratch, optional
        Where one-shot streams are kept between passes; default the system's temporary directory.

    Raises
    ------
    SourceError
        If there is nothing there, or it cannot be read.

    Examples
    --------
    >>> source = open_source(pa.table({"a": pa.array([1, 2], pa.int32())}))
    >>> [batch.num_rows for batch in source.batches()]
    [2]
    """
    if isinstance(source, Source):
        return source
    parts = list(source) if isinstance(source, (list, tuple)) else [source]
    if not parts:
        raise SourceError("the list of sources is empty", "give at least one path or stream")
    inputs: list[Input] = []
    for number, part in enumerate(parts):
        if isinstance(part, (str, os.PathLike)):
            inputs += [open_file(path) for path in _files(os.fspath(part))]
        else:
            name = "the source" if len(parts) == 1 else f"source {number} of the list"
            inputs.append(open_stream(part, name, scratch))
    return Source(inputs, types)


def _files(text: str) -> list[Path]:
    """Return the files that a path, directory or glob names, in order."""
    if "://" in text and not text.startswith("file://"):
        raise SourceError(
            f"{text!r} is an address, not a path", "download it, or stream it with pyarrow.dataset"
        )
    path = Path(text.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _files_in(path)
    if path.exists() or not glob.has_magic(text):
        return [path]
    found = [Path(one) for one in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    files = [one for one in found if one.is_file()]
    if not files:
        raise SourceError(
            f"no file matches {path.absolute()}", "check the pattern and the folder it starts from"
        )
    return files


def _files_in(folder: Path) -> list[Path]:
    files = sorted(one for one in folder.iterdir() if one.is_file() and one.name[0] not in "._")
    if not files:
        raise SourceError(
            f"directory {folder.absolute()} holds no files",
            f"for files in its folders give the glob {str(folder / '**' / '*.parquet')!r}",
        )
    endings = sorted(
        {"".join(one.suffixes[-2:] if one.suffix == ".gz" else one.suffixes[-1:]) for one in files}
    )
    if len(endings) > 1:
        raise SourceError(
            f"directory {folder.absolute()} holds files of several kinds: {endings}",
            f"give a glob of one kind: {str(folder / ('*' + endings[-1]))!r}",
        )
    return files
