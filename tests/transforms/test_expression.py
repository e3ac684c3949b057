"""Expression: values, what is refused and why, and that stored expressions are data."""

# ruff: noqa: DTZ001 - naive timestamps are among the inputs
from __future__ import annotations

import datetime as dt
import json
import math
import zoneinfo
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import (
    DefinitionError,
    FeatureStoreError,
    MissingColumnError,
    NotPartitionIndependentError,
    SchemaError,
)
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import cut_table, schema_of, values_of
from featurestore.transforms.base import Scope, decode, transformer_from_spec
from featurestore.transforms.expression import Expression
from featurestore.transforms.expression_json import MAX_DEPTH, StoredExpression
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes

TABLE = pa.table(
    {
        "a": pa.array([1, 2, None, -4], pa.int64()),
        "b": pa.array([2.0, 0.0, 5.0, math.nan], pa.float64()),
        "s": pa.array(["x", "Größe", None, ""], pa.string()),
        "at": pa.array([0, 86_400_000_000, None, -1], pa.timestamp("us")),
        "flag": pa.array([True, None, False, True]),
    }
)
SCHEMA = schema_of(TABLE)

STORABLE = {
    "arithmetic": (nw.col("a") * 2 + 1) / nw.col("b") - nw.col("a") % 3,
    "reversed": 1 / nw.col("b") + (2 - nw.col("a")) ** 2,
    "comparison": (nw.col("a") > 1) & ~(nw.col("b") <= 2.5) | (nw.col("s") == "x"),
    "functions": nw.col("b").abs().sqrt().log().exp().round(3).clip(0, nw.col("a")),
    "trigonometry": nw.col("b").sin() + nw.col("a").cos(),
    "missing": nw.col("a").fill_null(0) + nw.col("b").fill_nan(1.0).is_null().cast(nw.Int64),
    "choice": nw.when(nw.col("a") > 1, nw.col("b") > 1).then(nw.lit("hi")).otherwise(nw.col("s")),
    "chain": nw.when(nw.col("a") > 1).then(1).when(nw.col("a") < 0).then(-1).otherwise(0),
    "open choice": nw.when(nw.col("a") > 1).then(nw.col("b")),
    "horizontal": nw.sum_horizontal("a", nw.col("b")) + nw.max_horizontal(nw.col("a", "b")),
    "any": nw.any_horizontal("flag", nw.col("a") > 0, ignore_nulls=True),
    "coalesce": nw.coalesce(nw.col("a"), nw.lit(7)),
    "text": nw.concat_str("s", nw.lit("-"), nw.col("s").str.to_uppercase(), separator="/"),
    "text functions": nw.col("s").str.replace_all("r", "l").str.strip_chars().str.len_chars(),
    "text tests": nw.col("s").str.contains("^x") | nw.col("s").str.starts_with("G"),
    "membership": nw.col("a").is_in([1, 2, None]) | nw.col("s").is_in({"x", "y"}),
    "between": nw.col("a").is_between(0, nw.col("b"), closed="left"),
    "close": nw.col("a").is_close(nw.col("b"), rel_tol=0.1),
    "mapping": nw.col("s").replace_strict({"x": 1, "": 2}, default=None, return_dtype=nw.Int8),
    "time": nw.col("at").dt.convert_time_zone("Europe/Paris").dt.hour(),
    "offset": nw.col("at").dt.offset_by("1d").dt.truncate("1h").cast(nw.Datetime("ms")),
    "moments": nw.col("at") > dt.datetime(1970, 1, 1, 12),
    "spans": (nw.col("at") - dt.datetime(1970, 1, 1)) > dt.timedelta(hours=2),
    "dates": nw.col("at").dt.date() == dt.date(1970, 1, 2),
    "infinite": nw.col("b") < math.inf,
    "numpy": nw.col("a") + np.int64(3),
    "constant": nw.lit(3, dtype=nw.Float32),
    "inner alias": nw.col("a").alias("z") + 1,
}


