"""CrossSection against brute force; neither partitions nor the order of rows may matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import TableSchema
from featurestore.testing import oracles
from featurestore.testing.strategies import cuts, tables
from featurestore.transforms.base import Scope, transformer_from_spec
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.extent import Extent

ENGINE = PolarsEngine()
STATS = ["rank", "zscore"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=120)
@given(
    tables(), st.sampled_from(["x", "n", "b"]), st.sampled_from([None, ["g"], ["k", "g"]]), cuts(),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_equals_the_oracle_however_cut_and_ordered(
    table: pa.Table, column: str, by: Any, points: list[int], random: Any
) -> None:
    schema = oracles.schema_of(table, ["k"], "t")
    section = CrossSection(column, STATS, by=by)
    whole = oracles.run_partitioned(section, [table], schema, ENGINE)
    pieces = [*oracles.cut(table, "t", points), table.slice(0, 0)]
    assert oracles.same_values(whole, oracles.run_partitioned(section, pieces, schema, ENGINE))
    rows = oracles.rows_of(table)
    for stat in STATS:
        wanted = oracles.cross_section(rows, column, stat, ["t", *(by or [])])
        actual = whole[f"{column}_{stat}"].to_pylist()
        assert oracles.close_values(actual, wanted, 1e-7), (stat, actual, wanted)
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = oracles.run_partitioned(
        section, [table.take(pa.array(order, pa.int64()))], schema, ENGINE
    )
    assert oracles.same_values(shuffled, whole.take(pa.array(order, pa.int64())))


def run(values: list[Any], stats: Any) -> list[Any]:
    table = pa.table({"t": pa.array([1] * len(values)), "x": pa.array(values, pa.float64())})
    schema = oracles.schema_of(table, [], "t")
    out = oracles.run_partitioned(CrossSection("x", stats), [table], schema, ENGINE)
    return list(out.column(0).to_pylist())


def test_ranks_are_average_shares_and_leave_out_missing_values() -> None:
    assert run([10.0, 30.0, 20.0, 20.0], "rank") == [0.25, 1.0, 0.625, 0.625]
    ranks = run([None, 2.0, math.nan, 1.0], "rank")
    assert ranks[0] is None
    assert math.isnan(ranks[2])
    assert (ranks[1], ranks[3]) == (1.0, 0.5)
    assert run([math.inf, 0.0, -math.inf], "rank") == [1.0, 2 / 3, 1 / 3]
    assert run([-0.0, 0.0], "rank") == [0.75, 0.75]


def test_zscores_of_equal_or_single_values_are_zero() -> None:
    assert run([0.1, 0.1, 0.1, None], "zscore") == [0.0, 0.0, 0.0, None]
    assert run([7.0], "zscore") == [0.0]
    assert all(math.isnan(one) for one in run([1.0, math.inf], "zscore"))
    assert run([1.0, 2.0, 3.0], "zscore") == [-1.0, 0.0, 1.0]


def test_large_integers_are_ranked_exactly() -> None:
    table = pa.table({"t": [1, 1, 1], "n": pa.array([2**62, 2**62 + 1, 2**62 - 1])})
    schema = oracles.schema_of(table, [], "t")
    out = oracles.run_partitioned(CrossSection("n"), [table], schema, ENGINE)
    assert out["n_rank"].to_pylist() == [2 / 3, 1.0, 1 / 3]


def test_many_rows_against_numpy() -> None:
    rng = np.random.default_rng(3)
    time, values = np.sort(rng.integers(0, 40, 20_000)), rng.standard_normal(20_000)
    table = pa.table({"t": time, "x": values})
    schema = oracles.schema_of(table, [], "t")
    out = oracles.run_partitioned(CrossSection("x", STATS), [table], schema, ENGINE)
    ranks, scores = out["x_rank"].to_numpy(), out["x_zscore"].to_numpy()
    for one in range(40):
        group = time == one
        inside = values[group]
        np.testing.assert_allclose(ranks[group], (inside.argsort().argsort() + 1) / group.sum())
        np.testing.assert_allclose(
            scores[group], (inside - inside.mean()) / inside.std(ddof=1), atol=1e-12
        )


def test_definitions() -> None:
    section = CrossSection("x", STATS, by="g", rename={"x_rank": "place"})
    assert section.scope is Scope.NONE
    assert transformer_from_spec(section.spec()) == section
    schema = oracles.schema_of(pa.table({"t": [1], "x": [1.0], "g": ["a"], "s": ["a"]}), [], "t")
    assert [field.name for field in section.outputs(schema)] == ["place", "x_zscore"]
    assert section.inputs(schema) == ("t", "g", "x")
    with pytest.raises(DefinitionError, match="no time column"):
        section.inputs(TableSchema(schema.fields))
    with pytest.raises(SchemaError, match="'s' of type string"):
        CrossSection("s").inputs(schema)
    with pytest.raises(DefinitionError, match="stats"):
        CrossSection("x", "median")


def test_peak_memory_is_within_the_model() -> None:
    import tracemalloc

    from featurestore.transforms.base import Partition

    rng = np.random.default_rng(0)
    table = pa.table({"t": np.sort(rng.integers(0, 500, 200_000)), "x": rng.random(200_000)})
    schema = oracles.schema_of(table, [], "t")
    section, part = CrossSection("x", STATS), Partition(ENGINE.from_arrow(table), schema)
    tracemalloc.start()
    section.apply(part, {}, ENGINE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - 2 * 8 * len(table) <= section.memory(
        schema, Extent(len(table), {"": table.nbytes})
    )
