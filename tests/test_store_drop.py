"""Dropping a table: one commit, refused while it is read, in conflict with whoever changed it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import narwhals as nw
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import ConflictError, InvalidInputError, NotFoundError
from featurestore.session import Session
from featurestore.testing.tables import observations

ROWS = observations(60).sort("t", "k")
OTHER = observations(40, 1, column="y").sort("t", "k")
CUT: dict[str, Any] = {"key": "k", "time": "t", "partition_bytes": 2500}


@pytest.fixture
def store() -> fs.FeatureStore:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    store.ingest("rows", ROWS, **CUT)
    store.ingest("other", OTHER, **CUT).add(fs.Expression(z=nw.col("y") + 1))
    return store


def before_the_commit_of(
    monkeypatch: pytest.MonkeyPatch, operation: str, change: Callable[[], Any]
) -> None:
    """Let another writer publish right before the commit of an operation."""
    commit = Session.commit
    raced: list[str] = []

    def racing(session: Session, what: str, *arguments: Any) -> Any:
        if what.startswith(operation) and not raced:
            raced.append(what)
            change()
        return commit(session, what, *arguments)

    monkeypatch.setattr(Session, "commit", racing)


def test_a_table_goes_and_older_versions_keep_it(store: fs.FeatureStore) -> None:
    before, table = store.version, store.table("other")
    store.drop("other")
    assert (store.version, store.tables()) == (before + 1, ("rows",))
    assert store.history()[-1].operation == "drop table other"
    with pytest.raises(NotFoundError, match="no table 'other'"):
        store.drop("other")
    with pytest.raises(NotFoundError):
        table.read()
    old = store.checkout(before)
    assert_frame_equal(old.table("other").read("y"), OTHER.select("y"))
    with pytest.raises(InvalidInputError, match="checkout"):
        old.drop("rows")
    del old, table
    assert store.verify(all_versions=True).ok
    store.gc(safety_age="0s", keep_versions=1)
    assert not [one for one in store._session.objects.list("data") if "/other/" in one.path]
    store.ingest("other", OTHER.head(5), **CUT)
    assert store.table("other").rows == 5
    assert store.table("other").columns == tuple(OTHER.columns)


def test_a_table_that_is_read_stays(store: fs.FeatureStore) -> None:
    store.table("rows").add(fs.AsOfJoin("other", columns="z"))
    with pytest.raises(InvalidInputError, match="feature 'z' of table 'rows' reads 'k'"):
        store.drop("other")
    store.drop("rows")  # its own features go along
    store.drop("other")
    assert store.tables() == ()


CHANGES: dict[str, Callable[[fs.FeatureStore], Any]] = {
    "append": lambda store: store.table("other").append(
        observations(5, 2, start=500, column="y").sort("t", "k")
    ),
    "add": lambda store: store.table("other").add(fs.Lag("y", 1)),
    "drop": lambda store: store.table("other").drop("z"),
    "read": lambda store: store.table("rows").add(fs.AsOfJoin("other", columns="y")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_dropping_conflicts_with_changes_of_the_table(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before_the_commit_of(monkeypatch, "drop table", lambda: CHANGES[change](store))
    with pytest.raises(ConflictError, match="meanwhile"):
        store.drop("other")
    assert "other" in store.tables()
    assert store.verify().ok


@pytest.mark.parametrize(
    ("operation", "change"),
    [("append", "append"), ("add", "add"), ("drop", "drop"), ("add", "read")],
)
def test_changes_of_a_table_conflict_with_its_drop(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch, operation: str, change: str
) -> None:
    before_the_commit_of(monkeypatch, operation, lambda: store.drop("other"))
    with pytest.raises(ConflictError, match="removed meanwhile"):
        CHANGES[change](store)
    assert store.tables() == ("rows",)


def test_dropping_goes_with_all_else(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere() -> None:
        store.ingest("more", ROWS.head(5), **CUT)
        store.table("rows").add(fs.Lag("x", 1))
        store.tag("then")

    before_the_commit_of(monkeypatch, "drop table", elsewhere)
    store.drop("other")
    assert store.tables() == ("more", "rows")
    before_the_commit_of(monkeypatch, "drop table", lambda: store.drop("more"))
    store.drop("more")  # two who drop one table both succeed
    assert store.tables() == ("rows",)
