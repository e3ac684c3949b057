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
from functools import lru_cache
from typing import Any, Final

import narwhals as nw
import pyarrow as pa

from featurestore.engines.protocol import Engine, Frame
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema, normalise_type
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.expression_json import StoredExpression, check_single
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import VIEW, fixed_bytes, is_varying, rounding_bytes

_AT_ONCE: Final = 4096
"""Of more rows than this, one expression is evaluated after the other."""


@dataclass(frozen=True, init=False)
class Expression(Transformer):
    """One new column per expression.

    Scope: none. State: none. Boundary rule: a value depends on its own row only.
    Null rule: that of Polars. Arithmetic with a null gives null; integer division by zero gives
    null, float division by zero an infinity or NaN; NaN is a value, not a null.
    Memory: 8 bytes per row for each operation of one expression (of all together up to 4,096 rows), and
    strings and lists once more than they are written. A string is taken to be no longer than the strings
    and constants that it is made of.

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
    def slicing(self) -> Slicing:
        return Slicing.ROWS

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
        return _made_of(self, tuple((name, schema[name].type) for name in self.inputs(schema)))

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        return Columns(self.evaluated(partition.frame))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        operations = [_operations(json.loads(stored.text)) for _, stored in self._checked()]
        # One intermediate column per operation, of the definition with the most.
        most = max(operations) if extent.rows > _AT_ONCE else sum(operations)
        needed = 8 * (1 + most) * extent.rows
        needed += rounding_bytes(self.outputs(schema), extent.rows)
        texts = [name for name in self.inputs(schema) if is_varying(schema[name].type)]
        made = sum(is_varying(one.type) for one in self.outputs(schema))
        if made:  # the engine's own form of what is written
            needed += self.output_bytes(schema, extent) + VIEW * made * extent.rows
        if texts and max(operations) > 1:
            needed += extent.bytes_of(texts) + VIEW * extent.rows
        return needed

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most Arrow bytes of the outputs.

        A text is taken to be no longer than its row's texts and the expression's constants together; one
        made of numbers than 32 bytes.
        """
        outputs = self.outputs(schema)
        constants = {name: _constants(json.loads(stored.text)) for name, stored in self._checked()}
        texts = [name for name in self.inputs(schema) if is_varying(schema[name].type)]
        varying = sum(
            extent.bytes_of(texts) + extent.rows * (constants[one.name] + 32 * (not texts))
            for one in outputs
            if is_varying(one.type)
        )
        return varying + sum(fixed_bytes(one, extent.rows) for one in outputs)

    def evaluated(self, frame: Frame) -> Frame:
        """Return the expressions' values on a frame."""
        names = [name for name, _ in self._checked()]
        rows = len(frame)
        try:
            made = {name: stored.rebuild() for name, stored in self.definitions}
            # Side by side, the intermediate columns of all expressions would be there at once.
            groups = [made] if rows <= _AT_ONCE else [{name: one} for name, one in made.items()]
            # with_columns, not select: it repeats a constant in every row.
            columns = [frame.with_columns(**group).select(list(group)) for group in groups]
            out = columns[0] if len(columns) == 1 else nw.concat(columns, how="horizontal")
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


@lru_cache(maxsize=1024)
def _made_of(
    expression: Expression, columns: tuple[tuple[str, pa.DataType], ...]
) -> tuple[Field, ...]:
    """Return what an expression makes of columns: asked for every partition, it costs milliseconds."""
    from featurestore.engines.selection import get_engine

    engine = get_engine("polars")
    empty = pa.schema(list(columns)).empty_table()
    table = engine.to_arrow(expression.evaluated(engine.from_arrow(empty)))
    return tuple(_field(one) for one in table.schema)


def _operations(nodes: Any) -> int:
    """Return how many operations a stored expression has."""
    if isinstance(nodes, list):
        return sum(map(_operations, nodes))
    if not isinstance(nodes, Mapping):
        return 0
    own = "op" in nodes and nodes["op"] not in ("col", "lit", "alias")
    return own + sum(map(_operations, nodes.values()))


def _constants(nodes: Any) -> int:
    """Return the bytes that the constants of a stored expression may add to a text."""
    if isinstance(nodes, list):
        return sum(map(_constants, nodes))
    if not isinstance(nodes, Mapping):
        return len(nodes.encode()) if isinstance(nodes, str) else 0
    if nodes.get("op") in ("col", "alias", "cast"):
        return 0
    padding = sum(int(nodes[name]) for name in ("width", "length") if type(nodes.get(name)) is int)
    inner = (value for name, value in nodes.items() if name not in ("op", "dtype"))
    return 4 * padding + sum(map(_constants, inner))


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
