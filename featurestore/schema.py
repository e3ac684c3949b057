"""Columns and their types: what a table holds, and what a transformer promises to produce.

Types are Arrow types. At the boundary of the store they are normalised once (dictionaries decoded,
string views and large strings to strings, second timestamps to milliseconds), so that a type read
back equals the type written. A fixed-shape numeric array is a *tensor*: a field with a ``shape``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from featurestore.errors import InvalidInputError, MissingColumnError, SchemaError
from featurestore.fingerprint import Json
from featurestore.units import Duration

RESERVED_PREFIX: Final = "__fs_"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")

_SIMPLE: Final[Mapping[str, pa.DataType]] = {
    "bool": pa.bool_(),
    "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float16": pa.float16(), "float32": pa.float32(), "float64": pa.float64(),
    "string": pa.string(), "binary": pa.binary(), "date32": pa.date32(),
}  # fmt: skip
_SIMPLE_NAMES: Final = {type_: name for name, type_ in _SIMPLE.items()}
# Of decimals, those of 128 bits are stored; asked for so often that one look-up is worth it.
_NUMBERS: Final = frozenset(
    one.id
    for one in (*_SIMPLE.values(), pa.decimal128(1), pa.decimal256(1))
    if one not in (pa.string(), pa.binary(), pa.date32())
)
_PARAMETRIC: Final = re.compile(
    r"(?P<head>timestamp|duration|time|decimal128|list)\[(?P<arguments>.*)\]"
)


def type_to_text(type_: pa.DataType) -> str:
    """Return the written form of a normalised Arrow type.

    Examples
    --------
    >>> type_to_text(pa.timestamp("us", tz="UTC"))
    'timestamp[us, UTC]'
    >>> type_to_text(pa.list_(pa.int64()))
    'list[int64]'
    """
    if type_ in _SIMPLE_NAMES:
        return _SIMPLE_NAMES[type_]
    if pa.types.is_timestamp(type_):
        return f"timestamp[{type_.unit}, {type_.tz}]" if type_.tz else f"timestamp[{type_.unit}]"
    if pa.types.is_duration(type_):
        return f"duration[{type_.unit}]"
    if pa.types.is_time(type_):
        return f"time[{type_.unit}]"
    if pa.types.is_decimal128(type_):
        return f"decimal128[{type_.precision}, {type_.scale}]"
    if pa.types.is_list(type_):
        return f"list[{type_to_text(type_.value_type)}]"
    raise SchemaError(f"columns of Arrow type {type_} cannot be stored", "cast it before ingest")


def type_from_text(text: str) -> pa.DataType:
    """Return the Arrow type that :func:`type_to_text` wrote.

    Raises
    ------
    SchemaError
        If the text is not one of its forms.
    """
    if text in _SIMPLE:
        return _SIMPLE[text]
    match = _PARAMETRIC.fullmatch(text)
    if match is None:
        raise SchemaError(
            f"{text!r} is not the name of a column type",
            "write it like 'int64', 'float32', 'string' or 'timestamp[us]'",
        )
    head, arguments = match["head"], [part.strip() for part in match["arguments"].split(",")]
    try:
        if head == "list":
            return pa.list_(type_from_text(match["arguments"]))
        if head == "timestamp":
            return pa.timestamp(*arguments)
        if head == "duration":
            return pa.duration(*arguments)
        if head == "time":
            return (pa.time32 if arguments[0] in ("s", "ms") else pa.time64)(*arguments)
        return pa.decimal128(*(int(argument) for argument in arguments))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{text!r} is not the name of a column type") from error


def normalise_type(type_: pa.DataType) -> pa.DataType:
    """Return the type under which a column of type ``type_`` is stored.

    Raises
    ------
    SchemaError
        For types that have no stored form (structs, maps, unions, half-open intervals).

    Examples
    --------
    >>> normalise_type(pa.dictionary(pa.int8(), pa.large_string()))
    DataType(string)
    >>> normalise_type(pa.timestamp("s"))
    TimestampType(timestamp[ms])
    """
    if pa.types.is_dictionary(type_):
        return normalise_type(type_.value_type)
    if pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_fixed_size_binary(type_):
        return pa.binary()
    if pa.types.is_date64(type_):
        return pa.date32()
    if pa.types.is_null(type_):
        raise SchemaError(
            "a column holds nothing but nulls and has no type", "cast it to the type it should have"
        )
    if pa.types.is_timestamp(type_) and type_.unit == "s":
        return pa.timestamp("ms", tz=type_.tz)
    if pa.types.is_time32(type_) and type_.unit == "s":
        return pa.time32("ms")
    if (
        pa.types.is_large_list(type_)
        or pa.types.is_list(type_)
        or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
        or pa.types.is_large_list_view(type_)
    ):
        return pa.list_(normalise_type(type_.value_type))
    return type_from_text(type_to_text(type_))


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it may name a table, feature, tag or partition: it becomes part of a path.

    Raises
    ------
    InvalidInputError
        If it is not 1 to 100 letters, digits, ``_``, ``-`` or ``.``, starting with a letter or ``_``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInputError(
            f"{name!r} cannot name a {what}",
            "use 1 to 100 letters, digits, '_', '-' or single '.', starting with a letter or '_'",
        )
    return name


def is_pattern(name: str) -> bool:
    """Whether Polars takes a name for all columns, or for those that match an expression.

    Examples
    --------
    >>> is_pattern("*"), is_pattern("^x.*$"), is_pattern("$x")
    (True, True, False)
    """
    return name == "*" or (name.startswith("^") and name.endswith("$"))


@dataclass(frozen=True, slots=True)
class Field:
    """One column.

    Parameters
    ----------
    name : str
        Not empty, not starting with ``__fs_``, and neither ``*`` nor ``^...$``.
    type : pyarrow.DataType
        The normalised type of a value, or of a tensor's elements.
    shape : tuple of int, optional
        For tensors, the shape of one row's value; ``None`` for scalars, strings and ragged lists.
    """

    name: str
    type: pa.DataType
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "\x00" in self.name:
            raise SchemaError(f"{self.name!r} cannot name a column", "use a non-empty string")
        if self.name.startswith(RESERVED_PREFIX):
            raise SchemaError(
                f"column {self.name!r} begins with the reserved prefix {RESERVED_PREFIX!r}",
                "rename the column",
            )
        if is_pattern(self.name):
            raise SchemaError(
                f"column {self.name!r} would be read as a pattern of names", "rename the column"
            )
        if self.shape is not None:
            if not self.shape or any(size < 1 for size in self.shape):
                raise SchemaError(
                    f"tensor {self.name!r} has shape {self.shape}; sizes must be >= 1"
                )
            if not (pa.types.is_integer(self.type) or pa.types.is_floating(self.type)):
                raise SchemaError(f"tensor {self.name!r} has type {self.type}; it must be numeric")

    @property
    def is_tensor(self) -> bool:
        return self.shape is not None

    @property
    def is_numeric(self) -> bool:
        """Whether it is a scalar number or boolean (not a tensor, not a time)."""
        return self.shape is None and self.type.id in _NUMBERS

    @property
    def is_string(self) -> bool:
        return bool(pa.types.is_string(self.type))

    def to_json(self) -> dict[str, Json]:
        out: dict[str, Json] = {"name": self.name, "type": type_to_text(self.type)}
        if self.shape is not None:
            out["shape"] = list(self.shape)
        return out

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Field:
        shape = value.get("shape")
        return cls(
            str(value["name"]),
            type_from_text(str(value["type"])),
            None if shape is None else tuple(int(size) for size in shape),
        )


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of a table, and which of them say whose row it is and when.

    Parameters
    ----------
    fields : tuple of Field
        Names are unique; the order is the order of reading.
    key : tuple of str
        The entity key, 0 or more scalar columns, never null.
    time : str, optional
        The event time: an integer, date or timestamp column, never null.
    sources : mapping of str to TableSchema
        The schemas of other tables that transformers may name.
    """

    fields: tuple[Field, ...]
    key: tuple[str, ...] = ()
    time: str | None = None
    sources: Mapping[str, TableSchema] = field(default_factory=dict)
    _by_name: dict[str, Field] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({one.name: one for one in self.fields})
        names = [one.name for one in self.fields]
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise SchemaError(f"columns {repeated} occur more than once", "rename them")
        for name in (*self.key, *([self.time] if self.time is not None else [])):
            if name not in self._by_name:
                raise SchemaError(
                    f"key or time column {name!r} is not among the columns {names}",
                    "name columns that the data has",
                )
            if self[name].is_tensor:
                raise SchemaError(f"tensor column {name!r} cannot be key or time")
        if self.time is not None and not is_time_type(self[self.time].type):
            raise SchemaError(
                f"time column {self.time!r} has type {self[self.time].type}",
                "use a timestamp, date or integer column",
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.fields)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._by_name

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> Field:
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            raise MissingColumnError(name, self.names)
        return found

    def with_fields(self, fields: tuple[Field, ...]) -> TableSchema:
        """Return the schema with ``fields`` replaced (same name) or added at the end."""
        new = {one.name: one for one in fields}
        kept = tuple(new.pop(one.name, one) for one in self.fields)
        return TableSchema((*kept, *new.values()), self.key, self.time, self.sources)

    def source(self, name: str) -> TableSchema:
        """Return the schema of another table.

        Raises
        ------
        SchemaError
            If there is no such table.
        """
        if name not in self.sources:
            raise SchemaError(f"there is no table {name!r}", f"tables are {sorted(self.sources)}")
        return self.sources[name]

    @property
    def time_unit(self) -> str | None:
        """The resolution in which this table's time is compared: see :func:`time_unit`."""
        return None if self.time is None else time_unit(self[self.time].type)


def is_time_type(type_: pa.DataType) -> bool:
    """Whether a column of this type can be an event time."""
    return bool(
        pa.types.is_integer(type_) or pa.types.is_timestamp(type_) or pa.types.is_date32(type_)
    )


def time_unit(type_: pa.DataType) -> str | None:
    """Return the unit in which times of this type are compared, or None for integers.

    Timestamps keep their unit; dates count as microseconds since 1970 (``"us"``). Integer times have
    no unit: windows over them are given as integers in the column's own steps.
    """
    if pa.types.is_timestamp(type_):
        return str(type_.unit)
    return "us" if pa.types.is_date32(type_) else None


def time_steps(span: Duration | int, unit: str | None, column: str | None) -> int:
    """Return ``span`` in steps of a time column of the given unit.

    Raises
    ------
    InvalidInputError
        If a duration meets an integer time, an integer meets a real time, or it is not whole.
    """
    if isinstance(span, Duration) and unit is not None:
        return span.in_unit(unit)
    if isinstance(span, int) and unit is None:
        return span
    wanted = "a whole number of its steps" if unit is None else "a duration like '7d'"
    raise InvalidInputError(
        f"{span} does not measure time column {column!r}", f"give the span as {wanted}"
    )