@pytest.mark.parametrize("name", STORABLE)
def test_round_trip_gives_the_same_values(name: str) -> None:
    expression = Expression(out=STORABLE[name])
    again = transformer_from_spec(json.loads(json.dumps(expression.spec())))
    assert again == expression
    assert hash(again) == hash(expression)
    assert again.fingerprint() == expression.fingerprint()
    direct = cut_table(TABLE)[0].frame.with_columns(out=STORABLE[name])
    expected = direct.select("out").to_arrow()["out"].to_pylist()
    for cuts in ([], [1], [0, 2, 4]):
        found = values_of(again, cut_table(TABLE, cuts))["out"].to_pylist()
        assert str(found) == str(expected)


REFUSED = {
    "shift": nw.col("a").shift(1), "diff": nw.col("a").diff(), "cum_sum": nw.col("a").cum_sum(),
    "mean": nw.col("a") - nw.col("a").mean(), "max": nw.col("a").max(), "len": nw.len(),
    "over": nw.col("a").sum().over("s"), "rank": nw.col("a").rank(),
    "filter": nw.col("a").filter(nw.col("a") > 1), "drop_nulls": nw.col("a").drop_nulls(),
    "unique": nw.col("a").unique(), "rolling_mean": nw.col("a").rolling_mean(3),
    "ewm_mean": nw.col("b").ewm_mean(com=1), "fill_null": nw.col("a").fill_null(strategy="forward"),
    "is_unique": nw.col("a").is_unique(), "quantile": nw.col("b").quantile(0.5, "linear"),
    "std": nw.when(nw.col("a") > nw.col("a").std()).then(1), "corr": nw.corr("a", "b"),
    "str.to_datetime": nw.col("s").str.to_datetime(),
    "nested mean": nw.sum_horizontal("a", nw.col("b") / nw.col("b").sum()),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_looks_at_other_rows_is_refused(name: str) -> None:
    with pytest.raises(NotPartitionIndependentError) as caught:
        Expression(out=REFUSED[name])
    assert caught.value.remedy
    if " " not in name:
        assert name in caught.value.problem


@pytest.mark.parametrize(
    "expression",
    [
        nw.all(), nw.nth(0), nw.exclude("a"), nw.col("a", "b"), nw.col("b") + nw.col("a", "b"),
        nw.selectors.numeric(), nw.col("a").cast(nw.Categorical), nw.lit(object()),
        nw.col("a") + dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))),
        nw.col("a").name.suffix("x"), "a", 3, None,
    ],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused(expression: Any) -> None:
    with pytest.raises(DefinitionError) as caught:
        Expression(out=expression)
    assert caught.value.remedy


def test_names() -> None:
    both = Expression(nw.col("a").alias("x"), y=nw.col("b"))
    assert [one.name for one in both.outputs(SCHEMA)] == ["x", "y"]
    with pytest.raises(DefinitionError, match="no name"):
        Expression(nw.col("a"))
    with pytest.raises(DefinitionError, match="twice"):
        Expression(nw.col("a").alias("x"), x=nw.col("b"))
    with pytest.raises(DefinitionError, match="no column"):
        Expression()


def test_inputs_and_types() -> None:
    assert Expression(x=STORABLE["horizontal"]).inputs(SCHEMA) == ("a", "b")
    assert Expression(x=STORABLE["text"]).inputs(SCHEMA) == ("s",)
    assert Expression(x=nw.col("s") == "a").inputs(SCHEMA) == ("s",)
    (out,) = Expression(x=nw.col("a") > 1).outputs(SCHEMA)
    assert out == Field("x", pa.bool_())
    (out,) = Expression(x=nw.col("at").dt.date()).outputs(SCHEMA)
    assert out.type == pa.date32()
    with pytest.raises(MissingColumnError):
        Expression(x=nw.col("nope") + 1).inputs(SCHEMA)
    with pytest.raises(DefinitionError, match="failed on columns"):
        Expression(x=nw.col("s") + nw.col("a")).outputs(SCHEMA)
    with pytest.raises(DefinitionError, match="no type"):
        Expression(x=nw.lit(None)).outputs(SCHEMA)
    tensors = TableSchema((Field("v", pa.float32(), (2,)),))
    with pytest.raises(SchemaError, match="tensor"):
        Expression(x=nw.col("v")).inputs(tensors)


