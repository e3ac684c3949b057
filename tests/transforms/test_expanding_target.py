"""ExpandingTarget against brute force, however rows are cut; it leaks nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer

ENGINE = PolarsEngine()
Rows = Sequence[Row]


class TestExpandingTarget(TransformerContract):
    examples = 40

    def transformers(self) -> st.SearchStrategy[Transformer]:
        columns = st.sampled_from([["k"], ["g", "s"], ["b"]])
        lags = st.sampled_from([None, None, "1us", "5us"])
        return st.builds(
            fs.ExpandingTarget, columns, st.sampled_from(["x", "n", "b"]),
            smoothing=st.sampled_from([0.0, 2.5]), lag=lags, prefix=st.just("p_"),
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        lag = 0 if transformer.lag is None else transformer.lag.in_unit("us")
        label, smoothing = transformer.label, transformer.smoothing
        out = {}
        for column in transformer.columns:
            made: list[Any] = []
            for row in rows:
                known = [
                    one
                    for one in rows
                    if one["t"] < row["t"]
                    and one["t"] + lag <= row["t"]
                    and one[label] is not None
                    and math.isfinite(one[label])
                ]
                own = [one[label] for one in known if one[column] == row[column]]
                if not known or row[column] is None:
                    made.append(None)
                    continue
                mean = math.fsum(one[label] for one in known) / len(known)
                total = math.fsum(own) + smoothing * mean
                made.append(total / (len(own) + smoothing) if own else mean)
            out[f"p_{column}_target_{label}"] = made
        return out


def test_random_labels_leave_no_trace() -> None:
    rng = np.random.default_rng(0)
    rows = 40_000
    table = pa.table(
        {
            "t": np.sort(rng.integers(0, 2_000, rows)),
            "c": rng.integers(0, 3_000, rows),
            "y": rng.integers(0, 2, rows),
        }
    )
    schema = oracles.schema_of(table, [], "t")
    coded = fs.ExpandingTarget("c", "y", smoothing=0.0)
    whole = oracles.run_partitioned(coded, [table], schema, ENGINE)
    values, label = whole.column(0).to_numpy(), table["y"].to_numpy()
    known = np.isfinite(values)
    assert abs(np.corrcoef(values[known], label[known])[0, 1]) < 0.02
    parts = oracles.cut(table, "t", range(0, rows, 3_000))
    assert oracles.same_values(whole, oracles.run_partitioned(coded, parts, schema, ENGINE))


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in (-1.0, math.nan, True, "1"):
        with pytest.raises(DefinitionError, match="smoothing"):
            fs.ExpandingTarget("c", "y", smoothing=wrong)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="label"):
        fs.ExpandingTarget("c", ["y"])  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="lag"):
        fs.ExpandingTarget("c", "y", lag=3)
    schema = oracles.schema_of(pa.table({"t": [1], "c": ["a"], "y": [1.0]}), [], "t")
    with pytest.raises(SchemaError, match="for categories"):
        fs.ExpandingTarget("y", "y").inputs(schema)
    with pytest.raises(SchemaError, match="learn from label"):
        fs.ExpandingTarget("c", "c").inputs(schema)
