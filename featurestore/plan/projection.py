"""What a build will cost in bytes, step by step, known before it starts.

A build takes each level of features in three steps: missing summaries are computed, states are
combined, values are computed and written. A step is tasks; a task is one partition, or one state to
be combined. Its bytes are the inputs, the other table's rows, the state, what the transformer needs on
top, and the outputs; of several features that share a task's inputs, those of the one that needs most.
``Extents`` knows the sizes, ``costs`` how they add up, ``packing`` which features share a task.

Always true: nothing but metadata is read. What is reserved, and how many tasks run at once, is known
where they run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.plan.definition import Feature
from featurestore.plan.extents import Extents
from featurestore.plan.learner_sizes import members_of
from featurestore.plan.packing import loads
from featurestore.plan.slicing import Work
from featurestore.plan.staleness import Assessment
from featurestore.plan.states import StateNeed, Summary
from featurestore.plan.table_files import TableFiles
from featurestore.storage.states import StateStore

SUMMARIZE: Final = "summarize"
COMBINE: Final = "combine"
APPLY: Final = "apply"


@dataclass(frozen=True, slots=True)
class TaskCost:
    """What one task needs at most.

    Parameters
    ----------
    partition : str
    bytes : int
    feature : tuple of str
        Columns of the feature that needs the most of it.
    partition_bytes : int
        Decoded size of the partition's ingested columns; 0 if it cannot be cut.
    works : tuple of Work
        What it does.
    scratch_bytes : int
        The most scratch space it needs.
    """

    partition: str
    bytes: int
    feature: tuple[str, ...] = ()
    partition_bytes: int = 0
    works: tuple[Work, ...] = ()
    scratch_bytes: int = 0

    def largest_partition(self, room: int, most: int | None = None) -> int:
        """Return how large a partition may be to need no more than ``room``; 0 if none is so small.

        Parameters
        ----------
        room : int
        most : int, optional
            More is not asked for.
        """
        high = self.partition_bytes if most is None else min(most, self.partition_bytes)
        if not high or self._fits(high, room):
            return high
        low = 0
        while high - low > max(1, high // 64):
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle, room) else (low, middle)
        return low

    def _fits(self, size: int, room: int) -> bool:
        share = size / self.partition_bytes
        return all(one.of_a_part(share).least.bytes <= room for one in self.works)


@dataclass(frozen=True, slots=True)
class StepProjection:
    """What one step of a build costs.

    Parameters
    ----------
    work : {"summarize", "combine", "apply"}
        States are combined one after the other where the build was called; the rest runs side by side.
    level : int
        From 1 on.
    features : tuple of Feature
    tasks : tuple of TaskCost
        In the order in which they are handed out.
    rows : int
        Read; 0 when combining.
    output_bytes : int
        The most that is written, decoded.
    """

    work: str
    level: int
    features: tuple[Feature, ...]
    tasks: tuple[TaskCost, ...]
    rows: int
    output_bytes: int

    @property
    def costs(self) -> tuple[int, ...]:
        """Bytes per task."""
        return tuple(one.bytes for one in self.tasks)

    @property
    def scratch_bytes(self) -> int:
        """The most scratch space that is needed at once."""
        return max((one.scratch_bytes for one in self.tasks), default=0)

    @property
    def partitions(self) -> int:
        """How many partitions are read; when combining, how many states are put together."""
        if self.work == COMBINE:
            return len(self.tasks)
        return len({one.partition for one in self.tasks})

    @property
    def largest(self) -> TaskCost:
        return max(self.tasks, key=lambda one: one.bytes)


@dataclass(frozen=True, slots=True)
class BuildProjection:
    """What a build costs.

    Parameters
    ----------
    steps : tuple of StepProjection
        Those that have something to do, in order.
    room : int, optional
        The bytes that tasks were to stay within, where they can be divided.
    """

    steps: tuple[StepProjection, ...]
    room: int | None = None

    @property
    def fits(self) -> bool:
        """Whether all tasks but those that combine stay within the room they were made for."""
        room = self.room
        tasks = [one for step in self.steps if step.work != COMBINE for one in step.tasks]
        return room is not None and all(one.bytes <= room for one in tasks)


def project(
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    assessments: Mapping[str, Sequence[Assessment]],
    states: StateStore,
    room: int | None = None,
    at_once: int = 1,
    only: Collection[str] | None = None,
) -> BuildProjection:
    """Return what building everything that is not fresh costs.

    Parameters
    ----------
    files : TableFiles
        The table as it will be, new features included.
    sources : mapping of str to TableFiles
    assessments : mapping of str to sequence of Assessment
    states : StateStore
        Asked for the sizes of what is kept.
    room : int, optional
        Bytes that a task may take; what needs more is divided, as far as it can be.
    at_once : int
        Tasks that had better fit together.
    only : collection of str, optional
        The groups that count; what they read is as large as if all were built.
    """
    extents = Extents(files, sources, assessments, states)
    steps = []
    for number, level in enumerate(files.graph.levels, 1):
        todo = {
            feature: _unfinished(assessments[feature.group])
            for feature in level
            if only is None or feature.group in only
        }
        todo = {feature: positions for feature, positions in todo.items() if positions}
        if todo:
            found = _Level(files, extents, assessments, number, todo, room, at_once)
            steps += [
                one for one in (found.summarize(), found.combine(), found.apply()) if one.tasks
            ]
    return BuildProjection(tuple(steps), room)


def _unfinished(assessments: Sequence[Assessment]) -> list[int]:
    return [position for position, one in enumerate(assessments) if not one.is_fresh]


@dataclass(frozen=True, slots=True)
class _Level:
    """The features of one level, and the partitions in which they have to be computed."""

    files: TableFiles
    extents: Extents
    assessments: Mapping[str, Sequence[Assessment]]
    number: int
    todo: Mapping[Feature, Sequence[int]]
    room: int | None
    at_once: int

    def _needs(self, feature: Feature) -> list[StateNeed]:
        """Return the distinct states that are needed and not kept."""
        found = self.assessments[feature.group]
        needs = {found[one].need.key: found[one].need for one in self.todo[feature]}
        return [need for key, need in needs.items() if key and not self.extents.is_kept(key)]

    def summarize(self) -> StepProjection:
        """Return the tasks that compute missing summaries: one per partition for all features."""
        tables: dict[str, TableFiles] = {}
        work: dict[tuple[str, int], dict[Feature, list[Summary]]] = defaultdict(
            lambda: defaultdict(list)
        )
        seen = set()  # features of one kind may share their summaries
        for feature in self.todo:
            files, _ = self.extents.learner(feature)
            tables[files.name] = files
            for one in members_of(self._needs(feature)):
                if not self.extents.is_kept(one.key) and one.key not in seen:
                    seen.add(one.key)
                    work[files.name, one.partition][feature].append(one)
        tasks, rows, features = [], 0, dict[Feature, None]()
        for (name, position), wanted in sorted(work.items(), key=lambda item: item[0]):
            works = [
                self.extents.summary_work(one, position, cut=any(part.time_range for part in parts))
                for one, parts in wanted.items()
            ]
            tasks += self._tasks(tables[name], position, list(wanted), works)
            rows += tables[name].base[position].rows
            features.update(dict.fromkeys(wanted))
        return StepProjection(SUMMARIZE, self.number, tuple(features), tuple(tasks), rows, 0)

    def combine(self) -> StepProjection:
        """Return the states that are put together, each from the one before it where possible."""
        tasks, features = [], []
        for feature in self.todo:
            needs = self._needs(feature)
            if not needs:
                continue
            features.append(feature)
            files, _ = self.extents.learner(feature)
            sizes = self.extents.learnt(feature)
            for need in needs:
                way = sizes.combining(need, self.room)
                at = files.base[need.members[-1].partition].partition if need.members else ""
                tasks.append(
                    TaskCost(at, way.bytes, feature.names, scratch_bytes=way.scratch_bytes)
                )
        return StepProjection(COMBINE, self.number, tuple(features), tuple(tasks), 0, 0)

    def apply(self) -> StepProjection:
        """Return the tasks that compute values: one per partition for all features."""
        work: dict[int, list[Feature]] = defaultdict(list)
        outputs = rows = 0
        for feature, positions in self.todo.items():
            for position in positions:
                work[position].append(feature)
                outputs += self.extents.output_bytes(feature, position)
        tasks = []
        for position, features in sorted(work.items()):
            works = [self.extents.work(one, position) for one in features]
            tasks += self._tasks(self.files, position, features, works)
            rows += self.files.base[position].rows
        return StepProjection(APPLY, self.number, tuple(self.todo), tuple(tasks), rows, outputs)

    def _tasks(
        self, files: TableFiles, position: int, features: Sequence[Feature], works: Sequence[Work]
    ) -> list[TaskCost]:
        """Return the tasks that do a verb of each of some features on one partition."""
        base = files.base[position]
        # All rows of one time stay in one partition, and so do those of another table.
        cuttable = files.name == self.files.name and (
            base.time_min is None or base.time_min != base.time_max
        )
        return [
            TaskCost(
                base.partition,
                one.bytes,
                features[one.most].names,
                base.decoded_bytes if cuttable else 0,
                tuple(works[verb] for verb in one.verbs),
            )
            for one in loads(works, self.room, self.at_once)
        ]
