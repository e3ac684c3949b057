"""Lags: values of an entity's earlier rows, so many rows before each.

Scope ``prefix``: the state is the tail of earlier rows (:mod:`tails`), put before the partition's own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, cast

import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.windows import group_rows
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    encode,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    fixed_bytes,
    handed_extent,
    is_grown,
    is_text,
    is_varying,
    kept_bytes,
    rounding_bytes,
    sorting_bytes,
    state_rows,
    tail_memory,
    taking_bytes,
)
from featurestore.transforms.grouping import By, normalise_by, require_time, resolve_by
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.statistics import made_fields
from featurestore.transforms.tails import (
    Extended,
    Keep,
    column_name,
    combine_tails,
    key_rows,
    positional,
    rows_before,
    summarize_tail,
)


@dataclass(frozen=True)
class Lag(Transformer):
    """The value of the same group's row some rows before each row.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Scalar columns of any type.
    periods : int or sequence of int
        How many rows before; each 1 or more.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    prefix, rename : optional
        Change the names ``<input>_lag_<n>``.

    Notes
    -----
    *Null rule.* Nulls are values: the row ``n`` before counts whether it holds one or not. Rows with
    fewer than ``n`` rows before them get null. *Boundary rule.* Rows of one group that share a time
    count one by one, in table order. *State.* The last ``max(periods)`` rows of each group. *Memory.*
    90 bytes per row and 40 for each row of the state, 16 more for each string, and strings and lists of
    both once more; to summarise, 52 per row, or 26 and the state.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> table = pa.table({"k": ["a", "b", "a"], "t": [1, 2, 3], "x": ["u", "v", "w"]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, ("k",), "t"))
    >>> Lag("x").apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_lag_1': [None, None, 'u']}
    """

    _word: ClassVar[str] = "lag"

    columns: Selection
    periods: int | Sequence[int] = 1
    _: KW_ONLY
    by: By = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "by", normalise_by(self.by))
        put(self, "rename", normalise_renaming(self.rename))
        periods = (self.periods,) if isinstance(self.periods, int) else tuple(self.periods)
        put(self, "periods", periods)
        whole = all(isinstance(one, int) and not isinstance(one, bool) for one in periods)
        if not periods or not whole or min(periods) < 1 or len(set(periods)) != len(periods):
            raise DefinitionError(
                f"{type(self).__name__} has periods={self.periods!r}",
                "give different whole numbers of rows, 1 or more (a negative lag would look ahead)",
            )

    @property
    def scope(self) -> Scope:
        return Scope.PREFIX

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    @property
    def _periods(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.periods)

    def _by(self, schema: TableSchema) -> tuple[str, ...]:
        return resolve_by(self.by, schema, type(self).__name__)

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            if schema[name].is_tensor:
                raise SchemaError(f"Lag cannot work on tensor {name!r}", "name scalar columns")
        return names

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        by = self._by(schema)
        time = require_time(schema, type(self).__name__, "looks back in time")
        return tuple(dict.fromkeys((*by, time, *self._columns(schema))))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        made = [
            (f"{name}_{self._word}_{count}", self._type(schema[name].type))
            for name in self._columns(schema)
            for count in self._periods
        ]
        return made_fields(made, self.prefix, self.rename, type(self).__name__)

    def _type(self, type_: pa.DataType) -> pa.DataType:
        """Return the type of what is made of a column."""
        return type_

    def summarize(self, partition: Partition, engine: Engine) -> State:
        by = self._by(partition.schema)
        frame = positional(partition.frame, by, None, self._columns(partition.schema))
        return summarize_tail(engine, frame, self._keep)

    def combine(self, earlier: State, later: State) -> State:
        return combine_tails(earlier, later, self._keep)

    @property
    def _keep(self) -> Keep:
        return Keep(rows=max(self._periods))

    @property
    def is_keyed(self) -> bool:
        return self.by != ()

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        return key_rows(engine, partition.frame, self._by(partition.schema))

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        rows = max(self._periods) * extent.rows
        return handed_extent(schema, self._state_columns(schema), rows, extent)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        by, columns = self._by(schema), self._columns(schema)
        rows = Extended.of(engine, positional(partition.frame, by, None, columns), state, len(by))
        groups = group_rows(xp, rows.codes())
        names = [column_name(i) for i in range(len(columns))]
        frame = rows.frame.select(*names)
        lagged = {
            count: engine.take(frame, *rows_before(rows, groups, count)) for count in self._periods
        }
        chosen = [(name, count) for name in names for count in self._periods]
        fields = self.outputs(schema)
        out = [
            lagged[count][name].alias(field.name)
            for field, (name, count) in zip(fields, chosen, strict=True)
        ]
        return Columns(partition.frame.select(*out) if out else None)

    def _state_columns(self, schema: TableSchema) -> tuple[str, ...]:
        """Return what a row of the state holds; a column may occur twice."""
        return (*self._by(schema), *self._columns(schema))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by, columns = self._by(schema), self._columns(schema)
        earlier = state_rows(schema, self._state_columns(schema), extent)
        together = extent.rows + earlier
        types = [schema[name].type for name in columns]
        sizes = [extent.bytes_of([name]) + extent.state_bytes for name in columns]
        taking = taking_bytes(types, extent.rows)
        views = VIEW * extent.rows * sum(map(is_text, types)) * (len(self._periods) - 1)
        # Texts and lists of both are put into one piece.
        joined = sum(
            size + VIEW * together * is_text(type_)
            for type_, size in zip(types, sizes, strict=True)
            if is_varying(type_) and (earlier or is_grown(type_))
        )
        sorted_ = sorting_bytes(schema, by, together, 40 * together + 35 * extent.rows + taking)
        keys = VIEW * earlier * sum(is_text(schema[name].type) for name in by)
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        # Of the state too, where there are hundreds of columns: as read, as a frame, and as joined.
        rounding += 3 * rounding_bytes((schema[name] for name in columns), earlier)
        return rounding + sorted_ + keys + views + joined

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        # A row's value may be lagged into one row per period at most, from these rows or the state.
        varying = sum(
            extent.bytes_of([name]) + extent.state_bytes
            for name in self._columns(schema)
            if is_varying(schema[name].type)
        )
        fixed = sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
        return fixed + len(self._periods) * varying

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        by = self._by(schema)
        types = [schema[name].type for name in self._state_columns(schema)]
        return tail_memory(schema, by, types, self.state_bytes(schema, extent), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        by, names = self._by(schema), self._state_columns(schema)
        return kept_bytes(schema, by, names, max(self._periods), extent)

    def state_fingerprint(self) -> str:
        by = None if self.by is None else list(self.by)
        return fingerprint(
            "tail", "Lag", self.version, encode(self.columns), by, max(self._periods)
        )
