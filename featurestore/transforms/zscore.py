"""ZScore and Demean: how far a row is from the mean of its timestamp.

Always true: values are counted from the smallest of their group before they are averaged, so that a
mean far larger than the spread costs no digits; equal values give exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from featurestore.engines.protocol import Array
from featurestore.engines.ranks import SortedGroups
from featurestore.transforms.within_time import WithinTime


@dataclass(frozen=True)
class ZScore(WithinTime):
    """``(value - mean) / standard deviation`` among the rows of a timestamp.

    The deviation is the sample's (``ddof=1``); where all values are equal, or there is one, the score
    is 0.
    Scope: none. State: none. Null rule: rows whose value is null or NaN are not counted; they get null
    or NaN. The scores of a group with an infinity are NaN. Boundary rule: a group is all rows of exactly
    one time. Output: float64. Memory: 128 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns.
    by : str or sequence of str, optional
        Compare only rows that agree in these columns too (a sector); nulls are a group.
    prefix, suffix, rename : optional
        Change the names ``<input>_zscore``.

    Raises
    ------
    DefinitionError
        For a table without time column.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field, TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 1, 1, 2], "x": [30.0, 10.0, 20.0, 5.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> ZScore("x").apply(part, {}, engine).frame["x_zscore"].to_list()
    [1.0, -1.0, 0.0, 0.0]
    """

    suffix: str = field(default="_zscore", kw_only=True)

    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, Array]:
        groups = SortedGroups.of(xp, codes, values, valid & ~missing)
        scores = groups.shifted().scaled().zscore()
        scores[missing] = xp.nan
        return scores, valid


@dataclass(frozen=True)
class Demean(WithinTime):
    """``value - mean`` among the rows of a timestamp: with ``by``, values made neutral to a group.

    Scope: none. State: none. Null rule: rows whose value is null or NaN are not counted; they get null
    or NaN. A group with an infinity gives NaN. Boundary rule: a group is all rows of exactly one time.
    Output: float64. Memory: 128 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns.
    by : str or sequence of str, optional
        Take the mean of the rows that agree in these columns too (a sector); nulls are a group.
    prefix, suffix, rename : optional
        Change the names ``<input>_demeaned``.

    Raises
    ------
    DefinitionError
        For a table without time column.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field, TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 1, 1, 1], "sector": list("aabb"), "x": [1.0, 3.0, 10.0, 20.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> Demean("x", by="sector").apply(part, {}, engine).frame["x_demeaned"].to_list()
    [-1.0, 1.0, -5.0, 5.0]
    """

    suffix: str = field(default="_demeaned", kw_only=True)

    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, Array]:
        out = SortedGroups.of(xp, codes, values, valid & ~missing).shifted().demean()
        out[missing] = xp.nan
        return out, valid
