"""States made ready: missing summaries computed, then combined in table order.

Summaries of all transformers share one pass over each table. Combining happens here, one state at a
time, in a fixed order, so that the same data gives the same bits.

A state that is kept is taken to be sound until it is read: looking at all of them would cost more than
most builds. When one turns out to be damaged, everything that is needed is read once and what is damaged
is computed again.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import pyarrow as pa

from featurestore.enforcement import Enforcement
from featurestore.execution.chaining import Chain
from featurestore.execution.combining import folded, learn
from featurestore.execution.dask import Executor
from featurestore.execution.handing import state_among
from featurestore.execution.merging import CombineWork
from featurestore.execution.reading import PartitionSource
from featurestore.execution.sites import Site
from featurestore.execution.task_costs import packed_summaries
from featurestore.execution.tasks import (
    SummarizeTask,
    SummaryWork,
    summarize_partition,
)
from featurestore.plan.ahead import SETTLED, settled_table
from featurestore.plan.combining import chains_by_ranges
from featurestore.plan.learner_sizes import members_of
from featurestore.plan.states import StateNeed, Summary
from featurestore.plan.table_files import TableFiles
from featurestore.schema import TableSchema
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateLostError, StateStore
from featurestore.transforms.base import EMPTY_STATE, Scope, State, Transformer


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and with what work on a store runs."""

    store: ObjectStore
    engine: str
    executor: Executor
    memory_limit: int
    # Held as long as anything is that works here.
    enforcement: Enforcement | None = field(default=None, compare=False)
    scratch: Scratch = field(default_factory=Scratch, compare=False)

    def __post_init__(self) -> None:
        # One limit: whoever changes that of a workplace changes that of its tasks.
        object.__setattr__(self, "executor", self.executor.within(self.memory_limit, self.engine))


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

    def widest_row(self, columns: Sequence[str]) -> int:
        """Return the most bytes of a row of any partition, as recorded of the files of these columns."""
        positions = range(len(self.files.base))
        return max(
            (self.files.widest_row(one, columns, self.built) for one in positions), default=0
        )


@dataclass(frozen=True, slots=True)
class StateRequest:
    """States that one transformer needs, and the table and columns they are summarised from.

    Parameters
    ----------
    transformer : Transformer
    schema : TableSchema
        Of its own table.
    table : Available
    columns : tuple of str
    needs : sequence of StateNeed
        In table order.
    """

    transformer: Transformer
    schema: TableSchema
    table: Available
    columns: tuple[str, ...]
    needs: Sequence[StateNeed]


