"""Limits: memory is refused before work starts, a full disk leaves the store as it was."""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import replace
from pathlib import Path

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import DiskFullError, InvalidInputError, MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.storage.local_io import LocalIO
from featurestore.testing.tables import observations
from featurestore.units import format_bytes, parse_bytes

ROWS = observations(300).sort("t", "k")
DOUBLE = fs.Expression(double=nw.col("x") * 2)
GIGABYTE = 2**30


def at_limit(store: fs.FeatureStore, limit: int) -> fs.FeatureStore:
    place = replace(store._session.place, memory_limit=limit)
    return fs.FeatureStore(replace(store._session, place=place))


@pytest.fixture
def store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let this process hold exactly one gigabyte."""
    for module in ("plan.projection", "features", "session", "execution.collecting"):
        monkeypatch.setattr(f"featurestore.{module}.resident_bytes", lambda: GIGABYTE)
    return GIGABYTE


def test_a_plan_says_what_a_build_costs(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)

    @table.feature(inputs=["x", "n"], output="y", dtypes="float64")
    def y(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
        return frame["x"] + frame["n"]

    plan = table.plan()
    [step] = plan.steps
    largest = max(table._files().base, key=lambda one: one.rows)
    inputs = largest.column_bytes["x"] + largest.column_bytes["n"]
    assert step.output_bytes == len(ROWS) * 8
    # The inputs, four times the inputs for a function, and the output twice.
    assert step.peak_bytes == 5 * inputs + 2 * largest.rows * 8
    assert (plan.reserved_bytes, plan.workers) == (still, 2)
    assert plan.peak_bytes == still + 2 * step.peak_bytes
    assert plan.memory_limit == store.memory_limit
    assert format_bytes(plan.peak_bytes) in str(plan)


def test_features_of_one_pass_share_its_inputs_and_the_plan_counts_them(
    store: fs.FeatureStore, still: int
) -> None:
    rows = ROWS.select("k", "t", *(pl.col("x").alias(f"x{n}") for n in range(20)))
    table = store.ingest("rows", rows, key="k", time="t")

    def define(name: str) -> None:
        def copy(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
            return frame[name] * 2

        table.feature(copy, inputs=[name], output=f"{name}_copy", dtypes="float64")

    define("x0")
    alone = table.plan().steps[0].peak_bytes
    for n in range(1, 20):
        define(f"x{n}")
    sizes = table._files().base[0].column_bytes
    assert table.plan().steps[0].peak_bytes == alone + sum(sizes[f"x{n}"] for n in range(1, 20))


def test_fewer_workers_where_they_do_not_all_fit(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)

    def late(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
        return frame["x"] > 0

    table.feature(late, inputs=["x"], output="late", dtypes="bool")
    peak = table.plan().steps[0].peak_bytes
    for limit, workers in [(2 * peak, 2), (2 * peak - 1, 1), (peak, 1), (peak - 1, 0)]:
        plan = at_limit(store, still + limit).table("rows").plan()
        assert plan.workers == workers
    assert at_limit(store, still + peak).table("rows").build().computed == table.partitions


def test_what_does_not_fit_is_refused_before_any_work(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    before = {one.path for one in table._session.objects.list("")}
    small = at_limit(store, still + 100).table("rows")
    with pytest.raises(MemoryLimitError) as caught:
        small.add(DOUBLE)
    largest = max(table._files().base, key=lambda one: one.rows)
    message = str(caught.value)
    assert "double needs" in message
    assert largest.partition in message
    assert format_bytes(still) in message
    assert {one.path for one in table._session.objects.list("")} == before
    # The limit that the message names is enough, and nothing below it is.
    needed = int(message.split("raise memory_limit to at least ")[1].split(" bytes", maxsplit=1)[0])
    with pytest.raises(MemoryLimitError):
        at_limit(store, needed - 1).table("rows").add(DOUBLE)
    assert at_limit(store, needed).table("rows").add(DOUBLE).computed == table.partitions


def test_reading_beyond_the_limit_is_refused(store: fs.FeatureStore, still: int) -> None:
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    small = at_limit(store, still + 4000).table("rows")
    assert len(small.read("x", rows=slice(0, 50))) == 50
    with pytest.raises(MemoryLimitError, match=r"reading needs.*\n.*rows=slice"):
        small.read()
    full = at_limit(store, still).table("rows")
    with pytest.raises(MemoryLimitError, match=r"holds 1\.0 GiB already"):
        full.append(observations(5, start=500))


def test_the_limit_comes_from_argument_environment_or_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def limit(value: int | str | None) -> int:
        return fs.FeatureStore.create(
            f"memory://{uuid.uuid4().hex}", memory_limit=value
        ).memory_limit

    assert limit("3GiB") == 3 * GIGABYTE
    assert 0 < limit(None) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setenv("FEATURESTORE_MEMORY_LIMIT", "1500 MB")
    assert limit(None) == 1_500_000_000
    assert limit(parse_bytes("2GiB")) == 2 * GIGABYTE
    with pytest.raises(InvalidInputError, match="'lots' is not a number of bytes"):
        limit("lots")
    assert resident_bytes() > 10**7


@pytest.mark.parametrize("room", [0, 100, 3000, 9000, 16000])
def test_a_full_disk_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", workers=2)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=1500)
    features = (DOUBLE, fs.Rolling("x", "1d", ["mean", "std"]), fs.Lag("double", 1))
    before, version = table.read(), table.version
    left = room

    def write(_: LocalIO, descriptor: int, data: memoryview) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.write(descriptor, data[:left])
        left -= taken
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(LocalIO, "write", write)
        with pytest.raises(DiskFullError, match="free space"):
            table.add(*features)
    again = fs.FeatureStore.open(tmp_path / "store").table("rows")
    assert again.version == version
    assert_frame_equal(again.read(), before)
    assert fs.FeatureStore.open(tmp_path / "store").verify().ok
    report = again.add(*features)
    assert report.computed + report.resumed == 3 * table.partitions
    expected = ROWS.select(double_lag_1=(pl.col("x") * 2).shift(1).over("k"))
    assert_frame_equal(again.read("double_lag_1"), expected)
