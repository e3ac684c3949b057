"""A partition written in slices is the one written at once, and any of its rows can be read back."""

from __future__ import annotations

import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import CorruptionError, DiskFullError, InvalidInputError, SchemaError
from featurestore.storage import group_writer, row_ranges, tensor_group
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import (
    iter_batches,
    open_parquet,
    read_columns,
    require_intact,
    sync_partition,
    write_partition,
)
from featurestore.storage.column_size import ColumnSize
from featurestore.storage.group_writer import GroupWriter, begin_partition
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry
from featurestore.storage.row_ranges import batch_bytes, batch_rows, read_rows
from featurestore.storage.tensor_group import read_tensor
from featurestore.testing.arrow_tables import tables

_PROVENANCE = Provenance("ingest", "inputs")


def memory() -> ObjectStore:
    return open_object_store(f"memory://{uuid.uuid4().hex}")


def begin(store: ObjectStore, rows: int) -> GroupWriter:
    return begin_partition(store, table="t", group="base", partition="p0", rows=rows)


def in_slices(
    store: ObjectStore, columns: pa.Table, tensors: dict[str, Any], edges: list[int]
) -> PartitionEntry:
    with begin(store, edges[-1]) as writer:
        for start, stop in pairwise(edges):
            writer.write(
                columns.slice(start, stop - start),
                {name: values[start:stop] for name, values in tensors.items()},
            )
        return writer.finish(_PROVENANCE, (3, 9))


def at_once(store: ObjectStore, columns: pa.Table, tensors: dict[str, Any]) -> PartitionEntry:
    return write_partition(
        store,
        table="t",
        group="base",
        partition="p0",
        columns=columns,
        tensors=tensors,
        provenance=_PROVENANCE,
        time_range=(3, 9),
    )


def without_files(entry: PartitionEntry) -> PartitionEntry:
    return replace(entry, files=(), tensors={})


def same(left: pa.Table, right: pa.Table) -> bool:
    """Whether names, types and bits are equal, NaN included."""
    return bool(left.schema == right.schema) and all(
        plain(left[name].combine_chunks()) == plain(right[name].combine_chunks())
        for name in left.column_names
    )


def plain(array: pa.Array) -> list[Any]:
    type_ = array.type
    if pa.types.is_list(type_):
        return [plain(one.values) if one.is_valid else None for one in array]
    if pa.types.is_temporal(type_) or pa.types.is_floating(type_):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[type_.bit_width]
        return list(array.view(bits).to_pylist())
    return list(array.to_pylist())


def write_four_times(store: ObjectStore, columns: Any, tensors: Any) -> None:
    with begin(store, 4 * 2**19) as writer:
        for _ in range(4):
            writer.write(columns, tensors)


def edges_of(data: st.DataObject, rows: int) -> list[int]:
    """Draw where to cut; equal ones make slices without rows."""
    inner = data.draw(st.lists(st.integers(0, rows), max_size=5), label="cuts")
    return [0, *sorted(inner), rows]


