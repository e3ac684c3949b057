"""GroupStats: brute force in exact arithmetic, and what floats would get wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Partition, Transformer
from featurestore.transforms.group_stats import STATISTICS

Rows = Sequence[Row]
ENGINE = PolarsEngine()


def statistic(values: list[Any], stat: str) -> Any:
    known = [one for one in values if one is not None and math.isfinite(one)]
    if stat == "count":
        return len(known)
    if len(known) < (2 if stat == "std" else 1):
        return None
    if stat in ("min", "max"):
        return min(known) if stat == "min" else max(known)
    exact = [Fraction(one) for one in known]
    mean = sum(exact, Fraction(0)) / len(exact)
    if stat == "mean":
        return float(mean)
    spread = sum(((one - mean) ** 2 for one in exact), Fraction(0)) / (len(exact) - 1)
    return math.sqrt(spread)


class TestGroupStats(TransformerContract):
    examples = 40
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.GroupStats,
            st.sampled_from(["x", "n", "b", ["x", "n"]]),
            by=st.sampled_from([None, "s", ["g", "b"], ["s", "k"]]),
            stats=st.lists(st.sampled_from(STATISTICS), min_size=1, unique=True),
        )

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        by = list(transformer.by or ["k"])
        out: dict[str, list[Any]] = {}
        for column in transformer.columns:
            for stat in transformer.stats:
                made = out.setdefault(f"{column}_{stat}_by_{'_'.join(by)}", [])
                for row in rows:
                    same = [one[column] for one in rows if all(one[k] == row[k] for k in by)]
                    unknown = any(row[name] is None for name in by)
                    made.append(None if unknown else statistic(same, stat))
        return out


def stats_of(values: Any, stat: str, groups: Any = None) -> list[Any]:
    column = pa.array(values)
    keys = pa.array(np.zeros(len(column), dtype=np.int64) if groups is None else groups)
    schema = TableSchema((Field("k", keys.type), Field("v", column.type)))
    part = Partition(ENGINE.from_arrow(pa.table({"k": keys, "v": column})), schema)
    one = fs.GroupStats("v", by="k", stats=stat)
    columns = one.apply(part, one.finish(one.summarize(part, ENGINE)), ENGINE)
    assert columns.frame is not None
    return list(columns.frame.get_column(f"v_{stat}_by_k").to_list())


@pytest.mark.parametrize("shift", [0.0, 1e6, 1e12])
def test_the_deviation_survives_a_mean_that_is_far_larger(shift: float) -> None:
    values = shift + np.random.default_rng(0).standard_normal(1000)
    found = stats_of(values, "std")[0]
    assert found == pytest.approx(statistic(values.tolist(), "std"), rel=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint64", "float32", "float64"])
def test_extremes_of_a_type_do_not_overflow(dtype: str) -> None:
    integral = np.dtype(dtype).kind in "iu"
    limits: Any = np.iinfo(dtype) if integral else np.finfo(dtype)
    values = np.array([limits.max, limits.max, limits.min, limits.max], dtype=dtype)
    exact = [one.item() for one in values]
    assert stats_of(values, "mean")[0] == pytest.approx(statistic(exact, "mean"), rel=1e-15)
    if integral:
        assert stats_of(values, "std")[0] == pytest.approx(statistic(exact, "std"), rel=1e-12)
    assert stats_of(values, "max")[0] == exact[0]


def test_equal_values_have_no_deviation() -> None:
    assert stats_of([0.1] * 7, "std") == [0.0] * 7
    assert stats_of([1e300, 1e300], "std") == [0.0, 0.0]


def test_groups_and_rows_that_were_not_learnt_get_nulls() -> None:
    schema = TableSchema((Field("k", pa.string()), Field("v", pa.int64())))
    one = fs.GroupStats("v", by="k", stats=["mean", "count"])
    part = Partition(ENGINE.from_arrow(pa.table({"k": ["a"], "v": [3]})), schema)
    state = one.finish(one.summarize(part, ENGINE))
    new = Partition(ENGINE.from_arrow(pa.table({"k": ["a", "b", None]})), schema)
    columns = one.apply(new, state, ENGINE)
    assert columns.frame is not None
    assert columns.frame.rows() == [(3.0, 1), (None, None), (None, None)]


def test_what_has_no_groups_is_refused() -> None:
    schema = TableSchema((Field("k", pa.float64()), Field("v", pa.string())))
    with pytest.raises(SchemaError, match="distinct values"):
        fs.GroupStats("v", by="k").inputs(schema)
    with pytest.raises(SchemaError, match="numeric"):
        fs.GroupStats("v", by="v").outputs(schema)
    with pytest.raises(DefinitionError, match="stats="):
        fs.GroupStats("v", by="k", stats=["median"])
    with pytest.raises(DefinitionError, match="one group"):
        fs.GroupStats("v", by=[])
