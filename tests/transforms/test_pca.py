"""PCA: against NumPy's and scikit-learn's, exact means, and the same values for every partitioning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, DefinitionError, SchemaError
from featurestore.testing.oracles import Row
from featurestore.testing.partitions import cut_table, learn, values_of
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer
from featurestore.transforms.comoments import Comoments, combine_comoments, summarize_comoments

Rows = Sequence[Row]
ENGINE = get_engine("polars")


def matrix(rows: Rows, columns: Sequence[str]) -> Any:
    every = [[math.nan if row[c] is None else float(row[c]) for c in columns] for row in rows]
    return np.array(every).reshape(len(rows), len(columns))


def turned(learnt: Any, applied: Any, count: int) -> Any:
    """Return rows along the components of others, by singular values."""
    mean = learnt.mean(axis=0)
    _, _, directions = np.linalg.svd(learnt - mean, full_matrices=True)
    out = []
    for one in directions[:count]:
        size = np.abs(one)
        decisive = one[int(np.argmax(size >= size.max() * (1 - 1e-6)))]
        out.append((applied - mean) @ (one * np.sign(decisive)))
    return np.stack(out, axis=1)


class TestPCA(TransformerContract):
    examples = 25
    tables_driven = 2
    tolerance = 1e-6
    bitwise = False

    def transformers(self) -> st.SearchStrategy[Transformer]:
        columns = st.sampled_from([("x",), ("x", "g"), ("x", "g", "b")])
        return columns.map(lambda names: fs.PCA(names, 1))

    def tables(self) -> st.SearchStrategy[pa.Table]:
        return super().tables().map(_distinct)

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        columns = list(transformer.columns)
        every = matrix(rows, columns)
        complete = every[np.isfinite(every).all(axis=1)]
        null = [any(row[c] is None for c in columns) for row in rows]
        if len(complete) == 0:
            return {"pca_0": [None] * len(rows)}
        with np.errstate(invalid="ignore"):
            along = turned(complete, np.where(np.isfinite(every), every, np.nan), 1)[:, 0]
        return {
            "pca_0": [None if gone else float(one) for gone, one in zip(null, along, strict=True)]
        }


def _distinct(table: pa.Table) -> pa.Table:
    """Return a table whose ``x`` varies far more than the others, so that there is one first direction."""
    x = table["x"].to_pylist()
    spread = [
        one if one is None or not math.isfinite(one) else math.copysign(100, one) * (1 + i)
        for i, one in enumerate(x)
    ]
    # Two rows that are always complete.
    if len(spread) > 1:
        spread[0], spread[1] = -5000.0, 7000.0
    filled = {"x": pa.array(spread, pa.float64())}
    for name in ("g", "b"):
        values = table[name].to_pylist()
        values[:2] = [1, 2][: len(values)] if name == "g" else [True, False][: len(values)]
        filled[name] = pa.array(values, table[name].type)
    for name, values in filled.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def data(rows: int = 2000, columns: int = 6) -> Any:
    random = np.random.default_rng(5)
    mixed = random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns))
    return mixed * np.array([1.0, 3.0, 0.2, 5.0, 1.0, 2.0])[:columns] + np.arange(columns) * 100


def test_the_same_as_by_singular_values() -> None:
    learnt, applied = data(), data(300) * 1.1
    fitted = fs.Pipeline(fs.PCA(fs.numeric(), 4)).fit(pl.from_numpy(learnt))
    found = fitted.transform(pl.from_numpy(applied)).select(f"pca_{i}" for i in range(4)).to_numpy()
    np.testing.assert_allclose(found, turned(learnt, applied, 4), rtol=1e-9, atol=1e-9)


def test_the_same_as_scikit_learn() -> None:
    from sklearn import decomposition

    learnt = data()
    fitted = fs.Pipeline(fs.PCA(fs.numeric(), 3)).fit(pl.from_numpy(learnt))
    found = fitted.transform(pl.from_numpy(learnt)).select(f"pca_{i}" for i in range(3)).to_numpy()
    theirs = decomposition.PCA(3, svd_solver="full").fit(learnt)
    largest = np.abs(theirs.components_).argmax(axis=1)
    signs = np.sign(theirs.components_[np.arange(3), largest])
    np.testing.assert_allclose(found, theirs.transform(learnt) * signs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cuts", [[], [1, 2, 900], list(range(0, 2000, 37))], ids=len)
def test_means_a_million_million_times_the_deviations(cuts: list[int]) -> None:
    random = np.random.default_rng(6)
    ticks = 10**12 + random.integers(-3, 4, (2000, 2))
    table = pa.table({"a": ticks[:, 0], "b": ticks[:, 1]})
    parts = cut_table(table, cuts)
    states = [summarize_comoments(one, ["a", "b"], ENGINE) for one in parts]
    found = Comoments.from_state(reduce(combine_comoments, states))
    exact = products(ticks)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        got = Fraction(float(found.products[0][i, j])) + Fraction(float(found.products[1][i, j]))
        assert abs(got - exact[i][j]) <= abs(exact[0][0]) * Fraction(1, 10**9)
    assert found.products[0].tolist() == found.products[0].T.tolist()


def products(values: Any) -> list[list[Fraction]]:
    rows = [[int(one) for one in row] for row in values]
    means = [Fraction(sum(column), len(rows)) for column in zip(*rows, strict=True)]
    apart = [[one - mean for one, mean in zip(row, means, strict=True)] for row in rows]
    return [[sum((row[i] * row[j] for row in apart), Fraction()) for j in (0, 1)] for i in (0, 1)]


def test_values_do_not_depend_on_the_partition_that_they_are_applied_in() -> None:
    table = pa.table({f"x{i}": one for i, one in enumerate(data(1000).T)})
    turn = fs.PCA(fs.numeric(), 3)
    state = learn(turn, cut_table(table))
    whole = values_of(turn, cut_table(table), state)
    pieces = values_of(turn, cut_table(table, [1, 5, 333, 998]), state)
    assert whole.equals(pieces)


def test_partitionings_agree_closely() -> None:
    table = pa.table({f"x{i}": one for i, one in enumerate(data(1000).T)})
    turn = fs.PCA(fs.numeric(), 3)
    whole = values_of(turn, cut_table(table))
    pieces = values_of(turn, cut_table(table, list(range(0, 1000, 7))))
    for one, other in zip(whole.columns, pieces.columns, strict=True):
        np.testing.assert_allclose(one.to_numpy(), other.to_numpy(), rtol=1e-9, atol=1e-9)


def test_a_tensor_has_nan_where_columns_have_null() -> None:
    table = pa.table(
        {
            "x": [0.0, 3.0, 6.0, None, float("nan"), float("inf")],
            "y": [0.0, 4.0, 8.0, 1.0, 1.0, 1.0],
        }
    )
    (part,) = cut_table(table)
    columns, tensor = fs.PCA(["x", "y"], 2), fs.PCA(["x", "y"], 2, output="both", tensor=True)
    state = learn(columns, [part])
    frame = columns.apply(part, state, ENGINE).frame
    assert frame is not None
    made = tensor.apply(part, state, ENGINE).tensors["both"]
    assert made.shape == (6, 2)
    assert [v is None or math.isnan(v) for v in frame["pca_0"].to_list()] == [False] * 3 + [
        True
    ] * 3
    assert frame["pca_0"].to_list()[3] is None
    assert np.isnan(made[3:]).all()
    np.testing.assert_array_equal(made[:3, 0], frame["pca_0"].to_numpy()[:3])
    assert tensor.state_fingerprint() == columns.state_fingerprint()
    assert tensor.fingerprint() != columns.fingerprint()


def test_constant_columns_and_no_complete_row() -> None:
    constant = pa.table({"x": [2.0, 2.0], "y": [5, 5]})
    out = values_of(fs.PCA(["x", "y"], 2), cut_table(constant))
    assert [one.to_pylist() for one in out.columns] == [[0.0, 0.0]] * 2
    never = pa.table({"x": [2.0, None], "y": [None, 5.0]})
    out = values_of(fs.PCA(["x", "y"], 1), cut_table(never, [1]))
    assert out["pca_0"].to_pylist() == [None, None]


def test_a_table_of_float32_keeps_the_tensor_with_its_rows() -> None:
    store = fs.FeatureStore.create("memory://pca-table")
    values = data(500).astype(np.float32)
    rows = pl.from_numpy(values).with_columns(pl.int_range(500).alias("id"))
    table = store.ingest("rows", rows, key="id")
    table.add(fs.PCA(fs.matching("column_.*"), 2, tensor=True), fit_on="all")
    found = np.stack(table.read("pca")["pca"].to_list())
    assert table.read("pca").schema["pca"] == pl.Array(pl.Float32, 2)
    wanted = turned(values.astype(np.float64), values.astype(np.float64), 2)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    for count in (0, True, 1.5):
        with pytest.raises(DefinitionError):
            fs.PCA("x", count)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="ask for 1 components at most"):
        values_of(fs.PCA("x", 2), cut_table(pa.table({"x": [1.0]})))
    with pytest.raises(SchemaError, match="takes numeric columns"):
        values_of(fs.PCA("s", 1), cut_table(pa.table({"s": ["a"]})))
    with pytest.raises(DefinitionError, match="exceeds float64"):
        values_of(fs.PCA("x", 1), cut_table(pa.table({"x": [1e200, -1e200]})))
    with pytest.raises(DefinitionError, match="nothing to learn from"):
        fs.PCA("x", 1).finish({})
    (one,), (other,) = (cut_table(pa.table({name: [1.0, 2.0]})) for name in "xy")
    states = summarize_comoments(one, ["x"], ENGINE), summarize_comoments(other, ["y"], ENGINE)
    with pytest.raises(CorruptionError, match="cannot be merged"):
        combine_comoments(*states)
    with pytest.raises(CorruptionError, match="a state of comoments"):
        Comoments.from_state({"means": states[0]["means"]})
