"""What a user's function gave back, checked and turned into columns.

Always true: what passes has one row per input row, in input order as far as an index can show it,
exactly the declared columns, of exactly the declared types (a cast is made only where it loses
nothing). Everything else raises, naming the feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError, InvalidInputError, UnsupportedError
from featurestore.schema import Field, normalise_type


@dataclass(frozen=True, slots=True)
class Result:
    """The columns of a function's result, or its one array; one row per row of its input."""

    frame: Frame | None
    array: Array | None = None

    def tail(self, rows: int) -> Result:
        """Return the last ``rows`` rows."""
        if self.array is not None:
            return Result(None, self.array[self.array.shape[0] - rows :])
        assert self.frame is not None
        return Result(self.frame.tail(rows))


def call(
    function: Any, name: str, frame: Frame, kind: str, params: Mapping[str, Any], engine: Engine
) -> tuple[Any, Any]:
    """Return the frame given to the function, and what it returned.

    Raises
    ------
    DefinitionError
        If the function raises; the cause is chained.
    """
    native = engine.native(frame, kind)
    try:
        return native, function(native, **params)
    except Exception as error:
        raise DefinitionError(
            f"feature {name!r} failed on {len(frame)} rows of {frame.columns}: "
            f"{type(error).__name__}: {error}",
            "correct the function; the cause is shown above",
        ) from error


def read_array(value: Any, name: str, rows: int, shape: tuple[int, ...], engine: Engine) -> Result:
    """Return a result declared with ``shape=``.

    Raises
    ------
    DefinitionError
        If it is no numeric array ``[rows, *shape]``.
    """
    if not hasattr(value, "shape"):
        raise DefinitionError(
            f"feature {name!r} declares shape={shape} and returned a {type(value).__name__}",
            f"return an array of shape [rows, {', '.join(map(str, shape))}]",
        )
    array = engine.xp.asarray(value)
    if tuple(array.shape) != (rows, *shape):
        raise DefinitionError(
            f"feature {name!r} returned an array of shape {tuple(array.shape)} for {rows} rows, "
            f"expected {(rows, *shape)}",
            "return one value of the declared shape per row, in the order of the rows",
        )
    if array.dtype.kind not in "iuf":
        raise DefinitionError(
            f"feature {name!r} returned an array of {array.dtype}",
            "return integers or floats, for example .astype('float32')",
        )
    return Result(None, array)


def read_columns(
    value: Any, native: Any, name: str, rows: int, output: Sequence[str] | None, engine: Engine
) -> Result:
    """Return a series, frame, one-dimensional array, or dict of these, as columns.

    Parameters
    ----------
    native : Any
        The frame the function was given, whose index a pandas result must have.
    name : str
        The feature; also the column's name if there is one unnamed column.
    output : sequence of str, optional
        The declared names; None accepts those of the result.

    Raises
    ------
    DefinitionError
        If there are other rows or columns than expected.
    """
    if isinstance(value, Mapping):
        parts = {str(key): _column(one, native, name, rows, engine) for key, one in value.items()}
        columns = [one[one.columns[0]].alias(key) for key, one in parts.items()]
    else:
        frame = _column(value, native, name, rows, engine)
        columns = [frame[one] for one in frame.columns]
        if len(columns) == 1 and (output is None or len(output) == 1):
            is_frame = hasattr(value, "columns")
            own = str(frame.columns[0]) if is_frame and output is None else name
            columns = [columns[0].alias(output[0] if output is not None else own)]
    found = [str(one.name) for one in columns]
    wanted = list(output) if output is not None else found
    if sorted(found) != sorted(wanted) or not found:
        raise DefinitionError(
            f"feature {name!r} returned columns {found}, expected {wanted}",
            "return exactly the columns named in output=",
        )
    by_name = dict(zip(found, columns, strict=True))
    return Result(nw.concat([by_name[one].to_frame() for one in wanted], how="horizontal"))


