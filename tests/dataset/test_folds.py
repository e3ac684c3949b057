"""Folds: no row is trained on whose label overlaps that of a row it is judged by, and no other is lost."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.folds import FoldedSplit
from featurestore.dataset.selection import HASH_SPACE, HashRange, Selection
from featurestore.dataset.split import Split
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, FeatureStoreError, NotFoundError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition

ENGINE = PolarsEngine()
SCHEMA = TableSchema((Field("k", pa.int64()), Field("t", pa.int64())), ("k",), "t")
small = st.integers(0, 12)


def partition(times: list[int], keys: list[int] | None = None) -> Partition:
    keys = list(range(len(times))) if keys is None else keys
    columns = {"k": pa.array(keys, pa.int64()), "t": pa.array(times, pa.int64())}
    return Partition(ENGINE.from_arrow(pa.table(columns)), SCHEMA)


def masks(split: Split, rows: Partition) -> tuple[list[bool], list[bool]]:
    """Return which rows a fold trains on, and which it is judged by."""
    train, valid = (split.rows(part, SCHEMA).mask(rows, ENGINE).tolist() for part in split.parts())
    return train, valid


def overlap(one: int, other: int, horizon: int) -> bool:
    """Whether the labels of rows of two times look at a common moment."""
    return max(one, other) <= min(one, other) + horizon


TIMES = list(range(-5, 75))
ROWS = partition(TIMES)


@given(
    st.integers(-3, 30), st.integers(1, 5), st.integers(1, 9), st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 30), small, small,
)  # fmt: skip
@settings(deadline=None)
def test_walking_forward(
    first: int,
    n_splits: int,
    valid: int,
    step: int | None,
    train: int | None,
    horizon: int,
    embargo: int,
) -> None:
    split = fs.WalkForward(first, n_splits, valid, step, train, horizon, embargo)
    assert len(split.folds()) == n_splits
    for number, fold in enumerate(split.folds()):
        begin = first + number * (step or valid)
        trained, judged = masks(fold, ROWS)
        assert judged == [begin <= t < begin + valid for t in TIMES]
        last = begin - horizon - embargo
        assert trained == [t < last and (train is None or t >= last - train) for t in TIMES]
        for t in (t for t, one in zip(TIMES, trained, strict=True) if one):
            assert not any(overlap(t, v, horizon) for v in range(begin, begin + valid))


@given(st.integers(2, 7), st.integers(1, 4), small, small, st.integers(20, 70))
@settings(deadline=None)
def test_purging(n_splits: int, valid_splits: int, horizon: int, embargo: int, stop: int) -> None:
    assume(valid_splits < n_splits)
    split = fs.PurgedKFold(0, stop, n_splits, valid_splits, horizon, embargo)
    bounds = [stop * one // n_splits for one in range(n_splits + 1)]
    folds = list(combinations(range(n_splits), valid_splits))
    assert split.count == len(folds)
    for fold, chosen in zip(split.folds(), folds, strict=True):
        there = [v for one in chosen for v in range(bounds[one], bounds[one + 1])]
        ends = [v + 1 for v in there if v + 1 not in there]
        expected = [
            0 <= t < stop
            and not any(overlap(t, v, horizon) for v in there)
            and not any(end <= t < end + horizon + embargo for end in ends)
            for t in TIMES
        ]
        if any(expected):
            assert masks(fold, ROWS) == (expected, [t in there for t in TIMES])
        else:
            with pytest.raises(DefinitionError, match="nothing to train on"):
                masks(fold, ROWS)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(2, 6), st.integers(0, 3))
@settings(deadline=None)
def test_each_entity_is_judged_once(keys: list[int], n_splits: int, seed: int) -> None:
    rows = partition(list(range(len(keys))), keys)
    judged_by: dict[int, set[int]] = {}
    for number, fold in enumerate(fs.HashKFold(n_splits, seed=seed).folds()):
        trained, judged = masks(fold, rows)
        assert trained == [not one for one in judged]
        for key, one in zip(keys, judged, strict=True):
            if one:
                judged_by.setdefault(key, set()).add(number)
    assert judged_by.keys() == set(keys)
    assert all(len(one) == 1 for one in judged_by.values())


def test_folds_by_hash_are_of_about_one_size() -> None:
    rows = partition(list(range(5_000)))
    for fold in fs.HashKFold(5).folds():
        assert 850 < sum(masks(fold, rows)[1]) < 1150


@given(st.integers(0, HASH_SPACE), st.integers(0, HASH_SPACE))
@settings(deadline=None)
def test_complements(lower: int, upper: int) -> None:
    assume(lower != upper)
    one = HashRange(("k",), 0, lower, upper)
    inside = Selection(hashed=one).mask(ROWS, ENGINE)
    outside = Selection(hashed=one.complement()).mask(ROWS, ENGINE)
    assert (inside != outside).all()


def test_the_complement_of_nothing_and_of_everything() -> None:
    everything = HashRange(("k",), 0, 0, HASH_SPACE)
    assert not Selection(hashed=everything.complement()).mask(ROWS, ENGINE).any()
    with pytest.raises(DefinitionError, match="empty"):
        everything.complement().complement()


SPLITS = [
    fs.WalkForward("2024-02-01", 3, "10d", horizon="2d", embargo="1d"),
    fs.WalkForward("2024-02-01", 3, "10d", "5d", "20d"),
    fs.PurgedKFold("2024-01-01", "2024-03-01", 4, 2, horizon="36h"),
    fs.HashKFold(3, by=["k"], seed=4),
]


@pytest.mark.parametrize("split", SPLITS)
def test_specifications_round_trip(split: FoldedSplit) -> None:
    spec: dict[str, Any] = split.spec()
    again = type(split)(**spec["params"])
    assert spec["kind"] == type(split).__name__
    assert again == split
    assert again.fingerprint == split.fingerprint
    assert len({one.fingerprint for one in (split, *split.folds())}) == split.count + 1
    for fold in split.folds():
        assert fold.folds() == (fold,)
        assert fold.spec()["kind"] == "Fold"
        with pytest.raises(NotFoundError):
            fold.rows("test", SCHEMA)
    with pytest.raises(DefinitionError, match="one by one"):
        split.rows("train", SCHEMA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.WalkForward("today", 3, "1d"), "not a boundary"),
        (lambda: fs.WalkForward(0, 0, 1), "n_splits"),
        (lambda: fs.WalkForward(0, 2.5, 1), "n_splits"),  # type: ignore[arg-type]
        (lambda: fs.WalkForward(0, 3, None), "valid=None"),  # type: ignore[arg-type]
        (lambda: fs.WalkForward(0, 3, -1), "not a length"),
        (lambda: fs.WalkForward(0, 3, "1 month"), "month"),
        (lambda: fs.WalkForward(0, 3, 0).folds()[0].rows("train", SCHEMA), "no time"),
        (lambda: fs.WalkForward(0, 3, 1, 0).folds()[0].rows("train", SCHEMA), "no time"),
        (lambda: fs.WalkForward(0, 3, "1d").folds()[0].rows("train", SCHEMA), "does not measure"),
        (lambda: fs.WalkForward(0, 5000, 1), "more than 1,000"),
        (lambda: fs.PurgedKFold(0, 9, 1), "n_splits"),
        (lambda: fs.PurgedKFold(0, 9, 3, 3), "nothing to train on"),
        (lambda: fs.PurgedKFold(0, "2024-01-01"), "different kinds"),
        (lambda: fs.PurgedKFold(0, 900, 40, 20), "more than 1,000"),
        (lambda: fs.PurgedKFold(9, 0).folds()[0].rows("train", SCHEMA), "no room"),
        (lambda: fs.PurgedKFold(0, 10, 2, 1, 50).folds()[0].rows("train", SCHEMA), "nothing to train"),
        (lambda: fs.HashKFold(1), "n_splits"),
        (lambda: fs.HashKFold(seed=-1), "seed"),
        (lambda: fs.HashKFold(by=[]), "by="),
        (lambda: fs.HashKFold(by="nobody").folds()[0].rows("train", SCHEMA), "no column"),
    ],
)  # fmt: skip
def test_what_is_no_split_is_refused(make: Any, message: str) -> None:
    with pytest.raises(FeatureStoreError, match=message):
        make()


# --- datasets ------------------------------------------------------------------------------------------


def table(folder: Path) -> fs.Table:
    random = np.random.default_rng(0)
    rows = pl.DataFrame(
        {
            "k": np.arange(200) % 20,
            "t": np.arange(200),
            "x": random.standard_normal(200),
            "y": random.integers(0, 2, 200).astype(bool),
        }
    )
    store = fs.FeatureStore.create(folder / "store")
    made = store.ingest("rows", rows[:60], key="k", time="t")
    for start in range(60, 200, 40):
        made.append(rows[start : start + 40])
    return made


@pytest.mark.parametrize(
    "split",
    [
        fs.WalkForward(100, 3, 30, horizon=5),
        fs.WalkForward(100, 1, 30),
        fs.PurgedKFold(0, 200, 4, horizon=7, embargo=3),
        fs.HashKFold(3),
    ],
)
def test_each_fold_learns_from_its_training_rows(split: FoldedSplit, tmp_path: Path) -> None:
    rows = table(tmp_path)
    whole = rows.read()
    pipeline = fs.Pipeline(fs.Standardize("x"))
    data = rows.dataset(["x"], label="y", split=split, pipeline=pipeline)
    assert data.parts == ()
    assert len(data.folds) == split.count
    for fold, one in zip(data.folds, split.folds(), strict=True):
        trained, judged = masks(one, partition(whole["t"].to_list(), whole["k"].to_list()))
        x = whole["x"].filter(pl.Series(trained))
        expected = (whole["x"].filter(pl.Series(judged)) - x.mean()) / x.std(ddof=0)
        assert fold.train.rows == sum(trained)
        assert fold.valid.read()["x"].to_list() == pytest.approx(expected.to_list())
        assert fold.describe()["parts"] == ["train", "valid"]


def test_the_dataset_of_several_folds_has_no_parts_of_its_own(tmp_path: Path) -> None:
    data = table(tmp_path).dataset(["x"], label="y", split=fs.HashKFold(2))
    for part in ("train", "all"):
        with pytest.raises(NotFoundError, match="one by one"):
            data.part(part)
    with pytest.raises(DefinitionError, match="one by one"):
        data.schema.to_json()
    with pytest.raises(DefinitionError, match="one by one"):
        data.pipeline.to_json()
    assert "1 features" in repr(data)
    assert data.describe()["split"] == fs.HashKFold(2).spec()


def test_a_fold_of_no_rows_is_refused_in_words(tmp_path: Path) -> None:
    rows = table(tmp_path)
    pipeline = fs.Pipeline(fs.Standardize("x"))
    (fold,) = rows.dataset("x", split=fs.WalkForward(-50, 1, 10), pipeline=pipeline).folds
    with pytest.raises(DefinitionError, match="nothing to learn"):
        fold.schema.to_json()
