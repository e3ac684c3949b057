"""Stores that earlier versions of this package wrote are read, checked, and built further."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import DefinitionError, NotReadyError
from featurestore.plan.readers import readers
from featurestore.storage.records import FORMAT_VERSION
from featurestore.storage.snapshot_file import snapshot_path

HERE = Path(__file__).resolve().parent
TAG = "before_append"
FEATURES = ("value", "price_sum_12h", "quote", "pair", "std_price")


@pytest.fixture(params=sorted(one.stem for one in HERE.glob("v*.json")))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of one golden store, and what reading it must give."""
    shutil.copytree(HERE / request.param, tmp_path / "s")
    return tmp_path / "s", json.loads((HERE / f"{request.param}.json").read_text("utf-8"))


@pytest.fixture
def loadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the module of the tensor feature's function on the path."""
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the function's module unloaded before and after each test."""
    monkeypatch.setitem(sys.modules, "golden_functions", sys)  # so that it is taken back at the end
    monkeypatch.delitem(sys.modules, "golden_functions")


def content(table: fs.Table, columns: Any = None) -> dict[str, list[Any]]:
    frame = table.read(columns).with_columns(pl.col(pl.Datetime).to_physical())
    return {name: json.loads(json.dumps(frame[name].to_list())) for name in frame.columns}


def close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    if isinstance(wanted, float):
        return found is not None and math.isclose(found, wanted, rel_tol=1e-12, abs_tol=1e-12)
    return bool(found == wanted)


def test_there_is_one_of_this_format() -> None:
    assert (HERE / f"v{FORMAT_VERSION}" / "store.json").is_file()


def test_all_bytes_are_sound(golden: tuple[Path, dict[str, Any]]) -> None:
    store = fs.FeatureStore.open(golden[0])
    report = store.verify(all_versions=True)
    assert report.ok, report.faults
    assert store.verify().ok


def test_values_and_versions_without_the_function(golden: tuple[Path, dict[str, Any]]) -> None:
    place, expected = golden
    store = fs.FeatureStore.open(place)
    assert store.tables() == (
        ("quotes", "shops", "trades") if "shops" in expected else ("quotes", "trades")
    )
    assert content(store.table("quotes")) == expected["quotes"]
    if "shops" in expected:
        shops = store.table("shops")
        assert content(shops, ["shop", "size"]) == expected["shops"]
        assert shops.status()["double"].missing == shops.partitions
    table = store.table("trades")
    assert content(table, list(expected["trades"])) == expected["trades"]
    assert [one.id for one in store.history()] == expected["history"]
    assert [one.operation for one in store.history()] == expected["operations"]
    assert list(store.tags()) == [TAG]
    tagged = store.checkout(TAG).table("trades")
    assert tagged.partitions == 3
    assert content(tagged) == expected["tagged"]
    assert {len(one) for one in expected["tagged"].values()} == {90}
    assert "golden_functions" not in sys.modules


def test_status_says_what_is_missing(golden: tuple[Path, dict[str, Any]]) -> None:
    place, expected = golden
    table = fs.FeatureStore.open(place).table("trades")
    assert expected["missing"] >= 1
    for one in table.status().features:
        assert (one.fresh, one.stale, one.missing) == (3, 0, expected["missing"])
    assert {one for row in table.status().features for one in row.columns} >= set(FEATURES)
    with pytest.raises(NotReadyError, match=r"build\(\)"):
        table.read("value")


@pytest.mark.usefixtures("loadable")
def test_build_completes_it(golden: tuple[Path, dict[str, Any]]) -> None:
    place, expected = golden
    store = fs.FeatureStore.open(place, workers=1)
    table = store.table("trades")
    features = len(table.status().features)
    assert table.build().computed == features * expected["missing"]
    if "built_shops" in expected:
        assert store.table("shops").build().computed == 1
        assert content(store.table("shops")) == expected["built_shops"]
    assert table.status().is_fresh
    found = content(table)
    assert list(found) == list(expected["built"])
    for name, values in expected["built"].items():
        assert close(found[name], values), name
    # What was stored before is the same to the bit.
    for name, values in expected["tagged"].items():
        assert found[name][: len(values)] == values
    assert fs.FeatureStore.open(place).verify(all_versions=True).ok


@pytest.mark.usefixtures("loadable")
def test_old_entries_are_upgraded_when_they_are_touched(tmp_path: Path) -> None:
    shutil.copytree(HERE / "v1", tmp_path / "s")
    store = fs.FeatureStore.open(tmp_path / "s", workers=1)
    before = store._session.snapshot().entries
    store.table("trades").build()
    snapshot = store._session.snapshot()
    changed = {key for key, value in snapshot.entries.items() if before[key] != value}
    features = {key for key in before if key.startswith("group:trades:f_")}
    assert changed == features
    assert all("definition" not in snapshot.entries[key] for key in changed)
    # Packages that know format 1 alone refuse what is written now, and say so.
    path = tmp_path / "s" / snapshot_path(snapshot.version)
    assert json.loads(path.read_bytes())["format"] == FORMAT_VERSION
    assert json.loads((tmp_path / "s" / "store.json").read_bytes())["format"] == 1
    # What is known of a feature is the same before and after, wherever it is kept.
    old, new = store.checkout(snapshot.version - 1).table("trades"), store.table("trades")
    assert old.lineage(*FEATURES) == new.lineage(*FEATURES)
    kinds = {one.columns: one.kind for one in old.status().features}
    assert {one.columns: one.kind for one in new.status().features} == kinds
    then = store.checkout(snapshot.version - 1)._session.snapshot()
    (reader,) = readers(snapshot, "quotes", {"quote"})
    assert [reader] == list(readers(then, "quotes", {"quote"}))
    assert (reader.table, reader.feature) == ("trades", "quote")
    # Adding a feature once more finds the old one.
    new.add(fs.Expression(value=nw.col("price") * nw.col("pieces")))
    assert store.version == snapshot.version


def test_a_function_that_is_not_here_is_named(golden: tuple[Path, dict[str, Any]]) -> None:
    table = fs.FeatureStore.open(golden[0], workers=1).table("trades")
    with pytest.raises(DefinitionError, match="golden_functions"):
        table.build()
    assert table.status()["pair"].missing == golden[1]["missing"]
