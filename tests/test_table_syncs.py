"""What operations cost on a local disk, in syncs: exact numbers, so that one more is noticed."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.storage.local_io import LocalIO

PARTITIONS = 5
ROWS = pl.DataFrame({"k": [n % 4 for n in range(500)], "t": range(500), "x": [0.5] * 500})
MORE = ROWS.head(100).with_columns(t=pl.col("t") + 500)


class Syncs:
    """Counts syncs of files and directories, whoever asks for them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def take(self) -> tuple[int, int]:
        """Return the syncs of files and of directories since the last call."""
        found = self.counts["fsync"], self.counts["fsync_dir"]
        self.counts.clear()
        return found


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    syncs, lock = Syncs(), threading.Lock()

    def counting(name: str) -> None:
        def call(self: LocalIO, what: object) -> None:
            with lock:
                syncs.counts[name] += 1

        monkeypatch.setattr(LocalIO, name, call)

    counting("fsync")
    counting("fsync_dir")
    return syncs


@pytest.fixture
def table(syncs: Syncs, tmp_path: Path) -> fs.Table:
    # Of several threads one records what several finished, as it comes.
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=2400)
    assert table.partitions == PARTITIONS
    # So that the directories of features and journals are known, as they are in a store in use.
    table.add(fs.Expression(first=nw.col("x") * 2))
    syncs.take()
    return table


def test_creating_a_store(syncs: Syncs, tmp_path: Path) -> None:
    fs.FeatureStore.create(tmp_path / "store")
    # store.json; the root for its entry, and what leads to the root.
    assert syncs.take() == (1, 4)


def test_ingest(table: fs.Table, syncs: Syncs, tmp_path: Path) -> None:
    """Each file, the fileset, the snapshot; each directory that gained an entry."""
    store = fs.FeatureStore.open(tmp_path / "store")
    store.ingest("others", ROWS, key="k", time="t", partition_bytes=2400)
    # data/others/base, data/others, data; filesets; snapshots
    assert syncs.take() == (PARTITIONS + 2, 3 + 1 + 1)


def test_append(table: fs.Table, syncs: Syncs) -> None:
    table.append(MORE)
    assert syncs.take() == (1 + 2, 1 + 2)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_features(table: fs.Table, syncs: Syncs, count: int) -> None:
    """Per partition one file for each feature and one for the journal, whatever states they need."""
    before = table.version
    table.add(*[fs.Lag("x", periods) for periods in range(1, count + 1)])
    assert table.version == before + 1
    files, directories = syncs.take()
    # Then a fileset for each feature, and the snapshot.
    assert files == PARTITIONS * (count + 1) + count + 1
    # Per partition the directories of the features and of the journal. Then data/rows for the new
    # features' directories (tasks side by side may each find that they are not known); filesets;
    # snapshots.
    least = PARTITIONS * (count + 1) + 1 + 2
    assert least <= directories <= least + 1


def test_a_build_after_an_append(table: fs.Table, syncs: Syncs) -> None:
    table.append(MORE)
    syncs.take()
    assert table.build().computed == 1
    assert syncs.take() == (1 + 1 + 1 + 1, 1 + 1 + 1 + 1)


def test_nothing_to_do(table: fs.Table, syncs: Syncs) -> None:
    table.build()
    table.add(fs.Expression(first=nw.col("x") * 2))
    table.status()
    table.read()
    assert syncs.take() == (0, 0)


def test_commits_that_write_no_data(table: fs.Table, syncs: Syncs, tmp_path: Path) -> None:
    store = fs.FeatureStore.open(tmp_path / "store")
    store.tag("one")
    syncs.take()
    store.tag("two")
    # The tag; and the version, which somebody else may have published a moment ago.
    assert syncs.take() == (2, 2)
    table.drop("first")
    assert syncs.take() == (1, 1)


def test_values_that_are_still_right_cost_no_sync_of_their_own(
    table: fs.Table, syncs: Syncs
) -> None:
    table.add(fs.Lag("x", by="k"))
    part = ROWS.slice(100, 100).with_columns(x=pl.when(pl.col("t") == 100).then(1.0).otherwise("x"))
    table.replace(part, (100, 200))
    syncs.take()
    report = table.build()
    assert (report.computed, report.reused) == (2, 3)
    # Two features of one partition, its journal, two filesets, the snapshot.
    assert syncs.take() == (2 + 1 + 2 + 1, 2 + 1 + 1 + 1)
