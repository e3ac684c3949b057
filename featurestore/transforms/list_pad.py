"""ListPad: lists of any length as a tensor of one length.

Always true: items keep their order and stand at the front; what is missing behind them is the pad value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.arrow import HostArray
from featurestore.engines.padding import KEPT, fill_rows
from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.schema import Field, TableSchema, type_from_text
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes

DTYPES: Final = ("float32", "int32")
_BLOCK: Final = 4096
_ROW_BYTES: Final = 48
_CELL_BYTES: Final = 24 * 2**17


@dataclass(frozen=True)
class ListPad(Transformer):
    """A column of lists as a tensor ``[rows, length]``: long lists cut, short ones filled up.

    Scope: none. State: none. Null rule: a null list is all ``fill_value``, and so is each null item; NaN and
    infinities stay. Boundary rule: a value depends on its own row only. Items that the type cannot hold
    are refused. Memory: for 4,096 rows at a time, seven times the lists and 48 bytes per row, and 3 MiB.

    Parameters
    ----------
    column : str
        Lists of integers or floats.
    length : int
        Items per row.
    fill_value : int or float
        What stands where there is no item; 0 by default.
    keep : {"first", "last"}
        Which items of a list that is too long.
    dtype : {"float32", "int32"}, optional
        By default ``int32`` for lists of integers and ``float32`` for lists of floats.
    output : str, optional
        By default ``<column>_padded``.

    Raises
    ------
    DefinitionError
        For another length, or a pad value that the type cannot hold.
    SchemaError
        If the column has no lists of numbers, or ``int32`` is asked for of floats.
    InvalidInputError
        When applied: for an item that the type cannot hold.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, schema = PolarsEngine(), TableSchema((Field("ids", pa.list_(pa.int64())),))
    >>> part = Partition(engine.from_arrow(pa.table({"ids": [[7, 8, 9], [5], None]})), schema)
    >>> ListPad("ids", 2, keep="last").apply(part, {}, engine).tensors["ids_padded"].tolist()
    [[8, 9], [5, 0], [0, 0]]
    """

    column: str
    length: int
    _: KW_ONLY
    fill_value: float = 0
    keep: str = "first"
    dtype: str | None = None
    output: str | None = None

    stored_as: ClassVar[Mapping[str, str]] = {"fill_value": "pad"}

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    def __eq__(self, other: object) -> bool:
        # A fill value of NaN equals itself here.
        return isinstance(other, ListPad) and self.spec() == other.spec()

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < 1:
            raise DefinitionError(f"ListPad has length={self.length!r}", "give a number from 1")
        if self.keep not in KEPT:
            raise DefinitionError(f"ListPad has keep={self.keep!r}", f"choose from {list(KEPT)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise DefinitionError(
                f"ListPad has dtype={self.dtype!r}", f"choose from {list(DTYPES)}, or leave it out"
            )

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        one = schema[self.column]
        item = one.type.value_type if pa.types.is_list(one.type) else None
        if item is None or not (pa.types.is_integer(item) or pa.types.is_floating(item)):
            raise SchemaError(
                f"ListPad takes lists of integers or floats; column {self.column!r} is {one.type}",
                "name a list column",
            )
        if self.dtype == "int32" and pa.types.is_floating(item):
            raise SchemaError(
                f"ListPad cannot hold the floats of column {self.column!r} as int32",
                "leave dtype out, or use 'float32'",
            )
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        dtype = self.dtype
        if dtype is None:
            whole = pa.types.is_integer(schema[self.column].type.value_type)
            dtype = "int32" if whole else "float32"
        fits = dtype == "float32" or _fits_int32(self.fill_value)
        if (
            isinstance(self.fill_value, bool)
            or not isinstance(self.fill_value, int | float)
            or not fits
        ):
            raise DefinitionError(
                f"ListPad cannot pad {dtype} with {self.fill_value!r}",
                "give another pad value or dtype",
            )
        name = f"{self.column}_padded" if self.output is None else self.output
        return (Field(name, type_from_text(dtype), (self.length,)),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        (target,) = self.outputs(partition.schema)
        out = np.full(
            (partition.rows, self.length), self.fill_value, np.dtype(target.type.to_pandas_dtype())
        )
        for start in range(0, partition.rows, _BLOCK):
            where = slice(start, start + _BLOCK)
            frame = partition.frame.select(self.column)[where]
            self._fill(out[where], engine.to_arrow(frame)[self.column].combine_chunks())
        return Columns(tensors={target.name: engine.from_host(out)})

    def _fill(self, out: HostArray, lists: pa.ListArray) -> None:
        bounds = lists.offsets.to_numpy().astype(np.int64)
        begins, ends = bounds[:-1], bounds[1:].copy()
        if lists.null_count:
            missing = lists.is_null().to_numpy(zero_copy_only=False)
            ends[missing] = begins[missing]
        held = lists.values.slice(bounds[0], bounds[-1] - bounds[0])
        known = held.is_valid().to_numpy(zero_copy_only=False)
        items = held.fill_null(0).to_numpy(zero_copy_only=False)
        self._require(items, out.dtype)
        with np.errstate(over="ignore"):
            plain = items.astype(out.dtype)
        plain[~known] = self.fill_value
        fill_rows(out, begins - bounds[0], ends - bounds[0], plain, self.keep)

    def _require(self, items: HostArray, dtype: Any) -> None:
        """Refuse items that the type cannot hold."""
        if dtype.kind == "f":
            if items.dtype.kind != "f" or items.dtype.itemsize <= dtype.itemsize:
                return
            with np.errstate(over="ignore"):
                lost = np.isfinite(items) & ~np.isfinite(items.astype(dtype))
        else:
            limits = np.iinfo(np.int32)
            lost = (items < limits.min) | (items > limits.max)
        if lost.any():
            raise InvalidInputError(
                f"column {self.column!r} holds {items[lost][0].item()!r}, which {dtype} cannot hold",
                "Hash or scale the items first, or use dtype='float32'",
            )

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rows = min(extent.rows, _BLOCK)
        widest = extent.widest_row or extent.input_bytes
        lists = min(extent.input_bytes, rows * widest)
        return 7 * lists + rows * _ROW_BYTES + min(_CELL_BYTES, 24 * rows * self.length)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


def _fits_int32(value: float) -> bool:
    return -(2**31) <= value < 2**31 and value == int(value)
