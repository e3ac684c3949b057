"""Tables whose rows became known at times of their own: in time, late, out of order, never."""

from __future__ import annotations

from typing import Final

import pyarrow as pa
from hypothesis import strategies as st

from featurestore.testing.strategies import tables

DELAYS: Final = (None, -3, 0, 0, 1, 3, 10, 50, 10**6)


@st.composite
def late_tables(draw: st.DrawFn, unit: str = "us", *, max_rows: int = 30) -> pa.Table:
    """Return a table as ``tables`` does with a column ``a`` more: when each row became known.

    Parameters
    ----------
    unit : str
        Of ``t`` and of ``a``.
    """
    table = draw(tables(time_type=pa.timestamp(unit), max_rows=max_rows))
    rows = len(table)
    delays = draw(st.lists(st.sampled_from(DELAYS), min_size=rows, max_size=rows))
    times = table["t"].cast(pa.int64()).to_pylist()
    known = [
        None if delay is None else time + delay for time, delay in zip(times, delays, strict=True)
    ]
    return table.append_column("a", pa.array(known, pa.int64()).cast(pa.timestamp(unit)))
