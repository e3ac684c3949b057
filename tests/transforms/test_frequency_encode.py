"""FrequencyEncode: brute force, rare and unknown values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import DefinitionError, SchemaError
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer

Rows = Sequence[Row]


class TestFrequencyEncode(TransformerContract):
    examples = 40
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.FrequencyEncode,
            st.sampled_from([["s"], ["g", "b"], ["n"]]),
            share=st.booleans(),
            min_count=st.sampled_from([1, 2]),
            prefix=st.just("f_"),
        )

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        out = {}
        for name in transformer.columns:
            values = [row[name] for row in rows]
            known = [one for one in values if one is not None]
            counts = {one: known.count(one) for one in known}
            kept = {one: n if n >= transformer.min_count else 0 for one, n in counts.items()}
            whole = len(known) if transformer.share else 1
            out[f"f_{name}"] = [
                None if one is None else kept[one] / whole if transformer.share else kept[one]
                for one in values
            ]
        return out


def test_values_that_were_not_learnt_occur_never() -> None:
    fitted = fs.Pipeline(fs.FrequencyEncode("c", share=True)).fit(
        pl.DataFrame({"c": ["a", "a", "b"]})
    )
    new = fitted.transform(pl.DataFrame({"c": ["b", "z", None]}))
    assert new["c"].to_list() == [1 / 3, 0.0, None]


def test_nothing_known_gives_zero() -> None:
    fitted = fs.Pipeline(fs.FrequencyEncode("c", share=True)).fit(
        pl.DataFrame({"c": [None, None]}, schema={"c": pl.String})
    )
    assert fitted.transform(pl.DataFrame({"c": ["b"]}))["c"].to_list() == [0.0]


def test_what_is_not_discrete_is_refused() -> None:
    with pytest.raises(SchemaError, match="distinct values"):
        fs.Pipeline(fs.FrequencyEncode("x")).fit(pl.DataFrame({"x": [0.5]}))
    with pytest.raises(DefinitionError, match="min_count"):
        fs.FrequencyEncode("c", min_count=0)
