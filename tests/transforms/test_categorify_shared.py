"""Categorify with shared vocabularies and buckets for what was not learnt: brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.hashing import hash_columns
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer

Rows = Sequence[Row]
ENGINE = PolarsEngine()


def bucket(value: Any, buckets: int) -> int:
    frame = ENGINE.from_arrow(pa.table({"v": [value]}))
    return 1 + int(hash_columns(ENGINE, frame, ["v"], 0)[0] % buckets)


class TestSharedCategorify(TransformerContract):
    examples = 30
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.Categorify,
            st.just(["s", "k"]),
            max_size=st.sampled_from([None, 2]),
            min_count=st.sampled_from([1, 2]),
            oov_buckets=st.sampled_from([1, 4]),
            shared=st.sampled_from([False, True, [["k", "s"]]]),
            prefix=st.just("c_"),
        )

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        groups = [["s", "k"]] if transformer.shared else [["s"], ["k"]]
        out = {}
        for group in groups:
            values = [row[name] for name in group for row in rows if row[name] is not None]
            counts = {one: values.count(one) for one in values}
            kept = [one for one, n in counts.items() if n >= transformer.min_count]
            ranks = {one: (-counts[one], one.encode()) for one in kept}
            learnt = sorted(kept, key=ranks.__getitem__)[: transformer.max_size]
            first = 1 + transformer.oov_buckets
            codes = {one: first + number for number, one in enumerate(learnt)}
            for name in group:
                out[f"c_{name}"] = [
                    0
                    if row[name] is None
                    else codes.get(row[name], 0) or bucket(row[name], transformer.oov_buckets)
                    for row in rows
                ]
        return {name: out[name] for name in ("c_s", "c_k")}


ROUTES = pl.DataFrame(
    {"origin": ["JFK", "LAX", "JFK"], "dest": ["LAX", "LAX", "SFO"], "n": [1, 2, 3]}
)


def test_a_value_has_one_code_wherever_it_stands() -> None:
    fitted = fs.Pipeline(fs.Categorify(["origin", "dest"], shared=True)).fit(ROUTES)
    assert fitted.transform(ROUTES).select("origin", "dest").rows() == [(3, 2), (2, 2), (3, 4)]
    assert fitted.cardinalities() == {"origin": 5, "dest": 5}


def test_columns_of_no_group_learn_by_themselves() -> None:
    airports = fs.Categorify(["origin", "dest", "n"], shared=[["origin", "dest"]], oov_buckets=8)
    fitted = fs.Pipeline(airports).fit(ROUTES)
    assert fitted.cardinalities() == {"origin": 12, "dest": 12, "n": 12}
    new = pl.DataFrame({"origin": ["OSL", None], "dest": ["BER", "SFO"], "n": [7, 1]})
    codes = fitted.transform(new)
    assert codes["origin"][0] == bucket("OSL", 8)
    assert codes["dest"].to_list() == [bucket("BER", 8), 11]
    assert codes["origin"][1] == 0


def test_a_plain_definition_keeps_its_fingerprint() -> None:
    def params(one: fs.Categorify) -> list[str]:
        held = one.spec()["params"]
        assert isinstance(held, dict)
        return sorted(held)

    plain = ["columns", "max_size", "min_count", "prefix", "rename", "suffix"]
    assert params(fs.Categorify("c")) == plain
    assert "oov_buckets" in params(fs.Categorify("c", oov_buckets=2))


def test_states_of_one_vocabulary_and_of_several_are_told_apart() -> None:
    both = ["origin", "dest"]
    prints = {fs.Categorify(both, shared=one).state_fingerprint() for one in (False, True, [both])}
    assert len(prints) == 3
    assert (
        fs.Categorify(both).state_fingerprint()
        == fs.Categorify(both, max_size=5).state_fingerprint()
    )


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(SchemaError, match="share a vocabulary"):
        fs.Pipeline(fs.Categorify(["origin", "n"], shared=True)).fit(ROUTES)
    with pytest.raises(SchemaError, match="not among the columns"):
        fs.Pipeline(fs.Categorify("origin", shared=[["dest"]])).fit(ROUTES)
    wrongs: list[Any] = [[["a"], ["a"]], ["ab"], [[]]]
    for wrong in wrongs:
        with pytest.raises(DefinitionError, match="groups"):
            fs.Categorify(["a"], shared=wrong)
    with pytest.raises(DefinitionError, match="oov_buckets"):
        fs.Categorify(["a"], oov_buckets=0)
