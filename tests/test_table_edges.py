"""States do not bring back rows that went: windows whose first moment is where a row was."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs

START = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - times of the table have no zone


def rows(times: Sequence[int]) -> pl.DataFrame:
    """Return rows of one key at these milliseconds, which are their values as well."""
    frame = pl.DataFrame({"k": ["a"] * len(times), "t": times, "x": times})
    return frame.with_columns(pl.col("t").cast(pl.Datetime("ms")))


def moment(milliseconds: int) -> dt.datetime:
    return START + dt.timedelta(milliseconds=milliseconds)


def counts(*closed: str) -> list[fs.Rolling]:
    return [
        fs.Rolling("x", "3ms", stats="count", closed=one, lag="2ms", rename={"x_count_3ms": one})
        for one in closed
    ]


def ingested(frame: pl.DataFrame, *closed: str) -> fs.Table:
    """Return a table of three partitions with a count of each window."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", frame, key="k", time="t", partition_bytes=60)
    table.add(*counts(*closed))
    return table


def test_a_state_shared_by_windows_that_are_open_and_closed() -> None:
    """The open window, which does not reach the row at 20, made the state that the closed one needs."""
    table = ingested(rows([17, 18, 20, 22, 23, 24, 25, 26, 30]), "right", "left")
    assert table.partitions == 3
    table.delete(nw.col("x") == 20)
    table.build()
    names = ["right", "left"]
    assert table.read(names).equals(ingested(table.read(["k", "t", "x"]), *names).read(names))


@pytest.mark.parametrize("closed", ["left", "both", "right", "none"])
@pytest.mark.parametrize("at", [18, 19, 20])
def test_a_partition_that_begins_earlier_needs_a_state_that_reaches_further(
    closed: str, at: int
) -> None:
    """With the row at 24 the last partition reaches further back than when its state was made."""
    table = ingested(rows([16, 17, at, 21, 22, 23, 25, 26, 30]), closed)
    assert table.partitions == 3
    table.replace(rows([24, 25]), (moment(24), moment(26)))
    table.delete(nw.col("x") == at)
    table.build()
    assert table.read(closed).equals(ingested(table.read(["k", "t", "x"]), closed).read(closed))
