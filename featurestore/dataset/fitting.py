"""Learning a pipeline from the training rows, out of core.

One pass over the training partitions per level of dependency, however many steps there are. Each
partition's contribution (``summarize``) is kept in the store under a fingerprint of all it depends
on: the step, the values it reads, what earlier steps learnt, and which rows of the partition belong
to the part. So another split reads only the partitions it cuts, rows that were appended are read
alone, and fitting again reads nothing.

What all passes take is looked at before the first one, so that what does not fit is refused before anything
was learnt; of what is learnt on the way, only how large a vocabulary gets is not known by then. What was
learnt stays, so that with a higher limit the work goes on where it ended.

States are combined in table order, whichever partition finished first: equal data, equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

from featurestore.allocators import release_freed
from featurestore.dataset.memory import (
    Lesson,
    StepCall,
    kept_of,
    learning_bytes,
    slice_limits,
    sliced_bytes,
)
from featurestore.dataset.selection import Selection, cut, keep
from featurestore.dataset.view import ReadTask, TableView
from featurestore.engines.protocol import Engine
from featurestore.execution.combining import learn
from featurestore.execution.cutting import CutTask, Rows, slices
from featurestore.execution.merging import CombineWork
from featurestore.execution.room import Need
from featurestore.execution.task_costs import read_extent
from featurestore.execution.tasks import with_row_count
from featurestore.fingerprint import Json, fingerprint
from featurestore.plan.slicing import SliceLimits
from featurestore.schema import TableSchema
from featurestore.storage.states import StateLostError, StateStore
from featurestore.transforms.base import EMPTY_STATE, Partition, Scope, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.pipeline import FittedPipeline, Pipeline

_SMALL_STATES: Final = 4 * 2**20
_ENDLESS: Final = 2**62
_CARRIED: Final = 4
_FEWER: Final = "use fewer features, or ingest with a smaller partition_bytes"


@dataclass(frozen=True, slots=True)
class Step:
    """One transformer of a pipeline, at its place.

    Parameters
    ----------
    transformer : Transformer
    before, after : TableSchema
        The columns it sees, and those there are once it was applied.
    columns : tuple of str
        Columns of the table it learns from, through earlier steps too.
    needs : tuple of int
        Positions of the earlier steps that what it learns depends on, directly or not.
    """

    transformer: Transformer
    before: TableSchema
    after: TableSchema
    columns: tuple[str, ...]
    needs: tuple[int, ...]

    def names(self) -> list[Json]:
        """Return what its rules (a selector, the time column) stand for among its columns.

        A specification has the rule only, and the same rule means other columns elsewhere.
        """
        learnt, read = (
            list(self.transformer.learns_from(self.before)),
            list(self.transformer.inputs(self.before)),
        )
        return [learnt, read, list(self.before.key), self.before.time]


@dataclass(frozen=True, slots=True)
class FittedStep:
    """A step and where what it learnt is kept; ``key`` is empty for steps that learn nothing."""

    step: Step
    key: str


@dataclass(frozen=True, slots=True)
class Summary:
    """One step's contribution from one partition, to be computed and kept under ``key``."""

    position: int
    step: Step
    key: str


@dataclass(frozen=True, slots=True)
class SummarizeTask:
    """All contributions wanted of one partition: one read serves them all.

    Parameters
    ----------
    source : ReadTask
    columns : tuple of str
    selection : Selection
        Which of its rows are learnt from.
    earlier : tuple of (int, FittedStep)
        Steps to apply on the way, by position.
    wanted : tuple of Summary
    limits : SliceLimits, optional
        Of the slices in which the rows are gone through; None for all at once.
    bytes, memory_limit : int
        What a slice needs, and the limit it was made so small for, for messages.
    """

    source: ReadTask
    columns: tuple[str, ...]
    selection: Selection
    earlier: tuple[tuple[int, FittedStep], ...]
    wanted: tuple[Summary, ...]
    limits: SliceLimits | None = None
    bytes: int = 0
    memory_limit: int = 0


