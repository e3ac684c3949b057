"""The rows after each row of a partition, and what they hold: what ``Forward`` is made of.

Always true: what is found depends only on the rows in a window, and where a window is not complete yet there
is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.engines.differences import whole_difference
from featurestore.engines.protocol import Array, Series
from featurestore.engines.windows import Windows, canonical, group_rows
from featurestore.engines.windows_ahead import rows_ahead, times_ahead
from featurestore.schema import Field
from featurestore.transforms.base import State
from featurestore.transforms.heads import NEWEST, newest_of
from featurestore.transforms.tails import Extended, column_name, scattered


@dataclass(frozen=True, slots=True)
class RowsAhead:
    """The rows after each row of a partition.

    Parameters
    ----------
    rows : Extended
        The partition's rows with later ones behind them.
    order : Array
        The row at each position, sorted by group.
    start, end : Array
        ``int64 [own]``: the window of each own row, in the order in which they are sorted.
    complete : Array
        ``bool [own]``
    target : Array
        ``int64 [own]``: where each of them is among the own rows.
    """

    rows: Extended
    order: Array
    start: Array
    end: Array
    complete: Array
    target: Array

    @classmethod
    def of(cls, rows: Extended, state: State, steps: int, *, timed: bool) -> RowsAhead:
        """Return the next ``steps`` rows of each; ``timed``, those of so many steps of time.

        ``state`` may know a newest time that is later than that of the rows.
        """
        xp = rows.engine.xp
        groups = group_rows(xp, rows.codes())
        if not timed:
            start, end, complete = rows_ahead(xp, groups, steps)
        else:
            times = rows.times()
            newest = int(times[-1]) if times.shape[0] else 0
            newest = max(newest, newest_of(state)) if NEWEST in state else newest
            start, end, complete = times_ahead(xp, groups, times, steps, newest)
        own, target = rows.own(groups.order)
        return cls(rows, groups.order, start[own], end[own], complete[own], target)

    def _future(self) -> tuple[Array, Array]:
        """Return for each own row the row that it looks for, and whether there is one."""
        xp = self.rows.engine.xp
        found = self.complete & (self.end > self.start)
        at = self.end - 1
        at[~found] = 0
        rows = self.order[at] if self.order.shape[0] else at
        return scattered(xp, (rows, found), self.target)

    def value(self, position: int) -> Series:
        """Return a column's value in the future row."""
        name = column_name(position)
        frame = self.rows.frame.select(name)
        return self.rows.engine.take(frame, *self._future())[name]

    def change(self, position: int, stat: str, field: Field) -> tuple[Array, Array]:
        """Return how the future row's value differs from the row's own, and where both are known."""
        xp = self.rows.engine.xp
        values, valid = self.rows.values(position)
        count = self.rows.rows
        future, found = self._future()
        found &= valid[:count]
        if values.shape[0]:
            found &= valid[future]
        now, then = values[:count], values[future] if values.shape[0] else values
        if pa.types.is_integer(field.type):
            return canonical(xp, whole_difference(xp, then, now, found), found), found
        now, then = now.astype(xp.float64, copy=False), then.astype(xp.float64, copy=False)
        with np.errstate(all="ignore"):
            if stat == "difference":
                made = then - now
            else:
                made = then / now
                made = xp.log(made) if stat == "log_return" else made - 1.0
        return canonical(xp, made, found), found

    def windows(self, position: int) -> Windows:
        """Return the values of a column in the windows."""
        values, valid = (one[self.order] for one in self.rows.values(position))
        return Windows.of(self.rows.engine.xp, values, valid, self.start, self.end)

    def aggregate(self, windows: Windows, stat: str, min_count: int) -> tuple[Array, Array]:
        """Return a statistic of each window that is complete."""
        xp = self.rows.engine.xp
        values, valid = windows.statistic(stat, min_count)
        valid = valid & self.complete
        return scattered(xp, (canonical(xp, values, valid), valid), self.target)
