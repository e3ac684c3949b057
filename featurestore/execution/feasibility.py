"""A projected build held against a memory limit: what each step peaks at, and whether it can run.

What does not fit is refused before anything runs, with what would do: the smallest limit, and the
largest partitions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import Final

from featurestore.errors import DiskFullError, LimitError
from featurestore.execution.budget import DRIFT
from featurestore.execution.dask import Executor, projected_peak
from featurestore.execution.room import Need, readable_bytes, remedy, require_room
from featurestore.execution.sites import Site
from featurestore.plan.costs import THREAD_BYTES
from featurestore.plan.projection import COMBINE, BuildProjection, StepProjection, project
from featurestore.plan.staleness import Assessment
from featurestore.plan.table_files import TableFiles
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateStore

_KIB: Final = 2**10


@dataclass(frozen=True, slots=True)
class StepPeak:
    """A step where it would run.

    Parameters
    ----------
    step : StepProjection
    at_once : int
        Tasks that run side by side, at least; more where they are smaller than the largest.
    peak_bytes : int
        Of all processes of the host that takes most.
    """

    step: StepProjection
    at_once: int
    peak_bytes: int


def projected(
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    assessments: Mapping[str, Sequence[Assessment]],
    states: StateStore,
    executor: Executor,
    only: Collection[str] | None = None,
) -> BuildProjection:
    """Return what a build costs where it would run; see ``plan.projection.project``."""
    return project(files, sources, assessments, states, executor.room, executor.workers, only)


def step_peaks(
    projection: BuildProjection, sites: Sequence[Site], memory_limit: int | None
) -> list[StepPeak]:
    """Return what the steps of a build peak at.

    Parameters
    ----------
    projection : BuildProjection
    sites : sequence of Site
        Where tasks run, this host first.
    memory_limit : int, optional
    """
    return [
        StepPeak(
            step,
            sum(_at_once(step.costs, site, memory_limit) for site in where),
            max(projected_peak(step.costs, site, memory_limit) for site in where),
        )
        for step in projection.steps
        for where in [_places(step, sites)]
    ]


def _places(step: StepProjection, sites: Sequence[Site]) -> list[Site]:
    if step.work == COMBINE:
        return [replace(sites[0], threads=1)]
    return [one for one in sites if one.threads]


def _at_once(costs: Sequence[int], site: Site, memory_limit: int | None) -> int:
    """Return how many of the largest tasks run at once; one always does, when it is alone."""
    largest = nlargest(site.threads, costs)
    if memory_limit is None:
        return len(largest)
    # What the first one's thread takes is reserved.
    count, room = 0, memory_limit - site.reserved_bytes + THREAD_BYTES
    for cost in largest:
        room -= cost + THREAD_BYTES
        if room < 0:
            break
        count += 1
    return max(count, 1)


def require_feasible(projection: BuildProjection, executor: Executor, scratch: Scratch) -> None:
    """Refuse a build of which a task does not fit memory, or scratch space.

    Raises
    ------
    MemoryLimitError
        Which feature, which partition, how many bytes; the smallest limit and the largest
        ``partition_bytes`` that would do.
    LimitError, DiskFullError
        If a step may need more scratch space than there is.
    """
    limit = executor.memory_limit
    if limit is None or not projection.steps:
        return
    places = _all_places(projection, executor.sites())
    if places:
        need, site = _worst(places)
        require_room(need, limit, site.reserved_bytes, smaller_partitions(places, limit))
    _require_scratch(projection, scratch)


def what_would_do(
    projection: BuildProjection, sites: Sequence[Site], memory_limit: int, scratch: Scratch
) -> str:
    """Return what would make a build fit; ``""`` if it does."""
    places = _all_places(projection, sites)
    if places:
        need, site = _worst(places)
        instead = smaller_partitions(places, memory_limit)
        found = remedy(need, memory_limit, site.reserved_bytes, instead)
        if found:
            return found
    try:
        _require_scratch(projection, scratch)
    except (LimitError, DiskFullError) as refusal:
        return refusal.remedy
    return ""


def _require_scratch(projection: BuildProjection, scratch: Scratch) -> None:
    """Refuse a build that may need more scratch space than there is.

    Of states that are not made yet it is known only how large they are at most.
    """
    tasks = [(step, task) for step in projection.steps for task in step.tasks]
    step, task = max(tasks, key=lambda one: one[1].scratch_bytes, default=(None, None))
    if step is not None and task is not None and task.scratch_bytes:
        scratch.require(task.scratch_bytes, f"{', '.join(task.feature)} ({step.work})")


def _all_places(
    projection: BuildProjection, sites: Sequence[Site]
) -> list[tuple[StepProjection, Site]]:
    """Return the steps that have to be judged beforehand, wherever they run.

    What combining takes is known when there are summaries: it is looked at step by step then. Nothing is said
    of tasks that were made to fit: what is in use differs a little from one moment to the next.
    """
    if projection.fits:
        return []
    steps = [one for one in projection.steps if one.work != COMBINE]
    return [(step, site) for step in steps for site in _places(step, sites)]


def _worst(places: Sequence[tuple[StepProjection, Site]]) -> tuple[Need, Site]:
    """Return what needs most, together with what is reserved there, and where."""
    step, site = max(places, key=lambda one: one[1].reserved_bytes + one[0].largest.bytes)
    largest = step.largest
    what = f"{', '.join(largest.feature)} ({step.work})"
    return Need(what, largest.bytes, largest.partition), site


def smaller_partitions(places: Sequence[tuple[StepProjection, Site]], limit: int) -> str:
    """Return the advice to ingest with smaller partitions; empty where none are small enough."""
    found: int | None = None
    for step, site in places:
        # Of what is in use a little more may be by then, unless the work itself is no more than that.
        left = limit - site.reserved_bytes
        room = left - DRIFT if left > 4 * DRIFT else left
        for task in step.tasks:
            if site.reserved_bytes + task.bytes > limit:
                found = task.largest_partition(room, found)
    # Less than one and a half times the size asked for stays one partition: see ``ingest.cuts``.
    smallest = 2 * (found or 0) // 3
    if smallest < _KIB:
        return ""
    return f"ingest with partition_bytes of at most {readable_bytes(smallest)}"
