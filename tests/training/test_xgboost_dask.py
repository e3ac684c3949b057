"""XGBoost over a cluster: the trees of one process, from shares that workers read themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("xgboost")

import xgboost

from featurestore.errors import InvalidInputError, MemoryLimitError, NotFoundError
from featurestore.testing.clusters import loopback_client
from featurestore.testing.datasets import ArrayPart, numbered_part
from training import Loader
from training.hooks.xgboost import PagePlan, dmatrix, feature_columns, page
from training.hooks.xgboost_dask import _Seen, _shares, _smallest_room, train

PARAMS: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": "logloss",
    "tree_method": "hist",
    "nthread": 1,
    "max_depth": 4,
}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with loopback_client(workers=2) as found:
        yield found


def part(rows: int, seed: int = 0, **options: Any) -> ArrayPart:
    """Return a part whose columns have fewer values than bins: all sketches cut between them alike."""
    found = numbered_part(rows, partitions=(rows // 3, rows - rows // 3), seed=seed, **options)
    found.inputs["numeric"][:] = np.round(found.inputs["numeric"] * 8) / 8 % 8
    return found


def rows_of(one: ArrayPart) -> Any:
    names, types = feature_columns(one.schema)
    pages = [page(one.arrays(i), one.schema) for i in range(len(one.partition_rows))]
    return xgboost.DMatrix(
        np.concatenate(pages), base_margin=one.base_margin, feature_names=names,
        feature_types=types, enable_categorical=True,
    )  # fmt: skip


def splits(booster: Any) -> list[tuple[Any, ...]]:
    """Return the trees without the figures that rounding reaches."""
    table = booster.trees_to_dataframe()
    table = table.where(table["Feature"] != "Leaf")
    return [tuple(one) for one in table[["Tree", "Node", "Feature", "Split"]].dropna().to_numpy()]


@pytest.mark.parametrize("options", [{}, {"weight": True}, {"margin": ()}])
def test_two_workers_train_the_trees_of_one_process(
    options: dict[str, Any], client: Any, tmp_path: Path
) -> None:
    learnt, judged = part(1500, **options), part(600, seed=1, **options)
    loaders = [Loader(one, 100, shuffle=True, cache=tmp_path) for one in (learnt, judged)]
    found = train(
        client, PARAMS, loaders[0], 6, evals=[(loaders[1], "valid")], max_bin=64, page_bytes="4kB"
    )
    matrices = [dmatrix(loaders[0], max_bin=64, page_bytes="4kB", nthread=1)]
    matrices.append(dmatrix(loaders[1], matrices[0], max_bin=64, nthread=1))
    history: dict[str, Any] = {}
    alone = xgboost.train(
        {**PARAMS, "max_bin": 64}, matrices[0], 6, evals=[(matrices[1], "valid")],
        evals_result=history, verbose_eval=False,
    )  # fmt: skip
    assert splits(found.booster) == splits(alone)
    rows = rows_of(judged)
    np.testing.assert_allclose(found.booster.predict(rows), alone.predict(rows), atol=1e-4)
    np.testing.assert_allclose(
        found.history["valid"]["logloss"], history["valid"]["logloss"], atol=1e-4
    )


def test_rankings_with_weights_train_over_workers(client: Any, tmp_path: Path) -> None:
    sizes = np.random.default_rng(0).integers(1, 30, 80).tolist()
    ranked = part(sum(sizes), queries=sizes, weight=True)
    loader = Loader(ranked, 100, cache=tmp_path)
    # Pairs of the top of each query are the same everywhere; sampled ones would be drawn by worker.
    params = {
        "objective": "rank:ndcg", "tree_method": "hist", "nthread": 1, "max_depth": 3,
        "lambdarank_pair_method": "topk", "lambdarank_normalization": False,
    }  # fmt: skip
    found = train(client, params, loader, 4, max_bin=64, page_bytes="2kB")
    matrix = dmatrix(loader, max_bin=64, page_bytes="2kB", nthread=1)
    alone = xgboost.train({**params, "max_bin": 64}, matrix, 4)
    assert len(found.booster.get_dump()) == 4
    rows = rows_of(ranked)
    np.testing.assert_allclose(found.booster.predict(rows), alone.predict(rows), atol=1e-3)


def test_an_error_on_one_worker_is_raised_here(client: Any, tmp_path: Path) -> None:
    broken = part(400)
    broken.inputs["numeric"][399, 1] = np.inf  # of the second share
    with pytest.raises(InvalidInputError, match="hold infinity"):
        train(client, PARAMS, Loader(broken, 100, cache=tmp_path), 2)
    with pytest.raises(InvalidInputError, match=r"XGBoost refused: .*no_such"):
        train(client, {"objective": "no_such"}, Loader(part(400), 100, cache=tmp_path / "p"), 2)
    # The workers are free again.
    fine = Loader(part(400), 100, cache=tmp_path / "fine")
    assert len(train(client, PARAMS, fine, 2).booster.get_dump()) == 2


def test_workers_in_one_process_train_too(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    loader = Loader(part(400), 100, cache=tmp_path)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as inside,
    ):
        found = train(inside, PARAMS, loader, 3, max_bin=64)
    alone = xgboost.train({**PARAMS, "max_bin": 64}, dmatrix(loader, max_bin=64, nthread=1), 3)
    assert splits(found.booster) == splits(alone)


def test_a_pack_that_workers_do_not_see_is_said(client: Any, tmp_path: Path) -> None:
    loader = Loader(part(400), 100, cache=tmp_path)
    pack = loader.pack
    pack.path.rename(tmp_path / "elsewhere")
    with pytest.raises(NotFoundError, match="does not see the pack"):
        train(client, PARAMS, loader, 2)


def test_a_page_must_fit_the_worker_with_least_room(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = _Seen(("a", 1), 600, 1000, ())
    found = {"one": _Seen(("b", 2), 100, None, ()), "two": many, "three": many}
    assert _smallest_room(found, 5000) == (1000, 300)
    assert _smallest_room({"one": found["one"]}, 5000) == (5000, 100)
    tight = {
        name: _Seen(("b", number), 2**30, 2**30 + 2**21, ())
        for number, name in enumerate(client.nthreads())
    }
    monkeypatch.setattr("training.hooks.xgboost_dask._look", lambda *_: tight)
    with pytest.raises(MemoryLimitError, match="handing pages to XGBoost"):
        train(client, PARAMS, Loader(part(400), 100, cache=tmp_path), 2)


def test_shares_cut_no_query_and_are_never_empty(tmp_path: Path) -> None:
    ranked = part(100, queries=(3, 90, 7))
    plans = [
        PagePlan.of(Loader(one, 10, cache=tmp_path / str(number)))
        for number, one in enumerate((ranked, part(50)))
    ]
    assert _shares(plans, 8) == [[0, 3, 100], [0, 25, 50]]
    assert _shares(plans[1:], 3) == [[0, 16, 33, 50]]
    assert _shares(plans[1:], 80)[0] == list(range(51))
