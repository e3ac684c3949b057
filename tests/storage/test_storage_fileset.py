"""Filesets, states and the journal: round trips, damage, and what each does about it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import CorruptionError, DiskFullError, InvalidInputError, LimitError
from featurestore.schema import Field
from featurestore.storage import fileset
from featurestore.storage import state_parts as parts_module
from featurestore.storage import states as states_module
from featurestore.storage.backends import open_object_store
from featurestore.storage.checksum import write_sealed
from featurestore.storage.column_group import write_partition
from featurestore.storage.fileset import (
    read_definition,
    read_fileset,
    with_definition,
    with_partitions,
    write_fileset,
)
from featurestore.storage.journal import Journal
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import (
    FilesetRef,
    GroupEntry,
    PartitionEntry,
    StoredFile,
    TableEntry,
)
from featurestore.storage.states import StateStore, decode_state, encode_state
from featurestore.testing.arrow_tables import tables
from featurestore.testing.journals import journal_keys


def _files() -> st.SearchStrategy[StoredFile]:
    return st.builds(
        StoredFile,
        st.sampled_from(["data/t/g/p.parquet", "data/t/g/p.0.zarr/c.0.0"]),
        st.integers(0, 2**40),
        st.text("0123456789abcdef", min_size=32, max_size=32),
        st.sampled_from(["", "0" * 32]),
    )


def _counts() -> st.SearchStrategy[dict[str, int]]:
    return st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 2**40), max_size=3)


@st.composite
def _entries(draw: st.DrawFn) -> list[PartitionEntry]:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    return [
        PartitionEntry(
            partition=f"p{index}",
            rows=draw(st.integers(0, 2**40)),
            files=tuple(draw(st.lists(_files(), max_size=1))),
            tensors={
                name: tuple(draw(st.lists(_files(), max_size=3)))
                for name in draw(st.lists(texts, unique=True, max_size=2))
            },
            provenance=Provenance(draw(texts), draw(texts), draw(texts)),
            decoded_bytes=draw(st.integers(0, 2**40)),
            column_bytes=draw(_counts()),
            widest_row=draw(st.integers(0, 2**40)),
            nulls=draw(_counts()),
            time_min=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
            time_max=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        )
        for index in range(draw(st.integers(0, 4)))
    ]


def _entry(rows: int = 3) -> PartitionEntry:
    return PartitionEntry("p", rows, (), {}, Provenance("d", "i"), 0, {}, 0, {})


class TestFilesets:
    @given(_entries())
    @settings(deadline=None, max_examples=60)
    def test_round_trip(self, entries: list[PartitionEntry]) -> None:
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        ref = write_fileset(store, entries)
        assert (ref.partitions, ref.rows) == (len(entries), sum(one.rows for one in entries))
        assert FilesetRef.from_json(ref.to_json()) == ref
        assert read_fileset(store, ref) == tuple(entries)
        fileset._cache.clear()
        assert read_fileset(store, ref) == tuple(entries)
        for entry in entries:
            assert PartitionEntry.from_json(entry.to_json()) == entry

    def test_none_is_empty(self, store: ObjectStore) -> None:
        assert read_fileset(store, None) == ()

    def test_a_partition_twice(self, store: ObjectStore) -> None:
        with pytest.raises(CorruptionError, match="twice"):
            write_fileset(store, [_entry(), _entry()])

    def test_is_read_once(self, store: ObjectStore) -> None:
        ref = write_fileset(store, [_entry()])
        first = read_fileset(store, ref)
        store.delete([ref.file.path])
        assert read_fileset(store, ref) is first

    def test_the_cache_is_bounded(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fileset, "_CACHED_PARTITIONS", 10)
        for _ in range(30):
            read_fileset(store, write_fileset(store, [_entry()]))
        assert sum(1 + one.partitions for one in fileset._cache.values()) <= 10

    def test_arrow_opens_it(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        ref = write_fileset(store, [_entry()])
        table = pa.ipc.open_file(tmp_path / ref.file.path).read_all()
        assert table.column("partition").to_pylist() == ["p"]
        assert table.column("rows").to_pylist() == [3]

    def test_every_flipped_byte_is_found(self) -> None:
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        ref = write_fileset(store, [_entry()])
        sound = store.read(ref.file.path)
        for position in range(0, len(sound), 7):
            damaged = bytearray(sound)
            damaged[position] ^= 4
            store.replace(ref.file.path, bytes(damaged))
            with pytest.raises(CorruptionError, match="checksum"):
                read_fileset(store, ref)

    def test_missing_torn_and_lying(self, store: ObjectStore) -> None:
        ref = write_fileset(store, [_entry()])
        data = store.read(ref.file.path)
        for wrong in (dataclasses.replace(ref, rows=4), dataclasses.replace(ref, partitions=2)):
            with pytest.raises(CorruptionError, match="the snapshot says"):
                read_fileset(store, wrong)
        huge = dataclasses.replace(ref, file=dataclasses.replace(ref.file, bytes=2**50))
        with pytest.raises(CorruptionError, match="bytes"):
            read_fileset(store, huge)
        store.replace(ref.file.path, data[:-5])
        with pytest.raises(CorruptionError, match="bytes"):
            read_fileset(store, ref)
        store.delete([ref.file.path])
        with pytest.raises(CorruptionError, match="missing"):
            read_fileset(store, ref)

    def test_other_arrow_files_are_refused(self, store: ObjectStore) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, pa.schema([("x", pa.int8())])):
            pass
        for name, data in (("a", sink.getvalue().to_pybytes()), ("b", b"no arrow at all")):
            file = write_sealed(store, f"filesets/{name}.arrow", data)
            with pytest.raises(CorruptionError):
                read_fileset(store, FilesetRef(file, 0, 0))

    def _rewritten(self, store: ObjectStore, change: Any) -> FilesetRef:
        """Return the reference to a fileset of one file and one tensor whose rows were changed."""
        stored = StoredFile("data/t/g/p.parquet", 7, "a" * 32, "b" * 32)
        entry = dataclasses.replace(
            _entry(), files=(stored,), tensors={"e": (stored,)}, time_min=1, time_max=2
        )
        ref = write_fileset(
            store, [dataclasses.replace(entry, provenance=Provenance("d", "i", "s"))]
        )
        rows = pa.ipc.open_file(pa.BufferReader(store.read(ref.file.path))).read_all().to_pylist()
        table = change(rows)
        if not isinstance(table, pa.Table):
            table = pa.Table.from_pylist(table)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        path = f"filesets/{uuid.uuid4().hex[:24]}.arrow"
        return FilesetRef(write_sealed(store, path, sink.getvalue().to_pybytes()), 1, 3)

    @staticmethod
    def _typed(rows: list[dict[str, Any]], schema: pa.Schema = fileset._SCHEMA) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=schema)

    def test_later_additions_are_ignored(self, store: ObjectStore) -> None:
        def plain(rows: list[dict[str, Any]]) -> pa.Table:
            return self._typed(rows)

        def extended(rows: list[dict[str, Any]]) -> pa.Table:
            file = pa.struct([pa.field("zone", pa.string()), *fileset._FILE])
            tensors = pa.list_(
                pa.struct([("dtype", pa.int8()), ("name", pa.string()), ("files", pa.list_(file))])
            )
            schema = pa.schema(
                [pa.field("zone", pa.int8())]
                + [
                    pa.field(
                        one.name,
                        {"files": pa.list_(file), "tensors": tensors}.get(one.name, one.type),
                    )
                    for one in reversed(fileset._SCHEMA)
                ],
                metadata={"by": "a later version"},
            )
            return self._typed(rows, schema)

        assert read_fileset(store, self._rewritten(store, extended)) == read_fileset(
            store, self._rewritten(store, plain)
        )

    def test_optional_columns_may_be_absent(self, store: ObjectStore) -> None:
        def reduced(rows: list[dict[str, Any]]) -> pa.Table:
            file = pa.struct([one for one in fileset._FILE if one.name != "footer"])
            table = self._typed(rows).drop_columns(["state", "time_min", "time_max"])
            return self._typed(
                table.to_pylist(),
                pa.schema(
                    [
                        pa.field(one.name, pa.list_(file) if one.name == "files" else one.type)
                        for one in table.schema
                    ]
                ),
            )

        (found,) = read_fileset(store, self._rewritten(store, reduced))
        assert found.provenance == Provenance("d", "i", "")
        assert (found.time_min, found.time_max) == (None, None)
        assert found.files == (StoredFile("data/t/g/p.parquet", 7, "a" * 32),)
        assert found.tensors["e"][0].footer == "b" * 32

    @pytest.mark.parametrize("column", fileset._SCHEMA.names)
    def test_known_columns_keep_their_types(self, store: ObjectStore, column: str) -> None:
        def retyped(rows: list[dict[str, Any]]) -> pa.Table:
            table = self._typed(rows)
            index = table.schema.names.index(column)
            return table.set_column(index, column, pa.array([True]))

        with pytest.raises(CorruptionError, match="columns"):
            read_fileset(store, self._rewritten(store, retyped))

    @pytest.mark.parametrize("column", ["partition", "rows", "files", "definition", "nulls"])
    def test_required_columns_are_there_once_and_not_null(
        self, store: ObjectStore, column: str
    ) -> None:
        def dropped(rows: list[dict[str, Any]]) -> pa.Table:
            return self._typed(rows).drop_columns([column])

        def twice(rows: list[dict[str, Any]]) -> pa.Table:
            table = self._typed(rows)
            return table.append_column(column, table[column])

        for change in (dropped, twice):
            with pytest.raises(CorruptionError, match="columns"):
                read_fileset(store, self._rewritten(store, change))

    @pytest.mark.parametrize("column", ["partition", "rows", "files"])
    def test_nulls_are_damage(self, store: ObjectStore, column: str) -> None:
        def emptied(rows: list[dict[str, Any]]) -> pa.Table:
            return self._typed([{**rows[0], column: None}])

        with pytest.raises(CorruptionError, match=r"not valid|0 rows"):
            read_fileset(store, self._rewritten(store, emptied))


class TestEntries:
    def test_a_partition_entry_of_another_version(self) -> None:
        stored = StoredFile("data/t/g/p.parquet", 7, "a" * 32, "b" * 32)
        entry = dataclasses.replace(_entry(), files=(stored,), tensors={"e": (stored,)})
        value: dict[str, Any] = entry.to_json()
        value["zone"] = 1
        value["files"][0].append("later")
        value["tensors"]["e"][0].append("later")
        value["provenance"].append("later")
        del value["time_min"], value["time_max"]
        assert PartitionEntry.from_json(value) == entry

    def test_tables_and_groups_of_another_version(self) -> None:
        table = TableEntry("t", ("k",), "d", 100)
        assert TableEntry.from_json({**table.to_json(), "zone": 1}) == table
        without = {key: one for key, one in table.to_json().items() if key != "duplicates"}
        assert TableEntry.from_json(without) == table
        ref = FilesetRef(StoredFile("filesets/a.arrow", 3, "a" * 32), 1, 2)
        group = GroupEntry("t", "g", (), ref)
        value: dict[str, Any] = {**group.to_json(), "zone": 1}
        value["fileset"]["zone"] = 1
        assert GroupEntry.from_json("group:t:g", value) == group
        # What a writer does not know is not in what it writes again.
        assert "zone" not in GroupEntry.from_json("group:t:g", value).to_json()

    def test_a_feature_is_what_its_entry_and_its_fileset_say(self, store: ObjectStore) -> None:
        fields = (Field("x", pa.float64()), Field("e", pa.float32(), (2, 3)))
        transformer = {"kind": "Lookup"}
        definition: dict[str, Any] = {
            "asked": "cd" * 16,
            "fit_on": None,
            "transformer": transformer,
        }
        group = GroupEntry(
            "t", "f", fields, None, definition, "ab" * 16, ("k",), "Lookup", {"o": ("k", "y")},
            "cd" * 16, True,
        )  # fmt: skip
        assert GroupEntry.from_json(group.key, group.to_json()) == group
        published = with_partitions(store, group, [_entry()], definition)
        assert published.definition is None
        assert published.fileset is not None
        assert GroupEntry.from_json(group.key, published.to_json()) == published
        assert with_definition(store, published) == dataclasses.replace(
            group, fileset=published.fileset
        )
        # Whoever changes its partitions, none left among them, takes the definition along.
        for entries in ([_entry(), dataclasses.replace(_entry(), partition="q")], []):
            changed = with_partitions(store, published, entries)
            assert read_fileset(store, changed.fileset) == tuple(entries)
            assert with_definition(store, changed).definition == definition

    def test_an_entry_of_format_1(self, store: ObjectStore) -> None:
        definition = {"transformer": {"kind": "Lag"}, "fit_on": None, "asked": "ab" * 16}
        value: dict[str, Any] = {
            "table": "t", "group": "f", "fields": [{"name": "e", "type": "int8", "shape": [2]}],
            "fileset": None, "definition": definition, "definition_fingerprint": "cd" * 16,
            "inputs": ["x"],
        }  # fmt: skip
        group = GroupEntry.from_json("group:t:f", value)
        assert group == GroupEntry(
            "t", "f", (Field("e", pa.int8(), (2,)),), None, definition, "cd" * 16, ("x",), "Lag",
            asked="ab" * 16,
        )  # fmt: skip
        assert GroupEntry.from_json(group.key, group.to_json()) == group
        # It keeps its definition, as only who knows the transformer knows what else to say of it.
        kept = with_partitions(store, group, [_entry()])
        assert kept.definition == definition
        assert kept.fileset is not None
        with pytest.raises(CorruptionError, match="holds no definition"):
            read_definition(store, kept.fileset)


class TestStates:
    @given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), tables(), max_size=3))
    @settings(deadline=None, max_examples=60)
    def test_round_trip(self, state: dict[str, pa.Table]) -> None:
        data = encode_state(state)
        back = decode_state(data)
        assert list(back) == sorted(state)
        for name, table in state.items():
            assert back[name].schema.equals(table.schema, check_metadata=True)
            assert encode_state({"x": back[name]}) == encode_state({"x": table})
        assert encode_state(back) == data

    def test_dictionaries_and_metadata(self) -> None:
        table = pa.table({"s": pa.array(["x", None, "y"]).dictionary_encode()})
        table = table.replace_schema_metadata({"own": "value"})
        back = decode_state(encode_state({"t": table}))["t"]
        assert back.equals(table, check_metadata=True)

    def test_chunks_do_not_matter(self) -> None:
        whole = pa.table({"x": [1, 2, 3, 4]})
        cut = pa.concat_tables([whole[:1], whole[1:]])
        assert encode_state({"t": cut, "a": whole}) == encode_state({"a": whole, "t": whole})

    def test_large_ones_come_back_whole_and_in_parts(self, store: ObjectStore) -> None:
        size = 400_000
        words = pa.array([None if i % 7 == 0 else f"word {i % 99}" for i in range(size)])
        rows = pa.table({"s": words, "n": np.arange(size), "d": words.dictionary_encode()})
        plain = rows.drop_columns(["d"]).replace_schema_metadata({"own": "value"})
        state = {
            "b": pa.concat_tables([rows[:5], rows[5:]]),
            "": plain,
            "none": rows[:0],
            "a": rows[:1],
        }
        states = StateStore(store)
        states.put("ab" * 16, state)
        back = states.require("ab" * 16)
        assert list(back) == sorted(state)
        for name, table in state.items():
            assert back[name].equals(table, check_metadata=True)
        states.put("cd" * 16, {"x": plain})
        parts = list(states.parts("cd" * 16))
        assert len(parts) > 2
        assert pa.concat_tables([part for _, part in parts]).equals(plain, check_metadata=True)

    def test_any_arrow_reader_opens_the_first(self) -> None:
        data = encode_state({"b": pa.table({"y": [1]}), "a": pa.table({"x": [2]})})
        assert pa.ipc.open_stream(data).read_all().to_pydict() == {"x": [2]}

    def test_every_torn_or_flipped_state_is_found(self) -> None:
        data = encode_state({"a": pa.table({"x": [1.5, None]})})
        for length in range(len(data)):
            with pytest.raises(CorruptionError):
                decode_state(data[:length])
        for position in range(len(data)):
            damaged = bytearray(data)
            damaged[position] ^= 1 << (position % 8)
            with pytest.raises(CorruptionError):
                decode_state(bytes(damaged))

    def test_a_true_digest_over_nonsense(self) -> None:
        body = b"nonsense" * 4 + b"FSSTATE1"
        with pytest.raises(CorruptionError):
            decode_state(body + hashlib.blake2b(body, digest_size=16).digest())

    def test_keeping(self, store: ObjectStore) -> None:
        states = StateStore(store)
        assert states.get("ab" * 16) is None
        assert not states.has("ab" * 16)
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        states.put("ab" * 16, {"n": pa.table({"x": [2]})})
        found = states.get("ab" * 16)
        assert found is not None
        assert found["n"].to_pydict() == {"x": [1]}
        states.put("cd" * 16, {})
        assert states.get("cd" * 16) == {}

    def test_a_damaged_one_is_computed_again(
        self, store: ObjectStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        states = StateStore(store)
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        path = f"states/{'ab' * 16}.arrow"
        store.replace(path, store.read(path)[:-1])
        with caplog.at_level(logging.WARNING):
            assert states.get("ab" * 16) is None
        assert path in caplog.text
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        assert states.get("ab" * 16) is not None

    @pytest.mark.parametrize("codec", ["zstd", "lz4"])
    @pytest.mark.parametrize("which", ["plain", "dictionary", "second"])
    def test_compressed_tables_are_refused(
        self, store: ObjectStore, caplog: pytest.LogCaptureFixture, codec: str, which: str
    ) -> None:
        column = pa.array([""] * 100_000)
        small = pa.table({"x": column.dictionary_encode() if which == "dictionary" else column})
        sink = pa.BufferOutputStream()
        for name in ("a", "b"):
            table = small.replace_schema_metadata({"featurestore.state": name})
            compress = codec if name == "b" or which != "second" else None
            options = pa.ipc.IpcWriteOptions(compression=compress)
            with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
                writer.write_table(table)
        body = sink.getvalue().to_pybytes() + b"FSSTATE1"
        data = body + hashlib.blake2b(body, digest_size=16).digest()
        with pytest.raises(CorruptionError, match="compressed"):
            decode_state(data)
        path = f"states/{'ab' * 16}.arrow"
        store.create(path, data)
        with caplog.at_level(logging.WARNING):
            assert StateStore(store).get("ab" * 16) is None
        assert "compressed" in caplog.text
        assert not store.exists(path)

    def test_large_ones_are_refused_unread(
        self,
        store: ObjectStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        states = StateStore(store)
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        data = store.read(f"states/{'ab' * 16}.arrow")
        monkeypatch.setattr(states_module, "MAX_BYTES", len(data))
        assert states.get("ab" * 16) is not None
        monkeypatch.setattr(states_module, "MAX_BYTES", len(data) - 1)
        with pytest.raises(CorruptionError, match="more than"):
            decode_state(data)
        with monkeypatch.context() as patch:
            patch.setattr(parts_module, "MAX_BYTES", 7 * 2**20)
            large = pa.table({"x": np.arange(2**20)})
            with pytest.raises(LimitError, match="more than"):
                states.put("cd" * 16, {"n": large})
        with caplog.at_level(logging.WARNING):
            assert states.get("ab" * 16) is None
        assert "more than" in caplog.text
        assert not states.has("ab" * 16)
        assert not states.has("cd" * 16)

    def test_use_makes_young(self, tmp_path: Path) -> None:
        states = StateStore(LocalStore(tmp_path))
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        path = tmp_path / f"states/{'ab' * 16}.arrow"
        data, now = path.read_bytes(), time.time()
        for age, refreshed in ((20 * 86_400, True), (86_000, False)):
            os.utime(path, (now - age, now - age))
            assert states.get("ab" * 16) is not None
            assert (path.stat().st_mtime > now - 60) == refreshed
            assert path.read_bytes() == data

    def test_a_store_that_cannot_be_written_serves_old_states(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Full(LocalStore):
            def replace(self, path: str, data: bytes) -> None:
                raise DiskFullError("the disk is full", "free some space")

        states = StateStore(Full(tmp_path))
        states.put("ab" * 16, {"n": pa.table({"x": [1]})})
        os.utime(tmp_path / f"states/{'ab' * 16}.arrow", (1, 1))
        with caplog.at_level(logging.WARNING):
            assert states.get("ab" * 16) is not None
        assert "the disk is full" in caplog.text

    @pytest.mark.parametrize("key", ["", "../x", "ABCDEF0123", "x" * 32, "ab"])
    def test_keys_are_fingerprints(self, store: ObjectStore, key: str) -> None:
        states: Any = StateStore(store)
        for call in (states.get, states.has, lambda key: states.put(key, {})):
            with pytest.raises(InvalidInputError):
                call(key)


class TestJournal:
    def _partition(self, store: ObjectStore) -> PartitionEntry:
        return write_partition(
            store,
            table="t",
            group="g",
            partition="p1",
            columns=pa.table({"a": [1]}),
            tensors={"e": np.ones((1, 2))},
            provenance=Provenance("d", "i", "s"),
            time_range=(1, 2),
        )

    def test_record_find_clear(self, store: ObjectStore) -> None:
        journal = Journal(store, "t")
        entry = self._partition(store)
        assert not journal.finished({"k1"})
        journal.record_all([("k1", entry)])
        journal.record_all([("k2", entry)])
        assert journal.finished({"k1"}) == {"k1": entry}
        assert journal_keys(store, "t") == ["k1", "k2"]
        assert journal_keys(store, "t2") == []
        journal.clear(["k1", "k3"])
        assert journal_keys(store, "t") == ["k2"]
        assert not journal.finished({"k1"})

    def test_files_are_synced_before_the_entry(self, tmp_path: Path) -> None:
        steps: list[str] = []

        class Recorder(LocalStore):
            def sync(self, paths: Any) -> None:
                paths = list(paths)
                steps.extend(paths)
                super().sync(paths)

            def replace(self, path: str, data: bytes) -> None:
                steps.append(path)
                super().replace(path, data)

        recorder = Recorder(tmp_path)
        entry = self._partition(recorder)
        Journal(recorder, "t").record_all([("k", entry)])
        assert steps == [*(file.path for file in entry.all_files()), "journal/t/k.json"]

    def test_entries_without_their_files_do_not_count(self, store: ObjectStore) -> None:
        journal = Journal(store, "t")
        for file in self._partition(store).all_files():
            assert file.bytes > 0
        for index in range(3):
            entry = self._partition(store)
            journal.record_all([("k", entry)])
            path = entry.all_files()[index].path
            data = store.read(path)
            store.delete([path])
            assert not journal.finished({"k"})
            store.write(path, data[:-1])
            assert not journal.finished({"k"})

    def test_damaged_entries_do_not_count(self, store: ObjectStore) -> None:
        journal = Journal(store, "t")
        journal.record_all([("k", self._partition(store))])
        data = store.read("journal/t/k.json")
        for damaged in (b"", data[:-1], data.replace(b'"rows":1', b'"rows":2')):
            store.replace("journal/t/k.json", damaged)
            assert not journal.finished({"k"})

    def test_keys_stay_inside(self, store: ObjectStore) -> None:
        assert not Journal(store, "t").finished({"../../store"})
        with pytest.raises(CorruptionError):
            Journal(store, "t").record_all([("../../store", self._partition(store))])
        with pytest.raises(InvalidInputError):
            Journal(store, "../t")
