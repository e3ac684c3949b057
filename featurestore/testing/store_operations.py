"""Every operation of a store, on small prepared stores, and what a store looks like to its users.

For tests that interrupt operations: they run one on a copy of its prepared store, stop it somewhere,
and compare what :func:`observe` finds with what it found before and after an undisturbed run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import narwhals as nw
import numpy as np
import polars as pl

from featurestore.errors import NotFoundError
from featurestore.expectations.expectation import ExpectNulls, ExpectRange
from featurestore.report.tables import FeatureStatus
from featurestore.storage.backends import open_object_store
from featurestore.store import FeatureStore
from featurestore.testing.journals import journal_keys
from featurestore.testing.tables import HOUR, observations
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.expression import Expression
from featurestore.transforms.lag import Lag
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.window import Rolling

ROW_BYTES: Final = 45
FIT_ON: Final = ("1970-01-01", "1970-01-02")


def open_store(url: str | Path) -> FeatureStore:
    """Open a store whose work runs in one thread."""
    return FeatureStore.open(url, workers=1, memory_limit="4GiB")


# --- prepared stores --------------------------------------------------------------------------------


def rows(count: int, seed: int, start: int = 0) -> pl.DataFrame:
    """Return rows of the table ``rows``, ``start`` in hours; ``e`` is a tensor."""
    frame = observations(count, seed, start).select("k", "t", "x")
    values = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    return frame.with_columns(pl.Series("e", values, pl.Array(pl.Float32, 2)))


def other_rows(count: int, seed: int, start: int = 0) -> pl.DataFrame:
    """Return rows of the table ``other``."""
    return observations(count, seed, start, column="y").select("k", "t", "y")


def _new(url: str) -> None:
    FeatureStore.create(url, workers=1, memory_limit="4GiB")


def _built(url: str) -> None:
    _new(url)
    store = open_store(url)
    store.ingest("other", other_rows(24, 2), key="k", time="t", partition_bytes=14 * 24)
    table = store.ingest("rows", rows(48, 1), key="k", time="t", partition_bytes=ROW_BYTES * 20)
    table.add(
        Expression(double=nw.col("x") * 2),
        Rolling("double", "12h", stats=["mean"]),
        AsOfJoin("other", columns="y"),
        Standardize("x", prefix="std_"),
        fit_on=FIT_ON,
    )
    store.tag("golden")


def _grown(url: str) -> None:
    """More rows in both tables: features are missing on the new partitions, or stale."""
    _built(url)
    store = open_store(url)
    store.table("rows").append(rows(16, 3, start=20))
    store.table("other").append(other_rows(8, 4, start=10))


def _fragmented(url: str) -> None:
    """Many small appends, all features fresh."""
    _built(url)
    store = open_store(url)
    for number in range(3):
        store.table("rows").append(rows(4, 5 + number, start=20 + 4 * number))
    store.table("rows").build()


def _worn(url: str) -> None:
    """Versions and files that a collection lets go, and a tagged version that it keeps."""
    _fragmented(url)
    store = open_store(url)
    table = store.table("rows")
    table.add(Lag("x"))
    table.drop("x_lag_1")
    table.add(Expression(double=nw.col("x") * 3), replace=True)
    table.build()


def _damaged(url: str) -> None:
    """A derived file has a flipped byte, another one is gone; repeatable and on any backend."""
    _built(url)
    store = open_store(url)
    objects = store._session.objects
    entries = store._session.files("rows").entries
    feature = store._session.files("rows").graph.owners["double"]
    files = [one for entry in entries[feature].values() for one in entry.all_files()]
    data = bytearray(objects.read(files[0].path))
    data[len(data) // 3] ^= 1
    objects.replace(files[0].path, bytes(data))
    objects.delete([files[1].path])


STAGES: Final[Mapping[str, Callable[[str], None]]] = {
    "empty": lambda url: None,
    "new": _new,
    "built": _built,
    "grown": _grown,
    "fragmented": _fragmented,
    "worn": _worn,
    "damaged": _damaged,
}


# --- operations ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on a prepared store.

    Parameters
    ----------
    name : str
    stage : str
        Of ``STAGES``: the store it starts from.
    run : callable
        Gets the URL and returns what the operation returned.
    commits : bool
        Whether it publishes a version.
    """

    name: str
    stage: str
    run: Callable[[str], Any]
    commits: bool = True

    def __str__(self) -> str:
        return self.name


def _replacement() -> pl.DataFrame:
    return (
        rows(12, 9)
        .filter(pl.col("t") < pl.lit(4 * HOUR).cast(pl.Datetime("ms")))
        .with_columns(pl.lit(7.0).alias("x"))
    )


_REPLACED: Final = ("1970-01-01T00:00:00", "1970-01-01T04:00:00")