class TestSlices:
    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_cuts_give_the_same_partition(self, data: st.DataObject) -> None:
        columns = data.draw(tables())
        rows = columns.num_rows
        rng = np.random.default_rng(rows)
        tensors: dict[str, Any] = {
            "e": rng.integers(0, 99, (rows, 2)).astype(np.int16),
            "f": rng.random((rows, 2, 3), np.float32),
        }
        edges = edges_of(data, rows)
        store = memory()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensor_group, "CHUNK_BYTES", data.draw(st.sampled_from([8, 30, 2**24])))
            entry = in_slices(store, columns, tensors, edges)
            whole = at_once(store, columns, tensors)
        assert without_files(entry) == without_files(whole)
        names = columns.column_names
        assert same(read_columns(store, entry, names), read_columns(store, whole, names))
        for name, values in tensors.items():
            assert np.array_equal(read_tensor(store, entry, name), values)
            sums = [[one.checksum for one in made.tensors[name]] for made in (entry, whole)]
            assert sums[0] == sums[1]
        require_intact(store, entry)

    @pytest.mark.parametrize("rows", [0, 1, 5])
    def test_one_slice_has_the_bytes_of_a_whole_partition(self, rows: int) -> None:
        store = memory()
        columns = pa.table({"x": pa.array(range(rows), pa.int64()), "s": pa.nulls(rows, "string")})
        tensors = {"e": np.ones((rows, 3), np.float32)}
        one, whole = in_slices(store, columns, tensors, [0, rows]), at_once(store, columns, tensors)
        paths = [[file.path for file in made.all_files()] for made in (one, whole)]
        assert [store.read(path) for path in paths[0]] == [store.read(path) for path in paths[1]]
        assert without_files(one) == without_files(whole)

    def test_sizes_are_those_of_the_whole_columns(self) -> None:
        columns = pa.table(
            {
                "s": ["a", None, "ccc", ""] * 25,
                "l": pa.array([[1], None, [], [2, None, 4]] * 25, pa.list_(pa.int16())),
                "d": pa.array([["x"], [], ["yy", None], None] * 25, pa.list_(pa.string())),
                "b": [True, None, False, True] * 25,
                "f": np.arange(100.0),
            }
        )
        entry = in_slices(memory(), columns, {}, [0, 1, 1, 34, 99, 100])
        assert entry.column_bytes == {name: columns[name].nbytes for name in columns.column_names}
        assert entry.nulls == {name: columns[name].null_count for name in columns.column_names}

    def test_row_groups_end_with_their_slice(self) -> None:
        store = memory()
        columns = pa.table({"x": np.arange(10)})
        entry = in_slices(store, columns, {}, [0, 4, 10])
        with open_parquet(store, entry.files[0]) as parquet:
            found = [parquet.metadata.row_group(i).num_rows for i in range(2)]
        assert found == [4, 6]

    def test_tensors_alone(self) -> None:
        store, values = memory(), np.arange(12, dtype=np.int64).reshape(6, 2)
        with begin(store, 6) as writer:
            writer.write(None, {"e": values[:1]})
            writer.write(None, {"e": values[1:]})
            entry = writer.finish(_PROVENANCE)
        assert np.array_equal(read_tensor(store, entry, "e"), values)
        assert (entry.rows, entry.files, entry.widest_row) == (6, (), 16)


class TestWideRows:
    def test_few_wide_rows_get_row_groups_of_their_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(group_writer, "ROW_GROUP_BYTES", 2**16)
        store = memory()
        texts = ["x"] * 5000
        texts[3000] = "y" * 2**18  # alone larger than a row group should be
        texts[4000:4008] = ["z" * 2**15] * 8
        columns = pa.table({"s": texts, "n": np.arange(5000)})
        entry = at_once(store, columns, {})
        with open_parquet(store, entry.files[0]) as parquet:
            counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(counts)])
        for start, stop in pairwise(edges.tolist()):
            part = columns.slice(start, stop - start)
            assert part.nbytes <= 2 * 2**16 or part.num_rows == 1
        assert edges[-1] == 5000
        assert read_columns(store, entry, ["s", "n"]).equals(columns)

    def test_a_batch_stays_within_what_is_said_of_it(self) -> None:
        assert batch_rows(0) == 8192
        assert batch_rows(2**30) == 64
        assert batch_bytes(64, {"x": 10**9, "y": 10**9}) == 8192 * 64
        assert batch_bytes(2**30, {"x": 2**31}) == 2**30
        assert batch_bytes(2**20, {"x": 2**31}) == 64 * 2**20


