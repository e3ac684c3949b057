"""States kept under the keys they have after a table was laid out anew.

A state's key names the partitions it was computed from, so compaction gives what is kept new names. The
summary of a merged partition is put together from those of its parts; combined states are copied where
the same rows come before, fitted ones as they are, so that they keep their bits. Nothing is computed
twice afterwards: the next build finds what it needs.

States are a cache. What is not kept, or turns out damaged, is left to the next build; but where some parts
of a merged partition were summarised and others not yet, the others are summarised now, as otherwise all
of them would have to be read again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.execution.budget import budget_of
from featurestore.execution.dask import Executor
from featurestore.execution.sites import reserved_bytes
from featurestore.execution.states import Available, StateRequest, Workplace, prepare_summaries
from featurestore.plan.costs import combine_bytes
from featurestore.plan.definition import Feature
from featurestore.plan.relayout import Relayout
from featurestore.plan.states import Learner, StateNeed, Summary
from featurestore.plan.table_files import TableFiles, summarized_of
from featurestore.schema import TableSchema
from featurestore.storage.records import BASE_GROUP
from featurestore.storage.states import StateLostError, StateStore
from featurestore.transforms.base import Scope, State, Transformer

_log: Final = logging.getLogger(__name__)


def move_states(relayout: Relayout, table: str, place: Workplace, executor: Executor) -> None:
    """Keep what was learnt of a compacted table under its new keys.

    Parameters
    ----------
    relayout : Relayout
    table : str
        The one that was compacted.
    place : Workplace
    executor : Executor
        Runs the summaries that are still to be computed.
    """
    states = StateStore(place.store)
    moves = [
        move
        for name in relayout.before.readers(table)
        for feature in relayout.before.tables[name].graph.features()
        for move in _moves(relayout, table, name, feature)
    ]
    requests = [request for move in moves for request in _unfinished(move, relayout, states)]
    prepare_summaries(requests, place, executor)
    for move in moves:
        for key, parts in move.summaries.items():
            if not states.has(key) and all(states.has(one.key) for one in parts):
                _put(states, key, move, [one.key for one in parts], place)
        for key, old in move.states.items():
            if not states.has(key) and states.has(old):
                _put(states, key, move, [old], place)


@dataclass(frozen=True, slots=True)
class _Move:
    """The states of one feature.

    Parameters
    ----------
    learner : Learner
    schema : TableSchema
        Of the feature's own table.
    files : TableFiles
        The table that is summarised, as it was.
    summaries : mapping of str to tuple of Summary
        For the key of each new summary those it is made of, in order.
    states : mapping of str to str
        For the key of each combined state its old key.
    """

    learner: Learner
    schema: TableSchema
    files: TableFiles
    summaries: Mapping[str, tuple[Summary, ...]]
    states: Mapping[str, str]


def _moves(relayout: Relayout, table: str, name: str, feature: Feature) -> Iterator[_Move]:
    """Yield the move of a feature's states, if it has any."""
    files = relayout.before.tables[name]
    if not files.entries[feature.group] or feature.transformer.scope is Scope.NONE:
        return
    transformer = feature.transformer
    summarised, columns = summarized_of(feature, files, relayout.before.tables)
    learner = Learner(transformer, summarised.schema, columns)
    if transformer.scope is Scope.FIT:
        old, new = (
            found[0].need if found else StateNeed()
            for found in (
                relayout.before.assessor.group(name, feature.group),
                relayout.wanted.group(name, feature.group),
            )
        )
        pairs = _fit_pairs(old, new, _origins(relayout, table, summarised.name))
        states = {new.key: old.key} if new.key and old.key else {}
    else:
        pairs = _all_pairs(relayout, table, summarised, learner)
        states = _combined_pairs(relayout, table, summarised, name, feature)
    yield _Move(
        learner,
        files.schema,
        summarised,
        {key: parts for key, parts in pairs.items() if [key] != [one.key for one in parts]},
        {key: old for key, old in states.items() if key != old},
    )


