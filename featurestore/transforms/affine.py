"""Columns moved and stretched: ``(value - center) / divisor``, one center and divisor per column.

Always true: computed in float64, a block at a time; a constant column's divisor is 1, so that finite
values give finite ones. A column whose center is not known gives nulls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.blocks import mapped
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.schema import Field
from featurestore.transforms.base import State

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def scaled_type(type_: pa.DataType) -> pa.DataType:
    """Return the type of a scaled column: float64 for float64 and decimals, else float32."""
    wide = pa.types.is_float64(type_) or pa.types.is_decimal(type_)
    return pa.float64() if wide else pa.float32()


def centers_and_divisors(
    columns: Sequence[str],
    center: tuple[Floats, Floats],
    divisor: Floats,
    unknown: Any,
    first: Floats | None = None,
) -> State:
    """Return the state that ``scaled`` is handed: one row per column.

    Parameters
    ----------
    columns : sequence of str
    center : (array, array)
        High and low: an unevaluated sum.
    divisor : array
        Where it is 0 or not a number it becomes 1.
    unknown : array of bool
        Columns nothing is known of.
    first : array, optional
        What values are divided by before the center is subtracted, as by ``ranges``.
    """
    with np.errstate(invalid="ignore"):
        steady = np.where(divisor > 0, divisor, 1.0)
    table = {
        "column": pa.array(columns, pa.string()),
        "mean": pa.array(center[0], mask=unknown),
        "mean_low": pa.array(center[1], mask=unknown),
        "divisor": pa.array(steady, mask=unknown),
    }
    if first is not None:
        table["first"] = pa.array(first)
    return {"scales": pa.table(table)}


def ranges(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return how far apart two bounds of each column are, and what to divide values by before.

    That is 1, but 2 where ``high - low`` is beyond float64; they are then so much less apart.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        apart = high - low
        wide = ~np.isfinite(apart) & np.isfinite(low) & np.isfinite(high)
        return np.where(wide, high / 2 - low / 2, apart), np.where(wide, 2.0, 1.0)


def scaled(
    values: Series,
    source: Field,
    target: Field,
    state: State,
    engine: Engine,
    then: Callable[[Array], Array] | None = None,
) -> Series:
    """Return a column moved and stretched, and then put through ``then``."""
    scales, xp = state["scales"], engine.xp
    (row,) = scales.filter(pc.equal(scales["column"], source.name)).to_pylist()
    numbers, valid = engine.values(values)
    dtype = target.type.to_pandas_dtype()
    center, low, divisor = row["mean"], row["mean_low"], row["divisor"]
    if center is None or low is None or divisor is None:
        none = xp.zeros(numbers.shape, dtype=bool)
        return engine.column(target.name, xp.zeros(numbers.shape, dtype=dtype), none, target.type)
    first = row.get("first", 1.0)

    def one(part: Array) -> Array:
        if first != 1.0:
            part /= first
        part -= center
        if low:
            part -= low
        part /= divisor
        return part if then is None else then(part)

    return engine.column(target.name, mapped(numbers, dtype, xp, one), valid, target.type)
