"""Versions: an old one reads as it was, by number, tag, id and time; gc and verify in between."""

from __future__ import annotations

import datetime as dt
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import FormatError, InvalidInputError, NameTakenError, NotFoundError
from featurestore.testing.tables import observations, plus_one

ROWS = observations(200).sort("t", "k")
DOUBLE = fs.Expression(double=nw.col("x") * 2)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> fs.FeatureStore:
    local = request.param == "local"
    url = str(tmp_path / "store") if local else f"memory://{uuid.uuid4().hex}"
    return fs.FeatureStore.create(url, workers=2)


def changes(store: fs.FeatureStore) -> list[Callable[[], Any]]:
    table = store.table("rows")
    return [
        lambda: table.add(DOUBLE, fs.Lag("double", 1)),
        lambda: table.append(observations(30, 5, start=100)),
        table.build,
        lambda: table.add(fs.Expression(double=nw.col("x") * 20), replace=True),
        table.build,
        lambda: table.drop("double_lag_1"),
        lambda: table.feature(plus_one, inputs=["x"], output="more"),
        lambda: table.drop("more", "double"),
    ]


def test_every_version_reads_as_it_was(store: fs.FeatureStore) -> None:
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table = store.table("rows")
    seen: list[tuple[int, str, tuple[str, ...], list[str], pl.DataFrame]] = []

    def look(at: fs.FeatureStore) -> tuple[tuple[str, ...], list[str], pl.DataFrame]:
        found = at.table("rows")
        ready = [
            *ROWS.columns,
            *(one for f in found.status().features if f.is_fresh for one in f.columns),
        ]
        return found.columns, ready, found.read(ready)

    ids = []
    for change in [lambda: None, *changes(store)]:
        change()
        seen.append((store.version, "", *look(store)))
        ids.append(store.history()[-1].id)
        time.sleep(0.002)
    versions = [one[0] for one in seen]
    assert versions == list(range(1, 10))
    for (version, _, columns, ready, values), id_ in zip(seen, ids, strict=True):
        for reference in (version, id_, f"v{version}"):
            if str(reference).startswith("v"):
                store.tag(str(reference), version)
            old = store.checkout(reference)
            assert old.version == version
            found = look(old)
            assert found[:2] == (columns, ready)
            assert_frame_equal(found[2], values)
    operations = [one.operation for one in store.history()]
    assert operations[:4] == ["create", "ingest rows", "add double, double_lag_1 to rows",
                              "append to rows"]  # fmt: skip
    assert store.verify().ok
    report = store.gc(safety_age="1d", dry_run=True)
    assert report.dry_run
    store.gc(safety_age="0s")
    assert_frame_equal(store.checkout("v3").table("rows").read("x"), seen[2][4].select("x"))
    assert store.verify().ok
    assert table.rows == 230


def test_by_time(store: fs.FeatureStore) -> None:
    before = dt.datetime.now(dt.UTC)
    store.ingest("rows", ROWS, key="k", time="t")
    created = store.history()[-1].created
    time.sleep(0.01)
    store.table("rows").add(DOUBLE)
    assert store.checkout(created).version == 1
    assert store.checkout(dt.datetime.now(dt.UTC).isoformat()).version == 2
    with pytest.raises(NotFoundError, match="younger than"):
        store.checkout((before - dt.timedelta(days=1)).isoformat())
    with pytest.raises(NotFoundError, match="no ISO time"):
        store.checkout("2024-13-77")


def test_what_cannot_be_checked_out(store: fs.FeatureStore) -> None:
    for unknown in (99, "nothing", "1-ffffffff", "v1"):
        with pytest.raises(NotFoundError):
            store.checkout(unknown)


def test_an_old_version_cannot_be_changed(store: fs.FeatureStore) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t")
    table.add(DOUBLE)
    old = store.checkout(2)
    before = {one.path for one in store._session.objects.list("")}
    then = old.table("rows")
    for change in (
        lambda: then.add(fs.Lag("x", 1)),
        lambda: then.append(observations(5, start=500)),
        then.build,
        lambda: then.drop("double"),
        lambda: then.feature(plus_one, inputs=["x"], output="more"),
        lambda: old.ingest("more", ROWS),
        lambda: old.tag("now"),
        old.gc,
    ):
        with pytest.raises(InvalidInputError, match="checkout of version 2"):
            change()
    assert {one.path for one in store._session.objects.list("")} == before
    assert len(then.compute(observations(5, start=500), ["double"])) == 5
    assert then.plan().is_empty


def test_a_store_is_made_once_and_opened_often(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with pytest.raises((FormatError, NotFoundError), match="there is no store"):
        fs.FeatureStore.open(path)
    store = fs.FeatureStore.create(path)
    assert (store.version, store.tables()) == (0, ())
    assert "empty" in str(store)
    with pytest.raises(NameTakenError, match="there is a store"):
        fs.FeatureStore.create(path)
    store.ingest("rows", ROWS, key="k", time="t")
    again = fs.FeatureStore.open(str(path), workers=1)
    assert again.tables() == ("rows",)
    assert_frame_equal(again.table("rows").read(), ROWS)
    again.table("rows").add(DOUBLE)
    assert store.version == again.version == 2
    with pytest.raises(InvalidInputError, match="no engine 'spark'"):
        fs.FeatureStore.open(path, engine="spark")


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "store")
    table = store.ingest("rows", ROWS, key="k", time="t")
    table.add(DOUBLE)
    [path] = (tmp_path / "store").glob("data/rows/f_double*/*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = store.verify()
    assert not report.ok
    assert len(report.faults) == 1
    assert path.name in str(report.faults[0])
