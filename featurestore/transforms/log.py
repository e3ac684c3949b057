"""Log: logarithms of numbers, defined for what columns hold in practice: zeros and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import mapped
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field
from featurestore.transforms.affine import scaled_type
from featurestore.transforms.base import State
from featurestore.transforms.row_wise import RowWise


def _signed(xp: Any, values: Array) -> Array:
    return xp.copysign(xp.log1p(xp.abs(values)), values)


_KINDS: Final[Mapping[str, Callable[[Any, Array], Array]]] = {
    "log1p": lambda xp, values: xp.log1p(values),
    "log": lambda xp, values: xp.log(values),
    "signed": _signed,
}
KINDS: Final = tuple(_KINDS)


@dataclass(frozen=True)
class Log(RowWise):
    """Natural logarithms: of ``1 + x``, of ``x``, or of ``1 + |x|`` with the sign of ``x``.

    Scope: none. State: none. Null rule: a null gives null, NaN gives NaN. What has no logarithm is
    nothing to be refused: ``log`` of 0 and ``log1p`` of -1 are negative infinity, of less NaN; ``signed``
    is finite for every finite value. Boundary rule: a value depends on its own row only.
    Output: float64 for float64 and decimal columns, else float32 (computed in float64).
    Memory: 14 bytes per row, for one column at a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals.
    kind : {"log1p", "log", "signed"}
        ``log(1 + x)``, ``log(x)``, or ``sign(x) * log(1 + |x|)``.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    DefinitionError
        For another kind.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.schema import TableSchema
    >>> from featurestore.transforms.base import Partition
    >>> engine, schema = PolarsEngine(), TableSchema((Field("x", pa.float64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"x": [0.0, None, -1.0]})), schema)
    >>> Log("x", "signed").apply(part, {}, engine).frame["x"].round(3).to_list()
    [0.0, None, -0.693]
    """

    # Numbers without their nulls, which of them there are, and blocks of logarithms.
    row_bytes: ClassVar[int] = 14

    kind: str = "log1p"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise DefinitionError(f"{self.kind!r} is not a kind of Log", f"choose from {KINDS}")

    def type_of(self, one: Field) -> pa.DataType:
        return scaled_type(one.type)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp, compute = engine.xp, _KINDS[self.kind]

        def logarithms(part: Array) -> Array:
            part = compute(xp, part)
            part[xp.isnan(part)] = xp.nan  # one bit pattern, whatever the sign of the operand
            return part

        numbers, valid = engine.values(values)
        with np.errstate(divide="ignore"):
            made = mapped(numbers, target.type.to_pandas_dtype(), xp, logarithms)
        return engine.column(target.name, made, valid, target.type)
