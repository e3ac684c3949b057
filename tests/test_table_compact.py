"""Compaction: another layout, the same rows, values and freshness; nothing is computed again."""

from __future__ import annotations

import pickle
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import ConflictError, CorruptionError, FormatError, MemoryLimitError
from featurestore.execution import compaction as merging
from featurestore.execution.events import Event, StepStarted, observed_by
from featurestore.execution.publish import append_partitions
from featurestore.plan.compaction import plan_compaction
from featurestore.plan.staleness import Standing
from featurestore.plan.states import StateNeed
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.storage.states import StateStore
from featurestore.testing.interleaving import Meanwhile, another
from featurestore.testing.journals import journal_keys
from featurestore.testing.tables import (
    FIT_ON,
    HOUR,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)
from featurestore.transforms import registry

ROWS = observations(300, 7).sort("t", "k")
OTHER = observations(100, 1, column="y").sort("t", "k")
MORE = observations(40, 5, start=110).sort("t", "k")


def with_tensor(rows: pl.DataFrame) -> pl.DataFrame:
    values = np.random.default_rng(len(rows)).normal(size=(len(rows), 3)).astype(np.float32)
    return rows.with_columns(pl.Series("e", values, pl.Array(pl.Float32, 3)))


def cut(rows: pl.DataFrame, hours: Sequence[int]) -> list[pl.DataFrame]:
    """Cut rows before these hours; no time is in two pieces."""
    time = pl.col("t").to_physical() // HOUR
    edges = [-1, *sorted(hours), 10**6]
    pieces = [rows.filter((time >= a) & (time < b)) for a, b in pairwise(edges)]
    return [one for one in pieces if len(one)]


def appended(store: fs.FeatureStore, name: str, pieces: Sequence[pl.DataFrame]) -> fs.Table:
    table = store.ingest(name, pieces[0], key="k", time="t")
    for piece in pieces[1:]:
        table.append(piece)
    return table


def twice(frame: Any) -> Any:
    return frame["x"] * 2


