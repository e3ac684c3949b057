"""Pipeline: the same values however it is fitted, its order of passes, and its stored form."""

from __future__ import annotations

import json
import math
from functools import reduce
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FeatureStoreError,
    FormatError,
    SchemaError,
)
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import cut_table, schema_of
from featurestore.transforms.base import EMPTY_STATE, Partition
from featurestore.transforms.calendar import Calendar
from featurestore.transforms.categories import Categorify
from featurestore.transforms.expression import Expression
from featurestore.transforms.function import Function
from featurestore.transforms.impute import Impute
from featurestore.transforms.pipeline import FittedPipeline, Pipeline
from featurestore.transforms.selectors import by_name, numeric
from featurestore.transforms.standardize import Standardize

ENGINE = get_engine("polars")
TABLE = pa.table(
    {
        "x": pa.array([1.0, None, 3.0, math.nan, 8.0], pa.float64()),
        "n": pa.array([1, 2, None, 4, 5], pa.int32()),
        "c": ["a", "b", None, "a", "z"],
        "kept": ["p", "q", "r", "s", "t"],
    }
)
FULL = Pipeline(
    Impute(numeric(), indicator=True),
    Expression(ratio=nw.col("x") / nw.col("n")),
    Standardize(by_name("x", "n", "ratio")),
    Categorify("c"),
)


def halved(df: Any) -> Any:
    return df["x"] / 2


def table_of(partition: Partition) -> pa.Table:
    return ENGINE.to_arrow(partition.frame)


def test_values_against_pandas() -> None:
    fitted = FULL.fit(TABLE)
    out = fitted.transform(TABLE)
    df = TABLE.to_pandas()
    x, n = df["x"].fillna(df["x"].mean()), df["n"].fillna(df["n"].mean())
    for name, column in {"x": x, "n": n, "ratio": x / n}.items():
        expected = (column - column.mean()) / column.std(ddof=0)
        np.testing.assert_allclose(out[name].to_numpy(), expected, rtol=1e-6, atol=1e-6)
    assert out["c"].to_pylist() == [2, 3, 0, 2, 4]
    assert out["x_missing"].to_pylist() == [False, True, False, True, False]
    assert out["kept"].to_pylist() == list("pqrst")
    assert fitted.get_feature_names_out() == tuple(out.column_names)
    assert fitted.cardinalities() == {"c": 5}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 5), max_size=4), st.lists(st.integers(0, 5), max_size=4))
def test_every_partitioning_gives_the_same_pipeline(one: list[int], other: list[int]) -> None:
    a, b = (FULL.fit_partitions(cut_table(TABLE, where), ENGINE) for where in (one, other))
    (whole,) = cut_table(TABLE)
    left = table_of(a.apply(whole, ENGINE))
    right = pa.concat_tables(table_of(b.apply(part, ENGINE)) for part in cut_table(TABLE, one))
    assert left.schema == right.schema
    assert left.schema == pa.schema([(one.name, one.type) for one in a.schema_out])
    for name in left.column_names:
        if pa.types.is_floating(left.schema.field(name).type):
            np.testing.assert_allclose(
                left[name].to_numpy(), right[name].to_numpy(), rtol=1e-12, atol=1e-12
            )
        else:
            assert left[name].to_pylist() == right[name].to_pylist()


def test_fitting_step_by_step_is_fitting_at_once() -> None:
    parts = cut_table(TABLE, [2, 3])
    fitted = FULL.start(parts[0].schema)
    assert not fitted.complete
    with pytest.raises(DefinitionError, match=r"step 0 .Impute. of the pipeline is not fitted"):
        fitted.apply(parts[0], ENGINE)
    with pytest.raises(DefinitionError, match="not fitted yet"):
        fitted.summarize_step(2, parts[0], ENGINE)
    for group in FULL.passes(parts[0].schema):
        for i in group:
            states = [fitted.summarize_step(i, part, ENGINE) for part in parts]
            step = FULL.steps[i]
            fitted = fitted.with_state(i, step.finish(reduce(step.combine, states, EMPTY_STATE)))
    assert fitted.complete
    at_once = FULL.fit_partitions(parts, ENGINE)
    assert fitted.fingerprint == at_once.fingerprint
    assert fitted == at_once


