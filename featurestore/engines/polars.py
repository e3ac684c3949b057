"""The engine of a CPU: Polars frames, NumPy arrays.

Always true: rows keep their order, nothing is computed lazily, and arrays of columns without nulls
share the column's memory where Polars can give it (they are read-only then).

Trade-off: groups are numbered by what Polars does fast (``group_codes``); everything that has to be
equal on a GPU runs in the array kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import (
    MICROSECONDS_PER_DAY,
    array_to_arrow,
    normalise_table,
    read_arrow,
)
from featurestore.engines.finding import KNOWN_TEXTS, found_by_codes
from featurestore.engines.group_codes import group_codes, text_positions
from featurestore.engines.list_rows import can_take, take_lists
from featurestore.engines.protocol import Array, Frame, Series
from featurestore.errors import InvalidInputError, UnsupportedError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile


class PolarsEngine:
    """Runs partitions with Polars and NumPy.

    Examples
    --------
    >>> engine = PolarsEngine()
    >>> frame = engine.from_arrow(pa.table({"k": ["b", "a", "b"], "x": [1.5, None, 2.5]}))
    >>> values, valid = engine.values(frame["x"])
    >>> values.tolist(), valid.tolist()
    ([1.5, 0.0, 2.5], [True, False, True])
    >>> codes = engine.codes(frame, ["k"])
    >>> bool(codes[0] == codes[2]), bool(codes[0] == codes[1])
    (True, False)
    """

    @property
    def name(self) -> str:
        return "polars"

    @property
    def xp(self) -> Any:
        return np

    def __repr__(self) -> str:
        return "PolarsEngine()"

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
        """Return a frame of the table's columns (zero-copy where the types allow it)."""
        if table.num_columns == 0:
            return _wrap(pl.DataFrame())
        return _wrap(pl.DataFrame(pl.from_arrow(table, rechunk=True)))

    def to_arrow(self, frame: Frame) -> pa.Table:
        """Return the frame as Arrow, its types normalised, each column in one chunk."""
        return normalise_table(_unwrap(frame).to_arrow())

    # --- columns and arrays ------------------------------------------------------------------------

    def values(self, column: Series) -> tuple[Array, Array]:
        """Return a column's values and which of them are valid; values under nulls are 0."""
        series: pl.Series = column.to_native()
        dtype = series.dtype
        if isinstance(dtype, pl.Decimal):
            series = series.cast(pl.Float64)
        elif isinstance(dtype, pl.Date | pl.Datetime | pl.Duration | pl.Time):
            series = series.to_physical().cast(pl.Int64)
        elif not (dtype.is_numeric() or dtype == pl.Boolean):
            raise UnsupportedError(
                f"column {series.name!r} of type {dtype} has no array form",
                "name numeric, boolean, date or timestamp columns",
            )
        if series.null_count():
            valid = series.is_not_null().to_numpy()
            series = series.fill_null(False if dtype == pl.Boolean else 0)
        else:
            valid = np.ones(len(series), dtype=np.bool_)
        values = series.rechunk().to_numpy()
        if isinstance(dtype, pl.Date):
            values = np.where(valid, values, 0) * MICROSECONDS_PER_DAY
        return values, valid

    def column(self, name: str, values: Array, valid: Array | None, type_: pa.DataType) -> Series:
        """Return a column of Arrow type ``type_`` from an array: the inverse of ``values``."""
        series = pl.Series(name, pl.from_arrow(array_to_arrow(values, valid, type_)))
        out: Series = nw.from_native(series, series_only=True)
        return out

    def codes(self, frame: Frame, columns: Sequence[str]) -> Array:
        """Return an ``int64`` per row that is equal exactly where these columns are equal."""
        if not columns:
            return np.zeros(len(frame), dtype=np.int64)
        return group_codes(_unwrap(frame).select(*dict.fromkeys(columns)))

    def find(self, frame: Frame, columns: Sequence[str], known: Frame) -> Array:
        """Return where the values of each row are in ``known``, -1 for nowhere."""
        texts = _unwrap(frame)[columns[0]]
        one_text = len(columns) == 1 and texts.dtype == pl.String
        if one_text and len(known) * KNOWN_TEXTS <= len(frame):
            return text_positions(texts, _unwrap(known)[columns[0]])
        return found_by_codes(self, frame, columns, known)

    def take(self, frame: Frame, positions: Array, valid: Array | None = None) -> Frame:
        """Return rows by position; where ``valid`` is False a row of nulls."""
        native = _unwrap(frame)
        if valid is not None and bool(valid.all()):
            valid = None
        if valid is not None and native.height == 0:
            return _wrap(native.clear(n=len(positions)))
        if valid is None:
            index = pl.Series("", positions, dtype=pl.Int64)
        else:
            held = pa.array(positions.astype(np.int64, copy=False), mask=~valid)
            index = pl.Series("", pl.from_arrow(held), dtype=pl.Int64)
        taken = {
            name: _taken_lists(native[name], positions, valid)
            for name, dtype in native.schema.items()
            if isinstance(dtype, pl.List)
        }
        known = {name: one for name, one in taken.items() if one is not None}
        rest = native.drop(*known).select(pl.all().gather(index))
        if not known:
            return _wrap(rest)
        return _wrap(pl.DataFrame([known[n] if n in known else rest[n] for n in native.columns]))

    def strings(self, column: Series) -> tuple[Array, Array, Array]:
        """Return a string column's UTF-8: offsets ``[n + 1]``, bytes, validity."""
        series: pl.Series = column.to_native()
        if series.dtype not in (pl.String, pl.Categorical, pl.Enum):
            raise UnsupportedError(
                f"column {series.name!r} of type {series.dtype} is no string column",
                "name string columns",
            )
        array = series.cast(pl.String).rechunk().to_arrow().cast(pa.large_string())
        valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
        _, offsets_buffer, data = array.buffers()
        if len(array) == 0 or offsets_buffer is None:
            return np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint8), valid
        offsets = np.frombuffer(offsets_buffer, dtype=np.int64)
        offsets = offsets[array.offset : array.offset + len(array) + 1]
        bytes_ = np.zeros(0, dtype=np.uint8)
        if data is not None:
            bytes_ = np.frombuffer(data, dtype=np.uint8)[int(offsets[0]) : int(offsets[-1])]
        return offsets - offsets[0], bytes_, valid

    # --- users' functions --------------------------------------------------------------------------

    def native(self, frame: Frame, kind: str) -> Any:
        """Return the frame for a user's function: ``"narwhals"``, ``"pandas"`` or ``"polars"``."""
        if kind == "narwhals":
            return frame
        if kind == "polars":
            return _unwrap(frame)
        if kind == "pandas":
            return _unwrap(frame).to_pandas()
        raise InvalidInputError(
            f"{kind!r} is not a kind of frame", "use 'narwhals', 'pandas' or 'polars'"
        )

    def from_native(self, value: Any) -> Frame:
        """Return what a user's function gave back (frame or series) as this engine's frame.

        In pandas NaN means missing, so NaN in a pandas frame becomes null.
        """
        native: Any = value.to_native() if hasattr(value, "to_native") else value
        if isinstance(native, pl.DataFrame):
            return _wrap(native)
        if isinstance(native, pl.Series):
            return _wrap(native.to_frame())
        if type(native).__module__.partition(".")[0] == "pandas":
            plain = native.to_frame() if native.ndim == 1 else native
            return _wrap(pl.from_pandas(plain.reset_index(drop=True)))
        if isinstance(native, pa.Table):
            return self.from_arrow(native)
        raise InvalidInputError(
            f"a {type(value).__module__}.{type(value).__qualname__} is not a frame of this engine",
            "return a Narwhals, Polars or pandas frame or series, or a NumPy array",
        )

    def to_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array itself: this engine's arrays are in this machine's memory."""
        out: np.ndarray[Any, Any] = array
        return out

    def from_host(self, array: np.ndarray[Any, Any]) -> Array:
        """Return the array itself."""
        return array


def _wrap(native: pl.DataFrame) -> Frame:
    return nw.from_native(native, eager_only=True)


def _unwrap(frame: Frame) -> pl.DataFrame:
    native: pl.DataFrame = frame.to_native()
    return native


def _taken_lists(column: pl.Series, positions: Array, valid: Array | None) -> pl.Series | None:
    """Return rows of a list column, None where items are not numbers."""
    # Put together by Arrow, which sums up sizes first; Polars lets a list grow.
    chunks = [one.to_arrow() for one in column.get_chunks()]
    lists = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    if not can_take(lists.type):
        return None
    made = pl.from_arrow(take_lists(lists, np.asarray(positions), valid))
    return pl.Series(column.name, made, dtype=column.dtype)