class World:
    """Three tables in many partitions, each with features; ``reader`` joins a feature of ``rows``."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
        self.store.ingest("static", names_of_keys(), key="k")
        hours = range(1, 100)
        self.other = appended(
            self.store, "other", cut(OTHER, draw.sample(range(1, 34), draw.randrange(9)))
        )
        rows = with_tensor(ROWS)
        self.rows = appended(self.store, "rows", cut(rows, draw.sample(hours, draw.randrange(12))))
        self.reader = appended(
            self.store, "reader", cut(OTHER, draw.sample(range(1, 34), draw.randrange(6)))
        )
        kinds = draw.sample(one_of_each(), 7)
        self.rows.add(fs.Expression(twin=nw.col("x") * 2), *kinds_with_inputs(kinds))
        self.rows.add(*fitted_of_each(), fit_on=FIT_ON)
        self.reader.add(
            fs.AsOfJoin("rows", columns=["twin", "std_x"]),
            fs.Expression(after=nw.col("twin") + 1),
            fs.Lag("after", by=[]),
        )

    @property
    def tables(self) -> tuple[fs.Table, ...]:
        return self.rows, self.other, self.reader


def kinds_with_inputs(kinds: Sequence[Any]) -> list[Any]:
    """Add the feature that one of the kinds reads."""
    found = list(kinds)
    doubled = one_of_each()[0]
    if not any(isinstance(one, fs.Expression) for one in found):
        found.append(doubled)
    return found


def read_all(world: World) -> list[pl.DataFrame]:
    return [table.read() for table in world.tables]


def summarised(work: Callable[[], Any]) -> int:
    """Return how many partitions some work summarised."""
    seen: list[Event] = []
    with observed_by(seen.append):
        work()
    steps = [one for one in seen if isinstance(one, StepStarted)]
    return sum(one.total for one in steps if one.label == "summarize")


SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_compaction_keeps_rows_values_freshness_and_states(seed: int) -> None:
    world, twin = World(seed), World(seed)
    draw = random.Random(seed)
    expected = read_all(world)
    known = {one.partition for one in world.rows._files().base}
    for table in draw.sample(world.tables, 3):
        for _ in range(draw.randrange(1, 3)):
            version = world.store.version
            target = draw.choice([None, draw.randrange(200, 20_000)])
            merge_groups = draw.random() < 0.5
            report = table.compact(target, merge_groups=merge_groups)
            assert report.partitions_after == table.partitions <= report.partitions_before
            assert report.missing == ()
            assert world.store.version == report.version <= version + 1
            for found, frame in zip(read_all(world), expected, strict=True):
                assert_frame_equal(found, frame, check_exact=True)
            assert all(one.status().is_fresh for one in world.tables)
            again = table.compact(target, merge_groups=merge_groups)
            assert (again.version, again.bytes_written) == (report.version, 0)
    assert [table.build().computed for table in world.tables] == [0, 0, 0]
    assert world.store.verify().ok
    assert journal_keys(world.store._session.objects, "rows") == []

    # What comes later is computed from the states that were kept, and gives the same bits.
    for one in (world, twin):
        one.rows.append(with_tensor(MORE))
    with hidden_rows(world.rows, known):
        world.rows.build()
    twin.rows.build()
    for one in (world, twin):
        one.reader.append(MORE.rename({"x": "y"}))
        one.reader.build()
    assert_frame_equal(world.rows.read(), twin.rows.read(), check_exact=True)
    assert_frame_equal(world.reader.read(), twin.reader.read(), check_exact=True)


@contextmanager
def hidden_rows(table: fs.Table, except_for: AbstractSet[str]) -> Iterator[None]:
    """Remove files of partitions that were merged; whoever would summarise them again fails."""
    store = table._session.objects
    merged = [one for one in table._files().base[:-1] if one.partition not in except_for]
    files = {file.path: store.read(file.path) for one in merged for file in one.all_files()}
    store.delete(files)
    try:
        yield
    finally:
        for path, data in files.items():
            store.create(path, data)


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    return fs.FeatureStore.create(tmp_path / "store", workers=1)


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    """Rows in seven partitions with three features, one of which has to look back."""
    table = appended(store, "rows", cut(ROWS, [10, 20, 30, 40, 50, 60]))
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Lag("x"),
        fs.Rolling("double", "1d", stats=["mean"]),
    )
    return table


def paths(table: fs.Table) -> set[str]:
    files = table._files()
    entries = [one for group in files.entries.values() for one in group.values()]
    return {file.path for one in entries for file in one.all_files()}


# --- the layout --------------------------------------------------------------------------------


def test_many_partitions_become_one(store: fs.FeatureStore, table: fs.Table) -> None:
    expected, version = table.read(), store.version
    report = table.compact()
    assert (report.partitions_before, report.partitions_after) == (7, 1)
    assert (report.files_before, report.files_after) == (28, 4)
    assert report.bytes_written > 0
    assert report.version == store.version == version + 1
    assert store.history(1)[0].operation == "compact rows"
    assert_frame_equal(table.read(), expected, check_exact=True)
    assert table.describe().rows == len(ROWS)
    assert "1 partitions in 4 files, before 7 in 28" in str(report)


def test_partitions_that_are_large_enough_are_not_touched(table: fs.Table) -> None:
    files = table._files()
    sizes = [one.decoded_bytes for one in files.base]
    target = sizes[0] + sizes[1]
    table.compact(target)
    after = table._files().base
    known = {one.partition for one in files.base}
    assert all(one.decoded_bytes <= target or one.partition in known for one in after)
    for one, other in pairwise(after):
        assert one.decoded_bytes + other.decoded_bytes > target
    assert table.compact(1).bytes_written == 0
    assert [one.partition for one in table._files().base] == [one.partition for one in after]


def test_the_same_parts_give_the_same_partition(table: fs.Table) -> None:
    parts = table._files().base
    table.compact()
    (merged,) = table._files().base
    assert merged.partition.split("-")[0] == parts[0].partition.split("-")[0]
    assert merged.partition not in {one.partition for one in parts}
    assert merged.rows == len(ROWS)
    assert merged.time_min == parts[0].time_min
    assert merged.time_max == parts[-1].time_max
    assert merged.widest_row == max(one.widest_row for one in parts)
    assert merged.nulls["x"] == ROWS["x"].null_count()


def test_tables_without_time_or_key_keep_their_order(store: fs.FeatureStore) -> None:
    draw = np.random.default_rng(3).permutation(200)
    table = store.ingest("plain", pl.DataFrame({"x": draw, "s": [str(one) for one in draw]}),
                         partition_bytes=300)  # fmt: skip
    table.add(fs.Expression(y=nw.col("x") + 1))
    assert table.partitions > 5
    table.compact("1MiB")
    assert table.partitions == 1
    assert table.read("x")["x"].to_list() == draw.tolist()
    assert table.read("y")["y"].to_list() == (draw + 1).tolist()
    table.append(pl.DataFrame({"x": [7], "s": ["s"]}))
    assert table.read("x")["x"].to_list() == [*draw.tolist(), 7]


def with_empty_partitions(table: fs.Table, names: Sequence[str]) -> None:
    """Append partitions without rows."""
    session, base = table._session, table._files().base[0]
    empty = [
        replace(
            base, partition=name, rows=0, files=(), tensors={}, decoded_bytes=0, widest_row=0,
            nulls=dict.fromkeys(base.nulls, 0), column_bytes=dict.fromkeys(base.column_bytes, 0),
            time_min=None, time_max=None,
        )
        for name in names
    ]  # fmt: skip
    files = table._files()
    group = files.groups[BASE_GROUP]
    session.commit("empty", append_partitions(session.objects, files.entry, group, empty))


def test_empty_partitions_vanish(table: fs.Table) -> None:
    expected = table.read(ROWS.columns)
    with_empty_partitions(table, ["p00000007-00000000", "p00000008-00000000"])
    table.append(MORE)
    kept = [one.partition for one in table._files().base if one.rows]
    table.compact(1)
    assert [one.partition for one in table._files().base] == kept
    with_empty_partitions(table, ["p00000009-00000000"])
    table.compact()
    assert table.partitions == 1
    table.build()
    assert_frame_equal(table.read(ROWS.columns), pl.concat([expected, MORE]), check_exact=True)


def test_damaged_parts_are_refused(table: fs.Table, store: fs.FeatureStore) -> None:
    place = Path(store.url.removeprefix("file://"))
    victim = place / sorted(one for one in paths(table) if "double" in one)[2]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    version = store.version
    with pytest.raises(CorruptionError, match="double"):
        table.compact()
    assert store.version == version


def test_a_merge_that_does_not_fit_is_refused_before_anything_is_written(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.execution.budget.resident_bytes", lambda: 2**30)
    limit = 2**30 + 16_000
    small = fs.FeatureStore.open(table._session.objects.url, memory_limit=limit, workers=1)
    before = sorted(one.path for one in small._session.objects.list("data"))
    with pytest.raises(MemoryLimitError, match=r"(?s)merging .* of 7 partitions needs .* smaller"):
        small.table("rows").compact()
    assert sorted(one.path for one in small._session.objects.list("data")) == before


# --- what is not fresh -------------------------------------------------------------------------


def test_what_is_missing_in_a_part_is_left_missing_and_said(table: fs.Table) -> None:
    table.append(MORE)
    table.add(fs.Expression(full=nw.col("n") + 1))
    report = table.compact()
    assert set(report.missing) == {"double", "x_lag_1", "double_mean_1d"}
    assert "build is to compute" in str(report)
    status = table.status()
    assert status["full"].is_fresh
    assert (status["double"].missing, status["double"].stale) == (1, 0)
    assert table.build().computed == 3
    x = pl.concat([ROWS, MORE])["x"]
    assert table.read("double")["double"].equals(x * 2, null_equal=True)


def test_what_is_stale_stays_stale_where_nothing_is_merged(table: fs.Table) -> None:
    last = table._files().base[-1]
    table.append(MORE)
    table.add(fs.Expression(double=nw.col("x") * 3), replace=True)
    assert table.status()["double_mean_1d"].stale == 7
    sizes = [one.decoded_bytes for one in table._files().base]
    table.compact(sizes[0] + sizes[1])
    status = table.status()["double_mean_1d"]
    assert status.missing >= 2  # merged, and appended
    assert status.fresh == 0
    kept = [one for one in table._files().base if one.partition == last.partition]
    assert status.stale == table.partitions - status.missing >= len(kept)
    table.build()
    assert table.status().is_fresh


def test_features_that_are_not_known_here_are_refused(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tripled(fs.Expression):
        pass

    table.add(Tripled(tripled=nw.col("x") * 3))
    monkeypatch.delitem(registry._KINDS, "Tripled")
    version = table.version
    with pytest.raises(FormatError, match="Tripled"):
        another(table).compact()
    assert table.version == version
    # Where partitions stay, their values may move into another file.
    report = another(table).compact(1, merge_groups=True)
    assert report.files_after < report.files_before
    monkeypatch.setitem(registry._KINDS, "Tripled", Tripled)
    assert table.status().is_fresh
    assert table.read("tripled")["tripled"].equals(ROWS["x"] * 3, null_equal=True)


def test_changed_code_does_not_hinder_and_stays_visible(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add(fs.Function(twice, inputs="x", output="by_function"))
    expected = table.read("by_function")
    with monkeypatch.context() as changed:
        changed.setattr(fs.Function, "current_code", lambda self: "something else")
        table.compact()
        assert table.status()["by_function"].reasons == ("code",)
    assert table.status()["by_function"].is_fresh
    assert_frame_equal(table.read("by_function"), expected)


# --- one file for several features -----------------------------------------------------------------


def test_features_share_a_file_which_is_read_once(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = table.read()
    report = table.compact(1, merge_groups=True)
    assert (report.partitions_before, report.partitions_after) == (7, 7)
    assert (report.files_before, report.files_after) == (28, 14)
    reads = []
    read = PolarsEngine.read_parquet

    def counted(*given: Any) -> Any:
        reads.append(given)
        return read(*given)

    monkeypatch.setattr(PolarsEngine, "read_parquet", counted)
    assert_frame_equal(table.read(), expected, check_exact=True)
    assert len(reads) == 14
    assert_frame_equal(table.read(["double_mean_1d", "t", "double"]),
                       expected.select("double_mean_1d", "t", "double"), check_exact=True)  # fmt: skip
    assert table.status().is_fresh
    stored = sum(table._session.objects.size(one) for one in paths(table))
    assert table.describe().stored_bytes == stored


def test_features_in_a_shared_file_live_on_their_own(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    expected = table.read()
    table.compact(merge_groups=True)
    table.drop("x_lag_1")
    table.add(fs.Expression(double=nw.col("x") * 5), replace=True)
    table.build()
    assert table.read("double")["double"].equals(ROWS["x"] * 5, null_equal=True)
    table.add(fs.Expression(double=nw.col("x") * 2), replace=True)
    table.build()
    store.gc(safety_age="0s", keep_versions=1)
    assert_frame_equal(table.read(), expected.drop("x_lag_1"), check_column_order=False)
    table.append(MORE)
    table.build()
    report = table.compact()
    assert report.files_after == 3  # of their own again
    assert table.compact(merge_groups=True).files_after == 2
    assert table.build().computed == 0
    store.gc(safety_age="0s", keep_versions=1)
    assert store.verify().ok
    assert table.read("double").height == len(ROWS) + len(MORE)


def test_damage_of_a_shared_file_is_a_fault_of_all_its_features(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    table.compact(merge_groups=True)
    (shared,) = (one for one in paths(table) if "/features/" in one)
    victim = Path(store.url.removeprefix("file://")) / shared
    victim.write_bytes(victim.read_bytes()[:-1])
    table.append(MORE)  # other filesets do not name the file anew
    table.build()
    for faults in (store.verify().faults, store.verify(full=False, all_versions=True).faults):
        found = [one.columns for one in faults if one.file == shared]
        assert sorted(found) == [("double",), ("double_mean_1d",), ("x_lag_1",)]


def test_tensors_keep_files_of_their_own(store: fs.FeatureStore) -> None:
    table = appended(store, "rows", [with_tensor(one) for one in cut(ROWS, [20, 40])])
    table.feature(pair, inputs=["x"], output="pair", shape=(2,), dtypes="float32")
    table.add(fs.Expression(a=nw.col("x") + 1), fs.Expression(b=nw.col("x") + 2))
    table.build()
    expected = table.read()
    arrays = [one[:] for one in table.tensor("e")]
    table.compact(1, merge_groups=True)
    assert_frame_equal(table.read(), expected, check_exact=True)
    table.compact(merge_groups=True)
    assert_frame_equal(table.read(), expected, check_exact=True)
    (merged,) = table.tensor("e")
    np.testing.assert_array_equal(merged[:], np.concatenate(arrays))
    assert store.verify().ok


def pair(frame: Any) -> Any:
    x = frame["x"].fill_null(0.0).to_numpy()
    return np.stack([x, -x], axis=1).astype(np.float32)


# --- states ------------------------------------------------------------------------------------


def test_nothing_is_summarised_twice(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    table.compact()
    assert summarised(table.build) == 0
    table.append(MORE)
    # Everything is stale as the fit scope grew: the new rows are summarised, nothing else.
    assert summarised(table.build) == 1
    twin = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    rows = twin.ingest("rows", pl.concat([ROWS, MORE]), key="k", time="t")
    rows.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    assert_frame_equal(table.read("std_x"), rows.read("std_x"), rel_tol=1e-12)


def test_states_are_kept_under_their_new_keys_bit_by_bit(table: fs.Table) -> None:
    table.add(fs.Standardize("x", prefix="std_"), fit_on=FIT_ON)
    states = StateStore(table._session.objects)

    def needs(column: str) -> list[StateNeed]:
        files = table._files()
        found = table._session.assessor(files).group("rows", files.graph.owners[column])
        return [one.need for one in found]

    before = {column: needs(column) for column in ("std_x", "x_lag_1")}
    bases = table._files().base
    table.compact(bases[0].decoded_bytes + bases[1].decoded_bytes)
    (old, *_), (new, *_) = before["std_x"], needs("std_x")
    assert old.key != new.key
    assert states.digest(old.key) == states.digest(new.key) is not None
    lags = needs("x_lag_1")
    assert len(lags) == table.partitions < 7
    old_digests = {states.digest(one.key) for one in before["x_lag_1"] if one.key}
    assert {states.digest(one.key) for one in lags[1:]} <= old_digests - {None}


def test_lost_states_are_computed_again(table: fs.Table) -> None:
    twin = table.read()
    store = table._session.objects
    states = [one.path for one in store.list("states")]
    store.delete(states[::2])
    table.compact()
    store.delete([one.path for one in store.list("states")][::2])
    table.append(MORE)
    table.build()
    assert_frame_equal(table.read().head(len(ROWS)), twin, check_exact=True)
    x = pl.concat([ROWS, MORE]).with_columns(pl.col("x").shift(1).over("k"))["x"]
    assert table.read("x_lag_1")["x_lag_1"].equals(x, null_equal=True)


def test_work_travels_to_other_processes(table: fs.Table) -> None:
    tables = {"rows": table._files()}
    plan = plan_compaction(Standing.of(tables), "rows", 10**6, merge_groups=True)
    tasks = [merging.MergeTask(table._session.objects.url, "rows", one) for one in plan.merges]
    assert len(tasks) == 2
    for task in tasks:
        copy = pickle.loads(pickle.dumps(task))
        assert copy == task
        assert [copy.merge.key(one) for one in copy.merge.pieces] == [
            task.merge.key(one) for one in task.merge.pieces
        ]


# --- others at work ----------------------------------------------------------------------------


def merges_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return where the merges that run from now on are listed, by column group."""
    ran: list[str] = []
    merge = merging.merge_partitions

    def counted(task: merging.MergeTask) -> list[PartitionEntry]:
        ran.append(task.merge.pieces[0].group.group)
        return merge(task)

    monkeypatch.setattr(merging, "merge_partitions", counted)
    return ran


