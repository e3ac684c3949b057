"""What runs where the data is: summarise or transform one partition, write, return metadata.

Tasks are picklable values: a store's URL, metadata of files, transformers. Data is read and written
by the worker; states travel as files; only entries come back.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.execution.applying import apply_feature, compared_only
from featurestore.execution.handing import state_among
from featurestore.execution.journal_keeper import record
from featurestore.execution.made_columns import checked_columns
from featurestore.execution.reading import PartitionSource
from featurestore.fingerprint import fingerprint
from featurestore.plan.ahead import settled_of
from featurestore.plan.definition import Feature
from featurestore.plan.slicing import carries_state
from featurestore.schema import TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import write_partition
from featurestore.storage.group_writer import GroupWriter, begin_partition
from featurestore.storage.journal import Journal
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry
from featurestore.storage.states import StateStore
from featurestore.transforms.base import (
    EMPTY_STATE,
    Columns,
    Partition,
    Scope,
    SourceTransformer,
    State,
    Transformer,
)
from featurestore.transforms.independence import check_partition_independent, is_foreign

Rows: TypeAlias = tuple[int, int]
"""A slice of a partition: the rows ``start <= row < stop``."""

SAMPLE_ROWS: Final = 1000
"""On how many rows a definition is tried."""

# A task that takes longer writes what it finished to the journal before its end.
JOURNAL_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class SummaryWork:
    """One summary of a partition: ``time_range`` cuts it to ``start <= time < stop``.

    With ``slices`` it is put together from those of slices, as :class:`ApplyWork` says.
    """

    transformer: Transformer
    columns: tuple[str, ...]
    key: str
    time_range: tuple[int, int] | None
    slices: tuple[Rows, ...] | None = None


@dataclass(frozen=True, slots=True)
class SummarizeTask:
    """All summaries wanted of one partition: one read serves all that are not made in slices."""

    url: str
    engine: str
    source: PartitionSource
    schema: TableSchema
    work: tuple[SummaryWork, ...]


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The partitions of another table whose rows a source transformer is handed.

    ``widest_row`` is the most bytes of a row of any of that table's partitions, 0 if nobody knows; no row
    after ``until`` is needed. Columns that are ``coded`` may come as dictionaries.
    """

    partitions: tuple[PartitionSource, ...]
    columns: tuple[str, ...]
    schema: TableSchema
    widest_row: int = 0
    coded: tuple[str, ...] = ()
    until: int | None = None


@dataclass(frozen=True, slots=True)
class ApplyWork:
    """One feature of a partition.

    Parameters
    ----------
    feature : Feature
    provenance : Provenance
    state_key : str
        ``""`` for the empty state.
    rows : SourceRows, optional
    journal_key : str
    slices : tuple of (int, int), optional
        The rows ``start <= row < stop`` that are in memory at a time, covering the partition in order;
        not given, all of them at once.
    learnt_rows : int
        The most rows that the state was learnt of, 0 if nobody knows.
    widest_row : int
        The most bytes of a row that a keyed state of the own table was learnt of, 0 if nobody knows.
    sifts : bool
        Whether of a keyed state only what has the keys of the rows in memory is read.
    """

    feature: Feature
    provenance: Provenance
    state_key: str
    rows: SourceRows | None
    journal_key: str
    slices: tuple[Rows, ...] | None = None
    learnt_rows: int = 0
    widest_row: int = 0
    sifts: bool = False


@dataclass(frozen=True, slots=True)
class ApplyTask:
    """All features of one level in one partition: one read serves all that are not made in slices.

    ``keeper`` writes to the journal what is finished, if it is of this process; see ``journal_keeper``.
    """

    url: str
    engine: str
    table: str
    source: PartitionSource
    schema: TableSchema
    work: tuple[ApplyWork, ...]
    keeper: str = ""


def summarize_partition(task: SummarizeTask) -> None:
    """Compute a partition's missing summaries and keep them."""
    store, engine = open_object_store(task.url), get_engine(task.engine)
    states = StateStore(store)
    whole = [work for work in task.work if work.slices is None]
    if whole:
        _summarize_whole(task, whole, states, store, engine)
    for work in task.work:
        if work.slices is not None:
            states.put(work.key, _summary_of_slices(task, work, work.slices, store, engine))


def _summarize_whole(
    task: SummarizeTask,
    works: Sequence[SummaryWork],
    states: StateStore,
    store: ObjectStore,
    engine: Engine,
) -> None:
    wanted = [column for work in works for column in work.columns]
    partition = task.source.read(store, engine, with_row_count(wanted, task.schema), task.schema)
    for work in works:
        states.put(work.key, _summary(work, partition, engine))


