"""Datasets against brute force: rows, arrays and what was learnt, for any partitioning."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.batch import DatasetSchema, Role
from featurestore.dataset.dataset import Dataset
from featurestore.dataset.fitting import fit_pipeline
from featurestore.dataset.part import Part
from featurestore.dataset.selection import Selection
from featurestore.dataset.split import HashSplit, Split, TimeSplit
from featurestore.dataset.view import TableView
from featurestore.engines.protocol import Engine
from featurestore.errors import (
    DefinitionError,
    InvalidInputError,
    NotFoundError,
    SchemaError,
)
from featurestore.schema import Field, TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.leases import Leases
from featurestore.testing.views import table_view
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer
from featurestore.transforms.calendar import Calendar
from featurestore.transforms.categories import Categorify
from featurestore.transforms.expression import Expression
from featurestore.transforms.impute import Impute
from featurestore.transforms.lag import Lag
from featurestore.transforms.pipeline import Pipeline
from featurestore.transforms.selectors import numeric, strings
from featurestore.transforms.standardize import Standardize

_names = itertools.count()


def memory_store() -> Any:
    return open_object_store(f"memory://dataset-{next(_names)}")


def dataset(view: TableView, *arguments: Any, **options: Any) -> Dataset:
    return Dataset(lambda _: view, view.schema, *arguments, **options)


def numbers(values: Sequence[float | None]) -> np.ndarray[Any, Any]:
    return np.array([np.nan if one is None else one for one in values], dtype=np.float64)


def whole(part: Part) -> dict[str, np.ndarray[Any, Any]]:
    """Return all arrays of a part, one partition after the other."""
    batches = [part.arrays(i) for i in range(len(part.partition_rows))]
    assert [one.rows for one in batches] == list(part.partition_rows)
    if not batches:
        return {}
    out = {
        name: np.concatenate([one.inputs[name] for one in batches]) for name in batches[0].inputs
    }
    if batches[0].label is not None:
        out["label"] = np.concatenate([one.label for one in batches if one.label is not None])
    return out


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, list[int]]:
    """A table in order of time, and cuts that do not divide a time group."""
    count = draw(st.integers(1, 40))
    times = sorted(draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)))
    floats = st.one_of(st.none(), st.floats(-1e3, 1e3, width=32), st.just(float("nan")))
    columns = {
        "k": pa.array(
            draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)), pa.int64()
        ),
        "t": pa.array(times, pa.int64()),
        "x": pa.array(draw(st.lists(floats, min_size=count, max_size=count)), pa.float64()),
        "n": pa.array(
            draw(st.lists(st.none() | st.integers(-9, 9), min_size=count, max_size=count)),
            pa.int32(),
        ),
        "c": pa.array(
            draw(
                st.lists(st.sampled_from([None, "", "a", "b", "é"]), min_size=count, max_size=count)
            ),
            pa.string(),
        ),
        "y": pa.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), pa.bool_()),
    }
    allowed = [0, *(i for i in range(1, count) if times[i] != times[i - 1])]
    cuts = draw(st.lists(st.sampled_from(allowed), max_size=5))
    return pa.table(columns), sorted(cuts)


splits = st.one_of(
    st.none(),
    st.builds(TimeSplit, valid=st.integers(4, 8), embargo=st.integers(0, 2)),
    st.builds(TimeSplit, valid=st.integers(2, 5), test=st.integers(9, 12), embargo=st.just(1)),
    st.builds(HashSplit, valid=st.just(0.3), test=st.just(0.2), seed=st.integers(0, 5)),
)


def expected_rows(table: pa.Table, split: Split | None, part: str) -> np.ndarray[Any, Any]:
    """Return which rows belong to a part, from the definition; hash splits by one whole read."""
    times = np.array(table["t"].to_pylist())
    if split is None:
        return np.ones(table.num_rows, bool)
    if isinstance(split, TimeSplit):
        embargo = int(split.embargo or 0)  # type: ignore[call-overload]
        stop = np.inf if split.test is None else int(split.test) - embargo  # type: ignore[arg-type]
        valid = int(split.valid)  # type: ignore[arg-type]
        masks = {"train": times < valid - embargo, "valid": (times >= valid) & (times < stop)}
        return masks[part] if part in masks else times >= int(split.test)  # type: ignore[arg-type]
    one = table_view(memory_store(), table, key=["k"], time="t")
    selection = split.rows(part, one.schema)
    return np.asarray(selection.mask(one.read(0, ["k", "t"]), one.engine))


@given(tables(), splits, st.booleans())
@settings(deadline=None, max_examples=25)
def test_parts_against_brute_force(
    case: tuple[pa.Table, list[int]], split: Split | None, conditional: bool
) -> None:
    table, cuts = case
    view = table_view(memory_store(), table, cuts, key=["k"], time="t", features=["x", "c"])
    where = nw.col("n") > 0 if conditional else None
    data = dataset(view, ["n", "x"], "y", where=where, split=split)
    met = np.array(
        [not conditional or (one is not None and one > 0) for one in table["n"].to_pylist()]
    )
    total = np.zeros(table.num_rows, int)
    for name in data.parts:
        chosen = expected_rows(table, split, name) & met
        total += chosen
        part = data.part(name)
        assert part.rows == chosen.sum() == sum(part.partition_rows) == len(part)
        assert all(part.partition_rows)
        arrays = whole(part)
        if part.rows:
            wanted = np.stack([numbers(table["n"].to_pylist()), numbers(table["x"].to_pylist())], 1)
            assert arrays["numeric"].dtype == np.float32
            assert arrays["numeric"].flags.c_contiguous
            np.testing.assert_array_equal(arrays["numeric"], wanted[chosen].astype(np.float32))
            assert arrays["label"].dtype == np.uint8
            assert (arrays["label"] == np.array(table["y"].to_pylist())[chosen]).all()
    assert total.max(initial=0) <= 1


@given(tables(), splits)
@settings(deadline=None, max_examples=20)
def test_pipeline_learns_from_the_training_part_only(
    case: tuple[pa.Table, list[int]], split: Split | None
) -> None:
    table, cuts = case
    view = table_view(memory_store(), table, cuts, key=["k"], time="t", features=["x"])
    pipeline = Pipeline(Standardize("x"), Categorify("c"))
    data = dataset(view, ["c", "x"], "y", split=split, pipeline=pipeline)
    train = expected_rows(table, split, data.parts[0])
    if not any(one.covers(0, 12) != "none" for one in [data.part(data.parts[0]).selection]):
        return
    if not train.any():
        with pytest.raises(DefinitionError, match="nothing to learn"):
            _ = data.schema
        return
    values = numbers(table["x"].to_pylist())
    known = values[train & np.isfinite(values)]
    words = table["c"].to_pylist()
    counts = Counter(one for one, yes in zip(words, train, strict=True) if yes and one is not None)
    ranked = sorted(counts, key=lambda one: (-counts[one], one.encode()))
    code = {None: 0, **{word: n + 2 for n, word in enumerate(ranked)}}
    category = next(one for one in data.schema.columns if one.role is Role.CATEGORICAL)
    assert (category.name, category.cardinality) == ("c", len(ranked) + 2)
    for name in data.parts:
        chosen = expected_rows(table, split, name)
        if not chosen.any():
            continue
        arrays = whole(data.part(name))
        wanted = [code.get(one, 1) for one, yes in zip(words, chosen, strict=True) if yes]
        assert arrays["c"].dtype == np.int32
        assert arrays["c"].tolist() == wanted
        if len(known):
            spread = known.std()
            # A column that is constant but for rounding has no spread to compare by.
            if spread > 1e-6 * (1 + np.abs(known).max()):
                scaled = (values[chosen] - known.mean()) / spread
                np.testing.assert_allclose(arrays["numeric"][:, 0], scaled, rtol=2e-5, atol=1e-5)


@given(tables(), st.data())
@settings(deadline=None, max_examples=15)
def test_any_partitioning_gives_the_same(
    case: tuple[pa.Table, list[int]], data: st.DataObject
) -> None:
    table, cuts = case
    split = data.draw(splits)
    filled = Impute("x", strategy="constant", fill_value=0.5)
    pipeline = Pipeline(filled, Standardize(numeric()), Categorify("c", max_size=2))
    made = [
        dataset(
            table_view(memory_store(), table, one, key=["k"], time="t"),
            ["x", "c", "n"], "y", split=split, pipeline=pipeline,
        )
        for one in (cuts, [])
    ]  # fmt: skip
    if not expected_rows(table, split, made[0].parts[0]).any():
        return
    for name in made[0].parts:
        first, second = (whole(one.part(name)) for one in made)
        assert first.keys() == second.keys()
        for array in first:
            if first[array].dtype == np.float32:  # means are exact to about 1e-15 only
                np.testing.assert_allclose(first[array], second[array], rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(first[array], second[array])


# --- learning ---------------------------------------------------------------------------------------


def daily(rows: int = 60, **changes: Any) -> pa.Table:
    random = np.random.default_rng(0)
    columns = {
        "k": pa.array([f"k{i % 7}" for i in range(rows)]),
        "t": pa.array(np.arange(rows) // 2, pa.int64()),
        "x": pa.array(random.normal(size=rows)),
        "z": pa.array(random.normal(size=rows)),
        "c": pa.array([("a", "b", "c")[i % 3] for i in range(rows)]),
        "y": pa.array(random.normal(size=rows) > 0),
    }
    return pa.table({**columns, **changes})


class Reads:
    """Counts which partitions are read, by wrapping the reading function."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from featurestore.execution.reading import PartitionSource

        self.partitions: list[str] = []
        original = PartitionSource.read

        def read(source: PartitionSource, *arguments: Any) -> Any:
            self.partitions.append(source.partition)
            return original(source, *arguments)

        monkeypatch.setattr(PartitionSource, "read", read)

    def of(self, work: Callable[[], object]) -> list[int]:
        self.partitions.clear()
        work()
        return sorted(int(one[1:9]) for one in self.partitions)