def test_passes_needs_and_reads() -> None:
    schema = schema_of(TABLE)
    assert FULL.passes(schema) == [[0, 3], [2]]
    assert FULL.needs(schema) == (frozenset(), frozenset({0}), frozenset({0, 1}), frozenset())
    assert FULL.reads(schema) == (("x", "n"), ("x", "n"), ("x", "n"), ("c",))
    independent = Pipeline(Standardize("x"), Standardize("n"), Categorify("c"))
    assert independent.passes(schema) == [[0, 1, 2]]
    chain = Pipeline(Impute("x"), Standardize("x"), Standardize("x", suffix="2"), Standardize("n"))
    assert chain.passes(schema) == [[0, 3], [1], [2]]
    assert Pipeline(Expression(y=nw.col("x") + 1)).passes(schema) == []
    assert Pipeline().passes(schema) == []


def test_a_column_replaced_after_it_was_read() -> None:
    # Step 0 reads the original x, step 1 replaces it, step 2 reads what step 0 made.
    pipeline = Pipeline(
        Expression(y=nw.col("x") + 1), Impute("x", "constant", fill_value=0.0), Standardize("y")
    )
    assert pipeline.needs(schema_of(TABLE))[2] == {0}
    out = pipeline.fit(TABLE).transform(TABLE)
    assert out["x"].to_pylist() == [1.0, 0.0, 3.0, 0.0, 8.0]
    assert out["y"][1].as_py() is None


def test_one_row_is_served_as_the_table_was() -> None:
    fitted = FULL.fit(TABLE)
    whole = fitted.transform(TABLE)
    for i in range(TABLE.num_rows):
        assert str(fitted.transform(TABLE.slice(i, 1)).to_pylist()) == str(
            whole.slice(i, 1).to_pylist()
        )
    assert fitted.transform(TABLE.slice(0, 0)).num_rows == 0


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "narwhals"])
def test_frames_come_back_as_they_came(library: str) -> None:
    frames: dict[str, Any] = {
        "pandas": TABLE.to_pandas(), "polars": pl.DataFrame(pl.from_arrow(TABLE)), "pyarrow": TABLE,
        "narwhals": nw.from_native(pl.DataFrame(pl.from_arrow(TABLE))),
    }  # fmt: skip
    frame = frames[library]
    pipeline = Pipeline(Impute("x"), Categorify("c"))
    out = pipeline.fit(frame).transform(frame)
    assert type(out) is type(frame)
    back = nw.from_native(out, eager_only=True)
    assert back["x"].to_list() == [1.0, 4.0, 3.0, 4.0, 8.0]
    assert back["c"].to_list() == [2, 3, 0, 2, 4]


def test_a_frame_that_does_not_fit_is_refused() -> None:
    fitted = FULL.fit(TABLE)
    with pytest.raises(SchemaError, match="'c', which is not there"):
        fitted.transform(TABLE.drop_columns(["c"]))
    for wrong in (["x"] * 5, [[1.0]] * 5):
        with pytest.raises(SchemaError, match="'x' has type"):
            fitted.transform(TABLE.set_column(0, "x", pa.array(wrong)))
    with pytest.raises(SchemaError, match="does not fit"):
        fitted.transform(TABLE.set_column(1, "n", pa.array([1.5] * 5)))
    with pytest.raises(SchemaError, match="is not a frame"):
        fitted.transform({"x": [1]})
    # What widens without loss is taken; a column nobody reads may be missing.
    narrow = TABLE.set_column(1, "n", TABLE["n"].cast(pa.int8())).drop_columns(["kept"])
    assert fitted.transform(narrow).num_rows == 5
    (part,) = cut_table(TABLE.set_column(1, "n", TABLE["n"].cast(pa.int64())))
    with pytest.raises(SchemaError, match="fitted to int32"):
        fitted.apply(part, ENGINE)


def test_what_cannot_be_a_step() -> None:
    with pytest.raises(DefinitionError, match="Function reads other rows") as caught:
        Pipeline(Function(halved, "x", lookback="1d"))
    assert "table.add" in caught.value.remedy
    for thing in ("x", None, Standardize):
        with pytest.raises(DefinitionError, match="not a transformer"):
            Pipeline(thing)  # type: ignore[arg-type]


