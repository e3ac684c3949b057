"""The same rows under another key or time are other data: nothing that was computed is taken over."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore import features
from featurestore.errors import CorruptionError
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset
from featurestore.storage.journal import Journal

# In the order of every key and time below, so that the ingested files have equal bytes.
SOURCE = pl.DataFrame(
    {
        "a": [1, 2, 1, 2, 3],
        "b": [1, 1, 2, 2, 3],
        "observed": [1, 2, 3, 4, 5],
        "issued": [2, 3, 5, 6, 9],
        "temp": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)
ROWS = pl.DataFrame({"a": [1, 1, 2, 2], "b": [2, 1, 2, 1], "t": [2, 3, 4, 6]})
JOINS = {
    "max_age": fs.AsOfJoin("source", "temp", by=["a"], max_age=100),
    "carry": fs.AsOfJoin("source", "temp", by=["a"]),
    "lookup": fs.Lookup("source", "temp"),
}
# Before and after; what a join does not use of them by default makes no difference to its values.
ANEW = {
    "max_age": (("a", "observed"), ("a", "issued")),
    "carry": (("a", "observed"), ("a", "issued")),
    "lookup": (("a", "observed"), ("b", "observed")),
}


def made(key: str, time: str) -> tuple[fs.FeatureStore, fs.Table]:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    store.ingest("source", SOURCE, key=key, time=time)
    return store, store.ingest("rows", ROWS, key="a", time="t")


def ingest_again(store: fs.FeatureStore, key: str, time: str) -> None:
    before = prints(store.table("source"))
    store.drop("source")
    store.ingest("source", SOURCE, key=key, time=time)
    after = store.table("source")
    assert after.read().equals(SOURCE)
    assert not prints(after) & before


def prints(table: fs.Table) -> set[str]:
    return {one.provenance.fingerprint for one in table._files().base}


def expected(kind: str) -> list[float]:
    """Return what the join gives once the other table was ingested again."""
    _, table = made(*ANEW[kind][1])
    table.add(JOINS[kind])
    found: list[float] = table.read("temp")["temp"].to_list()
    return found


@pytest.mark.parametrize("kind", JOINS)
def test_repair_takes_no_copy_of_another_key_or_time(kind: str) -> None:
    store, table = made(*ANEW[kind][0])
    table.add(JOINS[kind])
    assert table.read("temp")["temp"].to_list() != expected(kind)
    table.drop("temp")
    ingest_again(store, *ANEW[kind][1])
    table.add(JOINS[kind])
    assert table.read("temp")["temp"].to_list() == expected(kind)
    files = table._files()
    (group,) = (one for one in files.groups.values() if one.names == ("temp",))
    objects = open_object_store(store.url)
    path = read_fileset(objects, group.fileset)[0].files[0].path
    data = bytearray(objects.read(path))
    data[len(data) // 2] ^= 1
    objects.replace(path, bytes(data))
    with pytest.raises(CorruptionError):
        table.read("temp")
    assert "computed again" in str(store.repair())
    assert table.status().is_fresh
    assert table.read("temp")["temp"].to_list() == expected(kind)


@pytest.mark.parametrize("kind", JOINS)
def test_an_interrupted_build_is_not_resumed_with_another_key_or_time(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, table = made(*ANEW[kind][0])

    def killed(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(features, "publish_features", killed)
        with pytest.raises(KeyboardInterrupt):
            table.add(JOINS[kind])
    assert Journal(open_object_store(store.url), "rows").finished()
    ingest_again(store, *ANEW[kind][1])
    report = table.add(JOINS[kind])
    assert (report.computed, report.resumed) == (1, 0)
    assert table.read("temp")["temp"].to_list() == expected(kind)


CHANGES: dict[str, Callable[[fs.Table], Any]] = {
    "ingest": lambda t: None,
    "append": lambda t: t.append(SOURCE.with_columns(pl.col("observed", "issued") + 100)),
    "delete": lambda t: t.delete(nw.col("temp") == 2.0),
    "compact": lambda t: (
        t.append(SOURCE.with_columns(pl.col("observed", "issued") + 100)),
        t.compact(),
    ),
}


KEYS: list[tuple[tuple[str, ...], str]] = [
    (("a",), "observed"),
    (("b",), "observed"),
    (("a",), "issued"),
    ((), "issued"),
    (("a", "b"), "issued"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_provenance_of_rows_says_key_and_time(change: str) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    found: dict[str, list[set[str]]] = {"one": [], "two": []}
    for number, (key, time) in enumerate(KEYS):
        for name, into in found.items():
            table = store.ingest(f"{name}{number}", SOURCE, key=key, time=time)
            CHANGES[change](table)
            assert table.partitions == (2 if change == "append" else 1)
            into.append(prints(table))
    assert found["one"] == found["two"]  # what is the same shares its states
    assert len(set.union(*found["one"])) == sum(len(one) for one in found["one"])


def test_what_a_dataset_learnt_is_not_shared_with_another_key() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    digests = set()
    for key in ("a", "b"):
        table = store.ingest("rows", SOURCE, key=key, time="observed")
        table.add(fs.Lag("temp", 1))
        lagged = SOURCE.select(pl.col("temp").shift(1).over(key))["temp"]
        pipeline = fs.Pipeline(fs.Standardize("temp_lag_1"))
        data = table.dataset(["temp_lag_1"], pipeline=pipeline)
        found = data.all.read()["temp_lag_1"]
        wanted = (lagged - lagged.mean()) / lagged.std(ddof=0)
        assert found.to_list() == pytest.approx(wanted.to_list(), abs=1e-6)
        digests.add(data.all.digest)
        store.drop("rows")
    assert len(digests) == 2


def test_every_ingest_has_an_identity_of_its_own() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    found = set()
    for _ in range(2):
        table = store.ingest("rows", ROWS, key="a", time="t")
        found.add(table._files().entry.identity)
        table.append(ROWS.with_columns(pl.col("t") + 10))
        table.compact()
        found.add(table._files().entry.identity)
        assert CommitLog.open(open_object_store(store.url)).head().table("rows").identity in found
        store.drop("rows")
    assert len(found) == 2
    assert "" not in found