def test_a_constant_has_a_value_in_every_row() -> None:
    constant = Expression(one=nw.lit(1))
    assert constant.inputs(SCHEMA) == ("a",)
    assert values_of(constant, cut_table(TABLE, [1]))["one"].to_pylist() == [1, 1, 1, 1]
    assert values_of(constant, cut_table(TABLE.slice(0, 0)))["one"].to_pylist() == []
    timed = TableSchema((Field("x", pa.int64()), Field("t", pa.int64())), ("x",), "t")
    assert constant.inputs(timed) == ("t",)


def test_an_output_may_have_an_inputs_name() -> None:
    swapped = values_of(Expression(a=nw.col("b"), b=nw.col("a")), cut_table(TABLE))
    assert swapped["b"].to_pylist() == [1, 2, None, -4]


def test_null_and_division_rules() -> None:
    both = Expression(
        whole=nw.col("a") // nw.lit(0),
        real=nw.col("a") / nw.col("b"),
        sum=nw.col("a") + nw.col("b"),
    )
    out = values_of(both, cut_table(TABLE))
    assert out["whole"].to_pylist() == [None] * 4
    assert out["real"].to_pylist()[:3] == [0.5, math.inf, None]
    assert out["sum"].to_pylist()[2] is None


numbers = st.one_of(st.none(), st.floats(), st.sampled_from([math.nan, math.inf, 0.0, -0.0]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(numbers, numbers), max_size=12), st.lists(st.integers(0, 12), max_size=3))
def test_against_numpy(rows: list[tuple[float | None, float | None]], cuts: list[int]) -> None:
    x, y = ([row[i] for row in rows] for i in (0, 1))
    table = pa.table({"x": pa.array(x, pa.float64()), "y": pa.array(y, pa.float64())})
    ratio = Expression(r=nw.col("x") / nw.col("y"), d=(nw.col("x") - nw.col("y")).abs())
    out = values_of(ratio, cut_table(table, cuts))
    for i, (a, b) in enumerate(rows):
        if a is None or b is None:
            assert out["r"][i].as_py() is None
            assert out["d"][i].as_py() is None
            continue
        with np.errstate(all="ignore"):
            expected = np.float64(a) / np.float64(b), np.abs(np.float64(a) - np.float64(b))
        for name, want in zip("rd", expected, strict=True):
            np.testing.assert_equal(out[name][i].as_py(), want)


def test_scope() -> None:
    assert Expression(x=nw.col("a")).scope is Scope.NONE


def test_it_takes_what_its_operations_hold_at_once() -> None:
    sum_ = Expression(x=nw.col("a") + 1)
    rounding = rounding_bytes(sum_.outputs(SCHEMA), 5000)
    assert 0 < rounding < 80_000
    assert sum_.memory(SCHEMA, Extent(5000, {"a": 40_000})) == 80_000 + rounding


# --- hostile definitions --------------------------------------------------------------------------

