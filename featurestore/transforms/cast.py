"""Cast: numbers and booleans of another type, and what happens to those that it cannot hold.

Always true: no value silently becomes another one that is not near it: what the type cannot hold is
refused or null, as the definition says. Trade-off: texts and times are left to ``Expression``, whose
library parses them.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.schema import Field, type_from_text, type_to_text
from featurestore.transforms.base import State
from featurestore.transforms.row_wise import RowWise

TYPES: Final = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32",
    "float64",
)  # fmt: skip


@dataclass(frozen=True)
class Cast(RowWise):
    """Numbers as another type.

    Scope: none. State: none. Null rule: a null gives null. NaN and infinities stay in floats; integers
    and booleans cannot hold them. Boundary rule: a value depends on its own row only.
    To integers, the fraction is cut off, towards zero; to floats, the nearest is taken; booleans are 0 and
    1, and only these become booleans. A finite number beyond the largest float does not fit.
    Memory: 22 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals (by way of float64).
    type : str
        ``bool``, ``int8`` to ``int64``, ``uint8`` to ``uint64``, ``float32`` or ``float64``.
    overflow : {"refuse", "null"}
        What becomes of values that the type cannot hold: an error, or null.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    DefinitionError
        For another type.
    InvalidInputError
        When applied, with ``overflow="refuse"``: for values that the type cannot hold.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine, schema = PolarsEngine(), TableSchema((Field("x", pa.float64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [1.9, None, 300.0]})), schema)
    >>> Cast("x", "int8", overflow="null").apply(part, {}, engine).frame["x"].to_list()
    [1, None, None]
    """

    type: str = "float64"
    _: KW_ONLY
    overflow: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type not in TYPES:
            raise DefinitionError(f"Cast has type={self.type!r}", f"choose from {list(TYPES)}")
        if self.overflow not in ("refuse", "null"):
            raise DefinitionError(
                f"Cast has overflow={self.overflow!r}", "choose 'refuse' or 'null'"
            )

    def type_of(self, one: Field) -> pa.DataType:
        return type_from_text(self.type)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp = engine.xp
        numbers, valid = engine.values(values)
        if numbers.dtype == xp.bool_:
            numbers = numbers.astype(xp.int8)
        dtype = np.dtype(target.type.to_pandas_dtype())
        out = xp.empty(numbers.shape, dtype=dtype)
        known = xp.empty(numbers.shape, dtype=xp.bool_)
        for where in blocks(int(numbers.shape[0]), xp):
            part = numbers[where]
            fits = _fits(xp, part, dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                out[where] = xp.where(fits, part, part.dtype.type(0)).astype(dtype)
            known[where] = valid[where] & fits
            if self.overflow == "refuse":
                _require(part, valid[where] & ~fits, source, target)
        return engine.column(target.name, out, known, target.type)


def _fits(xp: Any, values: Array, dtype: Any) -> Array:
    """Return which values a type can hold."""
    if dtype.kind == "b":
        return (values == 0) | (values == 1)
    whole = values.dtype.kind != "f"
    if dtype.kind == "f":
        if whole or dtype.itemsize >= values.dtype.itemsize:
            return xp.ones(values.shape, dtype=xp.bool_)
        # Compared with where rounding begins to give infinity: half a step above the largest.
        largest = float(np.finfo(dtype).max)
        edge = largest + (largest - float(np.nextafter(dtype.type(largest), dtype.type(0)))) / 2
        return ~xp.isfinite(values) | (xp.abs(values) < edge)
    limits, own = np.iinfo(dtype), None if whole else values.dtype
    if own is not None:
        # -2**n and 2**n are floats, and what lies strictly between them and their next fits once cut.
        values = xp.trunc(values.astype(xp.float64))
        return (values >= float(limits.min)) & (values < float(limits.max + 1))
    has = np.iinfo(values.dtype)
    fits = xp.ones(values.shape, dtype=xp.bool_)
    if limits.min > has.min:
        fits &= values >= values.dtype.type(limits.min)
    if limits.max < has.max:
        fits &= values <= values.dtype.type(limits.max)
    return fits


def _require(values: Array, lost: Array, source: Field, target: Field) -> None:
    if bool(lost.any()):
        first = values[lost][0].item()
        raise InvalidInputError(
            f"column {source.name!r} holds {first!r}, which {type_to_text(target.type)} cannot hold",
            "choose a wider type, Clip the column first, or give overflow='null'",
        )
