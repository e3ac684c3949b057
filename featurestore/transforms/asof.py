"""The newest earlier row of another table: what was known at the time of each row.

Always true: exactly one output row per input row, in the input's order, and never a right row that
became visible after the left row's time.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from featurestore.engines.joins import asof_positions
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.transforms.base import Partition
from featurestore.transforms.known import Age, KnownMatching
from featurestore.transforms.matching import Named, Pairs
from featurestore.transforms.naming import Renaming
from featurestore.transforms.selectors import Selection


@dataclass(frozen=True)
class AsOfJoin(KnownMatching):
    """Columns of another table, as they were known at each row's time.

    Scope ``prefix``, of the other table.

    Parameters
    ----------
    table : str or table
        The other table: its name, or anything with a ``name``.
    columns : str, sequence of str or Selector
        Columns of the other table: scalars, strings or lists.
    exact : bool
        Whether a row that becomes known exactly at ``t`` is known at ``t``.
    by : mapping, sequence of str or str, optional
        Which columns must be equal, ``{"own": "other"}`` or shared names; by default the other
        table's key columns that this table has. ``[]``: time alone decides.
    lag : str, timedelta or int, optional
        How long after its time a row becomes known (publication lag).
    available : str, optional
        A column of the other table: when each of its rows became known. A date or timestamp (an integer
        where times are), of any unit.
    max_age : str, timedelta or int, optional
        Rows older than this give null.
    prefix, rename : optional
        Change the names, which are those of the columns.

    Notes
    -----
    *Boundary rule.* A row of the other table is known from the later of ``time + lag`` and its
    ``available``. It is visible at ``t`` when it is known by ``t`` (before ``t`` with ``exact=False``)
    and ``t - time <= max_age``. Of the visible rows the newest by its own time is taken, whenever it
    became known; among rows of one key and time the last in the table's order. Times are compared
    exactly, in the finest of their units; those with time zones as instants.

    *Null rule.* A null in a ``by`` column matches nothing; a row with a null in ``available`` is never
    known; no match gives nulls; the row taken may itself hold nulls.

    *State.* The other table's rows within the partition's time range, and, without ``max_age``, the last
    row per key before it; with ``available`` of each key the last one known when its newest row happened,
    and all that were not known then. *Memory.* About
    45 bytes (100 for string keys) per row of both tables, 21 more per row of the other, and 16 for each
    string taken. Each row may take the widest string or list there is.

    Raises
    ------
    DefinitionError
        If a table has no time column, or times or keys cannot be compared.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field, TableSchema
    >>> join = AsOfJoin("weather", ["temp"], by={"origin": "origin"}, max_age="3h")
    >>> weather = TableSchema(
    ...     (Field("origin", pa.string()), Field("hour", pa.timestamp("us")), Field("temp", pa.float64())),
    ...     ("origin",), "hour")
    >>> flights = TableSchema(
    ...     (Field("origin", pa.string()), Field("dep", pa.timestamp("ms"))), ("origin",), "dep",
    ...     {"weather": weather})
    >>> [field.name for field in join.outputs(flights)], join.inputs(flights)
    (['temp'], ('origin', 'dep'))
    >>> join.source_window(flights, 0, 10_000)
    SourceWindow(lower=-10800000000, upper=10000000, carry=False)
    """

    table: str | Named
    columns: Selection
    _: KW_ONLY
    exact: bool = True
    by: Pairs = None
    lag: Age = None
    available: str | None = None
    max_age: Age = None
    prefix: str | None = None
    rename: Renaming = None

    oldest: ClassVar[str | None] = "max_age"

    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        left_times, right_times, known = self.instants(partition, right, engine)
        lag, max_age = self.spans(partition.schema)
        return asof_positions(
            engine.xp,
            (codes[0], left_times),
            (codes[1], right_times),
            lag=lag,
            max_age=max_age,
            exact=self.exact,
            known=known,
        )
