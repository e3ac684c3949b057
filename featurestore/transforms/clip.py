"""Clip: numbers below or above given bounds replaced by the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field
from featurestore.transforms.base import State
from featurestore.transforms.row_wise import RowWise, check_plain


@dataclass(frozen=True)
class Clip(RowWise):
    """Values below ``lower`` become ``lower``, values above ``upper`` become ``upper``.

    Scope: none. State: none. Null rule: a null gives null, NaN stays NaN, infinities are values and are
    cut. Boundary rule: a value depends on its own row only; a value at a bound stays.
    Output: the input's type; integers are compared exactly, bounds of floats rounded to the type.
    Memory: 12 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Integers or floats.
    lower, upper : int or float, optional
        Not NaN, ``lower <= upper``; at least one. A bound outside an integer column's type that no
        value of it can pass changes nothing.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    DefinitionError
        For other bounds, or one that a column's type cannot hold.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine, schema = PolarsEngine(), TableSchema((Field("x", pa.int64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [-5, None, 70]})), schema)
    >>> Clip("x", 0, 60).apply(part, {}, engine).frame["x"].to_list()
    [0, None, 60]
    """

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [one for one in (self.lower, self.upper) if one is not None]
        plain = all(isinstance(one, int | float) and not isinstance(one, bool) for one in given)
        if not given or not plain or any(map(math.isnan, given)) or sorted(given) != given:
            raise DefinitionError(
                f"Clip has lower={self.lower!r} and upper={self.upper!r}",
                "give one number or two, lower <= upper",
            )

    def check(self, one: Field) -> None:
        check_plain(one, "Clip")
        bound_in(self.lower, one, smallest=True)
        bound_in(self.upper, one, smallest=False)

    def type_of(self, one: Field) -> pa.DataType:
        return one.type

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp = engine.xp
        numbers, valid = engine.values(values)
        low = bound_in(self.lower, source, smallest=True)
        high = bound_in(self.upper, source, smallest=False)
        out = xp.empty(numbers.shape, dtype=numbers.dtype)
        for where in blocks(int(numbers.shape[0]), xp):
            part = numbers[where]
            # Comparisons, which leave NaN alone and, unlike minima, say which zero comes out.
            part = part if low is None else xp.where(part < low, low, part)
            out[where] = part if high is None else xp.where(part > high, high, part)
        return engine.column(target.name, out, valid, target.type)


def bound_in(bound: float | None, one: Field, *, smallest: bool) -> Any:
    """Return a bound as a value of a column's type; None where there is none that matters.

    Raises
    ------
    DefinitionError
        If the type has no such value.
    """
    if bound is None:
        return None
    dtype = np.dtype(one.type.to_pandas_dtype())
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            held = dtype.type(bound)
        fits = bool(np.isinf(held)) == math.isinf(bound)
    else:
        limits = np.iinfo(dtype)
        if bound < limits.min if smallest else bound > limits.max:
            return None
        fits = limits.min <= bound <= limits.max and bound == int(bound)
        held = dtype.type(int(bound)) if fits else None
    if not fits:
        raise DefinitionError(
            f"Clip cannot cut column {one.name!r} of type {one.type} at {bound!r}",
            "give a bound that the column's type can hold, or Cast the column to float64 first",
        )
    return held