def _column(value: Any, native: Any, name: str, rows: int, engine: Engine) -> Frame:
    """Return one part of a result as a frame of ``rows`` rows."""
    index = getattr(value, "index", None)
    own = getattr(native, "index", None)
    if index is not None and own is not None and not callable(index):
        _check_index(index, own, name, rows)
    try:
        if isinstance(value, np.ndarray):
            if value.ndim != 1:
                raise DefinitionError(
                    f"feature {name!r} returned an array of shape {value.shape}",
                    f"declare shape={value.shape[1:]}, or return one-dimensional columns",
                )
            frame = engine.from_arrow(pa.table({name: pa.array(value)}))
        elif hasattr(value, "__cuda_array_interface__") and not hasattr(value, "dtypes"):
            type_ = pa.from_numpy_dtype(np.dtype(str(value.dtype)))
            frame = engine.column(name, value, None, type_).to_frame()
        else:
            frame = engine.from_native(value)
    except (InvalidInputError, UnsupportedError, TypeError, ValueError, pa.ArrowInvalid) as error:
        if isinstance(error, DefinitionError):
            raise
        raise DefinitionError(
            f"feature {name!r} returned a {type(value).__module__}.{type(value).__qualname__}",
            "return a series, a frame, a NumPy array, or a dict of these, one value per row "
            "(collect lazy frames, evaluate expressions with df.select)",
        ) from error
    if len(frame) != rows:
        raise DefinitionError(
            f"feature {name!r} returned {len(frame)} rows for {rows}",
            "return one value per input row, in the same order; select rows in the dataset instead",
        )
    return frame


def _check_index(index: Any, own: Any, name: str, rows: int) -> None:
    if len(index) == rows and not bool(index.equals(own)):
        raise DefinitionError(
            f"feature {name!r} returned its {rows} rows in another order or under another index",
            "sort the result back (result.sort_index()) and keep the index of the input",
        )


def conform(result: Result, fields: Sequence[Field], name: str, engine: Engine) -> Result:
    """Return the result with exactly the declared types.

    Raises
    ------
    DefinitionError
        If a column has a type that cannot become the declared one without loss.
    """
    if result.array is not None:
        wanted = np.dtype(fields[0].type.to_pandas_dtype())
        if not np.can_cast(result.array.dtype, wanted, casting="safe"):
            raise _wrong_type(name, fields[0], str(result.array.dtype))
        return Result(None, result.array.astype(wanted, copy=False))
    assert result.frame is not None
    frame = result.frame
    found = engine.to_arrow(frame.head(0)).schema
    wrong = [one for one in fields if found.field(one.name).type != one.type]
    if wrong:
        table = engine.to_arrow(frame.select([one.name for one in wrong]))
        cast = {one.name: _cast(table[one.name], one, name) for one in wrong}
        replaced = engine.from_arrow(pa.table(cast))
        frame = frame.with_columns(*(replaced[one.name] for one in wrong))
    return Result(frame.select([one.name for one in fields]))


def _cast(column: pa.ChunkedArray, wanted: Field, name: str) -> pa.ChunkedArray:
    got = column.type
    is_number = pa.types.is_integer, pa.types.is_floating
    numbers = all(any(test(type_) for test in is_number) for type_ in (got, wanted.type))
    narrower = (
        numbers
        and pa.types.is_floating(got)
        and pa.types.is_floating(wanted.type)
        and got.bit_width > wanted.type.bit_width
    )
    times = (
        pa.types.is_timestamp(got)
        and pa.types.is_timestamp(wanted.type)
        and got.tz == wanted.type.tz
    )
    if pa.types.is_null(got) or times or (numbers and not narrower):
        try:
            return column.cast(wanted.type, safe=True)
        except pa.ArrowInvalid as error:
            raise _wrong_type(name, wanted, f"{got} ({error})") from error
    raise _wrong_type(name, wanted, str(got))


def _wrong_type(name: str, wanted: Field, got: str) -> DefinitionError:
    return DefinitionError(
        f"feature {name!r} returned column {wanted.name!r} as {got}, expected {wanted.type}",
        f"declare a type that holds all values, dtypes={{{wanted.name!r}: ...}}, or cast in the "
        "function",
    )


def types_of(result: Result, name: str, engine: Engine) -> dict[str, pa.DataType]:
    """Return the types of a result's columns; an array counts as a column called ``name``.

    Raises
    ------
    DefinitionError
        If a column holds nothing but nulls.
    """
    if result.array is not None:
        return {name: pa.from_numpy_dtype(np.dtype(str(result.array.dtype)))}
    assert result.frame is not None
    schema = engine.to_arrow(result.frame).schema
    empty = [one.name for one in schema if pa.types.is_null(one.type)]
    if empty:
        raise DefinitionError(
            f"feature {name!r} gave only nulls for {empty} on the sample, so their type is unknown",
            f"declare it: dtypes={{{empty[0]!r}: 'float64'}}",
        )
    return {one.name: normalise_type(one.type) for one in schema}
