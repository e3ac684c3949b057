"""Function: what a result may be, what is refused, history, types, and finding the code again."""

# ruff: noqa: DTZ001 - naive timestamps are among the inputs
from __future__ import annotations

import datetime as dt
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import cloudpickle
import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.selection import get_engine
from featurestore.errors import DefinitionError, InvalidInputError, MissingColumnError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import cut_table, schema_of, values_of
from featurestore.transforms.base import Scope, transformer_from_spec
from featurestore.transforms.extent import Extent
from featurestore.transforms.function import Function, feature_from
from featurestore.transforms.function_ref import FunctionRef
from featurestore.transforms.selectors import numeric

ENGINE = get_engine("polars")
TABLE = pa.table({"delay": pa.array([3, 40, None, -5], pa.int64()), "name": ["a", None, "c", "d"]})
SCHEMA = schema_of(TABLE)


def bound(fn: Any, inputs: Any = "delay", **options: Any) -> Function:
    return Function(fn, inputs, **options).bind(cut_table(TABLE)[0], ENGINE)


def run(fn: Any, inputs: Any = "delay", cuts: Any = (), **options: Any) -> pa.Table:
    return values_of(bound(fn, inputs, **options), cut_table(TABLE, cuts))


# --- what a result may be ---------------------------------------------------------------------------


def late(df: Any) -> Any:
    return df["delay"] > 15


def doubled(df: Any) -> Any:
    return {"x": df["delay"] * 2, "y": df["delay"].is_null()}


def framed(df: Any) -> Any:
    return df.select(x=nw.col("delay") + 1, y=nw.col("name"))


def pandas_frame(df: Any) -> Any:
    return pd.DataFrame({"x": df["delay"].fillna(0) * 2, "y": df["name"].str.upper()})


def polars_series(df: Any) -> Any:
    return df["delay"].fill_null(0).cast(pl.Int16)


def numpy_column(df: Any) -> Any:
    return np.arange(len(df)) * 0.0 + 1.5


@pytest.mark.parametrize("cuts", [(), (1,), (0, 2, 4)])
def test_results_of_every_kind(cuts: Any) -> None:
    assert run(late, cuts=cuts)["late"].to_pylist() == [False, True, None, False]
    assert run(late, output="slow", cuts=cuts).schema.names == ["slow"]
    out = run(doubled, cuts=cuts)
    assert out.to_pydict() == {"x": [6, 80, None, -10], "y": [False, False, True, False]}
    assert run(doubled, output=["y", "x"], cuts=cuts).schema.names == ["y", "x"]
    out = run(framed, ["delay", "name"], cuts=cuts)
    assert out.to_pydict() == {"x": [4, 41, None, -4], "y": ["a", None, "c", "d"]}
    out = run(pandas_frame, ["delay", "name"], frame="pandas", cuts=cuts)
    assert out.to_pydict() == {"x": [6.0, 80.0, 0.0, -10.0], "y": ["A", None, "C", "D"]}
    out = run(polars_series, frame="polars", cuts=cuts)
    assert out["polars_series"].to_pylist() == [3, 40, 0, -5]
    assert out["polars_series"].type == pa.int16()
    assert run(numpy_column, cuts=cuts)["numpy_column"].to_pylist() == [1.5] * 4


def embedded(df: Any, scale: float) -> Any:
    base = df["delay"].fill_null(0).to_numpy().astype("float32")
    return np.stack([base, base * scale, base + 1], axis=1)


def test_a_tensor() -> None:
    feature = bound(embedded, shape=(3,), params={"scale": 0.5})
    assert feature.outputs(SCHEMA) == (Field("embedded", pa.float32(), (3,)),)
    whole, first, rest, none = (
        feature.apply(part, {}, ENGINE).tensors["embedded"]
        for part in (*cut_table(TABLE), *cut_table(TABLE, [1]), *cut_table(TABLE.slice(0, 0)))
    )
    assert whole.shape == (4, 3)
    assert none.shape == (0, 3)
    assert none.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)
    assert transformer_from_spec(feature.spec()) == feature
    with pytest.raises(DefinitionError, match=r"expected \(4, 2\)"):
        bound(embedded, shape=(2,), params={"scale": 1.0})


# --- what is refused --------------------------------------------------------------------------------


def fewer(df: Any) -> Any:
    return df["delay"].drop_nulls()


def reordered(df: Any) -> Any:
    return df["delay"].sort_values()


def scalar(df: Any) -> Any:
    return 3


def lazy(df: Any) -> Any:
    return df.lazy()


def expression(df: Any) -> Any:
    return pl.col("delay")