def fitting(view: TableView, split: Split, *steps: Any) -> Callable[[], object]:
    steps = steps or (Standardize("x"), Categorify("c"))

    def work() -> object:
        return dataset(view, ["x", "c"], "y", split=split, pipeline=Pipeline(*steps)).schema

    return work


def test_what_was_learnt_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Times 0..29, two rows each; partitions hold 5 times each.
    view = table_view(memory_store(), daily(), [10, 20, 30, 40, 50], key=["k"], time="t")
    reads = Reads(monkeypatch)
    assert reads.of(fitting(view, TimeSplit(valid=15))) == [0, 1, 2]
    assert reads.of(fitting(view, TimeSplit(valid=15))) == []
    assert reads.of(fitting(view, TimeSplit(valid=22))) == [3, 4]  # 4 is cut
    assert reads.of(fitting(view, TimeSplit(valid=10))) == []
    assert reads.of(fitting(view, TimeSplit(valid=23, embargo=1))) == []  # cut at the same place
    assert reads.of(fitting(view, TimeSplit(valid=23))) == [4]
    assert reads.of(fitting(view, TimeSplit(valid=22), Categorify("c"))) == []
    assert reads.of(fitting(view, TimeSplit(valid=15), Categorify("c", min_count=2))) == []


def test_passes_are_as_many_as_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    view = table_view(memory_store(), daily(), [20, 40], key=["k"], time="t")
    reads = Reads(monkeypatch)
    flat = (Standardize("x"), Categorify("c"))
    assert reads.of(fitting(view, TimeSplit(valid=99), *flat)) == [0, 1, 2]
    deep = (Impute("x"), Standardize("x"), Categorify("c"))
    view = table_view(memory_store(), daily(), [20, 40], key=["k"], time="t")
    assert reads.of(fitting(view, TimeSplit(valid=99), *deep)) == [0, 0, 1, 1, 2, 2]


