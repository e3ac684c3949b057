"""XGBoost: rankings and base margins train as in memory, over pages that cut no query."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xgboost")

import xgboost

from featurestore.errors import InvalidInputError, MemoryLimitError
from featurestore.testing.datasets import ArrayPart, numbered_part
from training import Loader
from training.hooks.xgboost import XGBoostPages, dmatrix, feature_columns, page, predict_batches

RANKING = {
    "objective": "rank:ndcg",
    "eval_metric": "ndcg",
    "tree_method": "hist",
    "max_bin": 64,
    "nthread": 2,
    "seed": 0,
}


def ranked_part(weight: bool = False, seed: int = 0, queries: int = 120) -> ArrayPart:
    sizes = np.random.default_rng(seed).integers(1, 40, queries).tolist()
    rows = sum(sizes)
    part = numbered_part(
        rows, partitions=(rows // 3, rows - rows // 3), seed=seed, weight=weight, queries=sizes
    )
    assert part.label is not None
    few_values(part)
    part.label = np.clip(np.round(np.sin(part.inputs["numeric"]).sum(axis=1) + 2), 0, 4).astype(
        np.float32
    )
    return part


def few_values(part: ArrayPart) -> None:
    """Let columns have fewer values than bins: then all sketches cut between them alike."""
    part.inputs["numeric"][:] = np.round(part.inputs["numeric"] * 8) / 8 % 8


def whole(part: ArrayPart, ref: Any = None, **told: Any) -> Any:
    """Return all rows as a matrix that XGBoost makes by itself."""
    names, types = feature_columns(part.schema)
    batch = part.arrays(0) if len(part.partition_rows) == 1 else None
    inputs = page(batch, part.schema) if batch else _all(part)
    return xgboost.QuantileDMatrix(
        inputs, part.label, feature_names=names, feature_types=types, enable_categorical=True,
        max_bin=64, nthread=2, ref=ref, **told,
    )  # fmt: skip


def _all(part: ArrayPart) -> Any:
    pages = [page(part.arrays(i), part.schema) for i in range(len(part.partition_rows))]
    return np.concatenate(pages)


def _append(seen: list[Any], **given: Any) -> None:
    seen.append(given)


@pytest.mark.parametrize("weight", [False, True])
def test_a_ranking_trains_the_same_trees_as_in_memory(weight: bool, tmp_path: Path) -> None:
    part, other = ranked_part(weight), ranked_part(weight, seed=1, queries=40)
    matrices = []
    for number, one in enumerate((part, other)):
        assert one.group is not None
        starts = np.flatnonzero(np.diff(one.group, prepend=1))
        told = {} if one.weight is None else {"weight": one.weight[starts]}
        loader = Loader(one, 100, shuffle=True, cache=tmp_path)
        first = matrices[0] if number else (None, None)
        external = dmatrix(loader, first[0], max_bin=64, page_bytes=4 * 4 * 150, nthread=2)
        matrices.append((external, whole(one, first[1], qid=-one.group, **told)))
    (external, memory), (valid, known) = matrices
    assert (
        external.get_uint_info("group_ptr").tolist() == memory.get_uint_info("group_ptr").tolist()
    )
    scores: list[dict[str, Any]] = [{}, {}]
    boosters = [
        xgboost.train(
            RANKING, train, 8, evals=[(judge, "valid")], evals_result=seen, verbose_eval=False
        )
        for train, judge, seen in ((external, valid, scores[0]), (memory, known, scores[1]))
    ]
    assert boosters[0].get_dump() == boosters[1].get_dump()
    assert scores[0] == scores[1]
    assert scores[0]["valid"]["ndcg"][-1] > scores[0]["valid"]["ndcg"][0] + 0.01


def test_pages_end_where_queries_do(tmp_path: Path) -> None:
    part = ranked_part()
    pages = XGBoostPages(Loader(part, 100, cache=tmp_path), page_bytes=1)
    seen: list[Any] = []
    while pages.next(partial(_append, seen)):
        pass
    assert part.group is not None
    longest = int(np.unique(part.group, return_counts=True)[1].max())
    assert all(len(one["data"]) <= longest for one in seen)
    numbers = [one["qid"] for one in seen]
    assert all(set(one.tolist()).isdisjoint(numbers[i + 1]) for i, one in enumerate(numbers[:-1]))
    np.testing.assert_array_equal(np.concatenate(numbers), -part.group)


def test_a_query_in_two_places_is_refused(tmp_path: Path) -> None:
    part = ranked_part()
    assert part.group is not None
    part.group[-1] = part.group[0]
    with pytest.raises(
        InvalidInputError, match="group 'query' has value 0 from row 0 on and again"
    ):
        dmatrix(Loader(part, 100, cache=tmp_path))


def test_weights_that_differ_within_a_query_are_refused(tmp_path: Path) -> None:
    part = ranked_part(weight=True)
    assert part.weight is not None
    part.weight[:] = np.arange(part.rows)
    with pytest.raises(InvalidInputError, match="weighs whole queries"):
        dmatrix(Loader(part, 100, cache=tmp_path))


def test_queries_are_projected(tmp_path: Path) -> None:
    part = ranked_part()
    loader = Loader(part, 100, cache=tmp_path)
    assert len(loader.pack.schema.columns) == 6
    terms = {one.what: one.bytes for one in loader.xgboost().memory.terms}
    assert terms["120 queries"] == 48 * 120
    one_query = numbered_part(50_000, partitions=[5000] * 10, queries=(50_000,), numeric=400)
    tight = Loader(
        one_query, 10, cache=tmp_path / "b", memory_limit=one_query.reserved_bytes + 2**26
    )
    with pytest.raises(MemoryLimitError, match="page of 50000 rows"):
        tight.xgboost(page_bytes="1MiB")


@pytest.mark.parametrize("shape", [(), (3,)])
def test_base_margins_are_begun_from_as_in_memory(shape: tuple[int, ...], tmp_path: Path) -> None:
    part = numbered_part(2000, partitions=(900, 1100), margin=shape)
    few_values(part)
    params: dict[str, Any] = {
        "tree_method": "hist", "max_bin": 64, "nthread": 2, "objective": "reg:squarederror",
    }  # fmt: skip
    if shape:
        params |= {"objective": "multi:softprob", "num_class": 3}
    loader = Loader(part, 100, shuffle=True, cache=tmp_path)
    external = dmatrix(loader, max_bin=64, page_bytes=4 * 4 * 300, nthread=2)
    memory = whole(part, base_margin=part.base_margin)
    boosters = [xgboost.train(params, data, 5) for data in (external, memory)]
    assert boosters[0].get_dump() == boosters[1].get_dump()
    expected = boosters[1].predict(memory)
    plain = Loader(part, 128, cache=tmp_path)
    np.testing.assert_allclose(
        predict_batches(boosters[0], iter(plain), part.schema), expected, rtol=1e-5
    )
    without = whole(part)
    assert not np.allclose(boosters[1].predict(without), expected), "margins matter here"
    unmargined = Loader(numbered_part(10), 5, cache=tmp_path)
    with pytest.raises(InvalidInputError, match="begin from base_margin 'score'"):
        predict_batches(boosters[0], iter(unmargined), part.schema)


@pytest.mark.parametrize("shuffle", [False, True, "global"])
def test_batches_carry_queries_and_margins(shuffle: bool | str, tmp_path: Path) -> None:
    part = numbered_part(60, partitions=(25, 35), queries=(20, 5, 35), margin=(2,), weight=True)
    assert part.group is not None
    assert part.base_margin is not None
    for batch in Loader(part, 7, shuffle, last="pad", cache=tmp_path):
        numbers = batch.inputs["numeric"][:, 0].astype(int)
        assert batch.group is not None
        assert batch.group.dtype == np.int64
        np.testing.assert_array_equal(batch.group, part.group[numbers])
        assert batch.base_margin is not None
        np.testing.assert_array_equal(batch.base_margin, part.base_margin[numbers])
