"""Limits: memory is refused before work starts, a full disk leaves the store as it was."""

from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.engines.protocol import Engine
from featurestore.errors import DiskFullError, InvalidInputError, MemoryLimitError
from featurestore.execution.budget import budget_of
from featurestore.execution.room import TURNS
from featurestore.limits import resident_bytes
from featurestore.plan.costs import COLUMN_BYTES, THREAD_BYTES
from featurestore.plan.definition import FeatureDefinition
from featurestore.schema import Field, TableSchema
from featurestore.storage.local_io import LocalIO
from featurestore.testing.tables import observations
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer
from featurestore.transforms.extent import Extent
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
    """Let this process hold exactly one gigabyte, as far as it knows."""
    monkeypatch.setattr("featurestore.execution.budget.resident_bytes", lambda: GIGABYTE)
    # What it really holds is something else, so its peaks cannot be judged.
    monkeypatch.setattr("featurestore.execution.dask.judged", lambda *_: nullcontext())
    return GIGABYTE


@dataclass(frozen=True)
class UncutHalf(Transformer):
    """Half of a column; nobody says that a partition may be cut for it."""

    column: str

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field(f"{self.column}_half", pa.float64()),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        half = (nw.col(self.column) / 2).alias(f"{self.column}_half")
        return Columns(partition.frame.select(half))


def defined(table: fs.Table, *transformers: Transformer) -> None:
    """Define features without building them."""
    table._features.define([FeatureDefinition(one) for one in transformers], replace=False)


