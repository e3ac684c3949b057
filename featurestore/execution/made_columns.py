"""Columns that a transformer made, held against what it promised.

Always true: what is written has the names, types, shapes and number of rows that the definition declares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError
from featurestore.schema import Field, type_to_text
from featurestore.transforms.base import Columns


def checked_columns(
    outputs: Sequence[Field], columns: Columns, rows: int, engine: Engine, where: str
) -> tuple[pa.Table | None, Mapping[str, np.ndarray[Any, Any]]]:
    """Return a transformer's columns as Arrow and host arrays, if they are what it promised.

    Raises
    ------
    DefinitionError
        For columns, types, shapes or row counts other than its ``outputs``.
    """
    scalars = [one for one in outputs if not one.is_tensor]
    table = None
    if scalars:
        if columns.frame is None:
            raise DefinitionError(f"{where}: no column {scalars[0].name!r} was produced")
        table = engine.to_arrow(columns.frame)
        names = [one.name for one in scalars]
        if sorted(table.column_names) != sorted(names):
            raise DefinitionError(
                f"{where}: columns {table.column_names} were produced where {names} were declared"
            )
        table = _declared_times(table.select(names), scalars)
        for one in scalars:
            _check_scalar(one, table.schema.field(one.name).type, table.num_rows, rows, where)
    arrays = {}
    for one in outputs:
        if one.is_tensor:
            arrays[one.name] = _checked_tensor(one, columns, rows, engine, where)
    return table, arrays


def _declared_times(table: pa.Table, fields: Sequence[Field]) -> pa.Table:
    """Return times of day in their declared unit: an engine may know only one."""
    for position, one in enumerate(fields):
        found = table.schema.field(position).type
        if pa.types.is_time(found) and pa.types.is_time(one.type) and found != one.type:
            column = table.column(position).cast(one.type)
            table = table.set_column(position, one.name, column)
    return table


def _check_scalar(field: Field, type_: pa.DataType, got: int, rows: int, where: str) -> None:
    if type_ != field.type:
        raise DefinitionError(
            f"{where}: column {field.name!r} has type {type_to_text(type_)} where "
            f"{type_to_text(field.type)} was declared",
            "let the definition give the same type for all rows (cast its result)",
        )
    if got != rows:
        raise DefinitionError(
            f"{where}: column {field.name!r} has {got} rows where the partition has {rows}",
            "return exactly one value per row",
        )


def _checked_tensor(
    field: Field, columns: Columns, rows: int, engine: Engine, where: str
) -> np.ndarray[Any, Any]:
    if field.name not in columns.tensors:
        raise DefinitionError(f"{where}: no tensor {field.name!r} was produced")
    array = engine.to_host(columns.tensors[field.name])
    wanted = (rows, *(field.shape or ()))
    dtype = np.dtype(field.type.to_pandas_dtype())
    if array.shape != wanted or array.dtype != dtype:
        raise DefinitionError(
            f"{where}: tensor {field.name!r} has shape {array.shape} and type {array.dtype} where "
            f"{wanted} and {dtype} were declared",
            "return an array of the declared shape and type",
        )
    return array
