"""Column groups: what is written comes back exactly, damage is found, any tool opens the files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import (
    CorruptionError,
    DiskFullError,
    InvalidInputError,
    NotFoundError,
    SchemaError,
)
from featurestore.schema import normalise_type, type_to_text
from featurestore.storage import column_group, tensor_group
from featurestore.storage.column_group import (
    iter_columns,
    new_partition_id,
    open_parquet,
    read_columns,
    sync_partition,
    write_partition,
)
from featurestore.storage.local import LocalStore
from featurestore.storage.local_io import LocalIO
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry
from featurestore.storage.row_width import row_widths, widest_row
from featurestore.storage.tensor_group import read_tensor
from featurestore.testing.arrow_tables import SIMPLE_TYPES, arrays, tables, types

_PROVENANCE = Provenance("ingest", "inputs")


def _write(
    store: ObjectStore,
    columns: pa.Table | None,
    tensors: dict[str, npt.NDArray[Any]] | None = None,
) -> PartitionEntry:
    return write_partition(
        store,
        table="t",
        group="base",
        partition=new_partition_id(0),
        columns=columns,
        tensors=tensors or {},
        provenance=_PROVENANCE,
    )


def _same(left: pa.Table, right: pa.Table) -> bool:
    """Equal in names, types and values; NaN equals NaN, bit for bit otherwise."""
    if left.schema != right.schema or left.num_rows != right.num_rows:
        return False
    return all(
        _plain(left.column(name).combine_chunks()) == _plain(right.column(name).combine_chunks())
        for name in left.column_names
    )


def _plain(array: pa.Array) -> list[Any]:
    """Python values that compare bit by bit, also where Python has no value (far times, NaN)."""
    type_ = array.type
    if pa.types.is_list(type_):
        return [_plain(one.values) if one.is_valid else None for one in array]
    if pa.types.is_temporal(type_) or pa.types.is_floating(type_):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[type_.bit_width]
        return list(array.view(bits).to_pylist())
    return list(array.to_pylist())


class TestRoundTrip:
    @pytest.mark.parametrize("type_", SIMPLE_TYPES, ids=type_to_text)
    @pytest.mark.parametrize("depth", [0, 1, 2])
    def test_every_type(self, tmp_path: Path, type_: pa.DataType, depth: int) -> None:
        @given(arrays(type_, 6))
        @settings(deadline=None, max_examples=5, database=None)
        def run(column: pa.ChunkedArray) -> None:
            store = LocalStore(tmp_path)
            nested = column.combine_chunks()
            for _ in range(depth):
                size = len(nested)
                nested = pa.ListArray.from_arrays(
                    pa.array([0, size // 2, size // 2, size], pa.int32()), nested
                )
            table = pa.table({"x": nested})
            assert normalise_type(nested.type) == nested.type
            back = read_columns(store, _write(store, table), ["x"])
            assert back.schema == table.schema
            assert _same(back, table)

        run()

    @given(table=tables(), data=st.data())
    @settings(deadline=None, max_examples=80)
    def test_any_table(self, tmp_path_factory: Any, table: pa.Table, data: st.DataObject) -> None:
        store = LocalStore(tmp_path_factory.mktemp("store"))
        entry = _write(store, table)
        names = data.draw(st.lists(st.sampled_from(table.column_names), unique=True, min_size=1))
        assert _same(read_columns(store, entry, names), table.select(names))
        slices = list(iter_columns(store, entry, names, data.draw(st.integers(1, 5))))
        empty = table.select(names).schema.empty_table()
        assert _same(pa.concat_tables([empty, *slices]), table.select(names))
        assert entry.rows == table.num_rows
        assert entry.nulls == {n: table.column(n).null_count for n in table.column_names}

    def test_both_backends_and_both_kinds(self, store: ObjectStore) -> None:
        table = pa.table({"a": [1, None], "s": ["", None]})
        tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
        entry = _write(store, table, {"e": tensor})
        sync_partition(store, entry)
        assert read_columns(store, entry, ["s", "a"]).equals(table.select(["s", "a"]))
        assert np.array_equal(read_tensor(store, entry, "e"), tensor)
        assert entry.column_bytes["e"] == 24
        assert entry.decoded_bytes == 24 + table.nbytes
        assert entry.widest_row == 12 + 8 + 4

    def test_no_rows(self, store: ObjectStore) -> None:
        table = pa.table({"a": pa.array([], pa.int64()), "l": pa.array([], pa.list_(pa.string()))})
        entry = _write(store, table, {"e": np.zeros((0, 3), np.float64)})
        assert entry.rows == entry.widest_row == 0
        assert read_columns(store, entry, ["l", "a"]).equals(table.select(["l", "a"]))
        assert read_tensor(store, entry, "e").shape == (0, 3)
        assert list(iter_columns(store, entry, ["a"])) == []

    def test_tensors_alone(self, store: ObjectStore) -> None:
        entry = _write(store, None, {"e": np.ones((4, 2), np.int8)})
        assert entry.files == ()
        assert entry.rows == 4
        assert entry.widest_row == 2
        with pytest.raises(NotFoundError):
            read_columns(store, entry, ["e"])

    def test_a_name_is_not_a_prefix(self, store: ObjectStore) -> None:
        table = pa.table({"a": [1], "a.b": ["x"], "l": [[1]], "l.list.element": [2.5]})
        entry = _write(store, table)
        for name in table.column_names:
            assert read_columns(store, entry, [name]).equals(table.select([name]))

    def test_many_rows_are_cut_into_row_groups(self, store: ObjectStore) -> None:
        table = pa.table({"a": np.arange(150_000), "s": np.arange(150_000).astype(str)})
        entry = _write(store, table)
        with open_parquet(store, entry.files[0]) as parquet:
            sizes = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
        assert sizes == [65_536, 65_536, 18_928]
        assert read_columns(store, entry, ["a", "s"]).equals(table)
        slices = list(iter_columns(store, entry, ["a"], 40_000))
        assert [len(one) for one in slices] == [40_000, 25_536, 40_000, 25_536, 18_928]

    def test_wide_rows_make_smaller_row_groups(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        table = pa.table({"s": ["x" * 2**20] * 130})
        entry = _write(store, table)
        with open_parquet(store, entry.files[0]) as parquet:
            assert parquet.metadata.row_group(0).num_rows < 65
        assert entry.widest_row == 2**20 + 4


class TestRefused:
    def test_types_that_were_not_normalised(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        for array in (
            pa.array(["x"]).dictionary_encode(),
            pa.array(["x"], pa.large_string()),
            pa.array([{"a": 1}]),
            pa.array([0], pa.timestamp("s")),
            pa.array([0], pa.time32("s")),
        ):
            with pytest.raises(SchemaError):
                _write(store, pa.table({"x": array}))
        assert list(store.list("")) == []

    def test_names_that_repeat(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
        with pytest.raises(SchemaError, match="more than once"):
            _write(store, twice)
        with pytest.raises(SchemaError, match="more than once"):
            _write(store, pa.table({"x": [1]}), {"x": np.ones((1, 1))})

    def test_row_counts_that_differ(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="rows"):
            _write(LocalStore(tmp_path), pa.table({"x": [1]}), {"y": np.ones((2, 1))})

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(SchemaError):
            _write(LocalStore(tmp_path), None)

    @pytest.mark.parametrize(
        "values",
        [np.ones(3), np.ones((3, 0)), np.ones((3, 2), bool), np.ones((3, 2), complex)],
    )
    def test_tensors_that_are_none(self, tmp_path: Path, values: npt.NDArray[Any]) -> None:
        with pytest.raises(SchemaError):
            _write(LocalStore(tmp_path), None, {"x": values})

    def test_unknown_columns(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        entry = _write(store, pa.table({"x": [1]}))
        with pytest.raises(NotFoundError, match="y"):
            read_columns(store, entry, ["y"])
        with pytest.raises(NotFoundError):
            read_tensor(store, entry, "x")

    def test_a_full_disk_in_the_middle(self, tmp_path: Path) -> None:
        import errno

        class Full(LocalIO):
            left = 100_000

            def write(self, descriptor: int, data: memoryview) -> int:
                self.left -= len(data)
                if self.left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(descriptor, data)

        store = LocalStore(tmp_path, Full())
        with pytest.raises(DiskFullError):
            _write(store, pa.table({"x": np.random.default_rng(0).random(200_000)}))
        assert list(store.list("")) == []
        assert list(store.list("tmp")) == []

    def test_a_writer_left_over_reaches_no_other_file(self, tmp_path: Path) -> None:
        """Its descriptor's number may be another file's by the time somebody closes the writer."""
        store = LocalStore(tmp_path / "store")
        writing = store.open_write("data/x")
        left_over = writing.__enter__()
        left_over.write(b"begun")
        assert not writing.__exit__(RuntimeError, RuntimeError(), None)
        others = [(tmp_path / str(number)).open("wb", buffering=0) for number in range(8)]
        with pytest.raises(ValueError, match="closed"):
            left_over.write(b"PAR1")
        assert [os.fstat(one.fileno()).st_size for one in others] == [0] * 8
        for one in others:
            one.close()
        assert not store.exists("data/x")


class TestTensors:
    @given(
        dtype=st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "u1", "i2", "u2", ">i4", "u8"]),
        shape=st.tuples(st.integers(0, 40), st.integers(1, 3), st.integers(1, 3)),
        order=st.sampled_from(["C", "F", "strided"]),
        chunk_bytes=st.integers(1, 400),
        data=st.data(),
    )
    @settings(deadline=None, max_examples=60)
    def test_any_tensor(
        self,
        tmp_path_factory: Any,
        dtype: str,
        shape: tuple[int, ...],
        order: str,
        chunk_bytes: int,
        data: st.DataObject,
    ) -> None:
        store = LocalStore(tmp_path_factory.mktemp("store"))
        count = math.prod(shape)
        values = np.random.default_rng(count).integers(0, 100, shape).astype(dtype)
        if order == "F":
            values = np.asfortranarray(values)
        elif order == "strided":
            values = np.repeat(values, 2, axis=0)[::2]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensor_group, "CHUNK_BYTES", chunk_bytes)
            entry = _write(store, None, {"e": values})
        assert entry.rows == shape[0]
        back = read_tensor(store, entry, "e")
        assert back.dtype == values.dtype.newbyteorder("=")
        assert back.flags.c_contiguous
        assert back.flags.writeable
        assert np.array_equal(back, values)
        start = data.draw(st.integers(0, shape[0]))
        stop = data.draw(st.integers(start, shape[0]))
        assert np.array_equal(read_tensor(store, entry, "e", start, stop), values[start:stop])
        opened = zarr.open_array(_array_folder(store, entry, "e"), mode="r")
        assert np.array_equal(opened[:], values)

    def test_chunks_are_near_16_mib_and_raw(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        values = np.random.default_rng(0).random((5000, 1000), np.float32)
        entry = _write(store, None, {"e": values})
        chunks = entry.tensors["e"][1:]
        assert [file.bytes for file in chunks] == [10_000_000, 10_000_000]
        path = store.local_path(chunks[1].path)
        mapped = np.memmap(path, np.float32, "r", shape=(2500, 1000))
        assert np.array_equal(mapped, values[2500:])
        assert np.array_equal(read_tensor(store, entry, "e", 2400, 2600), values[2400:2600])

    def test_metadata_is_what_zarr_itself_would_mean(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        entry = _write(store, None, {"näme": np.ones((3, 2), np.int16)})
        ours = zarr.open_array(_array_folder(store, entry, "näme"), mode="r")
        theirs = zarr.create_array(
            {},
            shape=(3, 2),
            dtype="int16",
            chunks=(3, 2),
            compressors=None,
            filters=None,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            attributes={"column": "näme"},
            dimension_names=["row", None],
        )
        assert ours.metadata == theirs.metadata

    def test_names_never_become_paths(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        names = ["../../x", "a/b", ".", "x" * 300, "c.0"]
        tensors = {name: np.full((2, 2), index) for index, name in enumerate(names)}
        entry = _write(store, None, tensors)
        for name, values in tensors.items():
            assert np.array_equal(read_tensor(store, entry, name), values)

    @pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 4)])
    def test_ranges_outside(self, tmp_path: Path, start: int, stop: int) -> None:
        store = LocalStore(tmp_path)
        entry = _write(store, None, {"e": np.ones((3, 2))})
        with pytest.raises(InvalidInputError):
            read_tensor(store, entry, "e", start, stop)


def _array_folder(store: LocalStore, entry: PartitionEntry, name: str) -> Path:
    path = store.local_path(entry.tensors[name][0].path)
    assert path is not None
    return path.parent


class TestDamage:
    def test_every_flipped_byte_of_a_small_file_is_found(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        entry = _write(store, pa.table({"a": [1, None, 3], "s": ["x", "y", None]}))
        path = tmp_path / entry.files[0].path
        sound = path.read_bytes()
        for position in range(len(sound)):
            damaged = bytearray(sound)
            damaged[position] ^= 1 << (position % 8)
            path.write_bytes(damaged)
            with pytest.raises(CorruptionError):
                read_columns(store, entry, ["a", "s"])
        path.write_bytes(sound)
        read_columns(store, entry, ["a", "s"])

    def test_flipped_bytes_of_a_large_file_give_no_wrong_values(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(column_group, "CHECKED_WHOLE", 0)
        store = LocalStore(tmp_path)
        random = np.random.default_rng(0)
        table = pa.table(
            {"a": random.random(300), "s": random.integers(0, 9, 300).astype(str), "n": [1] * 300}
        )
        entry = _write(store, table)
        path = tmp_path / entry.files[0].path
        sound = path.read_bytes()
        wrong, messages = [], []
        for position in range(0, len(sound), 3):
            damaged = bytearray(sound)
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            try:
                back = read_columns(store, entry, ["a", "s", "n"])
            except CorruptionError as error:
                messages.append(str(error))
                continue
            if not back.equals(table):
                wrong.append(position)
        assert wrong == []
        assert len(messages) > 100
        assert all(f"partition {entry.partition}" in message for message in messages)

    def test_missing_and_short_files(self, store: ObjectStore) -> None:
        entry = _write(store, pa.table({"a": [1]}), {"e": np.ones((1, 4))})
        for file in entry.all_files():
            data = store.read(file.path)
            store.delete([file.path])
            with pytest.raises(CorruptionError, match="missing") as caught:
                _read_all(store, entry)
            assert file.path in str(caught.value)
            store.replace(file.path, data[:-1])
            with pytest.raises(CorruptionError, match="bytes"):
                _read_all(store, entry)
            store.replace(file.path, data)
        _read_all(store, entry)

    def test_flipped_tensor_bytes(self, store: ObjectStore) -> None:
        entry = _write(store, None, {"e": np.ones((4, 4), np.float32)})
        for file in entry.tensors["e"]:
            data = bytearray(store.read(file.path))
            data[len(data) // 2] ^= 1
            store.replace(file.path, bytes(data))
            tensor_group._cached_layout.cache_clear()
            with pytest.raises(CorruptionError):
                read_tensor(store, entry, "e")
            data[len(data) // 2] ^= 1
            store.replace(file.path, bytes(data))

    def test_a_file_of_other_rows_is_found(self, store: ObjectStore) -> None:
        one = _write(store, pa.table({"a": [1, 2]}), {"e": np.ones((2, 2))})
        import dataclasses

        lying = dataclasses.replace(one, rows=3)
        with pytest.raises(CorruptionError, match="rows"):
            read_columns(store, lying, ["a"])
        with pytest.raises(CorruptionError, match="rows"):
            list(iter_columns(store, lying, ["a"]))
        with pytest.raises(CorruptionError, match="rows"):
            read_tensor(store, lying, "e")


def _read_all(store: ObjectStore, entry: PartitionEntry) -> None:
    tensor_group._cached_layout.cache_clear()
    read_columns(store, entry, ["a"])
    read_tensor(store, entry, "e")


class TestOtherTools:
    def test_plain_pyarrow_and_zarr(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        table = pa.table({"a": [1.5, None], "s": ["x", "y"]})
        entry = _write(store, table, {"e": np.eye(2)})
        assert pq.read_table(tmp_path / entry.files[0].path).equals(table)
        assert np.array_equal(zarr.open(_array_folder(store, entry, "e"), mode="r")[:], np.eye(2))


class TestWidths:
    @given(types().flatmap(lambda type_: arrays(type_, 9)))
    @settings(deadline=None, max_examples=150)
    def test_against_counting(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()

        def count(value: Any, type_: pa.DataType) -> int:
            if pa.types.is_string(type_):
                return 4 + len((value or "").encode())
            if pa.types.is_binary(type_):
                return 4 + len(value or b"")
            if pa.types.is_list(type_):
                return 4 + sum(count(one, type_.value_type) for one in value or [])
            return max(1, int(type_.bit_width) // 8)

        # Values as raw integers where Python cannot hold the value (times of large ranges).
        expected = [
            count(None if not scalar.is_valid else _content(scalar), array.type) for scalar in array
        ]
        widths = row_widths(array)
        found = [widths] * len(array) if isinstance(widths, int) else widths.tolist()
        assert found == expected
        assert widest_row(pa.table({"x": column}), 3) == max(expected) + 3


def _content(scalar: pa.Scalar) -> Any:
    if pa.types.is_list(scalar.type):
        return [_content(one) if one.is_valid else None for one in scalar.values]
    if pa.types.is_string(scalar.type) or pa.types.is_binary(scalar.type):
        return scalar.as_py()
    return 0