COL = {"op": "col", "kwargs": {"names": ["a"]}}
HOSTILE: list[Any] = [
    None, [], "x", [1], [{}], [{"op": 1}], [{"op": "map_batches"}],
    [COL, {"op": "map_batches", "kwargs": {"function": "os.system"}}],
    [COL, {"op": "__class__"}], [COL, {"op": "__init__"}], [COL, {"op": "_nodes"}],
    [COL, {"op": "name.map", "kwargs": {"function": "print"}}], [COL, {"op": "pipe"}],
    [COL, {"op": "dt.__class__"}], [COL, {"op": "str.__class__.__mro__"}],
    [COL, {"op": "fill_null", "kwargs": {"strategy": "forward", "limit": None}}],
    [COL, {"op": "shift", "kwargs": {"n": 1}}], [COL, {"op": "over"}], [COL, {"op": "mean"}],
    [COL, {"op": "abs", "kwargs": {"kind": 1}}], [COL, {"op": "abs", "kwargs": {"exprs": []}}],
    [COL, {"op": "abs", "kwargs": [1]}], [COL, {"op": "abs", "args": "a"}],
    [COL, {"op": "str.to_datetime", "kwargs": {"format": None}}],
    [{"op": "abs"}], [COL, COL], [{"op": "col"}], [{"op": "col", "kwargs": {"names": [1]}}],
    [{"op": "col", "kwargs": {"names": "a"}}], [{"op": "nth", "kwargs": {"indices": [0]}}],
    [COL, {"op": "__add__", "args": [{"$nodes": []}]}],
    [COL, {"op": "__add__", "args": [{"$nodes": [{"op": "len"}]}]}],
    [COL, {"op": "__add__", "args": [{"$eval": "1"}]}],
    [COL, {"op": "__add__", "args": [{"a": 1, "b": 2}]}],
    [COL, {"op": "cast", "kwargs": {"dtype": {"$dtype": "Enum"}}}],
    [COL, {"op": "cast", "kwargs": {"dtype": {"$dtype": ["Datetime", "years"]}}}],
    [COL, {"op": "cast", "kwargs": {"dtype": {"$dtype": ["from_native", "x"]}}}],
    [COL, {"op": "cast", "kwargs": {"dtype": {"$dtype": 5}}}],
    [{"op": "lit", "kwargs": {"value": {"$datetime": ["x", 0, None]}, "dtype": None}}],
    [{"op": "lit", "kwargs": {"value": {"$datetime": ["2020-01-01", 0, "../etc"]}, "dtype": None}}],
    [{"op": "lit", "kwargs": {"value": {"$timedelta": 10**30}, "dtype": None}}],
    [{"op": "lit", "kwargs": {"value": {"$float": "abc"}, "dtype": None}}],
]  # fmt: skip


@pytest.mark.parametrize("nodes", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_nodes_are_refused(nodes: Any) -> None:
    with pytest.raises(FeatureStoreError):
        decode({"$expression": nodes})


@pytest.mark.parametrize(
    "definitions", [None, 5, "x", [["a"]], [["a", "b"]], [[1, {"$expression": [COL]}]]]
)
def test_hostile_specs_are_refused_when_used(definitions: Any) -> None:
    spec = {"kind": "Expression", "version": 1, "params": {"definitions": definitions}}
    with pytest.raises(FeatureStoreError):
        transformer_from_spec(spec).inputs(SCHEMA)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 20_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    nodes: list[Any] = [COL]
    for _ in range(depth):
        nodes = [COL, {"op": "__add__", "args": [{"$nodes": nodes}]}]
    with pytest.raises(DefinitionError):
        StoredExpression.from_json(nodes)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["op", "args", "kwargs", "$nodes", "names", "$dtype", "$float", "x"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(json_values)
def test_any_json_is_an_expression_or_a_clear_error(value: Any) -> None:
    try:
        stored = StoredExpression.from_json(value)
    except FeatureStoreError:
        return
    assert StoredExpression.of(stored.rebuild()) == stored


def test_time_zones_survive() -> None:
    moment = dt.datetime(2020, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))
    stored = StoredExpression.of(nw.lit(moment))
    (node,) = StoredExpression.from_json(stored.to_json()).rebuild()._nodes
    assert node.kwargs["value"] == moment
    assert node.kwargs["value"].utcoffset() == dt.timedelta(hours=1)
