"""How much a reader will hold, told from metadata, beside what it does hold."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import SourceError
from featurestore.ingest.arrow_messages import largest_batch_bytes
from featurestore.ingest.csv_rows import longest_line
from featurestore.ingest.formats import bounded, open_file
from featurestore.ingest.parquet_pages import _pages, open_page_bytes, page_header
from featurestore.ingest.sources import open_source

ROWS = 150_000


def columns() -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "number": random.random(ROWS),
            "text": [f"text {i} of some length" for i in range(ROWS)],
            "few": [f"value {i % 20}" for i in range(ROWS)],
            "list": pa.array([[1.0, 2.0, 3.0]] * ROWS),
            "missing": pa.array([None, 1] * (ROWS // 2)),
        }
    )


WRITERS = {
    "default": {},
    "no dictionary": {"use_dictionary": False},
    "second version": {"data_page_version": "2.0", "compression": "zstd"},
    "not compressed": {"compression": "none", "write_page_checksum": True},
    "small pages": {"data_page_size": 8192},
}


@pytest.mark.parametrize("writer", [*WRITERS, "polars"])
def test_headers_lead_through_every_page_of_a_chunk(tmp_path, writer):
    path = tmp_path / "a.parquet"
    if writer == "polars":
        pl.from_arrow(columns()).write_parquet(path)
    else:
        pq.write_table(columns(), path, row_group_size=ROWS, **WRITERS[writer])
    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        group = file.metadata.row_group(0)
        for index in range(group.num_columns):
            chunk = group.column(index)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and chunk.dictionary_page_offset:
                start = min(start, chunk.dictionary_page_offset)
            pages = _pages(raw, start, start + chunk.total_compressed_size)
            assert sum(p.header + p.compressed for p in pages) == chunk.total_compressed_size
            assert sum(p.header + p.uncompressed for p in pages) == chunk.total_uncompressed_size
            assert sum(p.is_dictionary for p in pages) <= 1
            assert open_page_bytes(raw, chunk) <= chunk.total_uncompressed_size * 3.25 + (
                chunk.total_compressed_size
            )


@pytest.mark.parametrize("writer", WRITERS)
def test_a_parquet_reader_holds_no_more_than_it_says(tmp_path, writer):
    path = tmp_path / "a.parquet"
    pq.write_table(columns(), path, row_group_size=ROWS, **WRITERS[writer])
    opened = open_file(path)
    held = pa.default_memory_pool()
    before, most = held.bytes_allocated(), 0
    for batch in opened.batches(columns().column_names, columns().schema, 1 << 16):
        most = max(most, held.bytes_allocated() - before)
        del batch
    assert 0 < most <= opened.reading_bytes + (1 << 18)


@given(st.binary(max_size=60))
def test_what_is_no_header_is_refused_in_one_of_two_ways(data):
    try:
        page = page_header(data)
    except (ValueError, IndexError):
        return
    assert page.header <= len(data)
    assert min(page.compressed, page.uncompressed) >= 0


def test_a_chunk_whose_headers_cannot_be_read_counts_as_one_page(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{i:030d}" for i in range(100_000)]})
    pq.write_table(table, path, use_dictionary=False, compression="none")
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    noise = io.BytesIO(b"\xff" * path.stat().st_size)
    assert open_page_bytes(noise, chunk) > 5 * chunk.total_uncompressed_size
    with path.open("rb") as raw:
        assert open_page_bytes(raw, chunk) < chunk.total_uncompressed_size


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "file"])
def test_the_largest_batch_of_an_arrow_file_is_known_before_it_is_read(compression, stream):
    table = columns().slice(0, 20_000)
    sink = io.BytesIO()
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with opened(sink, table.schema, options=options) as writer:
        for start, count in ((0, 10), (10, 15_000), (15_010, 4_990)):
            writer.write_table(table.slice(start, count))
    size = len(sink.getvalue())
    sink.seek(0)
    found = largest_batch_bytes(sink, size)
    largest = table.slice(10, 15_000).nbytes
    stored = 0 if compression is None else size
    assert largest <= found <= largest + stored + 4096


def test_a_file_of_other_bytes_counts_as_one_batch():
    data = b"ARROW1\0\0" + bytes(range(256)) * 10
    assert largest_batch_bytes(io.BytesIO(data), len(data)) == len(data)


def test_slices_of_a_large_batch_do_not_keep_it():
    (batch,) = pa.table({"a": range(100_000), "s": ["text"] * 100_000}).to_batches()
    parts = list(bounded(batch, 10_000))
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([batch]))
    assert max(part.get_total_buffer_size() for part in parts) < 20_000
    batch = batch.slice(0, 60_000)
    (whole,) = bounded(batch, 10 * batch.nbytes)
    assert whole.get_total_buffer_size() == batch.get_total_buffer_size()


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=40),
    block=st.integers(4, 64),
    ends=st.booleans(),
)
def test_the_longest_line_is_found_if_it_fills_a_block(lengths, block, ends):
    lines = [b"x" * length + b"\n" for length in lengths]
    text = b"".join(lines)
    text = text if ends else text[:-1]
    found = longest_line(io.BytesIO(text), len(text), block)
    longest = max(len(line) for line in text.splitlines(keepends=True)) if text else 0
    if longest >= 2 * block:
        assert found == longest
    else:
        assert found <= longest
    if longest < block:
        assert found < block


def csv_with_long_row(path: Path, compressed: bool) -> Path:
    text = b"a,b\n1,short\n2," + b"y" * 9_000_000 + b"\n3,short\n"
    path.write_bytes(gzip.compress(text) if compressed else text)
    return path


def test_a_row_longer_than_the_usual_block_is_read(tmp_path):
    path = csv_with_long_row(tmp_path / "a.csv", compressed=False)
    with open_source(path) as source:
        assert source.reading_bytes > 4 * 9_000_000
        lengths = [len(text) for b in source.batches() for text in b.column("b").to_pylist()]
    assert lengths == [5, 9_000_000, 5]


def test_a_long_row_of_compressed_text_is_refused_in_words(tmp_path):
    path = csv_with_long_row(tmp_path / "a.csv.gz", compressed=True)
    what = r"a row of .* has more than the \d+ bytes"
    with open_source(path) as source, pytest.raises(SourceError, match=what) as caught:
        list(source.batches())
    assert "convert the file to Parquet" in caught.value.remedy
    assert "or decompress it" in caught.value.remedy
