"""Which rows of a table a dataset part consists of: by time, by hash of the entity, by a condition.

A selection is a value that can say two things: whether a whole partition is inside, outside or cut
(from its recorded time range alone, without reading), and for a cut one which rows are inside. It
never looks at a row's position or partition, so the rows it selects do not depend on either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import narwhals as nw
import pyarrow as pa

from featurestore.engines.hashing import HASH_VERSION, hash_columns
from featurestore.engines.protocol import Array, Engine
from featurestore.errors import DefinitionError
from featurestore.execution.tasks import select_rows
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import TableSchema
from featurestore.transforms.base import EMPTY_STATE, Partition
from featurestore.transforms.expression import Expression
from featurestore.transforms.expression_json import StoredExpression

HASH_SPACE: Final = 2**32
"""Entities are hashed to ``[0, HASH_SPACE)``; fractions of a split are ranges of it."""


@dataclass(frozen=True, slots=True, order=True)
class TimeRange:
    """``lower <= time < upper`` in steps of the time column; ``None`` is unbounded."""

    lower: int | None = None
    upper: int | None = None

    @property
    def unbounded(self) -> bool:
        return self.lower is None and self.upper is None

    def holds(self, time_min: int, time_max: int) -> bool:
        """Whether every time from ``time_min`` to ``time_max`` is inside."""
        above = self.lower is None or self.lower <= time_min
        return above and (self.upper is None or time_max < self.upper)

    def touches(self, time_min: int, time_max: int) -> bool:
        """Whether some time from ``time_min`` to ``time_max`` is inside."""
        above = self.lower is None or self.lower <= time_max
        return above and (self.upper is None or time_min < self.upper)

    def clip(self, time_min: int, time_max: int) -> TimeRange:
        """Return the range without bounds that no time in ``[time_min, time_max]`` can meet."""
        lower = self.lower if self.lower is not None and self.lower > time_min else None
        upper = self.upper if self.upper is not None and self.upper <= time_max else None
        return TimeRange(lower, upper)


@dataclass(frozen=True, slots=True)
class HashRange:
    """Rows whose hash of ``columns`` with ``seed`` lies in ``[lower, upper)`` of the hash space.

    With ``lower > upper`` it goes on from the end of the space at its begin: all but ``[upper, lower)``.
    """

    columns: tuple[str, ...]
    seed: int
    lower: int
    upper: int

    def __post_init__(self) -> None:
        bounds = (self.lower, self.upper)
        if not self.columns or not 0 <= min(bounds) <= max(bounds) <= HASH_SPACE:
            raise DefinitionError(
                f"hash range [{self.lower}, {self.upper}) over columns {list(self.columns)}",
                f"give at least one column and bounds from 0 to {HASH_SPACE}",
            )

    def complement(self) -> HashRange:
        """Return the rows that are not in it.

        Raises
        ------
        DefinitionError
            If it is empty: all rows are no range.
        """
        if self.lower == self.upper:
            raise DefinitionError("an empty hash range leaves all rows", "select without it")
        if self.upper - self.lower == HASH_SPACE:
            return dataclasses.replace(self, upper=0)
        lower, upper = self.upper % HASH_SPACE, self.lower or HASH_SPACE
        return dataclasses.replace(self, lower=lower, upper=upper)


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that lie in one of some time ranges, in a hash range, and meet a condition.

    Parameters
    ----------
    times : tuple of TimeRange
        In order, not overlapping; none at all selects nothing. Several are what a fold of a
        purged cross-validation trains on.
    hashed : HashRange, optional
    where : StoredExpression, optional
        Keeps rows where it is true; null counts as false.
    """

    times: tuple[TimeRange, ...] = (TimeRange(),)
    hashed: HashRange | None = None
    where: StoredExpression | None = None

    def __post_init__(self) -> None:
        for earlier, later in zip(self.times, self.times[1:], strict=False):
            if earlier.upper is None or later.lower is None or later.lower < earlier.upper:
                raise DefinitionError(
                    f"time ranges {earlier} and {later} overlap or are not in order",
                    "give disjoint ranges, earliest first",
                )

    @property
    def timeless(self) -> bool:
        """Whether it selects rows of all times."""
        return any(one.unbounded for one in self.times)

    @property
    def everything(self) -> bool:
        return self.timeless and self.hashed is None and self.where is None

    def with_where(self, where: StoredExpression | None) -> Selection:
        """Return the selection with the condition in place of its own."""
        return dataclasses.replace(self, where=where)

    def columns(self, schema: TableSchema) -> tuple[str, ...]:
        """Return what :meth:`mask` reads.

        Raises
        ------
        DefinitionError
            If it selects by time and the table has none.
        """
        names: list[str] = []
        if not self.timeless:
            if schema.time is None:
                raise DefinitionError(
                    "rows are selected by time and the table has no time column",
                    "ingest the table with time=, or split by HashSplit",
                )
            names.append(schema.time)
        names += self.hashed.columns if self.hashed else ()
        names += self.where.columns if self.where else ()
        return tuple(dict.fromkeys(names))

    def covers(self, time_min: int | None, time_max: int | None) -> Literal["all", "none", "some"]:
        """Return how much of a partition with these times can be selected, without reading it.

        ``"all"`` and ``"none"`` are certain; ``"some"`` means that rows must be looked at. A
        partition of unknown times (``None``) is looked at unless all times are selected.
        """
        if not self.times or (self.hashed and self.hashed.lower == self.hashed.upper):
            return "none"
        if not self.timeless:
            if time_min is None or time_max is None:
                return "some"
            if not any(one.touches(time_min, time_max) for one in self.times):
                return "none"
            if not any(one.holds(time_min, time_max) for one in self.times):
                return "some"
        return "all" if self.hashed is None and self.where is None else "some"

    def within(self, time_min: int | None, time_max: int | None) -> Selection:
        """Return the simplest selection that picks the same rows of a partition with these times.

        Two splits that cut a partition at the same place, or not at all, give equal results, which
        is what lets states be shared between them.
        """
        if time_min is None or time_max is None or self.timeless:
            return self
        touching = tuple(one for one in self.times if one.touches(time_min, time_max))
        return dataclasses.replace(
            self, times=tuple(one.clip(time_min, time_max) for one in touching)
        )

    def mask(self, partition: Partition, engine: Engine) -> Array:
        """Return which rows are selected.

        Parameters
        ----------
        partition : Partition
            With at least ``columns(schema)``.
        engine : Engine

        Returns
        -------
        array of bool ``[rows]``
        """
        xp = engine.xp
        chosen = xp.ones(partition.rows, dtype=bool)
        if not self.timeless:
            chosen &= self._in_time(partition, engine)
        if self.hashed is not None:
            chosen &= _in_hash_range(self.hashed, partition, engine)
        if self.where is not None:
            chosen &= _meets(self.where, partition, engine)
        return chosen

    def _in_time(self, partition: Partition, engine: Engine) -> Array:
        time, _ = engine.values(partition.frame.get_column(str(partition.schema.time)))
        inside = engine.xp.zeros(partition.rows, dtype=bool)
        for one in self.times:
            here = engine.xp.ones(partition.rows, dtype=bool)
            if one.lower is not None:
                here &= time >= one.lower
            if one.upper is not None:
                here &= time < one.upper
            inside |= here
        return inside

    def to_json(self) -> dict[str, Json]:
        hashed = self.hashed
        return {
            "times": [[one.lower, one.upper] for one in self.times],
            "hashed": None
            if hashed is None
            else [list(hashed.columns), hashed.seed, hashed.lower, hashed.upper],
            "where": None if self.where is None else self.where.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Selection:
        hashed, where = value["hashed"], value["where"]
        return cls(
            tuple(TimeRange(*one) for one in value["times"]),
            None if hashed is None else HashRange(tuple(hashed[0]), *hashed[1:]),
            None if where is None else StoredExpression.from_json(where),
        )

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints select equal rows of equal tables."""
        kernel = None if self.hashed is None else HASH_VERSION
        return fingerprint("selection", self.to_json(), kernel)


def cut(
    partition: Partition, selection: Selection, engine: Engine
) -> tuple[Partition, Array | None]:
    """Return the rows that a pipeline is applied to, and which of them are selected.

    Times and the condition take rows away at once; a hash range is returned as a mask (``None``: all
    are selected), because it divides the rows of one timestamp, which a cross-section needs whole.
    """
    selected = None
    if selection.hashed is not None:
        selected = Selection(hashed=selection.hashed).mask(partition, engine)
    rest = dataclasses.replace(selection, hashed=None)
    if rest.everything:
        return partition, selected
    kept = rest.mask(partition, engine)
    return keep(partition, kept, engine), None if selected is None else selected[kept]


def keep(partition: Partition, mask: Array | None, engine: Engine) -> Partition:
    """Return the rows where ``mask`` is true; all of them for ``None``."""
    if mask is None or bool(mask.all()):
        return partition
    return select_rows(partition, engine.xp.nonzero(mask)[0], engine)


def condition(expression: nw.Expr, schema: TableSchema) -> StoredExpression:
    """Return a Narwhals expression as a condition on the rows of a table.

    Raises
    ------
    NotPartitionIndependentError
        If it aggregates or shifts across rows.
    DefinitionError
        If it is not a condition, names no column, or cannot be stored.
    SchemaError
        If the table lacks a column it names.

    Examples
    --------
    >>> from featurestore.schema import Field
    >>> table = TableSchema((Field("x", pa.float64()),))
    >>> condition(nw.col("x") > 0, table).columns
    ('x',)
    """
    if not isinstance(expression, nw.Expr):
        raise DefinitionError(
            f"where={expression!r} is not a Narwhals expression", "write it like nw.col('x') > 0"
        )
    stored = StoredExpression.of(expression)
    if not stored.columns:
        raise DefinitionError("where= names no column", "leave it out to select every row")
    type_ = Expression(condition=expression).outputs(schema)[0].type
    if not pa.types.is_boolean(type_):
        raise DefinitionError(
            f"where= gives values of type {type_}", "give a condition, like nw.col('x') > 0"
        )
    return stored


def _meets(where: StoredExpression, partition: Partition, engine: Engine) -> Array:
    frame = Expression(condition=where.rebuild()).apply(partition, EMPTY_STATE, engine).frame
    if frame is None:
        raise DefinitionError("where= gave no column", "give a condition, like nw.col('x') > 0")
    met, known = engine.values(frame.get_column("condition"))
    return met & known


def _in_hash_range(hashed: HashRange, partition: Partition, engine: Engine) -> Array:
    hashes = hash_columns(engine, partition.frame, hashed.columns, seed=hashed.seed)
    high = hashes >> engine.xp.uint64(32)
    above, below = high >= hashed.lower, high < hashed.upper
    return above & below if hashed.lower <= hashed.upper else above | below
