"""Rows of another table matched by key: what ``AsOfJoin`` and ``Lookup`` have in common.

:class:`MatchingTransformer` takes columns of the rows that match; which row that is, is all that the two
differ in.

Rows of the other table travel as :mod:`matched_rows` says. With ``by=None`` all of that table's key columns
travel, because which of them the other side has is not known where the rows are read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import narwhals as nw
import pyarrow as pa

from featurestore.engines.coded import Coded, split_coded
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema, check_name
from featurestore.transforms.base import (
    Columns,
    Partition,
    Slicing,
    SourceTransformer,
    State,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    copied_bytes,
    fixed_bytes,
    is_grown,
    is_text,
    is_varying,
    rounding_bytes,
    sorting_bytes,
    state_rows,
    taking_bytes,
)
from featurestore.transforms.matched_rows import AVAILABLE, ROWS, matched_codes, source_frame
from featurestore.transforms.naming import Renaming, normalise_renaming, output_names
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.tails import TIME, column_name

Pairs: TypeAlias = "str | Sequence[str] | Sequence[tuple[str, str]] | Mapping[str, str] | None"
"""Columns that must be equal: shared names, or own name to the other table's."""


class Named(Protocol):
    """A table, as far as a definition knows it."""

    @property
    def name(self) -> str:
        """Its name in the store."""


def table_name(table: Any, kind: str) -> str:
    """Return the name of a table given by name or as an object with a ``name``.

    Raises
    ------
    DefinitionError
        If it is neither.
    """
    name = table if isinstance(table, str) else getattr(table, "name", None)
    if not isinstance(name, str):
        raise DefinitionError(f"{kind} got {table!r} as table", "give a table or its name")
    return check_name(name, "table")


def normalise_pairs(by: Pairs) -> tuple[tuple[str, str], ...] | None:
    """Return key pairs as they are kept in a definition: ``(own, other)`` each.

    Raises
    ------
    DefinitionError
        If they are not names, or one is used twice.

    Examples
    --------
    >>> normalise_pairs(["origin"]), normalise_pairs({"dest": "airport"})
    ((('origin', 'origin'),), (('dest', 'airport'),))
    """
    if by is None:
        return None
    given: list[Any] = [by] if isinstance(by, str) else list(by)
    if isinstance(by, Mapping):
        given = list(by.items())
    pairs = [(one, one) if isinstance(one, str) else tuple(one) for one in given]
    names = [name for pair in pairs for name in pair]
    if any(len(pair) != 2 for pair in pairs) or not all(isinstance(name, str) for name in names):
        raise DefinitionError(
            f"by={by!r} does not say which columns must be equal",
            "give shared names, or {'own column': 'column of the other table'}",
        )
    for side in zip(*pairs, strict=True):
        if len(set(side)) != len(side):
            raise DefinitionError(f"by={by!r} uses a column twice", "name each column once")
    return tuple(cast("list[tuple[str, str]]", pairs))


@dataclass(frozen=True, slots=True)
class Matching:
    """The columns of a match, resolved against both schemas.

    Parameters
    ----------
    left, right : tuple of str
        Columns that must be equal, in this table and the other.
    state_names : tuple of str
        Those of ``right`` in a state.
    columns : tuple of str
        What is taken from the other table.
    travelling : tuple of str
        All columns of the other table that a row of a state has; one may occur twice.
    empty : pyarrow.Schema
        Of a state without rows.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]
    state_names: tuple[str, ...]
    columns: tuple[str, ...]
    travelling: tuple[str, ...]
    empty: pa.Schema

    @classmethod
    def of(
        cls,
        table: str,
        columns: Selection,
        by: Pairs,
        schema: TableSchema,
        kind: str,
        available: str | None = None,
    ) -> Matching:
        """Resolve a definition.

        Raises
        ------
        SchemaError
            If a table or column does not exist.
        DefinitionError
            If keys cannot be compared, or a column is a tensor.
        """
        source, pairs = schema.source(table), normalise_pairs(by)
        travelling = source.key if pairs is None else tuple(right for _, right in pairs)
        if pairs is None:
            pairs = tuple((name, name) for name in source.key if name in schema)
            if source.key and not pairs:
                raise DefinitionError(
                    f"{kind}: this table has none of the key columns {list(source.key)} of {table!r}",
                    "say which columns must be equal with by={'own column': 'their column'}",
                )
        for left, right in pairs:
            _check_comparable(schema[left], source[right], table, kind)
        chosen = resolve(columns, source)
        for name in chosen:
            if source[name].is_tensor:
                raise DefinitionError(
                    f"{kind} cannot take tensor column {name!r} of {table!r}", "name scalar columns"
                )
        types = [(f"by_{i}", source[name].type) for i, name in enumerate(travelling)]
        types += [] if source.time is None else [(TIME, source[source.time].type)]
        types += [(column_name(i), source[name].type) for i, name in enumerate(chosen)]
        types += [] if available is None else [(AVAILABLE, source[available].type)]
        names = (*travelling, source.time, *chosen, available)
        return cls(
            tuple(left for left, _ in pairs),
            tuple(right for _, right in pairs),
            tuple(f"by_{travelling.index(right)}" for _, right in pairs),
            chosen,
            tuple(name for name in names if name is not None),
            pa.schema(types),
        )

    def right_rows(self, engine: Engine, rows: pa.Table | None) -> tuple[Frame, Coded]:
        """Return the other table's rows, no rows at all if there are none, and keys that are dictionaries."""
        table = self.empty.empty_table() if rows is None else rows
        table, coded = split_coded(table, [one for one in table.column_names if one[:3] == "by_"])
        return engine.from_arrow(table), coded


