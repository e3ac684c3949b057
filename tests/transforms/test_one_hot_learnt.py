"""OneHot of categories that are learnt: brute force, cut in every way, and in a dataset's pipeline."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing import oracles
from featurestore.testing.strategies import TEXTS
from featurestore.transforms.base import Partition, transformer_from_spec

ENGINE = PolarsEngine()
SCHEMA = TableSchema((Field("c", pa.string()),))


def part(values: Sequence[str | None]) -> Partition:
    return Partition(ENGINE.from_arrow(pa.table({"c": pa.array(values, pa.string())})), SCHEMA)


def brute_force(one: fs.OneHot, values: Sequence[str | None]) -> list[list[int]]:
    counts = Counter(value for value in values if value is not None)
    kept = [value for value, n in counts.items() if n >= one.min_count]
    ranked = sorted(kept, key=lambda value: (-counts[value], value.encode()))
    assert one.size is not None
    places = (ranked + [None] * one.size)[: one.size]
    return [[int(v is not None and v == place) for place in places] for v in values]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(TEXTS, max_size=20),
    st.lists(st.integers(0, 20), max_size=3),
    st.builds(
        fs.OneHot, st.just("c"), size=st.sampled_from([1, 3, 9]), min_count=st.sampled_from([1, 2])
    ),
)
def test_values_equal_brute_force_however_rows_are_cut(
    values: list[str | None], points: list[int], one: fs.OneHot
) -> None:
    whole = pa.table({"c": pa.array(values, pa.string())})
    pieces = [part(piece["c"].to_pylist()) for piece in oracles.cut(whole, None, points)]
    state = one.finish(one.combine_all([one.summarize(piece, ENGINE) for piece in pieces]))
    made = [one.apply(piece, state, ENGINE).tensors["c_one_hot"] for piece in pieces]
    assert np.concatenate(made).tolist() == brute_force(one, values)
    assert transformer_from_spec(one.spec()) == one


def test_a_dataset_learns_the_categories_of_its_training_part() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    rows = pl.DataFrame({"t": range(6), "c": ["b", "a", "b", "z", "a", None], "y": [1.0] * 6})
    table = store.ingest("rows", rows, time="t", partition_bytes=60)
    data = table.dataset(
        ["c"], label="y", split=fs.TimeSplit(valid=3), pipeline=fs.Pipeline(fs.OneHot("c", size=2))
    )
    held = [np.concatenate([one.tensors["c_one_hot"] for one in data.part(name).frames()])
            for name in ("train", "valid")]  # fmt: skip
    assert held[0].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert held[1].tolist() == [[0, 0], [0, 1], [0, 0]]


def test_what_cannot_be_learnt_is_refused() -> None:
    for wrong in ({"size": 0}, {"size": 2, "categories": ["a"]}, {"size": 2, "min_count": 0}):
        with pytest.raises(DefinitionError, match="to be learnt"):
            fs.OneHot("c", **wrong)
    with pytest.raises(SchemaError, match="distinct values"):
        fs.OneHot("x", size=2).inputs(TableSchema((Field("x", pa.float64()),)))
