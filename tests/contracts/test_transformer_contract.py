"""The transformers' contract, on one of each scope; the others have it in their own modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

import featurestore as fs
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.strategies import tables
from featurestore.testing.transformer_contract import OTHER, TransformerContract
from featurestore.transforms.base import Transformer

Rows = Sequence[Row]


class TestLag(TransformerContract):
    examples = 20

    def transformers(self) -> st.SearchStrategy[Transformer]:
        columns = st.sampled_from(["x", "n", "b", "s"])
        return st.builds(fs.Lag, columns, st.integers(1, 4), by=st.sampled_from([None, ["g"], []]))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,), (count,) = transformer.columns, transformer.periods
        by = ["k"] if transformer.by is None else list(transformer.by)
        return {f"{column}_lag_{count}": oracles.lag(rows, column, count, by)}


class TestCategorify(TransformerContract):
    examples = 20

    def transformers(self) -> st.SearchStrategy[Transformer]:
        sizes = st.sampled_from([None, 1, 2])
        columns = st.sampled_from(["s", "n", "b"])
        return st.builds(
            fs.Categorify,
            columns,
            max_size=sizes,
            min_count=st.integers(1, 2),
            prefix=st.just("c_"),
        )

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        (column,) = transformer.columns
        values = [row[column] for row in rows]
        counts = {one: values.count(one) for one in values if one is not None}
        often = [one for one in counts if counts[one] >= transformer.min_count]
        ranked = sorted(often, key=lambda one: (-counts[one], _bytes(one)))[: transformer.max_size]
        codes = {one: 2 + i for i, one in enumerate(ranked)}
        return {f"c_{column}": [0 if one is None else codes.get(one, 1) for one in values]}


class TestAsOfJoin(TransformerContract):
    examples = 20

    def transformers(self) -> st.SearchStrategy[Transformer]:
        ages = st.sampled_from([None, "7us", "100us"])
        return st.builds(
            fs.AsOfJoin, st.just(OTHER), st.just(["x"]), exact=st.booleans(),
            by=st.just({"k": "k"}), lag=st.just("2us"), max_age=ages, prefix=st.just("j_"),
        )  # fmt: skip

    def others(self) -> st.SearchStrategy[pa.Table]:
        return tables()

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        age = None if transformer.max_age is None else transformer.max_age.in_unit("us")
        options = {"lag": 2, "max_age": age, "exact": transformer.exact}
        return {"j_x": oracles.asof(rows, other, "x", {"k": "k"}, ("t", "t"), **options)}


def _bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value
