"""Walking forward with everything that learns: what is read, what is learnt again, and the values."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.dataset.batch import Role
from featurestore.engines.selection import get_engine
from featurestore.schema import Field, TableSchema
from featurestore.testing.oracles import close_values
from featurestore.transforms.base import Partition, Scope, Transformer
from training.loading.loader import Loader

HOUR = 3_600_000
ROWS = 260
FOLDS = (255, 171, 98, 33)
"""Hours at which the training part ends: the last first, each within a partition."""


def rows_of(start: int, stop: int) -> pl.DataFrame:
    random = np.random.default_rng(start)
    size = stop - start

    def some(values: Any) -> list[Any]:
        held = random.random(size) > 0.1
        return [one if keep else None for one, keep in zip(values.tolist(), held, strict=True)]

    return pl.DataFrame(
        {
            "id": [f"k{one % 7}" for one in range(start, stop)],
            "at": pl.Series([one * HOUR for one in range(start, stop)], dtype=pl.Datetime("ms")),
            "x": some(random.normal(size=size)),
            "z": some(random.normal(1e6, size=size)),
            "n": some(random.integers(0, 5, size)),
            "c": some(random.choice(["a", "b", "ä", ""], size)),
            "text": some(random.choice(["up and down", "down", "sideways, up"], size)),
            "y": random.normal(size=size),
        }
    )


def steps(q: int = 4) -> list[Transformer]:
    """Return one of everything that learns."""
    return [
        fs.Impute("x", prefix="im_"), fs.Impute("x", "median", prefix="me_"),
        fs.Impute("n", "most_frequent", prefix="mf_"), fs.Standardize("z", prefix="st_"),
        fs.MinMax("x", prefix="mm_"), fs.RobustScale("x", prefix="rs_"),
        fs.QuantileTransform("z", prefix="qt_"), fs.QuantileBin("y", q, prefix="qb_"),
        fs.Winsorize("x", (0.1, 0.9), prefix="wq_"), fs.Winsorize("z", deviations=1.0, prefix="wd_"),
        fs.PCA(["x", "z"], 1), fs.Categorify("c", prefix="ca_"),
        fs.FrequencyEncode("c", prefix="fr_"), fs.TargetEncode("c", "y", prefix="te_"),
        fs.GroupStats("z", by=["c"], prefix="gs_"), fs.TfIdf("text", 3),
        fs.OneHot("c", size=2, prefix="oh_"),
    ]  # fmt: skip


def pipeline_of(steps: list[Transformer]) -> fs.Pipeline:
    """Return a pipeline that leaves no text behind."""
    return fs.Pipeline(*steps, fs.TextHash("text", length=2))


def table(rows: pl.DataFrame) -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    return store.ingest("rows", rows, key="id", time="at", partition_bytes=2500)


class Work:
    """Which partitions were read, and what learnt, since it was last asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from featurestore.execution.reading import PartitionSource

        self.read: Counter[str] = Counter()
        self.learnt: Counter[tuple[str, tuple[str, ...], Transformer]] = Counter()
        read = PartitionSource.read

        def noted(source: PartitionSource, *arguments: Any, **named: Any) -> Any:
            self.read[source.partition] += 1
            return read(source, *arguments, **named)

        monkeypatch.setattr(PartitionSource, "read", noted)
        for kind in {type(one) for one in steps()}:
            self._note(monkeypatch, kind)

    def _note(self, monkeypatch: pytest.MonkeyPatch, kind: type[Transformer]) -> None:
        summarize = kind.summarize

        def noted(one: Transformer, part: Partition, engine: Any) -> Any:
            self.learnt[type(one).__name__, one.learns_from(part.schema), one] += 1
            return summarize(one, part, engine)

        monkeypatch.setattr(kind, "summarize", noted)

    def of(self, work: Any) -> tuple[int, set[str]]:
        """Return how many partitions were read, none of them twice, and what learnt of each once."""
        learnt = self.learnt_by(work)
        assert set(self.read.values()) <= {1}
        assert set(self.learnt.values()) <= {len(self.read)}
        return len(self.read), learnt

    def learnt_by(self, work: Any) -> set[str]:
        """Return the kinds that learnt."""
        self.read.clear()
        self.learnt.clear()
        work()
        return {kind for kind, _, _ in self.learnt}


def fold(rows: fs.Table, hour: int, pipeline: fs.Pipeline) -> Any:
    split = fs.TimeSplit(valid=f"1970-01-{1 + hour // 24:02d}T{hour % 24:02d}:00")
    return rows.dataset(["x", "z", "n", "c", "text", "y"], split=split, pipeline=pipeline)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return rows_of(0, ROWS)