def _origins(relayout: Relayout, table: str, summarised: str) -> list[tuple[int, ...]]:
    """Return for each partition after the positions it had before."""
    base = relayout.tables[summarised].base
    if summarised != table:
        return [(position,) for position in range(len(base))]
    return [relayout.origins[one.partition] for one in base]


def _fit_pairs(
    old: StateNeed, new: StateNeed, origins: Sequence[tuple[int, ...]]
) -> dict[str, tuple[Summary, ...]]:
    """Return the summaries of a fit scope; those of partitions that it cuts are cut likewise."""
    before = {one.partition: one for one in old.members}
    return {
        one.key: tuple(before[at] for at in origins[one.partition] if at in before)
        for one in new.members
    }


def _all_pairs(
    relayout: Relayout, table: str, summarised: TableFiles, learner: Learner
) -> dict[str, tuple[Summary, ...]]:
    """Return the summaries of all partitions that have rows."""
    name, columns = summarised.name, learner.columns
    old = [
        Summary(learner.summary_key(one), position)
        for position, one in enumerate(relayout.before.assessor.prints(name, columns))
    ]
    after = zip(
        relayout.tables[name].base,
        relayout.wanted.prints(name, columns),
        _origins(relayout, table, name),
        strict=True,
    )
    return {
        learner.summary_key(one): tuple(old[at] for at in origin)
        for base, one, origin in after
        if base.rows
    }


def _combined_pairs(
    relayout: Relayout, table: str, summarised: TableFiles, name: str, feature: Feature
) -> dict[str, str]:
    """Return the combined states that cover the same rows before and after."""
    old = {
        (one.need.members[0].partition, one.need.members[-1].partition): one.need.key
        for one in relayout.before.assessor.group(name, feature.group)
        if one.need.members
    }
    origins = _origins(relayout, table, summarised.name)
    found: dict[str, str] = {}
    if feature.transformer.scope is Scope.SUFFIX:  # of some keys only, those of one partition
        return found
    for one in relayout.wanted.group(name, feature.group):
        if one.need.members:
            first, last = (origins[one.need.members[at].partition] for at in (0, -1))
            if (first[0], last[-1]) in old:
                found[one.need.key] = old[first[0], last[-1]]
    return found


def _unfinished(move: _Move, relayout: Relayout, states: StateStore) -> Iterator[StateRequest]:
    """Yield what is still to be summarised of partitions that become one."""
    groups = [one for one in move.files.groups_of(move.learner.columns) if one != BASE_GROUP]
    for key, parts in move.summaries.items():
        kept = {one.key for one in parts if states.has(one.key)}
        if not kept or len(kept) == len(parts) or states.has(key):
            continue
        missing = tuple(one for one in parts if one.key not in kept)
        positions = [one.partition for one in missing]
        if all(relayout.before.is_fresh(move.files.name, one, positions) for one in groups):
            yield StateRequest(
                move.learner.transformer,
                move.schema,
                Available(move.files, {}),
                move.learner.columns,
                [StateNeed(members=missing)],
            )


def _put(states: StateStore, key: str, move: _Move, parts: Sequence[str], place: Workplace) -> None:
    # Of the tree, a state from each depth is held: together no more than all parts twice.
    together = sum(states.sizes(parts).values())
    needed = combine_bytes(together, together)
    if reserved_bytes(place.engine) + needed > place.memory_limit:
        _log.info("state %s is left to the next build: it takes %d bytes to move", key, needed)
        return
    with budget_of().admit(needed, place.memory_limit):
        try:
            states.put(key, _folded(states, move.learner.transformer, parts))
        except StateLostError:  # logged where it was found damaged; computed again when needed
            return


def _folded(states: StateStore, transformer: Transformer, keys: Sequence[str]) -> State:
    """Return summaries combined in order, as a tree: a state that grows is copied seldom."""
    if len(keys) == 1:
        return states.require(keys[0])
    half = len(keys) // 2
    return transformer.combine(
        _folded(states, transformer, keys[:half]), _folded(states, transformer, keys[half:])
    )
