"""Summaries put together into one state, in memory or range by range: ``plan.combining`` says which.

By ranges, each summary is read once, verified and written to scratch space in segments; then all are read
side by side (``storage.sorted_runs``), each range of keys is combined, and of the result only that is kept
which ``finish`` can use. If what is kept outgrows the room, the rest is counted, not kept, so that the
refusal names the limit that would do.

Always true: the same state, bit for bit, either way; scratch space is given back, however this ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

import pyarrow as pa

from featurestore.allocators import WORTH_RELEASING, release_freed
from featurestore.execution.merging import (
    CombineWork,
    Holding,
    combined_ranges,
    side_by_side,
    spill_states,
)
from featurestore.execution.room import Need, require_room
from featurestore.plan.combining import finishing_bytes, keeping_room
from featurestore.plan.costs import combine_bytes
from featurestore.storage.row_width import RowCounts
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateStore
from featurestore.transforms.base import EMPTY_STATE, State

_FEWER_VALUES: Final = (
    "keep fewer values (max_size=, min_count= where it has them), or learn from fewer columns"
)
_NARROWING: Final = 2**20
"""Bytes: less is not worth narrowing."""


def learn(work: CombineWork, key: str, states: StateStore, limit: int, scratch: Scratch) -> None:
    """Combine summaries of a fit scope, and keep under a key what ``apply`` wants of them.

    The caller holds ``work.way.bytes`` of the budget; what it takes beyond that is held here.

    Raises
    ------
    MemoryLimitError
        If it does not fit; before what does not fit is done.
    StateLostError
    """
    finish = work.transformer.finish
    if not work.way.by_ranges:
        states.put(key, finish(folded(work, EMPTY_STATE, states, limit)))
        return
    with Holding(work, limit).held() as holding, ExitStack() as files:
        spilled = spill_states(work, states, scratch, files)
        spilled = side_by_side(work, spilled, scratch, files, holding)
        kept = _Kept(work, holding)
        for name, runs in spilled.runs.items():
            kept.add(name, spilled.schemas[name], combined_ranges(work, name, runs, holding))
        files.close()
        release_freed()
        states.put(key, finish(kept.state()))
        del kept
    release_freed()


def folded(
    work: CombineWork, state: State, states: StateStore, limit: int, *, backwards: bool = False
) -> State:
    """Return a state with others combined into it, one after the other, in memory.

    The others are of later rows; ``backwards`` of earlier ones, the last of them first.

    What it takes is known only as it grows, so every combination is held against the limit before
    it is done. The caller holds ``work.way.bytes``.

    Raises
    ------
    MemoryLimitError
        Before a combination that does not fit.
    StateLostError
    """
    left = deque(reversed(work.keys) if backwards else work.keys)
    while left:
        earlier = sum(table.nbytes for table in state.values())
        keys, size = _next_batch(work, left, earlier)
        needed = combine_bytes(earlier, size)
        with Holding(work, limit).held() as holding:
            holding.require(needed, work.instead)
            parts = [state, *map(states.require, keys)]
            state = work.transformer.combine_all(parts[::-1] if backwards else parts)
            del parts
        if needed >= WORTH_RELEASING:
            release_freed()
    return state


def _next_batch(work: CombineWork, left: deque[str], earlier: int) -> tuple[list[str], int]:
    """Take what is combined next, and return it with its size.

    What fits memory all together is taken by as much as the state has already, so that a state that
    grows is not written anew for each of many summaries.
    """
    keys = [left.popleft()]
    size = work.sizes.get(keys[0], 0)
    while left and work.fit_together and size + work.sizes.get(left[0], 0) <= earlier:
        keys.append(left.popleft())
        size += work.sizes.get(keys[-1], 0)
    return keys, size


class _Kept:
    """Of the ranges combined so far, what ``finish`` can use; narrowed again whenever it has doubled.

    What does not fit is let go, and from then on only counted.

    Parameters
    ----------
    work : CombineWork
    holding : Holding
    """

    def __init__(self, work: CombineWork, holding: Holding) -> None:
        self._work = work
        self._holding = holding
        self._tables: dict[str, pa.Table] = {}
        self._bytes = 0
        # What the process held otherwise when it turned out not to fit.
        self._refused_beside: int | None = None

    def add(self, name: str, schema: pa.Schema, ranges: Iterable[pa.Table]) -> None:
        """Keep of all ranges of a table, in order, what can be used."""
        parts, size, settled = [self._narrowed(name, schema.empty_table())], 0, 0
        counted = RowCounts()
        for one in ranges:
            narrowed = self._narrowed(name, one)
            if self._refused_beside is not None:
                counted.add(narrowed)
                continue
            parts.append(narrowed)
            size += narrowed.nbytes
            if size > 2 * settled + _NARROWING or self._try_hold(size) is not None:
                parts = [self._narrowed(name, pa.concat_tables(parts))]
                size = settled = parts[0].nbytes
                self._refused_beside = self._try_hold(size)
            self._holding.kept = self._bytes + size
            if self._refused_beside is not None:
                counted.add(parts[0])
                self._tables.clear()
                parts = []
                self._holding.kept = 0
        if self._refused_beside is None:
            self._tables[name] = pa.concat_tables(parts)
            self._bytes += size
        else:
            self._bytes += counted.widest_bytes(self._work.transformer.most_kept(name))

    def state(self) -> State:
        """Return what was kept.

        Raises
        ------
        MemoryLimitError
            If it did not fit; the message has the limit that would do.
        """
        if self._refused_beside is not None:
            needed = max(self._needed(0), keeping_room(self._bytes))
            need = Need(self._work.what, needed)
            require_room(need, self._holding.limit, self._refused_beside, _FEWER_VALUES)
        return self._tables

    def _narrowed(self, name: str, table: pa.Table) -> pa.Table:
        return self._work.transformer.narrow({name: table})[name]

    def _needed(self, more: int) -> int:
        kept = self._bytes + more
        return max(self._work.way.keeping_bytes(kept), finishing_bytes(kept))

    def _try_hold(self, more: int) -> int | None:
        return self._holding.try_hold(self._needed(more))
