"""What transformers share whose values are statistics of everything so far: the three verbs.

Their state is, per group, the runs of rows that no later row can change, as folds (:mod:`nodes`).

Always true: values have the same bits however rows are cut. Trade-off: where folds are of floats, a group
keeps up to some 20 runs of a partition, which a running sum would not need.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final, cast

import pyarrow as pa

from featurestore.engines.blocks import whole_runs
from featurestore.engines.protocol import Array, Engine, Frame, Series
from featurestore.engines.running import FOLDS, Fold
from featurestore.engines.time_trees import Nodes
from featurestore.engines.time_views import Sorted, View
from featurestore.engines.windows import (
    INT64_MAX,
    Groups,
    check_time_order,
    group_rows,
    time_windows,
)
from featurestore.errors import DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.schema import TableSchema, time_unit
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    encode,
)
from featurestore.transforms.event_time import Span, span_of
from featurestore.transforms.extent import Extent
from featurestore.transforms.folded_column import FoldedColumn, Seen
from featurestore.transforms.footprint import (
    VIEW,
    handed_extent,
    is_varying,
    kept_bytes,
    kept_rows,
    rounding_bytes,
    row_bits,
    sorting_bytes,
    taking_bytes,
)
from featurestore.transforms.grouping import By, normalise_by, require_time, resolve_by
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.nodes import (
    HIGH,
    LOW,
    combined,
    in_time,
    part_columns,
    part_name,
    spans,
    state_of,
)
from featurestore.transforms.tails import TAIL, TIME, Extended, key_rows, positional
from featurestore.units import Duration

_CLOSED: Final = ("right", "left")
_NODES: Final = 128
"""Of a group, at most: two per bit of a time."""
_SPAN: Final = 16
"""Bytes per row of a state: between which times its group is known."""
_TREE: Final = 50
"""Bytes per leaf: where rows are in order, how they meet, and the joins."""
_FOLDED: Final = 32
"""Bytes per leaf and number of a fold where all rows are one group; of many groups, some at a time are folded."""
_JOINING: Final = 66
"""Bytes per row where only the joins are made that no other row can change."""
_MADE: Final = 30
"""Bytes per row: a column of results, before and after it is put back in the rows' order."""


