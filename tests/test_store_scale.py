"""Stores of many versions, and tables of many features: what opening, reading and a commit ask for.

Counted in requests and bytes beneath the store, so that nothing depends on the machine. The long
variant has 10,000 versions and 2,000 features x 200 partitions.
"""

from __future__ import annotations

import math
import pickle
import random
import secrets
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import narwhals as nw
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.plan.definition import StoredDefinition
from featurestore.schema import Field
from featurestore.storage import fileset
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset, read_provenance
from featurestore.storage.local import LocalStore
from featurestore.storage.records import (
    BASE_GROUP,
    FilesetRef,
    GroupEntry,
    Snapshot,
    StoredFile,
    group_key,
)
from featurestore.storage.snapshot_file import SMALL_DIFFERENCE, snapshot_path
from featurestore.table import Table
from featurestore.testing import wide_tables
from featurestore.testing.counting import CountingStore
from featurestore.testing.unsynced_disk import UnsyncedDisk
from featurestore.testing.wide_tables import session_of

# --- many features ----------------------------------------------------------------------------------


@pytest.fixture(
    scope="module", params=[(300, 20), pytest.param((2000, 200), marks=pytest.mark.slow)]
)
def wide(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, int]:
    """A store with a table ``t`` of very many features; how many, and its partitions."""
    features, partitions = request.param
    place = tmp_path_factory.mktemp("wide") / "s"
    store = fs.FeatureStore.create(place, workers=1)
    table = wide_tables.narrow_table(store, partitions)
    rows = pl.DataFrame({"at": [0, 5_000], "y": [1.0, 2.0]})
    store.ingest("o", rows.with_columns(pl.col("at").cast(pl.Datetime("ms"))), time="at")
    store.table("o").add(fs.Expression(z=nw.col("y") + 1))
    wide_tables.add_unbuilt(session_of(LocalStore(place, UnsyncedDisk())), range(features))
    table.add(fs.Expression(two=nw.col("one") * 2), fs.AsOfJoin("o", columns=["z"], by=[]))
    return place, features + 3, partitions


@pytest.fixture
def opened(wide: tuple[Path, int, int]) -> tuple[CountingStore, Table]:
    """The table of a store opened anew, of which nothing is in memory."""
    fileset._cache.clear()
    counting = CountingStore(LocalStore(wide[0]))
    return counting, Table(session_of(counting), "t")


def filesets(counting: CountingStore) -> list[str]:
    return counting.requests.reads("filesets/")


def only_looks(counting: CountingStore, after: int = 0) -> None:
    """No snapshot was read again: only the first bytes of the newest, to see that it is the same."""
    reads = counting.requests.reads("snapshots/")[after:]
    assert len(set(reads)) <= 1
    looks = counting.requests.looks("snapshots/")
    assert reads == looks[len(looks) - len(reads) :]


def of_groups(table: Table, *columns: str) -> set[str]:
    """The filesets of the groups that hold some columns of ``t``, and of the base groups named."""
    snapshot = table._session.snapshot()
    found = set()
    for name in columns:
        owner, _, column = name.rpartition(".")
        for one in snapshot.groups(owner or "t"):
            if column in (*one.names, one.group):
                assert one.fileset is not None
                found.add(one.fileset.file.path)
    return found


def test_what_a_table_is_takes_two_snapshots_and_no_fileset(
    wide: tuple[Path, int, int], opened: tuple[CountingStore, Table]
) -> None:
    counting, table = opened
    assert len(table.columns) == 2 + wide[1]
    assert 1 <= len(counting.requests.reads("snapshots/")) <= 2
    counting.start()
    assert table.schema["two"].type == pa.float64()
    assert table.key == ()
    assert table.time == "at"
    assert table._session.files("t").graph.owners["at"] == BASE_GROUP
    assert set(table._session.sources(table._session.files("t"))) == {"o"}
    only_looks(counting)
    assert filesets(counting) == []
    assert table.partitions == wide[2]
    assert set(filesets(counting)) == of_groups(table, BASE_GROUP)


@pytest.mark.parametrize(
    ("column", "lineage"),
    [
        ("x", [BASE_GROUP]),
        ("one", [BASE_GROUP, "one"]),
        ("two", [BASE_GROUP, "one", "two"]),
        ("z", [BASE_GROUP, "z", f"o.{BASE_GROUP}", "o.z"]),
    ],
)
def test_a_column_takes_the_filesets_of_its_lineage(
    opened: tuple[CountingStore, Table], column: str, lineage: list[str]
) -> None:
    counting, table = opened
    table._session.snapshot()
    assert len(counting.requests.reads("snapshots/")) <= 2
    snapshots = counting.requests.reads("snapshots/")
    assert table.read(column).height == table.rows
    only_looks(counting, after=len(snapshots))
    read = filesets(counting)
    assert set(read) == of_groups(table, *lineage)
    assert len(read) == len(set(read)), "one of them was read twice"
    counting.start()
    assert table.dataset([column]).all.rows == table.rows
    assert filesets(counting) == []
    only_looks(counting)


