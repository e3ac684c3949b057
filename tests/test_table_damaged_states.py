"""States are a cache that is not synced: whatever a power failure leaves of them, builds go on."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import CorruptionError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.states import STATES, StateLostError, StateStore
from featurestore.testing.tables import observations

ROWS = observations(300).sort("t", "k")
MORE = observations(60, 5, start=101).sort("t", "k")
MADE = (fs.Lag("x", by="k"), fs.Rolling("x", 5, stats=["mean"], by="k"))

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda data: b"",
    "torn": lambda data: data[: len(data) // 2],
    "zeros": lambda data: b"\0" * len(data),
    "flipped": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    "gone": lambda data: None,
}


@pytest.fixture(params=DAMAGES)
def damage(request: pytest.FixtureRequest) -> Callable[[bytes], bytes | None]:
    return DAMAGES[request.param]


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)


def spoil(
    objects: ObjectStore, damage: Callable[[bytes], bytes | None], only: slice = slice(None)
) -> int:
    """Damage states; return how many."""
    chosen = list(objects.list(STATES))[only]
    for info in chosen:
        data = damage(objects.read(info.path))
        if data is None:
            objects.delete([info.path])
        else:
            objects.replace(info.path, data)
    return len(chosen)


def expected(rows: pl.DataFrame, *made: Any) -> pl.DataFrame:
    table = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}").ingest(
        "rows", rows, key="k", time="t"
    )
    table.add(*made)
    found: pl.DataFrame = table.read()
    return found


def test_summaries_and_combined_states(
    store: fs.FeatureStore, table: fs.Table, damage: Callable[[bytes], bytes | None]
) -> None:
    """After an append the new states are combined from what is damaged."""
    table.add(*MADE)
    table.append(MORE)
    assert spoil(table._session.objects, damage) > 2 * table.partitions
    table.build()
    assert_frame_equal(table.read(), expected(pl.concat([ROWS, MORE]), *MADE))
    assert store.verify().ok


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("only", [slice(None), slice(1, None, 3)])
def test_states_that_only_tasks_read(
    store: fs.FeatureStore,
    table: fs.Table,
    damage: Callable[[bytes], bytes | None],
    workers: int,
    only: slice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Defined once more, everything is there already, as far as a look at the names tells."""
    table.add(*MADE)
    before = table.read()
    table.drop(*[name for name in table.columns if name not in ROWS.columns])
    spoil(table._session.objects, damage, only)
    table = fs.FeatureStore.open(store.url, workers=workers).table("rows")
    with caplog.at_level(logging.WARNING):
        report = table.add(*MADE)
    assert report.computed + report.resumed == 2 * table.partitions
    assert_frame_equal(table.read(), before)


def test_damage_that_comes_back_is_an_error(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: StateStore, key: str) -> None:
        raise StateLostError(f"state {key} is gone or damaged", "do it again")

    monkeypatch.setattr(StateStore, "require", lost)
    with pytest.raises(CorruptionError, match="gone or damaged"):
        table.add(*MADE)


def test_fitted_states(table: fs.Table, damage: Callable[[bytes], bytes | None]) -> None:
    """Of a stored feature, of a dataset's pipeline, and what counts the codes of a category."""
    table.add(fs.Categorify("k", prefix="code_"), fs.Standardize("x", prefix="std_"), fit_on="all")
    objects = table._session.objects

    def look() -> tuple[Any, Any]:
        data = table.dataset(
            features=["x", "code_k"],
            label="std_x",
            split=fs.HashSplit(valid=0.2),
            pipeline=fs.Pipeline(fs.Impute("x"), fs.Standardize("x")),
        )
        return data.schema, data.train.read()

    schema, rows = look()
    assert spoil(objects, damage) > 2
    again, same = look()
    assert str(again) == str(schema)
    assert_frame_equal(same, rows)


@pytest.mark.parametrize("served", ["before", "first"])
def test_serving(table: fs.Table, damage: Callable[[bytes], bytes | None], served: str) -> None:
    """The state of new rows is kept and damaged, or has to be combined of damaged summaries."""
    table.add(*MADE)
    names = [name for name in table.columns if name not in ROWS.columns]
    if served == "before":
        table.compute(MORE, names)
    spoil(table._session.objects, damage)
    found = table.compute(MORE, names)
    after = expected(pl.concat([ROWS, MORE]), *MADE).tail(len(MORE))
    assert_frame_equal(found, after.select(found.columns))
