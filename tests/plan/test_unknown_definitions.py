"""A definition whose code is not here: its values can be read, and say so when they must be built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.engines.protocol import Engine
from featurestore.errors import FormatError
from featurestore.schema import Field, TableSchema
from featurestore.transforms import registry
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer


@pytest.fixture
def table(tmp_path: Path) -> Iterator[fs.Table]:
    @dataclass(frozen=True)
    class Tripled(Transformer):
        column: str

        @property
        def scope(self) -> Scope:
            return Scope.NONE

        def inputs(self, schema: TableSchema) -> tuple[str, ...]:
            return (self.column,)

        def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
            return (Field("tripled", pa.int64()),)

        def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
            return Columns(partition.frame.select(tripled=nw.col(self.column) * 3))

    store = fs.FeatureStore.create(tmp_path / "s")
    made = store.ingest("t", pl.DataFrame({"d": [1, 2, 3], "x": [5, 6, 7]}), time="d")
    made.add(Tripled("x"), fs.Expression(more=nw.col("tripled") + 1))
    del registry._KINDS["Tripled"]  # another process, which does not import the package
    yield fs.FeatureStore.open(tmp_path / "s").table("t")
    registry._KINDS.pop("Tripled", None)


def test_values_can_be_read(table: fs.Table) -> None:
    assert table.read(["tripled", "more"]).rows() == [(15, 16), (18, 19), (21, 22)]
    assert table.status().is_fresh
    assert table.build().computed == 0
    table.add(fs.Expression(y=nw.col("x") + nw.col("tripled")))
    assert table.read("y")["y"].to_list() == [20, 24, 28]


def test_what_must_be_built_is_refused_by_name(table: fs.Table) -> None:
    table.append(pl.DataFrame({"d": [4], "x": [8]}))
    assert table.status()["tripled"].missing == 1
    for work in (table.build, table.plan):
        with pytest.raises(FormatError, match=r"'Tripled'.*does not know"):
            work()
    with pytest.raises(FormatError, match="import the package"):
        table.read("tripled")
    assert table.read("x").height == 4
    table.drop("more")
    table.drop("tripled")
    assert table.columns == ("d", "x")
