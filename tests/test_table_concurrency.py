"""Several writers at once: what lands, what is refused, and that nothing is filled in silently."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import ConflictError, InvalidInputError, NameTakenError, NotReadyError
from featurestore.storage.leases import Lease, Leases
from featurestore.storage.records import Snapshot
from featurestore.testing.interleaving import Meanwhile, another
from featurestore.testing.tables import observations, plus_one

ROWS = observations(300).sort("t", "k")
MORE = observations(60, 5, start=150).sort("t", "k")
DOUBLE = fs.Expression(double=nw.col("x") * 2)
LATE = pl.col("t") + pl.duration(days=900)
LATEST = MORE.select(LATE)["t"].min()


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    return store


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    return store.table("rows")


def test_rows_appended_during_an_add_are_visibly_missing(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    old = table.partitions
    meanwhile(lambda: another(table).append(MORE))
    report = table.add(DOUBLE, fs.Lag("double", 1))
    assert report.computed == 2 * old
    new = table.partitions - old
    assert new > 0
    for one in table.status().features:
        assert (one.fresh, one.stale, one.missing) == (old, 0, new)
    with pytest.raises(NotReadyError, match="missing"):
        table.read("double")
    assert table.build().computed == 2 * new
    x = pl.concat([ROWS, MORE]).select("k", double=pl.col("x") * 2)
    expected = x.select("double", double_lag_1=pl.col("double").shift(1).over("k"))
    assert_frame_equal(table.read(["double", "double_lag_1"]), expected)


def test_a_feature_added_during_an_append_is_missing_on_the_new_rows(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    old = table.partitions
    meanwhile(lambda: another(table).add(DOUBLE))
    table.append(MORE)
    assert table.status()["double"].fresh == old
    assert table.status()["double"].missing == table.partitions - old > 0
    table.build()
    assert table.read("double")["double"].null_count() == pl.concat([ROWS, MORE])["x"].null_count()


def test_two_adds_of_different_features_both_land(table: fs.Table, meanwhile: Meanwhile) -> None:
    meanwhile(lambda: another(table).add(fs.Expression(other=nw.col("n") + 1)))
    table.add(DOUBLE)
    assert table.status().is_fresh
    assert set(table.read().columns) == {*ROWS.columns, "double", "other"}


def test_the_same_feature_added_twice_is_one(table: fs.Table, meanwhile: Meanwhile) -> None:
    meanwhile(lambda: another(table).add(DOUBLE))
    table.add(DOUBLE)
    assert len(table.status().features) == 1
    assert_frame_equal(table.read("double"), ROWS.select(double=pl.col("x") * 2))
    assert fs.FeatureStore.open(table._session.objects.url).verify().ok


def test_two_features_of_one_name_are_a_conflict(table: fs.Table, meanwhile: Meanwhile) -> None:
    meanwhile(lambda: another(table).add(fs.Expression(double=nw.col("n") * 2)))
    with pytest.raises(ConflictError, match=r"'double' was added.*meanwhile"):
        table.add(DOUBLE)
    assert_frame_equal(table.read("double"), ROWS.select(double=pl.col("n") * 2))


def test_what_a_new_feature_reads_is_dropped_meanwhile(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE)
    meanwhile(lambda: another(table).drop("double"))
    with pytest.raises(ConflictError, match=r"'double' of 'rows', which 'double_lag_1' reads"):
        table.add(fs.Lag("double", 1))
    assert table.columns == tuple(ROWS.columns)


def test_what_a_new_feature_reads_changes_its_type_meanwhile(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE)
    other = fs.Expression(double=nw.col("n"))
    meanwhile(lambda: another(table).add(other, replace=True))
    with pytest.raises(ConflictError, match="another type"):
        table.add(fs.Lag("double", 1))


def test_a_reader_is_added_while_its_input_is_dropped(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE)
    meanwhile(lambda: another(table).add(fs.Lag("double", 1)))
    with pytest.raises(ConflictError, match=r"'double_lag_1'.*reads 'double'"):
        table.drop("double")
    assert table.status().is_fresh


def test_a_reader_in_another_table_is_added_while_its_input_is_dropped(
    store: fs.FeatureStore, table: fs.Table, meanwhile: Meanwhile
) -> None:
    left = store.ingest("left", ROWS.select("k", "t"), key="k", time="t")
    table.add(DOUBLE)
    meanwhile(lambda: another(left).add(fs.AsOfJoin("rows", columns="double")))
    with pytest.raises(ConflictError, match=r"'double' of table 'left' reads 'double'"):
        table.drop("double")
    meanwhile(lambda: (another(left).drop("double"), another(table).drop("double")))
    with pytest.raises(ConflictError, match=r"'double' of 'rows', which 'two' reads"):
        left.add(fs.AsOfJoin("rows", columns="double", rename={"double": "two"}))


def test_a_feature_dropped_during_a_build_stays_dropped(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE, fs.Expression(other=nw.col("n") + 1))
    table.append(MORE)
    meanwhile(lambda: another(table).drop("double"))
    table.build()
    assert table.columns == (*ROWS.columns, "other")
    assert table.status().is_fresh


def test_a_feature_replaced_while_it_is_dropped_stays(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE)
    meanwhile(lambda: another(table).add(fs.Expression(double=nw.col("n")), replace=True))
    with pytest.raises(ConflictError, match="replaced meanwhile"):
        table.drop("double")
    assert_frame_equal(table.read("double"), ROWS.select(double="n"))


def test_two_appends_of_the_same_rows_land_once(table: fs.Table, meanwhile: Meanwhile) -> None:
    meanwhile(lambda: another(table).append(MORE))
    with pytest.raises(ConflictError, match="somebody else changed"):
        table.append(MORE)
    assert table.rows == len(ROWS) + len(MORE)


def test_a_table_of_that_name_with_another_key_is_another_table(
    store: fs.FeatureStore, table: fs.Table, meanwhile: Meanwhile
) -> None:
    def anew() -> None:
        other = fs.FeatureStore.open(store.url, workers=1)
        other.drop("rows")
        other.ingest("rows", ROWS.sort("t").unique("t", keep="first"), time="t")

    meanwhile(anew)
    with pytest.raises(ConflictError, match="'rows' was dropped and ingested again"):
        table.append(MORE)
    assert table.key == ()
    assert store.verify().ok


@pytest.mark.parametrize("rows", [ROWS, ROWS.head(60)], ids=["the same rows", "fewer rows"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.append(MORE.with_columns(LATE)),
        # Nothing gives way to these rows: they only come in between.
        lambda t: t.replace(MORE.with_columns(LATE), (LATEST, None)),
        lambda t: t.delete(nw.col("n") == 3),
        lambda t: t.add(fs.Expression(new=nw.col("x") * 2)),
        lambda t: t.feature(plus_one, inputs="x", output="lazy"),
        lambda t: t.drop("old"),
    ],
    ids=["append", "replace", "delete", "add", "define", "drop"],
)
def test_a_table_that_was_ingested_again_is_another_table(
    store: fs.FeatureStore,
    table: fs.Table,
    meanwhile: Meanwhile,
    change: Callable[[fs.Table], Any],
    rows: pl.DataFrame,
) -> None:
    """Also one of the same columns, key and time, where nothing else would tell."""
    table.add(fs.Expression(old=nw.col("n") + 1))

    def anew() -> None:
        other = fs.FeatureStore.open(store.url, workers=1)
        other.drop("rows")
        other.ingest("rows", rows, key="k", time="t", partition_bytes=2500)
        other.table("rows").add(fs.Expression(old=nw.col("n") + 1))

    meanwhile(anew)
    with pytest.raises(ConflictError, match="'rows' was dropped and ingested again"):
        change(table)
    assert_frame_equal(table.read(ROWS.columns), rows)
    assert table.columns == (*ROWS.columns, "old")
    assert store.verify().ok


def test_an_append_follows_on_a_table_whose_partitions_were_all_rewritten(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).compact(partition_bytes="1MiB"))
    table.append(MORE)
    assert_frame_equal(table.read(), pl.concat([ROWS, MORE]))


def test_a_joined_table_that_was_ingested_again_with_another_time(
    store: fs.FeatureStore, table: fs.Table, meanwhile: Meanwhile
) -> None:
    source = ROWS.select("k", pl.col("n").fill_null(-1), "t", value="x")
    source = source.with_columns(known=pl.col("t") + pl.duration(hours=3))
    join = fs.AsOfJoin("source", "value", max_age="9h")

    def anew(key: str, time: str) -> None:
        other = fs.FeatureStore.open(store.url, workers=1)
        if "source" in other.tables():
            other.drop("source")
        other.ingest("source", source, key=key, time=time, duplicates="keep")

    for key, time in (("k", "known"), ("n", "t")):
        anew("k", "t")
        meanwhile(lambda key=key, time=time: anew(key, time))
        with pytest.raises(ConflictError, match=r"'source'.*ingested again with another key or"):
            table.add(join)
        assert "value" not in table.columns
    # With the same ones the same rows are the same.
    anew("k", "t")
    meanwhile(lambda: anew("k", "t"))
    table.add(join)
    assert table.status().is_fresh


# --- values that somebody else wrote meanwhile --------------------------------------------------

TIMES_TEN = fs.Expression(tenfold=nw.col("double") * 10)


def redefined(table: fs.Table) -> None:
    """What somebody else does: replace a feature, and compute what reads it."""
    other = another(table)
    other.add(fs.Expression(double=nw.col("x") * 200), replace=True)
    other.build()
    assert other.status().is_fresh


def check_redefined(table: fs.Table, x: pl.Series) -> None:
    assert table.status().is_fresh
    found = table.read(["double", "tenfold"])
    assert found["double"].equals(x * 200, null_equal=True)
    assert found["tenfold"].equals(x * 200 * 10, null_equal=True)
    assert fs.FeatureStore.open(table._session.objects.url).verify().ok


def test_a_build_leaves_values_that_were_written_since(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE, TIMES_TEN)
    table.append(MORE)
    meanwhile(lambda: redefined(table))
    before = table.version
    report = table.build()
    check_redefined(table, pl.concat([ROWS, MORE])["x"])
    assert report.version == table.version == before + 2


def test_a_build_of_stale_values_leaves_fresh_ones(table: fs.Table, meanwhile: Meanwhile) -> None:
    table.add(DOUBLE, TIMES_TEN)
    table.add(fs.Expression(double=nw.col("x") * 3), replace=True)
    meanwhile(lambda: redefined(table))
    table.build()
    check_redefined(table, ROWS["x"])


def test_an_add_leaves_values_of_the_same_feature(table: fs.Table, meanwhile: Meanwhile) -> None:
    table.add(DOUBLE)

    def theirs() -> None:
        another(table).add(TIMES_TEN)
        redefined(table)

    meanwhile(theirs)
    table.add(TIMES_TEN)
    check_redefined(table, ROWS["x"])


def test_a_build_fills_in_what_is_still_missing(table: fs.Table, meanwhile: Meanwhile) -> None:
    """Somebody else built a part of it: the rest is published beside."""
    table.add(DOUBLE)
    old = table.partitions
    table.append(MORE)
    meanwhile(lambda: another(table).add(fs.Expression(other=nw.col("n") + 1)))
    table.build()
    assert table.status().is_fresh
    assert table.partitions > old
    x = pl.concat([ROWS, MORE])["x"]
    assert table.read("double")["double"].equals(x * 2, null_equal=True)


def test_values_of_a_definition_that_was_replaced_are_stale_not_wrong(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    table.add(DOUBLE, TIMES_TEN)
    old = table.partitions
    table.append(MORE)
    new = fs.Expression(double=nw.col("x") * 200)
    meanwhile(lambda: another(table).add(new, replace=True))
    table.build()
    status = table.status()
    assert (status["tenfold"].stale, status["tenfold"].missing) == (table.partitions, 0)
    assert status["double"].fresh == table.partitions > old
    with pytest.raises(NotReadyError, match="stale"):
        table.read("tenfold")
    table.build()
    check_redefined(table, pl.concat([ROWS, MORE])["x"])


def test_rows_without_time_or_key_follow_on_any_others(
    store: fs.FeatureStore, meanwhile: Meanwhile
) -> None:
    plain = store.ingest("plain", pl.DataFrame({"x": [1, 2]}))
    meanwhile(lambda: another(plain).append(pl.DataFrame({"x": [3]})))
    plain.append(pl.DataFrame({"x": [4]}))
    assert plain.read("x")["x"].to_list() == [1, 2, 3, 4]
    keyed = store.ingest("keyed", pl.DataFrame({"id": [1]}), key="id")
    meanwhile(lambda: another(keyed).append(pl.DataFrame({"id": [2]})))
    with pytest.raises(ConflictError, match="changed the rows of 'keyed' first"):
        keyed.append(pl.DataFrame({"id": [2]}))
    assert keyed.read("id")["id"].to_list() == [1, 2]


def test_rows_follow_on_a_table_that_was_emptied_meanwhile(
    table: fs.Table, meanwhile: Meanwhile
) -> None:
    meanwhile(lambda: another(table).delete(nw.col("k") == nw.col("k")))
    table.append(MORE)
    assert_frame_equal(table.read(), MORE.select(table.columns))


@pytest.mark.parametrize("operation", ["append", "add", "build", "replace", "delete", "compact"])
def test_work_that_gc_overtakes_begins_from_the_next_version(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Between looking for the newest version and keeping it, others publish and collect."""
    overtaken: list[int] = []
    take = Leases.take

    def later(leases: Leases, snapshot: Snapshot, *, writes: bool = False) -> Lease:
        if not overtaken:
            overtaken.append(snapshot.version)
            other = fs.FeatureStore.open(table._session.objects.url, workers=1)
            other.table("rows").add(fs.Expression(triple=nw.col("x") * 3))
            other.gc("0s", keep_versions=1)
        return take(leases, snapshot, writes=writes)

    monkeypatch.setattr(Leases, "take", later)
    work: dict[str, Callable[[], Any]] = {
        "append": lambda: table.append(MORE),
        "add": lambda: table.add(DOUBLE),
        "build": table.build,
        "replace": lambda: table.replace(MORE, (MORE["t"].min(), None)),
        "delete": lambda: table.delete(nw.col("x") > 0),
        "compact": table.compact,
    }
    work[operation]()
    assert overtaken
    assert "triple" in table.columns
    assert another(table)._session.log.newest_version() >= overtaken[0] + 1