def test_values_outside_the_training_part_teach_nothing() -> None:
    wild = np.array(daily()["x"].to_pylist())
    wild[30:] = 1e6
    other = daily(x=pa.array(wild), c=pa.array(daily()["c"].to_pylist()[:30] + ["new"] * 30))
    pipeline = Pipeline(Impute("x"), Standardize("x"), Categorify("c"))
    parts = [
        dataset(
            table_view(memory_store(), one, [16, 40], key=["k"], time="t"),
            ["x", "c"], "y", split=TimeSplit(valid=15), pipeline=pipeline,
        )
        for one in (daily(), other)
    ]  # fmt: skip
    first, second = (whole(one.train) for one in parts)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert parts[0].schema == parts[1].schema
    assert set(whole(parts[1].valid)["c"].tolist()) == {1}


def test_refitting_gives_equal_states_in_another_store_and_order() -> None:
    pipeline = Pipeline(Standardize("x"), Categorify("c"))
    found = []
    for workers in (1, 4):
        view = table_view(memory_store(), daily(), range(5, 60, 5), key=["k"], workers=workers)
        data = dataset(view, ["x", "c"], "y", pipeline=pipeline)
        found.append((whole(data.all)["numeric"].tobytes(), data.all.digest))
    assert found[0] == found[1]


# --- columns ----------------------------------------------------------------------------------------


def simple(tmp_path: Path, **changes: Any) -> TableView:
    return table_view(
        open_object_store(tmp_path / "store"), daily(**changes), [20, 40], key=["k"], time="t",
        features=["z"], tensors={"v": np.arange(240, dtype=np.float16).reshape(60, 4)},
    )  # fmt: skip


