"""Leases of a whole store: who reads or writes holds, and work renews the lease it runs under."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import NotFoundError
from featurestore.execution.collecting import collect_rows
from featurestore.execution.events import Event, StepAdvanced, observed_by
from featurestore.storage import leases
from featurestore.storage.leases import LEASE_SECONDS, LEASES, Leases

ROWS = pl.DataFrame({"id": range(8), "day": range(8), "x": [float(n) for n in range(8)]})


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    for lease in leases._kept.values():
        lease.release()
    leases._kept.clear()


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    store.ingest("t", ROWS, key="id", time="day", partition_bytes=64)
    return store


def _folder(store: fs.FeatureStore) -> Path:
    return Path(store.url.removeprefix("file://"))


def _let_pass(store: fs.FeatureStore, seconds: float) -> None:
    """Let every lease be older than it is."""
    for shared in leases._shared.values():
        shared._written -= seconds
        shared.since -= seconds
    for file in (_folder(store) / LEASES).glob("*.json"):
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))


def _live(store: fs.FeatureStore) -> set[int]:
    return {one.version for one in Leases(store._session.objects).live()}


@contextmanager
def _another_process() -> Iterator[None]:
    """Let this process not know inside the block which leases it holds: only their files tell."""
    shared, kept = dict(leases._shared), dict(leases._kept)
    leases._shared.clear()
    leases._kept.clear()
    try:
        yield
    finally:
        leases._shared.update(shared)
        leases._kept.update(kept)


def _supersede(store: fs.FeatureStore) -> tuple[int, ...]:
    """Replace all rows, as another process, and collect what is not held."""
    with _another_process():
        other = fs.FeatureStore.open(store.url)
        newest = other.table("t").read("day")["day"].max()
        rows = ROWS.with_columns(pl.col("day") + newest + 1, pl.col("x") + 100.0)
        other.table("t").replace(rows, (None, None))
        time.sleep(0.01)  # what was just published is older than a safety age of nothing
        return other.gc("0s", keep_versions=1).expired


def _define(store: fs.FeatureStore) -> None:
    store.table("t").add(fs.Expression(twice=nw.col("x") * 2))


class TestReaders:
    def test_a_short_read(self, store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others publish and collect after the read looked at the table, before it reads a file."""
        expired = []

        def late(*arguments: Any, **options: Any) -> Any:
            monkeypatch.undo()
            expired.append(_supersede(store))
            return collect_rows(*arguments, **options)

        monkeypatch.setattr("featurestore.table.collect_rows", late)
        assert store.table("t").read().equals(ROWS)
        assert expired == [()]
        assert not list((_folder(store) / LEASES).iterdir())

    @pytest.mark.parametrize(
        "use",
        [lambda store: store.version, lambda store: store.table("t").schema],
        ids=["version", "schema"],
    )
    def test_a_checkout_that_is_used_for_days(
        self, store: fs.FeatureStore, use: Callable[[fs.FeatureStore], Any]
    ) -> None:
        old = store.checkout(1)
        for _ in range(6):
            _let_pass(store, LEASE_SECONDS / 3)
            use(old)
            assert _live(store) == {1}
        assert _supersede(store) == ()
        assert old.table("t").read("x")["x"].to_list() == ROWS["x"].to_list()

    def test_a_checkout_that_was_left_alone(self, store: fs.FeatureStore) -> None:
        old = store.checkout(1)
        _let_pass(store, LEASE_SECONDS + 1)
        assert _supersede(store) == (1,)
        for _ in range(2):
            with pytest.raises(NotFoundError, match="gc let version 1 go"):
                old.table("t").describe()

    def test_what_is_kept_while_its_process_works(
        self, store: fs.FeatureStore, tmp_path: Path
    ) -> None:
        """The work may be any: here, reading another store."""
        other = fs.FeatureStore.create(tmp_path / "other", workers=1)
        another = other.ingest("t", ROWS, key="id", time="day")
        session = store._session
        session.hold(session.snapshot()).keep()  # as for a Dask frame, or arrays
        for _ in range(6):
            _let_pass(store, LEASE_SECONDS / 3)
            another.read()
            assert _live(store) == {1}
        assert _supersede(store) == ()

    def test_what_was_kept_for_too_long(
        self, store: fs.FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is said, and is no matter of work on another store."""
        other = fs.FeatureStore.create(tmp_path / "other", workers=1)
        another = other.ingest("t", ROWS, key="id", time="day")
        store._session.hold(store._session.snapshot()).keep()
        _let_pass(store, LEASE_SECONDS + 1)
        assert _supersede(store) == (1,)
        assert another.read().equals(ROWS)
        assert "kept for too long" in caplog.text


NEWEST: dict[str, Callable[[fs.FeatureStore], Any]] = {
    "ingest": lambda store: store.ingest("u", ROWS, key="id", time="day").read(),
    "dataset": lambda store: store.table("t").dataset(["x"]).all.read(),
    "read": lambda store: store.table("t").read(),
    "compute": lambda store: store.table("t").compute(
        ROWS.with_columns(pl.col("day") + 10**9), ["x"]
    ),
    "verify": lambda store: store.verify(),
    "repair": lambda store: store.repair(),
    "dry repair": lambda store: store.repair(dry_run=True),
    "tag": lambda store: store.tag("newest"),
    "diff": lambda store: store.diff("before"),
}


@pytest.mark.parametrize("kind", NEWEST)
def test_who_asks_for_the_newest_gets_one(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Others publish and collect between looking which version is newest and leasing it."""
    if kind == "diff":
        store.tag("before")
        _supersede(store)
    real, version, expired = Leases.take, store.version, []

    def take(own: Leases, snapshot: Any, *, writes: bool = False) -> Any:
        if snapshot.version == version:
            monkeypatch.undo()
            expired.append(_supersede(store))
        return real(own, snapshot, writes=writes)

    monkeypatch.setattr(Leases, "take", take)
    NEWEST[kind](store)
    assert expired == [(version,)]
    if kind == "tag":
        assert store.tags() == {"newest": store.version}


def test_an_old_version_that_is_gone_is_said_to_be(store: fs.FeatureStore) -> None:
    _supersede(store)
    for ask in (lambda: store.tag("old", 1), lambda: store.diff(1), lambda: store.checkout(1)):
        with pytest.raises(NotFoundError, match="go"):
            ask()


class TestWriters:
    @pytest.mark.parametrize(
        "kind", ["ingest", "append", "replace", "delete", "build", "compact", "repair"]
    )
    def test_long_work_renews(self, store: fs.FeatureStore, kind: str) -> None:
        """More than half the life of a lease passes between one sign of progress and the next."""
        table = store.table("t")
        _define(store)
        if kind == "repair":
            for file in (_folder(store) / "data").rglob("f-*/*.parquet"):
                file.write_bytes(b"damaged")
        if kind == "build":
            table.replace(ROWS, (None, None))
        later = ROWS.with_columns(pl.col("day") + 100)
        work: dict[str, Callable[[], Any]] = {
            "ingest": lambda: store.ingest("u", ROWS, key="id", time="day", partition_bytes=64),
            "append": lambda: table.append(later),
            "replace": lambda: table.replace(ROWS, (None, None)),
            "delete": lambda: table.delete(nw.col("x") > 3.0),
            "build": table.build,
            "compact": lambda: table.compact("1MiB"),
            "repair": store.repair,
        }
        seen: list[set[tuple[int, bool]]] = []

        def progress(event: Event) -> None:
            if isinstance(event, StepAdvanced):
                live = Leases(store._session.objects).live()
                seen.append({(one.version, one.writes) for one in live})
                _let_pass(store, LEASE_SECONDS * 0.6)

        version = store.version
        with observed_by(progress):
            work[kind]()
        assert len(seen) > 1 or kind == "compact"
        assert seen == [{(version, True)}] * len(seen)
        assert store.verify(all_versions=True).ok

    def test_a_lost_lease_is_no_matter_of_other_work(
        self, store: fs.FeatureStore, tmp_path: Path
    ) -> None:
        other = fs.FeatureStore.create(tmp_path / "other", workers=1)
        other.ingest("t", ROWS, key="id", time="day")
        with store._session.writing_newest() as (session, snapshot):
            _let_pass(store, LEASE_SECONDS + 1)
            assert _supersede(store) == (snapshot.version,)
            _define(other)
            _define(store)
            for work in (
                lambda: session.executor.of_this_thread().run(abs, [-1, -2], label="x"),
                lambda: session.touching(abs)(-1),
            ):
                with pytest.raises(NotFoundError, match=f"gc let version {snapshot.version} go"):
                    work()
        assert other.table("t").read("twice")["twice"].to_list() == [2.0 * n for n in range(8)]

    def test_a_lost_lease_does_not_hide_the_error(self, store: fs.FeatureStore) -> None:
        with store._session.writing_newest() as (session, snapshot):
            _let_pass(store, LEASE_SECONDS + 1)
            assert _supersede(store) == (snapshot.version,)
            with pytest.raises(ZeroDivisionError):
                session.executor.run(lambda n: 1 // n, [0], label="x")