def prepare_states(
    requests: Sequence[StateRequest],
    place: Workplace,
    executor: Executor,
    *,
    check: bool = False,
    planned: bool = False,
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
    planned : bool
        Whether it was found before that a plan with these states fits the memory limit.

    Raises
    ------
    MemoryLimitError
        Before anything is computed, if a summary does not fit and it was not planned.
    """
    states = StateStore(place.store)
    if not check:
        try:
            _prepare(requests, place, executor, states.has, planned)
        except StateLostError:  # logged when it was found; gone now, others may be damaged as well
            check = True
    if check:
        _prepare(requests, place, executor, states.is_sound, planned)


def prepare_summaries(
    requests: Sequence[StateRequest], place: Workplace, executor: Executor
) -> None:
    """Compute and keep the summaries that the requests' needs name and that are not kept yet."""
    _summarize(requests, place, executor, StateStore(place.store).has, planned=False)


def prepared_state(request: StateRequest, place: Workplace, keys: pa.Table | None = None) -> State:
    """Return the one state that a request needs, computed if it is not kept.

    Parameters
    ----------
    request : StateRequest
    place : Workplace
    keys : pyarrow.Table, optional
        Of a keyed state, only the rows of these are returned.
    """
    (need,) = request.needs
    if not need.key:
        return EMPTY_STATE
    states = StateStore(place.store)
    prepare_states([request], place, place.executor)
    try:
        return state_among(states, need.key, keys)
    except StateLostError:  # logged when it was found; gone now
        prepare_states([request], place, place.executor, check=True)
        return state_among(states, need.key, keys)


def _prepare(
    requests: Sequence[StateRequest],
    place: Workplace,
    executor: Executor,
    is_kept: Callable[[str], bool],
    planned: bool,
) -> None:
    pending = [replace(one, needs=_pending(one.needs, is_kept)) for one in requests]
    _summarize(pending, place, executor, is_kept, planned)
    pending = [one for one in pending if one.needs]
    if not pending:
        return
    here = executor.of_this_thread()
    site = executor.sites()[0]  # what a client's workers on this host hold counts as well
    combinations = [_Combination(one, place, site) for one in pending]
    with ExitStack() as files:
        for combination in combinations:
            combination.require()
            files.callback(combination.close)
        work = [(one, need) for one in combinations for need in one.needs]
        here.run(_combine, work, label="combine states", costs=[one.cost for one, _ in work])


def _summarize(
    requests: Sequence[StateRequest],
    place: Workplace,
    executor: Executor,
    is_kept: Callable[[str], bool],
    planned: bool,
) -> None:
    """Compute and keep the summaries that are not kept yet."""
    tasks = _summarize_tasks(requests, place, is_kept)
    if tasks:
        schemas = {member.key: one.schema for one in requests for member in members_of(one.needs)}
        packed = packed_summaries(tasks, schemas, executor, planned)
        executor.run(
            summarize_partition,
            packed.tasks,
            label="summarize",
            costs=packed.costs,
            names=packed.names,
        )


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
        for one in members_of(request.needs):
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


class _Combination:
    """The states of one request, put together one after the other.

    Prefix states are made in table order, each from the one before it where possible; suffix states in
    the opposite order, each from the one after it.
    """

    def __init__(self, request: StateRequest, place: Workplace, site: Site) -> None:
        self._transformer = request.transformer
        self._states = StateStore(place.store)
        self._limit = place.memory_limit
        self._reserved = site.reserved_bytes
        self._scratch = place.scratch
        self._base = request.table.files.base
        self._state: State = EMPTY_STATE
        self._done: StateNeed | None = None
        self.needs = list(request.needs)
        if request.transformer.scope is Scope.SUFFIX:
            self.needs.sort(key=_begin, reverse=True)
        elif request.transformer.scope is not Scope.FIT:
            self.needs.sort(key=lambda one: one.members[-1].partition)
        keys = [one.key for one in members_of(self.needs)]
        # Of one fit scope; of prefixes, what any of them may take.
        room = max(0, self._limit - self._reserved)
        # The budget of this host sees this process only.
        beside = site.reserved_bytes - site.own_bytes
        sizes = self._states.sizes(keys)
        self._work = CombineWork.of(self._transformer, keys, sizes, room, beside)
        self._chain = Chain(self._work, self._states, self._limit, room, self._scratch)

    @property
    def cost(self) -> int:
        return self._work.way.bytes

    def require(self) -> None:
        """Refuse what is known not to fit.

        Raises
        ------
        MemoryLimitError
        LimitError
        DiskFullError
        """
        self._work.require(self._limit, self._reserved, self._scratch)

    def make(self, need: StateNeed) -> None:
        """Make one state, the next in order, and keep it.

        Raises
        ------
        MemoryLimitError
            Before a combination that does not fit.
        """
        if self._transformer.scope is Scope.FIT:
            work = self._of(need.members)
            learn(work, need.key, self._states, self._limit, self._scratch)
            return
        if self._transformer.scope is Scope.SUFFIX:
            self._make_ahead(need)
            return
        new = need.members
        if self._done is not None and _continues(self._done, need):
            last = self._done.members[-1].partition
            new = tuple(one for one in need.members if one.partition > last)
        else:
            self._state = EMPTY_STATE  # the one before goes first
            self._chain.restart()
        if chains_by_ranges(self._transformer):
            keys = [one.key for one in new]
            self._chain.extend(keys, need.key, last=need is self.needs[-1])
        else:
            self._state = folded(self._of(new), self._state, self._states, self._limit)
            self._states.put(need.key, self._state)
        self._done = need

    def close(self) -> None:
        """Give back what lies in scratch space."""
        self._chain.restart()

    def _make_ahead(self, need: StateNeed) -> None:
        """Make a suffix state: of the rows after a partition, what it needs of them."""
        new = need.members
        if self._done is not None and _precedes(need, self._done):
            new = tuple(one for one in new if one.partition < _begin(self._done))
        else:
            self._state = EMPTY_STATE
        self._state = folded(self._of(new), self._state, self._states, self._limit, backwards=True)
        own = EMPTY_STATE if need.own is None else self._states.require(need.own.key)
        state, until = self._transformer.look_ahead(self._state, own, need.horizon)
        if until is not None:
            state = {**state, SETTLED: settled_table(need, self._base, until)}
        self._states.put(need.key, state)
        self._done = need if need.members else None

    def _of(self, members: Sequence[Summary]) -> CombineWork:
        return replace(self._work, keys=[one.key for one in members])


def _combine(work: tuple[_Combination, StateNeed]) -> None:
    combination, need = work
    combination.make(need)


def _continues(done: StateNeed, need: StateNeed) -> bool:
    """Whether ``need`` is ``done`` with further summaries at its end (some at its start may go).

    What went lies beyond the transformer's reach of everything that follows, so a state that still
    holds some of it gives the same values.
    """
    last = done.members[-1]
    return last in need.members or need.members[0].partition == last.partition + 1


def _begin(need: StateNeed) -> int:
    """Return where a suffix state begins; one of no rows at all needs no other, and comes first."""
    return need.members[0].partition if need.members else sys.maxsize


def _precedes(need: StateNeed, done: StateNeed) -> bool:
    """Whether ``need`` is ``done`` with further summaries before it (some at its end may go)."""
    if not need.members:
        return False
    first = done.members[0]
    return first in need.members or need.members[-1].partition == first.partition - 1