def test_schema_in_the_order_asked_for(tmp_path: Path) -> None:
    pipeline = Pipeline(Categorify(["k", "c"]))
    data = dataset(simple(tmp_path), ["z", "k", "v", "x", "c"], "y", pipeline=pipeline)
    columns = [
        (one.name, one.role, one.dtype, one.shape, one.cardinality) for one in data.schema.columns
    ]
    assert columns == [
        ("z", Role.NUMERIC, "float32", (), None),
        ("k", Role.CATEGORICAL, "int32", (), 9),
        ("v", Role.TENSOR, "float16", (4,), None),
        ("x", Role.NUMERIC, "float32", (), None),
        ("c", Role.CATEGORICAL, "int32", (), 5),
        ("y", Role.LABEL, "uint8", (), None),
    ]
    batch = data.all.arrays(1)
    assert {name: (str(a.dtype), a.shape) for name, a in batch.inputs.items()} == {
        name: (dtype, (20, *shape)) for name, (dtype, shape) in data.schema.array_specs().items()
    }
    assert (batch.inputs["v"] == np.arange(80, 160).reshape(20, 4)).all()


def test_selectors_leave_out_label_key_and_time(tmp_path: Path) -> None:
    data = dataset(simple(tmp_path), numeric(), "y")
    assert data.features == ("x", "z")
    data = dataset(
        simple(tmp_path), [numeric(), "k", strings()], "y", pipeline=Pipeline(Categorify())
    )
    assert data.features == ("x", "z", "k", "c")
    assert dataset(simple(tmp_path), "z").schema.label is None


def test_calendar_takes_the_place_of_a_time(tmp_path: Path) -> None:
    stamps = pa.array(np.arange(60) * 86_400_000_000, pa.timestamp("us"))
    view = simple(tmp_path, d=stamps)
    data = dataset(view, ["x", "d"], "y", pipeline=Pipeline(Calendar("d", parts=["weekday"])))
    assert data.schema.columns[0].name == "x"
    assert "d" not in data.schema.numeric
    assert data.schema.numeric == ("x", "d_weekday")
    assert whole(data.all)["numeric"].shape == (60, 2)


def test_part_of_tensors_only(tmp_path: Path) -> None:
    data = dataset(simple(tmp_path), ["v"], split=TimeSplit(valid=15))
    assert whole(data.valid)["v"].tolist() == np.arange(120, 240).reshape(30, 4).tolist()
    data = dataset(simple(tmp_path), ["v"], split=HashSplit(valid=0.5, test=0.0))
    assert data.train.rows + data.valid.rows == 60
    assert data.valid.read("arrow")["v"].type == pa.list_(pa.float16(), 4)


@pytest.mark.parametrize(
    ("features", "label", "options", "message"),
    [
        (["x", "c"], "y", {}, "Categorify"),
        (["x", "d"], "y", {}, "Calendar"),
        (["x", "l"], "y", {}, "Function"),
        (["x", "y"], "y", {}, "would be told"),
        (["x"], "c", {}, "number or a boolean"),
        (["x"], "v", {}, "number or a boolean"),
        (["x", "x"], "y", {}, "more than once"),
        ([], "y", {}, "no column"),
        (7, "y", {}, "does not select"),
        ([7], "y", {}, "does not name"),
        (["nobody"], "y", {}, "no column 'nobody'"),
        (["x"], "nobody", {}, "no column 'nobody'"),
        (["x"], "y", {"where": nw.col("x")}, "condition"),
        (["x"], "y", {"where": nw.col("v") > 0}, "tensor"),
        (["x"], "y", {"pipeline": Pipeline(Standardize("z"))}, "not among the features"),
        (["x"], "y", {"pipeline": Pipeline(Categorify("nobody"))}, "nobody"),
        (["x"], "y", {"split": HashSplit(by="nobody")}, "nobody"),
        (["x"], "y", {"split": TimeSplit(valid="2013-01-01")}, "integer"),
    ],
)
def test_what_is_no_dataset(
    tmp_path: Path, features: Any, label: str, options: dict[str, Any], message: str
) -> None:
    view = simple(
        tmp_path,
        d=pa.array(np.arange(60), pa.timestamp("us")),
        l=pa.array([["a"]] * 60, pa.list_(pa.string())),
    )
    with pytest.raises((DefinitionError, SchemaError, InvalidInputError), match=message):
        dataset(view, features, label, **options)


def test_windows_do_not_belong_into_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError):
        dataset(simple(tmp_path), ["x"], "y", pipeline=Pipeline(Lag("x", by="k")))


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    view = simple(tmp_path)
    with pytest.raises(NotFoundError, match="TimeSplit"):
        _ = dataset(view, ["x"], "y").train
    with pytest.raises(NotFoundError, match="'test'"):
        _ = dataset(view, ["x"], "y", split=TimeSplit(valid=3)).test
    data = dataset(view, ["x"], "y", split=TimeSplit(valid=3))
    assert data.folds == (data,)
    with pytest.raises(InvalidInputError, match="count from 0"):
        data.train.arrays(1)
    with pytest.raises(InvalidInputError, match="count from 0"):
        data.train.arrays(-1)


