"""A store on S3 from ingest to a trained model, against a server on loopback: all as on a local disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.testing.loopback_s3 import LoopbackS3, loopback_s3
from featurestore.testing.tables import names_of_keys, observations, one_of_each

DAY = 24


@pytest.fixture(params=[0, 25], ids=["sound", "losing answers"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    with loopback_s3(page=50, lose_every=request.param) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running
        assert (running.lost > 0) == (request.param > 0)


def moment(hour: int) -> Any:
    return pl.select(pl.lit(hour * 3_600_000).cast(pl.Datetime("ms"))).item()


def live(url: str | Path, folder: Path) -> dict[str, Any]:
    """Do everything that a store can do; return what is seen on the way."""
    store = fs.FeatureStore.create(url, workers=2)
    other = observations(150, 1, column="y").sort("t", "k").drop("n", "word")
    store.ingest("other", other, key="k", time="t", partition_bytes=1200)
    store.ingest("static", names_of_keys(), key="k")
    table = store.ingest(
        "rows", observations(200).sort("t", "k"), key="k", time="t", partition_bytes=3000
    )
    table.add(*one_of_each())
    table.add(fs.Standardize("x", prefix="std_"), fit_on="all")
    store.tag("first")
    seen: dict[str, Any] = {"first": table.read()}

    table.append(observations(40, 5, start=4 * DAY).sort("t", "k"))
    seen["missing"] = {one.columns[0]: one.missing for one in table.status().features}
    table.build()
    seen["appended"] = table.read()
    seen["replaced"] = table.replace(
        observations(20, 6, start=DAY).sort("t", "k").filter(pl.col("t") < moment(DAY + 4)),
        (moment(DAY), moment(DAY + 4)),
    ).removed
    seen["deleted"] = table.delete(nw.col("n") == 7).removed
    table.build()
    seen["changed"] = table.read()
    before = table.partitions
    table.compact(partition_bytes="20KiB", merge_groups=True)
    assert table.partitions < before
    assert table.status().is_fresh
    assert_frame_equal(table.read(), seen["changed"])

    seen["model"] = trained(table, folder)
    report = store.gc(safety_age="0s", keep_versions=1)
    assert report.removed
    assert report.expired
    again = fs.FeatureStore.open(url, workers=1)
    assert_frame_equal(again.table("rows").read(), seen["changed"])
    assert_frame_equal(again.checkout("first").table("rows").read(), seen["first"])
    assert again.verify(all_versions=True).ok
    assert again.doctor().ok
    seen["operations"] = [one.operation for one in again.history()]
    return seen


def trained(table: fs.Table, folder: Path) -> list[float]:
    """Train a small model from the loader; return what it predicts."""
    xgboost = pytest.importorskip("xgboost")
    from training import Loader
    from training.hooks.xgboost import dmatrix

    data = table.dataset(
        ["double", "x_mean_12h", "x_lag_1", "pair"],
        label="more",
        where=~nw.col("more").is_null(),
        split=fs.TimeSplit(valid="1970-01-03", test="1970-01-04"),
        pipeline=fs.Pipeline(fs.Impute(fs.numeric())),
    )
    train = dmatrix(Loader(data.train, 32, cache=folder / "packs"), max_bin=16)
    valid = dmatrix(Loader(data.valid, 32, cache=folder / "packs"), train, max_bin=16)
    parameters = {"max_bin": 16, "tree_method": "hist", "max_depth": 3, "seed": 0, "nthread": 1}
    model = xgboost.train(parameters, train, 5)
    return list(model.predict(valid))


def test_all_of_it_is_as_on_a_local_disk(server: LoopbackS3, tmp_path: Path) -> None:
    remote = live("s3://bucket/golden", tmp_path / "remote")
    local = live(tmp_path / "golden", tmp_path / "local")
    assert remote.keys() == local.keys()
    for name in ("first", "appended", "changed"):
        assert_frame_equal(remote[name], local[name], check_exact=True)
    for name in ("missing", "replaced", "deleted", "operations"):
        assert remote[name] == local[name], name
    assert remote["deleted"] > 0
    assert remote["replaced"] > 0
    assert remote["model"] == local["model"]
    assert server.server_address[0] == "127.0.0.1"
