"""Categorify: codes against a brute-force count, for every partitioning."""

from __future__ import annotations

from collections import Counter
from functools import reduce

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.partitions import cut_table, learn, schema_of, values_of
from featurestore.transforms.base import EMPTY_STATE, transformer_from_spec
from featurestore.transforms.categories import Categorify
from featurestore.transforms.impute import Impute
from featurestore.transforms.selectors import by_name, strings

ENGINE = get_engine("polars")
words = st.one_of(
    st.none(), st.sampled_from(["", "a", "b", "B", "ä", "日本", "a\x00", "🎈"]), st.text(max_size=2)
)
cuts = st.lists(st.integers(0, 40), max_size=5)


def brute_force(
    train: list[object], rows: list[object], max_size: int | None, min_count: int
) -> tuple[list[int], int]:
    counts = Counter(v for v in train if v is not None)
    order = sorted(
        (v for v in counts if counts[v] >= min_count),
        key=lambda v: (-counts[v], v.encode() if isinstance(v, str) else v),  # type: ignore[operator]
    )[:max_size]
    codes = {value: code for code, value in enumerate(order, start=2)}
    return [0 if v is None else codes.get(v, 1) for v in rows], 2 + len(order)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(words, max_size=40), st.lists(words, max_size=10), cuts,
    st.one_of(st.none(), st.integers(1, 5)), st.integers(1, 3),
)  # fmt: skip
def test_strings(
    train: list[object], later: list[object], where: list[int], size: int | None, least: int
) -> None:
    code = Categorify("s", max_size=size, min_count=least)
    tables = [pa.table({"s": pa.array(one, pa.string())}) for one in (train, train + later)]
    state = learn(code, cut_table(tables[0], where))
    out = values_of(code, cut_table(tables[1], where), state)
    expected, cardinality = brute_force(train, train + later, size, least)
    assert out["s"].to_pylist() == expected
    assert out["s"].null_count == 0
    assert code.cardinalities(state) == {"s": cardinality}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(-3, 3)), st.one_of(st.none(), st.booleans()),
                       st.one_of(st.none(), st.sampled_from([0, 2**63, 2**64 - 1]))), max_size=30),
    cuts,
)  # fmt: skip
def test_integers_and_booleans(rows: list[tuple[object, ...]], where: list[int]) -> None:
    types = {"i": pa.int16(), "b": pa.bool_(), "u": pa.uint64()}
    columns = {n: pa.array([r[i] for r in rows], t) for i, (n, t) in enumerate(types.items())}
    out = values_of(Categorify(list(types)), cut_table(pa.table(columns), where))
    for i, name in enumerate(types):
        values = [row[i] for row in rows]
        assert out[name].to_pylist() == brute_force(values, values, None, 1)[0]


def test_null_and_unseen_are_distinct_and_rows_keep_their_order() -> None:
    code = Categorify("s")
    state = learn(code, cut_table(pa.table({"s": ["y", "x", "y"]})))
    later = pa.table({"s": ["new", None, "x", "y", "new"]})
    assert values_of(code, cut_table(later, [2]), state)["s"].to_pylist() == [1, 0, 3, 2, 1]


def test_states_merge_associatively() -> None:
    code = Categorify("s")
    parts = [["a", "b"], [], ["b", None, "c"], [None]]
    tables = [pa.table({"s": pa.array(one, pa.string())}) for one in parts]
    states = [code.summarize(cut_table(one)[0], ENGINE) for one in tables]
    left = reduce(code.combine, states, EMPTY_STATE)
    right = reduce(
        lambda later, earlier: code.combine(earlier, later), reversed(states), EMPTY_STATE
    )
    assert left["s"].equals(right["s"])
    assert left["s"].to_pydict() == {"value": ["a", "b", "c", None], "count": [1, 2, 1, 2]}
    assert code.combine({}, states[0]) == states[0]
    other = Categorify("t").summarize(cut_table(pa.table({"t": ["a"]}))[0], ENGINE)
    with pytest.raises(CorruptionError, match="merged"):
        code.combine(states[0], other)


def test_only_nulls_and_no_rows() -> None:
    code = Categorify("s")
    for rows in ([], [None, None]):
        table = pa.table({"s": pa.array(rows, pa.string())})
        state = learn(code, cut_table(table, [1]))
        assert code.cardinalities(state) == {"s": 2}
        later = pa.table({"s": pa.array(["a", None], pa.string())})
        assert values_of(code, cut_table(later), state)["s"].to_pylist() == [1, 0]
    assert Categorify(strings()).outputs(schema_of(pa.table({"x": [1]}))) == ()


def test_names_types_and_shared_state() -> None:
    table = pa.table({"s": ["a"], "t": ["b"]})
    code = Categorify(by_name("s", "t"), suffix="_code", rename={"t": "u"})
    assert values_of(code, cut_table(table)).to_pydict() == {"s_code": [2], "u": [2]}
    assert code.outputs(schema_of(table)) == (Field("s_code", pa.int32()), Field("u", pa.int32()))
    assert code.cardinalities(learn(code, cut_table(table))) == {"s_code": 3, "u": 3}
    counts = Impute("s", "most_frequent").state_fingerprint()
    assert Categorify("s", max_size=3).state_fingerprint() == counts
    assert transformer_from_spec(code.spec()) == code


def test_what_is_refused() -> None:
    schema = TableSchema((Field("f", pa.float64()), Field("v", pa.int32(), (2,))))
    for name in ("f", "v"):
        with pytest.raises(SchemaError, match="distinct values"):
            Categorify(name).inputs(schema)
    for sizes in ({"max_size": 0}, {"min_count": 0}):
        with pytest.raises(DefinitionError, match="at least 1"):
            Categorify("s", **sizes)
    for sizes in ({"max_size": True}, {"min_count": 1.5}):
        with pytest.raises(DefinitionError, match="give a whole number"):
            Categorify("s", **sizes)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="nothing to learn"):
        Categorify("s").finish({})


def test_a_large_vocabulary() -> None:
    values = [f"v{i % 50_000}" for i in range(100_000)] + ["often"] * 5
    out = values_of(Categorify("s"), cut_table(pa.table({"s": values}), [30_000, 99_999]))
    codes = out["s"].to_pylist()
    assert codes[-1] == 2
    assert len(set(codes)) == 50_001
    assert codes[:50_000] == codes[50_000:100_000]