def fit_pipeline(
    pipeline: Pipeline,
    inputs: TableSchema,
    view: TableView,
    selection: Selection,
    then: Callable[[int], int] | None = None,
) -> FittedPipeline:
    """Learn a pipeline from the selected rows.

    Parameters
    ----------
    pipeline : Pipeline
    inputs : TableSchema
        The columns it starts from.
    view : TableView
        With these columns, and those the selection reads.
    selection : Selection
        The training part.
    then : callable, optional
        Tells what reading the part takes of so many bytes: a limit that is named does for that too.

    Raises
    ------
    DefinitionError
        If there is no row to learn from.
    MemoryLimitError
        If a pass does not fit; before the first one begins.
    """
    states = StateStore(view.store)
    try:
        return _fit_steps(pipeline, inputs, view, selection, states, states.has, then)
    except StateLostError:  # one that was kept is damaged, and gone now: look at all of them
        return _fit_steps(pipeline, inputs, view, selection, states, states.is_sound, then)


def _fit_steps(
    pipeline: Pipeline,
    inputs: TableSchema,
    view: TableView,
    selection: Selection,
    states: StateStore,
    is_kept: Callable[[str], bool],
    then: Callable[[int], int] | None,
) -> FittedPipeline:
    steps = _steps(pipeline, inputs)
    fitted = {
        position: FittedStep(step, "")
        for position, step in enumerate(steps)
        if step.transformer.scope is not Scope.FIT
    }
    levels = []
    for positions in pipeline.passes(inputs):
        batch = {position: steps[position] for position in positions}
        levels.append(_level(batch, fitted, view, selection, is_kept))
        fitted |= levels[-1].done
    reserved = _require_all(levels, view, states, then)
    for level in levels:
        _run(level.tasks, view, states, reserved)
        _combine(level, view, states)
    learnt = (fitted[position].key for position in range(len(steps)))
    return FittedPipeline(
        pipeline,
        inputs,
        tuple(states.require(key) if key else EMPTY_STATE for key in learnt),
    )


