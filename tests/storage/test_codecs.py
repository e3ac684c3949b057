"""Columns are compressed where it saves something, and read the same either way."""

from __future__ import annotations

import uuid

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.storage.codecs import column_codecs

NOISE = np.random.default_rng(0).standard_normal(30_000)
PLAIN = "none"


@pytest.mark.parametrize(
    ("column", "codec"),
    [
        (pa.array(NOISE), PLAIN),
        (pa.array(NOISE, pa.float32()), PLAIN),
        (pa.array(NOISE, mask=np.arange(30_000) % 50 == 0), PLAIN),
        (pa.array(NOISE).slice(20_000), PLAIN),
        (pa.array(NOISE.view(np.int64)), PLAIN),
        (pa.array(np.round(NOISE, 1)), "zstd"),
        (pa.array(np.arange(30_000)), "zstd"),
        (pa.array(np.arange(30_000), pa.timestamp("us")), "zstd"),
        (pa.array(NOISE > 0), "zstd"),
        (pa.array([f"{one}" for one in NOISE[:100]]), "zstd"),
        (pa.array([[one] for one in NOISE[:100]]), "zstd"),
        (pa.nulls(500, pa.float64()), "zstd"),
        (pa.array([], pa.float64()), "zstd"),
    ],
    ids=[f"case-{one}" for one in range(13)],
)
def test_what_does_not_shrink_stays_plain(column: pa.Array, codec: str) -> None:
    (found,) = column_codecs(pa.table({"x": column})).values()
    assert found == codec


def test_the_first_rows_of_several_chunks_decide() -> None:
    chunked = pa.chunked_array([NOISE[:10], np.zeros(30_000), NOISE[:10]])
    assert column_codecs(pa.table({"x": chunked})) == {"x": "zstd"}


def test_files_say_it_and_values_come_back() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    rows = pl.DataFrame(
        {
            "t": range(30_000), "a.b": NOISE, "list": [[one, 1.0] for one in NOISE],
            "lists": [[["x"], []]] * 30_000, "steps": NOISE.round(),
        }
    )  # fmt: skip
    store = fs.FeatureStore.create(url)
    table = store.ingest("rows", rows, time="t")
    assert table.read().equals(rows)
    objects = store._session.objects
    (path,) = [one.path for one in objects.list("data") if one.path.endswith(".parquet")]
    metadata = pq.ParquetFile(pa.BufferReader(objects.read(path))).metadata.row_group(0)
    found = {
        metadata.column(one).path_in_schema: metadata.column(one).compression
        for one in range(metadata.num_columns)
    }
    assert found == {
        "t": "ZSTD", "a.b": "UNCOMPRESSED", "list.list.element": "ZSTD",
        "lists.list.element.list.element": "ZSTD", "steps": "ZSTD",
    }  # fmt: skip
