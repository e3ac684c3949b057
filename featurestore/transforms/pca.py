"""PCA: the directions in which columns vary most, and where each row is along them.

Always true: a row's values are computed from that row and the state alone, in one order of the columns;
the sign of a direction is fixed. Trade-off: where two directions explain (nearly) equally much, any
turn of them does, and which is chosen may change with the last bits of what was learnt.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array, Engine
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.columnwise import check_numeric, require_learnt, side_by_side
from featurestore.transforms.comoments import (
    Comoments,
    combine_comoments,
    comoments_bytes,
    comoments_fingerprint,
    comoments_memory,
    summarize_comoments,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes, rounding_bytes
from featurestore.transforms.selectors import Selection, normalise_selection, numeric, resolve

_NUMERIC: Final = numeric()


@dataclass(frozen=True)
class PCA(Transformer):
    """Principal components of several columns, centred and not scaled (``Standardize`` before it does).

    Scope: fit. State: 16 bytes for each two columns. Boundary rule: means and covariances of all rows
    of the fit scope that are complete: no null, NaN or infinity in any of the columns.
    Null rule: a row with a null gives nulls, one with NaN or an infinity NaN; in a tensor both give NaN.
    Without any complete row in the fit scope everything is null.
    Values agree to about 1e-12 of the columns' deviations for every partitioning. The sign of a component
    is the one that makes its largest weight positive, the first of those that are equally large.
    Output: ``<output>_0``, ``<output>_1``, ... by descending variance, or one tensor ``[n_components]``;
    float64 if a column is float64 or decimal, else float32 (computed in float64).
    Memory: 16 bytes per row, and 8 for each component where the output is float32; to learn, 1 MiB,
    18 bytes for each column of 16,384 rows, and 100 for each two columns.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    n_components : int
        At most as many as there are columns.
    tensor : bool
        Give one tensor instead of columns.
    output : str
        The name of the tensor, or what names of columns begin with.

    Raises
    ------
    SchemaError
        If a selected column is not numeric.
    DefinitionError
        For fewer columns than components; at the end of fitting for values whose variance overflows.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("x", pa.float64()), Field("y", pa.float64())))
    >>> table = pa.table({"x": [0.0, 3.0, 6.0, None], "y": [0.0, 4.0, 8.0, 1.0]})
    >>> part = Partition(engine.from_arrow(table), schema)
    >>> turn = PCA(["x", "y"], 1)
    >>> state = turn.finish(turn.summarize(part, engine))
    >>> [one and round(one, 9) for one in turn.apply(part, state, engine).frame["pca_0"].to_list()]
    [-5.0, 0.0, 5.0, None]
    """

    columns: Selection = _NUMERIC
    n_components: int = 2
    _: KW_ONLY
    tensor: bool = False
    output: str = "pca"

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", normalise_selection(self.columns))
        if type(self.n_components) is not int or self.n_components < 1:
            raise DefinitionError(
                f"PCA has n_components={self.n_components!r}", "give a whole number, 1 or more"
            )

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            check_numeric(schema[name], "PCA")
        if len(names) < self.n_components:
            raise DefinitionError(
                f"PCA has n_components={self.n_components} and {len(names)} columns",
                f"ask for {len(names)} components at most, or choose more columns",
            )
        return names

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        types = [schema[name].type for name in self.inputs(schema)]
        wide = any(pa.types.is_float64(one) or pa.types.is_decimal(one) for one in types)
        type_ = pa.float64() if wide else pa.float32()
        if self.tensor:
            return (Field(self.output, type_, (self.n_components,)),)
        return tuple(Field(f"{self.output}_{i}", type_) for i in range(self.n_components))

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return self.inputs(schema)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_comoments(partition, self.inputs(partition.schema), engine)

    def combine(self, earlier: State, later: State) -> State:
        return combine_comoments(earlier, later)

    def finish(self, state: State) -> State:
        """Return one row per column: its mean (two float64) and its weight in each component."""
        require_learnt(state)
        found = Comoments.from_state(state)
        products = found.products[0] + found.products[1]
        if not np.all(np.isfinite(products)):
            wild = [
                name
                for name, own in zip(found.columns, products.diagonal(), strict=True)
                if not own < np.inf
            ]
            raise DefinitionError(
                f"the variance of columns {wild or list(found.columns)} exceeds float64",
                "take logarithms or divide the columns first",
            )
        weights = _components(products / max(1, found.count), self.n_components)
        known = found.count > 0
        table = {
            "column": pa.array(found.columns, pa.string()),
            "mean": pa.array(found.mean[0]),
            "mean_low": pa.array(found.mean[1]),
            **{f"weight_{i}": pa.array(one) for i, one in enumerate(weights)},
        }
        return {"components": pa.table(table).slice(0, len(found.columns) if known else 0)}

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        fields = self.outputs(schema)
        components = state["components"]
        rows = partition.rows
        valid = xp.ones(rows, dtype=bool)
        finite = xp.ones(rows, dtype=bool)
        dtype = fields[0].type.to_pandas_dtype()
        shape = (rows, self.n_components) if self.tensor else (self.n_components, rows)
        placed = xp.zeros(shape, dtype=xp.float64)
        along = placed.T if self.tensor else placed
        for row in components.to_pylist():
            values, known = engine.values(partition.frame[row["column"]])
            valid &= known
            weights = [row[f"weight_{i}"] for i in range(self.n_components)]
            _add_column(along, finite, values, (row["mean"], row["mean_low"]), weights, xp)
        if components.num_rows == 0:
            valid[:] = False
        along[:, ~finite] = xp.nan
        if self.tensor:
            placed[~valid] = xp.nan
            return Columns(None, {self.output: placed.astype(dtype, copy=False)})
        made = [
            engine.column(one.name, values.astype(dtype, copy=False), valid, one.type)
            for one, values in zip(fields, along, strict=True)
        ]
        return Columns(side_by_side(made))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        outputs = self.outputs(schema)
        # What is added up in float64 becomes the output where that is float64.
        sums = 0 if pa.types.is_float64(outputs[0].type) else 8 * self.n_components
        return (16 + sums) * extent.rows + rounding_bytes(outputs, extent.rows)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return comoments_memory(self.inputs(schema), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return comoments_bytes(self.inputs(schema), extent.rows)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))

    def state_fingerprint(self) -> str:
        return comoments_fingerprint(self.columns)


def _components(covariance: Any, count: int) -> Any:
    """Return the eigenvectors of the largest eigenvalues as rows, with a fixed sign."""
    # One scale for all: squares of what is very large or small would leave float64.
    scale = float(np.abs(covariance).max(initial=0.0)) or 1.0
    _, vectors = np.linalg.eigh(covariance / scale)
    weights = vectors.T[::-1][:count]
    size = np.abs(weights)
    # Those that are equally large but for rounding count as equal.
    decisive = np.argmax(size >= size.max(axis=1, keepdims=True) * (1 - 1e-6), axis=1)
    signs = np.sign(np.take_along_axis(weights, decisive[:, None], axis=1))
    return weights * signs + 0.0


def _add_column(
    along: Array,
    finite: Array,
    values: Array,
    mean: tuple[float, float],
    weights: list[float],
    xp: Any,
) -> None:
    """Add what a column contributes to each component, and mark rows that are NaN or infinite."""
    # Not a product of matrices: how that sums depends on how many rows there are.
    with np.errstate(over="ignore", invalid="ignore"):
        for where in blocks(int(values.shape[0]), xp):
            part = values[where].astype(xp.float64)
            finite[where] &= xp.isfinite(part)
            part -= mean[0]
            part -= mean[1]
            for one, weight in zip(along, weights, strict=True):
                one[where] += part * weight