def test_category_codes_are_not_scaled() -> None:
    schema = schema_of(TABLE)
    for scaler in (Standardize(numeric()), Impute(numeric())):
        with pytest.raises(DefinitionError, match=r"codes \['c'\] for numbers"):
            Pipeline(Categorify("c"), scaler).schema_after(schema)
    fine = Pipeline(Categorify("c"), Standardize(numeric() - by_name("c")))
    assert fine.schema_after(schema)["c"].type == pa.int32()
    replaced = Pipeline(Categorify("c"), Expression(c=nw.col("x")), Standardize("c"))
    assert replaced.fit(TABLE).cardinalities() == {}


def test_other_steps_and_tensors() -> None:
    at = pa.array([0, 3_600_000_000], pa.timestamp("us"))
    (part,) = cut_table(pa.table({"at": at, "x": [1.0, 3.0]}), time="at")
    schema = TableSchema((*part.schema.fields, Field("v", pa.float32(), (2,))), (), "at")
    part = Partition(part.frame, schema, {"v": np.zeros((2, 2), np.float32)})
    pipeline = Pipeline(
        Calendar(parts=("hour",)),
        Function(halved, "x", dtypes="float64", output="half"),
        Standardize("half"),
    )
    fitted = pipeline.fit_partitions([part], ENGINE)
    out = fitted.apply(part, ENGINE)
    assert out.frame["at_hour"].to_list() == [0, 1]
    assert out.frame["half"].to_list() == [-1.0, 1.0]
    assert out.tensors["v"].shape == (2, 2)
    again = FittedPipeline.from_json(
        json.loads(json.dumps(fitted.to_json())), fitted.encode_states()
    )
    assert again == fitted


def test_stored_form() -> None:
    fitted = FULL.fit(TABLE)
    text = json.dumps(fitted.to_json())
    again = FittedPipeline.from_json(json.loads(text), fitted.encode_states())
    assert again == fitted
    assert again.fingerprint == fitted.fingerprint
    assert again.transform(TABLE).equals(fitted.transform(TABLE))
    assert Pipeline.from_spec(json.loads(json.dumps(FULL.spec()))) == FULL
    partly = FULL.start(schema_of(TABLE)).with_state(3, fitted.states[3] or {})
    back = FittedPipeline.from_json(partly.to_json(), partly.encode_states())
    assert back == partly
    assert [state is None for state in back.states] == [True, False, True, False]


def test_fingerprints_tell_fits_apart() -> None:
    a, b = FULL.fit(TABLE), FULL.fit(TABLE.slice(0, 3))
    assert a.fingerprint != b.fingerprint
    assert a.pipeline.fingerprint() == b.pipeline.fingerprint()
    assert Pipeline(Impute("x")).fingerprint() != Pipeline(Impute("n")).fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"pipeline": None}, {"pipeline": {}}, {"fields": [{"name": "x"}]}, {"fitted": [True]},
        {"key": ["nope"]}, {"pipeline": {"kind": "Pipeline", "version": 9, "steps": []}},
        {"pipeline": {"kind": "Pipeline", "version": 1, "steps": [{"kind": "os.system"}]}},
        {"fields": None}, {"fitted": None},
    ],
)  # fmt: skip
def test_hostile_json_is_refused(change: dict[str, Any]) -> None:
    fitted = FULL.fit(TABLE)
    with pytest.raises(FeatureStoreError):
        FittedPipeline.from_json({**fitted.to_json(), **change}, fitted.encode_states())


