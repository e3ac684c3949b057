"""The ``by`` of transformers that work within groups: which columns, checked against the schema."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa

from featurestore.errors import DefinitionError
from featurestore.schema import TableSchema

By: TypeAlias = "str | Sequence[str] | None"
"""Grouping columns; None for the table's key, no columns at all for one group of all rows."""


def normalise_by(by: By) -> tuple[str, ...] | None:
    """Return grouping columns as they are kept in a definition.

    Raises
    ------
    DefinitionError
        If they are not names, or one is given twice.
    """
    if by is None:
        return None
    names = (by,) if isinstance(by, str) else tuple(by)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DefinitionError(f"by={by!r} is not a list of different column names", "name columns")
    return names


def resolve_by(by: By, schema: TableSchema, kind: str) -> tuple[str, ...]:
    """Return the grouping columns in a table.

    Raises
    ------
    SchemaError
        If a column does not exist.
    DefinitionError
        If the table's key is meant and it has none, or a column is a tensor or has lists.
    """
    names = normalise_by(by)
    if names is None:
        if not schema.key:
            raise DefinitionError(
                f"{kind} works per key and this table has no key",
                "name the columns with by=, or by=[] for one group of all rows",
            )
        names = schema.key
    for name in names:
        one = schema[name]
        if one.is_tensor or pa.types.is_nested(one.type):
            what = "tensor" if one.is_tensor else str(one.type)
            raise DefinitionError(
                f"{kind} cannot group by {what} column {name!r}", "group by a scalar column"
            )
    return names


def require_time(schema: TableSchema, kind: str, what: str) -> str:
    """Return the time column.

    Raises
    ------
    DefinitionError
        If the table has none: the order of its rows then means nothing that could be looked back on.
    """
    if schema.time is None:
        raise DefinitionError(
            f"{kind} {what} and this table has no time column, so its rows have no order in time",
            "ingest the table with time=",
        )
    return schema.time
