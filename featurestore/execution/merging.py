"""States side by side in scratch space, combined range of keys by range of keys: what all that do so share.

Each state is read once, verified and written to scratch space in segments, in order of its keys; then all are
read side by side (``storage.sorted_runs``), and each range of keys is combined by itself.

Always true: the ranges together are what combining in memory gives; no more bytes are held than the budget
was asked for, but for a row or key that is larger by itself, which is asked for when it comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pyarrow as pa

from featurestore.allocators import WORTH_RELEASING, release_freed
from featurestore.errors import CorruptionError
from featurestore.execution.budget import Budget, budget_of
from featurestore.execution.room import Need, require_room
from featurestore.plan.combining import (
    Combining,
    chains_by_ranges,
    combines_by_ranges,
    combining,
    expected_chaining,
)
from featurestore.storage.scratch import Scratch
from featurestore.storage.sorted_runs import Run, RunWriter, key_ranges
from featurestore.storage.spill import SpillFile
from featurestore.storage.states import StateStore
from featurestore.transforms.base import EMPTY_STATE, State, Transformer
from featurestore.transforms.keyed import GROUP, in_order


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
    beside : int
        Bytes of the limit that this process's budget does not see: what other processes of this host
        hold, and what a thread takes beside its tasks.
    """

    transformer: Transformer
    keys: Sequence[str]
    sizes: Mapping[str, int]
    way: Combining
    beside: int = 0

    @classmethod
    def of(
        cls,
        transformer: Transformer,
        keys: Sequence[str],
        sizes: Mapping[str, int],
        room: int | None,
        beside: int = 0,
    ) -> CombineWork:
        """Return the work, done in the way that the sizes and the room ask for."""
        known = [sizes.get(key, 0) for key in keys]
        if chains_by_ranges(transformer):
            largest = max(known, default=0)
            way = expected_chaining([largest], room, largest)
        else:
            way = combining(known, room, by_ranges=combines_by_ranges(transformer))
        return cls(transformer, keys, sizes, way, beside)

    @property
    def fit_together(self) -> bool:
        """Whether it is known that they fit memory all together."""
        return combines_by_ranges(self.transformer) and not self.way.by_ranges

    @property
    def order(self) -> tuple[str, ...]:
        """The columns that states are in order of in scratch space."""
        return (GROUP,) if self.transformer.is_keyed else self.transformer.state_order()

    def ordered(self, table: pa.Table) -> pa.Table:
        """Return a table of a state in that order."""
        return in_order(table) if self.transformer.is_keyed else table

    @property
    def what(self) -> str:
        """The subject of what is said about it."""
        kind = type(self.transformer).__name__
        return f"combining what {kind} learnt of {len(self.keys)} partitions"

    @property
    def instead(self) -> str:
        """What to do where it does not fit and the limit cannot be raised."""
        return "carry fewer columns" if self.transformer.is_keyed else "learn from fewer columns"

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
            require_room(Need(self.what, self.way.bytes), limit, reserved, self.instead)
        if self.way.by_ranges:
            scratch.require(self.way.scratch_bytes, self.what)


@dataclass(slots=True)
class Holding:
    """The bytes of the budget that this work holds: what it was admitted with, and what came on top."""

    work: CombineWork
    limit: int
    kept: int = 0  # bytes of what is kept of the ranges so far
    _bytes: int = 0
    _budget: Budget = field(default_factory=budget_of)
    _more: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def held(self) -> Iterator[Holding]:
        """Hold what is asked for until the end of the block."""
        self._bytes = self.work.way.bytes
        with self._more:
            yield self

    def try_hold(self, needed: int) -> int | None:
        """Hold so many bytes in all; if that does not fit, return what the process holds otherwise."""
        if needed > self._bytes:
            reserved = self._budget.reserved + self.work.beside
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


