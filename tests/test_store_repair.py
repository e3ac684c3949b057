"""Repair: every kind of damage in turn, derived values come back with the same bits, the rest is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError
from featurestore.report.repairs import RepairReport
from featurestore.session import Session
from featurestore.storage import fileset
from featurestore.storage.fileset import read_fileset, with_partitions
from featurestore.storage.journal import Journal
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.storage.snapshot_file import snapshot_path
from featurestore.testing.tables import count_of_a_day, observations, plus_one, two_wide
from featurestore.transforms import function_ref

ROWS = observations(120).sort("t", "k")
CUT: dict[str, Any] = {"key": "k", "time": "t", "partition_bytes": 2500}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables; features of all scopes, of other features, and of the other table's feature."""
    path = tmp_path_factory.mktemp("repair") / "store"
    store = fs.FeatureStore.create(path, workers=2)
    other = store.ingest("other", observations(80, 1, column="y").sort("t", "k"), **CUT)
    other.add(fs.Expression(z=nw.col("y") + 1))
    table = store.ingest("rows", ROWS, **CUT)
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Function(two_wide, inputs="x", output="pair", shape=(2,)),
        fs.Function(
            count_of_a_day, inputs=["t", "n"], output="recent", frame="polars", dtypes="int64",
            lookback="1d",
        ),
        fs.Rolling("double", "1d", stats=["mean"]),
        fs.AsOfJoin("other", columns="z"),
    )  # fmt: skip
    table.add(fs.Standardize("n", prefix="std_"), fit_on="all")
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Iterator[fs.FeatureStore]:
    shutil.copytree(made, tmp_path / "store")
    yield fs.FeatureStore.open(tmp_path / "store", workers=2)
    fileset._cache.clear()


def root(store: fs.FeatureStore) -> Path:
    place = store._session.objects.local_path("store.json")
    assert place is not None
    return place.parent


