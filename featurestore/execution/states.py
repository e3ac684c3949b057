"""States made ready: missing summaries computed, then combined in table order.

Summaries of all transformers share one pass over each table. Combining happens here, one state at a
time, in a fixed order, so that the same data gives the same bits.

A state that is kept is taken to be sound until it is read: looking at all of them would cost more than
most builds. When one turns out to be damaged, everything that is needed is read once and what is damaged
is computed again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featurestore.execution.dask import Executor
from featurestore.execution.reading import PartitionSource
from featurestore.execution.tasks import (
    SummarizeTask,
    SummaryWork,
    summarize_partition,
)
from featurestore.plan.states import StateNeed
from featurestore.plan.table_files import TableFiles
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.storage.states import StateLostError, StateStore
from featurestore.transforms.base import EMPTY_STATE, Scope, State, Transformer


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and with what work on a store runs."""

    store: ObjectStore
    engine: str
    executor: Executor
    memory_limit: int


@dataclass(frozen=True, slots=True)
class Available:
    """A table's values: those of its snapshot, and those a build wrote a moment ago."""

    files: TableFiles
    built: Mapping[str, Mapping[str, PartitionEntry]]

    def at(self, position: int, columns: Sequence[str]) -> PartitionSource:
        """Return where columns of a partition are."""
        base = self.files.base[position]
        groups = []
        for group in dict.fromkeys((*self.files.groups_of(tuple(columns)), BASE_GROUP)):
            entry = self.built.get(group, {}).get(base.partition)
            entry = self.files.entries[group][base.partition] if entry is None else entry
            groups.append((self.files.groups[group], entry))
        return PartitionSource(base, tuple(groups))


@dataclass(frozen=True, slots=True)
class StateRequest:
    """States that one transformer needs, and the table and columns they are summarised from."""

    transformer: Transformer
    table: Available
    columns: tuple[str, ...]
    needs: Sequence[StateNeed]


def prepare_states(
    requests: Sequence[StateRequest], place: Workplace, executor: Executor, *, check: bool = False
) -> None:
    """Compute and keep every state of the requests that is not kept yet.

    Parameters
    ----------
    requests : sequence of StateRequest
    place : Workplace
    executor : Executor
    check : bool
        Read those that are kept, and compute again what is damaged. Done anyway if combining meets
        a damaged one.
    """
    states = StateStore(place.store)
    if not check:
        try:
            _prepare(requests, place, executor, states, states.has)
        except StateLostError:  # logged when it was found; gone now, others may be damaged as well
            check = True
    if check:
        _prepare(requests, place, executor, states, states.is_sound)


def prepare_summaries(
    requests: Sequence[StateRequest], place: Workplace, executor: Executor
) -> None:
    """Compute and keep the summaries that the requests' needs name and that are not kept yet."""
    tasks = _summarize_tasks(requests, place, StateStore(place.store).has)
    if tasks:
        executor.run(summarize_partition, tasks, label="summarize")


def prepared_state(request: StateRequest, place: Workplace) -> State:
    """Return the one state that a request needs, computed if it is not kept."""
    (need,) = request.needs
    if not need.key:
        return EMPTY_STATE
    states = StateStore(place.store)
    prepare_states([request], place, place.executor)
    state = states.get(need.key)
    if state is None:
        prepare_states([request], place, place.executor, check=True)
        state = states.require(need.key)
    return state


def _prepare(
    requests: Sequence[StateRequest],
    place: Workplace,
    executor: Executor,
    states: StateStore,
    is_kept: Callable[[str], bool],
) -> None:
    pending = [
        StateRequest(one.transformer, one.table, one.columns, _pending(one.needs, is_kept))
        for one in requests
    ]
    tasks = _summarize_tasks(pending, place, is_kept)
    if tasks:
        executor.run(summarize_partition, tasks, label="summarize")
    for request in pending:
        if request.transformer.scope is Scope.FIT:
            _fit(request, states)
        else:
            _scan(request, states)


def _pending(needs: Sequence[StateNeed], is_kept: Callable[[str], bool]) -> list[StateNeed]:
    distinct = {need.key: need for need in needs if need.key}
    return [need for key, need in distinct.items() if not is_kept(key)]


def _summarize_tasks(
    requests: Sequence[StateRequest], place: Workplace, is_kept: Callable[[str], bool]
) -> list[SummarizeTask]:
    """Return one task per partition, for all summaries of it that are not kept."""
    tables: dict[str, Available] = {}
    work: dict[tuple[str, int], dict[str, SummaryWork]] = defaultdict(dict)
    for request in requests:
        files = request.table.files
        tables[files.name] = request.table
        for one in {
            member.key: member for need in request.needs for member in need.members
        }.values():
            if is_kept(one.key):
                continue
            columns = request.columns
            if one.time_range is not None and files.schema.time is not None:
                columns = tuple(dict.fromkeys((*columns, files.schema.time)))
            work[files.name, one.partition][one.key] = SummaryWork(
                request.transformer, columns, one.key, one.time_range
            )
    tasks = []
    for (name, position), wanted in sorted(work.items()):
        columns = tuple(column for one in wanted.values() for column in one.columns)
        tasks.append(
            SummarizeTask(
                place.store.url,
                place.engine,
                tables[name].at(position, columns),
                tables[name].files.schema,
                tuple(wanted.values()),
            )
        )
    return tasks


def _fit(request: StateRequest, states: StateStore) -> None:
    for need in request.needs:
        combined = _combined(request.transformer, need, states)
        states.put(need.key, request.transformer.finish(combined))


def _scan(request: StateRequest, states: StateStore) -> None:
    """Combine prefix states in table order, each from the one before it where possible."""
    state: State = EMPTY_STATE
    done: StateNeed | None = None
    for need in sorted(request.needs, key=lambda one: one.members[-1].partition):
        if done is not None and _continues(done, need):
            for one in need.members:
                if one.partition > done.members[-1].partition:
                    summary = states.require(one.key)
                    state = request.transformer.combine(state, summary)
        else:
            state = _combined(request.transformer, need, states)
        states.put(need.key, state)
        done = need


def _continues(done: StateNeed, need: StateNeed) -> bool:
    """Whether ``need`` is ``done`` with further summaries at its end (some at its start may go).

    What went lies beyond the transformer's reach of everything that follows, so a state that still
    holds some of it gives the same values.
    """
    last = done.members[-1]
    return last in need.members or need.members[0].partition == last.partition + 1


def _combined(transformer: Transformer, need: StateNeed, states: StateStore) -> State:
    state: State = EMPTY_STATE
    for one in need.members:
        state = transformer.combine(state, states.require(one.key))
    return state