def _table(change: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda url: change(open_store(url).table("rows"))


def _store(change: Callable[[FeatureStore], Any]) -> Callable[[str], Any]:
    return lambda url: change(open_store(url))


OPERATIONS: Final[Mapping[str, Operation]] = {
    one.name: one
    for one in (
        Operation("create", "empty", _new, commits=False),
        Operation(
            "ingest",
            "built",
            _store(
                lambda store: store.ingest(
                    "third", rows(30, 8), key="k", time="t", partition_bytes=ROW_BYTES * 12
                )
            ),
        ),
        Operation("append", "built", _table(lambda table: table.append(rows(20, 3, start=20)))),
        Operation(
            "add",
            "built",
            _table(
                lambda table: table.add(
                    Expression(half=nw.col("x") / 2),
                    Lag("half"),
                    AsOfJoin("other", "y", prefix="o_"),
                )
            ),
        ),
        Operation("build", "grown", _table(lambda table: table.build())),
        Operation(
            "replace", "built", _table(lambda table: table.replace(_replacement(), _REPLACED))
        ),
        Operation("delete", "built", _table(lambda table: table.delete(nw.col("k") == "a"))),
        Operation(
            "compact",
            "fragmented",
            _table(lambda table: table.compact(partition_bytes=ROW_BYTES * 60)),
        ),
        Operation("merge", "fragmented", _table(lambda table: table.compact(merge_groups=True))),
        Operation(
            "expect",
            "built",
            _table(lambda table: table.expect(ExpectRange("x", low=-99.0), ExpectNulls("x", 1.0))),
        ),
        Operation("drop feature", "built", _table(lambda table: table.drop("std_x"))),
        Operation("drop table", "built", _store(lambda store: store.drop("rows"))),
        Operation("tag", "grown", _store(lambda store: store.tag("silver")), commits=False),
        Operation("move tag", "grown", _store(lambda store: store.tag("golden")), commits=False),
        Operation("untag", "grown", _store(lambda store: store.untag("golden")), commits=False),
        Operation(
            "gc",
            "worn",
            _store(lambda store: store.gc(safety_age="0s", keep_versions=2)),
            commits=False,
        ),
        Operation("repair", "damaged", _store(lambda store: store.repair())),
    )
}


# --- what users see -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeenTable:
    """A table: columns, types, expectations; if looked at closely, how its features stand and all values."""

    columns: tuple[str, ...]
    status: tuple[FeatureStatus, ...] = ()
    values: pl.DataFrame | None = None

    def difference(self, other: SeenTable) -> str:
        """Return in words what differs, or nothing; only what both looked at is compared."""
        if self.columns != other.columns:
            return f"columns {self.columns} are not {other.columns}"
        if self.values is None or other.values is None:
            return ""
        if self.status != other.status:
            return f"status {self.status} is not {other.status}"
        if not self.values.equals(other.values):
            return f"values {self.values} are not {other.values}"
        return ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A store at one moment.

    Parameters
    ----------
    ids : tuple of str
        Of all versions.
    kept : frozenset of int
        Versions whose entries gc did not let go.
    """

    operations: tuple[str, ...]
    tags: Mapping[str, int]
    tables: Mapping[str, SeenTable]
    ids: tuple[str, ...]
    kept: frozenset[int]

    def difference(self, other: Seen) -> str:
        """Return in words what differs first for a user, or nothing; ids and ``kept`` may differ."""
        if self.operations != other.operations:
            return f"history {self.operations} is not {other.operations}"
        if self.tags != other.tags:
            return f"tags {self.tags} are not {other.tags}"
        if self.tables.keys() != other.tables.keys():
            return f"tables {sorted(self.tables)} are not {sorted(other.tables)}"
        for name, mine in self.tables.items():
            difference = mine.difference(other.tables[name])
            if difference:
                return f"table {name!r}: {difference}"
        return ""


def observe(url: str | Path, values: bool = True) -> Seen | None:
    """Open a store and look at all that its users see; None if there is no store.

    Parameters
    ----------
    values : bool
        Whether to look at tables closely: how features stand, and all values of fresh columns.
    """
    try:
        store = open_store(url)
    except NotFoundError:
        return None
    history = store.history()
    return Seen(
        operations=tuple(one.operation for one in history),
        tags=store.tags(),
        tables={name: _seen_table(store, name, values) for name in store.tables()},
        ids=tuple(one.id for one in history),
        kept=frozenset(one.version for one in history if one.kept),
    )


def _seen_table(store: FeatureStore, name: str, values: bool) -> SeenTable:
    table = store.table(name)
    described = (
        *(f"{one.name}: {one.type} {one.shape}" for one in table.schema),
        *map(str, table.expectations),
    )
    if not values:
        return SeenTable(described)
    status = table.status().features
    unready = {column for one in status if one.stale or one.missing for column in one.columns}
    columns = [column for column in table.columns if column not in unready]
    return SeenTable(described, status, table.read(columns))


def leftovers(url: str | Path) -> set[str]:
    """Return files that no kept version, journal or state of a store needs."""
    store = open_store(url)
    objects = open_object_store(url)
    needed: set[str] = set()
    for record in store.history():
        if record.version == 0 or not record.kept:
            continue
        snapshot = store._session.log.read(record.version)
        for group in snapshot.entries.values():
            if group.get("fileset"):
                needed.add(group["fileset"]["path"])
        for table in snapshot.tables():
            entries = store._session.files(table, snapshot).entries
            for partitions in entries.values():
                for entry in partitions.values():
                    needed.update(file.path for file in entry.all_files())
    found = {info.path for folder in ("data", "filesets", "tmp") for info in objects.list(folder)}
    return found - needed


def journal_of(url: str | Path, table: str) -> set[str]:
    """Return the keys of finished work in a table's journal."""
    return set(journal_keys(open_object_store(url), table))
