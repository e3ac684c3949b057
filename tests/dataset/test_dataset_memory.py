"""What reading a dataset takes: refused before it starts, or gone through in slices with equal results."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.dataset import Dataset
from featurestore.dataset.part import Part
from featurestore.dataset.split import HashSplit, Split, TimeSplit
from featurestore.dataset.view import ReadTask, TableView
from featurestore.errors import DefinitionError, MemoryLimitError
from featurestore.execution.sites import reserved_bytes
from featurestore.storage.backends import open_object_store
from featurestore.testing.views import table_view
from featurestore.transforms.base import Slicing
from featurestore.transforms.pipeline import Pipeline

MIB = 2**20
ROWS = 6000


def columns(rows: int, seed: int = 0) -> pa.Table:
    """Return rows of two a time, some null, with texts of which a few are far wider."""
    random = np.random.default_rng(seed)
    texts = [f"v{one}" * (200 if one % 97 == 0 else 1) for one in random.integers(0, 500, rows)]
    return pa.table(
        {
            "t": pa.array(np.arange(rows) // 2, pa.int64()),
            "k": pa.array([f"k{i % 7}" for i in range(rows)]),
            "x": pa.array(random.normal(size=rows), mask=random.random(rows) < 0.1),
            "z": pa.array(random.normal(size=rows).astype("f4")),
            "c": pa.array(texts, mask=random.random(rows) < 0.1),
            "y": pa.array(random.normal(size=rows) > 0),
        }
    )


PIPELINE = Pipeline(fs.Impute("x"), fs.Standardize(["x", "z"]), fs.Categorify("c"))
SPLITS = {
    "none": None,
    "time": TimeSplit(valid=ROWS // 3),
    "hash": HashSplit(valid=0.4, by=["k"]),
}


def make(view: TableView, features: Sequence[str], **options: Any) -> Dataset:
    return Dataset(lambda _: view, view.schema, list(features), "y", **options)


def view_of(folder: Path, cuts: Sequence[int] = (), rows: int = ROWS, **options: Any) -> TableView:
    tensors = {"v": np.arange(rows * 6, dtype=np.float32).reshape(rows, 3, 2)}
    return table_view(
        open_object_store(folder),
        columns(rows),
        cuts,
        key=["k"],
        time="t",
        features=["z"],
        tensors=tensors,
        **options,
    )


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> TableView:
    return view_of(tmp_path_factory.mktemp("store"), [ROWS // 2, ROWS // 2])


def smallest(part: Part, partition: int) -> int:
    """Return what the smallest slices of a partition take."""
    return part.memory(partition, 0)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_slices_are_the_partition(view: TableView, data: st.DataObject) -> None:
    split: Split | None = data.draw(st.sampled_from([*SPLITS.values()]))
    where = data.draw(st.sampled_from([None, nw.col("z") > 0, nw.col("z") > 9]))
    steps = data.draw(st.sampled_from([PIPELINE, Pipeline(fs.Categorify("c"))]))
    dataset = make(view, ["x", "z", "c", "v"], split=split, where=where, pipeline=steps)
    part = dataset.part(data.draw(st.sampled_from(dataset.parts)))
    if where is not None and not part.rows:
        return
    for partition in range(len(part.partition_rows)):
        whole = part.memory(partition, 2**40)
        least = smallest(part, partition)
        within = data.draw(st.integers(least + (whole - least) // 8, whole + 1))
        assert part.memory(partition, within) <= within
        slices = list(part.slices(partition, within))
        assert len(slices) == 1 or within < whole
        expected = part.arrays(partition)
        for name, values in expected.inputs.items():
            found = np.concatenate([one.inputs[name] for one in slices])
            np.testing.assert_array_equal(found, values)
        assert expected.label is not None
        labels = [one.label for one in slices if one.label is not None]
        np.testing.assert_array_equal(np.concatenate(labels), expected.label)


def test_there_are_more_slices_the_less_there_is(view: TableView) -> None:
    part = make(view, ["x", "z", "c", "v"], pipeline=PIPELINE).all
    whole, least = part.memory(0, 2**40), smallest(part, 0)
    counts = [len(list(part.slices(0, least + (whole - least) // n))) for n in (1, 2, 4, 8)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] > 2


def test_rows_of_one_time_stay_together(view: TableView) -> None:
    ranked = Pipeline(fs.CrossSection("z", by=["t"], stats=["rank"]))
    part = make(view, ["z"], pipeline=ranked).all
    whole, least = part.memory(0, 2**40), smallest(part, 0)
    slices = list(part.slices(0, (whole + least) // 2))
    assert len(slices) > 1
    assert all(one.rows % 2 == 0 for one in slices)
    found = np.concatenate([one.inputs["numeric"] for one in slices])
    np.testing.assert_array_equal(found, part.arrays(0).inputs["numeric"])


def test_what_cannot_be_cut_is_not(view: TableView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fs.Standardize, "slicing", Slicing.NONE)
    part = make(view, ["z"], pipeline=Pipeline(fs.Standardize("z"))).all
    assert part.memory(0, 0) == part.memory(0, 2**40)
    assert len(list(part.slices(0, 0))) == 1


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_learning_in_slices_gives_the_same(
    tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.dataset import fitting

    def dataset(folder: str) -> Dataset:
        view = view_of(tmp_path / folder, [ROWS // 2])
        return make(view, ["x", "z", "c"], split=SPLITS[split], pipeline=PIPELINE)

    whole = dataset("whole").pipeline
    sized, cut = fitting.sized_task, []

    def small(task: Any, states: Any, within: int) -> Any:
        least = sized(task, states, 0)[1].bytes
        most = sized(task, states, 2**40)[1].bytes
        found = sized(task, states, (least + most) // 3)
        cut.append(found[0].limits)
        return found

    monkeypatch.setattr(fitting, "sized_task", small)
    sliced = dataset("sliced").pipeline
    assert all(one is not None for one in cut)
    for one, other in zip(whole.states, sliced.states, strict=True):
        assert one is not None
        assert other is not None
        assert set(one) == set(other)
        for name, table in one.items():
            assert table.schema == other[name].schema
            for expected, found in zip(table.columns, other[name].columns, strict=True):
                if pa.types.is_floating(expected.type):
                    a, b = expected.to_numpy(), found.to_numpy()
                    np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-15)
                else:
                    assert expected == found


# --- refusals ----------------------------------------------------------------------------------------


def limited(folder: Path, spare: int, cuts: Sequence[int], rows: int = 40_000) -> TableView:
    """Return a table with 100 float32 a row, of which ``spare`` bytes may be held."""
    tensors = {"v": np.zeros((rows, 100), dtype=np.float32)}
    made = table_view(
        open_object_store(folder), columns(rows), cuts, key=["k"], time="t", tensors=tensors
    )
    return dataclasses.replace(made, memory_limit=reserved_bytes("polars") + spare)


def test_holding_all_rows_is_refused_where_going_through_them_is_not(tmp_path: Path) -> None:
    view = limited(tmp_path, 12 * MIB, range(2000, 40_000, 2000))
    part = make(view, ["v", "z"]).all
    with pytest.raises(MemoryLimitError, match=r"reading part 'all' needs 1\d\.\d MiB") as caught:
        part.read()
    assert "iterate over frames()" in caught.value.remedy
    assert sum(one.rows for one in part.frames()) == 40_000


def test_a_partition_that_does_not_fit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = limited(tmp_path, 8 * MIB, [])
    monkeypatch.setattr(TableView, "read", lambda *_: pytest.fail("it was read"))
    part = make(view, ["v", "z"]).all
    with pytest.raises(MemoryLimitError, match="part 'all' needs") as caught:
        part.frame(0)
    smallest_limit = re.findall(r"at least (\d+)MiB", caught.value.remedy)[0]
    assert int(smallest_limit) * MIB > view.memory_limit


def test_learning_that_does_not_fit_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(z: Any) -> Any:
        return z * 2

    steps = Pipeline(
        fs.Function(double, inputs="z", output="z", dtypes={"z": "float32"}), fs.Standardize("z")
    )
    view = dataclasses.replace(view_of(tmp_path, rows=ROWS), memory_limit=MIB)
    monkeypatch.setattr(TableView, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MemoryLimitError, match=r"learning Standardize needs .* for partition p0"):
        _ = make(view, ["z"], pipeline=steps).schema


def test_what_a_later_pass_takes_is_looked_at_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.dataset import fitting

    sized = fitting.sized_task

    def large_later(task: Any, states: Any, within: int) -> Any:
        found, need = sized(task, states, within)
        return found, dataclasses.replace(need, bytes=2**50) if task.earlier else need

    monkeypatch.setattr(fitting, "sized_task", large_later)
    monkeypatch.setattr(ReadTask, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(MemoryLimitError, match="learning Standardize needs"):
        _ = make(view_of(tmp_path, rows=ROWS), ["x", "z", "c"], pipeline=PIPELINE).schema


@pytest.mark.parametrize(
    ("before", "counted"),
    [(None, 100), (95, 95), (84, 84), (50, 84), (110, 100)],
)
def test_what_threads_kept_since_work_was_judged_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int | None, counted: int
) -> None:
    view = view_of(tmp_path, rows=10)
    monkeypatch.setattr(TableView, "reserved_bytes", property(lambda _: 100 * MIB))
    found = view.reserved_since(None if before is None else before * MIB)
    assert found == counted * MIB


def test_a_null_label_is_refused_in_a_slice(tmp_path: Path) -> None:
    table = columns(ROWS)
    table = table.set_column(
        table.column_names.index("y"), "y", pa.array([None] * 5 + [True] * (ROWS - 5))
    )
    view = table_view(open_object_store(tmp_path), table, key=["k"], time="t")
    part = make(view, ["z"], where=nw.col("x") > -9).all
    with pytest.raises(DefinitionError, match="nulls"):
        list(part.slices(0, smallest(part, 0) + 1000))
