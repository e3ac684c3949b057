"""Impute: what counts as missing, what is filled in, and what cannot be."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.selection import get_engine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import as_floats, cut_table, learn, schema_of, values_of
from featurestore.transforms.base import Scope, transformer_from_spec
from featurestore.transforms.impute import Impute
from featurestore.transforms.selectors import everything, numeric, strings

ENGINE = get_engine("polars")
cells = st.one_of(st.none(), st.floats(-1e9, 1e9), st.sampled_from([math.nan, math.inf, -math.inf]))
cuts = st.lists(st.integers(0, 30), max_size=4)


@settings(deadline=None, max_examples=80)
@given(st.lists(cells, max_size=30), cuts)
def test_mean_of_floats(values: list[float | None], where: list[int]) -> None:
    table = pa.table({"x": pa.array(values, pa.float64())})
    fill = Impute("x", indicator=True)
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if not kept:
        with pytest.raises(DefinitionError, match=r"\['x'\] have no value"):
            learn(fill, cut_table(table, where))
        return
    out = values_of(fill, cut_table(table, where))
    mean = math.fsum(kept) / len(kept)
    for value, found, missing in zip(
        values, out["x"].to_pylist(), out["x_missing"].to_pylist(), strict=True
    ):
        assert missing == (value is None or math.isnan(value))
        if missing:
            assert found == pytest.approx(mean, rel=1e-12, abs=1e-6)
        else:
            assert found == value


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "", "é"])), max_size=20),
    st.lists(st.one_of(st.none(), st.booleans()), max_size=20),
    cuts,
)
def test_most_frequent(words: list[str | None], flags: list[bool | None], where: list[int]) -> None:
    rows = min(len(words), len(flags))
    table = pa.table(
        {"s": pa.array(words[:rows], pa.string()), "b": pa.array(flags[:rows], pa.bool_())}
    )
    fill = Impute(["s", "b"], "most_frequent")
    expected = {}
    for name in ("s", "b"):
        counts = Counter(v for v in table[name].to_pylist() if v is not None)
        ranked = sorted(counts, key=lambda v: (-counts[v], v.encode() if isinstance(v, str) else v))
        expected[name] = ranked[0] if ranked else None
    if None in expected.values():
        with pytest.raises(DefinitionError, match="no most_frequent"):
            learn(fill, cut_table(table, where))
        return
    out = values_of(fill, cut_table(table, where))
    for name in ("s", "b"):
        want = [expected[name] if v is None else v for v in table[name].to_pylist()]
        assert out[name].to_pylist() == want


def test_types() -> None:
    table = pa.table(
        {
            "i": pa.array([1, None, 4], pa.int8()),
            "f": pa.array([1.0, None, 4.0], pa.float32()),
            "d": pa.array([1.0, math.nan, 4.0], pa.float64()),
            "b": pa.array([True, None, False]),
        }
    )
    out = values_of(Impute(numeric()), cut_table(table, [1]))
    assert [str(one.type) for one in out.schema] == ["double", "float", "double", "double"]
    assert [column[1].as_py() for column in out.columns] == [2.5, 2.5, 2.5, 0.5]
    assert out["b"].to_pylist() == [1.0, 0.5, 0.0]
    frequent = values_of(Impute(["i", "b"], "most_frequent"), cut_table(table))
    assert frequent.schema.types == [pa.int8(), pa.bool_()]
    assert frequent.to_pydict() == {"i": [1, 1, 4], "b": [True, False, False]}


def test_constant_needs_no_fit_and_keeps_types() -> None:
    table = pa.table(
        {"i": pa.array([None, 2], pa.int16()), "f": [math.nan, None], "s": [None, "x"]}
    )
    zero = Impute(numeric(), "constant", fill_value=0, indicator=True, prefix="p_")
    assert zero.scope is Scope.NONE
    out = values_of(zero, cut_table(table, [1]))
    assert out.schema.names == ["p_i", "p_i_missing", "p_f", "p_f_missing"]
    assert out["p_i"].to_pylist() == [0, 2]
    assert out["p_i"].type == pa.int16()
    assert out["p_f"].to_pylist() == [0.0, 0.0]
    words = values_of(
        Impute(strings(), "constant", fill_value="?", indicator=True), cut_table(table)
    )
    assert words.to_pydict() == {"s": ["?", "x"], "s_missing": [True, False]}
    nan = values_of(Impute("f", "constant", fill_value=math.inf), cut_table(table))
    assert nan["f"].to_pylist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("column", "value"),
    [("i", 1.5), ("i", 40_000), ("i", "x"), ("i", True), ("i", math.inf), ("f", "x"), ("f", True),
     ("s", 0), ("b", 1), ("v", 0.0), ("t", 0)],
)  # fmt: skip
def test_a_constant_that_does_not_fit_is_refused(column: str, value: object) -> None:
    schema = TableSchema(
        (
            Field("i", pa.int16()), Field("f", pa.float32()), Field("s", pa.string()),
            Field("b", pa.bool_()), Field("v", pa.float32(), (2,)), Field("t", pa.timestamp("us")),
        )
    )  # fmt: skip
    with pytest.raises(DefinitionError, match="cannot fill"):
        Impute(column, "constant", fill_value=value).inputs(schema)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    schema = schema_of(pa.table({"s": ["a"], "f": [1.0]}))
    with pytest.raises(SchemaError, match="numeric"):
        Impute(everything()).inputs(schema)
    with pytest.raises(SchemaError, match="distinct values"):
        Impute("f", "most_frequent").inputs(schema)
    with pytest.raises(DefinitionError, match="strategy"):
        Impute("f", "modal")
    for strategy, value in (("mean", 1.0), ("constant", None)):
        with pytest.raises(DefinitionError, match="value="):
            Impute("f", strategy, fill_value=value)
    with pytest.raises(DefinitionError, match="nothing to learn"):
        Impute("f").finish({})


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), min_size=1, max_size=30), cuts, cuts)
def test_every_partitioning_gives_the_same_values(
    values: list[float | None], one: list[int], other: list[int]
) -> None:
    table = pa.table({"x": pa.array([1.0, *values], pa.float64())})
    a, b = (values_of(Impute("x"), cut_table(table, where))["x"] for where in (one, other))
    np.testing.assert_allclose(as_floats(a), as_floats(b), rtol=1e-12, atol=1e-13)


def test_values_seen_only_later_are_filled_with_what_was_learnt() -> None:
    train, later = pa.table({"x": [1.0, 3.0]}), pa.table({"x": [None, math.nan, 9.0]})
    fill = Impute("x")
    state = learn(fill, cut_table(train))
    assert values_of(fill, cut_table(later.cast(train.schema)), state)["x"].to_pylist() == [2, 2, 9]


def test_specs() -> None:
    for fill in (
        Impute("x"), Impute(numeric(), "constant", fill_value=math.inf), Impute(["a", "b"], "constant", fill_value="é"),
        Impute(strings(), "most_frequent", indicator=True, rename={"a": "b"}),
    ):  # fmt: skip
        assert transformer_from_spec(fill.spec()) == fill
