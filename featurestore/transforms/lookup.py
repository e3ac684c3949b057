"""Columns of a static table, matched by its key: sectors, airports, descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.engines.joins import lookup_positions
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError
from featurestore.schema import TableSchema
from featurestore.transforms.base import Partition, SourceWindow, State
from featurestore.transforms.extent import Extent
from featurestore.transforms.matching import (
    ROWS,
    Matching,
    MatchingTransformer,
    Named,
    Pairs,
    gather_rows,
    source_frame,
)
from featurestore.transforms.naming import Renaming
from featurestore.transforms.selectors import Selection


@dataclass(frozen=True)
class Lookup(MatchingTransformer):
    """Columns of another table's row with the same key, whatever its time.

    Scope ``prefix`` of the other table, of which all rows count: use it for facts that do not change.
    For facts that do, ``AsOfJoin`` never looks ahead.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Columns of the other table: scalars, strings or lists.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key, all columns of which this table must have.
    prefix, rename : optional
        Change the names, which are those of the columns.

    Notes
    -----
    *Boundary rule.* Among rows of one key the last in the other table's order is taken. *Null rule.*
    A null in a ``by`` column matches nothing; no match gives nulls. *State.* The whole other table,
    reduced to key and columns: it has to fit in memory. *Memory.* About 45
    bytes (100 for string keys) per row of both tables, 21 more per row of the other, and 16 for each
    string taken. Each row may take the widest string or list there is.

    Raises
    ------
    DefinitionError
        If there is no key to match by, or the keys cannot be compared.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> airports = TableSchema((Field("faa", pa.string()), Field("alt", pa.int64())), ("faa",))
    >>> flights = TableSchema((Field("dest", pa.string()),), sources={"airports": airports})
    >>> lookup = Lookup("airports", "alt", by={"dest": "faa"})
    >>> other = engine.from_arrow(pa.table({"faa": ["JFK", "LAX"], "alt": [13, 125]}))
    >>> state = lookup.gather({}, [lookup.rows(Partition(other, airports), engine)])
    >>> part = Partition(engine.from_arrow(pa.table({"dest": ["LAX", "???", None]})), flights)
    >>> lookup.apply(part, state, engine).frame.to_dict(as_series=False)
    {'alt': [125, None, None]}
    """

    table: str | Named
    columns: Selection
    by: Pairs = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == ():
            raise DefinitionError("Lookup has by=[]: nothing to match by", "name key columns")

    def matching(self, schema: TableSchema) -> Matching:
        source = schema.source(self.source_table)
        missing = [name for name in source.key if name not in schema]
        if self.by is None and (missing or not source.key):
            raise DefinitionError(
                f"Lookup matches by the key {list(source.key)} of {self.source_table!r}, of which this "
                f"table lacks {missing}",
                "say which columns must be equal with by={'own column': 'their column'}",
            )
        return super().matching(schema)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return self.matching(schema).left

    def source_inputs(self, schema: TableSchema) -> tuple[str, ...]:
        matching = self.matching(schema)
        return tuple(dict.fromkeys((*matching.right, *matching.columns)))

    def source_window(
        self, schema: TableSchema, time_min: int | None, time_max: int | None
    ) -> SourceWindow:
        return SourceWindow(None, None, carry=False)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return {}

    def combine(self, earlier: State, later: State) -> State:
        return earlier or later

    def rows(self, partition: Partition, engine: Engine) -> State:
        frame = source_frame(engine, partition, self.columns, self.by, timed=False)
        return {ROWS: engine.to_arrow(frame)}

    def gather(self, carry: State, rows: Sequence[State]) -> State:
        return gather_rows(rows)

    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        return lookup_positions(engine.xp, *codes)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return 0

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0