@dataclass(frozen=True)
class NextValue(Transformer):
    """A label: the value of a later row."""

    column: str

    @property
    def scope(self) -> Scope:
        return Scope.SUFFIX

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return (self.column,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field("z", schema[self.column].type),)

    def apply(self, partition: Any, state: Any, engine: Any) -> Any:
        raise NotImplementedError


def test_what_looks_into_the_future_is_no_feature(tmp_path: Path) -> None:
    view = simple(tmp_path)
    key = next(one for one in view.snapshot.entries if "f_extra" in one)
    definition = {"transformer": NextValue("x").spec(), "fit_on": None}
    entry = {**view.snapshot.entries[key], "definition": definition, "inputs": ["x"]}
    derived = {
        **entry,
        "group": "f_c",
        "inputs": ["z"],
        "fields": [{"name": "c", "type": "string"}],
    }
    derived["definition"] = {"transformer": Calendar("t", parts=["hour"]).spec(), "fit_on": None}
    snapshot = dataclasses.replace(
        view.snapshot, entries={**view.snapshot.entries, key: entry, "group:t:f_c": derived}
    )
    view = dataclasses.replace(view, snapshot=snapshot)
    with pytest.raises(DefinitionError, match="looks into the future"):
        dataset(view, ["x", "z"], "y")
    with pytest.raises(DefinitionError, match=r"'c' looks into the future \(through NextValue 'z'"):
        dataset(view, ["c"], "y", pipeline=Pipeline(Categorify("c")))
    assert dataset(view, ["x"], "z").label == "z"


# --- labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "dtype"),
    [("int8", "int8"), ("int64", "int64"), ("float32", "float32"), ("float64", "float64")],
)
def test_label_keeps_its_type(tmp_path: Path, type_: str, dtype: str) -> None:
    label = pa.array(np.arange(60) % 5).cast(type_)
    data = dataset(simple(tmp_path, y=label), ["x"], "y")
    assert whole(data.all)["label"].dtype == dtype


def test_null_labels_are_counted_before_anything_is_read(tmp_path: Path) -> None:
    values = [None if i in (3, 25, 26) else 1.0 for i in range(60)]
    view = simple(tmp_path, y=pa.array(values))
    with pytest.raises(DefinitionError, match=r"3 nulls in 60 .*\n.*where=~nw.col\('y'\).is_null"):
        dataset(view, ["x"], "y")
    known = dataset(view, ["x"], "y", where=~nw.col("y").is_null())
    assert known.all.rows == 57
    assert len(whole(known.all)["label"]) == 57
    later = dataset(view, ["x"], "y", split=TimeSplit(valid=15, embargo=13))
    assert later.valid.rows == 30  # the null labels lie in the embargo or in a cut partition
    with pytest.raises(DefinitionError, match="1 nulls in 4"):
        later.train.arrays(0)


def test_nan_labels_are_refused(tmp_path: Path) -> None:
    values = pa.array([float("nan") if i == 3 else 1.0 for i in range(60)])
    with pytest.raises(DefinitionError, match=r"1 NaN in 20 .*\n.*is_nan"):
        dataset(simple(tmp_path, y=values), ["x"], "y").all.arrays(0)


# --- reading ----------------------------------------------------------------------------------------


def test_read_as_frames(tmp_path: Path) -> None:
    import polars as pl

    data = dataset(
        simple(tmp_path),
        ["x", "c"],
        "y",
        split=TimeSplit(valid=12),
        pipeline=Pipeline(Categorify("c")),
    )
    frame = data.valid.read()
    assert isinstance(frame, pl.DataFrame)
    assert frame.columns == ["x", "c", "y"]
    assert frame["x"].to_list() == daily()["x"].to_pylist()[24:]
    assert frame["c"].dtype == pl.Int32
    assert data.valid.read("pandas").shape == (36, 3)
    assert [one.rows for one in data.valid.frames()] == [16, 20]
    with pytest.raises(InvalidInputError, match="cannot read as"):
        data.valid.read("excel")


def test_empty_part_keeps_its_types(tmp_path: Path) -> None:
    data = dataset(simple(tmp_path), ["x", "v"], "y", split=TimeSplit(valid=1000))
    assert data.valid.rows == 0
    assert data.valid.partition_rows == ()
    assert data.valid.read("arrow").schema.names == ["x", "v", "y"]
    assert data.train.rows == 60


