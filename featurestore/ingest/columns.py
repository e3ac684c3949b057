"""Column types at the door: what a source's Arrow column becomes in a table, and by which cast.

Always true: a column that passed :func:`conform` has exactly the Arrow type of its field
(:func:`arrow_type`), and no value was changed on the way; where a narrower type could lose
something, the values themselves are checked. A tensor travels as one flat fixed-size list per row.

Trade-off: rules are few and strict. A text is never read as a number, a naive time never meets one
with a zone; people who want that say so with ``types=``.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaError
from featurestore.schema import RESERVED_PREFIX, Field, is_pattern, normalise_type, type_to_text


def field_of(name: str, type_: pa.DataType, where: str) -> Field:
    """Return the field that a source's column becomes; an all-null column keeps type ``null``.

    Fixed-size lists of numbers, nested ones too, are tensors.

    Raises
    ------
    SchemaError
        If the type cannot be stored; the message names ``where`` and the column.

    Examples
    --------
    >>> field_of("e", pa.list_(pa.float32(), 3), "a.parquet").shape
    (3,)
    """
    if isinstance(type_, pa.FixedShapeTensorType):
        return Field(name, type_.value_type, tuple(type_.shape))
    if isinstance(type_, pa.BaseExtensionType):
        return field_of(name, type_.storage_type, where)
    shape, element = [], type_
    while pa.types.is_fixed_size_list(element):
        shape.append(element.list_size)
        element = element.value_type
    if shape and (pa.types.is_integer(element) or pa.types.is_floating(element)):
        return Field(name, element, tuple(shape))
    if pa.types.is_null(type_):
        return Field(name, type_)
    try:
        return Field(name, normalise_type(type_))
    except SchemaError as error:
        if name.startswith(RESERVED_PREFIX) or is_pattern(name):
            raise
        remedy = "cast the column to a number, string, time, or list of those, or leave it out"
        if not name:
            raise SchemaError(f"a column of {where} has no name", "give it one") from error
        if pa.types.is_struct(type_):
            remedy = "make each member a column of its own before ingest, or leave the column out"
        raise SchemaError(
            f"column {name!r} of {where} has type {type_}, which cannot be stored", remedy
        ) from error


def arrow_type(field: Field) -> pa.DataType:
    """Return the Arrow type in which a field's values travel through ingest."""
    if field.shape is None:
        return field.type
    return pa.list_(field.type, math.prod(field.shape))


def type_text(field: Field) -> str:
    """Return a field's type as a message says it."""
    if pa.types.is_null(field.type):
        return "null"
    text = type_to_text(field.type)
    return text if field.shape is None else f"tensor{list(field.shape)} of {text}"


def unify(first: Field, second: Field, text: bool = False) -> Field | None:
    """Return the field that holds the values of both without loss, or None.

    Parameters
    ----------
    text : bool
        Both types were guessed from text (CSV), so a date may become a timestamp.

    Examples
    --------
    >>> unify(Field("a", pa.int32()), Field("a", pa.int64())).type
    DataType(int64)
    >>> unify(Field("a", pa.int32()), Field("a", pa.string())) is None
    True
    """
    if first.shape != second.shape:
        return None
    type_ = _unify_types(first.type, second.type, text)
    return None if type_ is None else Field(first.name, type_, first.shape)


def _unify_types(a: pa.DataType, b: pa.DataType, text: bool) -> pa.DataType | None:
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if _is_number(a) and _is_number(b):
        return _wider_number(a, b)
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and a.tz == b.tz:
        return a if _unit_rank(a) >= _unit_rank(b) else b
    if pa.types.is_duration(a) and pa.types.is_duration(b):
        return a if _unit_rank(a) >= _unit_rank(b) else b
    if text and pa.types.is_date32(a) and pa.types.is_timestamp(b) and b.tz is None:
        return b
    if text and pa.types.is_date32(b) and pa.types.is_timestamp(a) and a.tz is None:
        return a
    if pa.types.is_decimal128(a) and pa.types.is_decimal128(b):
        scale = max(a.scale, b.scale)
        precision = max(a.precision - a.scale, b.precision - b.scale) + scale
        return pa.decimal128(precision, scale) if precision <= 38 else None
    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = _unify_types(a.value_type, b.value_type, text)
        return None if inner is None else pa.list_(inner)
    return None


