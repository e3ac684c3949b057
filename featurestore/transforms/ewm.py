"""EWM: exponentially weighted mean and standard deviation of everything so far."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import pyarrow as pa

from featurestore.engines.ewm import Decay
from featurestore.engines.protocol import Array
from featurestore.engines.running import Fold
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.event_time import PER_SECOND, Span, span_of
from featurestore.transforms.folded_column import Seen
from featurestore.transforms.grouping import By
from featurestore.transforms.naming import Renaming
from featurestore.transforms.running import Running, require_lengths
from featurestore.transforms.selectors import Selection, normalise_selection
from featurestore.transforms.statistics import (
    check_flag,
    check_min_count,
    made_fields,
    normalise_statistics,
    numeric_columns,
)
from featurestore.units import Duration

STATISTICS: Final = ("mean", "std")


@dataclass(frozen=True)
class EWM(Running):
    """Exponentially weighted mean and standard deviation of all rows of the same group so far.

    Scope ``prefix``. Rows of a group are in table order (time, then key).

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns (booleans count as 0 and 1).
    half_life : float, str or timedelta
        After how many rows, or how much time, a value weighs half as much.
    stats : str or sequence of {"mean", "std"}
    adjust : bool
        True: the mean weighted by ``2 ** -(age / half_life)``, as pandas has it. False: the recurrence
        ``y = (d * y + g * x) / (d + g)`` from the first value on, ``d = 2 ** -(distance / half_life)`` from
        value to value; ``g`` is ``1 - 2 ** -(1 / half_life)`` for rows, as pandas has it, and ``1 - d`` for
        time, as Polars has it.
    ignore_nulls : bool
        For half-lives in rows: whether rows whose value is null do not count as rows.
    min_count : int
        Fewer values than this so far give null.
    by : str or sequence of str, optional
        Groups; by default the table's key, ``[]`` for one group of all rows. Nulls are a group.
    closed : {"right", "left"}
        *Boundary rule.* A row sees the rows of its group before it and itself (right) or not (left); rows
        of one time count one by one, in table order.
    lag : str or timedelta, optional
        The row at ``t`` sees the rows up to ``t - lag`` instead (left: before that), all or none of
        those of one time.
    prefix, rename : optional
        Change the names ``<input>_ewm_<statistic>_<half_life>`` (``x_ewm_mean_7d``, ``x_ewm_std_5r``).

    Notes
    -----
    *Null rule.* Nulls are skipped: a row without value has the mean of the last one that has one. Null for
    fewer than ``min_count`` values; ``std``, which is corrected for bias as in pandas, also where fewer
    than two have weight. NaN and infinities are values: means hold them from then on, ``std`` is NaN.
    *Types.* float64.

    *State.* Up to two rows per group for each bit of the time span, some 20 in practice; with a ``lag``,
    the rows of the last ``lag`` too. *Memory.* To apply, 50 bytes per row and per row of the state, and per
    row 30 and 40 for each of 3 (mean) to 9 (std) numbers.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 2, 3], "x": [0.0, 3.0, 7.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> EWM("x", 1, by=[]).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_ewm_mean_1r': [0.0, 2.0, 4.857142857142857]}
    """

    columns: Selection
    half_life: float | str | dt.timedelta | Duration
    _: KW_ONLY
    stats: str | Sequence[str] = ("mean",)
    adjust: bool = True
    ignore_nulls: bool = False
    by: By = None
    closed: str = "right"
    lag: Span | None = None
    min_count: int = 1
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        super().__post_init__()
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "stats", normalise_statistics(self.stats, STATISTICS, "EWM"))
        put(self, "half_life", _half_life(self.half_life))
        check_flag(self.adjust, "adjust", "EWM")
        check_flag(self.ignore_nulls, "ignore_nulls", "EWM")
        if self.ignore_nulls and isinstance(self.half_life, Duration):
            raise DefinitionError(
                f"EWM has ignore_nulls=True and half_life={str(self.half_life)!r}",
                "leave it out: in time, rows do not count",
            )
        check_min_count(self.min_count, "EWM")

    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        return numeric_columns(self.columns, schema, "EWM")

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = super().inputs(schema)
        if isinstance(self.half_life, Duration):
            require_lengths(schema, "EWM", f"half_life={str(self.half_life)!r}")
        return names

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        span = self.half_life
        label = str(span) if isinstance(span, Duration) else f"{span:g}r"
        made = [
            (f"{name}_ewm_{stat}_{label}", pa.float64())
            for name in self.sources(schema)
            for stat in self.stats
        ]
        return made_fields(made, self.prefix, self.rename, "EWM")

    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        unit = schema.time_unit or "ns"
        counter = () if self.counter in (None, "count") else (self.counter,)
        return ("count", *counter, *(f"{stat}@{unit}" for stat in self.stats))

    @property
    def counter(self) -> str | None:
        if isinstance(self.half_life, Duration):
            return None
        return "count" if self.ignore_nulls else "rows"

    def fold(self, name: str) -> Fold:
        stat, _, unit = name.partition("@")
        if not unit:
            return super().fold(name)
        mean, std = self._decay(unit).folds()
        return mean if stat == "mean" else std

    def _decay(self, unit: str) -> Decay:
        span = self.half_life
        timed = isinstance(span, Duration)
        if isinstance(span, Duration):
            steps = span.nanoseconds * PER_SECOND[unit] / 10**9
        else:
            steps = float(span)  # type: ignore[arg-type]
        return Decay(steps, timed, self.adjust)

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        unit = schema.time_unit or "ns"
        decay, enough = self._decay(unit), seen["count"][0] >= self.min_count
        for stat in self.stats:
            parts = seen[f"{stat}@{unit}"]
            if stat == "mean":
                yield decay.means(xp, parts) + 0.0, enough
            else:
                spread, weighty = decay.deviations(xp, parts)
                yield spread, enough & weighty


def _half_life(value: Any) -> float | Duration:
    """Return a half-life in rows or in time.

    Raises
    ------
    DefinitionError
        If it is neither, or not positive.
    """
    if isinstance(value, str | dt.timedelta | Duration):
        span = span_of(value, "half_life", 1, "EWM")
        return span if isinstance(span, Duration) else float(span)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise DefinitionError(
            f"EWM has half_life={value!r}", "give a positive number of rows, or a length of time"
        )
    return float(value)
