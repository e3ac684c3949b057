"""Any sequence of operations against a model in memory: a state machine for Hypothesis.

The model holds the table's rows as one frame and its features as functions of all rows at once.
Asserted after every step: the table has the model's rows and features, and every feature that reads
as fresh has the model's values; after a build all are fresh. Old versions that are kept, open
checkouts and datasets give what they gave.

The trade-off: which partitions are stale after a change of rows is not modelled (tests of staleness
do that), only that nothing stale is readable as fresh. A step costs some 20 ms, so the newest
version is compared after every step, older ones by rules of their own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from polars.testing import assert_frame_equal

from featurestore.dataset.dataset import Dataset
from featurestore.errors import ConflictError, InvalidInputError, NotReadyError
from featurestore.store import FeatureStore
from featurestore.table import Table
from featurestore.testing.interleaving import interleaved
from featurestore.testing.tables import HOUR, observations, plus_one
from featurestore.transforms.base import Transformer
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.expression import Expression
from featurestore.transforms.scaling import Standardize
from featurestore.transforms.window import Lag, Rolling

NAMES = ("m", "m_sum_6h", "x_lag_2", "x_rank", "e", "std_n", "more")
READS = {"m_sum_6h": ("m",), "e": ("m",)}
MOST_ROWS = 120


def definition(name: str, variant: int) -> Transformer:
    """Return the transformer of a column; variants of ``m`` have other values."""
    given: dict[str, Callable[[], Transformer]] = {
        "m": lambda: Expression(m=nw.col("n") * variant),
        "m_sum_6h": lambda: Rolling("m", "6h", ["sum"]),
        "x_lag_2": lambda: Lag("x", 2),
        "x_rank": lambda: CrossSection("x"),
        "e": lambda: Expression(e=nw.col("m") + nw.col("n")),
        "std_n": lambda: Standardize("n", prefix="std_"),
    }
    return given[name]()


def values(rows: pl.DataFrame, name: str, variant: int) -> pl.Series:
    """Return a column by Polars over all rows at once."""
    m = pl.col("n") * variant
    centred, spread = pl.col("n") - pl.col("n").mean(), pl.col("n").std(ddof=0)
    # Rows of a table are by time, then key: of one key no two share a time.
    given = {
        "m": m,
        "m_sum_6h": m.rolling_sum_by("t", "6h", min_samples=1).over("k"),
        "x_lag_2": pl.col("x").shift(2).over("k"),
        "x_rank": pl.col("x").rank("average").over("t") / pl.col("x").count().over("t"),
        "e": m + pl.col("n"),
        "std_n": pl.when(spread > 0).then(centred / spread).otherwise(centred),
        "more": pl.col("x") + 1,
    }
    return rows.select(given[name].alias(name))[name]


@dataclass(frozen=True)
class Model:
    """What the table should be: its rows and features, and the variant of ``m``."""

    rows: pl.DataFrame
    features: frozenset[str] = frozenset()
    variant: int = 1


@dataclass(frozen=True)
class Operation:
    """One thing to do to the table, and what it does to the model.

    Parameters
    ----------
    text : str
        For messages.
    do : callable
        Gets the store.
    effect : callable
        From the model before to the model after.
    """

    text: str
    do: Callable[[FeatureStore], Any]
    effect: Callable[[Model], Model]

    def __repr__(self) -> str:
        return self.text


def made_rows(count: int, seed: int, start: int) -> pl.DataFrame:
    """Return rows in order, each with an ``id`` that says when and where it was made."""
    found = observations(count, seed, start).sort("t", "k").drop("word")
    return found.with_columns(id=pl.int_range(pl.len(), dtype=pl.Int64) * 10 + start * 1000 + seed)


def in_order(*frames: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(frames).sort("t", "k")


def moment(hour: int) -> Any:
    return pl.select(pl.lit(hour * HOUR).cast(pl.Datetime("ms"))).item()


def newest_hour(model: Model) -> int:
    newest = model.rows["t"].dt.epoch("ms").max()
    assert newest is None or isinstance(newest, int)
    return -1 if newest is None else newest // HOUR


# --- the operations --------------------------------------------------------------------------------


def append(model: Model, count: int, seed: int, gap: int) -> Operation:
    more = made_rows(count, seed, newest_hour(model) + 1 + gap)
    return Operation(
        f"append {count} rows after a gap of {gap}",
        lambda store: store.table("rows").append(more),
        lambda now: replace(now, rows=in_order(now.rows, more)),
    )


def add(model: Model, name: str) -> Operation:
    variant = model.variant

    def do(store: FeatureStore) -> Any:
        table = store.table("rows")
        if name == "more":  # defined only; a build computes it
            table.feature(plus_one, inputs="x", output="more")
        else:
            table.add(definition(name, variant), fit_on="all" if name == "std_n" else None)

    def effect(now: Model) -> Model:
        # The same definition again defines nothing, so somebody's drop meanwhile comes after it.
        again = name in model.features
        return now if again else replace(now, features=now.features | {name})

    return Operation(f"add {name}", do, effect)


def replace_m(model: Model, by: int) -> Operation:
    variant = model.variant * by
    return Operation(
        f"m becomes {variant} n",
        lambda store: store.table("rows").add(definition("m", variant), replace=True),
        lambda now: replace(now, features=now.features | {"m"}, variant=variant),
    )


def drop(name: str) -> Operation:
    return Operation(
        f"drop {name}",
        lambda store: store.table("rows").drop(name),
        lambda now: replace(now, features=now.features - {name}),
    )


def replace_rows(model: Model, at: int, width: int, count: int, seed: int) -> Operation:
    first = at % (newest_hour(model) + 2)
    inside = pl.col("t").is_between(moment(first), moment(first + width), closed="left")
    new = made_rows(count, seed, first).filter(inside) if count else made_rows(1, 0, 0).head(0)

    return Operation(
        f"replace hours {first} to {first + width} by {len(new)} rows",
        lambda store: store.table("rows").replace(new, (moment(first), moment(first + width))),
        lambda now: replace(now, rows=in_order(now.rows.filter(~inside), new)),
    )


def delete(model: Model, modulus: int, rest: int) -> Operation:
    gone = model.rows.filter(pl.col("id") // 10 % modulus == rest)["id"].implode()
    return Operation(
        f"delete where id / 10 % {modulus} is {rest}",
        lambda store: store.table("rows").delete(nw.col("id") // 10 % modulus == rest),
        # Rows that come meanwhile stay, whether or not the condition is true for them.
        lambda now: replace(now, rows=now.rows.filter(~pl.col("id").is_in(gone))),
    )


def build() -> Operation:
    return Operation("build", lambda store: store.table("rows").build(), lambda now: now)


def compact(size: int, merge_groups: bool) -> Operation:
    return Operation(
        f"compact to {size} bytes{' and merge groups' * merge_groups}",
        lambda store: store.table("rows").compact(size, merge_groups),
        lambda now: now,
    )


def anew(seed: int, size: int) -> Operation:
    rows = made_rows(30, seed, 0)

    def do(store: FeatureStore) -> None:
        store.drop("rows")
        store.ingest("rows", rows, key="k", time="t", partition_bytes=size)

    return Operation(f"drop the table, ingest seed {seed}", do, lambda now: Model(rows))


def drawn_operation(draw: Callable[[Any], Any], model: Model) -> Operation:
    """Draw an operation that makes sense for a model."""
    number, seed = st.integers(0, 60), st.integers(0, 9)
    kinds: list[Callable[[], Operation]] = [
        lambda: add(model, draw(st.sampled_from(NAMES))),
        lambda: replace_m(model, draw(st.integers(2, 4))),
        lambda: replace_rows(
            model, draw(number), draw(st.integers(1, 12)), draw(st.integers(0, 6)), draw(seed)
        ),
        lambda: delete(model, draw(st.sampled_from([2, 5, 9])), draw(st.integers(0, 3))),
        build,
        lambda: compact(draw(st.sampled_from([600, 2000, 10**6])), draw(st.booleans())),
    ]
    if len(model.rows) < MOST_ROWS:
        kinds.append(
            lambda: append(
                model, draw(st.integers(1, 8)), draw(seed), draw(st.sampled_from([0, 3, 40]))
            )
        )
    if model.features:
        kinds.append(lambda: drop(draw(st.sampled_from(sorted(model.features)))))
    if draw(st.integers(0, 15)) == 15:
        return anew(draw(seed), draw(st.sampled_from([500, 1500, 10**6])))
    chosen: Callable[[], Operation] = draw(st.sampled_from(kinds))
    return chosen()


# --- the machine -----------------------------------------------------------------------------------


@dataclass
class Held:
    """Something opened at an old version that must not change."""

    table: Table
    dataset: Dataset
    model: Model
    fresh: frozenset[str]


class TableMachine(RuleBasedStateMachine):
    """One table, three writers with a store object each, and gc."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory://{uuid.uuid4().hex}"
        self.stores: list[FeatureStore] = []
        self.versions: dict[int, Model] = {}
        self.tags: dict[str, int] = {}
        self.held: list[Held] = []

    @initialize(seed=st.integers(0, 3), size=st.sampled_from([500, 1500, 10**6]))
    def ingest(self, seed: int, size: int) -> None:
        self.stores = [FeatureStore.create(self.url, workers=1)]
        rows = made_rows(40, seed, 0)
        self.stores[0].ingest("rows", rows, key="k", time="t", partition_bytes=size)
        self.stores += [FeatureStore.open(self.url, workers=1) for _ in range(2)]
        self.became(Model(rows))

    def became(self, model: Model) -> None:
        self.model = model
        self.versions[self.stores[0].version] = model

    # --- one operation after the other, by any of the writers ---

    @rule(data=st.data(), writer=st.integers(0, 2))
    def operate(self, data: st.DataObject, writer: int) -> None:
        operation = drawn_operation(data.draw, self.model)
        if self.refuses(operation):
            before = self.stores[0].version
            with pytest.raises(InvalidInputError, match=r"no column 'm'|reads 'm'"):
                operation.do(self.stores[writer])
            assert self.stores[0].version == before
        else:
            operation.do(self.stores[writer])
            self.became(operation.effect(self.model))
            if operation.text == "build":
                assert self.stores[writer].table("rows").status().is_fresh
        self.agrees(self.stores[writer].table("rows"), self.model)

    def refuses(self, operation: Operation) -> bool:
        """Whether the table cannot take an operation."""
        verb, _, name = operation.text.partition(" ")
        if verb == "add":
            return any(one not in self.model.features for one in READS.get(name, ()))
        if verb == "drop":
            return any(name in READS.get(one, ()) for one in self.model.features)
        return False

    # --- two at once ---

    @rule(data=st.data(), writer=st.integers(0, 2))
    def operate_at_once(self, data: st.DataObject, writer: int) -> None:
        a, b = (drawn_operation(data.draw, self.model) for _ in range(2))

        def meanwhile() -> None:
            if not self.refuses(b):
                b.do(self.stores[writer])
                self.became(b.effect(self.model))

        store, _ = interleaved(self.url, meanwhile)
        try:
            a.do(store)
        except (ConflictError, InvalidInputError, NotReadyError):
            pass
        else:
            self.became(a.effect(self.model))
        self.agrees(self.stores[writer].table("rows"), self.model)

    # --- versions ---

    @rule(name=st.sampled_from("abc"), data=st.data(), writer=st.integers(0, 2))
    def tag(self, name: str, data: st.DataObject, writer: int) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        self.stores[writer].tag(name, version)
        self.tags[name] = version

    @rule(name=st.sampled_from("abc"), writer=st.integers(0, 2))
    def untag(self, name: str, writer: int) -> None:
        self.stores[writer].untag(name)
        self.tags.pop(name, None)

    @rule(
        age=st.sampled_from(["0s", "0s", "1h"]),
        keep=st.sampled_from([1, 3, 10]),
        writer=st.integers(0, 2),
    )
    def collect_garbage(self, age: str, keep: int, writer: int) -> None:
        report = self.stores[writer].gc(safety_age=age, keep_versions=keep)
        newest = self.stores[0].version
        wanted = {newest, *self.tags.values(), *(one.table.version for one in self.held)}
        wanted |= {one for one in self.versions if one > newest - keep}
        assert wanted & set(self.versions) <= set(report.kept)
        if age == "1h":
            assert not report.removed
        self.versions = {one: self.versions[one] for one in report.kept if one in self.versions}

    @rule(data=st.data(), writer=st.integers(0, 2))
    def check_out(self, data: st.DataObject, writer: int) -> None:
        names: list[int | str] = [*sorted(self.versions), *sorted(self.tags)]
        wanted = data.draw(st.sampled_from(names))
        version = self.tags[wanted] if isinstance(wanted, str) else wanted
        store = self.stores[writer].checkout(wanted)
        assert store.version == version
        self.agrees(store.table("rows"), self.versions[version])

    @rule(writer=st.integers(0, 2), version=st.none() | st.integers(0, 50))
    def hold(self, writer: int, version: int | None) -> None:
        """Open a checkout and a dataset, and keep them."""
        known = sorted(self.versions)
        wanted = known[-1] if version is None else known[version % len(known)]
        table = self.stores[writer].checkout(wanted).table("rows")
        model = self.versions[wanted]
        fresh = self.agrees(table, model)
        dataset = table.dataset(["n", "id", *sorted(fresh)])
        self.held = [*self.held[-1:], Held(table, dataset, model, fresh)]

    @precondition(lambda self: self.held)
    @rule()
    def read_what_is_held(self) -> None:
        for one in self.held:
            assert self.agrees(one.table, one.model) == one.fresh
            expected = expected_rows(one.model, ["n", "id", *sorted(one.fresh)])
            found = one.dataset.all.read()
            assert_frame_equal(found.select(expected.columns), expected, **LOOSELY)

    @rule(writer=st.integers(0, 2))
    def reopen(self, writer: int) -> None:
        self.stores[writer] = FeatureStore.open(self.url, workers=1)

    # --- what must hold ---

    def agrees(self, table: Table, model: Model) -> frozenset[str]:
        """Assert that a table is what a model says; return the features that are fresh."""
        assert set(table.columns) == {*model.rows.columns, *model.features}
        fresh = frozenset(
            name
            for one in table.status().features
            for name in one.columns
            if not one.missing and not one.stale
        )
        names = [*model.rows.columns, *sorted(fresh)]
        assert_frame_equal(table.read(names), expected_rows(model, names), **LOOSELY)
        for name in sorted(model.features - fresh)[:1]:
            try:
                table.read(name)
            except NotReadyError:
                continue
            raise AssertionError(f"{name} is not fresh and was read")
        return fresh

    def teardown(self) -> None:
        if not self.stores:
            return
        store = FeatureStore.open(self.url, workers=1)
        report = store.verify(all_versions=True)
        assert report.ok, report
        assert store.tags() == self.tags
        store.table("rows").build()
        assert self.agrees(store.table("rows"), self.model) == self.model.features
        objects = store._session.objects
        self.held, self.stores = [], []
        objects.delete([one.path for one in objects.list("")])


LOOSELY: dict[str, Any] = {"check_dtypes": False, "abs_tol": 1e-6}


def expected_rows(model: Model, names: list[str]) -> pl.DataFrame:
    """Return columns of the model."""
    features = [one for one in names if one not in model.rows.columns]
    rows = model.rows
    return rows.with_columns(values(rows, one, model.variant) for one in features).select(names)
