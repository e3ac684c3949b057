"""Columns of a table that is looked up by its key: sectors, airports, descriptions.

Always true: exactly one output row per input row. Without ``lag`` and ``available`` the other table is a
collection of facts that hold at all times; with either, a row sees what was known at its time.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import cast

from featurestore.engines.joins import asof_positions, lookup_positions
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json
from featurestore.schema import TableSchema
from featurestore.transforms.base import Partition, SourceWindow, State
from featurestore.transforms.event_time import CommonUnit
from featurestore.transforms.extent import Extent
from featurestore.transforms.known import Age, KnownMatching
from featurestore.transforms.matched_rows import source_rows
from featurestore.transforms.matching import Matching, Named, Pairs
from featurestore.transforms.naming import Renaming
from featurestore.transforms.selectors import Selection


@dataclass(frozen=True)
class Lookup(KnownMatching):
    """Columns of another table's row with the same key: of all there are, or of those known by then.

    Scope ``prefix`` of the other table. A static lookup, with neither ``lag`` nor ``available``, takes the
    row whatever its time, also one from after the row that looks it up: use it for facts that do not
    change. Facts that do, in a table with a time, are looked up with ``lag`` (``"0s"`` if they are known at
    their time), in one without with ``available``.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Columns of the other table: scalars, strings or lists.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key, all columns of which this table must have.
    lag : str, timedelta or int, optional
        How long after its time a row of the other table becomes known.
    available : str, optional
        A column of the other table: when each of its rows became known.
    prefix, rename : optional
        Change the names, which are those of the columns.

    Notes
    -----
    *Boundary rule.* Among rows of one key the last in the other table's order (time, then key) is taken;
    with ``lag`` or ``available`` the last of those known at the row's time, as in ``AsOfJoin``.

    *Null rule.* A null in a ``by`` column matches nothing; a row with a null in ``available`` is never
    known; no match gives nulls. *State.* The whole other table, reduced to key and columns: it has to fit in
    memory; with ``lag``, or with ``available`` of a table that has a time, that of ``AsOfJoin``. *Memory.*
    About 45
    bytes (100 for string keys) per row of both tables, 21 more per row of the other, and 16 for each
    string taken. Each row may take the widest string or list there is.

    Raises
    ------
    DefinitionError
        If there is no key to match by, or keys or times cannot be compared.

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
    _: KW_ONLY
    by: Pairs = None
    lag: Age = None
    available: str | None = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == ():
            raise DefinitionError("Lookup has by=[]: nothing to match by", "name key columns")

    @property
    def is_static(self) -> bool:
        """Whether all rows of the other table count at all times."""
        return self.lag is None and self.available is None

    def _in_time(self, source: TableSchema) -> bool:
        """Whether only those rows count whose time has come."""
        return not self.is_static and source.time is not None

    # --- what it is ----------------------------------------------------------------------------

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

    def unit(self, schema: TableSchema) -> CommonUnit:
        source = schema.source(self.source_table)
        if source.time is None and self.lag is not None:
            raise DefinitionError(
                f"Lookup has lag={self.lag} and table {self.source_table!r} has no time column",
                "name the column that says when its rows became known with available=",
            )
        timed = source.time is not None
        return CommonUnit.of(schema, source, self.source_table, self.available, timed=timed)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return self.matching(schema).left if self.is_static else super().inputs(schema)

    def source_inputs(self, schema: TableSchema) -> tuple[str, ...]:
        matching = self.matching(schema)
        if not self.is_static:
            return super().source_inputs(schema)
        return tuple(dict.fromkeys((*matching.right, *matching.columns)))

    def source_window(
        self, schema: TableSchema, time_min: int | None, time_max: int | None
    ) -> SourceWindow:
        if not self._in_time(schema.source(self.source_table)):
            return SourceWindow(None, None, carry=False)
        return super().source_window(schema, time_min, time_max)

    # --- what it does --------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return super().summarize(partition, engine) if self._in_time(partition.schema) else {}

    def rows(self, partition: Partition, engine: Engine) -> State:
        timed = self._in_time(partition.schema)
        return source_rows(engine, *self.source_frame(partition, engine, timed=timed))

    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        if self.is_static:
            return lookup_positions(engine.xp, *codes)
        left_times, right_times, known = self.instants(partition, right, engine)
        lag, _ = self.spans(partition.schema)
        return asof_positions(
            engine.xp, (codes[0], left_times), (codes[1], right_times), lag=lag, known=known
        )

    # --- what it costs, and its identity ---------------------------------------------------------

    @property
    def is_keyed(self) -> bool:
        return not self.is_static

    def _finding_bytes(self, rows: int, right: int) -> int:
        # Without times: the other table's rows in order of their keys, and what is found.
        return 24 * right + 17 * rows if self.is_static else super()._finding_bytes(rows, right)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        timed = self._in_time(schema.source(self.source_table))
        return super().summarize_memory(schema, extent) if timed else 0

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        timed = self._in_time(schema.source(self.source_table))
        return super().state_bytes(schema, extent) if timed else 0

    def spec(self) -> dict[str, Json]:
        found = super().spec()
        if self.lag is None:  # specifications from before there was such a parameter equal it
            del cast("dict[str, Json]", found["params"])["lag"]
        return found

    def state_fingerprint(self) -> str:
        return self.fingerprint() if self.is_static else super().state_fingerprint()