def test_an_append_meanwhile_is_kept(table: fs.Table, meanwhile: Meanwhile) -> None:
    meanwhile(lambda: another(table).append(MORE))
    report = table.compact()
    assert report.partitions_after == table.partitions == 2
    assert {one.missing for one in table.status().features} == {1}
    assert table.build().computed == 3
    expected = pl.concat([ROWS, MORE])
    assert_frame_equal(table.read(ROWS.columns), expected, check_exact=True)
    assert table.read("double")["double"].equals(expected["x"] * 2, null_equal=True)


def test_a_feature_added_meanwhile_is_merged_too(
    table: fs.Table, meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = merges_of(monkeypatch)
    meanwhile(lambda: another(table).add(fs.Expression(new=nw.col("x") + 1)))
    report = table.compact()
    assert report.missing == ()
    assert table.status().is_fresh
    assert table.read("new")["new"].equals(ROWS["x"] + 1, null_equal=True)
    assert len(ran) == 5  # what was merged at first was not merged again
    assert len(set(ran)) == 5
    assert journal_keys(table._session.objects, "rows") == []


def test_values_built_meanwhile_are_taken_along(table: fs.Table, meanwhile: Meanwhile) -> None:
    table.append(MORE)
    meanwhile(lambda: another(table).build())
    assert table.compact().missing == ()
    assert table.status().is_fresh
    assert table.build().computed == 0


@pytest.mark.parametrize("what", ["drop", "tag", "ingest", "replace feature", "define"])
def test_other_work_meanwhile_is_no_obstacle(
    store: fs.FeatureStore, table: fs.Table, meanwhile: Meanwhile, what: str
) -> None:
    other = another(table)
    work: dict[str, Callable[[], Any]] = {
        "drop": lambda: other.drop("x_lag_1"),
        "tag": lambda: store.tag("kept"),
        "ingest": lambda: store.ingest("more", MORE, key="k", time="t"),
        "replace feature": lambda: other.add(fs.Expression(double=nw.col("x") * 7), replace=True),
        "define": lambda: other.feature(twice, inputs=["x"], output="late"),
    }
    meanwhile(work[what])
    report = table.compact()
    assert table.partitions == 1
    assert ("x_lag_1" in table.columns) == (what != "drop")
    factor = 7 if what == "replace feature" else 2
    assert report.missing == {
        "replace feature": ("double_mean_1d",), "define": ("late",)
    }.get(what, ())  # fmt: skip
    table.build()
    assert table.read("double")["double"].equals(ROWS["x"] * factor, null_equal=True)
    assert store.verify().ok


def test_rows_that_change_meanwhile_are_merged_as_they_are_then(
    store: fs.FeatureStore, table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).delete(nw.col("n") > 40))
    table.compact()
    kept = ROWS.filter((pl.col("n") > 40).fill_null(value=False).not_())
    assert table.partitions == 1
    assert_frame_equal(table.read(ROWS.columns), kept, check_exact=True)
    table.build()
    assert table.read("double")["double"].equals(kept["x"] * 2, null_equal=True)
    assert store.verify().ok


