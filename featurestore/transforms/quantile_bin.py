"""QuantileBin: which of ``q`` equally full bins a value falls into, as a code.

Always true: equal values share a bin, and what separates the bins are the quantiles ``1/q, 2/q, ...``
between their two nearest values in proportion (``linear``), as in pandas' ``qcut``; a value at an edge
belongs to the lower bin. Within a timestamp this follows from ranks alone, in exact integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import pyarrow as pa

from featurestore.engines.blocks import blocks, mapped
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.ranks import SortedGroups
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import State
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes, row_bits
from featurestore.transforms.quantile_learner import QuantileLearner, learnt
from featurestore.transforms.within_time import WithinTime, check_by

WITHIN: Final = ("fit", "time")
MOST_BINS: Final = 2**20


@dataclass(frozen=True)
class QuantileBin(QuantileLearner, WithinTime):
    """Numbers as codes 1, 2, ..., ``q`` of bins that hold equally many values.

    Scope: fit; none with ``within="time"``: bins are those of the rows of each timestamp.
    State: up to 96 KiB per column, and 24 for each doubling of the rows beyond 2,048; shared by all that
    learns quantiles of the same columns. None with ``within="time"``.
    Null rule: null and NaN get code 0. Neither they nor infinities say where bins end; a negative
    infinity is in bin 1, a positive one in bin ``q``. All of a column without any finite value in the fit
    scope gets code 0.
    Boundary rule: quantiles of all rows of the fit scope, exact for up to 4,096 distinct values, else
    with a rank that is off by at most 1% of the rows. With ``within="time"`` a group is all rows of
    exactly one time. With fewer different values than bins some stay empty.
    Output: int32, never null, below ``q + 1``.
    Memory: 6 bytes per row and a column's width, for one column at a time, 40 to learn; with ``within="time"`` 120.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    q : int
        How many bins; 2 or more.
    within : {"fit", "time"}
        Which rows say where bins end: those of the fit scope, or those of the same time.
    by : str or sequence of str, optional
        With ``within="time"``: only rows that agree in these columns too; nulls are a group.
    prefix, suffix, rename : optional
        Change the names; by default the output replaces the input in a pipeline.

    Raises
    ------
    DefinitionError
        For another ``q``, a table without time column, or ``by`` without ``within="time"``.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1] * 5, "x": [0.0, 1.0, None, 2.0, 3.0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> QuantileBin("x", 2, within="time").apply(part, {}, engine).frame["x"].to_list()
    [1, 1, 0, 2, 2]
    """

    q: int = 10
    _: KW_ONLY
    within: str = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.q) is not int or not 2 <= self.q <= MOST_BINS:
            raise DefinitionError(
                f"QuantileBin has q={self.q!r}", f"give a whole number from 2 to {MOST_BINS}"
            )
        if self.within not in WITHIN:
            raise DefinitionError(
                f"QuantileBin has within={self.within!r}", f"choose from {list(WITHIN)}"
            )
        check_by(self)

    @property
    def crosses(self) -> bool:
        return self.within == "time"

    def shares(self, rows: int) -> Sequence[float]:
        return [one / self.q for one in range(1, self.q)]

    def type_of(self, one: Field) -> pa.DataType:
        return pa.int32()

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def code_counts(self, schema: TableSchema) -> Mapping[str, int]:
        return dict.fromkeys(self.codes(schema), self.q + 1)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp, edges = engine.xp, engine.from_host(learnt(state, source.name))
        numbers, valid = engine.values(values)

        def binned(part: Array) -> Array:
            found = 1 + xp.searchsorted(edges, part, side="left")
            found[xp.isnan(part)] = 0
            return found

        codes = mapped(numbers, xp.int32, xp, binned)
        codes[~valid | (edges.shape[0] == 0)] = 0
        return engine.column(target.name, codes, None, target.type)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.crosses:
            return WithinTime.memory(self, schema, extent)
        # Numbers without their nulls, and where they are; codes are the outputs.
        widest = max((row_bits(schema[one].type) for one in self.inputs(schema)), default=0) // 8
        return (6 + widest) * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0 if self.crosses else super().state_bytes(schema, extent)

    def summary_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0 if self.crosses else super().summary_bytes(schema, extent)

    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, None]:
        finite = xp.isfinite(values) & valid if values.dtype.kind == "f" else valid
        groups = SortedGroups.of(xp, codes, values, finite)
        below = groups.rank("min", normalized=False)
        below -= 1
        # Edge j lies at (n - 1) * j / q of n values in order: below a value with i smaller ones where
        # (n - 1) * j < i * q.
        last = groups.of_codes(codes, groups.end - groups.begin - 1, 0)
        del groups
        out = xp.empty(values.shape[0], dtype=xp.int32)
        for where in blocks(out.shape[0], xp):
            smaller, most = below[where].astype(xp.int64), last[codes[where]]
            edges = (smaller * self.q + most - 1) // xp.maximum(most, 1) - 1
            out[where] = 1 + xp.clip(edges, 0, self.q - 1)
        if values.dtype.kind == "f":
            out[values == xp.inf] = self.q
            out[values == -xp.inf] = 1
        out[~valid | missing] = 0
        return out, None