def test_tasks_travel_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task is pickled and run as a worker in another process would."""
    from distributed.protocol.pickle import dumps, loads

    from featurestore.execution.dask import Executor

    def run(executor: Executor, function: Any, tasks: Sequence[Any], **_: Any) -> list[Any]:
        return [loads(dumps((function, task)))[0](loads(dumps(task))) for task in tasks]

    monkeypatch.setattr(Executor, "run", run)
    data = dataset(
        simple(tmp_path), ["x", "c"], "y", where=nw.col("x") > -5, split=HashSplit(),
        pipeline=Pipeline(Impute("x"), Standardize("x"), Categorify("c")),
    )  # fmt: skip
    assert data.train.rows + data.valid.rows + data.test.rows == 60
    assert whole(data.train)["numeric"].shape == (data.train.rows, 1)


def test_fitted_once_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    reads = Reads(monkeypatch)
    data = dataset(simple(tmp_path), ["x"], "y", pipeline=Pipeline(Standardize("x")))
    with ThreadPoolExecutor(4) as pool:
        schemas = list(pool.map(lambda _: data.schema, range(8)))
    assert all(one is schemas[0] for one in schemas)
    assert len(reads.partitions) == 3


def test_values_beyond_float32_become_infinity(tmp_path: Path) -> None:
    values = pa.array([1e300, -1e300, *[2.0**60] * 58])
    arrays = whole(dataset(simple(tmp_path, x=values), ["x"]).all)["numeric"]
    assert arrays[:3, 0].tolist() == [np.inf, -np.inf, 2.0**60]


# --- identity ---------------------------------------------------------------------------------------


def test_digest_outlives_commits_that_touch_other_values(tmp_path: Path) -> None:
    split, pipeline = TimeSplit(valid=12), Pipeline(Standardize("x"))

    def digests(store: str, version: int = 1, **changes: Any) -> tuple[str, str]:
        view = table_view(
            open_object_store(tmp_path / store), daily(**changes), [20, 40],
            key=["k"], time="t", features=["z", "x"][:1], version=version,
        )  # fmt: skip
        data = dataset(view, ["x"], "y", split=split, pipeline=pipeline)
        return data.train.digest, data.valid.digest

    one = digests("a")
    assert one[0] != one[1]
    assert digests("b", version=7) == one
    assert digests("c", z=pa.array(np.zeros(60))) == one
    later = np.array(daily()["x"].to_pylist())
    later[-1] = 0
    changed = digests("d", x=pa.array(later))
    assert changed[0] == one[0]
    assert changed[1] != one[1]


def test_digest_tells_datasets_apart(tmp_path: Path) -> None:
    view = simple(tmp_path)
    made = [
        dataset(view, ["x", "z"], "y"),
        dataset(view, ["z", "x"], "y"),
        dataset(view, ["x"], "y"),
        dataset(view, ["x", "z"]),
        dataset(view, ["x", "z"], "y", where=nw.col("x") > 0),
        dataset(view, ["x", "z"], "y", where=nw.col("x") > 1),
        dataset(view, ["x", "z"], "y", pipeline=Pipeline(Standardize("x"))),
        dataset(view, ["x", "z"], "y", pipeline=Pipeline(Impute("x"))),
    ]
    assert len({one.all.digest for one in made}) == len(made)
    assert made[0].all.digest == dataset(view, ["x", "z"], "y").all.digest


@pytest.mark.parametrize("wide_first", [False, True])
def test_a_rule_that_stands_for_other_columns_learns_anew(wide_first: bool, tmp_path: Path) -> None:
    """The key ``a`` is a number for selectors only where it is a feature."""
    a, x = np.arange(60.0) % 7, np.arange(60.0) ** 2
    table = pa.table({"a": a, "t": np.arange(60), "x": x})
    view = table_view(open_object_store(tmp_path / "s"), table, [20, 40], key=["a"], time="t")
    pipeline = Pipeline(Expression(d=nw.col("a") * 2), Standardize())
    made: list[list[str]] = [["x"], ["x", "a"]]
    for features in reversed(made) if wide_first else made:
        data = dataset(view, features, pipeline=pipeline)
        found = whole(data.all)["numeric"]
        columns = {"x": x, "a": a, "d": 2 * a}
        assert data.schema.numeric == (*features, "d")
        expected = [(v - v.mean()) / v.std() for v in (columns[one] for one in (*features, "d"))]
        np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Entities(Transformer):
    """How many entities there are, by the key of the table."""

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return ("k", "g")

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field("entities", pa.int64()),)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return {"keys": engine.to_arrow(partition.frame.select(*partition.schema.key).unique())}

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        return {"keys": pa.concat_tables([earlier["keys"], later["keys"]])}

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        count = len(set(zip(*state["keys"].to_pydict().values(), strict=True)))
        counts = engine.xp.full(partition.rows, count)
        return Columns(engine.column("entities", counts, None, pa.int64()).to_frame())


@pytest.mark.parametrize("turned", [False, True])
def test_the_key_is_part_of_what_is_learnt(turned: bool, tmp_path: Path) -> None:
    """The same bytes under another key, in one store."""
    keys = {"k": [str(i % 2) for i in range(60)], "g": [str(i % 5) for i in range(60)]}
    table = pa.table({**keys, "x": np.arange(60.0)})
    made = [(["k"], 2), (["g"], 5), (["k", "g"], 10)]
    for key, expected in reversed(made) if turned else made:
        view = table_view(open_object_store(tmp_path / "s"), table, [20, 40], key=key)
        fitted = fit_pipeline(Pipeline(Entities()), view.schema, view, Selection())
        after = fitted.apply(view.read(0, ["k", "g"]), view.engine)
        assert after.frame["entities"].to_list() == [expected] * 20


@dataclass(frozen=True)
class MeanLabel(Transformer):
    """The mean label of all rows, where the feature is known; sees the label when it learns."""

    column: str
    label: str

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return (self.column,)

    def learns_from(self, schema: TableSchema) -> tuple[str, ...]:
        return (self.column, self.label)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field(f"{self.column}_mean", pa.float64()),)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        frame = partition.frame.filter(nw.col(self.column) > 0)
        label, _ = engine.values(frame[self.label])
        return {"sums": pa.table({"sum": [float(label.sum())], "rows": [len(frame)]})}

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        return {"sums": pa.concat_tables([earlier["sums"], later["sums"]])}

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        sums = state["sums"].to_pydict()
        mean = sum(sums["sum"]) / sum(sums["rows"])
        known = nw.when(nw.col(self.column) > 0).then(nw.lit(mean)).alias(f"{self.column}_mean")
        return Columns(partition.frame.select(known))


def test_a_step_may_learn_from_the_label(tmp_path: Path) -> None:
    view = simple(tmp_path)
    pipeline = Pipeline(Standardize("x"), MeanLabel("x", "y"))
    data = dataset(view, ["x"], "y", split=TimeSplit(valid=12), pipeline=pipeline)
    x, y = (np.array(daily()[name].to_pylist(), dtype=np.float64) for name in ("x", "y"))
    train = np.array(daily()["t"].to_pylist()) < 12
    above = x > x[train].mean()
    expected = np.where(above, y[train & above].mean(), np.nan)
    found = whole(data.valid)["numeric"]
    assert data.schema.numeric == ("x", "x_mean")
    np.testing.assert_allclose(found[:, 1], expected[~train], rtol=1e-6)
    # What is served needs no label.
    served = data.pipeline.transform(pa.table({"k": ["k"], "t": [0], "x": [9.0]}))
    assert served["x_mean"].to_pylist() == [pytest.approx(y[train & above].mean())]
    # Another label is another state, also in the same store.
    other = dataset(
        view, ["x"], "z", split=TimeSplit(valid=12),
        pipeline=Pipeline(Standardize("x"), MeanLabel("x", "z")),
    )  # fmt: skip
    z = np.array(daily()["z"].to_pylist())
    mean = np.nanmax(whole(other.valid)["numeric"][:, 1])
    assert mean == pytest.approx(z[train & above].mean(), rel=1e-5)
    with pytest.raises(DefinitionError, match=r"MeanLabel learns from \['y'\]"):
        dataset(view, ["x"], "z", pipeline=pipeline)


@pytest.mark.parametrize("name", ["ASSEMBLY_VERSION", "HASH_VERSION"])
def test_versions_of_kernels_are_in_the_digest(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.dataset import part, selection

    data = dataset(simple(tmp_path), ["x"], "y", split=HashSplit(valid=0.4, test=0))
    before = data.train.digest
    monkeypatch.setattr(part if name.startswith("ASSEMBLY") else selection, name, 2)
    again = dataset(data._view, ["x"], "y", split=HashSplit(valid=0.4, test=0))
    assert again.train.digest != before


def test_counting_reads_only_what_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(simple(tmp_path), ["x"], "y", split=TimeSplit(valid=12, test=22))
    reads = Reads(monkeypatch)
    assert reads.of(lambda: data.train.rows) == [1]
    assert reads.of(lambda: data.train.rows) == []
    assert reads.of(lambda: data.test.rows) == [2]
    again = dataset(data._view, ["z"], split=TimeSplit(valid=12, test=22))
    assert reads.of(lambda: (again.train.rows, again.test.rows)) == []
    assert (again.train.rows, again.test.rows) == (data.train.rows, data.test.rows) == (24, 16)
    assert reads.of(lambda: dataset(data._view, ["x"]).all.rows) == []


def test_description_and_representation(tmp_path: Path) -> None:
    data = dataset(simple(tmp_path), ["x"], "y", where=nw.col("z") > 0, split=TimeSplit(valid=12))
    described = data.describe()
    assert described["features"] == ["x"]
    assert described["parts"] == ["train", "valid"]
    assert "'t'" in repr(data)
    assert "train" in repr(data.train)


def test_a_dataset_that_nobody_uses_gives_its_version_back_at_once() -> None:
    """Without waiting for Python's collector: gc must not depend on when that runs."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    rows = pl.DataFrame({"id": [1, 2, 3], "day": [1, 2, 3], "x": [0.5, 1.5, 2.5]})
    table = store.ingest("rows", rows, key="id", time="day")
    leases = Leases(store._session.objects)
    gc.disable()
    try:
        data = table.dataset(
            features=["x"],
            split=fs.TimeSplit(valid=3),
            pipeline=fs.Pipeline(fs.Standardize(fs.numeric())),
        )
        train = data.train
        assert train.read().height == 2
        del data
        assert [one.version for one in leases.live()] == [store.version]
        del train
        assert leases.live() == []
    finally:
        gc.enable()


