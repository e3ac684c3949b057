"""Standardize: numbers made fit for a model with mean and deviation of the training rows.

Always true: both are merged exactly (see ``moments``), so the output does not depend on the partitioning;
finite inputs give finite outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.transforms.affine import centers_and_divisors
from featurestore.transforms.base import State
from featurestore.transforms.columnwise import require_learnt
from featurestore.transforms.moments import Moments
from featurestore.transforms.moments_learner import MomentsLearner


@dataclass(frozen=True)
class Standardize(MomentsLearner):
    """Subtract a column's mean and divide by its standard deviation.

    Scope: fit. State: 88 bytes per column. Boundary rule: statistics of all rows of the fit scope.
    Null rule: a null gives null. NaN and infinities do not enter the statistics and stay what they
    are. Constant columns are divided by 1; a column without any finite value in the fit scope gives
    nulls. The standard deviation is the population's (divisor n).
    Output: float64 for float64 and decimal columns, else float32 (computed in float64).
    Memory: 16 bytes per row, for one column without its nulls at a time; 14 to learn.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    SchemaError
        If a selected column is not numeric.
    DefinitionError
        At the end of fitting: values so large that their variance overflows float64.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field, TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("x", pa.float64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [1.0, 3.0, None]})), schema)
    >>> scale = Standardize("x")
    >>> state = scale.finish(scale.summarize(part, engine))
    >>> scale.apply(part, state, engine).frame["x"].to_list()
    [-1.0, 1.0, None]
    """

    def finish(self, state: State) -> State:
        """Return one row per column: mean (two float64) and divisor, both null when unknown."""
        require_learnt(state)
        moments = Moments.from_state(state)
        deviation = moments.deviation()
        moments.require_finite(deviation, "variance")
        return centers_and_divisors(moments.columns, moments.mean, deviation, moments.count == 0)
