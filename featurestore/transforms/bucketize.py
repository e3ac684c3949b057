"""Bucketize: which of some given intervals a number lies in, as a code.

Always true: numbers are compared with the boundaries exactly, integers of 64 bits among them; code 0 is
null or NaN, as in ``Categorify``. Boundaries that follow the data are ``QuantileBin``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import State
from featurestore.transforms.row_wise import RowWise

_FEW: Final = 32
"""So many edges are compared one after the other in less time than a number is looked up among them."""


@dataclass(frozen=True)
class Bucketize(RowWise):
    """Numbers as codes of the intervals between boundaries: 1 below the first, 2 from there, ...

    Scope: none. State: none. Null rule: null and NaN get code 0; infinities are in the first and the last
    interval. Boundary rule: a value depends on its own row only; a value at a boundary belongs to the
    interval above it with ``closed="left"``, to the one below with ``closed="right"``.
    Output: int32, never null, below ``len(boundaries) + 2``. Memory: 12 bytes per row, for one column at
    a time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Numbers, booleans or decimals (compared as float64).
    boundaries : sequence of int or float
        Finite, ascending, each once.
    closed : {"left", "right"}
        Which end belongs to an interval: ``[a, b)`` or ``(a, b]``.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    DefinitionError
        For other boundaries.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> from featurestore.transforms.base import Partition
    >>> engine, schema = PolarsEngine(), TableSchema((Field("age", pa.int64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"age": [5, 18, None, 90]})), schema)
    >>> Bucketize("age", [18, 65]).apply(part, {}, engine).frame["age"].to_list()
    [1, 2, 0, 3]
    """

    boundaries: Sequence[float] = ()
    _: KW_ONLY
    closed: str = "left"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = tuple(self.boundaries)
        object.__setattr__(self, "boundaries", given)
        plain = all(
            isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < math.inf
            for one in given
        )
        if not given or not plain or any(a >= b for a, b in pairwise(given)):
            raise DefinitionError(
                f"Bucketize has boundaries={self.boundaries!r}",
                "give finite numbers in ascending order, each once",
            )
        if self.closed not in ("left", "right"):
            raise DefinitionError(
                f"Bucketize has closed={self.closed!r}", "choose 'left', [a, b), or 'right', (a, b]"
            )

    def type_of(self, one: Field) -> pa.DataType:
        return pa.int32()

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def code_counts(self, schema: TableSchema) -> Mapping[str, int]:
        return dict.fromkeys(self.codes(schema), len(self.boundaries) + 2)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        xp = engine.xp
        numbers, valid = engine.values(values)
        whole = bool(valid.all())
        if numbers.dtype == xp.bool_:
            numbers = numbers.astype(xp.int8)
        first, edges, side = self._edges(numbers.dtype)
        edges = engine.from_host(edges)
        out = xp.empty(numbers.shape, dtype=xp.int32)
        for where in blocks(int(numbers.shape[0]), xp):
            part = numbers[where].astype(edges.dtype)
            out[where] = _passed(part, edges, side, xp)
            out[where] += first
            if not whole:
                out[where] *= valid[where]
            if part.dtype.kind == "f":
                out[where] *= ~xp.isnan(part)
        return engine.column(target.name, out, None, pa.int32())

    def _edges(self, dtype: Any) -> tuple[int, np.ndarray[Any, Any], str]:
        """Return the code below the edges, the edges as numbers of a column's type, and their side.

        Of integers an edge is the first that lies above the boundary; edges beyond the type are left out,
        those below all of its values counted.
        """
        if np.dtype(dtype).kind == "f":
            side = "right" if self.closed == "left" else "left"
            return 1, np.array([float(one) for one in self.boundaries]), side
        above = [
            math.ceil(one) if self.closed == "left" else math.floor(one) + 1
            for one in self.boundaries
        ]
        limits, wide = np.iinfo(dtype), np.dtype("uint64" if dtype == np.uint64 else "int64")
        below = sum(one <= limits.min for one in above)
        inside = [one for one in above if limits.min < one <= limits.max]
        return 1 + below, np.array(inside, wide), "right"


def _passed(part: Array, edges: Array, side: str, xp: Any) -> Array:
    """Return how many edges are below each number, or at it with ``side="right"``; of NaN any number."""
    if edges.shape[0] > _FEW:
        return xp.searchsorted(edges, part, side=side)
    passed = xp.zeros(part.shape, dtype=xp.uint8)
    for edge in edges:
        passed += part >= edge if side == "right" else part > edge
    return passed
