"""Small tables with every kind of column, and one transformer of each kind, for tests of tables.

The functions here are module-level, so that a store opened by another process finds them again.
"""

from __future__ import annotations

import random
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.base import Transformer
from featurestore.transforms.calendar import Calendar
from featurestore.transforms.categories import Categorify
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.expression import Expression
from featurestore.transforms.forward import Forward
from featurestore.transforms.function import Function
from featurestore.transforms.impute import Impute
from featurestore.transforms.lag import Lag
from featurestore.transforms.lookup import Lookup
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.window import Rolling

HOUR = 3_600_000
KEYS = ("a", "b", "c", "d")
FIT_ON = ("1970-01-01", "1970-01-03")


def observations(rows: int = 400, seed: int = 0, start: int = 0, column: str = "x") -> pl.DataFrame:
    """Return rows of four keys, some 40 to the day, with nulls and ties of time; ``start`` in hours.

    Columns: ``k`` string, ``t`` timestamp, ``x`` (or ``column``) float64 with nulls, ``n`` int64 with
    nulls, ``word`` string with nulls. Key and time together are unique.
    """
    draw = random.Random(seed)
    slots = [(hour, key) for hour in range(max(1, rows // 3) + 1) for key in KEYS]
    chosen = sorted(draw.sample(slots, rows))

    def some(value: Any) -> Any:
        return None if draw.random() < 0.15 else value

    return pl.DataFrame(
        {
            "k": [key for _, key in chosen],
            "t": [(start + hour) * HOUR for hour, _ in chosen],
            column: [some(draw.gauss(0, 1)) for _ in chosen],
            "n": [some(draw.randrange(-50, 50)) for _ in chosen],
            "word": [some(draw.choice(["ein", "zwei", "drei ☃", ""])) for _ in chosen],
        },
        schema={
            "k": pl.String, "t": pl.Datetime("ms"), column: pl.Float64, "n": pl.Int64,
            "word": pl.String,
        },
    )  # fmt: skip


def names_of_keys() -> pl.DataFrame:
    """Return a static table: ``k`` and ``weight``, one key missing."""
    return pl.DataFrame({"k": list(KEYS[:3]), "weight": [1.5, 2.5, None]})


def plus_one(frame: Any) -> Any:
    return frame["x"] + 1


def two_wide(frame: Any) -> Any:
    x = frame["x"].fill_null(0.0).to_numpy()
    return np.stack([x, -x], axis=1).astype(np.float32)


def count_of_a_day(frame: Any) -> Any:
    """Rows of the last day, whatever their key; a function of a Polars frame."""
    return frame.select(pl.col("n").is_not_null().cast(pl.Int64).rolling_sum_by("t", "1d"))["n"]


def one_of_each(other: str = "other", static: str = "static") -> tuple[Transformer, ...]:
    """Return one transformer of each kind and scope without a fit, for ``observations``."""
    return (
        Expression(double=nw.col("x") * 2),
        Function(plus_one, inputs="x", output="more"),
        Function(two_wide, inputs="x", output="pair", shape=(2,)),
        Function(
            count_of_a_day,
            inputs=["t", "n"],
            output="recent",
            frame="polars",
            dtypes="int64",
            lookback="1d",
        ),
        Rolling("x", "12h", stats=["mean", "std", "min", "count"]),
        Rolling("n", 5, stats=["sum", "max"], closed="left"),
        Rolling("double", "1d", stats=["mean"], by=[], prefix="all_"),
        Lag("x", periods=[1, 3]),
        CrossSection("x", ["rank", "zscore"]),
        AsOfJoin(other, columns="y"),
        AsOfJoin(other, columns="y", max_age="2h", lag="1h", prefix="young_"),
        Lookup(static, columns="weight"),
        Calendar(parts=("hour", "weekday")),
    )


def labels_of_each() -> tuple[Transformer, ...]:
    """Return transformers that look ahead, for ``observations``."""
    return (
        Forward("x", 2, stats=["value", "return", "mean"]),
        Forward(["x", "n"], "6h", stats=["difference", "std", "count"]),
        Forward("word", 1, by=[], prefix="all_"),
    )


def fitted_of_each() -> tuple[Transformer, ...]:
    """Return one transformer of each kind that learns, for ``observations``."""
    return (
        Standardize("x", prefix="std_"),
        Impute("n", "mean", prefix="imp_"),
        Categorify("word", prefix="cat_"),
    )


MEANS = ("std_x", "imp_n")
"""Columns that hold a fitted mean: a sum of floats, whose last bit depends on the partitions."""


def assert_same_rows(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Assert that two frames hold the same bits, ``MEANS`` the same to 1e-12."""
    from polars.testing import assert_frame_equal

    means = [name for name in found.columns if name in MEANS]
    assert found.columns == expected.columns
    assert_frame_equal(found.drop(means), expected.drop(means), check_exact=True)
    assert_frame_equal(found.select(means), expected.select(means), rel_tol=1e-12, abs_tol=1e-12)
