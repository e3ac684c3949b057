"""Expression: new columns from Narwhals expressions, row by row.

Always true: a value depends on its own row only, so it is the same however the table is cut. What
looks at other rows is refused when the expression is defined, with the transformer to use instead.
Trade-off: an expression is stored as data, not code, so only operations that this package lists can
be used; anything else is a :class:`~featurestore.transforms.function.Function`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import pyarrow as pa

from featurestore.engines.protocol import Engine, Frame
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema, normalise_type
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer
from featurestore.transforms.expression_json import StoredExpression, check_single
from featurestore.transforms.extent import Extent


@dataclass(frozen=True, init=False)
class Expression(Transformer):
    """One new column per expression.

    Scope: none. State: none. Boundary rule: a value depends on its own row only.
    Null rule: that of Polars. Arithmetic with a null gives null; integer division by zero gives
    null, float division by zero an infinity or NaN; NaN is a value, not a null.
    Memory: the outputs, and one intermediate column per nested operation at a time.

    Parameters
    ----------
    *expressions : narwhals.Expr
        Named by their last ``.alias(name)``.
    **named : narwhals.Expr
        ``name=expression``.

    Raises
    ------
    NotPartitionIndependentError
        If an operation looks at other rows (``shift``, ``mean``, ``over``, ``rank``).
    DefinitionError
        If an operation or value cannot be stored, an expression has no name, or two have the same.

    Examples
    --------
    >>> speed = Expression(speed=nw.col("distance") / nw.col("air_time"))
    >>> speed.columns
    ('distance', 'air_time')
    >>> Expression(previous=nw.col("price").shift(1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    featurestore.errors.NotPartitionIndependentError: shift makes a row's value depend on ...
    """

    definitions: tuple[tuple[str, StoredExpression], ...]

    def __init__(self, *expressions: nw.Expr, **named: nw.Expr) -> None:
        pairs = [(_alias(one), one) for one in expressions] + list(named.items())
        stored = tuple((name, _store(name, one)) for name, one in pairs)
        names = [name for name, _ in stored]
        if not names:
            raise DefinitionError("Expression() defines no column", "give name=expression")
        if len(set(names)) < len(names):
            raise DefinitionError(f"Expression defines a column twice: {names}", "rename one")
        object.__setattr__(self, "definitions", stored)

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the expressions name, in order of first use."""
        return tuple(dict.fromkeys(one for _, stored in self._checked() for one in stored.columns))

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = self.columns
        for name in names:
            if schema[name].is_tensor:
                raise SchemaError(
                    f"column {name!r} is a tensor; expressions take scalar columns",
                    "use a tensor transformer",
                )
        # A constant needs some column to know how many rows there are.
        return names or (_row_counter(schema),)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        from featurestore.engines.selection import get_engine

        engine = get_engine("polars")
        names = self.inputs(schema)
        empty = pa.schema([(name, schema[name].type) for name in names]).empty_table()
        table = engine.to_arrow(self._evaluate(engine.from_arrow(empty)))
        return tuple(_field(one) for one in table.schema)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        return Columns(self._evaluate(partition.frame))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        # Two intermediates of the widest kind at a time: an operation reads one and writes another.
        return 2 * max(extent.input_bytes, 8 * extent.rows)

    def _evaluate(self, frame: Frame) -> Frame:
        names = [name for name, _ in self._checked()]
        rows = len(frame)
        try:
            # with_columns, not select: it repeats a constant in every row.
            out = frame.with_columns(
                **{name: stored.rebuild() for name, stored in self.definitions}
            ).select(names)
        except Exception as error:
            raise _failure(names, frame, error) from error
        if len(out) != rows:
            raise DefinitionError(f"Expression {names} made {len(out)} rows of {rows}")
        return out

    def _checked(self) -> tuple[tuple[str, StoredExpression], ...]:
        # A specification read from a store did not pass through __init__.
        for pair in self.definitions if isinstance(self.definitions, tuple) else (None,):
            if not (
                isinstance(pair, tuple)
                and len(pair) == 2
                and isinstance(pair[0], str)
                and isinstance(pair[1], StoredExpression)
            ):
                raise DefinitionError(f"{pair!r} is not a stored column definition")
        return self.definitions


def _alias(expression: object) -> str:
    nodes = getattr(expression, "_nodes", ())
    if isinstance(expression, nw.Expr) and nodes and nodes[-1].name == "alias":
        return str(nodes[-1].kwargs["name"])
    raise DefinitionError(
        f"{expression!r} has no name", "write name=expression, or end it with .alias('name')"
    )


def _store(name: str, expression: object) -> StoredExpression:
    if not isinstance(expression, nw.Expr):
        raise DefinitionError(
            f"column {name!r} is defined by {expression!r}, which is no Narwhals expression",
            "build it from narwhals.col(...); a Python function goes into Function",
        )
    stored = StoredExpression.of(expression)
    nodes: list[Mapping[str, Any]] = json.loads(stored.text)
    check_single(nodes)
    return stored


def _field(one: pa.Field) -> Field:
    if pa.types.is_null(one.type):
        raise DefinitionError(
            f"column {one.name!r} holds nothing but nulls and has no type",
            "give the constant a type: nw.lit(None, dtype=nw.Float64)",
        )
    return Field(one.name, normalise_type(one.type))


def _row_counter(schema: TableSchema) -> str:
    if schema.time is not None:
        return schema.time
    scalars = [*schema.key, *(one.name for one in schema if not one.is_tensor)]
    if not scalars:
        raise DefinitionError("a constant needs a table with at least one scalar column")
    return scalars[0]


def _failure(names: list[str], frame: Frame, error: Exception) -> DefinitionError:
    types = {name: str(type_) for name, type_ in frame.schema.items()}
    return DefinitionError(
        f"Expression {names} failed on columns {types}: {type(error).__name__}: {error}",
        "correct the expression; cast columns whose types do not fit",
    )