# --- labels and weight ------------------------------------------------------------------------------


def weighted_view(tmp_path: Path, weight: Sequence[float | None], **changes: Any) -> TableView:
    columns = {"w": pa.array(weight, pa.float64()), "y2": pa.array(np.arange(60) % 2 == 0)}
    return simple(tmp_path, **columns, **changes)


def test_several_labels_and_a_weight_beside_the_inputs(tmp_path: Path) -> None:
    shares = [number / 7 for number in range(60)]
    view = weighted_view(tmp_path, shares)
    data = dataset(view, numeric(), ["y", "y2"], weight="w", where=nw.col("t") >= 4)
    assert data.features == ("x", "z")
    assert (data.label, data.labels, data.weight) == (None, ("y", "y2"), "w")
    assert [one.role for one in data.schema.columns[2:]] == [Role.LABEL, Role.LABEL, Role.WEIGHT]
    assert list(data.schema.array_specs()) == ["numeric"]
    assert DatasetSchema.from_json(data.schema.to_json()) == data.schema
    keep = np.array(daily()["t"].to_pylist()) >= 4
    batches = [data.all.arrays(i) for i in range(len(data.all.partition_rows))]
    for name, expected in (
        ("y", np.array(daily()["y"].to_pylist())[keep]),
        ("y2", (np.arange(60) % 2 == 0)[keep].astype(np.uint8)),
    ):
        found = np.concatenate([one.labels[name] for one in batches])
        assert found.dtype == data.schema.labels[data.labels.index(name)].dtype
        np.testing.assert_array_equal(found, expected)
    weights = np.concatenate([one.weight for one in batches if one.weight is not None])
    np.testing.assert_array_equal(weights, np.array(shares, dtype=np.float32)[keep])
    assert all(one.label is None for one in batches)
    plain = dataset(view, numeric(), ["y", "y2"], where=nw.col("t") >= 4)
    assert plain.all.digest != data.all.digest
    assert "w" in plain.features


