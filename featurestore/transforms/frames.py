"""Frames in memory, of any library that Narwhals reads, as partitions and back.

Always true: values are cast to the types of the schema only where none is lost, and never parsed from
text or printed to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
from narwhals.exceptions import NarwhalsError

from featurestore.engines.protocol import Engine
from featurestore.errors import SchemaError
from featurestore.schema import Field, TableSchema, normalise_type
from featurestore.transforms.base import Partition


def from_frame(frame: Any, engine: Engine, schema: TableSchema | None = None) -> Partition:
    """Return a frame as a partition; its columns have the types of ``schema`` where that has them.

    Without ``schema`` the partition has one of the frame's own columns, without key and time.

    Raises
    ------
    SchemaError
        If it is no frame, or a column does not fit its type.
    """
    table = _arrow(frame, schema)
    if schema is None:
        schema = TableSchema(tuple(Field(one.name, one.type) for one in table.schema))
    return Partition(engine.from_arrow(table), schema)


def like_frame(frame: Any, table: pa.Table) -> Any:
    """Return Arrow columns as a frame of the library that ``frame`` is of."""
    if isinstance(frame, nw.DataFrame):
        return nw.from_arrow(table, backend=frame.implementation)
    implementation = nw.from_native(frame, eager_only=True).implementation
    return nw.from_arrow(table, backend=implementation).to_native()


def to_arrow(partition: Partition, columns: Sequence[str], engine: Engine) -> pa.Table:
    """Return columns of a partition as Arrow; tensors as (nested) fixed-size lists."""
    scalars = engine.to_arrow(partition.frame)
    arrays = [
        _tensor_to_arrow(engine.to_host(partition.tensors[name]))
        if name in partition.tensors
        else scalars.column(name)
        for name in columns
    ]
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _tensor_to_arrow(values: np.ndarray[Any, Any]) -> pa.Array:
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _arrow(frame: Any, schema: TableSchema | None) -> pa.Table:
    """Return a frame in memory as Arrow of stored types; those of ``schema`` where it has them."""
    try:
        held = nw.from_native(frame, eager_only=True)
    except TypeError as error:
        raise SchemaError(
            f"a {type(frame).__name__} is not a frame", "give pandas, Polars or pyarrow"
        ) from error
    except NarwhalsError as error:
        raise _untaken(frame, error) from error
    odd = [name for name in held.columns if not isinstance(name, str)]
    if odd:
        raise SchemaError(f"column names {odd[:5]} of the frame are no texts", "rename them")
    objects = [name for name, type_ in held.schema.items() if type_ == nw.Object]
    if objects and held.implementation.is_polars():  # it would give away where they lie in memory
        raise SchemaError(f"columns {objects[:5]} hold Python objects", "leave them out")
    try:
        table = held.to_arrow()
    except (NarwhalsError, pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
        raise _untaken(frame, error) from error
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        known = schema is not None and name in schema
        try:
            wanted = schema[name].type if schema and known else normalise_type(column.type)
        except SchemaError as error:
            raise SchemaError(f"column {name!r}: {error.problem}", error.remedy) from error
        columns[name] = _cast(column, wanted, name)
    return pa.table(columns)


def _untaken(frame: Any, error: Exception) -> SchemaError:
    return SchemaError(
        f"a {type(frame).__module__.partition('.')[0]} frame has columns that cannot be taken: {error}",
        "give each a name of its own and one type: numbers, texts or times; or leave it out",
    )


def _cast(column: pa.ChunkedArray, wanted: pa.DataType, name: str) -> pa.ChunkedArray:
    if column.type == wanted:
        return column
    if not pa.types.is_null(column.type) and (
        pa.types.is_string(normalise_type(column.type)) != pa.types.is_string(wanted)
    ):
        # Arrow would parse or print it; a pipeline must not guess.
        raise SchemaError(
            f"column {name!r} has type {column.type}, not {wanted}", "cast the column"
        )
    try:
        return column.cast(wanted, safe=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {name!r} has type {column.type}, which does not fit {wanted}: {error}",
            "cast the column",
        ) from error