def _steps(pipeline: Pipeline, inputs: TableSchema) -> tuple[Step, ...]:
    schemas = pipeline.schemas(inputs)
    return tuple(
        Step(transformer, before, after, columns, tuple(sorted(needs)))
        for transformer, before, after, columns, needs in zip(
            pipeline.steps, schemas[:-1], schemas[1:],
            pipeline.learns_from(inputs), pipeline.needs(inputs), strict=True,
        )
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Level:
    """Steps that depend on none of each other, learnt in one pass over the data.

    Parameters
    ----------
    open_ : mapping of int to Step
        Those that are not learnt yet, by position.
    members : mapping of int to list of str
        The keys of the partitions' contributions, in their order.
    done : mapping of int to FittedStep
        All of them, as they will be.
    tasks : sequence of SummarizeTask
        The contributions that are not kept.
    """

    open_: Mapping[int, Step]
    members: Mapping[int, Sequence[str]]
    done: Mapping[int, FittedStep]
    tasks: Sequence[SummarizeTask]


def _level(
    batch: Mapping[int, Step],
    fitted: Mapping[int, FittedStep],
    view: TableView,
    selection: Selection,
    is_kept: Callable[[str], bool],
) -> _Level:
    """Return what is left to be learnt of some steps; nothing of it has to be there yet."""
    parts = view.touching(selection)
    members = {
        position: [_summary_key(step, fitted, view, i, within) for i, within in parts]
        for position, step in batch.items()
    }
    done = {
        position: FittedStep(
            step,
            fingerprint("fit", step.transformer.fingerprint(), step.names(), members[position]),
        )
        for position, step in batch.items()
    }
    open_ = {position: step for position, step in batch.items() if not is_kept(done[position].key)}
    tasks = []
    for number, (i, within) in enumerate(parts):
        # Steps whose states are the same (mean and deviation, smallest and largest) learn it once.
        wanted = {
            members[position][number]: Summary(position, step, members[position][number])
            for position, step in open_.items()
            if not is_kept(members[position][number])
        }
        if wanted:
            tasks.append(_task(tuple(wanted.values()), fitted, view, i, within))
    return _Level(open_, members, done, tasks)


def _require_all(
    levels: Sequence[_Level],
    view: TableView,
    states: StateStore,
    then: Callable[[int], int] | None,
) -> int:
    """Refuse what does not fit in any pass; return what is held without work.

    Raises
    ------
    MemoryLimitError
    """
    tasks = [task for level in levels for task in level.tasks]
    if not tasks:
        return view.reserved_bytes
    sized = _sized(tasks, view, states)
    return view.require_largest([need for _, need in sized], _FEWER, then=then)


def _sized(
    tasks: Sequence[SummarizeTask], view: TableView, states: StateStore, before: int | None = None
) -> list[tuple[SummarizeTask, Need]]:
    """Return tasks cut to what memory is left, with what they take; see ``view.reserved_since``."""
    whole = max(sized_task(task, states, _ENDLESS)[1].bytes for task in tasks)
    left = view.memory_limit - view.reserved_since(before, whole)
    return [sized_task(task, states, left) for task in tasks]


def _run(tasks: Sequence[SummarizeTask], view: TableView, states: StateStore, before: int) -> None:
    """Compute and keep the contributions of all tasks, in slices where a partition does not fit.

    ``before`` is what was held without work when all passes were judged.
    """
    if not tasks:
        return
    sized = _sized(tasks, view, states, before)
    view.run(
        summarize_part,
        [replace(task, memory_limit=view.memory_limit) for task, _ in sized],
        label="fit pipeline",
        needs=[need for _, need in sized],
        instead=_FEWER,
        before=before,
    )


def sized_task(task: SummarizeTask, states: StateStore, within: int) -> tuple[SummarizeTask, Need]:
    """Return a task cut so that it takes at most ``within`` bytes, and what it then takes."""
    source, table = task.source.source, task.source.schema
    extent, rows = read_extent(source, task.columns), kept_of(task.selection, source.rows)
    kept = states.sizes({one.key for _, one in task.earlier if one.key})
    steps = [
        StepCall(
            one.step.transformer,
            one.step.before,
            kept.get(one.key, _expected(one, extent)),
        )
        for _, one in task.earlier
    ]
    lessons = [
        Lesson(
            StepCall(one.step.transformer, one.step.before),
            tuple(one.step.transformer.learns_from(one.step.before)),
        )
        for one in task.wanted
    ]
    work = [one.transformer for one in steps] + [one.step.transformer for one in lessons]

    def needs(one: Extent) -> int:
        return learning_bytes(table, one, rows, steps, lessons)

    # In slices: the state so far, a slice's, and both combined, while they are put together.
    carried = _CARRIED * sum(
        one.step.transformer.state_bytes(one.step.before, _learnt(one, extent)) for one in lessons
    )
    whole = needs(extent) <= within
    limits = None if whole else slice_limits(table, extent, work, needs, within - carried)
    size = sliced_bytes(table, extent, limits, needs) + (0 if limits is None else carried)
    need = Need(f"learning {_kinds(lessons)}", size, source.partition)
    return replace(task, limits=limits, bytes=size), need


def _expected(fitted: FittedStep, extent: Extent) -> int:
    """Return what a step will have learnt, as far as that can be told of one partition."""
    step = fitted.step
    if not fitted.key or step.transformer.state_order():  # how many values there are nobody knows
        return 0
    columns = tuple(step.transformer.learns_from(step.before))
    lesson = Lesson(StepCall(step.transformer, step.before), columns)
    return step.transformer.state_bytes(step.before, _learnt(lesson, extent))


def _learnt(lesson: Lesson, extent: Extent) -> Extent:
    sizes = {name: extent.column_bytes.get(name, 0) for name in lesson.columns}
    return Extent(extent.rows, sizes, extent.widest_row)


def _kinds(lessons: Sequence[Lesson]) -> str:
    return " and ".join(dict.fromkeys(type(one.step.transformer).__name__ for one in lessons))


def _combine(level: _Level, view: TableView, states: StateStore) -> None:
    """Combine what was learnt of the partitions, in their order, and keep the results.

    How large the states get is known by now, not before: a vocabulary may be the same everywhere.
    """
    sizes = {one: states.sizes(set(level.members[one])) for one in level.open_}
    if not sizes:
        return

    def work(position: int, room: int | None, beside: int = 0) -> CombineWork:
        transformer, keys = level.open_[position].transformer, level.members[position]
        return CombineWork.of(transformer, keys, sizes[position], room, beside)

    room = view.room_for(max(work(one, None).way.bytes for one in sizes))
    site = view.own_site
    beside = site.reserved_bytes - site.own_bytes
    found = {one: work(one, room, beside) for one in sizes}
    for one in found.values():
        one.require(view.memory_limit, site.reserved_bytes, view.scratch)
    for position, one in found.items():
        need = Need(one.what, one.way.bytes)
        # What is small is not looked at: it would take longer than to combine it.
        small = one.way.bytes <= _SMALL_STATES
        with nullcontext() if small else view.holding(need, "learn from fewer columns"):
            learn(one, level.done[position].key, states, view.memory_limit, view.scratch)


def _summary_key(
    step: Step, fitted: Mapping[int, FittedStep], view: TableView, i: int, within: Selection
) -> str:
    source = view.partitions[i]
    return fingerprint(
        "pipeline summary",
        step.transformer.state_fingerprint(),
        step.names(),
        [[fitted[one].step.transformer.fingerprint(), fitted[one].key] for one in step.needs],
        source.provenance(step.columns),
        "all" if within.everything else within.fingerprint,
        source.provenance(within.columns(view.schema)),
    )


def _task(
    wanted: tuple[Summary, ...],
    fitted: Mapping[int, FittedStep],
    view: TableView,
    i: int,
    within: Selection,
) -> SummarizeTask:
    needed = sorted({one for summary in wanted for one in summary.step.needs})
    columns = [name for summary in wanted for name in summary.step.columns]
    columns += within.columns(view.schema)
    return SummarizeTask(
        view.task(i),
        with_row_count(columns, view.schema),
        within,
        tuple((position, fitted[position]) for position in needed),
        wanted,
    )


def summarize_part(task: SummarizeTask) -> None:
    """Compute and keep one partition's contributions. Runs where the data is."""
    states, learnt = StateStore(task.source.store), dict[int, State]()
    transformers = {one.position: one.step.transformer for one in task.wanted}
    for rows in _slices(task):
        for position, state in _summaries(task, rows, states):
            before = learnt.get(position, EMPTY_STATE)
            learnt[position] = transformers[position].combine(before, state)
            del before, state
        if rows is not None:
            release_freed()
    for one in task.wanted:
        states.put(one.key, learnt.pop(one.position, EMPTY_STATE))


def _slices(task: SummarizeTask) -> Iterator[Rows | None]:
    if task.limits is None:
        yield None
        return
    one = task.source
    what = "what a pipeline learns"
    yield from slices(
        one.store,
        CutTask(one.url, one.source, one.schema, task.limits, what, task.bytes, task.memory_limit),
    )


def _summaries(
    task: SummarizeTask, rows: Rows | None, states: StateStore
) -> Iterator[tuple[int, State]]:
    """Yield what each wanted step learns of some rows, with its position."""
    engine = task.source.engine
    partition, mask = cut(task.source.read(task.columns, rows), task.selection, engine)
    # What another step learns from these rows, it learns from what they are in the training part.
    partition = replace(partition, learnt_from=True)
    earlier, wanted = dict(task.earlier), {one.position: one for one in task.wanted}
    for position in sorted({*earlier, *wanted}):
        if position in wanted:
            one = wanted[position]
            seen = Partition(partition.frame, one.step.before, partition.tensors)
            seen = keep(seen, mask, engine)
            if seen.rows:
                yield position, one.step.transformer.summarize(seen, engine)
            del seen
        if position in earlier:
            fitted = earlier[position]
            state = states.require(fitted.key) if fitted.key else EMPTY_STATE
            partition = apply_step(fitted.step, state, partition, engine)


def apply_step(step: Step, state: State, partition: Partition, engine: Engine) -> Partition:
    """Return the partition after one step."""
    seen = replace(partition, schema=step.before)
    columns = step.transformer.apply(seen, state, engine)
    return seen.replace(columns, step.after)
