"""Clip, Log, Bucketize, Cast, Hash, HashCross and OneHot against brute force over plain values."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Partition, Transformer

ENGINE = PolarsEngine()
M64 = 2**64
BOUNDARIES = (-2.5, 0, 1, 1000.5, 2**39 + 1)
ONE_HOT: dict[str, list[Any]] = {"s": ["a", "", "日本"], "n": [0, -3, 2**40], "b": [True, False]}


# --- brute force ----------------------------------------------------------------------------------


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def clipped(one: fs.Clip, value: Any) -> Any:
    if value is None or is_nan(value):
        return value
    low = value if one.lower is None else max(value, one.lower)
    return low if one.upper is None else min(low, one.upper)


def logarithm(one: fs.Log, value: Any) -> Any:
    if value is None or is_nan(value):
        return value
    if one.kind == "signed":
        return math.copysign(math.log1p(abs(value)), value)
    edge = -1 if one.kind == "log1p" else 0
    if value <= edge:
        return -math.inf if value == edge else math.nan
    return math.log1p(value) if one.kind == "log1p" else math.log(value)


def bucket(one: fs.Bucketize, value: Any) -> int:
    if value is None or is_nan(value):
        return 0
    side = bisect_right if one.closed == "left" else bisect_left
    return 1 + side(list(one.boundaries), value)


def cast(one: fs.Cast, value: Any) -> Any:
    if value is None:
        return None
    if one.type == "bool":
        return bool(value) if value in (0, 1) else None
    if one.type.startswith("float"):
        with np.errstate(over="ignore"):
            made = float(np.dtype(one.type).type(value))
        return None if math.isinf(made) and not math.isinf(value) else made
    limits = np.iinfo(one.type)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return int(value) if limits.min <= int(value) <= limits.max else None


def split_mix(bits: int) -> int:
    bits = (bits + 0x9E3779B97F4A7C15) % M64
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % M64
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % M64
    return bits ^ (bits >> 31)


def hash_of(value: Any) -> int:
    if isinstance(value, str):
        state = 0xCBF29CE484222325
        for byte in value.encode():
            state = ((state ^ byte) * 0x100000001B3) % M64
        return split_mix(state ^ 0x737472696E670000)
    return split_mix(int(value) % M64)


def code_of(values: Sequence[Any], buckets: int, seed: int) -> int:
    if any(one is None for one in values):
        return 0
    total = split_mix(seed)
    for one in values:
        total = split_mix(total ^ hash_of(one))
    return total % buckets + 1


# --- by contract ----------------------------------------------------------------------------------


class TestRowWise(TransformerContract):
    examples = 150
    tables_driven = 5
    tolerance = 1e-14

    def transformers(self) -> st.SearchStrategy[Transformer]:
        named: dict[str, Any] = {"prefix": st.just("o_")}
        bounds = st.sampled_from([(-1, 3), (None, 2), (-(2**39), None), (5, 5)])
        kinds = st.sampled_from(["log1p", "log", "signed"])
        numbers, discrete = st.sampled_from(["x", "n", "b"]), st.sampled_from(["s", "n", "b"])
        buckets, seeds = st.sampled_from([1, 7, 10_000]), st.integers(0, 3)
        types = st.sampled_from(["bool", "int8", "int64", "uint8", "uint64", "float32", "float64"])
        return st.one_of(
            st.builds(lambda one, two: fs.Clip(one, *two, prefix="o_"), numbers_only(), bounds),
            st.builds(fs.Log, st.just("x"), kinds, **named),
            st.builds(
                fs.Bucketize, numbers, st.just(BOUNDARIES), closed=st.sampled_from(["left", "right"]),
                **named,
            ),
            st.builds(fs.Cast, numbers, types, overflow=st.just("null"), **named),
            st.builds(fs.Hash, discrete, buckets, seed=seeds, **named),
            st.builds(fs.HashCross, st.sampled_from([["s", "n"], ["b", "s", "g"]]), buckets, seed=seeds),
            st.sampled_from(["s", "n", "b"]).map(lambda one: fs.OneHot(one, ONE_HOT[one])),
        )  # fmt: skip

    def expected(
        self, transformer: Any, rows: Sequence[Row], other: Sequence[Row]
    ) -> Mapping[str, Sequence[Any]]:
        one = transformer
        columns = [one.columns] if isinstance(one.columns, str) else list(one.columns)
        if isinstance(one, fs.HashCross):
            values = [[row[name] for name in columns] for row in rows]
            return {"_x_".join(columns): [code_of(v, one.buckets, one.seed) for v in values]}
        (column,) = columns
        plain = [row[column] for row in rows]
        if isinstance(one, fs.OneHot):
            return {
                f"{column}_{c}": [v is not None and v == c for v in plain] for c in one.categories
            }
        if isinstance(one, fs.Hash):
            return {f"o_{column}": [code_of([v], one.buckets, one.seed) for v in plain]}
        made: dict[type, Callable[[Any, Any], Any]] = {
            fs.Clip: clipped, fs.Log: logarithm, fs.Bucketize: bucket, fs.Cast: cast,
        }  # fmt: skip
        return {f"o_{column}": [made[type(one)](one, value) for value in plain]}


def numbers_only() -> st.SearchStrategy[str]:
    return st.sampled_from(["x", "n"])


# --- single cases ---------------------------------------------------------------------------------


def run(one: Transformer, values: Sequence[Any], type_: Any) -> list[Any]:
    table = pa.table({"x": pa.array(values, type_)})
    schema = oracles.schema_of(table)
    return list(oracles.run_partitioned(one, [table], schema, ENGINE).column(0).to_pylist())


def test_clip_compares_integers_exactly_and_knows_their_types() -> None:
    big = [2**62, 2**62 + 1, 2**62 + 2]
    assert run(fs.Clip("x", upper=2**62 + 1), big, pa.int64()) == [2**62, 2**62 + 1, 2**62 + 1]
    assert run(fs.Clip("x", -1000, 1000), [-128, 127], pa.int8()) == [-128, 127]
    assert run(fs.Clip("x", 2**63, None), [2**63 - 1, 2**64 - 1], pa.uint64()) == [2**63, 2**64 - 1]
    assert run(fs.Clip("x", 0.0, math.inf), [-math.inf, math.inf], pa.float32()) == [0.0, math.inf]
    with pytest.raises(DefinitionError, match="type float at 1e\\+300"):
        run(fs.Clip("x", upper=1e300), [1.0], pa.float32())
    schema = oracles.schema_of(pa.table({"x": pa.array([1], pa.int8()), "b": [True]}))
    for bounds in ((0.5, None), (1000, None), (None, -1000)):
        with pytest.raises(DefinitionError, match="cannot cut column 'x' of type int8"):
            fs.Clip("x", *bounds).outputs(schema)
    with pytest.raises(SchemaError, match="'b' is bool"):
        fs.Clip("b", 0, 1).outputs(schema)


def test_logarithms_of_other_types() -> None:
    for type_ in (pa.int64(), pa.uint8(), pa.float32(), pa.bool_()):
        values = [0, 1, None] if type_ != pa.bool_() else [False, True, None]
        assert run(fs.Log("x"), values, type_) == [0.0, float(np.float32(math.log(2))), None]
    out = run(fs.Log("x", "log"), [2**62], pa.int64())
    assert out == [pytest.approx(62 * math.log(2), rel=1e-7)]


def test_buckets_equal_those_of_pandas_and_are_exact() -> None:
    values = np.random.default_rng(1).normal(size=2000).tolist()
    for closed in ("left", "right"):
        edges = [-math.inf, -1.0, 0.0, 0.25, math.inf]
        wanted = pd.cut(values, edges, right=closed == "right", labels=False) + 1
        assert (
            run(fs.Bucketize("x", edges[1:-1], closed=closed), values, pa.float64())
            == wanted.tolist()
        )
    far = [2**62, 2**62 + 1, 2**62 + 2]
    assert run(fs.Bucketize("x", [2**62 + 1]), far, pa.int64()) == [1, 2, 2]
    assert run(fs.Bucketize("x", [2**62 + 1], closed="right"), far, pa.int64()) == [1, 1, 2]
    assert run(fs.Bucketize("x", [-1e9, 0.5, 1e9]), [-128, 0, 1], pa.int8()) == [2, 2, 3]
    wide = fs.Bucketize("x", [0, 2**63])
    assert run(wide, [0, 2**63 - 1, 2**63], pa.uint64()) == [2, 2, 3]
    assert run(fs.Bucketize("x", [0.5]), [False, True, None], pa.bool_()) == [1, 2, 0]


def test_casts_refuse_what_does_not_fit() -> None:
    with pytest.raises(InvalidInputError, match="'x' holds 300, which int8 cannot hold"):
        run(fs.Cast("x", "int8"), [1, 300], pa.int64())
    with pytest.raises(InvalidInputError, match="'x' holds nan"):
        run(fs.Cast("x", "int8"), [1.0, math.nan], pa.float64())
    assert run(fs.Cast("x", "int8"), [1, None], pa.int64()) == [1, None]
    edges = [-(2.0**63), 2.0**63, -128.9, 127.9, 128.0]
    assert run(fs.Cast("x", "int64", overflow="null"), edges[:2], pa.float64()) == [-(2**63), None]
    assert run(fs.Cast("x", "int8", overflow="null"), edges[2:], pa.float64()) == [-128, 127, None]
    assert run(fs.Cast("x", "uint64", overflow="null"), [2.0**64, 2.0**63], pa.float64()) == [
        None,
        2**63,
    ]
    largest = float(np.finfo(np.float32).max)
    floats = [largest, math.nextafter(largest, math.inf), 3.5e38, math.inf]
    cast = run(fs.Cast("x", "float32", overflow="null"), floats, pa.float64())
    assert cast == [largest, largest, None, math.inf]


def test_hashes_are_the_same_for_other_widths_and_long_texts() -> None:
    for type_ in (pa.int8(), pa.uint16(), pa.int64()):
        assert run(fs.Hash("x", 1000), [5, None], type_) == [code_of([5], 1000, 0), 0]
    texts = ["long " * 40, "other " * 40] * 50
    assert run(fs.Hash("x", 99, seed=7), texts, pa.string()) == [code_of([t], 99, 7) for t in texts]


def test_one_hot_equals_that_of_polars_and_comes_as_a_tensor() -> None:
    values = ["a", "b", None, "a", "c"]
    frame = pl.DataFrame({"x": values})
    part = Partition(
        ENGINE.from_arrow(pa.table({"x": values})),
        oracles.schema_of(pa.table({"x": values})),
    )
    wanted = frame.to_dummies().select("x_a", "x_b")
    made = fs.OneHot("x", ["a", "b"]).apply(part, {}, ENGINE).frame
    assert made is not None
    assert made.to_native().cast(pl.UInt8).equals(wanted)
    tensor = fs.OneHot("x", ["a", "b"], tensor=True)
    (field,) = tensor.outputs(part.schema)
    assert (field.name, str(field.type), field.shape) == ("x_one_hot", "uint8", (2,))
    out = tensor.apply(part, {}, ENGINE)
    assert out.frame is None
    assert out.tensors["x_one_hot"].tolist() == wanted.to_numpy().tolist()
    assert run(fs.OneHot("x", [300]), [44, None], pa.uint8()) == [False, False]


def test_codes_are_known_to_datasets() -> None:
    table = pa.table({"x": [1.0], "s": ["a"]})
    part = Partition(ENGINE.from_arrow(table), oracles.schema_of(table))
    steps = [fs.HashCross(["s", "s2"], 50), fs.Bucketize("x", [0, 1]), fs.Hash("s", 9)]
    steps.insert(0, fs.Hash("s", 20, rename={"s": "s2"}))
    fitted = fs.Pipeline(*steps).fit_partitions([part], ENGINE)
    assert fitted.cardinalities() == {"s2": 21, "s_x_s2": 51, "x": 4, "s": 10}
    with pytest.raises(DefinitionError, match="code"):
        fs.Pipeline(fs.Hash("s", 9), fs.Clip("s", 1, 2)).fit_partitions([part], ENGINE)


def test_stored_codes_are_known_to_datasets() -> None:
    store = fs.FeatureStore.create("memory://row-wise")
    table = store.ingest("rows", pa.table({"k": ["a", "b"], "x": [1.0, 2.0]}), key="k")
    table.add(fs.Hash("k", 9, suffix="_hash"))
    assert table.cardinalities("k_hash") == {"k_hash": 10}


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.Clip("x"),
        lambda: fs.Clip("x", 2, 1),
        lambda: fs.Clip("x", math.nan),
        lambda: fs.Log("x", "log2"),
        lambda: fs.Bucketize("x", []),
        lambda: fs.Bucketize("x", [1, 1]),
        lambda: fs.Bucketize("x", [0, math.inf]),
        lambda: fs.Bucketize("x", [1], closed="both"),
        lambda: fs.Cast("x", "string"),
        lambda: fs.Cast("x", "int8", overflow="wrap"),
        lambda: fs.Hash("x", 0),
        lambda: fs.Hash("x", 5, seed=-1),
        lambda: fs.HashCross(["x", "y"], 2**31),
        lambda: fs.OneHot("x", []),
        lambda: fs.OneHot("x", "ab"),
        lambda: fs.OneHot("x", [1, "a"]),
        lambda: fs.OneHot("x", ["a", "a"]),
        lambda: fs.OneHot("x", [1.5]),  # type: ignore[list-item]
    ],
    ids=range(18),
)
def test_what_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(DefinitionError):
        make()


def test_columns_that_are_refused() -> None:
    table = pa.table({"x": [1.0], "s": ["a"], "n": [1]})
    schema = oracles.schema_of(table)
    wrong: list[tuple[Transformer, str]] = [
        (fs.Log("s"), "'s' is string"),
        (fs.Bucketize("s", [1]), "'s' is string"),
        (fs.Cast("s"), "'s' is string"),
        (fs.Hash("x"), "'x' is double"),
        (fs.HashCross(["s", "x"]), "'x' is double"),
        (fs.OneHot("n", ["a"]), "'n' is int64, and OneHot has categories of str"),
    ]
    for one, message in wrong:
        with pytest.raises(SchemaError, match=message):
            one.outputs(schema)
    with pytest.raises(DefinitionError, match="two or more"):
        fs.HashCross(["s"]).outputs(schema)
