"""Rank: which place a row has among the rows of its timestamp.

Always true: the rank is that of the row's value, so equal values have equal ranks and the order of
rows does not matter. For that there is no ``"ordinal"`` method, which numbers ties by position.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from featurestore.engines.protocol import Array
from featurestore.engines.ranks import METHODS, SortedGroups
from featurestore.errors import DefinitionError
from featurestore.transforms.within_time import WithinTime


@dataclass(frozen=True)
class Rank(WithinTime):
    """The place of a row's value among those of its timestamp.

    Scope: none. State: none. Null rule: rows whose value is null or NaN are not counted; they get null
    or NaN. An infinity is the largest or smallest value. Boundary rule: a group is all rows of exactly
    one time. Output: float64. Memory: 128 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns.
    method : {"average", "min", "max", "dense"}
        The rank of equal values: the mean, smallest or largest of the places that they take together,
        or their place among the different values.
    normalized : bool
        Divide by the number of values (of different values for ``dense``), so that ranks lie in
        ``(0, 1]`` however many rows a time has: of ``n`` different values the first has ``1 / n`` and
        the last 1. Otherwise ranks are 1, 2, 3, ...
    ascending : bool
        Whether the smallest value is the first.
    by : str or sequence of str, optional
        Compare only rows that agree in these columns too (a sector); nulls are a group.
    prefix, suffix, rename : optional
        Change the names ``<input>_rank``.

    Raises
    ------
    DefinitionError
        For another method, or a table without time column.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import Field, TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 1, 1, 2], "x": [30.0, 10.0, 10.0, 5.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> Rank("x", "min", normalized=False).apply(part, {}, engine).frame["x_rank"].to_list()
    [3.0, 1.0, 1.0, 1.0]
    """

    method: str = "average"
    _: KW_ONLY
    normalized: bool = True
    ascending: bool = True
    suffix: str = "_rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise DefinitionError(
                f"{self.method!r} is not a method of Rank", f"choose from {list(METHODS)}"
            )

    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, Array]:
        groups = SortedGroups.of(xp, codes, values, valid & ~missing)
        ranks = groups.rank(self.method, normalized=self.normalized, ascending=self.ascending)
        ranks[missing] = xp.nan
        return ranks, valid
