"""Kernels may use only what NumPy and CuPy both have: checked here without a GPU.

An array module that hands out nothing but the functions on a list runs every transformer that stands
on kernels. The list is of functions CuPy documents; a new one is added after looking it up there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.engines.hashing import hash_columns
from featurestore.engines.polars import PolarsEngine
from featurestore.testing import oracles
from featurestore.testing.engine_contract import late_table, random_table
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.asof_aggregate import AsOfAggregate
from featurestore.transforms.asof_window import AsOfWindow
from featurestore.transforms.base import SourceTransformer, Transformer
from featurestore.transforms.bucketize import Bucketize
from featurestore.transforms.cast import Cast
from featurestore.transforms.clip import Clip
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.forward import STATISTICS as FORWARD
from featurestore.transforms.forward import Forward
from featurestore.transforms.hash_buckets import Hash, HashCross
from featurestore.transforms.lag import Lag
from featurestore.transforms.log import Log
from featurestore.transforms.lookup import Lookup
from featurestore.transforms.min_max import MinMax
from featurestore.transforms.one_hot import OneHot
from featurestore.transforms.quantile_bin import QuantileBin
from featurestore.transforms.quantile_transform import QuantileTransform
from featurestore.transforms.rank import Rank
from featurestore.transforms.robust_scale import RobustScale
from featurestore.transforms.window import Rolling
from featurestore.transforms.winsorize import Winsorize
from featurestore.transforms.zscore import Demean, ZScore

IN_CUPY = frozenset(
    [
        "abs",
        "arange",
        "argsort",
        "asarray",
        "bool_",
        "clip",
        "concatenate",
        "copysign",
        "count_nonzero",
        "cumsum",
        "diff",
        "empty",
        "empty_like",
        "flatnonzero",
        "floor",
        "frexp",
        "float64",
        "full",
        "inf",
        "int32",
        "interp",
        "int64",
        "int8",
        "isfinite",
        "isinf",
        "isnan",
        "ldexp",
        "log",
        "log1p",
        "maximum",
        "minimum",
        "nan",
        "ones",
        "searchsorted",
        "sort",
        "sqrt",
        "subtract",
        "trunc",
        "uint16",
        "uint64",
        "uint8",
        "unique",
        "where",
        "zeros",
        "zeros_like",
        "any",
        "all",
    ]
)
STATS = ("mean", "std", "sum", "min", "max", "count", "first", "last")


class SharedModule:
    """NumPy, as far as CuPy has it too."""

    def __getattr__(self, name: str) -> Any:
        if name not in IN_CUPY:
            raise AttributeError(f"a kernel uses xp.{name}, which is not known to be in CuPy")
        return getattr(np, name)


class SharedEngine(PolarsEngine):
    @property
    def xp(self) -> Any:
        return SharedModule()


@pytest.mark.parametrize(
    "transformer",
    [
        Rolling(["x", "n", "b"], "40ms", stats=STATS, closed="left", lag="3ms"),
        Rolling(["x", "b"], 5, stats=STATS, by=["g"], min_count=2),
        Lag(["x", "s"], [1, 3]),
        Forward(["x", "n", "b"], "40ms", stats=FORWARD),
        Forward(["x", "n"], 3, stats=FORWARD, by=["g"], min_count=2),
        CrossSection(["x", "n", "b"], ["rank", "zscore"], by="g"),
        Rank(["x", "n", "b"], "dense", by="g", ascending=False),
        ZScore(["x", "n", "b"]),
        Demean(["x", "n", "b"], by="g"),
        Winsorize(["x", "n"], (0.1, 0.8), within="time", prefix="w_"),
        QuantileBin(["x", "n"], 4, within="time", prefix="q_"),
        MinMax(["x", "n", "b"], feature_range=(-1, 1), clip=True, prefix="m_"),
        RobustScale(["x", "n", "b"], prefix="r_"),
        QuantileTransform(["x", "n"], n_quantiles=20, distribution="normal", prefix="t_"),
        QuantileBin(["x", "n", "b"], 4, prefix="q_"),
        Winsorize(["x", "n"], (0.1, 0.8), prefix="w_"),
        Clip(["x", "n"], -1, 2, prefix="c_"),
        *(Log(["x", "n", "b"], kind, prefix="l_") for kind in ("log1p", "log", "signed")),
        Bucketize(["x", "n", "b"], [-1.5, 0, 2], prefix="b_"),
        *(
            Cast(["x", "n", "b"], one, overflow="null", prefix="c_")
            for one in ("int8", "float32", "bool")
        ),
        Hash(["s", "n", "b"], 50, prefix="h_"),
        HashCross(["s", "n"], 50),
        OneHot("s", ["a", "b"]),
        OneHot("n", [1, 2**40]),
        AsOfJoin("o", ["x", "s"], lag="2ms", prefix="o_"),
        AsOfJoin("o", ["n"], by=["g"], max_age="30ms", exact=False, prefix="o_"),
        AsOfJoin("o", ["n"], by=["k"], available="a", prefix="o_"),
        AsOfAggregate("o", ["x", "n"], "30ms", stats=STATS, closed="left", lag="2ms"),
        AsOfAggregate("o", ["x", "b"], "90ms", stats=STATS, by=["g"], available="a"),
        AsOfWindow("o", ["x", "b"], 3, fill_value=0.0, length=True, available="a"),
        Lookup("o", ["s"], by=["k", "n"], prefix="o_"),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("rows", [0, 200])
def test_kernels_stay_within_the_shared_module(transformer: Transformer, rows: int) -> None:
    table, right = random_table(rows, 1), late_table(rows // 2, 2)
    schema = oracles.schema_of(table, ["k"], "t", {"o": oracles.schema_of(right, ["k"], "t")})
    parts = oracles.cut(table, "t", [rows // 3, rows // 2])
    source = [right] if isinstance(transformer, SourceTransformer) else []
    shared, plain = (
        oracles.run_partitioned(transformer, parts, schema, engine, source)
        for engine in (SharedEngine(), PolarsEngine())
    )
    assert oracles.same_values(shared, plain)


def test_hashes_stay_within_the_shared_module() -> None:
    table = random_table(50, 3).append_column("long", pa.array(["x" * 99, "y" * 50] * 25))
    shared, plain = (
        hash_columns(engine, engine.from_arrow(table), table.column_names).tolist()
        for engine in (SharedEngine(), PolarsEngine())
    )
    assert shared == plain