def test_folds_read_only_what_a_boundary_cuts_and_have_the_values_of_a_fit_of_their_own(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, held, pipeline = Work(monkeypatch), table(rows), pipeline_of(steps())
    engine = get_engine("polars")
    arrow = rows.to_arrow()
    arrow = pa.table(
        {name: arrow[name].cast(_plain(arrow[name].type)) for name in arrow.column_names}
    )
    schema = TableSchema(tuple(Field(one.name, one.type) for one in arrow.schema), ("id",), "at")
    count = held.partitions
    assert count > 5
    for number, hour in enumerate(FOLDS):
        data = fold(held, hour, pipeline)
        read, learnt = work.of(lambda one=data: one.schema)
        if number:
            assert read <= 1, (hour, learnt)
        # What the same rows in one partition teach gives the same values.
        parts = [Partition(engine.from_arrow(one), schema) for one in (arrow[:hour], arrow[hour:])]
        fitted = pipeline.fit_partitions(parts[:1], engine)
        wanted = fitted.apply(parts[1], engine)
        found = data.valid.read(as_="arrow")
        for name in found.column_names:
            if name in wanted.tensors:
                cells = np.array(found[name].to_pylist())
                assert np.array_equal(cells, engine.to_host(wanted.tensors[name])), name
            else:
                values = engine.to_arrow(wanted.frame.select(name))[name].to_pylist()
                assert close_values(found[name].to_pylist(), values, 1e-9), name
    assert work.of(lambda: [fold(held, one, pipeline).schema for one in FOLDS]) == (0, set())


def _plain(type_: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_large_string(type_) else type_


def test_changing_dropping_or_adding_one_step_learns_that_one(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, held, all_ = Work(monkeypatch), table(rows), steps()
    count = work.of(lambda: fold(held, FOLDS[0], pipeline_of(all_)).schema)[0]
    for place in range(len(all_)):
        rest = [*all_[:place], *all_[place + 1 :]]
        assert work.of(lambda one=rest: fold(held, FOLDS[0], pipeline_of(one)).schema) == (0, set())
    # Learns the same quantiles; then others.
    assert work.of(lambda: fold(held, FOLDS[0], pipeline_of(steps(7))).schema) == (0, set())
    changed = [
        one if one != fs.MinMax("x", prefix="mm_") else fs.MinMax("y", prefix="mm_") for one in all_
    ]
    found = work.of(lambda: fold(held, FOLDS[0], pipeline_of(changed)).schema)
    assert found == (count, {"MinMax"})
    more = [*all_, fs.Categorify("text", prefix="new_")]
    found = work.of(lambda: fold(held, FOLDS[0], pipeline_of(more)).schema)
    assert found == (count, {"Categorify"})


def test_appended_rows_are_read_alone(rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    work, held, pipeline = Work(monkeypatch), table(rows), pipeline_of(steps())
    split = fs.HashSplit(valid=0.3)
    names = ["x", "z", "n", "c", "text", "y"]
    before = held.partitions
    read, _ = work.of(lambda: held.dataset(names, split=split, pipeline=pipeline).schema)
    assert read == before
    held.append(rows_of(ROWS, ROWS + 60))
    read, learnt = work.of(lambda: held.dataset(names, split=split, pipeline=pipeline).schema)
    assert read == held.partitions - before > 0
    assert {"PCA", "TfIdf", "GroupStats"} <= learnt


def test_replacing_one_stored_feature_learns_that_one(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, held, all_ = Work(monkeypatch), table(rows), steps()
    span = ("1970-01-01", "1970-01-09T05:00")
    held.add(*all_, fit_on=span)
    before = {one: held.read(one, as_="arrow") for one in held.columns}
    kinds = {type(one).__name__ for one in all_}
    assert all(one.scope is Scope.FIT for one in all_)
    others: tuple[tuple[Transformer, dict[str, Any]], ...] = (
        (fs.MinMax("z", rename={"z": "mm_x"}), {"fit_on": span}),
        (fs.Standardize("z", prefix="st_"), {"fit_on": ("1970-01-01", "1970-01-07T05:00")}),
        (fs.Categorify("c", min_count=100, prefix="ca_"), {"fit_on": span}),
    )
    for one, options in others:
        learnt = work.learnt_by(
            lambda one=one, options=options: held.add(one, replace=True, **options)
        )
        assert learnt <= {type(one).__name__}
        held.build()
    assert set(kinds) >= {"PCA", "TfIdf"}
    changed = {name for name in before if not held.read(name, as_="arrow").equals(before[name])}
    assert changed == {"mm_x", "st_z", "ca_c"}


def test_a_model_is_fed_what_every_step_made(rows: pl.DataFrame, tmp_path: Path) -> None:
    split = fs.TimeSplit(valid="1970-01-08T03:00", embargo="2h")
    names = ["x", "z", "n", "c", "text"]
    data = table(rows).dataset(names, "y", split=split, pipeline=pipeline_of(fed()))
    for part in (data.train, data.valid):
        batches = list(Loader(part, 50, cache=tmp_path))
        made = part.read(as_="arrow")
        inputs = {name: np.concatenate([one.inputs[name] for one in batches])
                  for name in batches[0].inputs}  # fmt: skip
        columns = [one.name for one in part.schema.columns if one.role is Role.NUMERIC]
        for place, name in enumerate(columns):
            column = made[name].cast(pa.float32())
            wanted = column.fill_null(float("nan")).to_numpy()
            np.testing.assert_array_equal(inputs["numeric"][:, place], wanted, err_msg=name)
        others = {one.name: one for one in part.schema.columns if one.name in inputs}
        assert {"ca_c", "oh_c_one_hot", "text_tfidf", "text_ids"} <= others.keys()
        for name, one in others.items():
            np.testing.assert_array_equal(inputs[name], np.array(made[name].to_pylist()))
            if one.role is Role.CATEGORICAL:
                assert inputs[name].max() < (one.cardinality or 0)


def fed() -> list[Transformer]:
    """Return the steps, those that learn from a label named by it."""
    return [one for one in steps() if "y" not in getattr(one, "columns", ())]
