"""Standardize: accuracy against exact arithmetic, and the same values for every partitioning."""

from __future__ import annotations

import decimal
import math
from fractions import Fraction
from functools import reduce

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.selection import get_engine
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FormatError,
    MissingColumnError,
    SchemaError,
)
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import as_floats, cut_table, learn, schema_of, values_of
from featurestore.transforms.base import Scope, State, transformer_from_spec
from featurestore.transforms.impute import Impute
from featurestore.transforms.moments import Moments, combine_moments, summarize_moments
from featurestore.transforms.selectors import numeric
from featurestore.transforms.standardize import Standardize

ENGINE = get_engine("polars")
# Squares of deviations below 1e-154 underflow, as documented.
finite = st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-100 else 0.0)
cells = st.one_of(st.none(), finite, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e12]))
cuts = st.lists(st.integers(0, 40), max_size=5)


def exact_moments(values: list[float]) -> tuple[float, float]:
    """Mean and population standard deviation in rational arithmetic."""
    kept = [Fraction(v) for v in values if v is not None and math.isfinite(v)]
    mean = sum(kept, Fraction()) / len(kept)
    variance = sum(((v - mean) ** 2 for v in kept), Fraction()) / len(kept)
    # Scaled before the root, so that a tiny variance keeps its digits.
    shift = 2**2000
    root = math.isqrt(variance.numerator * shift // variance.denominator)
    return float(mean), float(Fraction(root, 2**1000))


def moments_of(values: list[float | None], where: list[int]) -> Moments:
    table = pa.table({"x": pa.array(values, pa.float64())})
    states = [summarize_moments(one, ["x"], ENGINE) for one in cut_table(table, where)]
    empty: State = {}
    return Moments.from_state(reduce(combine_moments, states, empty))


@settings(deadline=None, max_examples=100)
@given(st.lists(cells, min_size=1, max_size=40), cuts)
def test_moments_are_exact_for_every_partitioning(
    values: list[float | None], where: list[int]
) -> None:
    found = moments_of(values, where)
    present = [v for v in values if v is not None]
    kept = [v for v in present if math.isfinite(v)]
    assert found.counts["count"][0] == len(kept)
    assert found.counts["nulls"][0] == len(values) - len(present)
    assert found.counts["nans"][0] == sum(math.isnan(v) for v in present)
    assert found.counts["infinities"][0] == sum(math.isinf(v) for v in present)
    if not kept:
        assert found.mean[0][0] == 0
        return
    mean, deviation = exact_moments(kept)
    size = max(abs(v) for v in kept)
    assert found.mean[0][0] == pytest.approx(mean, rel=1e-15, abs=1e-15 * size)
    assert found.deviation()[0] == pytest.approx(deviation, rel=1e-12)
    assert (found.smallest[0], found.largest[0]) == (min(kept), max(kept))


@settings(deadline=None, max_examples=60)
@given(st.lists(cells, max_size=40), cuts, cuts)
def test_every_partitioning_gives_the_same_values(
    values: list[float | None], one: list[int], other: list[int]
) -> None:
    table = pa.table({"x": pa.array(values, pa.float64()), "y": pa.array(values, pa.float32())})
    scale = Standardize(numeric())
    a, b = (values_of(scale, cut_table(table, where)) for where in (one, other))
    for name in ("x", "y"):
        assert a[name].is_null().equals(b[name].is_null())
        np.testing.assert_allclose(as_floats(a[name]), as_floats(b[name]), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(cells, min_size=1, max_size=40), cuts)
def test_values_against_exact_arithmetic(values: list[float | None], where: list[int]) -> None:
    table = pa.table({"x": pa.array(values, pa.float64())})
    out = values_of(Standardize("x"), cut_table(table, where))["x"].to_pylist()
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if not kept:
        assert out == [None] * len(values)
        return
    mean, deviation = exact_moments(kept)
    divisor = deviation or 1.0
    for value, found in zip(values, out, strict=True):
        if value is None:
            assert found is None
        elif not math.isfinite(value):
            np.testing.assert_equal(found, value)
        else:
            expected = float((Fraction(value) - Fraction(mean)) / Fraction(divisor))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("pieces", [1, 2, 7, 100])
def test_a_mean_far_larger_than_the_deviation(ratio: float, pieces: int) -> None:
    rng = np.random.default_rng(3)
    # A drift between partitions, so that merging has to get the difference of means right.
    x = ratio + rng.normal(size=5000) + np.linspace(0, 3, 5000)
    where = [5000 * i // pieces for i in range(1, pieces)]
    found = moments_of(x.tolist(), where)
    mean, deviation = exact_moments(x.tolist())
    assert found.deviation()[0] == pytest.approx(deviation, rel=1e-9)
    assert found.mean[0][0] == pytest.approx(mean, rel=1e-15)
    whole = moments_of(x.tolist(), [])
    assert found.deviation()[0] == pytest.approx(whole.deviation()[0], rel=1e-13)
    pair = found.mean[0][0] - whole.mean[0][0] + (found.mean[1][0] - whole.mean[1][0])
    assert abs(pair) <= 1e-13 * deviation


@settings(deadline=None, max_examples=40)
@given(*[st.lists(cells, max_size=15)] * 3)
def test_combine_is_associative_and_has_an_identity(
    a: list[float | None], b: list[float | None], c: list[float | None]
) -> None:
    scale = Standardize("x")
    tables = [pa.table({"x": pa.array(one, pa.float64())}) for one in (a, b, c)]
    x, y, z = (scale.summarize(cut_table(one)[0], ENGINE) for one in tables)
    left = Moments.from_state(scale.combine(scale.combine(x, y), z))
    right = Moments.from_state(scale.combine(x, scale.combine(y, z)))
    np.testing.assert_allclose(left.mean[0], right.mean[0], rtol=1e-14, atol=1e-9)
    np.testing.assert_allclose(left.m2[0], right.m2[0], rtol=1e-14, atol=1e-300)
    assert scale.combine({}, x) == x == scale.combine(x, {})
    assert scale.combine({}, {}) == {}


@pytest.mark.parametrize("value", [0.1, 0.0, 1e300, -3e-310, 123456789.123])
@pytest.mark.parametrize("pieces", [[], [1], [1, 2, 5]])
def test_constant_columns_give_zero(value: float, pieces: list[int]) -> None:
    table = pa.table({"x": [value] * 7 + [None]})
    out = values_of(Standardize("x"), cut_table(table, pieces))["x"].to_pylist()
    assert out == [0.0] * 7 + [None]


def test_types() -> None:
    table = pa.table(
        {
            "i": pa.array([1, 3], pa.int32()),
            "u": pa.array([0, 2**63], pa.uint64()),
            "f": pa.array([1.0, 3.0], pa.float32()),
            "d": pa.array([1.0, 3.0], pa.float64()),
            "b": pa.array([False, True]),
            "m": pa.array([decimal.Decimal("1.5"), decimal.Decimal("2.5")], pa.decimal128(5, 1)),
        }
    )
    out = values_of(Standardize(numeric()), cut_table(table, [1]))
    names = [str(one.type) for one in out.schema]
    assert names == ["float", "float", "float", "double", "float", "double"]
    for column in out.columns:
        assert column.to_pylist() == [-1.0, 1.0]


def test_another_fit_scope_and_names() -> None:
    table = pa.table({"x": [1.0, 3.0, 100.0], "y": [0, 0, 5]})
    scale = Standardize(["x", "y"], suffix="_std", rename={"y": "z"})
    state = learn(scale, cut_table(table.slice(0, 2)))
    out = values_of(scale, cut_table(table, [1]), state)
    assert out.to_pydict() == {"x_std": [-1.0, 1.0, 98.0], "z": [0.0, 0.0, 5.0]}
    assert scale.scope is Scope.FIT
    with pytest.raises(DefinitionError, match="does not produce"):
        Standardize("x", rename={"q": "z"}).outputs(schema_of(table))
    with pytest.raises(DefinitionError, match="more than once"):
        Standardize(["x", "y"], rename={"x": "y"}).outputs(schema_of(table))


def test_what_is_refused() -> None:
    schema = TableSchema((Field("s", pa.string()), Field("v", pa.float32(), (2,))))
    for name in ("s", "v"):
        with pytest.raises(SchemaError, match="numeric"):
            Standardize(name).inputs(schema)
    with pytest.raises(MissingColumnError):
        Standardize("x").inputs(schema)
    with pytest.raises(DefinitionError, match="nothing to learn"):
        Standardize("x").finish({})
    with pytest.raises(DefinitionError, match="exceeds float64"):
        values_of(Standardize("x"), cut_table(pa.table({"x": [1e200, -1e200]}), [1]))
    a, b = (summarize_moments(cut_table(pa.table({n: [1.0]}))[0], [n], ENGINE) for n in "ab")
    with pytest.raises(CorruptionError, match="merged"):
        combine_moments(a, b)


def test_no_columns_and_no_rows() -> None:
    text = pa.table({"s": ["a"]})
    scale = Standardize(numeric())
    assert scale.outputs(schema_of(text)) == ()
    state = learn(scale, cut_table(text))
    assert scale.apply(cut_table(text)[0], state, ENGINE).frame is None
    empty = pa.table({"x": pa.array([], pa.float64())})
    assert values_of(Standardize("x"), cut_table(empty, [0, 0])).num_rows == 0


def test_one_state_serves_several_transformers() -> None:
    assert Standardize("x").state_fingerprint() == Impute("x", suffix="_f").state_fingerprint()
    assert Standardize("x").state_fingerprint() != Standardize("y").state_fingerprint()
    assert Standardize("x").fingerprint() != Standardize("x", suffix="_s").fingerprint()


def test_hostile_specs_do_not_run() -> None:
    for columns in (5, None, {"a": "b"}, [["x"]], True):
        spec = {"kind": "Standardize", "version": 1, "params": {"columns": columns}}
        with pytest.raises((SchemaError, DefinitionError)):
            transformer_from_spec(spec).inputs(schema_of(pa.table({"x": [1.0]})))


def test_incomplete_specs_are_refused() -> None:
    for spec in ({"kind": "Standardize"}, {"kind": "Standardize", "version": 1}, {}):
        with pytest.raises(FormatError):
            transformer_from_spec(spec)
    with pytest.raises(FormatError, match="lacks its parameter"):
        transformer_from_spec({"kind": "Rolling", "version": 1, "params": {}})


def test_large_random_columns_against_numpy() -> None:
    rng = np.random.default_rng(0)
    x = rng.lognormal(3, 2, 200_000)
    out = values_of(Standardize("x"), cut_table(pa.table({"x": x}), [3, 70_000, 150_001]))
    np.testing.assert_allclose(out["x"].to_numpy(), (x - x.mean()) / x.std(), rtol=1e-9, atol=1e-12)