def test_adding_a_feature_reads_what_it_reads(wide: tuple[Path, int, int]) -> None:
    """Also in bytes: neither the snapshot nor the filesets of the others are written again."""
    counting = CountingStore(LocalStore(wide[0], UnsyncedDisk()))
    table = Table(session_of(counting), "t")
    table._session.snapshot()
    fileset._cache.clear()
    before, version = of_groups(table, BASE_GROUP, "one"), table.version
    counting.start()
    table.add(fs.Expression(another=nw.col("one") - 1))
    assert set(filesets(counting)) == before
    (written,) = [path for method, path in counting.requests.paths if method == "create"]
    assert written == snapshot_path(version + 1)
    assert counting.requests.written["snapshots"] <= SMALL_DIFFERENCE
    counting.start()
    table.drop("another")
    assert filesets(counting) == []
    counting.start()
    table._session.commit("nothing", lambda head: {})
    # A lease, as a change may write filesets; it is gone when nothing came of it.
    assert +counting.requests.written == {"leases": counting.requests.written["leases"]}
    assert list(counting.list("leases")) == []


def test_all_is_fresh_and_read_once(
    wide: tuple[Path, int, int], opened: tuple[CountingStore, Table]
) -> None:
    counting, table = opened
    status = table.status()
    assert status.is_fresh
    assert len(status.features) == wide[1]
    kinds = {one.kind for one in status.features}
    assert kinds == {"Expression", "Rolling", "Function", "AsOfJoin"}
    read = filesets(counting)
    assert len(read) == len(set(read)) == 1 + wide[1] + 2  # of this table, and two of the other


def test_provenance_is_what_the_entries_say(opened: tuple[CountingStore, Table]) -> None:
    counting, table = opened
    files = table._session.files("t")
    for group in random.Random(5).sample(sorted(files.groups), 10):
        quick = files.provenance(group)
        entries = read_fileset(counting, files.groups[group].fileset)
        assert quick == {one.partition: one.provenance for one in entries}
        assert list(quick) == list(files.entries[group])
        assert files.provenance(group) == quick
        assert read_provenance(counting, files.groups[group].fileset) == quick
    assert read_provenance(counting, None) == {}


def test_planning_a_change_reads_nothing(opened: tuple[CountingStore, Table]) -> None:
    counting, table = opened
    files = table._session.files("t")
    owners = files.graph.owners
    gone = frozenset({owners["two"]})
    features = tuple(one for one in files.graph.features() if one.names == ("one",))
    changed = files.with_features((), gone)
    assert owners["two"] not in changed.entries
    assert len(changed.entries) == len(files.entries) - 1
    again = changed.with_features(features)
    assert set(again.entries) == set(changed.entries)
    assert dict(again.entries[features[0].group]) == {}
    with pytest.raises(KeyError):
        changed.entries[owners["two"]]
    assert set(filesets(counting)) <= of_groups(table, "one")  # for its definition


def test_a_stored_definition_is_the_same_in_another_process(
    opened: tuple[CountingStore, Table],
) -> None:
    _, table = opened
    by_name = {one.names: one for one in table._session.files("t").graph.features()}
    for number in range(4):
        feature = by_name[(f"f{number:05d}",)]
        assert isinstance(feature.stated, StoredDefinition)
        copy = pickle.loads(pickle.dumps(feature))
        assert not isinstance(copy.stated, StoredDefinition)
        assert copy.transformer == feature.transformer == wide_tables.transformer(number)
        assert (copy.kind, copy.source_table) == (feature.kind, feature.source_table)
        assert copy.definition.fingerprint == feature.definition.fingerprint
    snapshot = table._session.snapshot()
    twin = pickle.loads(pickle.dumps(snapshot))
    assert twin == snapshot
    assert twin.schema("t") == snapshot.schema("t")


def test_threads_read_the_same(opened: tuple[CountingStore, Table]) -> None:
    _, table = opened
    files = table._session.files("t")
    groups = sorted(files.groups)[:40] * 4
    random.Random(3).shuffle(groups)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda group: (group, dict(files.entries[group])), groups))
    for group, entries in found:
        assert entries == files.entries[group]


# --- bytes of a commit ------------------------------------------------------------------------------


FILESET = f"filesets/{secrets.token_hex(12)}.arrow"


def entry(name: str) -> GroupEntry:
    """An entry as a feature of 200 partitions has it; all name one file, which is looked at only."""
    file = StoredFile(FILESET, 31_234, secrets.token_hex(16))
    return GroupEntry(
        "t", f"f_{name}-{hash(name) & 0xFFFFFFFF:08x}", (Field(name, pa.float64()),),
        FilesetRef(file, 200, 1_000_000), None, secrets.token_hex(16), ("x", "at"), "Rolling",
    )  # fmt: skip


