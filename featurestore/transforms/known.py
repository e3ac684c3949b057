"""Rows of another table by when they were known: what ``AsOfJoin`` and its kin have in common.

A row of the other table has two times. Its *event time* says what it is about. When it *became known* is
that time plus ``lag``, or what a column says (``available``), whichever is later; a null there means that
nobody knew it yet, and nobody ever will. A row of this table at ``t`` sees what was known at ``t``, and of that
what is newest by event time.

Always true: a row is never seen before it was known, and a value depends on neither table's partitions.
The carry of all rows below a partition's window keeps, of each key, what was not known yet when the key's
newest row happened: such rows are for later rows of this table to see.
"""

from __future__ import annotations

import datetime as dt
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, TypeAlias, cast

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.event_windows import Seen, Span
from featurestore.engines.joins import Known, known_from, last_known, scale_times
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.engines.windows import INT64_MIN
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import TableSchema, time_steps
from featurestore.transforms.base import Columns, Partition, SourceWindow, State, encode
from featurestore.transforms.event_time import (
    CommonUnit,
    arrow_times,
    common_factors,
    frame_times,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    grouping_bytes,
    handed_extent,
    is_text,
    tail_memory,
)
from featurestore.transforms.matched_rows import (
    AVAILABLE,
    ROWS,
    gather_rows,
    matched_codes,
    source_rows,
)
from featurestore.transforms.matching import MatchingTransformer, normalise_pairs
from featurestore.transforms.tails import (
    TIME,
    Keep,
    arrow_codes,
    combine_tails,
    summarize_tail,
)
from featurestore.units import Duration

_TEXT_KEY: Final = 48  # bytes per row
_IN_FLIGHT: Final = 50  # bytes per row
_KNOWN: Final = 24  # bytes per row of the other table
Age: TypeAlias = str | dt.timedelta | Duration | int | None
"""A length of time (``"3h"``); an integer where both time columns are integers."""


