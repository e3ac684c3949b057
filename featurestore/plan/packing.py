"""Which verbs share a task: all that need a partition, unless they do not fit memory together.

One read serves all verbs of a task, so one task per partition is best. Where it does not fit, verbs
that fit by themselves share tasks as far as they fit; those that do not are done in slices.

Always true: the order of verbs is kept; each is in one load; the same verbs give the same loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.plan.costs import reading_bytes, with_counted
from featurestore.plan.slicing import Portions, SliceLimits, Work


@dataclass(frozen=True, slots=True)
class Load:
    """What one task does.

    Parameters
    ----------
    verbs : tuple of int
        Positions among the verbs that were packed.
    bytes : int
        That it needs at its peak.
    most : int
        The verb of it that needs most.
    limits : SliceLimits, optional
        If its one verb is done in slices.
    """

    verbs: tuple[int, ...]
    bytes: int
    most: int
    limits: SliceLimits | None = None


def loads(works: Sequence[Work], room: int | None, at_once: int = 1) -> list[Load]:
    """Return the tasks that do some verbs on one partition.

    Parameters
    ----------
    works : sequence of Work
        At least one.
    room : int, optional
        Bytes that a task may take; unlimited if not given. What needs more whatever is done is in a
        load of its own, as small as it gets.
    at_once : int
        How many tasks had better fit together.
    """
    own = [one.own_bytes for one in works]
    everything = _load(works, own, range(len(works)))
    if room is None or everything.bytes <= room:
        return [everything]
    found: list[Load] = []
    together: list[int] = []
    for verb, work in enumerate(works):
        sliced = _sliced(work, verb, room, at_once)
        if sliced is not None:
            found.append(sliced)
        elif together and _load(works, own, [*together, verb]).bytes <= room:
            together.append(verb)
        else:
            if together:
                found.append(_load(works, own, together))
            together = [verb]
    if together:
        found.append(_load(works, own, together))
    return sorted(found, key=lambda one: one.verbs)


def _load(works: Sequence[Work], own: Sequence[int], verbs: Sequence[int]) -> Load:
    """Return a task that reads once, and does one verb after the other."""
    columns: dict[str, int] = {}
    for verb in verbs:
        columns |= works[verb].extent.column_bytes
    first = works[verbs[0]]
    sizes = with_counted(first.reads, columns, first.time_bytes)
    most = max(verbs, key=lambda verb: own[verb])
    widest = max(works[verb].extent.widest_row for verb in verbs)
    size = reading_bytes(first.reads, sizes, first.extent.rows, widest) + own[most]
    return Load(tuple(verbs), size, most)


def _sliced(work: Work, verb: int, room: int, at_once: int) -> Load | None:
    """Return a verb by itself if it has to be done in slices, or cannot be done within the room."""
    if work.whole_bytes <= room:
        return None
    for share in (room // max(1, at_once), room):
        portions = work.portions(share)
        if portions.bytes <= share:
            return _alone(verb, portions)
    return _alone(verb, work.least)


def _alone(verb: int, portions: Portions) -> Load:
    return Load((verb,), portions.bytes, verb, portions.limits)
