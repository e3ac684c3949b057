"""Metrics against brute force."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from training.metrics import auc, evaluate, judging_bytes

scores = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1, width=32))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.booleans(), scores), min_size=1, max_size=40))
def test_auc_counts_pairs(rows: list[tuple[bool, float]]) -> None:
    label = np.array([one for one, _ in rows], dtype=np.float32)
    score = np.array([one for _, one in rows])
    pairs = [
        1.0 if positive > negative else 0.5 if positive == negative else 0.0
        for positive in score[label > 0]
        for negative in score[label == 0]
    ]
    if pairs:
        assert auc(label, score) == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert math.isnan(auc(label, score))


def test_auc_of_many_rows_is_exact() -> None:
    # All positives above all negatives but one pair in 10**10.
    label = np.repeat([0, 1], 100_000)
    score = np.arange(200_000, dtype=np.float64)
    score[[99_999, 100_000]] = score[[100_000, 99_999]]
    assert auc(label, score) == 1 - 1e-10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 0.99)), min_size=1, max_size=20))
def test_binary_loss_and_accuracy(rows: list[tuple[bool, float]]) -> None:
    found = evaluate("binary", np.array([a for a, _ in rows]), np.array([[b] for _, b in rows]))
    loss = -sum(math.log(b if a else 1 - b) for a, b in rows) / len(rows)
    assert found["loss"] == pytest.approx(loss)
    assert found["accuracy"] == sum((b >= 0.5) == a for a, b in rows) / len(rows)


def test_certain_and_wrong_is_finite() -> None:
    assert evaluate("binary", np.array([0, 1]), np.array([1.0, 0.0]))["loss"] < 20


def test_regression() -> None:
    found = evaluate("regression", np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 2.0]))
    assert found == pytest.approx({"loss": 5 / 3, "rmse": math.sqrt(5 / 3), "mae": 1.0})


def test_multiclass() -> None:
    probability = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    found = evaluate("multiclass", np.array([0, 1]), probability)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)


@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
def test_no_rows_are_not_a_number(task: str) -> None:
    found = evaluate(task, np.empty(0), np.empty(0))
    assert found
    assert all(math.isnan(one) for one in found.values())


@pytest.mark.parametrize(
    ("task", "label", "prediction", "message"),
    [
        ("sorting", [1.0], [1.0], "no task"),
        ("ranking", [1.0], [1.0], "within queries"),
        ("binary", [2.0], [1.0], "binary label holds"),
        ("regression", [1.0, 2.0], [1.0], "do not fit"),
        ("multiclass", [3.0], [[0.5, 0.5]], "not classes of a model with 2"),
        ("multiclass", [0.5], [[0.5, 0.5]], "not classes"),
    ],
)
def test_what_does_not_fit_is_refused(
    task: str, label: list[float], prediction: list[float], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluate(task, np.array(label), np.array(prediction))


JUDGED = """
import sys
import numpy as np
from featurestore.watermark import watermark
from training.metrics import evaluate

def judge(rows):
    random, label, found = np.random.default_rng(0), [], []
    shape = (1000, 10) if sys.argv[1] == "multiclass" else 1000
    for _ in range(rows // 1000):
        label.append(random.integers(0, 2, 1000).astype(np.float32))
        found.append(random.random(shape).astype(np.float32))
    prediction = np.concatenate(found)
    del found
    group = [np.arange(rows) // 20] if sys.argv[1] == "ranking" else []
    evaluate(sys.argv[1], np.concatenate(label), prediction, *group)

judge(2000)
with watermark() as mark:
    judge(500_000)
print(mark.peak_bytes - mark.start_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("task", ["binary", "regression", "multiclass", "ranking"])
def test_what_judging_takes_is_projected(task: str) -> None:
    command = [sys.executable, "-c", JUDGED, task]
    took = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert took <= judging_bytes(task, 500_000, 10) <= 2 * took