class KnownMatching(MatchingTransformer):
    """Rows of another table that were known at each row's time.

    Subclasses are dataclasses with these fields, in the order of their own.
    """

    lag: Age
    oldest: ClassVar[str | None] = None
    """The parameter, if there is one, that says how far back the other table's rows matter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lag", self.oldest):
            if name is not None:
                age = age_of(getattr(self, name), name, type(self).__name__)
                object.__setattr__(self, name, age)
        back = self.back
        if self.lag is not None and type(self.lag) is type(back) and cast("Any", back) < self.lag:
            raise DefinitionError(
                f"{type(self).__name__} has lag={self.lag} and looks {back} back: rows are too old "
                "before they are known",
                "look back at least as far as the lag",
            )

    @property
    def back(self) -> Duration | int | None:
        """How far back the other table's rows matter; None for ever."""
        return None if self.oldest is None else getattr(self, self.oldest)

    @property
    def kept(self) -> int:
        """How many known rows of a key the carry keeps, if rows matter for ever."""
        return 1

    # --- what it is ----------------------------------------------------------------------------

    def unit(self, schema: TableSchema) -> CommonUnit:
        """Return the unit in which the times of both tables are compared."""
        source = schema.source(self.source_table)
        return CommonUnit.of(schema, source, self.source_table, self.available)

    def spans(self, schema: TableSchema) -> tuple[int, int | None]:
        """Return lag, and how far back rows matter, in the common unit."""
        unit = self.unit(schema).unit
        spans = [
            None if span is None else time_steps(cast("Duration | int", span), unit, schema.time)
            for span in (self.lag, self.back)
        ]
        return spans[0] or 0, spans[1]

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        self.spans(schema)
        return tuple(dict.fromkeys((*self.matching(schema).left, cast("str", schema.time))))

    def source_inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.matching(schema).travelling))

    def source_window(
        self, schema: TableSchema, time_min: int | None, time_max: int | None
    ) -> SourceWindow:
        """Return the other table's rows that some row may see and that are not in the carry."""
        if time_min is None or time_max is None:
            return SourceWindow(1, 0, carry=False)  # no rows, nothing needed
        unit, (lag, back) = self.unit(schema), self.spans(schema)
        lower = (time_min * unit.left_factor - (lag if back is None else back)) // unit.right_factor
        upper = (time_max * unit.left_factor - lag) // unit.right_factor
        return SourceWindow(lower, upper, carry=back is None)

    # --- what it does --------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        if self.back is not None:
            return {}
        frame, _ = self.source_frame(partition, engine)
        if self.available is None:
            return summarize_tail(engine, frame, Keep(rows=self.kept), ROWS)
        if len(frame) == 0:
            return {}
        by = [column for column in frame.columns if column.startswith("by_")]
        times, available = frame_times(engine, frame, TIME), frame_times(engine, frame, AVAILABLE)
        types = [
            partition.schema[cast("str", one)].type
            for one in (partition.schema.time, self.available)
        ]
        kept = last_known(
            engine.xp, engine.codes(frame, by), times, available, common_factors(types), self.kept
        )
        return {ROWS: engine.to_arrow(engine.take(frame, kept))}

    def combine(self, earlier: State, later: State) -> State:
        if self.available is None:
            return combine_tails(earlier, later, Keep(rows=self.kept), ROWS)
        if not earlier or not later:
            return earlier or later
        table = pa.concat_tables([earlier[ROWS], later[ROWS]]).combine_chunks()
        by = [column for column in table.column_names if column.startswith("by_")]
        times, available = arrow_times(table[TIME]), arrow_times(table[AVAILABLE])
        types = [table.schema.field(one).type for one in (TIME, AVAILABLE)]
        kept = last_known(
            np, arrow_codes(table, by), times, available, common_factors(types), self.kept
        )
        return {ROWS: table if len(kept) == len(table) else table.take(pa.array(kept))}

    def rows(self, partition: Partition, engine: Engine) -> State:
        return source_rows(engine, *self.source_frame(partition, engine))

    def gather(self, carry: State, rows: Sequence[State]) -> State:
        return gather_rows((carry, *rows))

    def instants(
        self, partition: Partition, right: Frame, engine: Engine
    ) -> tuple[Array, Array, Known | None]:
        """Return the times of own and of other rows, and when those are known, in the common unit."""
        schema, xp = partition.schema, engine.xp
        unit = self.unit(schema)
        left = scale_times(
            xp, frame_times(engine, partition.frame, cast("str", schema.time)), unit.left_factor
        )
        if schema.source(self.source_table).time is None:  # all are before every time there is
            times = xp.full(len(right), INT64_MIN, dtype=xp.int64)
        else:
            times = scale_times(xp, frame_times(engine, right, TIME), unit.right_factor)
        if self.available is None:
            return left, times, None
        available, (lag, _) = frame_times(engine, right, AVAILABLE), self.spans(schema)
        known = known_from(xp, times, available, factor=unit.available_factor, lag=lag)
        return left, times, known

    # --- a carry that is larger than memory --------------------------------------------------------

    @property
    def is_keyed(self) -> bool:
        return self.back is None and self.by != ()

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        matching = self.matching(partition.schema)
        pairs = zip(matching.left, matching.state_names, strict=True)
        names = [nw.col(own).alias(name) for own, name in pairs]
        return engine.to_arrow(partition.frame.select(*names))

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        source, matching = schema.source(self.source_table), self.matching(schema)
        by = source.key if self.by is None else matching.right
        # Of each key of this table, or not known yet: nobody knows how many there are.
        if len(by) > len(matching.right) or self.available is not None:
            return extent
        return handed_extent(source, matching.travelling, self.kept * extent.rows, extent)

    # --- what it costs, and its identity ---------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        found = super().memory(schema, extent)
        if self.available is None:
            return found
        source, matching = schema.source(self.source_table), self.matching(schema)
        return found + _KNOWN * self._right_rows(source, matching, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0 if self.back is not None else super().state_bytes(schema, extent)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.back is not None:
            return 0
        source, matching = schema.source(self.source_table), self.matching(schema)
        by = source.key if self.by is None else matching.right
        state = self.state_bytes(schema, extent)
        # Text keys are looked through for nulls first, and sorted in several threads.
        texts = sum(is_text(source[name].type) for name in by)
        tail = tail_memory(source, by, matching.empty.types, state, extent.rows)
        late = _IN_FLIGHT if self.available is not None else 0
        return tail + (_TEXT_KEY * texts + late) * extent.rows

    def spec(self) -> dict[str, Json]:
        found = super().spec()
        params = cast("dict[str, Json]", found["params"])
        if self.available is None:  # specifications from before there was such a parameter equal it
            del params["available"]
        return found

    def state_fingerprint(self) -> str:
        kept = "nothing" if self.back is not None else "last" if self.kept == 1 else str(self.kept)
        pairs = normalise_pairs(self.by)
        right = None if pairs is None else [other for _, other in pairs]
        late = [] if self.available is None else [self.available]
        return fingerprint(
            "AsOfJoin", type(self).version, self.source_table, encode(self.columns), right, kept, *late
        )  # fmt: skip


class EventMatching(KnownMatching):
    """Numbers made of several of the rows that each row sees: its events."""

    def numbers(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns of the other table.

        Raises
        ------
        SchemaError
            If one is not numeric.
        """
        source, names = schema.source(self.source_table), self.matching(schema).columns
        for name in names:
            if not source[name].is_numeric:
                raise SchemaError(
                    f"{type(self).__name__} cannot work on column {self.source_table}.{name} of type "
                    f"{source[name].type}",
                    "name numeric or boolean columns",
                )
        return names

    @abstractmethod
    def span(self, schema: TableSchema) -> Span:
        """Return which events a row sees."""

    @abstractmethod
    def values(self, partition: Partition, right: Frame, seen: Seen, engine: Engine) -> Columns:
        """Return the outputs, made of the events that each row sees."""

    @abstractmethod
    def working_bytes(self, schema: TableSchema, extent: Extent, events: int) -> int:
        """Return what ``apply`` takes besides the numbers of groups and the characters of keys."""

    def matched(
        self, partition: Partition, right: Frame, codes: tuple[Array, Array], engine: Engine
    ) -> tuple[Array, Array]:
        raise NotImplementedError(f"{type(self).__name__} takes more than one row")

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema = partition.schema
        matching = self.matching(schema)
        right, coded = matching.right_rows(engine, state.get(ROWS))
        # A key with a null equals none: the other table's rows have no such keys.
        own, other, _ = matched_codes(engine, partition, right, coded, matching)
        left_times, right_times, known = self.instants(partition, right, engine)
        seen = Seen.of(engine.xp, (own, left_times), (other, right_times), known, self.span(schema))
        del own, other, left_times, right_times, known
        return self.values(partition, right, seen, engine)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        matching, source = self.matching(schema), schema.source(self.source_table)
        events = self._right_rows(source, matching, extent)
        together = extent.rows + events
        texts = VIEW * events * sum(map(is_text, matching.empty.types))
        keys = VIEW * together * sum(is_text(schema[name].type) for name in matching.left)
        grouping = grouping_bytes(schema, matching.left, together) + 8 * together
        return texts + keys + max(grouping, self.working_bytes(schema, extent, events))


def age_of(value: Age, what: str, kind: str) -> Duration | int | None:
    """Return a length of time that a transformer of a kind was given.

    Raises
    ------
    DefinitionError
        For a negative number of steps.
    InvalidInputError
        If it is no length of time.
    """
    if value is None:
        return None
    if isinstance(value, int):
        if isinstance(value, bool) or value < 0:
            raise DefinitionError(f"{kind} has {what}={value!r}", "give 0 or more steps of time")
        return value
    return Duration.parse(value)
