"""CrossSection: ranks and standard scores of one time, as stores from before ``Rank`` and ``ZScore`` have
them.

Always true: a stored definition gives the bits that it always gave; what is computed is shared with
those two. Trade-off: a mean far larger than the spread costs its z-scores digits, which ``ZScore`` keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final

import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.ranks import SortedGroups
from featurestore.engines.windows import canonical
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes, grouping_bytes, rounding_bytes
from featurestore.transforms.grouping import By, normalise_by
from featurestore.transforms.naming import Renaming, normalise_renaming, output_names
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.within_time import ROW_BYTES, numbers_of, time_groups

STATISTICS: Final = ("rank", "zscore")


@dataclass(frozen=True)
class CrossSection(Transformer):
    """Where a row stands among the rows of its timestamp.

    Kept for stores that have it: :class:`~featurestore.transforms.rank.Rank` and
    :class:`~featurestore.transforms.zscore.ZScore` do the same and more.
    Scope ``none``; no state.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numeric or boolean columns.
    stats : str or sequence of {"rank", "zscore"}
        ``rank``: the average rank divided by the number of values, in ``(0, 1]``: of ``n`` different
        values the smallest has ``1 / n`` and the largest 1, equal values share the mean of their
        ranks. ``zscore``: ``(value - mean) / std`` with ``ddof=1``; 0 where all values are equal.
    by : str or sequence of str, optional
        Compare only rows that agree in these columns too (a sector); nulls are a group.
    prefix, rename : optional
        Change the names ``<input>_rank`` and ``<input>_zscore``.

    Notes
    -----
    *Null rule.* Rows whose value is null or NaN are not counted; they get null or NaN. An infinity is
    the largest or smallest value; the z-scores of its group are NaN. *Boundary rule.* A group is all
    rows of exactly one time. Results do not depend on the order of rows. *Types.* float64. *Memory.*
    128 bytes per row, for one column at a time.

    Raises
    ------
    DefinitionError
        For a table without time column.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 1, 1, 2], "x": [30.0, 10.0, 20.0, 5.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> CrossSection("x", "zscore").apply(part, {}, engine).frame.to_dict(as_series=False)
    {'x_zscore': [1.0, -1.0, 0.0, 0.0]}
    """

    columns: Selection
    stats: str | Sequence[str] = ("rank",)
    _: KW_ONLY
    by: By = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "by", normalise_by(self.by))
        put(self, "rename", normalise_renaming(self.rename))
        put(self, "stats", (self.stats,) if isinstance(self.stats, str) else tuple(self.stats))
        unknown = [one for one in self.stats if one not in STATISTICS]
        if unknown or not self.stats or len(set(self.stats)) != len(self.stats):
            raise DefinitionError(
                f"CrossSection has stats={list(self.stats)}",
                f"use some of {list(STATISTICS)}, each once",
            )

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.TIMES

    def _groups(self, schema: TableSchema) -> tuple[str, ...]:
        return time_groups(schema, self.by, "CrossSection")

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            if not schema[name].is_numeric:
                raise SchemaError(
                    f"CrossSection cannot work on column {name!r} of type {schema[name].type}",
                    "name numeric or boolean columns",
                )
        return names

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self._groups(schema), *self._columns(schema))))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        defaults = [f"{name}_{stat}" for name in self._columns(schema) for stat in self.stats]
        names = output_names(defaults, self.prefix, self.rename, "CrossSection")
        return tuple(Field(name, pa.float64()) for name in names)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        codes = engine.codes(partition.frame, self._groups(schema))
        names = iter(self.outputs(schema))
        out = []
        for column in self._columns(schema):
            values, valid, missing = numbers_of(xp, engine, partition.frame[column])
            groups = SortedGroups.of(xp, codes, values, valid & ~missing)
            for stat in self.stats:
                results = groups.rank() if stat == "rank" else groups.zscore()
                results[missing] = xp.nan
                field = next(names)
                made = canonical(xp, results, valid)
                out.append(engine.column(field.name, made, valid, field.type))
        return Columns(partition.frame.select(*out) if out else None)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        grouping = grouping_bytes(schema, self._groups(schema), extent.rows)
        return rounding + max(grouping, ROW_BYTES * extent.rows)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
