"""The runner: turns a plan into tasks, level by level, and collects what they wrote.

Per level: the summaries that are missing are computed (one task per partition serves all
transformers), prefix and fit states are combined here in table order, then one task per partition
applies all features of the level. Whatever is finished is in the journal or the state store, so a
killed build finds it there and computes only the rest. Stale values whose state turns out to be the
old one are not computed but stamped anew (``reuse``).

Always true: nothing that readers see changes here; publishing is the caller's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from featurestore.execution.dask import Executor
from featurestore.execution.feasibility import require_feasible
from featurestore.execution.journal_keeper import keeping
from featurestore.execution.reuse import StoredValues
from featurestore.execution.states import Available, StateRequest, Workplace, prepare_states
from featurestore.execution.task_costs import packed_values
from featurestore.execution.tasks import (
    ApplyTask,
    ApplyWork,
    SourceRows,
    apply_partition,
)
from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature
from featurestore.plan.projection import BuildProjection
from featurestore.plan.staleness import Assessment
from featurestore.plan.table_files import TableFiles, source_of
from featurestore.storage.journal import Journal
from featurestore.storage.records import PartitionEntry
from featurestore.storage.states import StateLostError, StateStore
from featurestore.transforms.base import SourceTransformer


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build made.

    Parameters
    ----------
    entries : mapping of str to mapping of str to PartitionEntry
        Group, then partition id: the new values.
    journal_keys : tuple of str
        To be cleared once the values are published.
    computed, resumed, reused : int
        Partitions x features computed now, found finished in the journal, and found still right.
    bytes_written : int
        By this build, or by the interrupted one it goes on with.
    """

    entries: Mapping[str, Mapping[str, PartitionEntry]]
    journal_keys: tuple[str, ...]
    computed: int
    resumed: int
    reused: int
    bytes_written: int


