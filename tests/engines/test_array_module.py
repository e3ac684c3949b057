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
from featurestore.testing.engine_contract import random_table
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.base import SourceTransformer, Transformer
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.lookup import Lookup
from featurestore.transforms.window import Lag, Rolling

IN_CUPY = frozenset(
    [
        "abs",
        "arange",
        "argsort",
        "asarray",
        "bool_",
        "clip",
        "concatenate",
        "cumsum",
        "diff",
        "empty",
        "empty_like",
        "flatnonzero",
        "float64",
        "full",
        "int64",
        "int8",
        "isfinite",
        "isinf",
        "isnan",
        "maximum",
        "minimum",
        "nan",
        "ones",
        "searchsorted",
        "sort",
        "sqrt",
        "uint64",
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
        Rolling(["x", "n", "b"], "40ms", STATS, closed="left", lag="3ms"),
        Rolling(["x", "b"], 5, STATS, by=["g"], min_count=2),
        Lag(["x", "s"], [1, 3]),
        CrossSection(["x", "n", "b"], ["rank", "zscore"], by="g"),
        AsOfJoin("o", ["x", "s"], lag="2ms", prefix="o_"),
        AsOfJoin("o", ["n"], by=["g"], max_age="30ms", exact=False, prefix="o_"),
        Lookup("o", ["s"], by=["k", "n"], prefix="o_"),
    ],
    ids=lambda one: type(one).__name__,
)
@pytest.mark.parametrize("rows", [0, 200])
def test_kernels_stay_within_the_shared_module(transformer: Transformer, rows: int) -> None:
    table, right = random_table(rows, 1), random_table(rows // 2, 2)
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
