"""What transformers share whose values are statistics of everything so far: the three verbs.

Their state is, per group, the nodes of a tree over time that no later row can change, as folds
(:mod:`featurestore.engines.time_trees`), in the order of their first rows: an Arrow table with columns
``by_0, ..., time, part_0, ...``, and the span of time that is known. Of exact folds (counts, integers,
extremes) one node per group is enough, and the span is not needed.

Always true: values have the same bits however rows are cut. Trade-off: where folds are of floats, a group
keeps up to some 20 nodes of a partition, which a running sum would not need.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, cast

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Frame, Series
from featurestore.engines.running import FOLDS, Fold
from featurestore.engines.time_trees import Nodes, Parts
from featurestore.engines.time_views import Own, View
from featurestore.engines.windows import (
    INT64_MIN,
    Groups,
    canonical,
    check_time_order,
    group_rows,
)
from featurestore.errors import DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema, time_unit
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    encode,
)
from featurestore.transforms.event_time import Span, arrow_times, span_of
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import (
    VIEW,
    is_varying,
    kept_bytes,
    kept_rows,
    rounding_bytes,
    row_bits,
    sorting_bytes,
    taking_bytes,
)
from featurestore.transforms.grouping import By, normalise_by, require_time, resolve_by
from featurestore.transforms.keyed import key_columns
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.tails import (
    TAIL,
    TIME,
    Extended,
    arrow_codes,
    positional,
    scattered,
)
from featurestore.units import Duration

SPAN: Final = "span"
_CLOSED: Final = ("right", "left")
_INT64_MAX: Final = 2**63 - 1
_NODES: Final = 128
"""Of a group, at most: two per bit of a time."""
_SPAN_BYTES: Final = 256
_TREE: Final = 96
"""Bytes per leaf: where rows are in order, how they meet, and the joins."""
_JOINING: Final = 66
"""Bytes per row where only the joins are made that no other row can change."""
_MADE: Final = 30
"""Bytes per row: a column of results, before and after it is put back in the rows' order."""

Seen: TypeAlias = "Mapping[str, Parts]"
"""Folds of what each row sees, by the fold's name; rows in sorted order."""


