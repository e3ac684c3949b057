"""Which later rows a partition's labels depend on: the states of scope ``suffix``.

Always true: a need's name changes exactly when rows change that its values looked at, or may look at.

* With a fixed reach (a length of time), the partition's own times and the table's newest say which
  partitions those are, and how far windows are complete. While none is, all values are null whatever
  comes, and the need is empty.
* Without (a number of rows per key), nobody knows beforehand how far away those rows lie: the need
  names all later partitions. When values are computed it turns out until when they looked, and that
  is kept with them (``Provenance.until``): from then on only partitions that begin by then count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pyarrow as pa

from featurestore.fingerprint import fingerprint
from featurestore.plan.states import Learner, StateNeed, Summary
from featurestore.plan.stretch import Stretch
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry

SETTLED: Final = "settled"
"""The table of a kept state that says until when the partition looks, and at what."""


def suffix_needs(
    learner: Learner, base: Sequence[PartitionEntry], inputs: Sequence[str]
) -> list[StateNeed]:
    """Return what a transformer of scope ``suffix`` needs in each partition.

    Parameters
    ----------
    learner : Learner
    base : sequence of PartitionEntry
    inputs : sequence of str
        For each partition the fingerprint its inputs have.
    """
    reach = learner.transformer.reach(learner.schema)
    summaries = [
        Summary(learner.summary_key(print_), position) if entry.rows else None
        for position, (entry, print_) in enumerate(zip(base, inputs, strict=True))
    ]
    if reach is None:
        return _needs_of_all(summaries)
    return [
        StateNeed() if own is None else _need_within(own, reach, base, summaries)
        for own in summaries
    ]


def _needs_of_all(summaries: Sequence[Summary | None]) -> list[StateNeed]:
    needs = [StateNeed()] * len(summaries)
    filled = [one for one in summaries if one is not None]
    chain = ""
    for at, own in reversed(list(enumerate(filled))):
        later = Stretch(filled, at + 1, len(filled))
        if later:
            key = fingerprint("ahead", own.key, chain)
            needs[own.partition] = StateNeed(key, key, later, own=own)
        chain = fingerprint("suffix", own.key, chain)
    return needs


def _need_within(
    own: Summary, reach: int, base: Sequence[PartitionEntry], summaries: Sequence[Summary | None]
) -> StateNeed:
    entry, newest = base[own.partition], _newest(base)
    assert entry.time_min is not None
    assert entry.time_max is not None
    until = entry.time_max + reach
    if newest == entry.time_max or newest < entry.time_min + reach:
        return StateNeed()
    later = []
    for position in range(own.partition + 1, len(summaries)):
        one = summaries[position]
        if one is not None:
            begins = base[one.partition].time_min
            if begins is not None and begins > until:
                break
            later.append(one)
    horizon = min(newest, until)
    key = fingerprint("ahead until", [one.key for one in later], horizon)
    return StateNeed(key, key, tuple(later), horizon=horizon)


def _newest(base: Sequence[PartitionEntry]) -> int:
    """Return the newest time of a table that has rows; its partitions are in order of time."""
    return next(one.time_max for one in reversed(base) if one.time_max is not None)


def seen_by(need: StateNeed, base: Sequence[PartitionEntry], until: int) -> str:
    """Return the fingerprint of the later rows up to a time; of whole partitions."""
    keys = []
    for one in need.members:
        begins = base[one.partition].time_min
        if begins is not None and begins > until:
            break
        keys.append(one.key)
    return fingerprint("seen", keys)


def settled_table(need: StateNeed, base: Sequence[PartitionEntry], until: int) -> pa.Table:
    """Return what is kept with a state of which it turned out until when the partition looks."""
    return pa.table({"until": pa.array([until], pa.int64()), "seen": [seen_by(need, base, until)]})


def settled_of(state: Mapping[str, pa.Table]) -> tuple[int, str] | tuple[()]:
    """Return until when a partition looks and at what, as kept with its state; nothing if unknown."""
    table = state.get(SETTLED)
    return () if table is None else (table["until"][0].as_py(), table["seen"][0].as_py())


def is_settled(
    stored: Provenance, wanted: Provenance, need: StateNeed, base: Sequence[PartitionEntry]
) -> bool:
    """Whether stored values looked at rows that are what they were, and no others can matter."""
    return (
        stored.until is not None
        and (stored.definition, stored.inputs) == (wanted.definition, wanted.inputs)
        and stored.seen == seen_by(need, base, stored.until)
    )