def test_of_two_compactions_one_finds_nothing_left_to_do(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    version = table.version
    expected = table.read()
    meanwhile(lambda: another(table).compact())
    report = table.compact()
    assert (report.partitions_before, report.bytes_written) == (1, 0)
    assert table.version == version + 1
    assert_frame_equal(table.read(), expected, check_exact=True)
    assert journal_keys(table._session.objects, "rows") == []


def test_who_loses_every_time_is_told(table: fs.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, number = CommitLog.commit, iter(range(100))
    busy: list[bool] = []

    def overtaken(log: CommitLog, *given: Any, **named: Any) -> Any:
        if not busy:
            busy.append(True)
            another(table).add(fs.Expression(**{f"f{next(number)}": nw.col("x") + 1}))
            busy.clear()
        return commit(log, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(CommitLog, "commit", overtaken)
        with pytest.raises(ConflictError, match="built on partitions while they were compacted"):
            table.compact()
    assert table.partitions == 7
    assert next(number) == 10
    table.compact()
    assert table.status().is_fresh


def test_values_built_on_the_old_layout_are_visibly_missing(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    sizes = [one.decoded_bytes for one in table._files().base]
    meanwhile(lambda: another(table).compact(sizes[0] + sizes[1]))
    table.add(fs.Expression(late=nw.col("x") - 1), fs.Lag("n"))
    merged = 7 - table.partitions
    assert merged > 0
    status = table.status()
    assert status["late"].missing >= 1
    assert status["late"].fresh == table.partitions - status["late"].missing
    assert status["n_lag_1"].missing == status["late"].missing
    assert table.status()["double"].is_fresh
    table.build()
    assert table.status().is_fresh
    assert table.read("late")["late"].equals(ROWS["x"] - 1, null_equal=True)
    n = ROWS.with_columns(pl.col("n").shift(1).over("k"))["n"]
    assert table.read("n_lag_1")["n_lag_1"].equals(n, null_equal=True)


# --- interrupted, and older versions ------------------------------------------------------------


def test_an_interrupted_compaction_goes_on(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, version = table.read(), table.version
    ran = merges_of(monkeypatch)
    counted = merging.merge_partitions

    def fails_at_the_third(task: merging.MergeTask) -> list[PartitionEntry]:
        if len(ran) == 2:
            raise KeyboardInterrupt
        return counted(task)

    with monkeypatch.context() as patched:
        patched.setattr(merging, "merge_partitions", fails_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            table.compact()
    assert (len(ran), table.version) == (2, version)
    assert len(journal_keys(table._session.objects, "rows")) == 2
    table.compact()
    assert len(ran) == 4
    assert journal_keys(table._session.objects, "rows") == []
    assert_frame_equal(table.read(), expected, check_exact=True)


def test_older_versions_stay_readable_while_they_are_kept(
    store: fs.FeatureStore, table: fs.Table
) -> None:
    old, before = store.checkout(store.version).table("rows"), paths(table)
    expected = table.read()
    store.tag("golden")
    table.compact()
    assert old.partitions == 7
    assert_frame_equal(old.read(), expected, check_exact=True)
    store.gc(safety_age="0s", keep_versions=1)
    assert_frame_equal(store.checkout("golden").table("rows").read(), expected, check_exact=True)
    store.untag("golden")
    del old
    removed = {one.path for one in store.gc(safety_age="0s", keep_versions=1).removed}
    assert before <= removed
    assert_frame_equal(table.read(), expected, check_exact=True)
    assert store.verify(all_versions=True).ok


def test_datasets_read_the_version_they_were_made_at(table: fs.Table) -> None:
    dataset = table.dataset(["double", "x_lag_1"])
    table.compact()
    assert dataset.all.rows == len(ROWS)
    assert_frame_equal(
        dataset.all.read(), table.dataset(["double", "x_lag_1"]).all.read(), check_exact=True
    )


def test_a_checkout_cannot_be_compacted(store: fs.FeatureStore, table: fs.Table) -> None:
    with pytest.raises(fs.FeatureStoreError, match="cannot change"):
        store.checkout(store.version).table("rows").compact()
