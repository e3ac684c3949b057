"""NDCG: against a walk through each query, and against XGBoost's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import evaluate
from training.ranking import ndcg

Query = list[tuple[int, float]]
QUERIES = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1),
    min_size=1,
    max_size=8,
)


def walked(queries: list[Query]) -> float:
    def gain(ranked: Query) -> float:
        return sum((2**label - 1) / math.log2(i + 2) for i, (label, _) in enumerate(ranked))

    found = []
    for query in queries:
        best = gain(sorted(query, key=lambda row: -row[0]))
        found.append(gain(sorted(query, key=lambda row: -row[1])) / best if best else 1.0)
    return sum(found) / len(found)


@given(QUERIES)
def test_it_is_that_of_a_walk(queries: list[Query]) -> None:
    label, score = (np.array([row[i] for one in queries for row in one]) for i in (0, 1))
    group = np.repeat(np.arange(len(queries))[::-1], [len(one) for one in queries])
    assert ndcg(label, score, group) == pytest.approx(walked(queries))
    found = evaluate("ranking", label, score.astype(np.float32), group)
    assert found == pytest.approx({"loss": 1 - walked(queries), "ndcg": walked(queries)})


def test_it_is_that_of_xgboost() -> None:
    xgboost = pytest.importorskip("xgboost")
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(50), random.integers(1, 20, 50))
    label = random.integers(0, 4, len(group))
    matrix = xgboost.DMatrix(random.normal(size=(len(group), 3)), label, qid=group)
    params = {"objective": "rank:ndcg", "eval_metric": "ndcg", "nthread": 2}
    booster = xgboost.train(params, matrix, 3)
    theirs = float(booster.eval(matrix).rsplit(":", 1)[1])
    assert ndcg(label, booster.predict(matrix), group) == pytest.approx(theirs, abs=1e-5)