def test_two_tables_of_one_name(store: fs.FeatureStore, meanwhile: Meanwhile) -> None:
    url = store._session.objects.url
    meanwhile(lambda: fs.FeatureStore.open(url).ingest("twin", ROWS.head(5)))
    with pytest.raises(NameTakenError, match="'twin' exists"):
        store.ingest("twin", ROWS)
    assert store.table("twin").rows == 5


def test_threads_add_at_once() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    barrier = threading.Barrier(6)

    def add(number: int) -> str:
        barrier.wait()
        try:
            name = f"f{number // 2}"  # each name twice, with different definitions
            table.add(fs.Expression(**{name: nw.col("x") * number}))
        except (ConflictError, InvalidInputError) as error:
            return type(error).__name__
        return "added"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(add, range(6)))
    assert outcomes.count("added") == 3
    assert set(outcomes) <= {"added", "ConflictError", "NameTakenError"}
    found = table.read(["f0", "f1", "f2"])
    for name in found.columns:
        numbers = (2 * int(name[1]), 2 * int(name[1]) + 1)
        assert any(found[name].equals(ROWS["x"] * number, null_equal=True) for number in numbers)
    assert store.verify().ok


APPEND = """
import sys
import polars as pl
import featurestore as fs
table = fs.FeatureStore.open(sys.argv[1], workers=1).table("rows")
rows = pl.read_parquet(sys.argv[2])
for _, piece in rows.group_by("t", maintain_order=True):
    table.append(piece)
"""