class Build:
    """One run over a table: holds what was found and made so far.

    Parameters
    ----------
    place : Workplace
    files : TableFiles
        The table as it will be, new features included.
    sources : mapping of str to TableFiles
    assessments : mapping of str to tuple of Assessment
        Of :func:`~featurestore.plan.staleness.assess`.
    """

    def __init__(
        self,
        place: Workplace,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        assessments: Mapping[str, tuple[Assessment, ...]],
    ) -> None:
        self._place = place
        self._files = files
        self._sources = sources
        self._assessments = assessments
        self._journal = Journal(place.store, files.name)
        self._built: dict[str, dict[str, PartitionEntry]] = defaultdict(dict)
        self._stored = StoredValues(files, assessments, StateStore(place.store))
        self._reused: set[tuple[str, str]] = set()
        self._finished: dict[str, PartitionEntry] = {}
        self._widest: dict[tuple[str, tuple[str, ...]], int] = {}
        self._resumed = 0
        self._computed = 0

    def run(self, projection: BuildProjection) -> BuildResult:
        """Compute everything that is not fresh.

        Raises
        ------
        MemoryLimitError
            Before any work, if a partition does not fit the memory limit.
        """
        executor = self._place.executor
        require_feasible(projection, executor, self._place.scratch)
        keys = frozenset(
            self._journal_key(feature, position)
            for level in self._files.graph.levels
            for feature in level
            for position in self._not_fresh(feature)
        )
        self._finished = self._journal.finished(keys) if keys else {}
        for level in self._files.graph.levels:
            try:
                self._build_level(level, executor, check_states=False)
            except StateLostError:
                # A state that was kept is damaged, and gone now. Others may be as well, so all are
                # looked at; what was finished in the meantime is in the journal.
                self._finished = self._journal.finished(keys)
                self._build_level(level, executor, check_states=True)
        return BuildResult(
            {group: dict(entries) for group, entries in self._built.items() if entries},
            tuple(sorted(keys)),
            self._computed,
            self._resumed,
            len(self._reused),
            sum(
                file.bytes
                for group, entries in self._built.items()
                for partition, entry in entries.items()
                if (group, partition) not in self._reused
                for file in entry.all_files()
            ),
        )

    def _build_level(
        self, level: Sequence[Feature], executor: Executor, *, check_states: bool
    ) -> None:
        todo = {feature: self._remaining(feature) for feature in level}
        todo = {feature: positions for feature, positions in todo.items() if positions}
        if not todo:
            return
        self._prepare_states(todo, executor, check_states)
        todo = {feature: self._to_compute(feature, todo[feature]) for feature in todo}
        todo = {feature: positions for feature, positions in todo.items() if positions}
        if todo:
            self._apply(todo, executor)

    # --- what is left to do ------------------------------------------------------------------------

    def _not_fresh(self, feature: Feature) -> list[int]:
        found = enumerate(self._assessments[feature.group])
        return [position for position, one in found if not one.is_fresh]

    def _remaining(self, feature: Feature) -> list[int]:
        """Return the partitions that neither this build nor an interrupted one has finished."""
        remaining = []
        built = self._built[feature.group]
        for position in self._not_fresh(feature):
            if self._files.base[position].partition in built:
                continue
            entry = self._finished.get(self._journal_key(feature, position))
            if entry is None:
                remaining.append(position)
            else:
                built[entry.partition] = entry
                self._resumed += 1
        return remaining

    def _to_compute(self, feature: Feature, positions: Sequence[int]) -> list[int]:
        """Return the partitions whose values are not right already under another name."""
        todo = []
        for position in positions:
            entry = self._stored.still_right(feature, position, self._reused)
            if entry is None:
                todo.append(position)
            else:
                self._built[feature.group][entry.partition] = entry
                self._reused.add((feature.group, entry.partition))
        return todo

    def _journal_key(self, feature: Feature, position: int) -> str:
        provenance = self._assessments[feature.group][position].provenance
        partition = self._files.base[position].partition
        return fingerprint(feature.group, partition, provenance.fingerprint)

    def _prepare_states(
        self, todo: Mapping[Feature, list[int]], executor: Executor, check: bool
    ) -> None:
        requests = []
        for feature, positions in todo.items():
            table, columns = self._state_inputs(feature)
            needs = [self._assessments[feature.group][one].need for one in positions]
            requests.append(
                StateRequest(feature.transformer, self._files.schema, table, columns, needs)
            )
        prepare_states(requests, self._place, executor, check=check, planned=True)

    def _state_inputs(self, feature: Feature) -> tuple[Available, tuple[str, ...]]:
        joined = source_of(feature, self._files, self._sources)
        if joined is not None:
            return Available(joined[0], {}), joined[1]  # as published, its own table too
        return Available(self._files, self._built), feature.inputs

    # --- values ----------------------------------------------------------------------------------------

    def _apply(self, todo: Mapping[Feature, list[int]], executor: Executor) -> None:
        work: dict[int, list[ApplyWork]] = defaultdict(list)
        for feature, positions in todo.items():
            for position in positions:
                work[position].append(self._apply_work(feature, position))
        tasks = [
            self._apply_task(position, tuple(works)) for position, works in sorted(work.items())
        ]
        names = ", ".join(name for feature in todo for name in feature.names)

        def collect(_: int, entries: Mapping[str, PartitionEntry]) -> None:
            for group, entry in entries.items():
                self._built[group][entry.partition] = entry
                self._computed += 1

        label = names if len(names) <= 40 else f"{names[:37]}..."
        keys = {one.state_key for task in tasks for one in task.work if one.state_key}
        states = StateStore(self._place.store).sizes(keys)
        packed = packed_values(tasks, states, executor)
        threads = min(executor.workers, len(packed.tasks)) if executor.in_process else 0
        with keeping(self._journal, threads) as keeper:
            executor.run(
                apply_partition,
                [replace(task, keeper=keeper) for task in packed.tasks],
                label=label,
                costs=packed.costs,
                names=packed.names,
                on_result=collect,
            )

    def _apply_work(self, feature: Feature, position: int) -> ApplyWork:
        assessment = self._assessments[feature.group][position]
        transformer, own = feature.transformer, self._files.base[position]
        rows = None
        if isinstance(transformer, SourceTransformer):
            source = self._sources[transformer.source_table]
            columns = transformer.source_inputs(self._files.schema)
            rows = SourceRows(
                tuple(Available(source, {}).at(one, columns) for one in assessment.need.rows),
                columns,
                source.schema,
                self._widest_of(Available(source, {}), columns),
                transformer.source_compared(self._files.schema),
                transformer.source_window(self._files.schema, own.time_min, own.time_max).upper,
            )
        learner, names = self._state_inputs(feature)
        return ApplyWork(
            feature,
            assessment.provenance,
            assessment.need.key,
            rows,
            self._journal_key(feature, position),
            learnt_rows=learner.files.rows_between(*assessment.need.span(transformer.scope)),
            widest_row=self._widest_of(learner, names) if transformer.is_keyed else 0,
        )

    def _widest_of(self, table: Available, columns: tuple[str, ...]) -> int:
        """Return the most bytes of a row of any partition of a table, looked up once."""
        key = table.files.name, columns
        if key not in self._widest:
            self._widest[key] = table.widest_row(columns)
        return self._widest[key]

    def _apply_task(self, position: int, work: tuple[ApplyWork, ...]) -> ApplyTask:
        columns = [column for one in work for column in one.feature.inputs]
        return ApplyTask(
            self._place.store.url,
            self._place.engine,
            self._files.name,
            Available(self._files, self._built).at(position, columns),
            self._files.schema,
            work,
        )