def two_dimensional(df: Any) -> Any:
    return np.zeros((len(df), 2))


def failing(df: Any) -> Any:
    return df["nope"]


def nothing(df: Any) -> Any:
    return None


def all_null(df: Any) -> Any:
    return df.select(x=nw.lit(None))["x"] if len(df) == 1 else pl.Series("x", [None] * len(df))


def text_array(df: Any) -> Any:
    return np.array([["a"]] * len(df))


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (fewer, {}, "'fewer' returned 3 rows for 4"),
        (reordered, {"frame": "pandas"}, "another order"),
        (scalar, {}, "builtins.int"),
        (lazy, {"frame": "polars"}, "LazyFrame"),
        (expression, {"frame": "polars"}, "Expr"),
        (two_dimensional, {}, r"declare shape|shape \(4, 2\)"),
        (failing, {"frame": "polars"}, "failed on 4 rows"),
        (nothing, {}, "NoneType"),
        (all_null, {}, "only nulls"),
        (doubled, {"output": ["x", "z"]}, r"\['x', 'y'\], expected \['x', 'z'\]"),
        (doubled, {"output": "x"}, "expected"),
        (text_array, {"shape": (1,)}, "array of <U1"),
        (late, {"shape": (1,)}, r"shape \(4,\)"),
        (scalar, {"shape": (1,)}, "returned a int"),
        (embedded, {}, "TypeError"),
    ],
)
def test_wrong_results_are_refused(fn: Any, options: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        bound(fn, **options)
    assert caught.value.remedy


def changing(df: Any) -> Any:
    return df["delay"].cast(nw.Float64) + 0.5 if len(df) < 4 else df["delay"]


def narrowing(df: Any) -> Any:
    return df["delay"].cast(nw.Int8) if len(df) < 4 else df["delay"]


def nullable(df: Any) -> Any:
    return df["delay"]


def test_types_stay_what_they_were() -> None:
    with pytest.raises(DefinitionError, match=r"'changing' as double.*expected int64"):
        run(changing, cuts=[1])
    assert run(narrowing, cuts=[1])["narrowing"].type == pa.int64()
    # pandas turns integers with nulls into floats; they come back as what the sample had.
    whole = pa.table({"delay": pa.array([1, 2], pa.int64())})
    feature = Function(nullable, "delay", frame="pandas").bind(cut_table(whole)[0], ENGINE)
    out = values_of(feature, cut_table(TABLE.select(["delay"])))
    assert out["nullable"].to_pylist() == [3, 40, None, -5]
    assert out["nullable"].type == pa.int64()


def test_declared_types() -> None:
    declared = Function(late, "delay", dtypes="bool", output="late")
    assert declared.bind(cut_table(TABLE.slice(0, 0))[0], ENGINE) is declared
    assert declared.outputs(SCHEMA) == (Field("late", pa.bool_()),)
    assert run(all_null, output="x", dtypes={"x": pa.float32()})["x"].to_pylist() == [None] * 4
    wide = run(doubled, dtypes={"x": "float64"})
    assert wide.schema.types == [pa.float64(), pa.bool_()]
    with pytest.raises(DefinitionError, match="no outputs"):
        Function(late, "delay", output="late", dtypes={"other": "bool"})
    with pytest.raises(DefinitionError, match="one type for outputs"):
        Function(doubled, "delay", output=["x", "y"], dtypes="bool")
    with pytest.raises(DefinitionError, match="not known yet"):
        Function(late, "delay").outputs(SCHEMA)
    with pytest.raises(DefinitionError, match="without rows"):
        Function(late, "delay").bind(cut_table(TABLE.slice(0, 0))[0], ENGINE)


def test_arguments_are_checked() -> None:
    for options in (
        {"frame": "dask"}, {"shape": ()}, {"shape": (0,)}, {"output": []}, {"output": ["a", "a"]},
        {"shape": (2,), "output": ["a", "b"]}, {"lookback": -1}, {"params": {"x": object()}},
    ):  # fmt: skip
        with pytest.raises(DefinitionError):
            Function(late, "delay", **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="duration"):
        Function(late, "delay", lookback="1 month")
    with pytest.raises(MissingColumnError):
        Function(late, "nope").inputs(SCHEMA)
    with pytest.raises(SchemaError, match="no column"):
        Function(late, numeric()).inputs(schema_of(pa.table({"s": ["a"]})))
    tensor = TableSchema((Field("v", pa.float32(), (2,)),))
    with pytest.raises(SchemaError, match="tensors"):
        Function(late, "v").inputs(tensor)
    for fn in (lambda df: df["delay"], len, print, 3, np.mean):
        with pytest.raises(DefinitionError):
            Function(fn, "delay")  # type: ignore[arg-type]


def raising(df: Any) -> Any:
    raise RuntimeError(len(df))


def test_empty_partitions_never_reach_the_function() -> None:
    feature = Function(raising, "delay", output="x", dtypes="string")
    assert values_of(feature, cut_table(TABLE.slice(0, 0))).num_rows == 0
    with pytest.raises(DefinitionError, match="RuntimeError: 4") as caught:
        values_of(feature, cut_table(TABLE))
    assert isinstance(caught.value.__cause__, RuntimeError)


# --- history ------------------------------------------------------------------------------------------


def sum_of_last_hours(df: Any, hours: int) -> Any:
    at = df["at"].to_numpy().astype("datetime64[us]")
    x = df["x"].to_numpy()
    span = np.timedelta64(hours, "h")
    return np.array([x[(at <= t) & (at >= t - span)].sum() for t in at])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(-9, 9)), min_size=1, max_size=25),
    st.lists(st.integers(0, 25), max_size=5),
    st.sampled_from(["0s", "1h", "3h", "2d"]),
)
def test_lookback_gives_the_same_values_for_every_partitioning(
    rows: list[tuple[int, int]], cuts: list[int], lookback: str
) -> None:
    rows = sorted(rows)
    at = [dt.datetime(2020, 1, 1) + dt.timedelta(hours=hour) for hour, _ in rows]
    table = pa.table({"at": pa.array(at, pa.timestamp("us")), "x": [x for _, x in rows]})
    # A time group never straddles two partitions.
    allowed = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    where = [allowed[cut % len(allowed)] for cut in cuts] if allowed else []
    hours = {"0s": 0, "1h": 1, "3h": 3, "2d": 48}[lookback]
    feature = Function(
        sum_of_last_hours,
        ["at", "x"],
        "s",
        lookback=lookback,
        params={"hours": hours},
        dtypes="int64",
    )
    assert feature.scope is Scope.PREFIX
    assert feature.reach(schema_of(table, time="at")) == hours * 3_600_000_000
    out = values_of(feature, cut_table(table, where, time="at"))["s"].to_pylist()
    assert out == [sum(x for t, x in rows if hour - hours <= t <= hour) for hour, _ in rows]