def _wider_number(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_floating(a) and pa.types.is_floating(b):
        return a if a.bit_width >= b.bit_width else b
    if pa.types.is_floating(a) or pa.types.is_floating(b):
        real, whole = (a, b) if pa.types.is_floating(a) else (b, a)
        # float64 for wide integers: the cast checks each value against 2**53.
        return real if whole.bit_width * 2 <= real.bit_width else pa.float64()
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return a if a.bit_width >= b.bit_width else b
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    bits = max(signed.bit_width, unsigned.bit_width * 2)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def castable(source: Field, target: Field) -> bool:
    """Whether values of ``source`` may be stored as ``target`` once each was checked to be exact."""
    if target.shape is not None:
        same = source.shape == target.shape or (
            pa.types.is_list(source.type) and len(target.shape) == 1
        )
        inner = source.type.value_type if pa.types.is_list(source.type) else source.type
        return same and _castable_types(inner, target.type)
    return source.shape is None and _castable_types(source.type, target.type)


def _castable_types(a: pa.DataType, b: pa.DataType) -> bool:
    if a == b or pa.types.is_null(a):
        return True
    if _is_number(a) and _is_number(b):
        narrows = pa.types.is_floating(a) and pa.types.is_floating(b)
        return not narrows or a.bit_width <= b.bit_width
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b):
        return bool(a.tz == b.tz)
    if pa.types.is_list(a) and pa.types.is_list(b):
        return _castable_types(a.value_type, b.value_type)
    return bool(
        (pa.types.is_duration(a) and pa.types.is_duration(b))
        or (pa.types.is_decimal128(a) and pa.types.is_decimal128(b))
    )


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _unit_rank(type_: Any) -> int:
    return ("s", "ms", "us", "ns").index(type_.unit)


def conform(column: pa.Array, field: Field, where: str) -> pa.Array:
    """Return a source's column as an array of ``arrow_type(field)``.

    Raises
    ------
    SchemaError
        If a value does not fit the type exactly, or a tensor holds a null or has another length.
    """
    target = arrow_type(field)
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column.type == target and (field.shape is None or _complete(column)):
        return column
    try:
        if field.shape is not None:
            return pa.FixedSizeListArray.from_arrays(
                pc.cast(_elements(column, field, where), field.type), target.list_size
            )
        if pa.types.is_dictionary(column.type):
            column = _decoded(column)
        return pc.cast(column, target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {field.name!r} of {where} has type {column.type} and a value that does not "
            f"fit {type_text(field)} exactly: {error}",
            f"cast the column to {type_text(field)} before ingest",
        ) from error


def _decoded(column: Any) -> pa.Array:
    """Return a dictionary column's values; Polars' categories are views, which Arrow cannot take."""
    values = column.dictionary
    if pa.types.is_string_view(values.type):
        values = pc.cast(values, pa.string())
    return pc.take(values, column.indices)


def _complete(column: pa.Array) -> bool:
    return bool(column.null_count == 0 and column.flatten().null_count == 0)


def _elements(column: pa.Array, field: Field, where: str) -> pa.Array:
    """Return a tensor column's elements as one flat array; every row and element is there."""
    assert field.shape is not None
    size = math.prod(field.shape)
    rows, nulls = len(column), column.null_count
    values = column
    while not nulls and (
        pa.types.is_list(values.type)
        or pa.types.is_large_list(values.type)
        or pa.types.is_fixed_size_list(values.type)
    ):
        values = values.flatten()
        nulls = values.null_count
    if nulls:
        raise SchemaError(
            f"tensor column {field.name!r} of {where} has {nulls} nulls in {rows} rows; "
            f"a tensor of shape {field.shape} holds none",
            "fill them before ingest (for floats NaN is a value), or store the column as a list",
        )
    lengths = None if pa.types.is_fixed_size_list(column.type) else pc.list_value_length(column)
    if len(values) != rows * size or (
        lengths is not None and rows and pc.min_max(lengths).as_py() != {"min": size, "max": size}
    ):
        raise SchemaError(
            f"tensor column {field.name!r} of {where} has rows of other than {size} elements",
            f"pad or cut each row to shape {field.shape} before ingest",
        )
    return values
