"""Event times as whole steps, and back to words.

Steps are ``int64`` in ``schema.time_unit``: timestamps in their own unit, dates in microseconds,
integers as they are.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import InvalidInputError
from featurestore.ingest.arrays import to_numpy

Steps = npt.NDArray[np.int64]
_DAY = 86_400_000_000


def time_values(column: pa.Array | pa.ChunkedArray) -> Steps:
    """Return a time column without nulls as steps.

    Raises
    ------
    InvalidInputError
        If an unsigned time does not fit 64 signed bits.
    """
    type_ = column.type
    if pa.types.is_date32(type_):
        return to_numpy(column.cast(pa.int32())).astype(np.int64) * _DAY
    if pa.types.is_timestamp(type_):
        return to_numpy(column.cast(pa.timestamp(type_.unit)).cast(pa.int64()))
    try:
        return to_numpy(pc.cast(column, pa.int64()))
    except pa.ArrowInvalid as error:
        raise InvalidInputError(
            f"a time of type {type_} is out of range: {error}", "use times below 2**63"
        ) from error


def time_text(step: int, type_: pa.DataType) -> str:
    """Return a time in steps as people read it.

    Examples
    --------
    >>> time_text(86_400_000_000, pa.date32())
    '1970-01-02'
    >>> time_text(1_500, pa.timestamp("ms"))
    '1970-01-01 00:00:01.500000'
    """
    if pa.types.is_date32(type_):
        return str(dt.date(1970, 1, 1) + dt.timedelta(days=step // _DAY))
    if not pa.types.is_timestamp(type_):
        return str(step)
    text = str(np.datetime64(step, type_.unit).astype("datetime64[us]")).replace("T", " ")
    text = text.removesuffix(".000000")
    return f"{text} UTC" if type_.tz else text