def _summary(work: SummaryWork, partition: Partition, engine: Engine) -> State:
    if work.time_range is not None:
        partition = rows_in_time_range(partition, work.time_range, engine)
    return work.transformer.summarize(partition, engine)


def _summary_of_slices(
    task: SummarizeTask,
    work: SummaryWork,
    slices: Sequence[Rows],
    store: ObjectStore,
    engine: Engine,
) -> State:
    columns = with_row_count(work.columns, task.schema)
    state: State = EMPTY_STATE
    for rows in slices:
        part = task.source.read(store, engine, columns, task.schema, rows)
        state = work.transformer.combine(state, _summary(work, part, engine))
        del part
        release_freed()
    return state


def apply_partition(task: ApplyTask) -> dict[str, PartitionEntry]:
    """Compute, write and journal a partition's features; return their entries by group.

    What was finished is in the journal also if one of them fails.
    """
    store, engine = open_object_store(task.url), get_engine(task.engine)
    journal = Journal(store, task.table)
    written: dict[str, PartitionEntry] = {}
    finished: list[tuple[str, PartitionEntry]] = []
    since = clock.monotonic()
    try:
        for work, entry in _computed(task, store, engine):
            written[work.feature.group] = entry
            finished.append((work.journal_key, entry))
            if clock.monotonic() - since > JOURNAL_SECONDS:
                batch, finished = finished, []
                journal.record_all(batch)
                since = clock.monotonic()
    finally:
        record(journal, finished, task.keeper)
    return written


def _computed(
    task: ApplyTask, store: ObjectStore, engine: Engine
) -> Iterator[tuple[ApplyWork, PartitionEntry]]:
    """Yield the features as they are done; what is made in slices comes last, with all else gone."""
    yield from _computed_whole(task, store, engine)
    for work in task.work:
        if work.slices is not None:
            yield work, _compute_in_slices(task, work, work.slices, store, engine)


def _computed_whole(
    task: ApplyTask, store: ObjectStore, engine: Engine
) -> Iterator[tuple[ApplyWork, PartitionEntry]]:
    works = [work for work in task.work if work.slices is None]
    if not works:
        return
    wanted = [column for work in works for column in work.feature.inputs]
    columns = with_row_count(wanted, task.schema)
    features = [work.feature for work in works]
    # What is read for a few keys only is looked up by these keys themselves.
    coded = () if any(work.sifts for work in works) else compared_only(features, task.schema)
    partition = task.source.read(store, engine, columns, task.schema, coded=coded)
    for work in works:
        # In a function of its own, so that one feature's values are gone before the next's come.
        yield work, _compute(task, work, partition, store, engine)


def _compute_in_slices(
    task: ApplyTask, work: ApplyWork, slices: Sequence[Rows], store: ObjectStore, engine: Engine
) -> PartitionEntry:
    """Read, compute and write slice by slice; a prefix state is carried through them."""
    source, transformer = task.source, work.feature.transformer
    columns = with_row_count(work.feature.inputs, task.schema)
    if len(slices) > 1 and is_foreign(transformer):
        # When it was defined, there may have been no rows to try it on.
        rows = (0, min(SAMPLE_ROWS, source.rows))
        sample = source.read(store, engine, columns, task.schema, rows)
        check_partition_independent(transformer, sample, engine)
        del sample
    further = () if work.rows is None else source_parts(transformer, work.rows, store, engine)
    state = EMPTY_STATE if work.sifts else load_state(work, further, store)
    provenance = _settled(work, state)
    with (
        _states_behind(task, work, slices, state, store, engine) as behind,
        begin_partition(
            store,
            table=task.table,
            group=work.feature.group,
            partition=source.partition,
            rows=source.rows,
        ) as writer,
    ):
        for number, rows in enumerate(slices):
            part = source.read(store, engine, columns, task.schema, rows)
            if work.sifts:
                state = load_state(work, further, store, transformer.keys(part, engine))
            if behind:
                state = StateStore(store).require(behind[number])
            _write_slice(writer, task, work, part, state, engine)
            if not behind and carries_state(transformer) and rows[1] < source.rows:
                state = transformer.combine(state, transformer.summarize(part, engine))
            del part
            release_freed()
        return writer.finish(provenance)


@contextmanager
def _states_behind(
    task: ApplyTask,
    work: ApplyWork,
    slices: Sequence[Rows],
    state: State,
    store: ObjectStore,
    engine: Engine,
) -> Iterator[Sequence[str]]:
    """Keep for a while the states of the rows behind each slice; their keys in order of the slices.

    None but for scope ``suffix``. What is behind a slice is written after it: so all are read twice.
    """
    transformer, states = work.feature.transformer, StateStore(store)
    if transformer.scope is not Scope.SUFFIX:
        yield ()
        return
    columns = with_row_count(work.feature.inputs, task.schema)
    keys = [fingerprint("behind a slice", work.journal_key, list(rows)) for rows in slices]
    try:
        for number in reversed(range(len(slices))):
            states.put(keys[number], state)
            if number:
                part = task.source.read(store, engine, columns, task.schema, slices[number])
                state = transformer.combine(transformer.summarize(part, engine), state)
                del part
                release_freed()
        del state
        yield keys
    finally:
        states.forget(keys)


