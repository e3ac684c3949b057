"""QuantileTransform: numbers by their rank among the rows learnt from, spread evenly or normally.

Always true: the order of values is kept; what lies beyond the learnt values gets the ends.
Trade-off: between two learnt quantiles a value is in proportion, so a distribution is followed as closely
as ``n_quantiles`` and the state's rank error allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import mapped
from featurestore.engines.normal import normal_quantile
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field
from featurestore.transforms.affine import scaled_type
from featurestore.transforms.base import Scope, State
from featurestore.transforms.quantile_learner import QuantileLearner, learnt

DISTRIBUTIONS: Final = ("uniform", "normal")
MOST_QUANTILES: Final = 100_000
_LEAST: Final = 1e-7
"""Shares closer to 0 and 1 have the normal quantile of this: 5.2 deviations."""


@dataclass(frozen=True)
class QuantileTransform(QuantileLearner):
    """A value as the share of learnt values below it, or as the normal distribution's value there.

    Scope: fit. State: up to 96 KiB per column, and 24 for each doubling of the rows beyond 2,048; shared
    by all that learns quantiles of the same columns. Boundary rule: quantiles of all rows of the fit scope,
    exact for up to 4,096 distinct values, else with a rank that is off by at most 1% of the rows; a value
    that occurs often gets the middle of its shares.
    Null rule: a null gives null, NaN stays NaN, neither is learnt from. Values beyond the learnt ones,
    infinities among them, get the ends: 0 and 1, or -5.2 and 5.2. A constant column's value becomes the
    lower end; a column without any finite value in the fit scope gives nulls.
    Output: float64 for float64 and decimal columns, else float32 (computed in float64).
    Memory: 16 bytes per row, for one column at a time; 40 to learn.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    n_quantiles : int
        How many quantiles are kept; 2 or more. Never more than there are values.
    distribution : {"uniform", "normal"}
    prefix, suffix, rename : optional
        Change the names; by default the output replaces the input in a pipeline.

    Raises
    ------
    SchemaError
        If a selected column is not numeric.
    DefinitionError
        For other parameters.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> from featurestore.schema import TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("x", pa.float64()),))
    >>> table = pa.table({"x": [1.0, 10.0, 100.0, None, 1e6, 1e9]})
    >>> part = Partition(engine.from_arrow(table), schema)
    >>> spread = QuantileTransform("x")
    >>> state = spread.finish(spread.summarize(part, engine))
    >>> spread.apply(part, state, engine).frame["x"].to_list()
    [0.0, 0.25, 0.5, None, 0.75, 1.0]
    """

    _: KW_ONLY
    n_quantiles: int = 1000
    distribution: str = "uniform"

    stored_as: ClassVar[Mapping[str, str]] = {"distribution": "output"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.n_quantiles) is not int or not 2 <= self.n_quantiles <= MOST_QUANTILES:
            raise DefinitionError(
                f"QuantileTransform has n_quantiles={self.n_quantiles!r}",
                f"give a whole number from 2 to {MOST_QUANTILES}",
            )
        if self.distribution not in DISTRIBUTIONS:
            raise DefinitionError(
                f"QuantileTransform has distribution={self.distribution!r}",
                f"choose from {list(DISTRIBUTIONS)}",
            )

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def type_of(self, one: Field) -> pa.DataType:
        return scaled_type(one.type)

    def shares(self, rows: int) -> Sequence[float]:
        found: list[float] = np.linspace(0, 1, max(1, min(self.n_quantiles, rows))).tolist()
        return found

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp, known = engine.xp, learnt(state, source.name)
        numbers, valid = engine.values(values)
        if len(known) == 0:
            valid = xp.zeros(numbers.shape, dtype=bool)
            known = np.zeros(1)
        shares = engine.from_host(np.array(self.shares(len(known))))
        known = engine.from_host(known)
        first, last = float(known[0]), float(known[-1])

        def ranked(part: Array) -> Array:
            # Values that are several quantiles have several shares: the middle of the first and last.
            upper = xp.interp(part, known, shares)
            lower = xp.interp(-part, -known[::-1], -shares[::-1])
            share = 0.5 * (upper - lower)
            share[part >= last] = 1.0
            share[part <= first] = 0.0
            if self.distribution == "normal":
                share = normal_quantile(xp.clip(share, _LEAST, 1 - _LEAST), xp)
            return share

        made = mapped(numbers, target.type.to_pandas_dtype(), xp, ranked)
        return engine.column(target.name, made, valid, target.type)
