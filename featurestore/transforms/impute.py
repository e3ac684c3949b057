"""Impute: what is missing filled with a value of the training rows, or with a given one.

Always true: the statistics are merged exactly (see ``moments``), so the output does not depend on
the partitioning. Trade-off: a median of more than 4,096 distinct values is a sketch's (see ``quantiles``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import reduce
from typing import Any, ClassVar, Final, TypeAlias

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import EMPTY_STATE, Columns, Partition, Scope, State
from featurestore.transforms.columnwise import Columnwise, require_learnt, side_by_side
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import VIEW, fixed_bytes, is_text, rounding_bytes
from featurestore.transforms.moments import (
    Moments,
    combine_moments,
    moments_bytes,
    moments_fingerprint,
    moments_memory,
    summarize_moments,
)
from featurestore.transforms.quantiles import (
    column_quantiles,
    combine_quantiles,
    quantiles_bytes,
    quantiles_fingerprint,
    quantiles_memory,
    summarize_quantiles,
    summary_quantiles_bytes,
)
from featurestore.transforms.selectors import Selection
from featurestore.transforms.value_counts import (
    ORDER,
    check_countable,
    combine_counts,
    counting_memory,
    counts_bytes,
    counts_fingerprint,
    most_frequent,
    most_frequent_first,
    summarize_counts,
)

STRATEGIES: Final = ("mean", "median", "constant", "most_frequent")
Value: TypeAlias = "bool | int | float | str"


@dataclass(frozen=True)
class Impute(Columnwise):
    """Fill missing values with one value per column.

    Null rule: missing is null and, in floating-point columns, NaN. Infinities are values: they stay, and
    enter neither mean nor median.
    Scope: fit; none for ``strategy="constant"``. State: 88 bytes per column for the mean, for the
    median up to 96 KiB and 24 for each doubling of the rows beyond 2,048, every distinct value for
    ``most_frequent``. Boundary rule: statistics of all rows of the fit scope.
    Output: the input's type; with ``"mean"`` and ``"median"`` float64 for integers, booleans and decimals.
    Memory: 24 bytes per row, for one column at a time, and 16 for each string column. To learn, 14 bytes
    per row for the mean and 40 for the median; for ``most_frequent`` 160 (200 for strings), that column, and its
    counts; those of all partitions need not fit.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers or booleans; for ``constant`` and ``most_frequent`` strings too.
    strategy : {"mean", "median", "constant", "most_frequent"}
        ``median`` is exact for up to 4,096 distinct values, else its rank is off by at most 1% of the rows.
        ``most_frequent`` takes strings, integers and booleans; of equally frequent values the
        smallest.
    fill_value : bool, int, float or str, optional
        For ``constant``; must fit the type of every column.
    indicator : bool
        Also give ``<output>_missing``, true where a value was filled in.
    prefix, suffix, rename
        As in :class:`Standardize`.

    Raises
    ------
    DefinitionError
        For a value that does not fit; at the end of fitting for a column that has no value at all.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("x", pa.int64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [1, None, 4]})), schema)
    >>> fill = Impute("x")
    >>> state = fill.finish(fill.summarize(part, engine))
    >>> fill.apply(part, state, engine).frame["x"].to_list()
    [1.0, 2.5, 4.0]
    """

    strategy: str = "mean"
    _: KW_ONLY
    fill_value: Value | None = None
    indicator: bool = False

    stored_as: ClassVar[Mapping[str, str]] = {"fill_value": "value"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in STRATEGIES:
            raise DefinitionError(
                f"{self.strategy!r} is not a strategy of Impute", f"choose from {list(STRATEGIES)}"
            )
        if (self.fill_value is None) == (self.strategy == "constant"):
            raise DefinitionError(
                f"strategy {self.strategy!r} with fill_value={self.fill_value!r}",
                "give fill_value= with strategy='constant', and only then",
            )

    @property
    def scope(self) -> Scope:
        return Scope.NONE if self.strategy == "constant" else Scope.FIT

    @property
    def _computes(self) -> bool:
        """Whether the value is computed of numbers, and need not be one that occurs."""
        return self.strategy in ("mean", "median")

    def check(self, one: Field) -> None:
        if self._computes:
            super().check(one)
        elif self.strategy == "most_frequent":
            check_countable(one, "Impute(strategy='most_frequent')")
        else:
            _check_constant(one, self.fill_value)

    def type_of(self, one: Field) -> pa.DataType:
        computed = self._computes and not pa.types.is_floating(one.type)
        return pa.float64() if computed else one.type

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        filled = super().outputs(schema)
        if not self.indicator:
            return filled
        marks = (Field(f"{one.name}_missing", pa.bool_()) for one in filled)
        return tuple(one for pair in zip(filled, marks, strict=True) for one in pair)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        columns = self.inputs(partition.schema)
        return _LEARNING[self.strategy].summarize(partition, columns, engine)

    def combine(self, earlier: State, later: State) -> State:
        return self.combine_all((earlier, later))

    def combine_all(self, states: Sequence[State]) -> State:
        return _LEARNING[self.strategy].combine(states)

    def state_order(self) -> tuple[str, ...]:
        return () if self._computes else ORDER

    def narrow(self, state: State) -> State:
        return state if self._computes else most_frequent(state, 1)

    def most_kept(self, table: str) -> int | None:
        return None if self._computes else 1

    def finish(self, state: State) -> State:
        """Return, per column, the one value to fill in."""
        require_learnt(state)
        values = _LEARNING[self.strategy].values(state)
        empty = sorted(name for name, one in values.items() if len(one) == 0)
        if empty:
            raise DefinitionError(
                f"columns {empty} have no value in the fit scope, so there is no {self.strategy}",
                "leave them out, or impute them with strategy='constant', fill_value=...",
            )
        return {name: pa.table({"value": one}) for name, one in values.items()}

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, out = partition.schema, []
        for source, target in zip(self.inputs(schema), super().outputs(schema), strict=True):
            column = partition.frame[source]
            out.append(self.column(column, schema[source], target, state, engine))
            if self.indicator:
                missing = _missing(column, engine)
                out.append(engine.column(f"{target.name}_missing", missing, None, pa.bool_()))
        return Columns(side_by_side(out))

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        constant = self.strategy == "constant"
        fill = self.fill_value if constant else state[source.name]["value"][0].as_py()
        return _filled(values, fill, target, engine)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        # Filled texts are kept as the engine's until all columns are done.
        texts = sum(is_text(schema[name].type) for name in self.inputs(schema))
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        # Where nothing is missing, no column is copied without its nulls.
        filled = 24 if any(map(extent.most_nulls, self.inputs(schema))) else 16
        return (filled + VIEW * texts) * extent.rows + rounding

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return _LEARNING[self.strategy].memory(schema, self.inputs(schema), extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        if self.strategy == "constant":
            return 0
        return _LEARNING[self.strategy].size(schema, self.inputs(schema), extent)

    @property
    def summarizes_in_engine(self) -> bool:
        return not self._computes

    def summary_bytes(self, schema: TableSchema, extent: Extent) -> int:
        if self.strategy == "median":
            return summary_quantiles_bytes(self.inputs(schema), extent.rows)
        return self.state_bytes(schema, extent)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        texts = [name for name in self.inputs(schema) if is_text(schema[name].type)]
        # A null becomes the constant, or a value of the state; that is taken to be no wider than rows here.
        learnt = min(extent.state_bytes, extent.widest_row or extent.state_bytes)
        filled = learnt if self.fill_value is None else len(str(self.fill_value).encode())
        fixed = sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
        return fixed + extent.bytes_of(texts) + filled * sum(map(extent.most_nulls, texts))

    def state_fingerprint(self) -> str:
        return _LEARNING[self.strategy].fingerprint(self.columns)


@dataclass(frozen=True, slots=True)
class _Learning:
    """How the value to fill in is learnt."""

    summarize: Callable[[Partition, Sequence[str], Engine], State]
    combine: Callable[[Sequence[State]], State]
    values: Callable[[State], dict[str, pa.Array]]
    fingerprint: Callable[[Selection], str]
    memory: Callable[[TableSchema, Sequence[str], Extent], int]
    size: Callable[[TableSchema, Sequence[str], Extent], int]


def _means(state: State) -> dict[str, pa.Array]:
    moments, found = Moments.from_state(state), {}
    moments.require_finite(moments.mean[0], "sum")
    for i, name in enumerate(moments.columns):
        known = slice(i, i + int(moments.count[i] > 0))
        found[name] = pa.array(moments.mean[0][known], pa.float64())
    return found


def _medians(state: State) -> dict[str, pa.Array]:
    found = column_quantiles(state, lambda _: (0.5,))
    return {name: pa.array(one, pa.float64()) for name, one in found.items()}


def _most_frequent(state: State) -> dict[str, pa.Array]:
    return {
        name: most_frequent_first(counts).slice(0, 1).combine_chunks()
        for name, counts in state.items()
    }


_COUNTS: Final = _Learning(
    summarize_counts,
    combine_counts,
    _most_frequent,
    counts_fingerprint,
    counting_memory,
    counts_bytes,
)
_LEARNING: Final = {
    "mean": _Learning(
        summarize_moments,
        lambda states: reduce(combine_moments, states, EMPTY_STATE),
        _means,
        moments_fingerprint,
        lambda _, columns, extent: moments_memory(columns, extent.rows),
        lambda _, columns, extent: moments_bytes(columns),
    ),
    "median": _Learning(
        summarize_quantiles,
        lambda states: reduce(combine_quantiles, states, EMPTY_STATE),
        _medians,
        quantiles_fingerprint,
        lambda _, columns, extent: quantiles_memory(columns, extent.rows),
        lambda _, columns, extent: quantiles_bytes(columns, extent.rows),
    ),
    "most_frequent": _COUNTS,
    "constant": _COUNTS,  # never asked: it has no state
}


def _filled(column: Series, fill: Any, target: Field, engine: Engine) -> Series:
    """Return the column with one value where it is missing."""
    if target.is_string:
        return column.fill_null(fill).alias(target.name)
    values, valid = engine.values(column)
    dtype, missing = np.dtype(target.type.to_pandas_dtype()), _not_there(values, valid, engine.xp)
    full = engine.xp.where(missing, dtype.type(fill), values.astype(dtype, copy=False))
    return engine.column(target.name, full, None, target.type)


def _missing(column: Series, engine: Engine) -> Array:
    """Return where a column is null or NaN."""
    if column.dtype == nw.String:
        missing, _ = engine.values(column.is_null())
        return missing
    return _not_there(*engine.values(column), engine.xp)


def _not_there(values: Array, valid: Array, xp: Any) -> Array:
    return ~valid | xp.isnan(values) if values.dtype.kind == "f" else ~valid


def _check_constant(one: Field, value: Any) -> None:
    """Refuse a value that a column of this type cannot hold exactly."""
    type_ = one.type
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = False
    if one.is_tensor:
        fits = False
    elif one.is_string:
        fits = isinstance(value, str)
    elif pa.types.is_boolean(type_):
        fits = isinstance(value, bool)
    elif pa.types.is_floating(type_):
        fits = is_number
    elif pa.types.is_integer(type_) and is_number and float(value).is_integer():
        limits = np.iinfo(type_.to_pandas_dtype())
        fits = limits.min <= value <= limits.max
    if not fits:
        kind = f"a tensor of {type_}" if one.is_tensor else f"of type {type_}"
        raise DefinitionError(
            f"Impute cannot fill column {one.name!r} {kind} with {value!r}",
            "choose the columns of one type per Impute, and a value of that type",
        )
