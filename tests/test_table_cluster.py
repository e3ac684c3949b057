"""The same work on a multi-process Dask cluster gives identical values."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import pytest
from polars.testing import assert_frame_equal

import featurestore as fs
from featurestore.errors import DefinitionError, UnsupportedError
from featurestore.testing.clusters import busy, loopback_client
from featurestore.testing.tables import (
    FIT_ON,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)

ROWS = observations(300)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with loopback_client() as client:
        yield client


def built(url: str | Path, client: Any = None) -> fs.Table:
    store = fs.FeatureStore.create(url, client=client)
    store.ingest("other", observations(150, 1, column="y"), key="k", time="t", partition_bytes=2000)
    store.ingest("static", names_of_keys(), key="k")
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=3000)
    table.add(*one_of_each())
    table.add(*fitted_of_each(), fit_on=FIT_ON)
    table.append(observations(40, 5, start=150))
    table.build()
    return table


def test_a_cluster_gives_the_same_values(tmp_path: Path, client: Any) -> None:
    here = built(f"memory://{uuid.uuid4().hex}")
    there = built(tmp_path / "store", client)
    assert there.partitions == here.partitions > 3
    assert there.status().is_fresh
    assert_frame_equal(there.read(), here.read(), check_exact=True)
    frame = there.to_dask(["k", "double", "y"])
    assert len(frame.compute()) == there.rows
    assert there.add(one_of_each()[0]).computed == 0


def test_a_function_defined_here_runs_there_and_its_error_comes_back(
    tmp_path: Path, client: Any
) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", client=client)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=3000)

    def local(frame: Any) -> Any:
        if frame["t"].min().day > 3:
            raise ValueError("too late")
        return frame["x"] * 3

    with pytest.raises(DefinitionError, match="too late"):
        table.add(fs.Function(local, inputs=["x", "t"], output="three", dtypes="float64"))
    assert table.columns == tuple(ROWS.columns)
    assert store.version == 1


def test_a_store_in_memory_cannot_be_shared(client: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"lives in this process.*\n.*without a client"):
        fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", client=client)


def test_expressions_travel(tmp_path: Path, client: Any) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", client=client)
    table = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=3000)
    table.add(fs.Expression(y=nw.when(nw.col("x") > 0).then(1.0).otherwise(nw.col("n"))))
    assert table.read("y")["y"].len() == len(ROWS)


def test_a_limit_holds_on_a_client(client: Any, tmp_path: Path) -> None:
    from featurestore.execution.dask import Executor

    executor = Executor(client=client)
    assert executor.workers == 2
    one = Executor(workers=1, client=client)
    assert one.workers == 1
    assert one.run(busy, [tmp_path] * 6, label="busy") == [1] * 6
    assert max(executor.run(busy, [tmp_path] * 6, label="busy")) <= 2