class TestRefused:
    def test_other_columns_types_or_tensors(self) -> None:
        first = pa.table({"x": [1]})
        cases: list[tuple[Any, Any]] = [
            (pa.table({"y": [1]}), {}),
            (pa.table({"x": [1.0]}), {}),
            (pa.table({"x": [1], "y": [1]}), {}),
            (pa.table({"x": [1]}), {"e": np.ones((1, 1))}),
        ]
        for columns, tensors in cases:
            with begin(memory(), 2) as writer:
                writer.write(first)
                with pytest.raises(SchemaError, match="a slice has columns"):
                    writer.write(columns, tensors)
        for values in (np.ones((1, 3)), np.ones((1, 2), np.int8)):
            with begin(memory(), 2) as writer:
                writer.write(None, {"e": np.ones((1, 2))})
                with pytest.raises(SchemaError, match="rows of tensor 'e'"):
                    writer.write(None, {"e": values})

    def test_rows_other_than_announced(self) -> None:
        with begin(memory(), 2) as writer:
            writer.write(pa.table({"x": [1]}))
            with pytest.raises(InvalidInputError, match="announced with 2 rows and got 1"):
                writer.finish(_PROVENANCE)
        with begin(memory(), 2) as writer, pytest.raises(InvalidInputError, match="got 3"):
            writer.write(pa.table({"x": [1, 2, 3]}))
        with pytest.raises(InvalidInputError, match="-1 rows"):
            begin(memory(), -1)

    def test_nothing_at_all(self) -> None:
        with begin(memory(), 0) as writer, pytest.raises(SchemaError, match="at least one column"):
            writer.finish(_PROVENANCE)

    @pytest.mark.parametrize("column", ["x", "e"])
    def test_a_full_disk_is_said_and_leaves_files_for_gc(
        self, tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(tmp_path)
        kept = at_once(store, pa.table({"x": [1]}), {})
        sync_partition(store, kept)
        from featurestore.storage.local_io import LocalIO

        real, written = LocalIO.write, []

        def write(self: LocalIO, descriptor: int, data: Any) -> int:
            written.append(len(data))
            if sum(written) > 2**21:
                raise OSError(28, "No space left on device")
            return real(self, descriptor, data)

        monkeypatch.setattr(LocalIO, "write", write)
        values = np.random.default_rng(3).random(2**19)
        parts: tuple[Any, Any] = (pa.table({"x": values}), {})
        if column == "e":
            parts = None, {"e": values.reshape(-1, 1)}
        with pytest.raises(DiskFullError):
            write_four_times(store, *parts)
        monkeypatch.undo()
        assert read_columns(store, kept, ["x"]).to_pydict() == {"x": [1]}


def fail_between_slices(store: ObjectStore, error: BaseException) -> None:
    with begin(store, 2) as writer:
        writer.write(pa.table({"x": [1]}))
        raise error


@pytest.mark.parametrize("error", [OSError(28, "of a function"), KeyError("x")])
def test_an_error_of_somebody_else_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        fail_between_slices(LocalStore(tmp_path), error)
    assert caught.value is error


class TestRanges:
    @given(st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_rows_are_those_of_the_whole(self, data: st.DataObject) -> None:
        columns = data.draw(tables())
        rows = columns.num_rows
        store = memory()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(group_writer, "ROW_GROUP_ROWS", data.draw(st.integers(1, 7)))
            entry = in_slices(store, columns, {}, edges_of(data, rows))
        names = data.draw(st.permutations(columns.column_names))
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        whole = read_columns(store, entry, names)
        with open_parquet(store, entry.files[0]) as parquet:
            found = read_rows(parquet, names, start, stop, data.draw(st.integers(1, 9)))
        assert same(found, whole.slice(start, stop - start))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_ranges, "_MOST_ROWS", 3)
            patch.setattr(row_ranges, "_LEAST_ROWS", 1)
            blocks = list(iter_batches(store, entry, names))
        assert all(one.num_rows <= 3 for one in blocks)
        assert same(pa.concat_tables([whole.slice(0, 0), *blocks]), whole)

    def test_only_row_groups_that_overlap_are_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store = memory()
        entry = in_slices(store, pa.table({"x": np.arange(30)}), {}, [0, 10, 20, 30])
        seen: list[list[int]] = []
        real = pq.ParquetFile.iter_batches

        def spied(self: pq.ParquetFile, *, row_groups: list[int], **options: Any) -> Any:
            seen.append(row_groups)
            return real(self, row_groups=row_groups, **options)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", spied)
        with open_parquet(store, entry.files[0]) as parquet:
            assert read_rows(parquet, ["x"], 12, 15, 4)["x"].to_pylist() == [12, 13, 14]
            assert read_rows(parquet, ["x"], 9, 21, 4)["x"].to_pylist() == list(range(9, 21))
            assert read_rows(parquet, ["x"], 10, 20, 4)["x"].to_pylist() == list(range(10, 20))
            assert read_rows(parquet, ["x"], 7, 7, 4).num_rows == 0
        assert seen == [[1], [0, 1, 2], [1]]

    def test_wrong_null_counts_are_found_by_a_pass_over_all_rows(self) -> None:
        store = memory()
        entry = in_slices(store, pa.table({"x": [1, None, 3]}), {}, [0, 1, 3])
        with pytest.raises(CorruptionError, match="nulls"):
            list(iter_batches(store, replace(entry, nulls={"x": 2}), ["x"]))


def test_column_size_counts_marks_of_slices_once() -> None:
    size = ColumnSize(pa.bool_())
    column = pa.chunked_array([[True, None], [False] * 5, [None]])
    size.add(column)
    assert size.bytes == column.combine_chunks().nbytes == 2
