"""Tensor columns: kept in Zarr, opened by plain zarr-python, on a disk and in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import CorruptionError, NotReadyError, SchemaError


def embed(df):  # type: ignore[no-untyped-def]
    x = df["x"].to_numpy()
    return np.stack([x, x * 2, x * 3], axis=1).astype(np.float32)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_zarr_opens_what_is_stored(tmp_path: Path, place: str) -> None:
    url = tmp_path / "s" if place == "disk" else f"memory://tensors-{tmp_path.name}"
    store = fs.FeatureStore.create(url)
    rows = pl.DataFrame({"t": np.arange(5000), "x": np.arange(5000.0)})
    table = store.ingest("t", rows, time="t", partition_bytes="16KiB")
    table.feature(embed, inputs=["x"], output="e", shape=(3,), frame="polars")
    with pytest.raises(NotReadyError, match=r"build\(\)"):
        table.tensor("e")
    table.build()
    arrays = table.tensor("e")
    assert len(arrays) == table.partitions > 1
    found = np.concatenate([one[:] for one in arrays])
    np.testing.assert_array_equal(found, embed(rows))
    assert all(one.read_only for one in arrays)
    with pytest.raises(SchemaError, match="no tensor"):
        table.tensor("x")
    assert table.read("e").height == 5000
    assert list(table.to_dask(["t", "x"]).compute()["x"]) == rows["x"].to_list()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_chunk_is_not_opened(tmp_path: Path, damage: str) -> None:
    """Zarr itself takes a missing chunk for zeros."""
    table = fs.FeatureStore.create(tmp_path / "s").ingest(
        "t", pl.DataFrame({"t": [1, 2], "x": [0.5, 1.5]}), time="t"
    )
    table.feature(embed, inputs=["x"], output="e", shape=(3,), frame="polars")
    table.build()
    (chunk,) = (tmp_path / "s").rglob("*.zarr/c.0.0")
    data = chunk.read_bytes()
    chunk.unlink()
    if damage == "cut":
        chunk.write_bytes(data[:-1])
    with pytest.raises(CorruptionError, match=chunk.name):
        table.tensor("e")
