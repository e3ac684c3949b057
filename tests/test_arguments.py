"""Wrong arguments: refused with what was given and what to give; NumPy's numbers, times: taken."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

import featurestore as fs
from featurestore.arguments import column_names, shown, whole_number
from featurestore.errors import InvalidInputError, MissingColumnError, NotFoundError
from featurestore.storage.backends import open_object_store
from featurestore.storage.doctor import examine
from featurestore.units import Duration, parse_bytes

ROWS = pl.DataFrame({"day": [1, 2, 3, 4], "x": [0.5, 1.5, 2.5, 3.5]})
NO_WHOLE_NUMBERS: list[Any] = ["x", "3", 1.5, True, float("nan"), [1], -1, 10**5000, np.float64(2)]


def _kind(value: object) -> str:
    """Return a short name that is the same in every process, as parallel test runs need it."""
    return type(value).__name__


@pytest.fixture(scope="module")
def store() -> fs.FeatureStore:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    store.ingest("t", ROWS, time="day").add(fs.Expression(y=nw.col("x") * 2))
    return store


def refused(call: Callable[[], Any]) -> InvalidInputError:
    """Return the error of a call: of the right class, short, with a remedy."""
    with pytest.raises(InvalidInputError) as caught:
        call()
    assert caught.value.remedy
    assert len(str(caught.value)) < 600
    return caught.value


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong", [1.5, None, [1], b"1", True, pd.NaT, object(), ROWS]
)
def test_what_names_no_version(store: fs.FeatureStore, wrong: Any) -> None:
    calls = [lambda: store.checkout(wrong), lambda: store.diff(wrong)]
    if wrong is not None:  # the version the store is at
        calls.append(lambda: store.diff(1, wrong))
    for call in calls:
        assert "names no version" in str(refused(call))


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong", [one for one in NO_WHOLE_NUMBERS if one is not None]
)
def test_what_is_no_whole_number(store: fs.FeatureStore, wrong: Any) -> None:
    before = store.version
    for what, call in {
        "version": lambda: store.tag("some", version=wrong),
        "last": lambda: store.history(wrong),
        "keep_versions": lambda: store.gc(keep_versions=wrong),
    }.items():
        assert f"{what} is " in str(refused(call))
    refused(lambda: store.give_up(wrong))
    assert (store.version, store.tags()) == (before, {})


def test_none_is_no_number_where_one_is_needed(store: fs.FeatureStore) -> None:
    nothing: Any = None
    refused(lambda: store.give_up(nothing))
    refused(lambda: store.gc(keep_versions=nothing))
    assert len(store.history(np.int64(2))) == 2  # type: ignore[arg-type]
    assert len(store.history(0)) == 0


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong", [5, [None], nw.col("x"), b"x", [["x"]], {"x": 1}, ROWS]
)
def test_what_names_no_columns(store: fs.FeatureStore, wrong: Any) -> None:
    table = store.table("t")
    for call in (
        lambda: table.read(wrong),
        lambda: table.to_dask(wrong),
        lambda: table.compute(ROWS, wrong),
        lambda: table.drop(wrong),
        lambda: table.drop("y", wrong),
        lambda: table.lineage(wrong),
        lambda: table.cardinalities(wrong),
        lambda: store.ingest("more", ROWS, key=wrong),
    ):
        assert "does not name columns" in str(refused(call))
    refused(lambda: table.drop(None))  # type: ignore[arg-type]
    with pytest.raises(MissingColumnError, match="no column 5"):
        table.tensor(5)  # type: ignore[arg-type]
    assert (store.tables(), table.columns) == (("t",), ("day", "x", "y"))


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong", [slice("a"), slice(1.5, 2), slice(0, 2, 2), slice(0, 2, 0), 3, (0, 2)]
)
def test_what_is_no_range_of_rows(store: fs.FeatureStore, wrong: Any) -> None:
    assert "slice(start, stop)" in str(refused(lambda: store.table("t").read("x", rows=wrong)))
    assert store.table("t").read("x", rows=slice(np.int64(1), -1))["x"].to_list() == [1.5, 2.5]


@partial(pytest.mark.parametrize, ids=_kind)("wrong", [["t"], None, 5, b"t"])
def test_what_names_no_table(store: fs.FeatureStore, wrong: Any) -> None:
    for call in (lambda: store.table(wrong), lambda: store.drop(wrong)):
        assert "no name of a table" in str(refused(call))
    refused(lambda: store.ingest(wrong, ROWS))


def test_a_repair_takes_reports_only(store: fs.FeatureStore) -> None:
    wrong: Any = "x"
    assert "'x' is no report" in str(refused(lambda: store.repair(wrong)))
    assert store.repair(store.verify()).ok


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong",
    [
        None, 5, b"x", "a\0b", "file:///a%00b", "s3://a\0b", "/" + "x" * 300, "/x" * 3000, "\ud800",
        "~nobody-of-this-name/x", "s3://[", "",
    ],
)  # fmt: skip
def test_what_is_no_place(wrong: Any) -> None:
    for call in (fs.FeatureStore.open, fs.FeatureStore.create, examine, open_object_store):
        refused(partial(call, wrong))


@partial(pytest.mark.parametrize, ids=_kind)(
    "wrong",
    [float("nan"), float("inf"), 1.5, 0, -1, 0.0, "0", "0.1B", True, None, [1], "lots", "1 XB",
     "9" * 5000],
)  # fmt: skip
def test_what_is_no_number_of_bytes(store: fs.FeatureStore, wrong: Any) -> None:
    refused(lambda: parse_bytes(wrong))
    if wrong is not None:
        refused(lambda: store.table("t").compact(partition_bytes=wrong))
        refused(lambda: fs.FeatureStore.open("memory://x", memory_limit=wrong))


def test_numbers_of_bytes_are_exact() -> None:
    seven: Any = np.int64(7)
    assert [parse_bytes(one) for one in (2e9, seven, "1.1GiB", "9007199254740993")] == [
        2_000_000_000, 7, 1_181_116_006, 9_007_199_254_740_993,
    ]  # fmt: skip
    assert type(parse_bytes(seven)) is int
    refused(lambda: Duration.parse("9" * 5000 + "s"))


def test_names_and_numbers_come_back_plain() -> None:
    assert column_names(np.array(["a", "b"])) == ("a", "b")
    assert column_names(pl.Series(["a"])) == ("a",)
    assert type(whole_number(np.uint8(3), "n")) is int
    assert len(shown("x" * 10**6)) < 120


# --- versions ----------------------------------------------------------------------------------


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> fs.FeatureStore:
    """A store whose versions 0 to 3 were made at noon from the 21st to the 24th of November 2026."""
    now = [dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)]
    monkeypatch.setattr("featurestore.storage.commit_log._now", lambda: f"{now[0].isoformat()}")
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    for name in ("a", "b", "c"):
        now[0] += dt.timedelta(days=1)
        store.ingest(name, ROWS, time="day")
    return store


ZONE = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("2", 2),
        ("0", 0),
        (np.int64(2), 2),
        ("2026-11-23", 1),
        ("20261123", 1),
        ("20261123T120000", 2),
        ("2026-W47-7", 0),
        ("2026W477", 0),
        ("2026-W48", 1),
        ("2026-11-23T11:59:59.9999999", 1),
        ("2026-11-23T13:59:00+02:00", 1),
        (dt.date(2026, 11, 24), 2),
        (dt.datetime(2026, 11, 23, 12), 2),  # noqa: DTZ001 - naive is UTC
        (dt.datetime(2026, 11, 23, 13, 59, tzinfo=ZONE), 1),
        (dt.datetime(2026, 11, 23, 14, tzinfo=ZONE), 2),
        (pd.Timestamp("2026-11-23T12:00:00.000000001"), 2),
        (dt.datetime.max.replace(tzinfo=ZONE), 3),
    ],
)
def test_a_version_by_number_and_time(
    versions: fs.FeatureStore, reference: Any, version: int
) -> None:
    assert versions.checkout(reference).version == version
    assert versions.diff(reference, version).is_empty


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("9", "no version 9"), ("9" * 5000, "no tag"), ("20261399", "no version 20261399"),
        ("2026-13-01", "no ISO time"), ("2026-W99", "no ISO time"), ("2026-11-20", "younger"),
        (dt.datetime.min.replace(tzinfo=ZONE), "younger"), ("", "no tag"), ("nothing", "no tag"), ("a\0b", "no tag"),
    ],
)  # fmt: skip
def test_a_version_that_is_not_there(
    versions: fs.FeatureStore, reference: Any, problem: str
) -> None:
    with pytest.raises(NotFoundError, match=problem):
        versions.checkout(reference)
