"""Any sequence of operations against a model in memory: a state machine for Hypothesis.

Two tables, of which one reads the other; the model (:mod:`featurestore.testing.table_model`) holds
their rows as frames and their features as functions of all rows at once. Asserted after every step:
the tables are there with the model's columns; every feature that reads as fresh has the model's
values; what is computed for new rows equals them too; after a build all are fresh. Old versions that
are kept, open checkouts and datasets give what they gave.

The trade-off: which partitions are stale after a change of rows is not modelled (tests of staleness
do that), only that nothing stale is readable as fresh. Comparing values takes as long as an operation,
so they are compared after each ``SPARSE``-th one, those of the table it did not touch half as often;
at the end always.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from polars.testing import assert_frame_equal

from featurestore.dataset.dataset import Dataset
from featurestore.errors import ConflictError, InvalidInputError, NotReadyError
from featurestore.store import FeatureStore
from featurestore.table import Table
from featurestore.testing.interleaving import interleaved
from featurestore.testing.table_model import JOINS, WINDOWS, World
from featurestore.testing.table_operations import (
    SIZES,
    TABLES,
    Operation,
    add,
    drawn_operation,
    ingested,
)

LOOSELY: dict[str, Any] = {"check_dtypes": False, "abs_tol": 1e-6}
SPARSE = 3
WRITERS = st.integers(0, 2)


@dataclass
class Held:
    """Something opened at an old version that must not change."""

    table: Table
    dataset: Dataset
    world: World
    fresh: frozenset[str]


class TableMachine(RuleBasedStateMachine):
    """Two tables, three writers with a store object each, and gc."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"memory://{uuid.uuid4().hex}"
        self.stores: list[FeatureStore] = []
        self.versions: dict[int, World] = {}
        self.tags: dict[str, int] = {}
        self.held: list[Held] = []
        self.steps = 0

    @initialize(
        seed=st.integers(0, 3),
        size=st.sampled_from(SIZES),
        time=st.sampled_from("tu"),
        bare=st.booleans(),
    )
    def ingest(self, seed: int, size: int, time: str, bare: bool) -> None:
        self.stores = [FeatureStore.create(self.url, workers=1)]
        (rows, had), (other, have) = (
            ingested("rows", seed, size).steps[0],
            ingested("other", seed, size, time=time).steps[0],
        )
        rows(self.stores[0])
        other(self.stores[0])
        self.stores += [FeatureStore.open(self.url, workers=1) for _ in range(2)]
        self.became(have(had(World.empty())))
        if not bare:
            for table, names in (("other", ("q",)), ("rows", WINDOWS + JOINS)):
                self.carry_out(add(self.world, table, names), self.stores[0])

    def became(self, world: World) -> None:
        self.world = world
        self.versions[self.stores[0].version] = world

    def carry_out(self, operation: Operation, store: FeatureStore) -> None:
        for do, effect in operation.steps:
            do(store)
            self.became(effect(self.world))

    # --- operations, by any of the writers ---

    @rule(data=st.data(), writer=WRITERS)
    def operate(self, data: st.DataObject, writer: int) -> None:
        ways = [self.operate_alone, self.operate_alone, self.operate_at_once]
        data.draw(st.sampled_from(ways))(data, writer)

    def operate_alone(self, data: st.DataObject, writer: int) -> None:
        operation = drawn_operation(data.draw, self.world)
        store = self.stores[writer]
        before = store.version
        if operation.refused:
            with pytest.raises(InvalidInputError, match=r"no column|reads '"):
                self.carry_out(operation, store)
            assert store.version == before
        else:
            try:
                self.carry_out(operation, store)
            except NotReadyError:  # what it reads of the other table has not been built
                assert "q" in self.world.other.features
                assert not store.table("other").status().is_fresh
                assert store.version == before
            else:
                if operation.text == "build all":
                    assert all(store.table(one).status().is_fresh for one in TABLES)
        self.agrees(store, operation.table)

    def operate_at_once(self, data: st.DataObject, writer: int) -> None:
        """Let one operation be published right before the commit of another."""
        a, b = (drawn_operation(data.draw, self.world) for _ in range(2))

        def meanwhile() -> None:
            if not b.refused:
                try:
                    self.carry_out(b, self.stores[writer])
                except NotReadyError:
                    assert not self.stores[writer].table("other").status().is_fresh

        store, _ = interleaved(self.url, meanwhile)
        with suppress(ConflictError, InvalidInputError, NotReadyError):
            self.carry_out(a, store)
        self.agrees(self.stores[writer], a.table)

    # --- looks: at new rows, at other versions, at what was opened before ---

    @rule(data=st.data(), writer=WRITERS)
    def look(self, data: st.DataObject, writer: int) -> None:
        looks = [self.compute, self.check_out, self.hold, self.read_what_is_held]
        data.draw(st.sampled_from(looks))(data, writer)

    def compute(self, data: st.DataObject, writer: int) -> None:
        """The last rows, computed as if they were new, have the values of the table."""
        model = self.world.rows
        if model.rows.is_empty():
            return
        times = model.rows["t"].unique().sort()
        cut = data.draw(st.sampled_from(times.to_list()[-6:]))
        table = self.stores[writer].table("rows")
        fresh = sorted(self.fresh(table))
        last = pl.col("t") >= cut
        given = model.rows.filter(last)
        try:
            found = table.compute(given, fresh)
        except NotReadyError:
            stores = self.stores[writer]
            assert not all(stores.table(one).status().is_fresh for one in TABLES)
            return
        names = ["k", "t", *fresh]
        expected = self.world.expected("rows", names).filter(last)
        assert_frame_equal(found.select(names), expected, **LOOSELY)

    def check_out(self, data: st.DataObject, writer: int) -> None:
        names: list[int | str] = [*sorted(self.versions), *sorted(self.tags)]
        wanted = data.draw(st.sampled_from(names))
        version = self.tags[wanted] if isinstance(wanted, str) else wanted
        store = self.stores[writer].checkout(wanted)
        assert store.version == version
        world = self.versions[version]
        self.has_tables(store, world)
        for name in store.tables():
            self.has_values(store.table(name), world)

    def hold(self, data: st.DataObject, writer: int) -> None:
        """Open a checkout and a dataset, and keep them."""
        known = [one for one in sorted(self.versions) if self.versions[one].rows.is_there]
        if not known:
            return
        wanted = data.draw(st.sampled_from([known[-1], *known]))
        table = self.stores[writer].checkout(wanted).table("rows")
        world = self.versions[wanted]
        fresh = self.has_values(table, world)
        dataset = table.dataset(["n", "id", *sorted(fresh)])
        self.held = [*self.held[-1:], Held(table, dataset, world, fresh)]

    def read_what_is_held(self, _data: st.DataObject, _writer: int) -> None:
        for one in self.held:
            assert self.has_values(one.table, one.world) == one.fresh
            expected = one.world.expected("rows", ["n", "id", *sorted(one.fresh)])
            found = one.dataset.all.read()
            assert_frame_equal(found.select(expected.columns), expected, **LOOSELY)

    # --- care: tags, gc, stores opened again ---

    @rule(data=st.data(), writer=WRITERS)
    def care(self, data: st.DataObject, writer: int) -> None:
        cares = [self.tag, self.collect_garbage, self.reopen]
        data.draw(st.sampled_from(cares))(data, writer)

    def tag(self, data: st.DataObject, writer: int) -> None:
        name = data.draw(st.sampled_from("abc"))
        version = data.draw(st.none() | st.sampled_from(sorted(self.versions)))
        if version is None:
            self.stores[writer].untag(name)
            self.tags.pop(name, None)
        else:
            self.stores[writer].tag(name, version)
            self.tags[name] = version

    def collect_garbage(self, data: st.DataObject, writer: int) -> None:
        age, keep = (
            data.draw(st.sampled_from(["0s", "0s", "1h"])),
            data.draw(st.sampled_from([1, 3, 10])),
        )
        report = self.stores[writer].gc(safety_age=age, keep_versions=keep)
        newest = self.stores[0].version
        wanted = {newest, *self.tags.values(), *(one.table.version for one in self.held)}
        wanted |= {one for one in self.versions if one > newest - keep}
        assert wanted & set(self.versions) <= set(report.kept)
        if age == "1h":
            assert not report.removed
        self.versions = {one: self.versions[one] for one in report.kept if one in self.versions}

    def reopen(self, _data: st.DataObject, writer: int) -> None:
        self.stores[writer] = FeatureStore.open(self.url, workers=1)

    # --- what must hold ---

    def agrees(self, store: FeatureStore, touched: str) -> None:
        """Assert that a store is what the model says."""
        self.steps += 1
        self.has_tables(store, self.world)
        if self.steps % SPARSE == 0:
            other = self.steps % (2 * SPARSE) == 0
            for name in TABLES if other else (touched,):
                self.has_values(store.table(name), self.world)

    def has_tables(self, store: FeatureStore, world: World) -> None:
        there = {name for name in TABLES if world.table(name).is_there}
        assert set(store.tables()) == there
        for name in there:
            model = world.table(name)
            assert set(store.table(name).columns) == {*model.rows.columns, *model.features}

    def fresh(self, table: Table) -> frozenset[str]:
        return frozenset(
            name
            for one in table.status().features
            for name in one.columns
            if not one.missing and not one.stale
        )

    def has_values(self, table: Table, world: World) -> frozenset[str]:
        """Assert that a table has the model's values; return the features that are fresh."""
        model, fresh = world.table(table.name), self.fresh(table)
        names = [*model.rows.columns, *sorted(fresh)]
        assert_frame_equal(table.read(names), world.expected(table.name, names), **LOOSELY)
        for name in sorted(model.features - fresh)[:1]:
            with pytest.raises(NotReadyError):
                table.read(name)
        return fresh

    def teardown(self) -> None:
        if not self.stores:
            return
        store = FeatureStore.open(self.url, workers=1)
        report = store.verify(all_versions=True)
        assert report.ok, report
        assert store.tags() == self.tags
        for name in ("other", "rows"):
            store.table(name).build()
            assert self.has_values(store.table(name), self.world) == self.world.table(name).features
        objects = store._session.objects
        self.held, self.stores = [], []
        objects.delete([one.path for one in objects.list("")])


def run_examples(examples: int, steps: int) -> None:
    """Run the machine; Hypothesis prints how to repeat what failed."""
    given = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(TableMachine, settings=given)