def test_damaged_states_are_refused() -> None:
    fitted = FULL.fit(TABLE)
    data = bytearray(fitted.encode_states())
    data[len(data) // 2] ^= 1
    with pytest.raises(CorruptionError):
        FittedPipeline.from_json(fitted.to_json(), bytes(data))
    with pytest.raises(FormatError):
        FittedPipeline.from_json({}, fitted.encode_states())


def test_states_of_another_fit_are_refused() -> None:
    one, other = FULL.fit(TABLE), FULL.fit(TABLE.slice(0, 3))
    with pytest.raises(CorruptionError, match="another pipeline"):
        FittedPipeline.from_json(one.to_json(), other.encode_states())
    before_digests = {name: value for name, value in one.to_json().items() if name != "states"}
    assert FittedPipeline.from_json(before_digests, one.encode_states()) == one


def test_an_empty_pipeline_changes_nothing() -> None:
    fitted = Pipeline().fit(TABLE)
    assert fitted.complete
    assert str(fitted.transform(TABLE).to_pylist()) == str(TABLE.to_pylist())  # NaN equals NaN
    with pytest.raises(DefinitionError, match="without rows"):
        Pipeline().fit_partitions([], ENGINE)


def test_pandas_rows_without_nulls_and_categories() -> None:
    df = pd.DataFrame({"c": pd.Categorical(["u", "v", "u"]), "x": [1, 2, 6]})
    out = Pipeline(Categorify("c"), Standardize("x")).fit(df).transform(df)
    assert out["c"].tolist() == [2, 3, 2]
    assert out["x"].dtype == np.float32


def test_tensors_of_a_frame_in_memory_are_columns_of_arrays() -> None:
    frame = pl.DataFrame({"text": ["a b", "b", None], "x": [1.0, 2.0, 3.0]})
    fitted = fs.Pipeline(fs.TfIdf("text", size=2, output="words"), fs.Standardize("x")).fit(frame)
    out = fitted.transform(frame)
    assert tuple(out.columns) == fitted.get_feature_names_out()
    assert out["words"].to_list()[2] == [0.0, 0.0]
    assert out["words"].dtype == pl.Array(pl.Float32, 2)
    assert fitted.transform(frame.to_pandas())["words"][2].tolist() == [0.0, 0.0]


def test_rows_that_are_learnt_from_are_told_apart_when_both_happen_at_once() -> None:
    frame = pl.DataFrame({"i": range(40), "c": ["a", "b"] * 20, "y": [0.0] * 39 + [100.0]})
    encode = fs.TargetEncode("c", "y", smoothing=0, fold_by="i")
    pipeline = fs.Pipeline(encode)
    whole = pipeline.fit(frame).transform(frame)["c_y_mean"]
    apart = pipeline.fit_transform(frame)["c_y_mean"]
    assert whole.to_list() == [0.0, 5.0] * 20
    assert apart[39] == 0.0  # its own label is not in it
    assert set(apart.to_list()) != set(whole.to_list())


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame([[1.0, 2.0]], columns=["x", "x"]),
        pd.DataFrame([[1.0, 2.0]], columns=["x", 0]),
        pd.DataFrame({"x": [1.0], "y": pd.Series([1j])}),
        pd.DataFrame({"x": [1, "a"]}, dtype=object),
        pd.DataFrame({"x": [2**70]}, dtype=object),
        pd.DataFrame({"x": ["\ud800"]}, dtype=object),
        pd.DataFrame({"x": pd.arrays.SparseArray([0.0])}),
        pl.DataFrame({"x": pl.Series([1], dtype=pl.Int128)}),
        pl.DataFrame({"x": [1.0], "y": pl.Series([object()], dtype=pl.Object)}),
        pl.DataFrame({"x": [1.0], "y": [{"a": 1}]}),
        pl.DataFrame({"x": [1.0], "y": [None]}),
        pl.LazyFrame({"x": [1.0]}),
    ],
    ids=[
        "two-of-a-name", "a-number-as-name", "complex", "mixed", "too-large", "half-a-character",
        "sparse", "int128", "objects", "struct", "no-type", "lazy",
    ],
)  # fmt: skip
def test_frames_that_cannot_be_taken_are_refused_with_what_to_do(frame: Any) -> None:
    fitted = Pipeline(Standardize("x")).fit(pl.DataFrame({"x": [1.0, 2.0]}))
    for work in (Pipeline(Standardize("x")).fit, fitted.transform):
        with pytest.raises(SchemaError) as caught:
            work(frame)
        assert caught.value.remedy
    assert fitted.get_feature_names_out(["x"]) == ("x",)
