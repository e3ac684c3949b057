"""Winsorize: values beyond two bounds replaced by the bounds, which the data say.

Always true: the bounds come from finite values only; infinities are cut to them. Trade-off: a bound
lies between two values in proportion (``linear``), as in NumPy and pandas, so it need not be a value
that occurs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks, mapped
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.ranks import SortedGroups
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, State
from featurestore.transforms.columnwise import require_learnt
from featurestore.transforms.extent import Extent
from featurestore.transforms.moments import (
    Moments,
    combine_moments,
    moments_bytes,
    moments_fingerprint,
    moments_memory,
    summarize_moments,
)
from featurestore.transforms.quantile_learner import QuantileLearner, learnt
from featurestore.transforms.within_time import WithinTime, check_by

WITHIN: Final = ("fit", "time")


@dataclass(frozen=True)
class Winsorize(QuantileLearner, WithinTime):
    """Extreme values replaced by a quantile, or by so many standard deviations from the mean.

    Scope: fit; none with ``within="time"``: bounds are those of the rows of each timestamp.
    State: up to 96 KiB per column, and 24 for each doubling of the rows beyond 2,048, shared by all that
    learns quantiles of the same columns; 88 bytes per column with ``deviations``. None with
    ``within="time"``.
    Null rule: a null gives null and NaN stays NaN; neither they nor infinities enter the bounds.
    Infinities are cut to the bounds; where no value is finite, values stay what they are.
    Boundary rule: quantiles of all rows of the fit scope, exact for up to 4,096 distinct values, else
    with a rank that is off by at most 1% of the rows. With ``within="time"`` a group is all rows of
    exactly one time.
    Output: the input's type for floats, float64 for others.
    Memory: 16 bytes per row, for one column at a time, 40 to learn; with ``within="time"`` 144.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    limits : (float, float)
        The shares of values at the bounds, ``0 <= lower < upper <= 1``: 0 and 1 are the smallest and
        the largest value.
    deviations : float, optional
        Bounds are ``mean - deviations * std`` and ``mean + deviations * std`` instead, with the
        population's standard deviation (divisor ``n``).
    within : {"fit", "time"}
        Which rows say the bounds: those of the fit scope, or those of the same time.
    by : str or sequence of str, optional
        With ``within="time"``: only rows that agree in these columns too; nulls are a group.
    prefix, suffix, rename : optional
        Change the names; by default the output replaces the input in a pipeline.

    Raises
    ------
    DefinitionError
        For other limits, a table without time column, or ``by`` without ``within="time"``.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1] * 5, "x": [0.0, 1.0, 2.0, 3.0, 100.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> Winsorize("x", (0.25, 0.75), within="time").apply(part, {}, engine).frame["x"].to_list()
    [1.0, 1.0, 2.0, 3.0, 3.0]
    """

    limits: tuple[float, float] = (0.01, 0.99)
    _: KW_ONLY
    deviations: float | None = None
    within: str = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "limits", tuple(self.limits))
        if len(self.limits) != 2 or not 0 <= self.limits[0] < self.limits[1] <= 1:
            raise DefinitionError(
                f"Winsorize has limits={self.limits}",
                "give two shares, 0 <= lower < upper <= 1, as (0.01, 0.99)",
            )
        if self.deviations is not None and not 0 < self.deviations < np.inf:
            raise DefinitionError(
                f"Winsorize has deviations={self.deviations}", "give a number above 0, as 3.0"
            )
        if self.within not in WITHIN:
            raise DefinitionError(
                f"Winsorize has within={self.within!r}", f"choose from {list(WITHIN)}"
            )
        check_by(self)

    @property
    def crosses(self) -> bool:
        return self.within == "time"

    def type_of(self, one: Field) -> pa.DataType:
        return one.type if pa.types.is_floating(one.type) else pa.float64()

    # --- learnt from a fit scope -------------------------------------------------------------------

    def shares(self, rows: int) -> Sequence[float]:
        return self.limits

    def summarize(self, partition: Partition, engine: Engine) -> State:
        if self.deviations is None:
            return super().summarize(partition, engine)
        return summarize_moments(partition, self.selected(partition.schema), engine)

    def combine(self, earlier: State, later: State) -> State:
        together = super().combine if self.deviations is None else combine_moments
        return together(earlier, later)

    def finish(self, state: State) -> State:
        """Return both bounds of each column, none where it has no finite value."""
        if self.deviations is None:
            return super().finish(state)
        require_learnt(state)
        moments = Moments.from_state(state)
        moments.require_finite(moments.deviation(), "variance")
        width = self.deviations * moments.deviation()
        bounds = np.stack([moments.mean[0] - width, moments.mean[0] + width], axis=1)
        known = moments.count > 0
        return {
            name: pa.table({"value": pa.array(bounds[i] if known[i] else bounds[i][:0])})
            for i, name in enumerate(moments.columns)
        }

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp, bounds = engine.xp, learnt(state, source.name).tolist() or [-np.inf, np.inf]
        numbers, valid = engine.values(values)
        dtype = target.type.to_pandas_dtype()
        made = mapped(numbers, dtype, xp, lambda part: cut(xp, part, *bounds))
        return engine.column(target.name, made, valid, target.type)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.crosses:  # both bounds by group, besides what all that compare rows take
            return WithinTime.memory(self, schema, extent) + 12 * extent.rows
        return QuantileLearner.memory(self, schema, extent)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.deviations is None:
            return super().summarize_memory(schema, extent)
        return moments_memory(self.selected(schema), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        if self.crosses:
            return 0
        if self.deviations is None:
            return super().state_bytes(schema, extent)
        return moments_bytes(self.selected(schema))

    def summary_bytes(self, schema: TableSchema, extent: Extent) -> int:
        if self.crosses or self.deviations is not None:
            return self.state_bytes(schema, extent)
        return super().summary_bytes(schema, extent)

    def state_fingerprint(self) -> str:
        if self.deviations is None:
            return super().state_fingerprint()
        return moments_fingerprint(self.columns)

    # --- within a time -----------------------------------------------------------------------------

    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, Array]:
        finite = xp.isfinite(values) & valid if values.dtype.kind == "f" else valid
        groups = SortedGroups.of(xp, codes, values, finite)
        low, high = self._bounds(xp, groups)
        lowest = groups.of_codes(codes, low, -np.inf)
        highest = groups.of_codes(codes, high, np.inf)
        del groups
        out = xp.empty(values.shape[0], dtype=xp.float64)
        for where in blocks(out.shape[0], xp):
            out[where] = cut(xp, values[where], lowest[codes[where]], highest[codes[where]])
        return out, valid

    def _bounds(self, xp: Any, groups: SortedGroups) -> tuple[Array, Array]:
        if self.deviations is None:
            return groups.quantiles(self.limits[0]), groups.quantiles(self.limits[1])
        mean, squares = groups.shifted().moments()
        mean += groups.lowest()
        width = self.deviations * xp.sqrt(squares / (groups.end - groups.begin))
        return mean - width, mean + width


def cut(xp: Any, values: Array, low: Array | float, high: Array | float) -> Array:
    """Return values as ``float64``, those beyond the bounds replaced by them; NaN stays NaN."""
    numbers = values.astype(xp.float64)
    numbers = xp.where(numbers < low, low, numbers)
    return xp.where(numbers > high, high, numbers)