class Running(Transformer):
    """Statistics of all rows of a group so far.

    Subclasses say which columns they read (:meth:`sources`), which folds they need of each
    (:meth:`folds`) and what comes out (:meth:`results`).

    Parameters
    ----------
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"right", "left"}
        Whether a row sees itself. Rows of one group and time count one by one, in table order.
    lag : str or timedelta, optional
        A row at ``t`` sees the rows up to ``t - lag`` (``closed="left"``: before that), all or none of
        those of one time.
    prefix, rename : optional
    """

    # Fields of each subclass, so that they stand in the order of its own signature.
    by: By
    closed: str
    lag: Span | None
    prefix: str | None
    rename: Renaming

    def __post_init__(self) -> None:
        put, kind = object.__setattr__, type(self).__name__
        put(self, "by", normalise_by(self.by))
        put(self, "rename", normalise_renaming(self.rename))
        if self.closed not in _CLOSED:
            raise DefinitionError(f"{kind} has closed={self.closed!r}", f"use one of {_CLOSED}")
        if self.lag is not None:
            if isinstance(self.lag, int):
                raise DefinitionError(
                    f"{kind} has lag={self.lag!r}",
                    "give a length of time, such as '1d'; for rows, put a Lag on its output",
                )
            put(self, "lag", span_of(self.lag, "lag", 1, kind))

    # --- what a subclass says --------------------------------------------------------------------

    @abstractmethod
    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns whose values it reads."""

    @abstractmethod
    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        """Return the names of the folds of a source."""

    @abstractmethod
    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        """Yield values and validity of the outputs of a source; ``times`` are those of the rows."""

    def fold(self, name: str) -> Fold:
        """Return a fold by its name."""
        return FOLDS[name]

    @property
    def counter(self) -> str | None:
        """The fold, named before others, that numbers the rows of a group; None if nothing asks for it."""
        return None

    # --- what follows ------------------------------------------------------------------------------

    @property
    def scope(self) -> Scope:
        return Scope.PREFIX

    @property
    def slicing(self) -> Slicing:
        return Slicing.TIMES

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        time = require_time(schema, type(self).__name__, "looks back in time")
        if self.lag is not None:
            require_lengths(schema, type(self).__name__, f"lag={str(self.lag)!r}")
        return tuple(dict.fromkeys((*self._by(schema), time, *self.sources(schema))))

    def _by(self, schema: TableSchema) -> tuple[str, ...]:
        return resolve_by(self.by, schema, type(self).__name__)

    def _frame(self, partition: Partition) -> Frame:
        schema = partition.schema
        return positional(partition.frame, self._by(schema), schema.time, [])

    def _lag(self, unit: str | None) -> int:
        if self.lag is None or unit is None:
            return 0
        return min(cast("Duration", self.lag).in_unit(unit), INT64_MAX)

    def _wait(self, unit: str | None) -> int:
        """Return how much younger than a row those must be that see it, in steps of the time."""
        lag = self._lag(unit)
        return lag + (self.closed == "left") if lag else 0

    def _folds_of(self, schema: TableSchema, source: str) -> dict[str, Fold]:
        return {name: self.fold(name) for name in self.fold_names(schema, source)}

    def _folds(self, schema: TableSchema) -> dict[str, Fold]:
        """Return the folds by the common names of their columns in a state."""
        return {
            part_name(i, name): fold
            for i, source in enumerate(self.sources(schema))
            for name, fold in self._folds_of(schema, source).items()
        }

    def _is_spanned(self, folds: Mapping[str, Fold]) -> bool:
        return self.lag is not None or not all(fold.exact for fold in folds.values())

    # --- states ------------------------------------------------------------------------------------

    @property
    def is_keyed(self) -> bool:
        return self.by != ()

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        return key_rows(engine, partition.frame, self._by(partition.schema))

    def summarize(self, partition: Partition, engine: Engine) -> State:
        if partition.rows == 0:
            return {}
        schema, xp = partition.schema, engine.xp
        frame = self._frame(partition)
        rows = Extended.of(engine, frame, {}, len(self._by(schema)))
        times, folds = rows.times(), self._folds(schema)
        check_time_order(xp, times)
        groups, spanned = group_rows(xp, rows.codes()), self._is_spanned(folds)
        span = spans(xp, times[:1], times[-1:], self._wait(schema.time_unit), spanned=spanned)
        exact = all(fold.exact for fold in folds.values())
        nodes = Nodes.of(xp, groups, times, *span, exact=exact)
        columns: dict[str, Any] = {}
        if spanned:
            for name, end in ((LOW, 0), (HIGH, -1)):
                columns[name] = engine.to_host(
                    xp.full(nodes.rows.shape[0], times[end], dtype=xp.int64)
                )
        for i, source in enumerate(self.sources(schema)):
            folds = self._folds_of(schema, source)
            held = FoldedColumn.of(engine, partition.frame[source], folds, self.counter)
            for fold, parts in held.folded(groups, times, nodes).items():
                for number, part in enumerate(parts):
                    columns[f"{part_name(i, fold)}_{number}"] = engine.to_host(part)
            del held  # before the next source's
        return state_of(engine.to_arrow(engine.take(frame, nodes.rows)), columns)

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        held = part_columns(later[TAIL])
        folds = {name: self.fold(name.split("_", 2)[2]) for name in held}
        wait = self._wait(time_unit(later[TAIL].schema.field(TIME).type))
        return combined(earlier, later, folds, self.counter, wait)

    # --- values ------------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        state = in_time(state)
        rows = Extended.of(engine, self._frame(partition), state, len(self._by(schema)))
        groups, times = group_rows(xp, rows.codes()), rows.times()
        check_time_order(xp, times)
        views = self._views(groups, times, rows, schema)
        del groups, times
        fields = iter(self.outputs(schema))
        out: list[Series] = []
        for i, source in enumerate(self.sources(schema)):
            folds = self._folds_of(schema, source)
            held = FoldedColumn.of(engine, partition.frame[source], folds, self.counter, state, i)
            results = partial(self.results, xp, schema, source)
            for values, valid in held.results(views, results):
                field = next(fields)
                out.append(engine.column(field.name, values, valid, field.type))
                del values, valid
            del held  # before the next source's
        return Columns(partition.frame.select(*out) if out else None)

    def _views(
        self, groups: Groups, times: Array, rows: Extended, schema: TableSchema
    ) -> list[View]:
        """Return what the partition's rows see, some groups at a time."""
        xp, lag, end = rows.engine.xp, self._lag(schema.time_unit), None
        if lag:
            _, end = time_windows(xp, groups, times, width=1, lag=lag, closed=self.closed)
        views = []
        for where in whole_runs(xp, groups.number) if rows.rows else [slice(0, 0)]:
            order = groups.order[where]
            own, target = rows.own(order)
            if rows.rows and not target.shape[0]:
                continue
            begin = groups.begin[where] - where.start
            some = Sorted(order, groups.number[where], begin, times[order], own, target)
            ends = None if end is None else end[where] - where.start
            views.append(self._view(xp, some, ends, schema))
        return views

    def _view(self, xp: Any, rows: Sorted, end: Array | None, schema: TableSchema) -> View:
        """Return what rows see; with a lag, ``end`` is where that ends."""
        if end is None:
            return View.plain(xp, rows, inclusive=self.closed == "right")
        return View.lagged(xp, rows, end, self._lag(schema.time_unit), self.closed)

    # --- what it costs -----------------------------------------------------------------------------

    def _numbers(self, schema: TableSchema) -> tuple[int, int, int]:
        """Return how many numbers folds have: of all sources, of the largest, and its largest fold."""
        sizes = [
            [len(self.fold(name).empty) for name in self.fold_names(schema, source)]
            for source in self.sources(schema)
        ]
        every = [sum(one) for one in sizes]
        return sum(every), max(every, default=0), max((max(one) for one in sizes), default=0)

    def _state_columns(self, schema: TableSchema) -> tuple[str, ...]:
        return (*self._by(schema), cast("str", schema.time))

    def _within(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most rows that the state has which ``apply`` is handed."""
        total, _, _ = self._numbers(schema)
        bits = sum(row_bits(schema[name].type) for name in self._state_columns(schema))
        most = 8 * extent.state_bytes // max(1, bits + 8 * total)
        return min(most, extent.state_rows) if extent.state_rows else most

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        by, (_, source, fold) = self._by(schema), self._numbers(schema)
        earlier = self._within(schema, extent)
        together = extent.rows + earlier
        leaves, folded = together, extent.rows
        if self.lag is not None:  # a group may have any number of rows of the state
            leaves, folded = together + extent.rows, together + extent.rows
        work = _TREE * leaves + _FOLDED * fold * folded + 8 * source * extent.rows
        made = _MADE * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)
        varying = sum(is_varying(schema[name].type) for name in by)
        return sorting_bytes(schema, by, together, work) + made + VIEW * together * varying

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        by, (_, _, fold) = self._by(schema), self._numbers(schema)
        types = [schema[name].type for name in self._state_columns(schema)]
        work = (_JOINING + 30 * fold) * extent.rows
        state = self.state_bytes(schema, extent)
        taken = taking_bytes(types, extent.rows)
        return sorting_bytes(schema, by, extent.rows, work) + taken + state

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        by, kept = self._by(schema), self.most_kept_rows(schema)
        kept = extent.rows if kept is None else kept
        names = self._state_columns(schema)
        rows = kept_rows(schema, by, kept, extent)
        return kept_bytes(schema, by, names, kept, extent) + self.part_bytes(schema) * rows

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        kept = self.most_kept_rows(schema)
        if kept is None:
            return extent
        further = self.part_bytes(schema)
        return handed_extent(
            schema, self._state_columns(schema), kept * extent.rows, extent, further
        )

    def most_kept_rows(self, schema: TableSchema) -> int | None:
        """Return the most rows of a state that one group has; None if nobody knows."""
        if self.lag is not None:
            return None
        return 1 if all(one.exact for one in self._folds(schema).values()) else _NODES

    def part_bytes(self, schema: TableSchema) -> int:
        """Return what each row of a state has beside its key and time."""
        total, _, _ = self._numbers(schema)
        return 8 * total + _SPAN * self._is_spanned(self._folds(schema))

    def state_fingerprint(self) -> str:
        """Return the fingerprint of what it learns: whether rows see themselves changes nothing of it."""
        waits = self.lag is not None and self.closed
        apart = {"closed", "prefix", "rename", "min_count"}
        spec = {
            one.name: encode(getattr(self, one.name))
            for one in dataclasses.fields(self)
            if one.name not in apart
        }
        return fingerprint("nodes", type(self).__name__, self.version, spec, waits)


def require_lengths(schema: TableSchema, kind: str, what: str) -> None:
    """Refuse lengths of time where the time column counts integers.

    Raises
    ------
    DefinitionError
    """
    if schema.time_unit is None:
        raise DefinitionError(
            f"{kind} has {what} and time column {schema.time!r} counts integers, which have no length",
            "ingest the column as a timestamp",
        )
