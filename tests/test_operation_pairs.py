"""Every ordered pair of operations at once: B is published between A's work and A's commit.

What happens to A is written once, in ``TABLE`` and ``SAME`` below; ``docs/CONCURRENCY.md`` shows the
same, and one test here compares the two. The interleaving is exact: A runs on a commit log whose
``commit`` (or ``tag``, or for gc the first change of a file) first lets B run from its beginning to
its end through a store of its own.

After each pair the store is compared with one where B and then A ran one after the other, or B alone
if A was refused: the same rows, the same features, the same values where they can be read, and after
a build the same values everywhere. Every row carries a number and every partition a feature computed
from it, so that a column beside the wrong rows is seen.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import (
    ConflictError,
    CorruptionError,
    InvalidInputError,
    NotReadyError,
)
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset
from featurestore.testing.interleaving import interleaved
from featurestore.testing.tables import observations

DOCUMENT = Path(__file__).parents[1] / "docs" / "CONCURRENCY.md"
OPERATIONS = (
    "ingest", "append", "add", "build", "replace", "delete", "compact",
    "drop feature", "drop table", "tag", "gc", "repair",
)  # fmt: skip
OLD_HOURS, ROWS = 31, 90
Do = Callable[[fs.FeatureStore], Any]


def rows(count: int, seed: int, start: int) -> pl.DataFrame:
    """Return rows with a number of their own, ``id``."""
    found = observations(count, seed, start).sort("t", "k").drop("word")
    return found.with_columns(id=pl.int_range(pl.len(), dtype=pl.Int64) + 1000 * start)


def hour(number: int) -> Any:
    return pl.select(pl.lit(number * 3_600_000).cast(pl.Datetime("ms"))).item()


# --- the store before a pair ------------------------------------------------------------------------


def plain_plus_one(frame: Any) -> Any:
    return frame["plain"] + 1


def make(url: str) -> None:
    """Make the store that every pair begins with."""
    store = fs.FeatureStore.create(url, workers=1)
    table = store.ingest("rows", rows(ROWS, 0, 0), key="k", time="t", partition_bytes=450)
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Expression(check=nw.col("id") * 7 + 3),
        fs.Expression(spare_a=nw.col("n") + 1),
        fs.Expression(spare_b=nw.col("n") + 2),
        fs.Expression(frail=nw.col("x") * 5),
        fs.Expression(plain=nw.col("x") + 0.0),
        fs.Lag("x", 1),
    )
    table.feature(plain_plus_one, inputs="plain", output="lazy")
    for name in ("table_a", "table_b", "other"):
        made = store.ingest(name, rows(12, 1, 0), key="k", time="t", partition_bytes=400)
        made.add(fs.Expression(frail=nw.col("x") * 5))
    assert table.partitions >= 5
    assert table.status()["lazy"].missing == table.partitions


def clone(url: str, damage: str | None) -> str:
    """Return a copy of a store in memory, with a damaged partition of a table's ``frail``."""
    source, target = open_object_store(url), f"memory://{uuid.uuid4().hex}"
    copy = open_object_store(target)
    for info in source.list(""):
        copy.write(info.path, source.read(info.path))
    if damage is not None:
        group = next(
            one for one in CommitLog.open(copy).head().groups(damage) if one.names == ("frail",)
        )
        entries = read_fileset(copy, group.fileset)
        file = entries[len(entries) // 2].files[0]
        data = bytearray(copy.read(file.path))
        data[len(data) // 2] ^= 1
        copy.replace(file.path, bytes(data))
    return target


@pytest.fixture(scope="module")
def template() -> str:
    url = f"memory://{uuid.uuid4().hex}"
    make(url)
    return url


# --- the operations, each on things of its own -----------------------------------------------------


def operation(name: str, who: str) -> Do:
    """Return an operation as ``a`` or as ``b`` does it: both work on ``rows``, on other parts of it."""
    first = who == "a"
    given: dict[str, Do] = {
        "ingest": lambda s: s.ingest(f"new_{who}", rows(9, 2, 0), key="k", time="t"),
        # What is prepared first comes later in time.
        "append": lambda s: s.table("rows").append(rows(8, 3, 400 if first else 200)),
        "add": lambda s: s.table("rows").add(
            fs.Expression(**{f"new_{who}": nw.col("x") * 3}), fs.Lag("double", 1, prefix=f"{who}_")
        ),
        "build": lambda s: s.table("rows").build(),
        "replace": lambda s: s.table("rows").replace(*new_rows(2 if first else 25)),
        "delete": lambda s: s.table("rows").delete(nw.col("id") == (12 if first else 66)),
        "compact": lambda s: s.table("rows").compact(partition_bytes="3KiB"),
        "drop feature": lambda s: s.table("rows").drop(f"spare_{who}"),
        "drop table": lambda s: s.drop(f"table_{who}"),
        "tag": lambda s: s.tag(f"tag_{who}"),
        "gc": lambda s: s.gc(safety_age="0s", keep_versions=1),
        "repair": lambda s: s.repair(),
    }
    return given[name]


def new_rows(first: int) -> tuple[pl.DataFrame, tuple[Any, Any]]:
    """Return rows for two hours, and that range of times."""
    made = rows(5, first, first).filter(pl.col("t") < hour(first + 2))
    return made.with_columns(pl.col("id") + 5_000_000), (hour(first), hour(first + 2))


# What happens to A (row) when B (column) is published first, each on things of its own: it rebases,
# (R)etries, (c)onflicts or is (u)naffected; (m): it rebases, and some feature is visibly missing or
# stale on some partitions, which it is not when A runs after B.
WORDS = {"r": "rebases", "m": "rebases*", "R": "retries", "c": "conflicts", "u": "unaffected"}
TABLE = {
    # B:           ing app add bui rep del com dro dro tag gc  rep
    "ingest":       "r   r   r   r   r   r   r   r   r   u   u   r",
    "append":       "r   r   r   r   r   r   r   r   r   u   u   r",
    "add":          "r   m   r   r   m   m   m   r   r   u   u   r",
    "build":        "r   m   r   u   m   m   m   r   r   u   u   r",
    "replace":      "r   r   r   r   r   r   c   r   r   u   u   r",
    "delete":       "r   r   r   r   r   r   c   r   r   u   u   r",
    "compact":      "r   r   R   R   R   R   u   r   r   u   u   r",
    "drop feature": "r   r   r   r   r   r   r   r   r   u   u   r",
    "drop table":   "r   r   r   r   r   r   r   r   r   u   u   r",
    "tag":          "u   u   u   u   u   u   u   u   u   u   u   u",
    "gc":           "u   u   u   u   u   u   u   u   u   u   u   u",
    "repair":       "r   r   r   r   r   r   r   r   r   u   u   r",
}  # fmt: skip


def cells() -> dict[tuple[str, str], str]:
    """Return what happens to A, for each A and B."""
    return {
        (a, b): WORDS[letter]
        for a, letters in TABLE.items()
        for b, letter in zip(OPERATIONS, letters.split(), strict=True)
    }


@dataclass(frozen=True)
class Same:
    """A pair on the same things.

    Parameters
    ----------
    a, b : callable
    outcome : str
        As in ``TABLE``.
    order : str
        Which order of the two, one after the other, gives the same: ``"ba"`` or ``"ab"``.
    damage : str, optional
        A table with a damaged feature.
    """

    a: Do
    b: Do
    outcome: str
    order: str = "ba"
    damage: str | None = None


def on_rows(do: Callable[[fs.Table], Any]) -> Do:
    return lambda store: do(store.table("rows"))


def again(store: fs.FeatureStore) -> None:
    """Drop a table and ingest other rows under its name."""
    store.drop("rows")
    store.ingest("rows", rows(20, 8, 0), key="k", time="t", partition_bytes=450)


def by_hour(store: fs.FeatureStore) -> None:
    """Drop a table and ingest its rows by another time."""
    found = store.table("table_b").read(["k", "t", "x", "n", "id"])
    store.drop("table_b")
    store.ingest("table_b", found.with_columns(hour=pl.col("t")), key="k", time="hour")


INGEST = lambda s: s.ingest("new", rows(9, 2, 0), key="k", time="t")  # noqa: E731
LATER = on_rows(lambda t: t.append(rows(8, 3, 200)))
DOUBLE = on_rows(lambda t: t.add(fs.Expression(new=nw.col("double") + 1)))
NEW = on_rows(lambda t: t.add(fs.Expression(new=nw.col("x") + 1)))
LAZY = on_rows(lambda t: t.build())
# Other values would hide that a reader sees those of the definition before.
REDEFINE = on_rows(lambda t: t.add(fs.Expression(plain=nw.col("x") * 1), replace=True))
REPLACE = on_rows(lambda t: t.replace(*new_rows(2)))
OPEN_END = on_rows(lambda t: t.replace(rows(5, 9, 28), (hour(28), None)))
DELETE = on_rows(lambda t: t.delete(nw.col("id") < 8))
COMPACT = on_rows(lambda t: t.compact(partition_bytes="3KiB"))
DROP = on_rows(lambda t: t.drop("double"))
GONE = lambda s: s.drop("rows")  # noqa: E731
GC = lambda s: s.gc(safety_age="0s", keep_versions=1)  # noqa: E731
OLD_TAG = lambda s: s.tag("old", s.version - 1)  # noqa: E731
EXPECT = on_rows(lambda t: t.expect(fs.ExpectRange("n", low=-500)))
READER = lambda s: s.table("table_a").add(fs.AsOfJoin("rows", columns="double", prefix="joined_"))  # noqa: E731
READS_TABLE_B = on_rows(lambda t: t.add(fs.AsOfJoin("table_b", columns="x", prefix="joined_")))

SAME: dict[tuple[str, str], Same] = {
    ("ingest a table", "ingest one of that name"): Same(INGEST, INGEST, "refuses"),
    ("append rows", "append rows that are not earlier"): Same(LATER, LATER, "conflicts"),
    ("append rows", "replace, with rows that are not earlier"): Same(
        LATER, on_rows(lambda t: t.replace(rows(5, 9, 200), (hour(200), None))), "conflicts"
    ),
    ("append rows", "delete earlier rows"): Same(LATER, DELETE, "rebases"),
    ("append rows", "drop the table"): Same(LATER, GONE, "conflicts"),
    ("append rows", "drop the table, ingest it again"): Same(LATER, again, "conflicts"),
    ("append rows", "state what is expected of them"): Same(LATER, EXPECT, "conflicts"),
    ("add a feature", "add the same one"): Same(NEW, NEW, "unaffected"),
    ("add a feature", "add another one of that name"): Same(
        NEW, on_rows(lambda t: t.add(fs.Expression(new=nw.col("n") + 1))), "conflicts"
    ),
    ("add a feature", "drop what it reads"): Same(DOUBLE, DROP, "conflicts"),
    ("add a feature", "replace what it reads by another type"): Same(
        DOUBLE,
        on_rows(lambda t: t.add(fs.Expression(double=nw.col("n")), replace=True)),
        "conflicts",
    ),
    ("add a feature", "drop the table"): Same(NEW, GONE, "conflicts"),
    ("add a feature", "drop the table, ingest it again"): Same(NEW, again, "conflicts"),
    ("add a feature", "drop the table it joins"): Same(READER, GONE, "conflicts"),
    ("add a feature", "drop the table it joins, ingest it again by another time"): Same(
        READS_TABLE_B, by_hour, "conflicts"
    ),
    ("build a feature", "build the same one"): Same(LAZY, LAZY, "unaffected"),
    ("build a feature", "redefine what it reads"): Same(LAZY, REDEFINE, "rebases*"),
    ("build a feature", "redefine what it reads, and build it"): Same(
        LAZY, lambda s: (REDEFINE(s), LAZY(s)), "unaffected"
    ),
    ("build a feature", "drop it"): Same(LAZY, on_rows(lambda t: t.drop("lazy")), "unaffected"),
    ("build a feature", "replace rows"): Same(LAZY, REPLACE, "rebases*"),
    ("build a feature", "delete rows"): Same(LAZY, DELETE, "rebases*"),
    ("build a feature", "compact its partitions"): Same(LAZY, COMPACT, "rebases*"),
    ("build a feature", "drop the table"): Same(LAZY, GONE, "conflicts"),
    ("build a feature", "drop the table, ingest it again"): Same(LAZY, again, "conflicts"),
    ("replace rows", "replace rows of those partitions"): Same(REPLACE, REPLACE, "conflicts"),
    ("replace rows", "delete rows of those partitions"): Same(REPLACE, DELETE, "conflicts"),
    ("replace rows up to the end", "append rows"): Same(OPEN_END, LATER, "conflicts"),
    ("replace rows", "compact those partitions"): Same(REPLACE, COMPACT, "conflicts"),
    ("replace rows", "drop the table"): Same(REPLACE, GONE, "conflicts"),
    ("replace rows", "drop the table, ingest it again"): Same(REPLACE, again, "conflicts"),
    ("delete rows", "delete rows of those partitions"): Same(DELETE, DELETE, "conflicts"),
    ("delete rows", "replace rows of those partitions"): Same(DELETE, REPLACE, "conflicts"),
    ("delete rows", "append rows that the condition is true for"): Same(
        on_rows(lambda t: t.delete(nw.col("id") < 10**9)), LATER, "rebases", order="ab"
    ),
    ("delete rows", "compact those partitions"): Same(DELETE, COMPACT, "conflicts"),
    ("delete rows", "drop the table"): Same(DELETE, GONE, "conflicts"),
    ("compact partitions", "compact them"): Same(COMPACT, COMPACT, "unaffected"),
    ("compact partitions", "build a feature on them"): Same(COMPACT, LAZY, "retries"),
    ("compact partitions", "add a feature on them"): Same(COMPACT, NEW, "retries"),
    ("compact partitions", "replace rows of them"): Same(COMPACT, REPLACE, "retries"),
    ("compact partitions", "delete rows of them"): Same(COMPACT, DELETE, "retries"),
    ("compact partitions", "append rows"): Same(COMPACT, LATER, "rebases"),
    ("compact partitions", "drop the table"): Same(COMPACT, GONE, "refuses"),
    ("drop a feature", "drop it"): Same(DROP, DROP, "unaffected", order="b"),
    ("drop a feature", "add one that reads it"): Same(DROP, DOUBLE, "conflicts"),
    ("drop a feature", "add one to another table that reads it"): Same(DROP, READER, "conflicts"),
    ("drop a feature", "replace it"): Same(
        DROP,
        on_rows(lambda t: t.add(fs.Expression(double=nw.col("n")), replace=True)),
        "conflicts",
    ),
    ("drop a feature", "build it"): Same(on_rows(lambda t: t.drop("lazy")), LAZY, "rebases"),
    ("drop a feature", "drop the table"): Same(DROP, GONE, "conflicts"),
    ("drop a feature", "drop the table, ingest it again"): Same(DROP, again, "conflicts"),
    ("drop a table", "drop it"): Same(GONE, GONE, "unaffected", order="b"),
    ("drop a table", "append, add, build, replace, delete, compact"): Same(
        GONE, LATER, "conflicts"
    ),
    ("drop a table", "add a feature that joins it"): Same(GONE, READER, "conflicts"),
    ("drop a table", "drop it, ingest it again"): Same(GONE, again, "conflicts"),
    ("state expectations", "state others"): Same(
        EXPECT, on_rows(lambda t: t.expect(fs.ExpectNulls("n", at_most=1))), "conflicts"
    ),
    ("state expectations", "append rows"): Same(EXPECT, LATER, "rebases"),
    ("state expectations", "build a feature"): Same(EXPECT, LAZY, "rebases"),
    ("state expectations", "drop the table, ingest it again"): Same(EXPECT, again, "conflicts"),
    ("tag an old version", "gc that lets it go"): Same(OLD_TAG, GC, "refuses"),
    ("tag the newest version", "gc"): Same(lambda s: s.tag("t"), GC, "unaffected"),
    ("gc that lets a version go", "tag it"): Same(GC, OLD_TAG, "unaffected"),
    ("gc", "gc"): Same(GC, GC, "unaffected"),
    ("repair a feature", "repair it"): Same(
        lambda s: s.repair(), lambda s: s.repair(), "rebases", damage="rows"
    ),
    ("repair a feature", "drop it"): Same(
        lambda s: s.repair(), on_rows(lambda t: t.drop("frail")), "unaffected", damage="rows"
    ),
    ("repair a feature", "delete the damaged partition's rows"): Same(
        lambda s: s.repair(),
        on_rows(lambda t: t.delete((nw.col("t") >= hour(8)) & (nw.col("t") < hour(24)))),
        "rebases",
        damage="rows",
    ),
    ("repair a feature", "drop the table"): Same(
        lambda s: s.repair(), GONE, "unaffected", damage="rows"
    ),
    ("drop a damaged feature", "repair it"): Same(
        on_rows(lambda t: t.drop("frail")), lambda s: s.repair(), "rebases", damage="rows"
    ),
    ("compact damaged partitions", "repair them"): Same(
        COMPACT, lambda s: s.repair(), "refuses", damage="rows"
    ),
}


# --- the interleaving ------------------------------------------------------------------------------


def together(url: str, a: Do, b: Do, pause: tuple[str, ...] = ()) -> tuple[str, int]:
    """Run A with B right before its commit; return what happened and A's number of attempts.

    Parameters
    ----------
    pause : tuple of str
        For an A that changes files without a commit: the calls before which B runs.
    """
    versions: list[int] = []

    def run_b() -> None:
        other = fs.FeatureStore.open(url, workers=1)
        before = other.version
        b(other)
        versions.append(other.version - before)

    store, log = interleaved(url, run_b, pause)
    before = store.version
    try:
        a(store)
        published = store.version - before - sum(versions)
        outcome = "rebases" if published and sum(versions) else "unaffected"
        if log.commits > 1:
            outcome = "retries"
    except ConflictError:
        outcome = "conflicts"
    except (InvalidInputError, CorruptionError):
        outcome = "refuses"
    if not versions:  # A noticed before it got as far as its commit
        run_b()
    return outcome, log.commits


# --- what is compared -------------------------------------------------------------------------------


def readable(table: fs.Table) -> pl.DataFrame:
    """Return all columns that a reader gets; the others raise that they are not ready."""
    found = {}
    for name in table.columns:
        with suppress(NotReadyError):
            found[name] = table.read(name)[name]
    return pl.DataFrame(found)


def check_rows(frame: pl.DataFrame) -> None:
    """Assert that the features a reader gets are those of the rows beside them."""
    expected = {
        "double": pl.col("x") * 2,
        "check": pl.col("id") * 7 + 3,
        "spare_a": pl.col("n") + 1,
        "spare_b": pl.col("n") + 2,
        "frail": pl.col("x") * 5,
        "plain": pl.col("x"),
        "lazy": pl.col("x") + 1,
        "x_lag_1": pl.col("x").shift(1).over("k"),
        "new_a": pl.col("x") * 3,
        "new_b": pl.col("x") * 3,
    }
    if "double" in frame.columns and frame["double"].dtype == pl.Int64:
        expected["double"] = pl.col("n")  # as some pairs replace it
    for name in expected.keys() & set(frame.columns):
        assert_frame_equal(frame.select(name), frame.select(expected[name].alias(name)))


def agree(store: fs.FeatureStore, oracle: fs.FeatureStore) -> str:
    """Assert that a store is what the oracle is; return ``*`` if more is missing in it."""
    assert store.tables() == oracle.tables()
    more = ""
    for name in store.tables():
        found, expected = store.table(name), oracle.table(name)
        assert set(found.columns) == set(expected.columns)
        seen, wanted = readable(found), readable(expected)
        check_rows(seen)
        assert set(seen.columns) <= set(wanted.columns)
        more = "*" if set(seen.columns) < set(wanted.columns) else more
        assert_frame_equal(seen, wanted.select(seen.columns))
        status = found.status()
        for one in status.features:
            assert one.fresh + one.stale + one.missing == found.partitions
            assert one.stale == 0 or one.reasons
        if status.is_fresh and expected.status().is_fresh:
            continue
        found.build()
        expected.build()
        whole = found.read()
        check_rows(whole)
        assert_frame_equal(whole, expected.read(whole.columns))
    assert store.verify().ok, store.verify()
    return more


def check_pair(template: str, a: Do, b: Do, damage: str | None, **options: Any) -> str:
    """Run a pair and compare; return what happened to A."""
    order, pause = options.get("order", "ba"), options.get("pause", ())
    url, oracle_url = clone(template, damage), clone(template, damage)
    outcome, _ = together(url, a, b, pause)
    oracle = fs.FeatureStore.open(oracle_url, workers=1)
    refused = outcome in ("conflicts", "refuses")
    for one in "b" if refused else order:
        {"a": a, "b": b}[one](oracle)
    store = fs.FeatureStore.open(url, workers=1)
    assert set(store.tags()) == set(oracle.tags())
    for tag in store.tags():
        kept = store.checkout(tag)
        check_rows(readable(kept.table("rows")))
        if damage is None:
            assert kept.verify().ok
    return outcome + agree(store, oracle)


# --- the tests --------------------------------------------------------------------------------------

FIRST_CHANGE = ("create", "write", "replace", "delete")
FIRST_REMOVAL = ("delete",)


@pytest.mark.parametrize("a", OPERATIONS)
@pytest.mark.parametrize("b", OPERATIONS)
def test_on_different_things(template: str, a: str, b: str) -> None:
    damage = "other" if "repair" in (a, b) else None
    for pause in (FIRST_CHANGE, FIRST_REMOVAL) if a == "gc" else ((),):
        does, did = operation(a, "a"), operation(b, "b")
        assert check_pair(template, does, did, damage, pause=pause) == cells()[a, b]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_on_the_same_things(template: str, a: str, b: str) -> None:
    same = SAME[a, b]
    pauses: tuple[tuple[str, ...], ...] = ((),)
    if a.startswith("gc"):
        pauses = (FIRST_CHANGE, FIRST_REMOVAL)
    if b == "tag it":  # once files go, the tag is refused: see "tag an old version"
        pauses = (FIRST_CHANGE,)
    for pause in pauses:
        found = check_pair(template, same.a, same.b, same.damage, order=same.order, pause=pause)
        assert found == same.outcome


@pytest.mark.parametrize("do", [LATER, NEW, LAZY, REPLACE, DELETE, COMPACT])
def test_a_dropped_table_takes_nothing_with_it(template: str, do: Do) -> None:
    """Whatever was done to a table that somebody is dropping stays."""
    assert check_pair(template, GONE, do, None) == "conflicts"


def test_the_documentation_says_the_same() -> None:
    apart, same = (documented(number) for number in (0, 1))
    assert apart[0][1:] == list(OPERATIONS)
    written = {
        (row[0], b): cell
        for row in apart[1:]
        for b, cell in zip(apart[0][1:], row[1:], strict=True)
    }
    assert written == cells()
    assert {(row[0], row[1]): row[2] for row in same[1:]} == {
        pair: one.outcome for pair, one in SAME.items()
    }


def documented(number: int) -> list[list[str]]:
    """Return the cells of a table of the documentation, its head first."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)[number]
    lines = [line.strip("|").split("|") for line in found.splitlines()]
    return [[cell.strip() for cell in line] for line in lines[:1] + lines[2:]]
