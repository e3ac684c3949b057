"""Intervals and scores of comparisons against brute force, SciPy, and simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from featurestore.errors import InvalidInputError
from training.comparison.result import Verdict, judged
from training.comparison.scores import Predictions, information_coefficients, score, scores
from training.comparison.statistics import (
    Interval,
    Judged,
    blocks_of,
    corrected_t,
    holm,
    jackknife,
    t_quantile,
    t_tail,
)


@given(st.floats(-50, 50), st.integers(1, 400))
def test_student_s_t_is_scipy_s(t: float, freedom: int) -> None:
    assert t_tail(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-12)
    assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9), st.floats(0.01, 2))
def test_the_corrected_interval_is_the_t_interval_of_a_larger_variance(
    differences: list[float], share: float
) -> None:
    found = corrected_t(differences, share)
    values = np.asarray(differences)
    if values.var(ddof=1) <= 0:  # how much of it is chance cannot be told, unless there is none
        assert math.isnan(found.p) if found.mean else found.p == 1
        return
    error = math.sqrt(values.var(ddof=1) * (1 / len(values) + share))
    freedom = len(values) - 1
    assert found.p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / error, freedom), abs=1e-9)
    assert found.upper - found.lower == pytest.approx(
        2 * stats.t.ppf(0.975, freedom) * error, rel=1e-6
    )


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """Of blocks of one size, leaving one out gives the standard error of the blocks' means."""
    values = np.random.default_rng(0).standard_normal(5000)
    found = jackknife([Judged(5000, None, lambda kept: float(values[kept].mean()))])
    means = values.reshape(50, 100).mean(axis=1)
    error = means.std(ddof=1) / math.sqrt(50)
    assert found.mean == pytest.approx(values.mean())
    assert (found.upper - found.lower) / 2 == pytest.approx(stats.t.ppf(0.975, 49) * error)


def test_intervals_hold_what_they_say() -> None:
    """Of 300 simulated experiments without a difference, about one in twenty is called one."""
    random, missed = np.random.default_rng(1), 0
    for _ in range(300):
        days = np.repeat(np.arange(100), 5)
        # Rows of one day are alike, so that rows are far fewer than they look.
        noise = random.standard_normal(100)[days] + 0.3 * random.standard_normal(500)
        found = jackknife([Judged(500, days, lambda kept, noise=noise: float(noise[kept].mean()))])
        missed += not found.lower <= 0 <= found.upper
    assert 5 <= missed <= 30


@pytest.mark.parametrize(("horizon", "days"), [(5, 250), (20, 400)])
def test_labels_that_look_ahead_do_not_narrow_intervals(horizon: int, days: int) -> None:
    """Differences of neighbouring days share most of what labels look at."""
    random, missed = np.random.default_rng(5), 0
    for _ in range(100):
        noise = random.standard_normal(days + horizon - 1)
        each = np.convolve(noise, np.ones(horizon), "valid")
        day = np.repeat(np.arange(days), 3)

        def difference(kept: np.ndarray, each: np.ndarray = each[day]) -> float:
            return float(each[kept].mean())

        found = jackknife([Judged(len(day), day, difference, horizon)])
        missed += not found.lower <= 0 <= found.upper
    assert missed <= 15


def test_too_few_long_stretches_say_nothing() -> None:
    day = np.arange(60)
    found = jackknife([Judged(60, day, lambda kept: float(kept.sum()), 20)])
    assert math.isnan(found.p)
    assert "too little to say" in found.method


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(0, 30))
def test_blocks_part_no_time(times: list[int], least: int) -> None:
    time = np.sort(np.asarray(times, dtype=np.int64))
    block = blocks_of(len(time), time, least)
    if len(time) and block[-1] > 0:
        begins = [int(time[block == one][0]) for one in range(int(block[-1]) + 1)]
        assert min(np.diff([*begins, int(time[-1]) + 1])) >= least
    assert len(block) == len(time)
    assert (np.diff(block) >= 0).all()
    for one in np.unique(time):
        assert len(np.unique(block[time == one])) == 1
    if len(time):
        assert block[0] == 0
        assert set(block) == set(range(int(block[-1]) + 1))


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8))
def test_holm_is_the_textbook_s(p: list[float]) -> None:
    known = [one for one in p if not math.isnan(one)]
    found = [one for one in holm(p) if not math.isnan(one)]
    assert [math.isnan(one) for one in holm(p)] == [math.isnan(one) for one in p]
    order = sorted(range(len(known)), key=lambda place: known[place])
    expected, highest = [0.0] * len(known), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(known) - rank) * known[place]))
        expected[place] = highest
    assert found == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_information_coefficients_are_spearman_s_of_each_time(
    rows: list[tuple[int, int, int]],
) -> None:
    rows = sorted(rows, key=lambda one: one[0])
    time, label, told = (np.asarray([one[i] for one in rows], dtype=np.int64) for i in range(3))
    expected = []
    for one in np.unique(time):
        here = time == one
        if here.sum() >= 3 and len(set(label[here])) > 1 and len(set(told[here])) > 1:
            expected.append(stats.spearmanr(label[here], told[here]).statistic)
    found = information_coefficients(Predictions(label.astype(float), told.astype(float), time))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_scores_are_of_the_task() -> None:
    rows = Predictions(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]), np.array([5, 5, 5]))
    assert scores("regression", rows) == pytest.approx(
        {"rmse": math.sqrt(1 / 3), "mae": 1 / 3, "loss": 1 / 3, "r2": 1 - 1 / (14 / 3), "ic": 1.0, "ic_ir": math.nan},
        nan_ok=True,
    )  # fmt: skip
    assert math.isnan(score("regression", "ic", Predictions(rows.label, rows.prediction)))
    assert math.isnan(score("binary", "auc", Predictions(np.ones(3), np.ones(3))))
    assert math.isnan(score("binary", "loss", Predictions(np.empty(0), np.empty(0))))
    with pytest.raises(InvalidInputError, match="none of a binary task"):
        score("binary", "rmse", rows)
    with pytest.raises(InvalidInputError, match="rows"):
        Predictions(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("metric", "mean", "p", "leaks", "verdict"),
    [
        ("auc", 0.1, 0.01, (), Verdict.HELPS),
        ("rmse", -0.1, 0.01, (), Verdict.HELPS),
        ("auc", -0.1, 0.01, (), Verdict.HURTS),
        ("rmse", 0.1, 0.01, (), Verdict.HURTS),
        ("auc", 0.1, 0.2, (), Verdict.SAME),
        ("auc", 0.1, math.nan, (), Verdict.UNDECIDED),
        ("auc", 0.1, 0.01, ("z",), Verdict.LEAKS),
    ],
)
def test_verdicts(
    metric: str, mean: float, p: float, leaks: tuple[str, ...], verdict: Verdict
) -> None:
    found, reason = judged(metric, Interval(mean, mean - 1, mean + 1, p, "some test"), p, leaks)
    assert found is verdict
    assert reason
