"""Group numbers of Polars columns: equal exactly where the columns are equal.

Always true: what it takes depends little on how many groups there are: about 25 bytes per row for
numbers and times, 55 for strings. Polars' own grouping keeps a list of rows per group, which is 130
bytes and more per row where every row is a group of its own; so it is asked only where groups are few.
Trade-off: strings of which most differ are sorted, which takes two to three times as long as hashing.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, cast

import numpy as np
import polars as pl

Codes: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
_FEW: Final = 8
"""Groups are few when this many rows or more share one, on average."""
_INDEX: Final = "__fs_row"


def group_codes(frame: pl.DataFrame) -> Codes:
    """Return an ``int64`` per row in ``[0, rows)``, equal exactly where all columns are equal.

    Nulls equal each other, NaN equals NaN whatever its bits, ``-0.0`` equals ``0.0``.

    Examples
    --------
    >>> group_codes(pl.DataFrame({"a": [5, 7, 5, None], "b": ["x", "x", "x", "x"]})).tolist()
    [0, 2, 0, 3]
    """
    rows = frame.height
    codes = np.zeros(rows, dtype=np.int64)
    for series in frame.iter_columns() if rows else ():
        one = _column_codes(series)
        if frame.width == 1:
            return one
        # Fewer than 2**32 rows, so the product is far inside int64.
        codes *= int(one.max()) + 1
        codes += one
        del one
        codes = _numbered(codes)
    return codes


def text_positions(texts: pl.Series, known: pl.Series) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return where each text is among known ones, which differ; -1 for one that is not, or null.

    Takes about 40 bytes a text and 230 a known one.

    Examples
    --------
    >>> text_positions(pl.Series(["b", None, "c"]), pl.Series(["a", "b"])).tolist()
    [1, -1, -1]
    """
    places = pl.Series(np.arange(len(known), dtype=np.int32))
    found = texts.replace_strict(known, places, default=-1, return_dtype=pl.Int32)
    at: np.ndarray[Any, np.dtype[np.int32]] = found.fill_null(-1).to_numpy(writable=True)
    return at


def _column_codes(series: pl.Series) -> Codes:
    dtype = series.dtype
    if dtype.is_integer() or dtype.is_temporal() or dtype == pl.Boolean:
        return _number_codes(series)
    if dtype.is_float() or dtype in (pl.String, pl.Binary):
        groups = cast("int", series.approx_n_unique())
        if groups > series.len() // _FEW:
            return _rank_codes(series)
    return _hashed_codes(series)


def _number_codes(series: pl.Series) -> Codes:
    physical = series.cast(pl.UInt8) if series.dtype == pl.Boolean else series.to_physical()
    if physical.null_count() == physical.len():
        return np.zeros(physical.len(), dtype=np.int64)
    low, high = int(cast("int", physical.min())), int(cast("int", physical.max()))
    missing = None
    if physical.null_count():
        missing = physical.is_null().to_numpy()
        physical = physical.fill_null(low)
    values = physical.rechunk().to_numpy()
    del physical
    codes = (
        _narrow_codes(values, low, high) if high - low < len(values) - 1 else _sorted_codes(values)
    )
    if missing is not None:  # one code is free: a row without value shares the smallest's
        codes[missing] = int(codes.max()) + 1
    return codes


def _narrow_codes(values: np.ndarray[Any, Any], low: int, high: int) -> Codes:
    if high >= 2**63:
        return np.asarray(values - values.dtype.type(low)).astype(np.int64)
    codes: Codes = values.astype(np.int64)
    codes -= low
    return codes


def _numbered(codes: Codes) -> Codes:
    """Return codes in ``[0, rows)`` for any that are not negative."""
    return codes if int(codes.max()) < len(codes) else _sorted_codes(codes)


def _sorted_codes(values: np.ndarray[Any, Any]) -> Codes:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    fresh = np.ones(len(values), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    del ordered
    number = np.cumsum(fresh, dtype=np.int64)
    number -= 1
    codes = np.empty_like(number)
    codes[order] = number
    return codes


def _rank_codes(series: pl.Series) -> Codes:
    """Return codes by sorting: ranks begin at 1, so that 0 is left for nulls."""
    if series.dtype.is_float():
        series = series + 0.0  # -0.0 becomes 0.0
    # In one piece, which copies no characters; ranking several pieces would.
    series = series.rechunk()
    ranks: Codes = series.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    if not series.null_count():
        ranks -= 1
    return ranks


def _hashed_codes(series: pl.Series) -> Codes:
    frame = series.alias("value").to_frame().with_row_index(_INDEX)
    first = frame.select(pl.col(_INDEX).min().over("value")).to_series().to_numpy()
    rows = np.arange(len(first), dtype=first.dtype)
    number: Codes = np.cumsum(first == rows, dtype=np.int64)
    del rows
    number -= 1
    return np.asarray(number[first])