def commit(log: CommitLog, *entries: GroupEntry) -> None:
    log.commit("write", lambda _: {one.key: one.to_json() for one in entries})


@pytest.mark.parametrize(
    ("features", "commits"),
    [(10, 150), (100, 150), (1000, 150), pytest.param(2000, 500, marks=pytest.mark.slow)],
)
def test_bytes_of_commits_and_reads_of_versions(features: int, commits: int) -> None:
    """On average the square root of all, as only two files are read; and little in numbers."""
    counting = CountingStore(open_object_store(f"memory://{secrets.token_hex(8)}"))
    log = CommitLog.create(counting)
    counting.write(FILESET, bytes(31_234))
    names = [f"column{n:05d}" for n in range(features)]
    commit(log, *map(entry, names))
    whole = counting.requests.written["snapshots"]
    each = whole / features
    assert each < 400
    chance, written = random.Random(features), []
    for _ in range(commits):
        counting.start()
        commit(log, entry(chance.choice(names)))
        written.append(counting.requests.written["snapshots"])
    mean, largest = statistics.mean(written), max(written)
    print(f"{features} features: {mean:,.0f} bytes per commit, at most {largest:,}, all {whole:,}")
    assert mean < SMALL_DIFFERENCE + 1.25 * each * math.sqrt(2 * features)
    assert largest <= whole + 200
    newest = log.head()
    for version in chance.sample(range(1, newest.version), 20):
        again = CommitLog.open(counting)
        counting.start()
        assert again.read(version).version == version
        assert len(counting.requests.reads("snapshots/")) <= 2
    assert CommitLog.open(counting).head().entries == newest.entries
    # The same group again and again, as by appends: nothing of the others is written.
    constant = []
    for _ in range(20):
        counting.start()
        commit(log, entry(names[0]))
        constant.append(counting.requests.written["snapshots"])
    assert statistics.median(constant) <= max(statistics.mean(written), 2 * SMALL_DIFFERENCE)


# --- many versions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def long_history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    place = tmp_path_factory.mktemp("versions") / "s"
    log = CommitLog.create(LocalStore(place, UnsyncedDisk()))
    for number in range(request.param):
        entries = {group_key("t", f"g{number % 20:02d}"): {"value": number}}
        log.commit(f"write {number}", partial(_same, entries))
    return place, request.param


def _same(entries: dict[str, dict[str, int]], _: Snapshot) -> dict[str, dict[str, int]]:
    return entries


def test_requests_of_a_long_history(long_history: tuple[Path, int]) -> None:
    place, versions = long_history
    counting = CountingStore(LocalStore(place, UnsyncedDisk()))
    log = CommitLog.open(counting)
    counting.start()
    assert log.newest_version() == versions
    # The hint, which is at most 32 versions old: its size, itself, its version; then doubling, and back.
    assert counting.requests.total <= 3 + 2 * 6
    counting.start()
    head = log.head()
    assert sorted(one["value"] for one in head.entries.values()) == list(
        range(versions - 20, versions)
    )
    assert len(counting.requests.reads("snapshots/")) <= 2
    counting.start()
    assert log.newest_version() == versions
    # The next one, and the one after it, in case the next one's file was lost.
    assert counting.requests.paths == [
        ("exists", snapshot_path(versions + 1)),
        ("exists", snapshot_path(versions + 2)),
    ]
    counting.start()
    assert [one.version for one in log.history(20)] == list(range(versions - 19, versions + 1))
    assert len(counting.requests.reads("snapshots/")) == 20
    for version in (1, 2, versions // 3, versions - 1):
        counting.start()
        snapshot = log.read(version)
        assert sorted(one["value"] for one in snapshot.entries.values()) == list(
            range(max(0, version - 20), version)
        )
        assert len(counting.requests.reads("snapshots/")) <= 2
    counting.start()
    found = log.resolve(head.id)
    assert found.id == head.id
    assert len(counting.requests.reads("snapshots/")) <= 2


def test_commits_cost_the_same_early_and_late(long_history: tuple[Path, int]) -> None:
    place, versions = long_history
    sizes = [(place / snapshot_path(n)).stat().st_size for n in range(1, versions + 1)]
    early, late = sizes[20:220], sizes[-200:]
    assert statistics.mean(late) < 1.1 * statistics.mean(early) + 100
    assert max(sizes) < SMALL_DIFFERENCE


def test_the_hint_only_shortens(long_history: tuple[Path, int]) -> None:
    place, versions = long_history
    counting = CountingStore(LocalStore(place))
    hint = (place / "latest.json").read_bytes()
    (place / "latest.json").unlink()
    try:
        assert CommitLog.open(counting).newest_version() == versions
        assert counting.requests.counts["exists", "snapshots"] <= 2 * math.log2(versions) + 2
        assert counting.requests.reads("snapshots/") == []
    finally:
        (place / "latest.json").write_bytes(hint)
