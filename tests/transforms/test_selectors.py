"""Selectors: what they pick, in which order, and that a stored one cannot do harm."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DefinitionError, MissingColumnError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import decode, encode
from featurestore.transforms.selectors import (
    Selector,
    by_dtype,
    by_name,
    everything,
    matching,
    normalise_selection,
    numeric,
    resolve,
    strings,
)

SCHEMA = TableSchema(
    (
        Field("id", pa.int64()),
        Field("code", pa.string()),
        Field("at", pa.timestamp("us")),
        Field("price", pa.float64()),
        Field("temp_max", pa.float32()),
        Field("temp_min", pa.int16()),
        Field("flag", pa.bool_()),
        Field("größe", pa.string()),
        Field("vector", pa.float32(), (4,)),
    ),
    key=("id", "code"),
    time="at",
)


def test_numeric_leaves_out_key_time_and_tensors() -> None:
    assert resolve(numeric(), SCHEMA) == ("price", "temp_max", "temp_min", "flag")
    assert resolve(strings(), SCHEMA) == ("größe",)
    integer_time = TableSchema((Field("t", pa.int64()), Field("x", pa.int64())), time="t")
    assert resolve(numeric(), integer_time) == ("x",)
    assert resolve(numeric() | by_name("t"), integer_time) == ("t", "x")


def test_everything_and_complement() -> None:
    assert resolve(everything(), SCHEMA) == SCHEMA.names
    assert resolve(~everything(), SCHEMA) == ()
    assert resolve(~(numeric() | strings()), SCHEMA) == ("id", "code", "at", "vector")


def test_names_keep_their_order_and_selectors_that_of_the_schema() -> None:
    assert resolve(["price", "id"], SCHEMA) == ("price", "id")
    assert resolve("flag", SCHEMA) == ("flag",)
    assert resolve(by_name("price", "id"), SCHEMA) == ("id", "price")


def test_matching_and_types() -> None:
    assert resolve(matching("temp_.*"), SCHEMA) == ("temp_max", "temp_min")
    assert resolve(matching("temp"), SCHEMA) == ()
    assert resolve(matching("gr.ße"), SCHEMA) == ("größe",)
    assert resolve(by_dtype(pa.float64(), "int16"), SCHEMA) == ("price", "temp_min")
    assert resolve(by_dtype("float"), SCHEMA) == ("price", "temp_max")
    assert resolve(by_dtype("timestamp") | by_dtype("boolean"), SCHEMA) == ("at", "flag")
    assert resolve(numeric() - by_dtype("float") & ~by_name("flag"), SCHEMA) == ("temp_min",)


def test_unknown_name_lists_close_ones() -> None:
    for selection in ("pricee", ["price", "pricee"], by_name("pricee"), ~by_name("pricee")):
        with pytest.raises(MissingColumnError, match=r"'pricee'[^$]*'price'"):
            resolve(selection, SCHEMA)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(SchemaError, match="more than once"):
        resolve(["price", "price"], SCHEMA)


@pytest.mark.parametrize("selection", [None, 3, [], [1], b"x"])
def test_what_selects_nothing_is_refused(selection: object) -> None:
    with pytest.raises(DefinitionError, match="does not select"):
        normalise_selection(selection)  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ["", "a" * 201, "(", "(a+)+b", "((a*))*", "(a{2,})+"])
def test_patterns_that_are_wrong_or_slow_are_refused(pattern: str) -> None:
    with pytest.raises(DefinitionError):
        matching(pattern)


leaves = st.one_of(
    st.just(numeric()),
    st.just(strings()),
    st.just(everything()),
    st.lists(st.sampled_from(SCHEMA.names), max_size=3).map(lambda names: by_name(*names)),
    st.sampled_from(["temp_.*", ".*e", "[a-m].*"]).map(matching),
    st.sampled_from(["float", "integer", "string", "int16"]).map(by_dtype),
)
selectors = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(selectors, selectors)
def test_algebra_and_json(a: Selector, b: Selector) -> None:
    names = set(SCHEMA.names)
    of_a, of_b = set(resolve(a, SCHEMA)), set(resolve(b, SCHEMA))
    assert set(resolve(a | b, SCHEMA)) == of_a | of_b
    assert set(resolve(a & b, SCHEMA)) == of_a & of_b
    assert set(resolve(a - b, SCHEMA)) == of_a - of_b
    assert set(resolve(~a, SCHEMA)) == names - of_a
    assert decode(json.loads(json.dumps(encode(a)))) == a
    assert hash(decode(encode(a))) == hash(a)


@pytest.mark.parametrize(
    "stored",
    [
        None, [], "numeric", ["eval", "1"], ["numeric", 3], ["or", ["numeric"]], ["not"],
        ["matching"], ["matching", "a", "b"], ["matching", "(a+)+"], ["dtype", "no such type"],
        ["or", "numeric", "strings"], [["numeric"]], {"rule": "numeric"},
    ],
)  # fmt: skip
def test_hostile_json_is_refused(stored: object) -> None:
    with pytest.raises((DefinitionError, SchemaError)):
        decode({"$selector": stored})


def test_deep_json_is_refused_quickly() -> None:
    stored: object = ["numeric"]
    for _ in range(5000):
        stored = ["not", stored]
    start = time.monotonic()
    with pytest.raises(DefinitionError, match="nest"):
        decode({"$selector": stored})
    assert time.monotonic() - start < 1


def test_combining_with_a_name_says_what_to_do() -> None:
    with pytest.raises(DefinitionError, match="by_name"):
        numeric() | "price"  # type: ignore[operator]