def running_count(df: Any) -> Any:
    return np.arange(len(df))


def test_lookback_on_integer_time_and_what_it_needs() -> None:
    table = pa.table({"t": [1, 2, 5, 9], "x": [1, 1, 1, 1]})
    feature = Function(running_count, "x", "n", lookback=3, dtypes="int64")
    assert feature.inputs(schema_of(table, time="t")) == ("x", "t")
    first, second = cut_table(table, [2], time="t")
    state = feature.summarize(first, ENGINE)
    assert state["rows"].num_rows == 2
    # The row at 5 looks back to 2 and no further, whatever the state holds.
    assert feature.apply(second, state, ENGINE).frame is not None
    assert feature.apply(second, state, ENGINE).frame["n"].to_list() == [1, 2]  # type: ignore[index]
    both = feature.combine(state, feature.summarize(second, ENGINE))
    assert both["rows"]["__fs_time"].to_pylist() == [9]
    assert feature.summarize(cut_table(table.slice(0, 0), time="t")[0], ENGINE) == {}
    with pytest.raises(DefinitionError, match="no time"):
        feature.inputs(schema_of(table))
    with pytest.raises(InvalidInputError, match=r"integer|steps"):
        Function(running_count, "x", lookback="1d").inputs(schema_of(table, time="t"))


# --- finding the code again --------------------------------------------------------------------------


