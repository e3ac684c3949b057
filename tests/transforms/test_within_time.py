"""Rank, ZScore, Demean, and Winsorize and QuantileBin within a time: against brute force and pandas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Partition, Scope, Slicing, Transformer

ENGINE = PolarsEngine()
Values = Sequence[Any]


# --- brute force ----------------------------------------------------------------------------------


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_finite(value: Any) -> bool:
    return not is_missing(value) and math.isfinite(value)


def each(
    rows: Sequence[Row], column: str, by: Sequence[str], made: Callable[[Any, list[Any]], Any]
) -> list[Any]:
    """Return what is made of each value and of those that count in its group; null and NaN stay."""
    out = []
    for row in rows:
        group = [one[column] for one in rows if oracles.group_key(one, by) == group_of(row, by)]
        counted = [one for one in group if not is_missing(one)]
        value = row[column]
        out.append(value if is_missing(value) else made(value, counted))
    return out


def group_of(row: Row, by: Sequence[str]) -> tuple[Any, ...]:
    return oracles.group_key(row, by)


def rank_of(one: fs.Rank, value: Any, group: list[Any]) -> float:
    before = [x < value if one.ascending else x > value for x in group]
    ties = group.count(value)
    count = len(set(group)) if one.method == "dense" else len(group)
    first = sum(before) + 1
    place = {
        "min": Fraction(first),
        "max": Fraction(first + ties - 1),
        "average": Fraction(2 * first + ties - 1, 2),
        "dense": Fraction(len({x for x, is_ in zip(group, before, strict=True) if is_}) + 1),
    }[one.method]
    return float(place / count if one.normalized else place)


def mean_and_squares(group: Sequence[Any]) -> tuple[Fraction, Fraction]:
    exact = [Fraction(x) for x in group]
    mean = sum(exact, Fraction(0)) / len(exact)
    return mean, sum(((x - mean) ** 2 for x in exact), Fraction(0))


def zscore_of(value: Any, group: list[Any]) -> float:
    if not all(map(is_finite, group)):
        return math.nan
    mean, squares = mean_and_squares(group)
    if not squares:
        return 0.0
    squared = (Fraction(value) - mean) ** 2 * (len(group) - 1) / squares
    return math.copysign(math.sqrt(squared), Fraction(value) - mean)


def demeaned_of(value: Any, group: list[Any]) -> float:
    if not all(map(is_finite, group)):
        return math.nan
    return float(Fraction(value) - mean_and_squares(group)[0])


def quantile_of(values: Sequence[Any], share: Fraction) -> Fraction:
    ordered = sorted(map(Fraction, values))
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def winsorized_of(one: fs.Winsorize, value: Any, group: list[Any]) -> float:
    finite = [x for x in group if is_finite(x)]
    if not finite:
        return float(value)
    if one.deviations is None:
        low, high = (float(quantile_of(finite, Fraction(share))) for share in one.limits)
    else:
        mean, squares = mean_and_squares(finite)
        width = one.deviations * math.sqrt(squares / len(finite))
        low, high = float(mean) - width, float(mean) + width
    return min(max(float(value), low), high)


def bin_of(one: fs.QuantileBin, value: Any, group: list[Any]) -> int:
    if not math.isfinite(value):
        return one.q if value > 0 else 1
    finite = [x for x in group if is_finite(x)]
    edges = [quantile_of(finite, Fraction(j, one.q)) for j in range(1, one.q)]
    return 1 + sum(edge < Fraction(value) for edge in edges)


def expected_of(one: Any, values: Callable[[Callable[[Any, list[Any]], Any]], list[Any]]) -> Any:
    if isinstance(one, fs.Rank):
        return values(lambda value, group: rank_of(one, value, group))
    if isinstance(one, fs.ZScore):
        return values(zscore_of)
    if isinstance(one, fs.Demean):
        return values(demeaned_of)
    if isinstance(one, fs.Winsorize):
        return values(lambda value, group: winsorized_of(one, value, group))
    codes = values(lambda value, group: bin_of(one, value, group))
    return [0 if is_missing(code) else code for code in codes]


class TestWithinTime(TransformerContract):
    examples = 150
    tables_driven = 5

    def transformers(self) -> st.SearchStrategy[Transformer]:
        columns = st.sampled_from(["x", "n", "b"])
        named: dict[str, Any] = {
            "by": st.sampled_from([None, "g", ["k", "g"]]), "prefix": st.just("o_"),
        }  # fmt: skip
        methods = st.sampled_from(["average", "min", "max", "dense"])
        flags = st.booleans()
        time = {**named, "within": st.just("time")}
        limits = st.sampled_from([(0.01, 0.99), (0.25, 0.5), (0.0, 0.7), (0.3, 1)])
        return st.one_of(
            st.builds(fs.Rank, columns, methods, normalized=flags, ascending=flags, **named),
            st.builds(fs.ZScore, columns, **named),
            st.builds(fs.Demean, columns, **named),
            st.builds(fs.Winsorize, columns, limits, **time),
            st.builds(fs.Winsorize, columns, deviations=st.sampled_from([0.5, 2.0]), **time),
            st.builds(fs.QuantileBin, columns, st.sampled_from([2, 3, 5, 10]), **time),
        )

    def expected(
        self, transformer: Any, rows: Sequence[Row], other: Sequence[Row]
    ) -> Mapping[str, Sequence[Any]]:
        (column,) = (
            transformer.columns
            if not isinstance(transformer.columns, str)
            else [transformer.columns]
        )
        by = ["t", *(transformer.by or [])]
        (name,) = transformer.names([column]).values()

        def values(made: Callable[[Any, list[Any]], Any]) -> list[Any]:
            return each(rows, column, by, made)

        return {name: expected_of(transformer, values)}


# --- single cases ---------------------------------------------------------------------------------


def run(one: Transformer, values: Values, type_: Any = None, t: Values | None = None) -> list[Any]:
    times = [1] * len(values) if t is None else t
    table = pa.table({"t": pa.array(times, pa.int64()), "x": pa.array(values, type_)})
    schema = oracles.schema_of(table, [], "t")
    return list(oracles.run_partitioned(one, [table], schema, ENGINE).column(0).to_pylist())


def test_ranks_equal_those_of_pandas() -> None:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"t": np.sort(rng.integers(0, 30, 4000)), "x": rng.integers(0, 40, 4000)})
    groups = frame.groupby("t")["x"]
    for method in ("average", "min", "max", "dense"):
        for normalized in (True, False):
            for ascending in (True, False):
                ranks = run(
                    fs.Rank("x", method, normalized=normalized, ascending=ascending),
                    frame["x"],
                    t=frame["t"],
                )
                wanted = groups.rank(method=method, pct=normalized, ascending=ascending)
                assert ranks == wanted.tolist()


def test_bins_and_bounds_equal_those_of_pandas() -> None:
    rng = np.random.default_rng(6)
    frame = pd.DataFrame({"t": np.sort(rng.integers(0, 30, 4000)), "x": rng.normal(size=4000)})
    groups = frame.groupby("t")["x"]
    bins = run(fs.QuantileBin("x", 7, within="time"), frame["x"], t=frame["t"])
    assert bins == groups.transform(lambda x: pd.qcut(x, 7, labels=False) + 1).tolist()
    cut = run(fs.Winsorize("x", (0.05, 0.9), within="time"), frame["x"], t=frame["t"])
    wanted = groups.transform(lambda x: x.clip(x.quantile(0.05), x.quantile(0.9)))
    np.testing.assert_allclose(cut, wanted, rtol=1e-15)
    cut = run(fs.Winsorize("x", deviations=1.5, within="time"), frame["x"], t=frame["t"])
    wanted = groups.transform(
        lambda x: x.clip(x.mean() - 1.5 * x.std(ddof=0), x.mean() + 1.5 * x.std(ddof=0))
    )
    np.testing.assert_allclose(cut, wanted, rtol=1e-12)


def test_a_mean_far_larger_than_the_spread_costs_no_digits() -> None:
    steps = [0, 1, 2, 5, 7]
    for offset, type_ in ((10**12, pa.float64()), (2**62, pa.int64()), (2**63, pa.uint64())):
        values = [offset + one for one in steps]
        for one in (fs.ZScore("x"), fs.Demean("x")):
            near, far = run(one, steps, type_), run(one, values, type_)
            np.testing.assert_allclose(far, near, rtol=1e-12)
    assert run(fs.Demean("x"), [-(2**63), 2**63 - 1], pa.int64()) == [-(2.0**63), 2.0**63]
    assert run(fs.QuantileBin("x", 2, within="time"), [2**62, 2**62 + 1, 2**62 + 2]) == [1, 1, 2]


def test_equal_values_are_finite() -> None:
    same = [0.1] * 7
    assert run(fs.ZScore("x"), same) == [0.0] * 7
    assert run(fs.Demean("x"), same) == [0.0] * 7
    assert run(fs.Winsorize("x", within="time"), same) == same
    assert run(fs.Winsorize("x", deviations=2.0, within="time"), same) == same
    assert run(fs.QuantileBin("x", 4, within="time"), same) == [1] * 7
    assert run(fs.Rank("x", "dense"), same) == [1.0] * 7


def test_scores_do_not_depend_on_the_unit() -> None:
    plain = run(fs.ZScore("x"), [1.0, 2.0, 4.0])
    for unit in (2.0**-1000, 2.0**1000):
        assert run(fs.ZScore("x"), [unit, 2 * unit, 4 * unit]) == plain
    half = math.sqrt(0.5)
    assert run(fs.ZScore("x"), [-1.7e308, 1.7e308]) == pytest.approx([-half, half])


def test_infinities_are_cut_and_say_no_bound() -> None:
    wild = [-math.inf, 1.0, 2.0, 3.0, math.inf, math.nan, None]
    cut = run(fs.Winsorize("x", (0, 1), within="time"), wild)
    assert cut[:5] == [1.0, 1.0, 2.0, 3.0, 3.0]
    assert math.isnan(cut[5])
    assert cut[6] is None
    assert run(fs.QuantileBin("x", 3, within="time"), wild) == [1, 1, 2, 3, 3, 0, 0]
    alone = [-math.inf, math.inf]
    assert run(fs.Winsorize("x", within="time"), alone) == alone
    assert run(fs.QuantileBin("x", 3, within="time"), alone) == [1, 3]
    huge = [-1.7e308, 1.7e308]
    cut = run(fs.Winsorize("x", (0.25, 0.75), within="time"), huge)
    assert cut == pytest.approx([-8.5e307, 8.5e307])


def test_types_and_names() -> None:
    table = pa.table(
        {"t": [1], "x": pa.array([1], pa.float32()), "n": [1], "b": [True], "s": ["a"]}
    )
    schema = oracles.schema_of(table, [], "t")
    cut = fs.Winsorize(["x", "n", "b"], within="time").outputs(schema)
    assert [str(one.type) for one in cut] == ["float", "double", "double"]
    bins = fs.QuantileBin(["x", "n"], 5, within="time", suffix="_bin")
    assert [(one.name, str(one.type)) for one in bins.outputs(schema)] == [
        ("x_bin", "int32"), ("n_bin", "int32"),
    ]  # fmt: skip
    assert bins.codes(schema) == ("x_bin", "n_bin")
    assert bins.code_counts(schema) == {"x_bin": 6, "n_bin": 6}
    rank = fs.Rank(["x", "n"], by="s", rename={"x": "place"})
    assert [one.name for one in rank.outputs(schema)] == ["place", "n_rank"]
    assert rank.inputs(schema) == ("t", "s", "x", "n")
    assert rank.quantities(schema) == ("x", "n")
    assert (rank.scope, rank.slicing) == (Scope.NONE, Slicing.TIMES)


def test_what_is_refused() -> None:
    table = pa.table({"t": [1], "x": [1.0], "s": ["a"]})
    schema = oracles.schema_of(table, [], "t")
    for kind in (fs.Rank, fs.ZScore, fs.Demean):
        with pytest.raises(DefinitionError, match=f"{kind.__name__} compares .* no time column"):
            kind("x").outputs(TableSchema(schema.fields))
        with pytest.raises(SchemaError, match="'s' is string"):
            kind("s").inputs(schema)
    wrong: list[Callable[[], Any]] = [
        lambda: fs.Rank("x", "ordinal"),
        lambda: fs.Rank("x", by=["s", "s"]),
        lambda: fs.Winsorize("x", (0.9, 0.1), within="time"),
        lambda: fs.Winsorize("x", (0.1,), within="time"),  # type: ignore[arg-type]
        lambda: fs.Winsorize("x", deviations=0.0, within="time"),
        lambda: fs.Winsorize("x", within="week"),
        lambda: fs.QuantileBin("x", 1, within="time"),
        lambda: fs.QuantileBin("x", 2.0, within="time"),  # type: ignore[arg-type]
        lambda: fs.QuantileBin("x", within="week"),
    ]
    for make in wrong:
        with pytest.raises(DefinitionError):
            make()


def test_pipelines_know_how_many_bins_there_are() -> None:
    table = pa.table({"t": [1, 1, 2], "x": [1.0, 2.0, 3.0]})
    part = Partition(ENGINE.from_arrow(table), oracles.schema_of(table, [], "t"))
    bins = fs.QuantileBin("x", 4, within="time", prefix="bin_")
    fitted = fs.Pipeline(bins).fit_partitions([part], ENGINE)
    assert fitted.cardinalities() == {"bin_x": 5}
    assert fitted.apply(part, ENGINE).frame["bin_x"].to_list() == [1, 4, 1]