def _settled(work: ApplyWork, state: State) -> Provenance:
    """Return the provenance of values, with until when they look at later rows if that is known."""
    settled = settled_of(state)
    if not settled:
        return work.provenance
    until, seen = settled
    return replace(work.provenance, until=until, seen=seen)


def _write_slice(
    writer: GroupWriter,
    task: ApplyTask,
    work: ApplyWork,
    part: Partition,
    state: State,
    engine: Engine,
) -> None:
    columns = apply_feature(work.feature, part, state, engine)
    where = f"partition {task.source.partition}"
    writer.write(*checked_columns(work.feature.outputs, columns, part.rows, engine, where))


def _compute(
    task: ApplyTask, work: ApplyWork, partition: Partition, store: ObjectStore, engine: Engine
) -> PartitionEntry:
    transformer = work.feature.transformer
    keys = transformer.keys(partition, engine) if work.sifts else None
    further: Sequence[State] = ()
    if work.rows is not None:  # what is text here is compared as text
        coded = bool(partition.coded)
        further = source_parts(transformer, work.rows, store, engine, coded=coded)
    state = load_state(work, further, store, keys)
    del further
    columns = apply_feature(work.feature, partition, state, engine)
    provenance = _settled(work, state)
    return _write(task, work, columns, partition.rows, store, engine, provenance)


def load_state(
    work: ApplyWork, further: Sequence[State], store: ObjectStore, keys: pa.Table | None = None
) -> State:
    """Return the state a feature's ``apply`` receives for some rows.

    Parameters
    ----------
    work : ApplyWork
    further : sequence of State
        Of a source transformer: the other table's partitions that are handed over as rows.
    store : ObjectStore
    keys : pyarrow.Table, optional
        Those of the rows; only what a keyed state has of them is kept of it.
    """
    state: State = EMPTY_STATE
    if work.state_key:
        state = state_among(StateStore(store), work.state_key, keys)
    if work.rows is None:
        return state
    transformer = work.feature.transformer
    assert isinstance(transformer, SourceTransformer)
    return transformer.gather(state, further)


def source_parts(
    transformer: Transformer,
    rows: SourceRows,
    store: ObjectStore,
    engine: Engine,
    *,
    coded: bool = False,
) -> list[State]:
    """Return the other table's partitions, each reduced to what the transformer needs of it."""
    assert isinstance(transformer, SourceTransformer)
    alike = rows.coded if coded else ()
    parts = (
        one.read(store, engine, rows.columns, rows.schema, coded=alike, until=rows.until)
        for one in rows.partitions
    )
    return [transformer.rows(part, engine) for part in parts]


def with_row_count(columns: Iterable[str], schema: TableSchema) -> tuple[str, ...]:
    """Return the columns, with a scalar one among them: a frame without columns has no rows."""
    wanted = tuple(dict.fromkeys(columns))
    if any(not schema[name].is_tensor for name in wanted):
        return wanted
    first = schema.time or next((one.name for one in schema if not one.is_tensor), None)
    return wanted if first is None else (*wanted, first)


def rows_in_time_range(
    partition: Partition, time_range: tuple[int, int], engine: Engine
) -> Partition:
    """Return the rows with ``start <= time < stop``."""
    schema = partition.schema
    assert schema.time is not None
    times, _ = engine.values(partition.frame[schema.time])
    keep = (times >= time_range[0]) & (times < time_range[1])
    return select_rows(partition, engine.xp.nonzero(keep)[0], engine)


def select_rows(partition: Partition, positions: Any, engine: Engine) -> Partition:
    """Return the rows of a partition at some positions."""
    return Partition(
        engine.take(partition.frame, positions),
        partition.schema,
        {name: values[positions] for name, values in partition.tensors.items()},
    )


def _write(
    task: ApplyTask,
    work: ApplyWork,
    columns: Columns,
    rows: int,
    store: ObjectStore,
    engine: Engine,
    provenance: Provenance,
) -> PartitionEntry:
    table, tensors = checked_columns(
        work.feature.outputs, columns, rows, engine, f"partition {task.source.partition}"
    )
    return write_partition(
        store,
        table=task.table,
        group=work.feature.group,
        partition=task.source.partition,
        columns=table,
        tensors=tensors,
        provenance=provenance,
    )
