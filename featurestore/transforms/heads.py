"""The first rows of a run of rows: the state of transformers that look ahead. The mirror of :mod:`tails`.

A head is an Arrow table with columns ``by_0, by_1, ...``, ``time`` and ``column_0, ...`` in table order:
the rows within a span of the first, or the first rows of each group. Cutting a head twice is the same
as cutting it once, so ``combine(a, b) = cut(a + b)`` is associative, and an empty run changes nothing.
Beside it stands the newest time of the run, as windows of time are complete by it.
"""

from __future__ import annotations

from typing import Final

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.arrow import HostArray
from featurestore.engines.protocol import Engine, Frame
from featurestore.engines.windows import INT64_MAX
from featurestore.engines.windows_ahead import first_of_group
from featurestore.transforms.base import State
from featurestore.transforms.event_time import arrow_times, frame_times
from featurestore.transforms.tails import TIME, Extended, Keep, arrow_codes

HEAD: Final = "head"
NEWEST: Final = "newest"


def summarize_head(engine: Engine, frame: Frame, keep: Keep) -> State:
    """Return the head of a positional frame with times; no rows give the empty state."""
    if len(frame) == 0:
        return {}
    xp = engine.xp
    newest = int(frame_times(engine, frame.tail(1), TIME)[0])
    if keep.span is not None:
        times = frame_times(engine, frame, TIME)
        positions = xp.flatnonzero(times <= min(int(times[0]) + keep.span, INT64_MAX))
    else:
        by = [column for column in frame.columns if column.startswith("by_")]
        positions = first_of_group(xp, engine.codes(frame, by), keep.rows or 1)
    return _state(engine.to_arrow(engine.take(frame, positions)), newest)


def combine_heads(earlier: State, later: State, keep: Keep) -> State:
    """Return the head of two adjacent runs."""
    if not earlier or not later:
        return earlier or later
    newest = max(newest_of(earlier), newest_of(later))
    heads = [one[HEAD] for one in (earlier, later) if HEAD in one]
    if not heads:
        return {NEWEST: _newest(newest)}
    table = pa.concat_tables(heads).combine_chunks()
    if keep.span is not None:
        times = arrow_times(table[TIME])
        positions = np.flatnonzero(times <= min(int(times.min()) + keep.span, INT64_MAX))
    else:
        positions = first_of_group(np, arrow_codes(table, _by(table)), keep.rows or 1)
    return _state(_taken(table, positions), newest)


def head_until(later: State, horizon: int) -> State:
    """Return the rows of a head up to a time, which stands for the newest."""
    state = {NEWEST: _newest(horizon)}
    if HEAD in later:
        table = later[HEAD]
        kept = _taken(table, np.flatnonzero(arrow_times(table[TIME]) <= horizon))
        if len(kept):
            state[HEAD] = kept
    return state


def head_of_groups(later: State, own: State, count: int) -> tuple[State, int | None]:
    """Return the rows of the groups that a partition has, and the last of their times.

    Parameters
    ----------
    later, own : State
        Heads of the first ``count`` rows of each group: of the rows after the partition, and its own.
    count : int

    Returns
    -------
    State
    int, optional
        None if a group has fewer than ``count`` rows, so that there may be further ones.
    """
    if HEAD not in later or HEAD not in own:
        return {}, None
    mine, table = own[HEAD], later[HEAD]
    by = _by(table)
    columns = [*by, TIME]  # a table without columns has no rows
    together = pa.concat_tables([mine.select(columns), table.select(columns)]).combine_chunks()
    codes = arrow_codes(together, by)
    groups, rest = np.unique(codes[: len(mine)]), codes[len(mine) :]
    kept = np.isin(rest, groups)
    counts = np.bincount(rest[kept], minlength=int(codes.max()) + 1)[groups]
    table = _taken(table, np.flatnonzero(kept)).combine_chunks()
    if not len(table):
        return {}, None
    newest = int(arrow_times(table[TIME]).max())
    # Not the newest time of all later rows: they would give the state other bits.
    return _state(table, newest), newest if bool((counts >= count).all()) else None


def with_head(engine: Engine, frame: Frame, state: State, by_count: int) -> Extended:
    """Return a partition's rows, under positional names, with the head of later ones behind them."""
    head = state.get(HEAD)
    if head is None or len(head) == 0:
        return Extended(engine, frame, 0, by_count)
    later = engine.from_arrow(head.select(frame.columns))
    both = nw.concat([frame, later], how="vertical")
    return Extended(engine, both, 0, by_count, len(head))


def newest_of(state: State) -> int:
    """Return the newest time of a run of rows."""
    return int(state[NEWEST][TIME][0].as_py())


def _state(head: pa.Table, newest: int) -> State:
    return {HEAD: head, NEWEST: _newest(newest)}


def _newest(time: int) -> pa.Table:
    return pa.table({TIME: pa.array([time], pa.int64())})


def _by(table: pa.Table) -> list[str]:
    return [column for column in table.column_names if column.startswith("by_")]


def _taken(table: pa.Table, positions: HostArray) -> pa.Table:
    return table if len(positions) == len(table) else table.take(pa.array(positions))
