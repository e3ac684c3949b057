"""MinMax: numbers moved and stretched into a range, by the smallest and the largest one learnt.

Always true: smallest and largest merge exactly, so the output is the same bits for every partitioning.
Trade-off: one outlier of the training rows squeezes all others together; ``RobustScale`` and
``QuantileTransform`` do not have that.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

import numpy as np

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field
from featurestore.transforms.affine import centers_and_divisors, ranges, scaled
from featurestore.transforms.base import State
from featurestore.transforms.columnwise import require_learnt
from featurestore.transforms.moments import Moments
from featurestore.transforms.moments_learner import MomentsLearner


@dataclass(frozen=True)
class MinMax(MomentsLearner):
    """Map a column's smallest value to the lower end of a range, and its largest to the upper end.

    Scope: fit. State: 88 bytes per column, the same as that of ``Standardize``. Boundary rule:
    smallest and largest of all rows of the fit scope; values beyond them lie outside of the range
    unless ``clip``.
    Null rule: a null gives null. NaN and infinities are not learnt from and stay what they are; with
    ``clip`` infinities become the range's ends. A constant column's value becomes the lower end; a
    column without any finite value in the fit scope gives nulls.
    Output: float64 for float64 and decimal columns, else float32 (computed in float64).
    Memory: 16 bytes per row, for one column at a time; 14 to learn.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    feature_range : (float, float)
        The lower and the upper end.
    clip : bool
        Cut what lies beyond the ends.
    prefix, suffix, rename : optional
        Change the names; by default the output replaces the input in a pipeline.

    Raises
    ------
    SchemaError
        If a selected column is not numeric.
    DefinitionError
        For a range that is empty or not finite.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field, TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("x", pa.float64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [1.0, 2.0, 5.0, None]})), schema)
    >>> scale = MinMax("x", feature_range=(-1, 1))
    >>> state = scale.finish(scale.summarize(part, engine))
    >>> scale.apply(part, state, engine).frame["x"].to_list()
    [-1.0, -0.5, 1.0, None]
    """

    _: KW_ONLY
    feature_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = tuple(float(one) for one in self.feature_range)
        if len(ends) != 2 or not ends[0] < ends[1] or not math.isfinite(ends[1] - ends[0]):
            raise DefinitionError(
                f"MinMax has feature_range={self.feature_range!r}",
                "give two finite numbers, the lower one first, as (0, 1)",
            )
        object.__setattr__(self, "feature_range", ends)

    def finish(self, state: State) -> State:
        """Return one row per column: smallest and range, null when unknown."""
        require_learnt(state)
        moments = Moments.from_state(state)
        apart, first = ranges(moments.smallest, moments.largest)
        center = moments.smallest / first
        unknown = moments.count == 0
        return centers_and_divisors(
            moments.columns, (center, np.zeros_like(center)), apart, unknown, first
        )

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        low, high = self.feature_range

        def placed(share: Array) -> Array:
            if high - low != 1.0:
                share *= high - low
            if low:
                share += low
            return engine.xp.clip(share, low, high) if self.clip else share

        return scaled(values, source, target, state, engine, placed)
