"""Columns are compressed where it saves something, and read the same either way."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.schema import type_from_text
from featurestore.storage.codecs import DIFFERENCES, ColumnForm, column_forms, difference_bytes

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.standard_normal(30_000)
PLAIN, ZSTD, STEPS = ColumnForm("none"), ColumnForm("zstd"), ColumnForm("none", DIFFERENCES)
FEW = RANDOM.integers(-128, 127, 30_000)


@pytest.mark.parametrize(
    ("column", "form"),
    [
        (pa.array(NOISE), PLAIN),
        (pa.array(NOISE, pa.float32()), PLAIN),
        (pa.array(NOISE, mask=np.arange(30_000) % 50 == 0), PLAIN),
        (pa.array(NOISE).slice(20_000), PLAIN),
        (pa.array(NOISE.view(np.int64)), PLAIN),
        (pa.array(np.round(NOISE, 1)), ZSTD),
        (pa.array(np.arange(30_000)), STEPS),
        (pa.array(np.arange(30_000), pa.timestamp("us")), STEPS),
        (pa.array(np.arange(30_000, dtype=np.int32) // 100).view(pa.date32()), STEPS),
        (pa.array(FEW), STEPS),
        (pa.array(FEW, mask=np.arange(30_000) % 50 == 0), STEPS),
        (pa.array(FEW.astype(np.int8)), STEPS),
        (pa.array(FEW.astype(np.uint8)), STEPS),
        (pa.array(FEW.astype(np.uint64)), STEPS),  # modulo 2**64 they are as near to each other
        (pa.array(np.where(np.arange(30_000) % 100, 0, NOISE.view(np.int64))), ZSTD),
        (pa.array(NOISE > 0), ZSTD),
        (pa.array([f"{one}" for one in NOISE[:100]]), ZSTD),
        (pa.array([[one] for one in NOISE[:100]]), ZSTD),
        (pa.nulls(500, pa.float64()), ZSTD),
        (pa.nulls(500, pa.int64()), ZSTD),
        (pa.array([], pa.float64()), ZSTD),
        (pa.array([7], pa.int64()), PLAIN),
    ],
    ids=[f"case-{one}" for one in range(22)],
)
def test_what_does_not_shrink_stays_plain(column: pa.Array, form: ColumnForm) -> None:
    (found,) = column_forms(pa.table({"x": column})).values()
    assert found == form


def test_the_first_rows_of_several_chunks_decide() -> None:
    chunked = pa.chunked_array([NOISE[:10], np.zeros(30_000), NOISE[:10]])
    assert column_forms(pa.table({"x": chunked})) == {"x": ZSTD}


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
@pytest.mark.parametrize("spread", [100, 2**20])
def test_differences_take_what_was_estimated(dtype: str, spread: int) -> None:
    values = RANDOM.integers(0, spread, 30_000).astype(dtype)
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"x": values}), sink, compression="none", use_dictionary=False,
        column_encoding={"x": DIFFERENCES},
    )  # fmt: skip
    column = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.row_group(0).column(0)
    assert column.total_compressed_size == pytest.approx(difference_bytes(values), rel=0.1)


def test_files_say_it_and_values_come_back() -> None:
    url = f"memory://{uuid.uuid4().hex}"
    rows = pl.DataFrame(
        {
            "t": range(30_000), "a.b": NOISE, "list": [[one, 1.0] for one in NOISE],
            "lists": [[["x"], []]] * 30_000, "steps": NOISE.round(), "c.d": FEW.astype(np.int16),
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
        "t": "UNCOMPRESSED", "a.b": "UNCOMPRESSED", "list.list.element": "ZSTD",
        "lists.list.element.list.element": "ZSTD", "steps": "ZSTD", "c.d": "UNCOMPRESSED",
    }  # fmt: skip
    encodings = [metadata.column(one).encodings for one in range(metadata.num_columns)]
    assert [DIFFERENCES in one for one in encodings] == [True, *[False] * 4, True]


@pytest.mark.parametrize("type_", ["int8", "uint16", "int32", "uint64", "date32", "duration[us]"])
def test_other_readers_find_the_same_differences(type_: str, tmp_path: Path) -> None:
    kind = type_from_text(type_)
    numbers = pa.array(FEW % 100, mask=NOISE > 1.0)
    rows = pa.table(
        {"x": numbers.cast(pa.int32()).cast(kind) if kind.bit_width == 32 else numbers.cast(kind)}
    )
    assert column_forms(rows) == {"x": STEPS}
    store = fs.FeatureStore.create(tmp_path / "store")
    store.ingest("rows", rows)
    (path,) = (tmp_path / "store" / "data").rglob("*.parquet")
    expected = pl.from_arrow(rows)
    assert isinstance(expected, pl.DataFrame)
    assert pl.read_parquet(path).select("x").equals(expected)
    assert pl.scan_parquet(path).select("x").collect(engine="streaming").equals(expected)
