"""Any sequence of operations against a model in memory: values, freshness and old versions agree."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import narwhals as nw
import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import InvalidInputError, NameTakenError, NotReadyError
from featurestore.testing.tables import observations
from featurestore.transforms.base import Transformer

NAMES = ("m", "m_sum_6h", "x_lag_2", "x_rank", "e", "std_n")
READS = {"m_sum_6h": ("m",), "e": ("m",)}


def definition(name: str, variant: int) -> Transformer:
    """Return the transformer of a column; variants of ``m`` have other values."""
    given: dict[str, Callable[[], Transformer]] = {
        "m": lambda: fs.Expression(m=nw.col("n") * variant),
        "m_sum_6h": lambda: fs.Rolling("m", "6h", ["sum"]),
        "x_lag_2": lambda: fs.Lag("x", 2),
        "x_rank": lambda: fs.CrossSection("x"),
        "e": lambda: fs.Expression(e=nw.col("m") + nw.col("n")),
        "std_n": lambda: fs.Standardize("n", prefix="std_"),
    }
    return given[name]()


def values(rows: pl.DataFrame, name: str, variant: int) -> pl.Series:
    """Return a column by Polars over all rows at once."""
    m = pl.col("n") * variant
    # Rows of a table are by time, then key: of one key no two share a time.
    given = {
        "m": m,
        "m_sum_6h": m.rolling_sum_by("t", "6h", min_samples=1).over("k"),
        "x_lag_2": pl.col("x").shift(2).over("k"),
        "x_rank": pl.col("x").rank("average").over("t") / pl.col("x").count().over("t"),
        "e": m + pl.col("n"),
        "std_n": (pl.col("n") - pl.col("n").mean()) / pl.col("n").std(ddof=0),
    }
    return rows.select(given[name].alias(name))[name]


@dataclass(frozen=True)
class Model:
    """What the table should be: its rows, and for each feature whether it is fresh."""

    rows: pl.DataFrame
    fresh: dict[str, bool] = field(default_factory=dict)
    variant: int = 1


class TableMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 3), size=st.sampled_from([400, 1500, 10**6]))
    def ingest(self, seed: int, size: int) -> None:
        self.store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
        rows = observations(40, seed).sort("t", "k")
        self.table = self.store.ingest("rows", rows, key="k", time="t", partition_bytes=size)
        self.model = Model(rows)
        self.versions = {self.store.version: self.model}

    def became(self, model: Model) -> None:
        self.model = model
        self.versions[self.store.version] = model

    @precondition(lambda self: len(self.model.rows) < 160)
    @rule(count=st.integers(1, 12), seed=st.integers(0, 9))
    def append(self, count: int, seed: int) -> None:
        newest = self.model.rows["t"].dt.epoch("ms").max()
        assert isinstance(newest, int)
        more = observations(count, seed, start=newest // 3_600_000 + 1).sort("t", "k")
        self.table.append(more)
        rows = pl.concat([self.model.rows, more])
        self.became(Model(rows, dict.fromkeys(self.model.fresh, False), self.model.variant))

    @rule(name=st.sampled_from(NAMES))
    def add(self, name: str) -> None:
        fit_on = "all" if name == "std_n" else None
        added = definition(name, self.model.variant)
        missing = [one for one in READS.get(name, ()) if one not in self.model.fresh]
        if missing:
            with pytest.raises(InvalidInputError, match=f"no column '{missing[0]}'"):
                self.table.add(added, fit_on=fit_on)
            return
        self.table.add(added, fit_on=fit_on)
        needed = dict.fromkeys((*READS.get(name, ()), name), True)
        self.became(replace(self.model, fresh={**self.model.fresh, **needed}))

    @precondition(lambda self: "m" in self.model.fresh)
    @rule(by=st.integers(2, 4))
    def replace_m(self, by: int) -> None:
        variant = self.model.variant * by
        with pytest.raises(NameTakenError):
            self.table.add(definition("m", variant))
        self.table.add(definition("m", variant), replace=True)
        stale = {one: False for one in self.model.fresh if "m" in READS.get(one, ())}
        self.became(
            replace(self.model, fresh={**self.model.fresh, **stale, "m": True}, variant=variant)
        )

    @rule()
    def build(self) -> None:
        report = self.table.build()
        assert (report.computed == 0) == all(self.model.fresh.values())
        self.became(replace(self.model, fresh=dict.fromkeys(self.model.fresh, True)))

    @precondition(lambda self: self.model.fresh)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.fresh)))
        if any(name in READS.get(one, ()) for one in self.model.fresh):
            with pytest.raises(InvalidInputError, match="reads 'm'"):
                self.table.drop(name)
            return
        self.table.drop(name)
        kept = {one: fresh for one, fresh in self.model.fresh.items() if one != name}
        self.became(replace(self.model, fresh=kept))

    @rule()
    def collect_garbage(self) -> None:
        self.store.tag("kept")
        self.store.gc(safety_age="0s")
        self.versions = {self.store.version: self.model}

    @rule(data=st.data())
    def check_out(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        self.agrees(self.store.checkout(version).table("rows"), self.versions[version])

    @invariant()
    def the_newest_version_agrees(self) -> None:
        self.agrees(self.table, self.model)

    def agrees(self, table: fs.Table, model: Model) -> None:
        assert table.rows == len(model.rows)
        assert set(table.columns) == {*model.rows.columns, *model.fresh}
        status = table.status()
        assert {name: status[name].is_fresh for name in model.fresh} == model.fresh
        ready = [name for name, fresh in model.fresh.items() if fresh]
        expected = model.rows.with_columns(values(model.rows, one, model.variant) for one in ready)
        found = table.read([*model.rows.columns, *ready])
        assert_frame_equal(found, expected, check_dtypes=False, abs_tol=1e-6)
        for name, fresh in model.fresh.items():
            if not fresh:
                with pytest.raises(NotReadyError):
                    table.read(name)

    def teardown(self) -> None:
        assert self.store.verify().ok


TestTable = TableMachine.TestCase
TestTable.settings = settings(
    max_examples=20,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