@dataclass(frozen=True)
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

    by: By = field(default=None, kw_only=True)
    closed: str = field(default="right", kw_only=True)
    lag: Span | None = field(default=None, kw_only=True)
    prefix: str | None = field(default=None, kw_only=True)
    rename: Renaming = field(default=None, kw_only=True)

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
        return min(cast("Duration", self.lag).in_unit(unit), _INT64_MAX)

    def _wait(self, unit: str | None) -> int:
        """Return how much younger than a row those must be that see it, in steps of the time."""
        lag = self._lag(unit)
        return lag + (self.closed == "left") if lag else 0

    def _parts(self, schema: TableSchema) -> list[tuple[str, str, Fold]]:
        """Return source, fold and the name of its columns in a state, without their number."""
        sources = enumerate(self.sources(schema))
        return [
            (source, f"part_{i}_{name}", self.fold(name))
            for i, source in sources
            for name in self.fold_names(schema, source)
        ]

    # --- states ------------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        if partition.rows == 0:
            return {}
        schema, xp = partition.schema, engine.xp
        frame = self._frame(partition)
        rows = Extended.of(engine, frame, {}, len(self._by(schema)))
        times = rows.times()
        span = int(times[0]), int(times[-1])
        known = span[0], max(span[1] - self._wait(schema.time_unit), INT64_MIN)
        every = self._parts(schema)
        exact = all(fold.exact for _, _, fold in every)
        check_time_order(xp, times)
        nodes = Nodes.of(xp, group_rows(xp, rows.codes()), times, known, exact=exact)
        parts: dict[str, pa.Array] = {}
        for source, name, fold in every:
            leaves = fold.leaves(xp, *engine.values(partition.frame[source]), times)
            for i, part in enumerate(nodes.fold(leaves, fold.merge)):
                parts[f"{name}_{i}"] = pa.array(engine.to_host(part))
        kept = engine.to_arrow(engine.take(frame, nodes.rows))
        needs_span = not exact or self.lag is not None
        return _state(kept, parts, span if needs_span else None)

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        table = pa.concat_tables([earlier[TAIL], later[TAIL]]).combine_chunks()
        times = arrow_times(table[TIME])
        span, known = None, (0, int(times[-1]))
        if SPAN in later:
            span = earlier[SPAN]["low"][0].as_py(), later[SPAN]["high"][0].as_py()
            wait = self._wait(time_unit(table.schema.field(TIME).type))
            known = span[0], max(span[1] - wait, INT64_MIN)
        held = part_columns(table)
        folds = {name: self.fold(name.split("_", 2)[2]) for name in held}
        groups = group_rows(np, arrow_codes(table, key_columns(table.column_names)))
        exact = all(one.exact for one in folds.values())
        nodes = Nodes.of(np, groups, times, known, exact=exact)
        parts: dict[str, pa.Array] = {}
        for name, columns in held.items():
            leaves = tuple(_array(table[one]) for one in columns)
            folded = nodes.fold(leaves, folds[name].merge)
            parts.update(zip(columns, map(pa.array, folded), strict=True))
        kept = table.drop_columns(list(parts)).take(pa.array(nodes.rows))
        return _state(kept, parts, span)

    # --- values ------------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        rows = Extended.of(engine, self._frame(partition), state, len(self._by(schema)))
        groups = group_rows(xp, rows.codes())
        times = rows.times()
        check_time_order(xp, times)
        view = self._view(xp, groups, times, rows, schema)
        fields = iter(self.outputs(schema))
        out: list[Series] = []
        for i, source in enumerate(self.sources(schema)):
            # In a function of its own, so that one source's arrays are gone before the next's come.
            out += self._of_source(partition, state, rows, view, i, source, fields)
        return Columns(partition.frame.select(*out) if out else None)

    def _view(
        self, xp: Any, groups: Groups, times: Array, rows: Extended, schema: TableSchema
    ) -> View:
        own: Own = rows.own(groups.order)
        lag = self._lag(schema.time_unit)
        if lag:
            return View.lagged(xp, groups, times, own, lag, self.closed)
        return View.plain(xp, groups, times, own, inclusive=self.closed == "right")

    def _of_source(
        self,
        partition: Partition,
        state: State,
        rows: Extended,
        view: View,
        position: int,
        source: str,
        fields: Iterator[Field],
    ) -> list[Series]:
        """Return the outputs of one source; the next of ``fields`` say what they are called."""
        engine, schema, seen = rows.engine, partition.schema, {}
        xp, own_times = engine.xp, rows.times()[rows.before :]
        values, valid = engine.values(partition.frame[source])
        for name in self.fold_names(schema, source):
            fold = self.fold(name)
            leaves = fold.leaves(xp, values, valid, own_times)
            if rows.before:
                columns = [f"part_{position}_{name}_{i}" for i in range(len(leaves))]
                earlier = [engine.from_host(_array(state[TAIL][one])) for one in columns]
                leaves = tuple(map(xp.concatenate, zip(earlier, leaves, strict=True)))
            seen[name] = view.seen(leaves, fold)
            del leaves
        del values, valid
        out = []
        for made in self.results(xp, schema, source, seen, view.times):
            field_ = next(fields)
            values, valid = made
            one = scattered(xp, (canonical(xp, values, valid), valid), view.target)
            out.append(engine.column(field_.name, *one, field_.type))
        return out

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
        leaves = together + (extent.rows if self.lag is not None else 0)
        work = (_TREE + 46 * fold) * leaves + 8 * source * extent.rows
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
        by, (total, _, _) = self._by(schema), self._numbers(schema)
        exact = all(one.exact for _, _, one in self._parts(schema))
        kept = extent.rows if self.lag is not None else 1 if exact else _NODES
        names = self._state_columns(schema)
        rows = kept_rows(schema, by, kept, extent)
        return kept_bytes(schema, by, names, kept, extent) + 8 * total * rows + _SPAN_BYTES

    def state_fingerprint(self) -> str:
        """Return the fingerprint of what it learns: whether rows see themselves changes nothing of it."""
        waits = self.lag is not None and self.closed
        apart = {"closed", "prefix", "rename", "min_count"}
        spec = {
            one.name: encode(getattr(self, one.name))
            for one in dataclasses.fields(self)
            if one.name not in apart
        }
        return fingerprint("running", type(self).__name__, self.version, spec, waits)


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


def part_columns(table: pa.Table) -> dict[str, list[str]]:
    """Return the columns of each fold of a state, by their common name.

    Examples
    --------
    >>> part_columns(pa.table({"by_0": [1], "part_0_min_0": [True], "part_0_min_1": [2.5]}))
    {'part_0_min': ['part_0_min_0', 'part_0_min_1']}
    """
    found: dict[str, list[str]] = {}
    for name in table.column_names:
        if name.startswith("part_"):
            found.setdefault(name.rsplit("_", 1)[0], []).append(name)
    return found


def _state(kept: pa.Table, parts: Mapping[str, pa.Array], span: tuple[int, int] | None) -> State:
    for name, part in parts.items():
        kept = kept.append_column(name, part)
    if span is None:
        return {TAIL: kept}
    return {TAIL: kept, SPAN: pa.table({"low": [span[0]], "high": [span[1]]})}


def _array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = column.to_numpy()
    return values
