"""Prefix states of rows by key, each made from the one before: in memory while they fit, then by ranges.

A tail of the last rows of each key grows with the keys, and nobody knows how many of one partition's keys are
those of others. So it is put together in memory as long as that fits; from then on it lies in scratch space,
in order of the hashes of its keys, and is read beside further summaries and written anew with them, a range of keys
at a time. Each state is kept as it is made, in parts, for who reads it by keys (``transforms.keyed``).

Always true: whoever reads the states gets the same values either way, bit for bit (rows of a key are in the same
order, keys may be in another); scratch space is given back, however this ends. Trade-off: a state is written twice
where it is large, once to scratch space and once to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import pyarrow as pa

from featurestore.allocators import WORTH_RELEASING, release_freed
from featurestore.execution.merging import (
    CombineWork,
    Holding,
    RunFiles,
    Spilled,
    combined_ranges,
    side_by_side,
    spill_states,
)
from featurestore.plan.combining import chaining, joining_bytes
from featurestore.storage.scratch import Scratch
from featurestore.storage.sorted_runs import RunWriter
from featurestore.storage.states import StateStore
from featurestore.transforms.base import EMPTY_STATE, State
from featurestore.transforms.keyed import without_order


class Chain:
    """The prefix states of one transformer, in table order.

    Parameters
    ----------
    work : CombineWork
        Of all summaries; whoever extends the chain holds ``work.way.bytes`` of the budget meanwhile.
    states : StateStore
    limit : int
        Bytes that the process may hold.
    room : int
        Bytes of it that one step may take.
    scratch : Scratch
    """

    def __init__(
        self, work: CombineWork, states: StateStore, limit: int, room: int, scratch: Scratch
    ) -> None:
        self._work = work
        self._states = states
        self._limit = limit
        self._room = room
        self._scratch = scratch
        self._state: State = EMPTY_STATE
        self._outside: Spilled | None = None

    def restart(self) -> None:
        """Forget the state so far."""
        self._state = EMPTY_STATE
        if self._outside is not None:
            self._outside.files.close()
            self._outside = None

    def extend(self, summaries: Sequence[str], key: str, *, last: bool = False) -> None:
        """Combine further summaries into the state, and keep it under a key.

        Parameters
        ----------
        summaries : sequence of str
            Their keys, in table order.
        key : str
        last : bool
            Whether the chain ends here.

        Raises
        ------
        MemoryLimitError
            If not even a range of keys fits.
        LimitError
            If it needs more scratch space than its limit leaves.
        DiskFullError
        StateLostError
        """
        with Holding(self._work, self._limit).held() as holding:
            left = summaries if self._outside else self._folded(summaries, holding)
            if left or self._outside:
                self._by_ranges(left, key, last, holding)
                return
        self._states.put(key, self._state)

    def _folded(self, summaries: Sequence[str], holding: Holding) -> Sequence[str]:
        """Combine in memory as many as fit; return those that are left."""
        for number, key in enumerate(summaries):
            earlier = _bytes(self._state)
            needed = joining_bytes(earlier, self._work.sizes.get(key, 0))
            if needed > self._room or holding.try_hold(needed) is not None:
                return summaries[number:]
            further = self._states.require(key)
            self._state = self._work.transformer.combine(self._state, further)
            del further
            if needed >= WORTH_RELEASING:
                release_freed()
        return ()

    def _by_ranges(self, summaries: Sequence[str], key: str, last: bool, holding: Holding) -> None:
        """Combine the state so far with summaries by ranges, and keep it."""
        before, inside = self._outside, _bytes(self._state)
        outside = 0 if before is None else before.files.bytes
        sizes = [self._work.sizes.get(one, 0) for one in summaries]
        way = chaining([*sizes, inside], self._room, outside)
        work = replace(self._work, keys=summaries, way=way)
        holding.require(way.bytes, work.instead)
        self._scratch.require(max(0, way.scratch_bytes - outside), work.what)
        following = RunFiles(self._scratch, way.segment_bytes)
        with ExitStack() as failed, ExitStack() as files:
            failed.callback(following.close)
            earlier = self._state if before is None else before
            spilled = spill_states(work, self._states, self._scratch, files, earlier)
            del earlier
            self._state = EMPTY_STATE
            spilled = side_by_side(work, spilled, self._scratch, files, holding)
            runs = {}
            for name, of_table in spilled.runs.items():  # one
                writer = following.writer(spilled.schemas[name])
                ranges = combined_ranges(work, name, of_table, holding)
                parts = (without_order(one) for one in _also_to(None if last else writer, ranges))
                self._states.put_parts(key, name, parts)
                runs[name] = [writer.end()]
            if not runs:
                self._states.put(key, EMPTY_STATE)
            self._outside = Spilled(following, runs, spilled.schemas)
            failed.pop_all()
        if before is not None:
            before.files.close()
        release_freed()


def _also_to(writer: RunWriter | None, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield tables after they were written as well."""
    for table in tables:
        if writer is not None:
            writer.add(table)
        yield table


def _bytes(state: State) -> int:
    return sum(table.nbytes for table in state.values())
