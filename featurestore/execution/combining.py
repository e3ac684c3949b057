"""Summaries put together into one state, in memory or range by range: ``plan.combining`` says which.

By ranges, each summary is read once, verified and written to scratch space in segments; then all are read
side by side (``storage.sorted_runs``), each range of keys is combined, and of the result only that is kept
which ``finish`` can use. If what is kept outgrows the room, the rest is counted, not kept, so that the
refusal names the limit that would do.

Always true: the same state, bit for bit, either way; scratch space is given back, however this ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.errors import CorruptionError
from featurestore.execution.budget import Budget, budget_of
from featurestore.execution.flight import WORTH_TRIMMING
from featurestore.execution.room import Need, require_room
from featurestore.plan.combining import Combining, combines_by_ranges, combining, finishing_bytes
from featurestore.plan.costs import combine_bytes
from featurestore.storage.scratch import Scratch
from featurestore.storage.sorted_runs import Run, RunWriter, key_ranges
from featurestore.storage.spill import SpillFile
from featurestore.storage.states import StateStore
from featurestore.transforms.base import EMPTY_STATE, State, Transformer

_FEWER_COLUMNS: Final = "learn from fewer columns"
_FEWER_VALUES: Final = (
    "keep fewer values (max_size=, min_count= where it has them), or learn from fewer columns"
)
_NARROWING: Final = 2**20
"""Bytes: less is not worth narrowing."""


@dataclass(frozen=True, slots=True)
class CombineWork:
    """States to be combined for one transformer.

    Parameters
    ----------
    transformer : Transformer
    keys : sequence of str
        Of the states, in table order.
    sizes : mapping of str to int
        Bytes of those that are kept.
    way : Combining
    """

    transformer: Transformer
    keys: Sequence[str]
    sizes: Mapping[str, int]
    way: Combining

    @classmethod
    def of(
        cls,
        transformer: Transformer,
        keys: Sequence[str],
        sizes: Mapping[str, int],
        room: int | None,
    ) -> CombineWork:
        """Return the work, done in the way that the sizes and the room ask for."""
        known = [sizes.get(key, 0) for key in keys]
        way = combining(known, room, by_ranges=combines_by_ranges(transformer))
        return cls(transformer, keys, sizes, way)

    @property
    def fit_together(self) -> bool:
        """Whether it is known that they fit memory all together."""
        return combines_by_ranges(self.transformer) and not self.way.by_ranges

    @property
    def what(self) -> str:
        """The subject of what is said about it."""
        kind = type(self.transformer).__name__
        return f"combining what {kind} learnt of {len(self.keys)} partitions"

    def require(self, limit: int, reserved: int, scratch: Scratch) -> None:
        """Refuse what does not fit, as far as that is known before it begins.

        Raises
        ------
        MemoryLimitError
        LimitError
            If it needs more scratch space than its limit leaves.
        DiskFullError
        """
        if combines_by_ranges(self.transformer):
            require_room(Need(self.what, self.way.bytes), limit, reserved, _FEWER_COLUMNS)
        if self.way.by_ranges:
            scratch.require(self.way.scratch_bytes, self.what)


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
    with _Holding(work, limit).held() as holding, ExitStack() as files:
        spilled = _spilled(work, states, scratch, files)
        spilled = _side_by_side(work, spilled, scratch, files, holding)
        kept = _Kept(work, holding)
        for name, runs in spilled.runs.items():
            kept.add(name, spilled.schemas[name], _combined(work, name, runs, holding))
        files.close()
        release_freed()
        states.put(key, finish(kept.state()))


def folded(work: CombineWork, state: State, states: StateStore, limit: int) -> State:
    """Return a state with others combined into it, one after the other, in memory.

    What it takes is known only as it grows, so every combination is held against the limit before
    it is done. The caller holds ``work.way.bytes``.

    Raises
    ------
    MemoryLimitError
        Before a combination that does not fit.
    StateLostError
    """
    left = deque(work.keys)
    while left:
        earlier = sum(table.nbytes for table in state.values())
        keys, size = _next_batch(work, left, earlier)
        needed = combine_bytes(earlier, size)
        with _Holding(work, limit).held() as holding:
            holding.require(needed, _FEWER_COLUMNS)
            state = work.transformer.combine_all([state, *map(states.require, keys)])
        if needed >= WORTH_TRIMMING:
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


@dataclass(slots=True)
class _Holding:
    """The bytes of the budget that this work holds: what it was admitted with, and what came on top."""

    work: CombineWork
    limit: int
    kept: int = 0  # bytes of what is kept of the ranges so far
    _bytes: int = 0
    _budget: Budget = field(default_factory=budget_of)
    _more: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def held(self) -> Iterator[_Holding]:
        """Hold what is asked for until the end of the block."""
        self._bytes = self.work.way.bytes
        with self._more:
            yield self

    def try_hold(self, needed: int) -> int | None:
        """Hold so many bytes in all; if that does not fit, return what the process holds otherwise."""
        if needed > self._bytes:
            reserved = self._budget.reserved
            if reserved + needed > self.limit:
                return reserved
            admitted = self._budget.admit(needed - self._bytes, self.limit, waits=False)
            self._more.enter_context(admitted)
            self._bytes = needed
        return None

    def require(self, needed: int, instead: str) -> None:
        """Hold so many bytes in all.

        Raises
        ------
        MemoryLimitError
        """
        reserved = self.try_hold(needed)
        if reserved is not None:
            require_room(Need(self.work.what, needed), self.limit, reserved, instead)


# --- by ranges ---------------------------------------------------------------------------------------


class _Files:
    """The scratch files of one pass: one for the tables of each schema."""

    def __init__(self, scratch: Scratch, segment_bytes: int) -> None:
        self._scratch = scratch
        self._segment_bytes = segment_bytes
        self._files: dict[pa.Schema, SpillFile] = {}

    def write(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> Run:
        """Write tables, each of rows after those of the one before, as one run."""
        if schema not in self._files:
            self._files[schema] = SpillFile(self._scratch)
        writer = RunWriter(self._files[schema], self._segment_bytes)
        for table in tables:
            writer.add(table)
        return writer.end()

    def close(self) -> None:
        """Give the space back."""
        for one in self._files.values():
            one.close()


@dataclass(frozen=True, slots=True)
class _Spilled:
    """States in scratch space: of each of their tables one run per state, in order, and its schema."""

    files: _Files
    runs: Mapping[str, Sequence[Run]]
    schemas: Mapping[str, pa.Schema]


def _spilled(work: CombineWork, states: StateStore, scratch: Scratch, files: ExitStack) -> _Spilled:
    """Return the states in scratch space; each is read once."""
    written = _Files(scratch, work.way.segment_bytes)
    files.callback(written.close)
    runs: dict[str, list[Run]] = {}
    schemas: dict[str, pa.Schema] = {}
    for key in work.keys:
        state = states.require(key)
        if state and runs and set(state) != set(runs):
            raise CorruptionError(
                f"states with tables {sorted(runs)} and {sorted(state)} cannot be combined",
                "build them again",
            )
        for name, table in state.items():
            schemas[name] = table.schema
            runs.setdefault(name, []).append(written.write(table.schema, [table]))
        del state
        if work.sizes.get(key, 0) >= WORTH_TRIMMING:
            release_freed()
    return _Spilled(written, runs, schemas)


def _side_by_side(
    work: CombineWork, spilled: _Spilled, scratch: Scratch, files: ExitStack, holding: _Holding
) -> _Spilled:
    """Return no more runs than are read side by side: adjacent ones combined, in as many passes."""
    count = max(map(len, spilled.runs.values()), default=0)
    while count > work.way.fan_in:
        written = _Files(scratch, work.way.segment_bytes)
        files.callback(written.close)
        groups = -(-count // work.way.fan_in)
        cuts = [count * number // groups for number in range(groups + 1)]
        runs = {
            name: [
                written.write(
                    spilled.schemas[name], _combined(work, name, of_table[start:stop], holding)
                )
                for start, stop in pairwise(cuts)
            ]
            for name, of_table in spilled.runs.items()
        }
        spilled.files.close()
        spilled, count = _Spilled(written, runs, spilled.schemas), groups
    return spilled


def _combined(
    work: CombineWork, name: str, runs: Sequence[Run], holding: _Holding
) -> Iterator[pa.Table]:
    """Yield the combination of runs of one table, range by range."""
    for parts in key_ranges(runs, work.transformer.state_order()):
        # Rows that are wider than a segment, or many of one key, take more than was foreseen.
        size = sum(one.nbytes for one in parts)
        holding.require(work.way.range_bytes(size, holding.kept), _FEWER_COLUMNS)
        yield work.transformer.combine_all([{name: one} for one in parts])[name]
        parts.clear()
        release_freed()  # Arrow keeps many times what a range takes


class _Kept:
    """Of the ranges combined so far, what ``finish`` can use; narrowed again whenever it has doubled.

    What does not fit is let go, and from then on only counted.

    Parameters
    ----------
    work : CombineWork
    holding : _Holding
    """

    def __init__(self, work: CombineWork, holding: _Holding) -> None:
        self._work = work
        self._holding = holding
        self._tables: dict[str, pa.Table] = {}
        self._bytes = 0
        # What the process held otherwise when it turned out not to fit.
        self._refused_beside: int | None = None

    def add(self, name: str, schema: pa.Schema, ranges: Iterable[pa.Table]) -> None:
        """Keep of all ranges of a table, in order, what can be used."""
        parts, size, settled = [self._narrowed(name, schema.empty_table())], 0, 0
        for one in ranges:
            parts.append(self._narrowed(name, one))
            size += parts[-1].nbytes
            if self._refused_beside is None and (
                size > 2 * settled + _NARROWING or self._try_hold(size) is not None
            ):
                parts = [self._narrowed(name, pa.concat_tables(parts))]
                size = settled = parts[0].nbytes
                self._refused_beside = self._try_hold(size)
            if self._refused_beside is not None:
                self._tables.clear()
                parts = []
                self._holding.kept = 0
            else:
                self._holding.kept = self._bytes + size
        self._bytes += size
        if self._refused_beside is None:
            self._tables[name] = pa.concat_tables(parts)

    def state(self) -> State:
        """Return what was kept.

        Raises
        ------
        MemoryLimitError
            If it did not fit; the message has the limit that would do.
        """
        if self._refused_beside is not None:
            need = Need(self._work.what, self._needed(0))
            require_room(need, self._holding.limit, self._refused_beside, _FEWER_VALUES)
        return self._tables

    def _narrowed(self, name: str, table: pa.Table) -> pa.Table:
        return self._work.transformer.narrow({name: table})[name]

    def _needed(self, more: int) -> int:
        kept = self._bytes + more
        return max(self._work.way.keeping_bytes(kept), finishing_bytes(kept))

    def _try_hold(self, more: int) -> int | None:
        return self._holding.try_hold(self._needed(more))
