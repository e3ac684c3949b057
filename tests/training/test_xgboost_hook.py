"""XGBoost: external memory trains the same trees as memory, over pages read from the pack."""

from __future__ import annotations

import gc
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xgboost")

import xgboost

from featurestore.dataset.batch import DatasetSchema, Input, Role
from featurestore.errors import DefinitionError, InvalidInputError, UnsupportedError
from featurestore.testing.datasets import ArrayPart, numbered_part
from training import Loader
from training.hooks.xgboost import XGBoostPages, dmatrix, feature_columns, page, predict_batches

PARAMS = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    "max_bin": 64,
    "seed": 0,
    "nthread": 2,
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def loader(cache: Path, seed: int = 0, rows: int = 3000) -> Loader:
    part = numbered_part(
        rows,
        partitions=(rows // 3, rows - rows // 3),
        cardinalities=(5, 40),
        tensor=(2, 2),
        seed=seed,
    )
    part.inputs["numeric"][::7, 1] = np.nan
    return Loader(part, 100, shuffle=True, cache=cache)


def in_memory(one: Loader, ref: Any = None) -> Any:
    batch = one.in_table_order().pack.read(0, one.rows)
    names, types = feature_columns(one.schema)
    return xgboost.QuantileDMatrix(
        page(batch, one.schema),
        batch.label,
        feature_names=names,
        feature_types=types,
        enable_categorical=True,
        max_bin=64,
        nthread=2,  # as elsewhere here: cuts of a sketch depend on it
        ref=ref,
    )


def test_columns_and_pages_follow_the_schema(cache: Path) -> None:
    schema = DatasetSchema(
        (
            Input("c", Role.CATEGORICAL, "int32", (), 3),
            Input("a", Role.NUMERIC, "float32"),
            Input("v", Role.TENSOR, "float64", (2,)),
            Input("b", Role.NUMERIC, "float32"),
            Input("y", Role.LABEL, "float32"),
        )
    )
    part = ArrayPart(
        schema,
        {
            "numeric": np.array([[1, 2], [3, np.nan]], dtype=np.float32),
            "c": np.array([2, 0], dtype=np.int32),
            "v": np.array([[5, 6], [7, 8]], dtype=np.float64),
        },
        np.zeros(2, dtype=np.float32),
        (2,),
    )
    assert feature_columns(schema) == (["c", "a", "v_0", "v_1", "b"], ["c", "q", "q", "q", "q"])
    (batch,) = Loader(part, 2, cache=cache)
    expected = np.array([[2, 1, 5, 6, 2], [0, 3, 7, 8, np.nan]], dtype=np.float32)
    np.testing.assert_array_equal(page(batch, schema), expected)


def test_external_memory_trains_the_same_trees(cache: Path) -> None:
    train, valid = loader(cache), loader(cache, seed=1, rows=900)
    with pytest.raises(InvalidInputError, match=r"max_bin is 1\n.*2 or more"):
        dmatrix(train, max_bin=1)
    external = dmatrix(train, max_bin=64, page_bytes="10kB", nthread=2)
    validation = dmatrix(valid, external, max_bin=64, page_bytes="10kB", nthread=2)
    results: dict[str, Any] = {}
    from_disk = xgboost.train(
        PARAMS,
        external,
        12,
        evals=[(validation, "valid")],
        evals_result=results,
        verbose_eval=False,
    )
    whole = in_memory(train)
    from_memory = xgboost.train(PARAMS, whole, 12)
    other = in_memory(valid, whole)
    np.testing.assert_allclose(from_disk.predict(other), from_memory.predict(other), atol=1e-5)
    assert results["valid"]["logloss"][-1] < 0.6 * results["valid"]["logloss"][0]
    # Partitions are read side by side, in whatever order.
    assert sorted(train.part.reads) == [0, 1], "the pipeline ran once for all passes"  # type: ignore[attr-defined]


def test_shares_and_sequences_are_refused_before_a_pack_is_written(cache: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)rank 1 of 2.*before shard"):
        loader(cache).shard(1, 2).xgboost()
    with pytest.raises(InvalidInputError, match="sequences of 5"):
        Loader(numbered_part(300), 50, True, cache=cache, window=5).xgboost()
    assert not list(cache.glob("[!.]*"))


def _append(seen: list[Any], **given: Any) -> None:
    seen.append(given)


def test_each_pass_gives_the_same_pages_as_new_arrays(cache: Path) -> None:
    one = loader(cache)
    pages = XGBoostPages(one, "10kB")
    passes = []
    for _ in range(2):
        pages.reset()
        seen: list[Any] = []
        while pages.next(partial(_append, seen)):
            pass
        passes.append(seen)
    assert len(passes[0]) > 5
    for first, second in zip(*passes, strict=True):
        assert first["data"] is not second["data"]
        np.testing.assert_array_equal(first["data"], second["data"])
    rows = np.concatenate([given["data"][:, 0] for given in passes[0]])
    np.testing.assert_array_equal(rows, np.arange(3000))


def test_cache_files_go_with_the_matrix(cache: Path) -> None:
    matrix = dmatrix(loader(cache), page_bytes="10kB")
    assert len(list(cache.glob(".scratch-*/*"))) == 1
    del matrix
    gc.collect()
    assert list(cache.glob(".scratch-*")) == []


LEFT = """
import sys
from featurestore.testing.datasets import numbered_part
from training import Loader
from training.hooks.xgboost import dmatrix, xgboost

matrix = dmatrix(Loader(numbered_part(500), 64, cache=sys.argv[1]), nthread=1)
booster = xgboost.train({"tree_method": "hist", "nthread": 1}, matrix, 1)
"""


def test_what_lives_to_the_end_leaves_neither_files_nor_warnings(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT, str(cache)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(cache.glob(".scratch-*")) == []


def test_an_error_while_reading_reaches_the_caller(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loader(cache).in_table_order()
    read, calls = one.pack.view, []

    def failing(start: int, stop: int) -> Any:
        calls.append(start)
        if len(calls) > 2:
            raise InvalidInputError("the disk is gone")
        return read(start, stop)

    monkeypatch.setattr(one.pack, "view", failing)
    with pytest.raises(InvalidInputError, match="the disk is gone"):
        dmatrix(one, page_bytes="10kB")


def test_predictions_of_batches_keep_their_order(cache: Path) -> None:
    one = loader(cache)
    whole = in_memory(one)
    booster = xgboost.train(PARAMS, whole, 3)
    plain = Loader(one.part, 128, cache=cache)
    found = predict_batches(booster, iter(plain), one.schema)
    np.testing.assert_allclose(found, booster.predict(whole), atol=1e-6)


def test_what_xgboost_cannot_hold_is_refused(cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="without rows"):
        Loader(numbered_part(0), 8, cache=cache).xgboost()
    wide = DatasetSchema((Input("c", Role.CATEGORICAL, "int32", (), 2**25),))
    with pytest.raises(DefinitionError, match="33554432 codes"):
        feature_columns(wide)
    with pytest.raises(DefinitionError, match="without features"):
        feature_columns(DatasetSchema((Input("y", Role.LABEL, "float32"),)))


def test_infinities_are_refused_by_column(cache: Path) -> None:
    part = numbered_part(50)
    part.inputs["numeric"][20, 1] = np.inf
    one = Loader(part, 8, cache=cache)
    name = one.schema.numeric[1]
    with pytest.raises(InvalidInputError, match=rf"columns \['{name}'\] hold infinity"):
        dmatrix(one)
    with pytest.raises(InvalidInputError, match="hold infinity"):
        predict_batches(xgboost.Booster(), iter([one.pack.read(0, 50)]), one.schema)


def test_an_infinite_label_is_refused(cache: Path) -> None:
    part = numbered_part(50)
    part.label = np.full(50, np.inf, np.float32)
    with pytest.raises(InvalidInputError, match="the label holds infinity"):
        dmatrix(Loader(part, 8, cache=cache))


def test_weights_and_several_labels_train_as_in_memory(cache: Path) -> None:
    part = numbered_part(1000, partitions=(400, 600), labels=2, weight=True)
    part.inputs["numeric"][:, 0] = 0
    one = Loader(part, 100, shuffle=True, cache=cache)
    batch = one.in_table_order().pack.read(0, one.rows)
    names, types = feature_columns(one.schema)
    assert names == ["x0", "x1", "x2", "c0"]
    known = xgboost.QuantileDMatrix(
        page(batch, one.schema),
        np.stack([part.labels["late"], part.labels["odd"]], axis=1),
        weight=part.weight,
        feature_names=names,
        feature_types=types,
        enable_categorical=True,
        max_bin=64,
    )
    pages = dmatrix(one, max_bin=64, page_bytes=4 * 4 * 300)
    np.testing.assert_array_equal(pages.get_weight(), part.weight)
    trained = [xgboost.train(PARAMS, data, 3) for data in (known, pages)]
    expected, found = (booster.inplace_predict(batch_array(one)) for booster in trained)
    assert found.shape == (1000, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def batch_array(one: Loader) -> Any:
    return page(one.in_table_order().pack.read(0, one.rows), one.schema)
