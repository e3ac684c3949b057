"""The trial of partition independence: what passes, what is caught, and what the message says."""

from __future__ import annotations

import math
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

from featurestore.engines.selection import get_engine
from featurestore.errors import NotPartitionIndependentError
from featurestore.testing.partitions import cut_table
from featurestore.transforms.expression import Expression
from featurestore.transforms.function import Function
from featurestore.transforms.independence import check_partition_independent
from featurestore.transforms.standardize import Standardize

ENGINE = get_engine("polars")
TABLE = pa.table(
    {
        "t": [1, 1, 2, 3, 3, 3, 7, 9],
        "x": pa.array([1.0, math.nan, None, -2.0, 5.0, math.inf, 0.0, 3.0]),
        "n": [3, 1, 2, 9, 8, 7, 7, 0],
        "s": ["a", "b", None, "a", "", "c", "c", "a"],
    }
)


def check(fn: Any, inputs: Any, table: pa.Table = TABLE, **options: Any) -> None:
    (sample,) = cut_table(table, time="t")
    check_partition_independent(
        Function(fn, inputs, **options).bind(sample, ENGINE), sample, ENGINE
    )


def row_wise(df: Any) -> Any:
    return {"y": df["x"] * 2, "z": df["s"].str.to_uppercase(), "b": df["n"] > 3}


def tensor(df: Any) -> Any:
    return np.outer(df["n"].to_numpy(), [1.0, np.nan])


def minus_mean(df: Any) -> Any:
    return df["n"] - df["n"].mean()


def previous(df: Any) -> Any:
    return df["s"].shift(1)


def row_number(df: Any) -> Any:
    return np.arange(len(df))


def sorted_values(df: Any) -> Any:
    return df["n"].sort()


def scaled_tensor(df: Any) -> Any:
    n = df["n"].to_numpy().astype(float)
    return np.stack([n, n / n.max()], axis=1)


def random_numbers(df: Any) -> Any:
    return np.random.default_rng(0).normal(size=len(df))


def last_only(df: Any) -> Any:
    out = np.zeros(len(df))
    out[-1] = 1
    return out


def test_row_wise_functions_pass() -> None:
    check(row_wise, ["x", "s", "n"])
    check(tensor, "n", shape=(2,))
    for rows in (0, 1, 2):
        (sample,) = cut_table(TABLE.slice(0, rows), time="t")
        feature = Function(tensor, "n", shape=(2,), dtypes="float64")
        check_partition_independent(feature, sample, ENGINE)


@pytest.mark.parametrize("fn", [minus_mean, row_number, sorted_values, random_numbers, last_only])
def test_dependence_on_other_rows_is_caught(fn: Any) -> None:
    with pytest.raises(NotPartitionIndependentError) as caught:
        check(fn, "n")
    assert "lookback" in caught.value.remedy


def test_the_message_names_row_and_values() -> None:
    with pytest.raises(NotPartitionIndependentError, match=r"'previous'.*row 1 of 8 is 'a'.*None"):
        check(previous, "s")
    with pytest.raises(NotPartitionIndependentError, match=r"row \d of 8 is \[\d.*\] when"):
        check(scaled_tensor, "n", shape=(2,))


def last_two_steps(df: Any) -> Any:
    t, n = df["t"].to_numpy(), df["n"].to_numpy()
    return np.array([n[(t <= one) & (t >= one - 2)].sum() for one in t])


def test_declared_history_is_given_and_undeclared_is_caught() -> None:
    check(last_two_steps, ["t", "n"], lookback=2)
    with pytest.raises(NotPartitionIndependentError):
        check(last_two_steps, ["t", "n"], lookback=1)
    with pytest.raises(NotPartitionIndependentError):
        check(last_two_steps, ["t", "n"])
    # One timestamp only: a table is never cut there, so there is nothing to compare.
    check(last_two_steps, ["t", "n"], TABLE.slice(3, 3), lookback=1)


def test_other_transformers_pass() -> None:
    (sample,) = cut_table(TABLE, time="t")
    check_partition_independent(Expression(y=nw.col("x") + 1), sample, ENGINE)
    check_partition_independent(Standardize(["x", "n"]), sample, ENGINE)