def test_another_process_appends_while_this_one_adds(table: fs.Table, tmp_path: Path) -> None:
    path = tmp_path / "more.parquet"
    rows = MORE.head(24)
    rows.write_parquet(path)
    with subprocess.Popen(
        [sys.executable, "-c", APPEND, table._session.objects.url, str(path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
        stderr=subprocess.PIPE,
        text=True,
    ) as other:
        number = 0
        while other.poll() is None:
            table.add(fs.Expression(**{f"f{number}": nw.col("x") * number}))
            number += 1
        assert other.stderr is not None
        assert other.returncode == 0, other.stderr.read()
    assert table.rows == len(ROWS) + len(rows)
    status = table.status()
    assert len(status.features) == number > 1
    for one in status.features:
        assert one.fresh + one.missing == table.partitions
    table.build()
    x = pl.concat([ROWS, rows])["x"]
    for column, values in table.read([f"f{n}" for n in range(number)]).to_dict().items():
        assert values.equals(x * int(column[1:]), null_equal=True)
    assert fs.FeatureStore.open(table._session.objects.url).verify().ok


def test_files_removed_before_the_commit_are_noticed(tmp_path: Path) -> None:
    """A gc whose safety age is shorter than an ingest takes must not make a store of holes."""
    from featurestore.execution import publish

    store = fs.FeatureStore.create(tmp_path / "s")
    kept = publish.write_fileset

    def collected(*arguments: Any) -> Any:
        for one in (tmp_path / "s" / "data").rglob("*.parquet"):
            one.unlink()
        return kept(*arguments)

    publish.write_fileset = collected
    try:
        with pytest.raises(ConflictError, match="removed meanwhile"):
            store.ingest("t", pl.DataFrame({"t": [1, 2], "x": [1.0, 2.0]}), time="t")
    finally:
        publish.write_fileset = kept
    assert store.tables() == ()
    assert store.ingest("t", pl.DataFrame({"t": [1], "x": [1.0]}), time="t").rows == 1