MODULE = """
LIMIT = 15

def helper(x):
    return x > LIMIT

def feature(df):
    return helper(df["delay"])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write, import and forget a module of user code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names: list[str] = []

    def load(name: str, text: str) -> Any:
        import importlib
        import linecache

        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def forget(function: Function) -> Function:
    """Return the feature as another process reads it from a store."""
    from featurestore.transforms import function_ref

    function_ref._loaded.clear()
    again = transformer_from_spec(json.loads(json.dumps(function.spec())))
    assert isinstance(again, Function)
    assert again.function.function is None
    return again


def test_a_stored_feature_imports_its_module_only_to_run(module: Any) -> None:
    feature = bound(module("user_features", MODULE).feature)
    del sys.modules["user_features"]
    again = forget(feature)
    assert again == feature
    assert again.fingerprint() == feature.fingerprint()
    assert again.outputs(SCHEMA) == feature.outputs(SCHEMA)
    assert again.current_code_fingerprint() is None
    assert "user_features" not in sys.modules
    assert values_of(again, cut_table(TABLE))["feature"].to_pylist() == [False, True, None, False]
    assert "user_features" in sys.modules
    assert again.current_code_fingerprint() == feature.function.code


def test_changed_code_is_refused_and_reported(module: Any) -> None:
    feature = bound(module("user_features", MODULE).feature)
    module("user_features", MODULE.replace("15", "16"))
    again = forget(feature)
    assert again.current_code_fingerprint() not in (None, feature.function.code)
    with pytest.raises(DefinitionError, match="changed"):
        values_of(again, cut_table(TABLE))
    module("user_features", "LIMIT = 3")
    assert again.current_code_fingerprint() is None
    with pytest.raises(DefinitionError, match="cannot be found"):
        values_of(again, cut_table(TABLE))


def test_a_function_inside_a_function_works_in_this_process_only() -> None:
    def local(df: Any) -> Any:
        return df["delay"]

    feature = bound(local)
    spec = json.loads(json.dumps(feature.spec()))
    again = transformer_from_spec(spec)
    assert values_of(again, cut_table(TABLE)).num_rows == 4
    assert isinstance(again, Function)
    assert again.current_code_fingerprint() == feature.function.code
    lost = forget(feature)
    assert lost.outputs(SCHEMA) == feature.outputs(SCHEMA)
    with pytest.raises(DefinitionError, match="readable but cannot be built") as caught:
        values_of(lost, cut_table(TABLE))
    assert "define it again" in caught.value.remedy


def test_two_closures_of_one_function_are_two_features() -> None:
    def above(limit: int) -> Any:
        def over(df: Any) -> Any:
            return df["delay"] > limit

        return over

    low, high = (bound(above(limit)) for limit in (1, 20))
    assert low.fingerprint() != high.fingerprint()
    for feature, expected in ((low, True), (high, False)):
        again = transformer_from_spec(feature.spec())
        assert values_of(again, cut_table(TABLE))["over"].to_pylist()[0] is expected


def test_a_feature_travels_to_a_worker() -> None:
    def local(df: Any) -> Any:
        return df["delay"]

    feature = bound(local)
    payload = cloudpickle.dumps(feature)
    from featurestore.transforms import function_ref

    function_ref._loaded.clear()
    assert values_of(cloudpickle.loads(payload), cut_table(TABLE)).num_rows == 4


@pytest.mark.parametrize(
    "reference",
    [
        None, 3, [], {}, {"module": "os"}, {"module": 1, "qualname": "x", "source": "", "code": ""},
        {"module": "a b", "qualname": "x", "source": "", "code": ""},
        {"module": "a", "qualname": "__import__('os')", "source": "", "code": ""},
    ],
)  # fmt: skip
def test_hostile_references_are_refused(reference: object) -> None:
    with pytest.raises(DefinitionError):
        FunctionRef.from_json(reference)


@pytest.mark.parametrize(
    ("name", "qualname"),
    [("os", "remove"), ("subprocess", "run"), ("builtins", "exec"), ("os.path", "join"),
     ("no_such_module_x", "f"), ("numpy", "load"), ("narwhals", "DataFrame.filter")],
)  # fmt: skip
def test_a_stored_reference_never_calls_what_it_was_not_made_from(name: str, qualname: str) -> None:
    ref = FunctionRef.from_json({"module": name, "qualname": qualname, "source": "", "code": "00"})
    with pytest.raises(DefinitionError):
        ref.resolve()
    assert "no_such_module_x" not in sys.modules


def test_feature_from_names_its_output_after_the_function() -> None:
    feature = feature_from(late, inputs=["delay"])
    assert feature.output == ("late",)
    assert feature.fingerprint() == Function(late, ["delay"], "late").fingerprint()
    assert feature.fingerprint() == feature.bind(cut_table(TABLE)[0], ENGINE).fingerprint()
    assert hash(feature) == hash(Function(late, ["delay"], "late"))
    assert feature.fingerprint() != Function(late, ["delay"], "other").fingerprint()
    assert feature.memory(SCHEMA, Extent(10, {"": 100})) >= 100


def test_parameters_are_what_they_will_be_after_a_reload() -> None:
    feature = Function(late, "delay", params={"windows": [1, 2], "span": {"a": None}})
    assert feature.params == {"windows": (1, 2), "span": {"a": None}}
    again = transformer_from_spec(json.loads(json.dumps(feature.spec())))
    assert isinstance(again, Function)
    assert again.params == feature.params
