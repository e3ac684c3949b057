"""The engine of an NVIDIA GPU: cuDF frames, CuPy arrays.

It only moves columns; every result is computed by the same array kernels as on a CPU.

Always true: rows keep the order they have (nothing here joins or groups, whose order cuDF leaves
open), and NaN stays apart from null. For the latter, validity is read from the column itself through
pylibcudf, because the pandas-like interface of cuDF counts NaN of float columns among the nulls.

Trade-offs: strings cross to the host to become offsets and bytes; Parquet is decoded on the host,
where page checksums are verified, and copied to the device.

cuDF has no dates: they are second timestamps on the device, a type the store never holds otherwise.
Gaps, declared: ``"polars"`` frames, binary columns, ``float16``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import cudf
import cupy
import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pylibcudf as plc

from featurestore.engines.arrow import (
    MICROSECONDS_PER_DAY,
    HostArray,
    normalise_table,
    read_arrow,
)
from featurestore.engines.finding import found_by_codes
from featurestore.engines.protocol import Array, Frame, Series
from featurestore.errors import InvalidInputError, UnsupportedError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile

_MICROSECONDS_PER_SECOND: Final = 1_000_000
_SECONDS_PER_DAY: Final = MICROSECONDS_PER_DAY // _MICROSECONDS_PER_SECOND


class CudfEngine:
    """Runs partitions with cuDF and CuPy on the current CUDA device."""

    @property
    def name(self) -> str:
        return "cudf"

    @property
    def xp(self) -> Any:
        return cupy

    def __repr__(self) -> str:
        return "CudfEngine()"

    # --- in and out ------------------------------------------------------------------------------

    def read_parquet(
        self,
        store: ObjectStore,
        files: Sequence[StoredFile],
        columns: Sequence[str],
        entry: PartitionEntry | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Frame:
        """Return columns of a partition's Parquet files, in the order asked for."""
        return self.from_arrow(read_arrow(store, files, columns, entry, rows))

    def from_arrow(self, table: pa.Table) -> Frame:
        """Return a frame of the table's columns, copied to the device."""
        table = _recast(normalise_table(table), pa.types.is_date32, pa.timestamp("s"))
        return _wrap(cudf.DataFrame.from_arrow(table))

    def to_arrow(self, frame: Frame) -> pa.Table:
        """Return the frame as Arrow, its types normalised."""
        table = frame.to_native().to_arrow(preserve_index=False)
        return normalise_table(_recast(table, pa.timestamp("s").__eq__, pa.date32()))

    # --- columns and arrays ------------------------------------------------------------------------

    def values(self, column: Series) -> tuple[Array, Array]:
        """Return a column's values and which of them are valid; values under nulls are 0."""
        series = column.to_native()
        dtype = series.dtype
        valid = self._valid(series)
        if isinstance(dtype, cudf.core.dtypes.DecimalDtype):
            series = series.astype("float64")
            return self._filled(series, valid), valid
        unit = _unit(dtype)
        if unit is None and getattr(dtype, "kind", "O") not in "biuf":
            raise UnsupportedError(
                f"column {series.name!r} of type {dtype} has no array form",
                "name numeric, boolean, date or timestamp columns",
            )
        if unit is None:
            return self._filled(series, valid), valid
        if getattr(dtype, "tz", None) is not None:
            series = series.dt.tz_convert(None)
        steps = self._filled(series.astype("int64"), valid)
        # Seconds are dates: second timestamps are stored as milliseconds.
        return (steps * _MICROSECONDS_PER_SECOND if unit == "s" else steps), valid

    def column(self, name: str, values: Array, valid: Array | None, type_: pa.DataType) -> Series:
        """Return a column of Arrow type ``type_`` from an array: the inverse of ``values``."""
        if pa.types.is_date32(type_):
            days = values // MICROSECONDS_PER_DAY
            series = cudf.Series((days * _SECONDS_PER_DAY).astype("int64")).astype("datetime64[s]")
        elif pa.types.is_timestamp(type_):
            series = cudf.Series(values.astype("int64")).astype(f"datetime64[{type_.unit}]")
        elif pa.types.is_duration(type_):
            series = cudf.Series(values.astype("int64")).astype(f"timedelta64[{type_.unit}]")
        elif pa.types.is_decimal(type_):
            dtype = cudf.Decimal128Dtype(type_.precision, type_.scale)
            series = cudf.Series(values.astype("float64")).astype(dtype)
        else:
            series = cudf.Series(values.astype(type_.to_pandas_dtype(), copy=False))
        if valid is not None and not bool(valid.all()):
            series = _with_nulls(series, valid)
        if pa.types.is_timestamp(type_) and type_.tz is not None:
            series = series.dt.tz_localize("UTC").dt.tz_convert(type_.tz)
        out: Series = nw.from_native(series.rename(name), series_only=True)
        return out

    def codes(self, frame: Frame, columns: Sequence[str]) -> Array:
        """Return an ``int64`` per row that is equal exactly where these columns are equal."""
        native, names = frame.to_native(), list(dict.fromkeys(columns))
        if not names or not len(native):
            return cupy.zeros(len(native), dtype=cupy.int64)
        keys = [self._comparable(native[name]).to_pylibcudf()[0] for name in names]
        _, indices = plc.transform.encode(plc.Table(keys))
        return cudf.Series.from_pylibcudf(indices).to_cupy().astype(cupy.int64)

    def find(self, frame: Frame, columns: Sequence[str], known: Frame) -> Array:
        """Return where the values of each row are in ``known``, -1 for nowhere."""
        return found_by_codes(self, frame, columns, known)

    def take(self, frame: Frame, positions: Array, valid: Array | None = None) -> Frame:
        """Return rows by position; where ``valid`` is False a row of nulls."""
        native = frame.to_native().reset_index(drop=True)
        if valid is not None and not bool(valid.all()):
            # One row of nulls at the end is what every position without a match points at.
            schema = native.head(0).to_arrow(preserve_index=False).schema
            row = pa.table({one.name: pa.nulls(1, one.type) for one in schema})
            positions = cupy.where(valid, positions, len(native))
            native = cudf.concat([native, cudf.DataFrame.from_arrow(row)], ignore_index=True)
        return _wrap(native.take(positions).reset_index(drop=True))

    def strings(self, column: Series) -> tuple[Array, Array, Array]:
        """Return a string column's UTF-8: offsets ``[n + 1]``, bytes, validity."""
        series = column.to_native()
        if column.dtype not in (nw.String, nw.Categorical):
            raise UnsupportedError(
                f"column {series.name!r} of type {series.dtype} is no string column",
                "name string columns",
            )
        array = series.astype("str").to_arrow().cast(pa.large_string())
        valid = cupy.asarray(pc.is_valid(array).to_numpy(zero_copy_only=False))
        _, bounds, data = array.buffers()
        if not len(array) or bounds is None:
            return cupy.zeros(1, dtype=cupy.int64), cupy.zeros(0, dtype=cupy.uint8), valid
        offsets = np.frombuffer(bounds, np.int64)[array.offset : array.offset + len(array) + 1]
        raw = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        raw = raw[int(offsets[0]) : int(offsets[-1])]
        return cupy.asarray(offsets - offsets[0]), cupy.asarray(raw), valid

    # --- users' functions --------------------------------------------------------------------------

    def native(self, frame: Frame, kind: str) -> Any:
        """Return the frame for a user's function: ``"narwhals"``, or ``"pandas"``, which is cuDF."""
        if kind == "narwhals":
            return frame
        if kind == "pandas":
            return frame.to_native()
        if kind == "polars":
            raise UnsupportedError(
                "a function of a Polars frame cannot run on a GPU",
                "write it for frame='narwhals', or build with engine='polars'",
            )
        raise InvalidInputError(
            f"{kind!r} is not a kind of frame", "use 'narwhals', 'pandas' or 'polars'"
        )

    def from_native(self, value: Any) -> Frame:
        """Return what a user's function gave back (frame or series) as this engine's frame.

        In the pandas interface NaN means missing, so NaN in a bare cuDF frame becomes null, as it
        does for pandas on a CPU; Narwhals frames keep it.
        """
        if hasattr(value, "to_native"):
            native = value.to_native()
        else:
            native = value.nans_to_nulls() if isinstance(value, _NATIVE) else value
        if isinstance(native, cudf.Series):
            native = native.to_frame()
        if isinstance(native, cudf.DataFrame):
            return _wrap(native.reset_index(drop=True))
        if isinstance(native, pa.Table):
            return self.from_arrow(native)
        raise InvalidInputError(
            f"a {type(value).__module__}.{type(value).__qualname__} is not a frame of this engine",
            "return a Narwhals or cuDF frame or series, or a CuPy array",
        )

    def to_host(self, array: Array) -> HostArray:
        """Return a copy of the array in the host's memory."""
        out: HostArray = cupy.asnumpy(array)
        return out

    def from_host(self, array: HostArray) -> Array:
        """Return a copy of the array on the device."""
        return cupy.asarray(array)

    # --- inside --------------------------------------------------------------------------------------

    def _valid(self, series: Any) -> Array:
        column, _ = series.to_pylibcudf()
        if not column.null_count():
            return cupy.ones(len(series), dtype=cupy.bool_)
        valid = plc.unary.is_valid(column)
        return cudf.Series.from_pylibcudf(valid).to_cupy().astype(cupy.bool_)

    def _filled(self, series: Any, valid: Array) -> Array:
        """Return the values, 0 under nulls; ``fillna`` would replace NaN as well."""
        column, _ = series.to_pylibcudf()
        if column.null_count():
            zero = plc.Scalar.from_arrow(pa.scalar(0).cast(_arrow_type(series.dtype)))
            column = plc.replace.replace_nulls(column, zero)
            series = cudf.Series.from_pylibcudf(column)
        return cupy.where(valid, series.to_cupy(), series.dtype.type(0))

    def _comparable(self, series: Any) -> Any:
        """Return a float column as the bits of its values, with one NaN and one zero."""
        if getattr(series.dtype, "kind", "O") != "f":
            return series
        valid = self._valid(series)
        values = self._filled(series, valid).astype(cupy.float64) + 0.0
        bits = cupy.where(cupy.isnan(values), cupy.nan, values).view(cupy.int64)
        return _with_nulls(cudf.Series(bits), valid)


_NATIVE: Final = (cudf.DataFrame, cudf.Series)


def _wrap(native: Any) -> Frame:
    return nw.from_native(native, eager_only=True)


def _recast(table: pa.Table, which: Callable[[pa.DataType], Any], type_: pa.DataType) -> pa.Table:
    """Return the table with columns of some types cast."""
    fields = [pa.field(one.name, type_) if bool(which(one.type)) else one for one in table.schema]
    return table.cast(pa.schema(fields))


def _unit(dtype: Any) -> str | None:
    """Return the resolution of a time, None for other types."""
    base = getattr(dtype, "base", dtype)
    if getattr(base, "kind", "") not in ("M", "m"):
        return None
    return str(np.datetime_data(base)[0])


def _arrow_type(dtype: Any) -> pa.DataType:
    return pa.from_numpy_dtype(np.dtype(dtype))


def _with_nulls(series: Any, valid: Array) -> Any:
    """Return a column whose values are null where ``valid`` is False."""
    column, _ = series.to_pylibcudf()
    flags, _ = cudf.Series(valid).to_pylibcudf()
    mask, count = plc.transform.bools_to_mask(flags)
    return cudf.Series.from_pylibcudf(column.with_mask(mask, count))
