"""Scalers learnt of smallest, largest and quantiles: the contract, and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import DefinitionError, SchemaError
from featurestore.testing.oracles import Row
from featurestore.testing.partitions import cut_table, values_of
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer
from featurestore.transforms.columnwise import Columnwise

Rows = Sequence[Row]
COLUMNS = st.sampled_from(["x", "n", "b"])
PREFIX = st.just("q_")


def finite(values: Sequence[Any]) -> list[float]:
    return sorted(float(one) for one in values if one is not None and math.isfinite(one))


def quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    if abs(place - round(place)) <= 1e-12:
        place = round(place)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    between: float = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return between


def spread(value: float, known: Sequence[float], shares: Sequence[float]) -> float:
    """Return the middle of the shares at which interpolated quantiles have a value."""
    if value <= known[0] or value >= known[-1]:
        return 0.0 if value <= known[0] else 1.0
    at = [share for one, share in zip(known, shares, strict=True) if one == value]
    if at:
        return (at[0] + at[-1]) / 2
    i = next(i for i, one in enumerate(known) if one > value)
    part = (value - known[i - 1]) / (known[i] - known[i - 1])
    return shares[i - 1] + part * (shares[i] - shares[i - 1])


class Scaled(TransformerContract):
    """What these have in common: nulls stay, nothing known gives nulls, floats for numbers."""

    examples = 25
    tables_driven = 2
    nan_stays = True

    def one(self, transformer: Any, value: float, known: list[float]) -> Any:
        raise NotImplementedError

    def unknown(self, value: Any) -> Any:
        return None

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        values = [row[column] for row in rows]
        known, out = finite(values), list[Any]()
        for value in values:
            if value is None or not known:
                out.append(self.unknown(value))
            elif math.isnan(value):
                out.append(value if self.nan_stays else self.unknown(None))
            else:
                out.append(self.one(transformer, float(value), known))
        narrow = column != "x" and not isinstance(transformer, fs.Impute | fs.Winsorize)
        if narrow:
            out = [float(np.float32(one)) if isinstance(one, float) else one for one in out]
        return {f"q_{column}": out}


class TestMinMax(Scaled):
    # Its values are the same bits (below); the means in its state, which others use, nearly.
    bitwise = False

    def transformers(self) -> st.SearchStrategy[Transformer]:
        ranges = st.sampled_from([(0, 1), (-1.5, 2.0)])
        return st.builds(
            fs.MinMax, COLUMNS, feature_range=ranges, clip=st.booleans(), prefix=PREFIX
        )

    def one(self, transformer: Any, value: float, known: list[float]) -> float:
        low, high = transformer.feature_range
        share = (value - known[0]) / ((known[-1] - known[0]) or 1.0)
        placed: float = share * (high - low) + low
        return min(max(placed, low), high) if transformer.clip else placed


class TestRobustScale(Scaled):
    def transformers(self) -> st.SearchStrategy[Transformer]:
        ranges = st.sampled_from([(0.25, 0.75), (0.1, 1.0)])
        return st.builds(
            fs.RobustScale, COLUMNS, quantile_range=ranges, median=st.booleans(), prefix=PREFIX
        )

    def one(self, transformer: Any, value: float, known: list[float]) -> float:
        low, high = (quantile(known, one) for one in transformer.quantile_range)
        center = quantile(known, 0.5) if transformer.median else 0.0
        return (value - center) / (high - low if high > low else 1.0)


class TestQuantileTransform(Scaled):
    tolerance = 1e-7  # near its ends the normal distribution's quantiles amplify

    def transformers(self) -> st.SearchStrategy[Transformer]:
        outputs = st.sampled_from(["uniform", "normal"])
        return st.builds(
            fs.QuantileTransform,
            COLUMNS,
            n_quantiles=st.sampled_from([2, 5, 1000]),
            distribution=outputs,
            prefix=PREFIX,
        )

    def one(self, transformer: Any, value: float, known: list[float]) -> float:
        count = min(transformer.n_quantiles, len(known))
        shares = [i / (count - 1) if count > 1 else 0.0 for i in range(count)]
        share = spread(value, [quantile(known, one) for one in shares], shares)
        if transformer.distribution == "normal":
            return NormalDist().inv_cdf(min(max(share, 1e-7), 1 - 1e-7))
        return share


class TestQuantileBin(Scaled):
    nan_stays = False

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(fs.QuantileBin, COLUMNS, st.sampled_from([2, 4, 10]), prefix=PREFIX)

    def unknown(self, value: Any) -> int:
        return 0

    def one(self, transformer: Any, value: float, known: list[float]) -> int:
        edges = [quantile(known, i / transformer.q) for i in range(1, transformer.q)]
        return 1 + sum(value > edge for edge in edges)


class TestWinsorize(Scaled):
    def transformers(self) -> st.SearchStrategy[Transformer]:
        limits = st.sampled_from([(0.1, 0.9), (0.0, 0.5)])
        deviations = st.sampled_from([None, 1.5])
        return st.builds(fs.Winsorize, COLUMNS, limits, deviations=deviations, prefix=PREFIX)

    # Sums of squares are merged to about 1e-15 relative.
    bitwise = False

    def unknown(self, value: Any) -> Any:
        return value if value is None else float(value)

    def one(self, transformer: Any, value: float, known: list[float]) -> float:
        low, high = (quantile(known, one) for one in transformer.limits)
        if transformer.deviations is not None:
            mean = math.fsum(known) / len(known)
            square = math.fsum((one - mean) ** 2 for one in known) / len(known)
            width = transformer.deviations * math.sqrt(square)
            low, high = mean - width, mean + width
        return min(max(value, low), high)


class TestImputeMedian(Scaled):
    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(fs.Impute, COLUMNS, st.just("median"), prefix=PREFIX)

    def learnable(self, transformer: Any, rows: Rows) -> bool:
        return bool(finite([row[transformer.columns[0]] for row in rows]))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        values = [row[column] for row in rows]
        median = quantile(finite(values), 0.5)
        missing = [one is None or math.isnan(one) for one in values]
        pairs = zip(values, missing, strict=True)
        return {f"q_{column}": [median if gone else float(one) for one, gone in pairs]}


# --- against scikit-learn ---------------------------------------------------------------------------


def numbers(rows: int = 3000) -> np.ndarray[Any, np.dtype[np.float64]]:
    random = np.random.default_rng(4)
    columns = [
        random.normal(5, 2, rows),
        random.lognormal(3, 2, rows),
        random.integers(0, 40, rows),
    ]
    return np.stack(columns, axis=1)


PAIRS: dict[str, tuple[Columnwise, str, dict[str, Any]]] = {
    "min max": (fs.MinMax(), "MinMaxScaler", {}),
    "min max range": (
        fs.MinMax(fs.numeric(), feature_range=(-3, 5)), "MinMaxScaler", {"feature_range": (-3, 5)},
    ),
    "min max clip": (fs.MinMax(clip=True), "MinMaxScaler", {"clip": True}),
    "robust": (fs.RobustScale(), "RobustScaler", {}),
    "robust range": (
        fs.RobustScale(fs.numeric(), quantile_range=(0.05, 0.9), median=False), "RobustScaler",
        {"quantile_range": (5, 90), "with_centering": False},
    ),
    "uniform": (fs.QuantileTransform(), "QuantileTransformer", {"subsample": None}),
    "few quantiles": (
        fs.QuantileTransform(fs.numeric(), n_quantiles=20), "QuantileTransformer",
        {"n_quantiles": 20, "subsample": None},
    ),
    "normal": (
        fs.QuantileTransform(fs.numeric(), distribution="normal"), "QuantileTransformer",
        {"output_distribution": "normal", "subsample": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_as_scikit_learn(name: str) -> None:
    from sklearn import preprocessing

    ours, theirs, options = PAIRS[name]
    learnt, applied = numbers(), np.concatenate([numbers(700) * 1.5 - 3, numbers(50)])
    fitted = fs.Pipeline(ours).fit(pl.from_numpy(learnt))
    found = fitted.transform(pl.from_numpy(applied)).to_numpy()
    wanted = getattr(preprocessing, theirs)(**options).fit(learnt).transform(applied)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_bins_are_those_of_scikit_learn_but_for_values_at_edges() -> None:
    # Its bins have their lower edge; none of these values is one.
    from sklearn import preprocessing

    learnt = numbers()[:, :2]
    options = {"encode": "ordinal", "strategy": "quantile", "subsample": None}
    theirs = preprocessing.KBinsDiscretizer(8, quantile_method="linear", **options)
    fitted = fs.Pipeline(fs.QuantileBin(fs.numeric(), 8)).fit(pl.from_numpy(learnt))
    found = fitted.transform(pl.from_numpy(learnt)).to_numpy()
    np.testing.assert_array_equal(found, theirs.fit_transform(learnt) + 1)


def test_bins_are_those_of_pandas() -> None:
    learnt = numbers()[:, :2]
    fitted = fs.Pipeline(fs.QuantileBin(fs.numeric(), 8)).fit(pl.from_numpy(learnt))
    found = fitted.transform(pl.from_numpy(learnt)).to_numpy()
    wanted = [pd.qcut(one, 8, labels=False) + 1 for one in learnt.T]
    np.testing.assert_array_equal(found, np.stack(wanted, axis=1))
    assert fitted.cardinalities() == {"column_0": 9, "column_1": 9}


def test_impute_fills_in_the_median_of_pandas() -> None:
    table = pl.DataFrame({"x": [1.0, None, 7.0, 3.0, float("nan")], "n": [4, 2, None, 1, 1]})
    pipeline = fs.Pipeline(fs.Impute(strategy="median", indicator=True))
    filled = pipeline.fit(table).transform(table)
    assert filled["x"].to_list() == [1.0, 3.0, 7.0, 3.0, 3.0]
    assert filled["n"].to_list() == [4.0, 2.0, 1.5, 1.0, 1.0]
    assert filled["x_missing"].to_list() == [False, True, False, False, True]


# --- states, ends, refusals ---------------------------------------------------------------------------


def test_one_state_serves_all_that_learns_quantiles() -> None:
    quantiles = [
        fs.RobustScale("x"), fs.QuantileTransform("x", distribution="normal"), fs.QuantileBin("x", 4),
        fs.Winsorize("x"), fs.Impute("x", strategy="median"),
    ]  # fmt: skip
    moments = [
        fs.Standardize("x"), fs.MinMax("x", clip=True), fs.Impute("x"),
        fs.Winsorize("x", deviations=3.0),
    ]  # fmt: skip
    for family in (quantiles, moments):
        assert len({one.state_fingerprint() for one in family}) == 1
    assert fs.RobustScale("x").state_fingerprint() != fs.RobustScale("y").state_fingerprint()
    assert fs.RobustScale("x").state_fingerprint() != fs.MinMax("x").state_fingerprint()


@pytest.mark.parametrize(
    "one",
    [
        fs.MinMax("x"),
        fs.RobustScale("x"),
        fs.RobustScale("x", quantile_range=(0.0, 1.0)),
        fs.QuantileTransform("x", distribution="normal"),
        fs.Winsorize("x"),
        fs.QuantileBin("x", 3),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize(
    "values",
    [[3.5] * 4, [1.7e308, -1.7e308, 0.0], [5e-324, 0.0, -5e-324], [1e12, 1e12 + 1e-4], [0.0, -0.0]],
    ids=["constant", "whole range", "denormal", "close", "zeros"],
)
def test_finite_values_give_finite_ones(one: Columnwise, values: list[float]) -> None:
    table = pa.table({"x": values})
    out = values_of(one, cut_table(table, [1]))["x"]
    assert out.null_count == 0
    assert np.all(np.isfinite(out.to_numpy()))


def test_smallest_and_largest_are_the_same_bits_for_every_partitioning() -> None:
    table = pa.table({"x": np.random.default_rng(0).normal(size=1000) ** 5})
    scale = fs.MinMax("x", feature_range=(-1, 3))
    whole = values_of(scale, cut_table(table))
    assert values_of(scale, cut_table(table, [1, 2, 77, 500, 501])).equals(whole)


def test_a_range_wider_than_float64_is_divided_first() -> None:
    out = values_of(fs.MinMax("x"), cut_table(pa.table({"x": [1.7e308, -1.7e308, 0.0]}), []))
    assert out["x"].to_pylist() == [1.0, 0.0, 0.5]


def test_unseen_values_beyond_the_learnt_ones() -> None:
    known = pl.DataFrame({"x": [0.0, 1.0, 2.0]})
    beyond = pl.DataFrame({"x": [-5.0, float("inf"), float("-inf"), float("nan"), None]})

    def made(one: Columnwise) -> list[Any]:
        found: list[Any] = fs.Pipeline(one).fit(known).transform(beyond)["x"].to_list()
        return ["NaN" if isinstance(v, float) and math.isnan(v) else v for v in found]

    inf = float("inf")
    assert made(fs.MinMax()) == [-2.5, inf, -inf, "NaN", None]
    assert made(fs.MinMax(clip=True)) == [0.0, 1.0, 0.0, "NaN", None]
    assert made(fs.RobustScale()) == [-6.0, inf, -inf, "NaN", None]
    assert made(fs.QuantileTransform()) == [0.0, 1.0, 0.0, "NaN", None]
    assert made(fs.QuantileBin(q=3)) == [1, 3, 1, 0, 0]
    assert made(fs.Winsorize(limits=(0.0, 0.5))) == [0.0, 1.0, 0.0, "NaN", None]


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.MinMax("x", feature_range=(1, 1)),
        lambda: fs.MinMax("x", feature_range=(0, float("inf"))),
        lambda: fs.RobustScale("x", quantile_range=(0.5, 0.5)),
        lambda: fs.RobustScale("x", quantile_range=(25, 75)),
        lambda: fs.QuantileTransform("x", n_quantiles=1),
        lambda: fs.QuantileTransform("x", distribution="cauchy"),
        lambda: fs.QuantileBin("x", within="fits"),
        lambda: fs.QuantileBin("x", by="g"),
        lambda: fs.Winsorize("x", by="g"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(DefinitionError):
        make()


def test_only_numbers_and_only_some_rows() -> None:
    texts = pa.table({"s": ["a"]})
    for kind in (fs.MinMax, fs.RobustScale, fs.QuantileTransform, fs.QuantileBin, fs.Winsorize):
        with pytest.raises(SchemaError, match="takes numeric columns"):
            values_of(kind("s"), cut_table(texts, []))
        with pytest.raises(DefinitionError, match="nothing to learn from"):
            kind("x").finish({})
