"""The last few events of another table before each row, as an array: what sequence models are fed.

Always true: exactly one output row per input row, in the input's order, whether events match or not, and
never an event that became known after the row's time.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from featurestore.engines.event_windows import Seen, Span, last_events
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.known import Age, EventMatching
from featurestore.transforms.matching import Named, Pairs
from featurestore.transforms.naming import Renaming, output_names
from featurestore.transforms.selectors import Selection
from featurestore.transforms.tails import column_name

_EVENT, _LATE, _ROW = 50, 65, 75
"""Bytes per event, more of them where events may be late, and bytes per row."""
_PORTION = 16 * 2**20
"""What is picked at a time."""


@dataclass(frozen=True)
class AsOfWindow(EventMatching):
    """The last ``n`` events of another table that were known at each row's time.

    Scope ``prefix``, of the other table.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Numeric or boolean columns of the other table: ``k`` of them.
    n : int
        How many events; 1 or more.
    fill_value : float, optional
        What stands where there are fewer than ``n`` events, and for nulls; by default NaN.
    length : bool
        Whether to say in a column how many events there are, ``int32`` from 0 to ``n``.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key columns that this table has. ``[]``: time alone decides.
    lag : str, timedelta or int, optional
        How long after its time an event becomes known (publication lag).
    available : str, optional
        A column of the other table: when each of its rows became known.
    max_age : str, timedelta or int, optional
        Older events do not count.
    prefix, rename : optional
        Change the names ``<table>_last_<n>`` and ``<table>_last_<n>_length``.

    Notes
    -----
    *Output.* A tensor ``float32 [n, k]`` per row, kept in Zarr: oldest event first, the newest last, so
    that what is filled is in front. Values are rounded to ``float32``.

    *Boundary rule.* An event is known from the later of ``time + lag`` and its ``available``, and visible
    at ``t`` when it is known by ``t`` and ``t - time <= max_age``. The last ``n`` visible ones by their own
    time are taken, whenever they became known; those of one key and time are in the table's order.

    *Null rule.* A null in a ``by`` column matches nothing; an event with a null in ``available`` is never
    known; an event whose values are null counts, with ``fill_value`` in their places. NaN stays NaN.

    *State.* The other table's rows within the partition's time range, and, without ``max_age``, the last
    ``n`` rows per key before it; with ``available`` of each key the last ``n`` known when its newest row
    happened, and all that were not known then. *Memory.* The tensor, 75 bytes per row, 50 and ``5 k``
    per event, 65 more with ``available``, and 16 MiB.

    Raises
    ------
    DefinitionError
        If a table has no time column, or times or keys cannot be compared.
    SchemaError
        If a column is not numeric.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> fields = Field("k", pa.string()), Field("t", pa.int64())
    >>> trades = TableSchema((*fields, Field("size", pa.float64())), ("k",), "t")
    >>> quotes = TableSchema(fields, ("k",), "t", {"trades": trades})
    >>> last = AsOfWindow("trades", "size", n=2, fill_value=0.0)
    >>> events = pa.table({"k": ["a", "a", "a"], "t": [1, 5, 12], "size": [1.0, 2.0, 4.0]})
    >>> state = last.gather({}, [last.rows(Partition(engine.from_arrow(events), trades), engine)])
    >>> rows = pa.table({"k": ["a", "b", "a"], "t": [1, 9, 12]})
    >>> made = last.apply(Partition(engine.from_arrow(rows), quotes), state, engine)
    >>> made.tensors["trades_last_2"][:, :, 0].tolist()
    [[0.0, 1.0], [0.0, 0.0], [2.0, 4.0]]
    """

    table: str | Named
    columns: Selection
    n: int
    _: KW_ONLY
    fill_value: float | None = None
    length: bool = False
    by: Pairs = None
    lag: Age = None
    available: str | None = None
    max_age: Age = None
    prefix: str | None = None
    rename: Renaming = None

    oldest: ClassVar[str | None] = "max_age"

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise DefinitionError(f"AsOfWindow has n={self.n!r}", "use 1 event or more")
        if self.fill_value is not None and math.isnan(self.fill_value):
            object.__setattr__(self, "fill_value", None)  # which equals itself
        super().__post_init__()

    @property
    def kept(self) -> int:
        return self.n

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        columns, name = self.numbers(schema), f"{self.source_table}_last_{self.n}"
        if not columns:
            raise DefinitionError("AsOfWindow has no columns", "name one or more")
        defaults = [name, f"{name}_length"] if self.length else [name]
        names = output_names(defaults, self.prefix, self.rename, "AsOfWindow")
        tensor = Field(names[0], pa.float32(), (self.n, len(columns)))
        return (tensor, *(Field(one, pa.int32()) for one in names[1:]))

    def values(self, partition: Partition, right: Frame, seen: Seen, engine: Engine) -> Columns:
        xp, rows = engine.xp, seen.order.shape[0]
        tensor, *lengths = self.outputs(partition.schema)
        fill = math.nan if self.fill_value is None else self.fill_value
        shape = cast("tuple[int, ...]", tensor.shape)
        out = xp.full((rows, *shape), fill, dtype="float32")
        count = xp.zeros(rows if lengths else 0, dtype="int32")
        columns = [self._numbers(engine, right, one, fill) for one in range(shape[1])]
        for where, picked in last_events(xp, seen, self.n):
            missing = picked < 0
            at = xp.where(missing, 0, picked)
            if lengths:
                count[where] = self.n - missing.sum(axis=1)
            for position, column in enumerate(columns if right.shape[0] else ()):
                out[where, :, position] = xp.where(missing, column.dtype.type(fill), column[at])
        frame = None
        if lengths:
            made = engine.column(lengths[0].name, count, None, lengths[0].type)
            frame = partition.frame.select(made)
        return Columns(frame, {tensor.name: out})

    def _numbers(self, engine: Engine, right: Frame, position: int, fill: float) -> Array:
        values, valid = engine.values(right[column_name(position)])
        with np.errstate(all="ignore"):  # what is too large becomes infinite
            numbers: Any = values.astype("float32")
            return engine.xp.where(valid, numbers, numbers.dtype.type(fill))

    def span(self, schema: TableSchema) -> Span:
        return Span(*self.spans(schema))

    def working_bytes(self, schema: TableSchema, extent: Extent, events: int) -> int:
        late = _LATE if self.available is not None else 0
        columns = len(self.numbers(schema))
        portion = min(_PORTION, 64 * (self.n * extent.rows + events))
        return (_EVENT + late + 5 * columns) * events + _ROW * extent.rows + portion

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
