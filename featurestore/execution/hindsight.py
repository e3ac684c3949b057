"""Features of rows as they would have been computed at their time: without anything that came later.

All rows of one time are taken as new rows right after those before them, as served rows are, with the
states of these; what is learnt is learnt anew from rows up to that time, and of other tables only what
was known by then is handed over.

Always true: nothing that is published changes; states that were made for it are deleted again.
Trade-off: a feature's stored values of earlier rows are taken as they are, so that the states kept by
builds serve. A leak is found in the feature that leaks and in those of the same rows that are computed
from it, and not in one that looks at its earlier rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.windows import INT64_MAX, INT64_MIN
from featurestore.execution.applying import apply_feature
from featurestore.execution.sampling import null_columns
from featurestore.execution.serving import Serving, virtual_entry
from featurestore.execution.states import Available, StateRequest, Workplace, prepare_states
from featurestore.execution.tasks import select_rows, with_row_count
from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature
from featurestore.plan.states import (
    Learner,
    SourceSummaries,
    StateNeed,
    Summary,
    fit_needs,
    source_need,
)
from featurestore.plan.table_files import TableFiles
from featurestore.schema import TableSchema, time_steps, time_unit
from featurestore.storage.states import StateStore
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
)
from featurestore.transforms.event_time import common_factors
from featurestore.units import Duration


@dataclass(frozen=True, slots=True)
class KnownBy:
    """When another table's rows became known: at their time, ``lag`` later, or as a column says.

    A row whose column is null never became known.
    """

    column: str | None = None
    lag: Duration | int | None = None


@dataclass(frozen=True, slots=True)
class PointInTime:
    """What of a table was known at a time of another.

    Parameters
    ----------
    schema : TableSchema
        Of the table that is looked at.
    known : KnownBy
    time : int
    time_type : pyarrow.DataType
        Of the column that the time is of.
    """

    schema: TableSchema
    known: KnownBy
    time: int
    time_type: pa.DataType

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that say what was known."""
        found = (self.schema.time, self.known.column)
        return tuple(dict.fromkeys(one for one in found if one is not None))

    @property
    def newest(self) -> int | None:
        """The newest event time of what was known; None for a table without time."""
        return None if self.schema.time is None else self._limit(self.schema.time, self.known.lag)

    def visible(self, partition: Partition, engine: Engine) -> Partition:
        """Return the rows that were known."""
        keep = None
        for name in self.columns:
            lag = self.known.lag if name == self.schema.time else None
            values, valid = engine.values(partition.frame[name])
            seen = valid & (values <= self._limit(name, lag))
            keep = seen if keep is None else keep & seen
        if keep is None or bool(keep.all()):
            return partition
        return select_rows(partition, engine.xp.flatnonzero(keep), engine)

    def _limit(self, name: str, lag: Duration | int | None) -> int:
        """Return the largest value of a time column that is not later than the time, ``lag`` added."""
        type_ = self.schema[name].type
        own, other = common_factors([self.time_type, type_])
        unit = time_unit(self.time_type) if own == 1 else time_unit(type_)
        steps = 0 if lag is None else time_steps(lag, unit, name)
        return min(max((self.time * own - steps) // other, INT64_MIN), INT64_MAX)


class Hindsight(Serving):
    """Finds the states of rows of one time in a table, of what was known at that time.

    Parameters
    ----------
    place, files, sources, partition, engine
        As :class:`~featurestore.execution.serving.Serving`; ``partition`` has the rows of one time.
    known : mapping of str to KnownBy
        Of tables that are read; others' rows are known at their time, if they have one that compares.
    """

    def __init__(
        self,
        place: Workplace,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        partition: Partition,
        engine: Engine,
        known: Mapping[str, KnownBy],
    ) -> None:
        super().__init__(place, files, sources, partition, engine)
        self._known = known
        assert self._span is not None
        self.time = self._span[0]

    def _fit_need(self, feature: Feature, inputs: Sequence[str]) -> StateNeed:
        """Return the state learnt of those rows of the fit scope that are not later."""
        need = fit_needs(feature, self._files, inputs)
        learner = Learner(feature.transformer, self._files.schema, feature.inputs)
        members = []
        for member in need.members:
            one = member
            entry = self._files.base[one.partition]
            start, stop = one.time_range or (entry.time_min or 0, INT64_MAX)
            if start > self.time:
                continue
            if (entry.time_max or 0) > self.time and stop > self.time + 1:
                cut = (start, self.time + 1)
                key = learner.summary_key(inputs[one.partition], cut)
                one = Summary(key, one.partition, cut)
            members.append(one)
        if members == list(need.members):
            return need
        key = fingerprint(
            "hindsight", feature.transformer.fingerprint(), [one.key for one in members]
        )
        return StateNeed(key, key, tuple(members))

    def learns_nothing(self, feature: Feature) -> bool:
        """Whether a fitted feature had no rows to learn from by then."""
        if feature.transformer.scope is not Scope.FIT:
            return False
        inputs = self._assessor.prints(self._files.name, feature.inputs)
        return not self._fit_need(feature, inputs).members

    def _source_state(self, feature: Feature, transformer: SourceTransformer) -> State:
        source = self._sources[transformer.source_table]
        columns = transformer.source_inputs(self._files.schema)
        then = self._at(source)
        if source.name not in self._known:
            need = self._source_need(transformer, source, columns)
            carry = self._prepared(need, transformer, source, columns)
            parts = [
                transformer.rows(self._read(source, one, columns, then), self._engine)
                for one in need.rows
            ]
            return transformer.gather(carry, parts)
        # What is old may have become known late, so that kept carries do not serve.
        window = transformer.source_window(self._files.schema, self.time, self.time)
        carry, parts = EMPTY_STATE, []
        newest = INT64_MAX if then.newest is None else then.newest
        for position, one in enumerate(source.base):
            if not one.rows or (one.time_min is not None and one.time_min > newest):
                continue
            part = self._read(source, position, columns, then)
            below = window.lower is not None and one.time_max is not None
            if below and not parts and (one.time_max or 0) < (window.lower or 0):
                if window.carry:
                    carry = transformer.combine(carry, transformer.summarize(part, self._engine))
            else:
                parts.append(transformer.rows(part, self._engine))
        return transformer.gather(carry, parts)

    def _source_need(
        self, transformer: SourceTransformer, source: TableFiles, columns: tuple[str, ...]
    ) -> StateNeed:
        prints = self._assessor.prints(source.name, columns)
        summaries = SourceSummaries.of(
            Learner(transformer, source.schema, columns), source.base, prints
        )
        entry = virtual_entry(self._partition.rows, self._span)
        need = source_need(transformer, self._files.schema, entry, summaries)
        self._assessor.require_built(source.name, columns, need.rows)
        return need

    def _at(self, source: TableFiles) -> PointInTime:
        own = self._files.schema[self._files.schema.time or ""].type
        schema = source.schema
        if not compares(own, schema):
            schema = replace(schema, time=None)
        known = self._known.get(source.name, KnownBy())
        return PointInTime(schema, known, self.time, own)

    def _read(
        self, source: TableFiles, position: int, columns: tuple[str, ...], then: PointInTime
    ) -> Partition:
        wanted = with_row_count((*columns, *then.columns), source.schema)
        one = Available(source, {}).at(position, wanted)
        part = one.read(self._place.store, self._engine, wanted, source.schema)
        return then.visible(part, self._engine)


def compares(own: pa.DataType, schema: TableSchema) -> bool:
    """Whether a table has a time that can be compared with one of a type."""
    if schema.time is None:
        return False
    other = schema[schema.time].type
    zoned = [getattr(one, "tz", None) is None for one in (own, other)]
    return (time_unit(own) is None) == (time_unit(other) is None) and zoned[0] == zoned[1]


def recomputed(
    place: Workplace,
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    features: Sequence[Feature],
    groups: Sequence[Partition],
    known: Mapping[str, KnownBy],
    engine: Engine,
) -> Iterator[Partition]:
    """Yield the rows of some times with their features, each without anything that came later.

    Parameters
    ----------
    features : sequence of Feature
        Each after those that it needs.
    groups : sequence of Partition
        Of one partition of the table: for each time all its rows, with the ingested columns.
    known : mapping of str to KnownBy
    """
    moments = [Hindsight(place, files, sources, one, engine, known) for one in groups]
    requests = []
    for feature in features:
        if not isinstance(feature.transformer, SourceTransformer):
            needs = [one.need(feature) for one in moments if not one.learns_nothing(feature)]
            table = Available(files, {})
            requests.append(
                StateRequest(feature.transformer, files.schema, table, feature.inputs, needs)
            )
    with _made_for_now(requests, place):
        prepare_states(
            [one for one in requests if any(need.key for need in one.needs)], place, place.executor
        )
        for moment, rows in zip(moments, groups, strict=True):
            part = rows
            for feature in features:
                if moment.learns_nothing(feature):
                    made = null_columns(feature.outputs, part.rows, engine)
                else:
                    made = apply_feature(feature, part, moment.state(feature), engine)
                part = part.replace(made, files.schema)
            yield part


@contextmanager
def _made_for_now(requests: Sequence[StateRequest], place: Workplace) -> Iterator[None]:
    """Delete what is kept in the block for these requests and nobody else will ask for."""
    states = StateStore(place.store)
    keys = {need.key for one in requests for need in one.needs if need.key}
    keys |= {
        member.key
        for one in requests
        for need in one.needs
        for member in need.members
        if member.time_range is not None
    }
    new = [key for key in sorted(keys) if not states.has(key)]
    try:
        yield
    finally:
        states.forget(new)