class RunFiles:
    """The scratch files of one pass: one for the tables of each schema."""

    def __init__(self, scratch: Scratch, segment_bytes: int) -> None:
        self._scratch = scratch
        self._segment_bytes = segment_bytes
        self._files: dict[pa.Schema, SpillFile] = {}

    def write(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> Run:
        """Write tables, each of rows after those of the one before, as one run."""
        writer = self.writer(schema)
        for table in tables:
            writer.add(table)
        return writer.end()

    def writer(self, schema: pa.Schema) -> RunWriter:
        """Return what writes one run."""
        if schema not in self._files:
            self._files[schema] = SpillFile(self._scratch)
        return RunWriter(self._files[schema], self._segment_bytes)

    @property
    def bytes(self) -> int:
        """Bytes of scratch space that they take."""
        return sum(one.bytes for one in self._files.values())

    def close(self) -> None:
        """Give the space back."""
        for one in self._files.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Spilled:
    """States in scratch space: of each of their tables one run per state, in order, and its schema."""

    files: RunFiles
    runs: Mapping[str, Sequence[Run]]
    schemas: Mapping[str, pa.Schema]


def spill_states(
    work: CombineWork,
    states: StateStore,
    scratch: Scratch,
    files: ExitStack,
    earlier: Spilled | State = EMPTY_STATE,
) -> Spilled:
    """Return the states in scratch space; each is read once.

    Parameters
    ----------
    work : CombineWork
    states : StateStore
    scratch : Scratch
    files : ExitStack
        Closes what is written.
    earlier : Spilled or State, optional
        What was combined before, in scratch space or in memory: it goes first.
    """
    written = RunFiles(scratch, work.way.segment_bytes)
    files.callback(written.close)
    runs: dict[str, list[Run]] = {}
    schemas: dict[str, pa.Schema] = {}
    if isinstance(earlier, Spilled):
        runs = {name: list(found) for name, found in earlier.runs.items()}
        schemas.update(earlier.schemas)
    else:
        _write_state(work, earlier, written, runs, schemas)
    for key in work.keys:
        _write_state(work, states.require(key), written, runs, schemas)
        if work.sizes.get(key, 0) >= WORTH_RELEASING:
            release_freed()
    return Spilled(written, runs, schemas)


def _write_state(
    work: CombineWork,
    state: State,
    written: RunFiles,
    runs: dict[str, list[Run]],
    schemas: dict[str, pa.Schema],
) -> None:
    """Write each table of a state as a run."""
    if state and runs and set(state) != set(runs):
        raise CorruptionError(
            f"states with tables {sorted(runs)} and {sorted(state)} cannot be combined",
            "build them again",
        )
    for name, table in state.items():
        ordered = work.ordered(table)
        schemas[name] = ordered.schema
        runs.setdefault(name, []).append(written.write(ordered.schema, [ordered]))


def side_by_side(
    work: CombineWork, spilled: Spilled, scratch: Scratch, files: ExitStack, holding: Holding
) -> Spilled:
    """Return no more runs than are read side by side: adjacent ones combined, in as many passes."""
    count = max(map(len, spilled.runs.values()), default=0)
    while count > work.way.fan_in:
        written = RunFiles(scratch, work.way.segment_bytes)
        files.callback(written.close)
        groups = -(-count // work.way.fan_in)
        cuts = [count * number // groups for number in range(groups + 1)]
        runs = {
            name: [
                written.write(
                    spilled.schemas[name],
                    combined_ranges(work, name, of_table[start:stop], holding),
                )
                for start, stop in pairwise(cuts)
            ]
            for name, of_table in spilled.runs.items()
        }
        spilled.files.close()
        spilled, count = Spilled(written, runs, spilled.schemas), groups
    return spilled


def combined_ranges(
    work: CombineWork, name: str, runs: Sequence[Run], holding: Holding
) -> Iterator[pa.Table]:
    """Yield the combination of runs of one table, range by range."""
    for parts in key_ranges(runs, work.order):
        # Rows that are wider than a segment, or many of one key, take more than was foreseen.
        size = sum(one.nbytes for one in parts)
        holding.require(work.way.range_bytes(size, holding.kept), work.instead)
        yield work.ordered(work.transformer.combine_all([{name: one} for one in parts])[name])
        parts.clear()
        release_freed()  # Arrow keeps many times what a range takes
