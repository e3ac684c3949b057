"""RobustScale: numbers centred on the median and divided by how far two quantiles are apart.

Always true: a share of outliers smaller than the quantiles leave out changes nothing for the others.
Trade-off: quantiles of more than 4,096 distinct values are a sketch's, with the error that
:mod:`quantiles` states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field
from featurestore.transforms.affine import centers_and_divisors, ranges, scaled, scaled_type
from featurestore.transforms.base import Scope, State
from featurestore.transforms.columnwise import require_learnt
from featurestore.transforms.quantile_learner import QuantileLearner
from featurestore.transforms.quantiles import column_quantiles


@dataclass(frozen=True)
class RobustScale(QuantileLearner):
    """Subtract a column's median and divide by the distance between two of its quantiles.

    Scope: fit. State: up to 96 KiB per column, and 24 for each doubling of the rows beyond 2,048; shared
    by all that learns quantiles of the same columns. Boundary rule: quantiles of all rows of the fit scope,
    exact for up to 4,096 distinct values, else with a rank that is off by at most 1% of the rows.
    Null rule: a null gives null. NaN and infinities are not learnt from and stay what they are. Columns
    whose two quantiles are equal are divided by 1; a column without any finite value in the fit scope
    gives nulls.
    Output: float64 for float64 and decimal columns, else float32 (computed in float64).
    Memory: 16 bytes per row, for one column at a time; 40 to learn.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    quantile_range : (float, float)
        Shares between 0 and 1: (0.25, 0.75) is the distance between quartiles.
    median : bool
        Subtract the median; else only divide.
    prefix, suffix, rename : optional
        Change the names; by default the output replaces the input in a pipeline.

    Raises
    ------
    SchemaError
        If a selected column is not numeric.
    DefinitionError
        For another ``quantile_range``.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> from featurestore.schema import TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> schema = TableSchema((Field("x", pa.float64()),))
    >>> table = pa.table({"x": [0.0, 1.0, 2.0, 3.0, 1000.0, None]})
    >>> part = Partition(engine.from_arrow(table), schema)
    >>> scale = RobustScale("x")
    >>> state = scale.finish(scale.summarize(part, engine))
    >>> scale.apply(part, state, engine).frame["x"].to_list()
    [-1.0, -0.5, 0.0, 0.5, 499.0, None]
    """

    _: KW_ONLY
    quantile_range: tuple[float, float] = (0.25, 0.75)
    median: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = tuple(float(one) for one in self.quantile_range)
        if len(shares) != 2 or not 0 <= shares[0] < shares[1] <= 1:
            raise DefinitionError(
                f"RobustScale has quantile_range={self.quantile_range!r}",
                "give two shares, 0 <= lower < upper <= 1, as (0.25, 0.75)",
            )
        object.__setattr__(self, "quantile_range", shares)

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def type_of(self, one: Field) -> pa.DataType:
        return scaled_type(one.type)

    def shares(self, rows: int) -> Sequence[float]:
        return (self.quantile_range[0], 0.5, self.quantile_range[1])

    def finish(self, state: State) -> State:
        """Return one row per column: median and distance, null when unknown."""
        require_learnt(state)
        found = column_quantiles(state, self.shares)
        unknown = np.array([len(one) == 0 for one in found.values()], dtype=np.bool_)
        known = [one if len(one) else np.zeros(3) for one in found.values()]
        low, middle, high = np.array(known).reshape(-1, 3).T
        apart, first = ranges(low, high)
        center = middle / first if self.median else np.zeros_like(middle)
        names = list(found)
        return centers_and_divisors(names, (center, np.zeros_like(center)), apart, unknown, first)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        return scaled(values, source, target, state, engine)
