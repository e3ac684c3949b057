"""Features as they are stored: found again by fingerprints, and by names after their code changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.engines.protocol import Engine
from featurestore.errors import NameTakenError
from featurestore.schema import Field, TableSchema
from featurestore.storage.fileset import with_definition
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer

ROWS = pl.DataFrame({"d": [1, 2, 3], "x": [5.0, 6.0, 7.0], "y": [1.0, 2.0, 3.0]})


@dataclass(frozen=True)
class Halved(Transformer):
    column: str
    name: str = "half"

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field(self.name, pa.float64()),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        half = nw.col(self.column) / 2 + (self.version - 1)
        return Columns(partition.frame.select(half.alias(self.name)))


@pytest.fixture
def table(tmp_path: Path) -> fs.Table:
    store = fs.FeatureStore.create(tmp_path / "s", workers=1)
    return store.ingest("t", ROWS, time="d")


def test_what_a_newer_version_of_its_code_computes_is_the_same_feature(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(Halved("x"))
    monkeypatch.setattr(Halved, "version", 2)
    again = fs.FeatureStore.open(table._session.objects.url, workers=1).table("t")
    assert again.status()["half"].reasons == ("parameter",)
    with pytest.raises(NameTakenError):  # another definition of that name
        again.add(Halved("y"))
    assert again.add(Halved("x")).computed == again.partitions
    assert again.status().is_fresh
    assert again.read("half")["half"].to_list() == [3.5, 4.0, 4.5]
    assert again.columns == ("d", "x", "y", "half")


def test_a_definition_with_selectors_is_found_by_what_was_asked(table: fs.Table) -> None:
    asked = fs.Standardize(fs.numeric(), prefix="z_")
    table.add(asked, fit_on="all")
    again = fs.FeatureStore.open(table._session.objects.url, workers=1).table("t")
    version = again.version
    again.add(asked, fit_on="all")  # selects z_x as well now, and is what there is already
    assert again.version == version
    snapshot = again._session.snapshot()
    (group,) = (one for one in snapshot.groups("t") if one.kind)
    assert group.kind == "Standardize"
    assert group.definition is None
    stored = with_definition(again._session.objects, group).definition
    assert stored is not None
    assert stored["asked"] == group.asked != ""


def test_defined_and_not_built_it_is_there_with_all_it_is(table: fs.Table) -> None:
    table.feature(inputs="x", dtypes="float64")(eighth)
    again = fs.FeatureStore.open(table._session.objects.url, workers=1).table("t")
    (group,) = (one for one in again._session.snapshot().groups("t") if one.kind)
    assert group.fileset is not None
    assert (group.fileset.partitions, group.fileset.rows) == (0, 0)
    (status,) = again.status().features
    assert (status.kind, status.fresh, status.missing) == ("Function", 0, again.partitions)
    again.build()
    assert again.read("eighth")["eighth"].to_list() == [0.625, 0.75, 0.875]
    assert fs.FeatureStore.open(table._session.objects.url).verify().ok


def eighth(frame: nw.DataFrame[pl.DataFrame]) -> nw.Series[pl.Series]:
    return frame["x"] / 8