def damage(store: fs.FeatureStore, path: Path | str, how: str = "flip") -> None:
    path = root(store) / path
    data = bytearray(path.read_bytes())
    path.unlink()
    if how == "flip":
        data[len(data) // 2] ^= 1
    if how != "gone":
        path.write_bytes(data if how == "flip" else data[: len(data) // 3])
    fileset._cache.clear()


def files_of(store: fs.FeatureStore, column: str, table: str = "rows") -> list[Path]:
    """Return the files of a column as the newest version names them, in order of partitions."""
    return [root(store) / one.path for entry in entries_of(store, column, table) for one in entry]


def entries_of(
    store: fs.FeatureStore, column: str, table: str = "rows"
) -> list[tuple[StoredFile, ...]]:
    files = store._session.files(table)
    return [one.all_files() for one in files.entries[files.graph.owners[column]].values()]


def fileset_of(store: fs.FeatureStore, column: str, table: str = "rows") -> str:
    files = store._session.files(table)
    found = files.groups[files.graph.owners[column]].fileset
    assert found is not None
    return found.file.path


def values(store: fs.FeatureStore) -> tuple[pl.DataFrame, pl.DataFrame]:
    return store.table("rows").read(), store.table("other").read()


def assert_mended(
    store: fs.FeatureStore, before: tuple[pl.DataFrame, pl.DataFrame], report: RepairReport
) -> None:
    assert report.ok, str(report)
    fileset._cache.clear()
    again = fs.FeatureStore.open(root(store), workers=2)
    assert again.verify(all_versions=False).ok, str(again.verify())
    assert all(again.table(name).status().is_fresh for name in again.tables())
    for found, expected in zip(values(again), before, strict=True):
        assert found.equals(expected)


def test_every_kind_of_derived_file_in_turn(store: fs.FeatureStore) -> None:
    before = values(store)
    columns = [("double", "rows"), ("pair", "rows"), ("recent", "rows"), ("double_mean_1d", "rows"),
               ("z", "rows"), ("std_n", "rows"), ("z", "other")]  # fmt: skip
    modes = ["flip", "gone", "cut"]
    tried = 0
    for number, (column, table) in enumerate(columns):
        for place in (-1, -2):  # of a tensor: chunk and metadata
            found = files_of(store, column, table)
            damage(store, found[max(place, -len(found))], modes[(number + tried) % 3])
            version = store.version
            assert_mended(store, before, store.repair())
            assert store.version == version + 1
            tried += 1
        damage(store, fileset_of(store, column, table), ["flip", "cut"][number % 2])
        report = store.repair()
        assert_mended(store, before, report)
        tried += 1
    assert tried == 21


def test_whole_features_and_what_reads_them_in_one_commit(store: fs.FeatureStore) -> None:
    before, version = values(store), store.version
    for column, table in (
        ("double", "rows"), ("double_mean_1d", "rows"), ("z", "other"), ("z", "rows"),
    ):  # fmt: skip
        for path in files_of(store, column, table):
            damage(store, path)
    shutil.rmtree(root(store) / "states")  # nothing to lean on but the ingested rows
    report = store.repair()
    assert_mended(store, before, report)
    assert report.version == version + 1
    assert [(one.table, one.columns) for one in report.mended] == [
        ("other", ("z",)), ("rows", ("double",)), ("rows", ("double_mean_1d",)), ("rows", ("z",)),
    ]  # fmt: skip
    assert {one.how for one in report.mended} == {"computed again"}
    assert "computed again" in str(report)
    assert "<table>" in report._repr_html_()


def test_caches_are_deleted(store: fs.FeatureStore) -> None:
    before, version = values(store), store.version
    folder = root(store)
    states = sorted((folder / "states").iterdir())
    for path, how in zip(states, ["flip", "cut"] * len(states), strict=False):
        damage(store, path, how)
    entry = next(iter(store._session.files("rows").entries["base"].values()))
    Journal(store._session.objects, "rows").record_all([("ab" * 16, entry)])
    [journal] = (folder / "journal" / "rows").iterdir()
    damage(store, journal)
    (folder / "latest.json").write_bytes(b"{}")
    (folder / "leases").mkdir(exist_ok=True)
    (folder / "leases" / "0123456789abcdef.json").write_bytes(b'{"version":1}')
    report = store.repair()
    assert_mended(store, before, report)
    assert store.version == version
    assert {one.how for one in report.mended} == {"deleted"}
    assert len(report.mended) == len(states) + 3
    assert store.verify(all_versions=True).ok


def test_nothing_to_do(store: fs.FeatureStore) -> None:
    version = store.version
    report = store.repair()
    assert (report.ok, report.mended, report.version) == (True, (), version)
    assert "nothing is damaged" in str(report)
    assert store.version == version
    with pytest.raises(InvalidInputError, match="checkout"):
        store.checkout(version).repair()


def test_a_dry_run_says_the_same_and_changes_nothing(store: fs.FeatureStore) -> None:
    for path in (*files_of(store, "double"), *files_of(store, "double_mean_1d")):
        damage(store, path)
    damage(store, fileset_of(store, "std_n"))
    damage(store, files_of(store, "k")[0])

    def everything() -> dict[str, bytes]:
        return {str(one): one.read_bytes() for one in root(store).rglob("*") if one.is_file()}

    before = everything()
    promised = store.repair(dry_run=True)
    assert everything() == before
    assert "would mend" in str(promised)
    done = store.repair()
    assert (done.mended, done.left) == (promised.mended, promised.left)
    json.dumps(done.to_json())


def test_ingested_rows_are_named_and_what_stands_on_them(store: fs.FeatureStore) -> None:
    before = values(store)
    base = files_of(store, "k")[0]
    sound = base.read_bytes()
    damage(store, base)
    first, second, *_ = files_of(store, "double")
    kept = first.read_bytes()
    damage(store, first)
    damage(store, second)
    report = store.repair()
    assert not report.ok
    (mended,) = report.mended
    assert mended.columns == ("double",)
    assert len(mended.partitions) == 1
    left = {root(store) / one.file: one for one in report.left}
    assert left.keys() == {base, first}
    assert "was ingested" in left[base].reason
    assert "backup" in left[base].remedy
    assert "it needs k, t, x, n, word of table 'rows'" in left[first].reason
    assert "left: " in str(report)
    assert len(store.verify().faults) == 2  # they stay named: a backup still mends them
    base.write_bytes(sound)
    assert_mended(store, before, store.repair())
    assert first.read_bytes() != kept  # computed again, under another name


def test_a_state_that_is_kept_stands_for_damaged_rows(store: fs.FeatureStore) -> None:
    before = values(store)
    base = files_of(store, "k")[0]
    sound = base.read_bytes()
    damage(store, base)
    path = files_of(store, "recent")[1]
    damage(store, path)
    report = store.repair()
    assert [one.columns for one in report.mended] == [("recent",)]
    shutil.rmtree(root(store) / "states")
    damage(store, files_of(store, "recent")[1])
    report = store.repair()
    assert report.mended == ()
    assert (
        "it needs k, t, x, n, word" in {one.columns: one for one in report.left}[("recent",)].reason
    )
    base.write_bytes(sound)
    assert_mended(store, before, store.repair())


def test_an_older_version_has_a_copy(store: fs.FeatureStore) -> None:
    before = values(store)
    table = store.table("rows")
    old = store.version
    table.drop("double_mean_1d")
    table.add(fs.Rolling("double", "1d", stats=["mean"]))
    damage(store, files_of(store, "double_mean_1d")[0])
    report = store.repair()
    assert [one.how for one in report.mended] == [f"copy of version {old}"]
    assert_mended(store, before, report)
    assert report.mended[0].partitions


def test_ingested_rows_come_from_a_copy(store: fs.FeatureStore) -> None:
    before = values(store)
    old = store.version
    session = store._session
    base = session.snapshot().group("rows", "base")
    assert base is not None
    entries = list(read_fileset(session.objects, base.fileset))
    entries[1] = copied(store, entries[1])
    group = with_partitions(session.objects, base, entries)
    session.commit("copy a partition", lambda _: {group.key: group.to_json()})
    damage(store, files_of(store, "k")[1], "cut")
    report = store.repair()
    assert [one.how for one in report.mended] == [f"copy of version {old}"]
    assert_mended(store, before, report)


def copied(store: fs.FeatureStore, entry: PartitionEntry) -> PartitionEntry:
    """Return an entry of the same values in a copy of its file."""
    (file,) = entry.files
    path = f"{file.path[: -len('.parquet') - 12]}{'0' * 12}.parquet"
    shutil.copy(root(store) / file.path, root(store) / path)
    content = {**entry.to_json(), "files": [[path, file.bytes, file.checksum, file.footer]]}
    return PartitionEntry.from_json(content)


def test_functions_that_changed_or_are_not_here(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = store.table("rows")

    def here_only(frame: Any) -> Any:
        return frame["x"] - 1

    table.feature(here_only, inputs=["x"])
    table.feature(plus_one, inputs=["x"], output="more")
    table.build()
    damage(store, files_of(store, "here_only")[0])
    damage(store, files_of(store, "more")[0])
    monkeypatch.setattr(function_ref, "_loaded", {})
    monkeypatch.setattr("featurestore.testing.tables.plus_one", changed)
    store = fs.FeatureStore.open(root(store))
    report = store.repair()
    reasons = {one.columns: one.reason for one in report.left}
    assert "cannot be found" in reasons["here_only",]
    assert "changed" in reasons["more",]
    assert report.mended == ()


def changed(frame: Any) -> Any:
    return frame["x"] + 2


changed.__qualname__ = "plus_one"
changed.__module__ = "featurestore.testing.tables"


def test_stale_and_damaged_is_just_missing(store: fs.FeatureStore) -> None:
    store.table("rows").append(observations(20, 3, start=300).sort("t", "k"))
    damage(store, files_of(store, "std_n")[0])  # fitted on all rows: stale since the append
    report = store.repair()
    assert [one.how for one in report.mended] == ["made missing"]
    assert report.ok
    status = store.table("rows").status()["std_n"]
    assert (status.stale, status.missing) == (len(entries_of(store, "std_n")), 2)
    assert store.verify().ok


def test_a_lost_fileset_takes_its_definition_along(store: fs.FeatureStore) -> None:
    before = values(store)
    damage(store, fileset_of(store, "double_mean_1d"), "gone")
    report = store.repair()
    (left,) = report.left
    assert "definition" in left.reason
    assert "drop" in left.remedy
    table = store.table("rows")
    table.drop("double_mean_1d")
    table.add(fs.Rolling("double", "1d", stats=["mean"]))
    columns = before[0].columns
    assert store.verify().ok
    assert table.read(columns).equals(before[0])


def test_what_reads_a_feature_of_lost_definition_waits_for_it(store: fs.FeatureStore) -> None:
    backup = {}
    for column, table in (("double", "rows"), ("z", "other")):
        path = fileset_of(store, column, table)
        backup[path] = (root(store) / path).read_bytes()
    waiting = [files_of(store, "double_mean_1d")[0], files_of(store, "z")[0]]
    also = files_of(store, "recent")[0]
    before = values(store)
    for one in (*map(Path, backup), *waiting, also):
        damage(store, one, "gone")
    report = store.repair()
    assert [one.columns for one in report.mended] == [("recent",)]
    reasons = {one.file: one.reason for one in report.left}
    assert {reasons[path].partition(" was")[0] for path in backup} == {"its definition"}
    for one in waiting:
        name = one.relative_to(root(store)).as_posix()
        assert reasons[name] == "it needs a feature whose definition is lost"
    for path, data in backup.items():
        (root(store) / path).write_bytes(data)
    assert_mended(store, before, store.repair())


def test_any_two_damaged_filesets_are_both_mended_or_named(store: fs.FeatureStore) -> None:
    groups = [one for table in store.tables() for one in store._session.snapshot().groups(table)]
    paths = {one.fileset.file.path: one for one in groups if one.fileset is not None}
    assert len(paths) == len(groups)
    for pair in permutations(paths, 2):  # the definition of the second may still be found
        backup = {path: (root(store) / path).read_bytes() for path in pair}
        for path, how in zip(pair, ("gone", "flip"), strict=True):
            damage(store, path, how)
        report = store.repair(dry_run=True)
        mended = {(one.table, one.columns) for one in report.mended}
        named = {one.file for one in report.left}
        for path in pair:
            assert path in named or (paths[path].table, paths[path].names) in mended, pair
        for path, data in backup.items():
            (root(store) / path).write_bytes(data)
        fileset._cache.clear()


def test_a_table_whose_own_fileset_is_damaged(store: fs.FeatureStore) -> None:
    base, sound = fileset_of(store, "k"), b""
    damage(store, files_of(store, "double")[0])
    damage(store, files_of(store, "z", "other")[0])
    sound = (root(store) / base).read_bytes()
    damage(store, base)
    store = fs.FeatureStore.open(root(store))
    report = store.repair()
    assert [(one.table, one.columns) for one in report.mended] == [("other", ("z",))]
    assert {one.reason.partition(":")[0] for one in report.left} == {"the table cannot be read"}
    (root(store) / base).write_bytes(sound)
    assert store.repair().ok


def test_what_others_published_meanwhile_stays(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = values(store)
    for path in files_of(store, "double"):
        damage(store, path)
    commit = Session.commit
    raced: list[str] = []

    def racing(session: Session, operation: str, *arguments: Any) -> Any:
        if operation == "repair" and not raced:
            raced.append(operation)
            other = fs.FeatureStore.open(root(store)).table("rows")
            other.append(observations(20, 3, start=300).sort("t", "k"))
            other.drop("z")
        return commit(session, operation, *arguments)

    monkeypatch.setattr(Session, "commit", racing)
    report = store.repair()
    assert raced
    assert report.ok
    table = store.table("rows")
    assert table.rows == 140
    assert "z" not in table.columns
    status = table.status()["double"]
    assert (status.stale, status.missing) == (0, 1)
    assert store.verify().ok
    table.build()
    assert table.read("double").head(120).equals(before[0].select("double"))


def test_a_journal_that_names_the_damaged_file_is_not_believed(store: fs.FeatureStore) -> None:
    before = values(store)
    files = store._session.files("rows")
    group = files.graph.owners["double"]
    [(first, entry), *_] = files.entries[group].items()
    from featurestore.fingerprint import fingerprint

    key = fingerprint(group, first, entry.provenance.fingerprint)
    Journal(store._session.objects, "rows").record_all([(key, entry)])
    damage(store, entry.files[0].path)
    assert_mended(store, before, store.repair())


def test_a_damaged_newest_snapshot_is_given_up(store: fs.FeatureStore) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match="can be read"):
        store.give_up(version)
    damage(store, snapshot_path(version))
    store = fs.FeatureStore.open(root(store))
    with pytest.raises(CorruptionError, match="give"):
        store.repair()
    assert store.give_up(version) == version
    assert "std_n" not in store.table("rows").columns
    assert store.verify(all_versions=True).ok
    with pytest.raises(NotFoundError):
        store.checkout(version + 1)


def test_features_that_share_a_damaged_file_are_all_mended(store: fs.FeatureStore) -> None:
    table = store.table("rows")
    table.compact("1MiB", merge_groups=True)
    table.build()
    before = values(store)
    shared = files_of(store, "double")[0]
    assert shared in files_of(store, "std_n")
    damage(store, shared)
    named = {one.columns for one in store.verify().faults}
    assert {("double",), ("std_n",), ("z",)} <= named
    report = store.repair()
    assert {one.columns for one in report.mended} == named
    assert_mended(store, before, report)


@pytest.mark.parametrize("seed", range(8))
def test_any_damage_is_mended_or_named_and_a_backup_mends_the_rest(
    store: fs.FeatureStore, seed: int
) -> None:
    print("seed", seed)
    draw = random.Random(seed)
    before = values(store)
    folder, objects = root(store), store._session.objects
    newest = {
        group.fileset.file.path
        for table in store.tables()
        for group in store._session.snapshot().groups(table)
        if group.fileset is not None
    }
    paths = [one.path for one in objects.list("") if one.path.startswith(("data", "states"))]
    chosen = draw.sample(paths, draw.randrange(2, 12)) + draw.sample(sorted(newest), seed % 3)
    backup = {path: (folder / path).read_bytes() for path in chosen}
    for path in chosen:
        damage(store, path, draw.choice(["flip", "cut", "gone"]))
    if draw.random() < 0.5:
        shutil.rmtree(folder / "states")
    for _ in range(4):  # what is behind a damaged fileset shows when that is restored
        found = {one.file for one in store.verify().faults}
        assert found <= backup.keys()
        report = store.repair()
        fileset._cache.clear()
        left = {one.file for one in store.verify().faults}
        named = {one.file: one for one in report.left}
        assert left <= named.keys()
        assert all("then build" in named[path].remedy for path in named.keys() - left)
        assert named or not left
        for path in left:
            (folder / path).write_bytes(backup[path])
        fileset._cache.clear()
    assert report.ok
    store.table("rows").build()
    assert_mended(store, before, report)