def test_a_plan_says_what_a_build_costs(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)

    def y(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
        return frame["x"] + frame["n"]

    table.feature(y, inputs=["x", "n"], output="y", dtypes="float64")
    plan = table.plan()
    [step] = plan.steps
    files = table._files()
    largest = max(files.base, key=lambda one: one.rows)
    sizes = {name: largest.column_bytes[name] for name in ("x", "n")}
    inputs, outputs = sum(sizes.values()), 9 * largest.rows
    [feature] = files.graph.features()
    model = feature.transformer.memory(files.schema, Extent(largest.rows, sizes, 16))
    assert model > 0
    # Inputs as they stay, and their decoders; the function; its output, and half of it encoded.
    assert step.task_bytes == inputs + 2 * COLUMN_BYTES + model + outputs + outputs // 2
    assert step.output_bytes == 9 * len(ROWS)
    assert (step.largest, step.work, step.level) == (largest.partition, "apply", 1)
    assert (plan.reserved_bytes, step.at_once) == (still + THREAD_BYTES, 2)
    costs = sorted(one.rows for one in files.base)[-2:]
    assert plan.peak_bytes == step.peak_bytes
    two = still + 2 * (step.task_bytes + THREAD_BYTES)
    assert still + THREAD_BYTES + step.task_bytes < step.peak_bytes <= two
    assert (step.peak_bytes == two) == (costs[0] == costs[1])
    assert (plan.memory_limit, plan.fits) == (store.memory_limit, True)
    for text in (str(plan), plan._repr_html_()):
        for size in (plan.peak_bytes, plan.reserved_bytes, step.task_bytes, store.memory_limit):
            assert format_bytes(size) in text
        assert largest.partition in text


def test_features_of_one_pass_share_its_inputs_and_the_plan_counts_them(
    store: fs.FeatureStore, still: int
) -> None:
    rows = ROWS.select("k", "t", *(pl.col("x").alias(f"x{n}") for n in range(20)))
    table = store.ingest("rows", rows, key="k", time="t")
    defined(table, UncutHalf("x0"))
    alone = table.plan().steps[0].task_bytes
    defined(table, *(UncutHalf(f"x{n}") for n in range(1, 20)))
    sizes = table._files().base[0].column_bytes
    together = alone + sum(sizes[f"x{n}"] + COLUMN_BYTES for n in range(1, 20))
    assert table.plan().steps[0].task_bytes == together
    # Where they do not fit together, they are computed in several passes over the partition.
    held = still + THREAD_BYTES
    small = at_limit(store, held + (alone + together) // 2).table("rows")
    [step] = small.plan().steps
    assert alone < step.task_bytes <= (alone + together) // 2
    assert (step.partitions, small.plan().fits) == (1, True)
    assert small.build().computed == 20
    assert_frame_equal(
        table.read([f"x{n}_half" for n in range(20)]),
        rows.select((pl.col(f"x{n}") / 2).alias(f"x{n}_half") for n in range(20)),
    )


def test_fewer_tasks_at_once_where_they_do_not_all_fit(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    defined(table, UncutHalf("x"))
    step = table.plan().steps[0]
    held = still + THREAD_BYTES
    largest, both = step.task_bytes, step.peak_bytes - held
    for limit, at_once in [(both, 2), (both - 1, 1), (largest, 1)]:
        plan = at_limit(store, held + limit).table("rows").plan()
        assert (plan.steps[0].at_once, plan.fits) == (at_once, True)
        assert plan.peak_bytes <= held + limit
    assert not at_limit(store, held + largest - 1).table("rows").plan().fits
    assert at_limit(store, held + largest).table("rows").build().computed == table.partitions


def test_what_does_not_fit_is_refused_before_any_work(store: fs.FeatureStore, still: int) -> None:
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    defined(table, UncutHalf("x"))
    need = table.plan().steps[0].task_bytes
    before = {one.path for one in table._session.objects.list("")}
    held = still + THREAD_BYTES
    small = at_limit(store, held + need - 1).table("rows")
    with pytest.raises(MemoryLimitError) as caught:
        small.build()
    largest = max(table._files().base, key=lambda one: one.rows)
    message = str(caught.value)
    assert f"x_half (apply) needs {format_bytes(need)} for partition {largest.partition}" in message
    assert format_bytes(held) in message
    assert small.plan().remedy == caught.value.remedy
    assert caught.value.remedy in str(small.plan())
    assert {one.path for one in table._session.objects.list("")} == before
    # The limit that the message names is enough, also if the process holds a little more by then.
    named = parse_bytes(caught.value.remedy.split("at least ")[1].split(",")[0])
    assert held + need < named < held + need + 10 * 2**20
    # So are partitions of the size that it names.
    size = parse_bytes(caught.value.remedy.split("at most ")[1])
    assert 1024 <= size < largest.decoded_bytes
    recut = store.ingest("recut", ROWS, key="k", time="t", partition_bytes=size)
    defined(recut, UncutHalf("x"))
    assert recut.partitions > table.partitions
    assert at_limit(store, held + need - 1).table("recut").build().computed == recut.partitions
    assert at_limit(store, named).table("rows").build().computed == table.partitions


@pytest.mark.parametrize(
    ("distinct", "room"), [(1_000_000, 20), (1, 160)], ids=["partitions", "one time"]
)
def test_an_ingest_that_does_not_fit_names_the_limit_that_will_do(
    store: fs.FeatureStore, still: int, distinct: int, room: int
) -> None:
    numbers = pl.Series("t", range(1_000_000)) % distinct
    rows = pl.DataFrame({"t": numbers, "x": numbers.cast(pl.Float64)})

    def ingest(limit: int) -> fs.Table:
        return at_limit(store, limit).ingest("rows", rows, time="t", partition_bytes="16MiB")

    with pytest.raises(MemoryLimitError) as caught:
        ingest(still + room * 2**20)
    assert f"{format_bytes(still)} already in use" in caught.value.problem
    assert f"the memory limit is {format_bytes(still + room * 2**20)}" in caught.value.problem
    named = parse_bytes(caught.value.remedy.split("memory_limit to at least ")[1].split(",")[0])
    assert still + room * 2**20 < named
    with pytest.raises(MemoryLimitError):  # it has room for what the process holds more by then
        ingest(named - 9 * 2**20)
    assert ingest(named).rows == len(rows)


def test_ingests_of_one_process_take_turns(store: fs.FeatureStore) -> None:
    """Each makes use of all that is left of the limit, so two at once would take it twice."""
    old, turns = store.ingest("old", ROWS, key="k", time="t"), budget_of(TURNS)
    began, go = threading.Event(), threading.Event()

    def slow() -> Iterator[pa.RecordBatch]:
        # A source may read the store, in the ingesting thread and in others, as DuckDB's do.
        with ThreadPoolExecutor(1) as other:
            assert old.read(["x"]).height == other.submit(old.read, ["x"]).result(60).height
        began.set()
        assert go.wait(60)
        yield from ROWS.to_arrow().to_batches()

    def ingest(name: str, rows: Any) -> fs.Table:
        return store.ingest(name, rows, key="k", time="t", memory_limit=store.memory_limit)

    reader = pa.RecordBatchReader.from_batches(ROWS.to_arrow().schema, slow())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ingest, "first", reader)
        assert began.wait(60), first.exception(1)
        second = pool.submit(ingest, "second", ROWS)
        while not turns.waiting:
            assert not second.done()
            time.sleep(0.001)
        assert old.read(["x"]).height == len(ROWS)  # which does not wait
        go.set()
        assert first.result(60).rows == second.result(60).rows == len(ROWS)
    assert (turns.in_flight, turns.waiting) == (0, 0)
    assert (budget_of().in_flight, budget_of().waiting) == (0, 0)


def test_an_ingest_begins_when_no_other_work_holds_anything(store: fs.FeatureStore) -> None:
    budget, limit = budget_of(), store.memory_limit
    with ThreadPoolExecutor(1) as pool:
        with budget.admit(1, limit):
            done = pool.submit(store.ingest, "rows", ROWS, key="k", time="t")
            while not budget.waiting:
                assert not done.done()
                time.sleep(0.001)
        assert done.result(60).rows == len(ROWS)


def test_a_partition_that_does_not_fit_is_processed_in_slices(
    store: fs.FeatureStore, still: int
) -> None:
    numbers = pl.Series("k", range(1_000_000))
    rows = pl.DataFrame({"k": numbers, "x": numbers.cast(pl.Float64)})
    table = store.ingest("rows", rows, key="k")
    assert table.partitions == 1
    defined(table, DOUBLE)
    whole = table.plan().steps[0].task_bytes
    small = at_limit(store, still + 3 * whole // 4).table("rows")
    plan = small.plan()
    assert plan.fits
    assert plan.steps[0].task_bytes <= 3 * whole // 4
    assert small.build().computed == 1
    assert_frame_equal(table.read("double"), rows.select(double=pl.col("x") * 2))


def test_reading_beyond_the_limit_is_refused(store: fs.FeatureStore, still: int) -> None:
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    small = at_limit(store, still + 2 * COLUMN_BYTES).table("rows")
    assert len(small.read("x", rows=slice(0, 50))) == 50
    with pytest.raises(MemoryLimitError, match=r"reading k, t.* needs.*\n.*rows=slice"):
        small.read()
    full = at_limit(store, still).table("rows")
    with pytest.raises(MemoryLimitError, match=r"beside 1\.0 GiB in use or reserved"):
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
    features = (DOUBLE, fs.Rolling("x", "1d", stats=["mean", "std"]), fs.Lag("double", 1))
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