@pytest.mark.parametrize("bad", [-0.5, float("inf"), 1e39, float("nan")])
def test_a_weight_that_is_none_is_refused(bad: float, tmp_path: Path) -> None:
    view = weighted_view(tmp_path, [bad if i == 3 else 1.0 for i in range(60)])
    with pytest.raises(DefinitionError, match="weight 'w'"):
        dataset(view, ["x"], "y", weight="w").all.arrays(0)


def test_null_weights_are_counted_before_anything_is_read(tmp_path: Path) -> None:
    view = weighted_view(tmp_path, [None if i == 3 else 1.0 for i in range(60)])
    with pytest.raises(DefinitionError, match="weight 'w' has 1 nulls in 60"):
        dataset(view, ["x"], "y", weight="w")


@pytest.mark.parametrize(
    ("features", "label", "weight", "message"),
    [
        (["x", "w"], "y", "w", "weight 'w' is among the features"),
        (["x", "y2"], ["y", "y2"], None, "label 'y2' is among the features"),
        (["x"], ["y", "y"], None, "name a column twice"),
        (["x"], "w", "w", "name a column twice"),
        (["x"], "y", "c", "weight 'c' is of type"),
        (["x"], 3, None, "label=3 does not name labels"),
        (["x"], ["y", 3], None, "does not name labels"),
    ],
)
def test_what_cannot_be_label_or_weight(
    features: Any, label: Any, weight: Any, message: str, tmp_path: Path
) -> None:
    view = weighted_view(tmp_path, [1.0] * 60)
    with pytest.raises(DefinitionError, match=message):
        dataset(view, features, label, weight=weight)


def test_a_schema_stored_without_weights_decodes(tmp_path: Path) -> None:
    data = dataset(simple(tmp_path), ["x"], "y")
    assert [one["role"] for one in data.schema.to_json() if isinstance(one, dict)] == [
        "numeric",
        "label",
    ]
    assert DatasetSchema.from_json(data.schema.to_json()) == data.schema