class MatchingTransformer(SourceTransformer):
    """Columns of another table's rows with equal ``by`` columns, one such row for each own row.

    Subclasses are dataclasses with these fields, in the order of their own.
    """

    table: str | Named
    columns: Selection
    by: Pairs
    available: str | None
    prefix: str | None
    rename: Renaming

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "table", table_name(self.table, type(self).__name__))
        put(self, "columns", normalise_selection(self.columns))
        put(self, "by", normalise_pairs(self.by))
        put(self, "rename", normalise_renaming(self.rename))
        if self.available is not None and not isinstance(self.available, str):
            raise DefinitionError(
                f"{type(self).__name__} has available={self.available!r}",
                "name the column of the other table that says when a row became known",
            )

    @property
    def source_table(self) -> str:
        return cast("str", self.table)

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def matching(self, schema: TableSchema) -> Matching:
        """Return the columns of the match, for a schema of the own table."""
        kind = type(self).__name__
        return Matching.of(self.source_table, self.columns, self.by, schema, kind, self.available)

    def compared(self, schema: TableSchema) -> tuple[str, ...]:
        return self.matching(schema).left

    def source_compared(self, schema: TableSchema) -> tuple[str, ...]:
        matching = self.matching(schema)
        source = schema.source(self.source_table)
        keys = source.key if self.by is None else matching.right
        others = (*matching.columns, source.time, self.available)
        return tuple(one for one in keys if one not in others)

    def source_frame(
        self, partition: Partition, engine: Engine, *, timed: bool = True
    ) -> tuple[Frame, Coded]:
        """Return a partition of the other table, as :func:`matched_rows.source_frame` does."""
        schema, pairs = partition.schema, normalise_pairs(self.by)
        by = schema.key if pairs is None else [right for _, right in pairs]
        time = schema.time if timed else None
        columns = resolve(self.columns, schema)
        return source_frame(engine, partition, by, columns, time, self.available)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        matching, source = self.matching(schema), schema.source(self.source_table)
        names = output_names(matching.columns, self.prefix, self.rename, type(self).__name__)
        return tuple(
            Field(name, source[old].type) for name, old in zip(names, matching.columns, strict=True)
        )

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema = partition.schema
        matching = self.matching(schema)
        right, coded = matching.right_rows(engine, state.get(ROWS))
        *codes, matchable = matched_codes(engine, partition, right, coded, matching)
        positions, found = self.matched(partition, right, (codes[0], codes[1]), engine)
        return taken(engine, right, positions, found & matchable, self.outputs(schema))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        matching, source = self.matching(schema), schema.source(self.source_table)
        right = self._right_rows(source, matching, extent)
        together = extent.rows + right
        types = [source[name].type for name in matching.columns]
        texts = VIEW * right * sum(map(is_text, matching.empty.types))
        keys = VIEW * together * sum(is_text(schema[name].type) for name in matching.left)
        found = self._finding_bytes(extent.rows, right)
        taking = taking_bytes(types, extent.rows)
        return (
            rounding_bytes(self.outputs(schema), extent.rows)
            + texts
            + keys
            + (self._varying(schema, extent) if any(map(is_grown, types)) else 0)
            + 8 * together
            + sorting_bytes(schema, matching.left, together, max(found, 9 * extent.rows + taking))
        )

    def _finding_bytes(self, rows: int, right: int) -> int:
        """Return what finding the rows takes that own ones take, by their times."""
        return 58 * right + 38 * rows

    def _right_rows(self, source: TableSchema, matching: Matching, extent: Extent) -> int:
        """Return the most rows of the other table that there may be, those of the state included."""
        return extent.source_rows + state_rows(source, matching.travelling, extent)

    def _varying(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most bytes of texts and lists that are taken: every row may take the widest."""
        source = schema.source(self.source_table)
        if not any(is_varying(source[name].type) for name in self.matching(schema).columns):
            return 0
        widest = extent.source_widest_row or extent.source_bytes + extent.state_bytes
        return extent.rows * widest

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        fixed = sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
        return fixed + self._varying(schema, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        source, matching = schema.source(self.source_table), self.matching(schema)
        return copied_bytes(source, matching.travelling, extent)

    @abstractmethod
    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        """Return for each own row the position of the row it takes, and whether there is one.

        Parameters
        ----------
        partition : Partition
        right : Frame
            The other table's rows, as they travel.
        codes : pair of arrays
            Of own and of other rows: equal where the ``by`` columns are.
        engine : Engine
        """


def taken(
    engine: Engine, right: Frame, positions: Array, found: Array, fields: Sequence[Field]
) -> Columns:
    """Return the matched rows' columns under their new names."""
    names = [column_name(i) for i in range(len(fields))]
    rows = engine.take(right.select(*names), positions, found)
    return Columns(
        rows.select(*(nw.col(n).alias(f.name) for n, f in zip(names, fields, strict=True)))
    )


def _check_comparable(left: Field, right: Field, table: str, kind: str) -> None:
    shown = f"{left.name!r} ({left.type}) and {table}.{right.name!r} ({right.type})"
    if any(one.is_tensor or pa.types.is_nested(one.type) for one in (left, right)):
        raise DefinitionError(
            f"{kind} cannot compare tensors or lists: {shown}", "match by scalar columns"
        )
    small = all(
        pa.types.is_integer(t) and not pa.types.is_uint64(t) for t in (left.type, right.type)
    )
    if left.type != right.type and not small:
        raise DefinitionError(
            f"{kind} cannot compare columns {shown}", "give both the same type before ingest"
        )
