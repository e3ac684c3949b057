"""A store that somebody else made: whatever it says, it is read within bounds or refused.

Checksums are right everywhere here: they say that a file is as it was written, not who wrote it.
"""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.errors import CorruptionError, FeatureStoreError, FormatError
from featurestore.fingerprint import digest
from featurestore.storage import fileset
from featurestore.storage.arrow_bounds import ALWAYS_FINE, MAX_BYTES, read_arrow_file
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import iter_columns, read_columns, write_partition
from featurestore.storage.journal import Journal
from featurestore.storage.leases import Leases
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.storage.sealed_json import seal, unseal
from featurestore.storage.snapshot_file import snapshot_path

STRANGE: list[Any] = [
    None, True, -1, 0, 2**40, 2**70, 1.5, "", "x", "../x", "/etc/passwd", "a/../../b", "a:b", "p1",
    "\x00", "é" * 200, "999-x", [], [None], [[]], ["x", "x"], {}, {"x": None}, {"$float": "nan"},
]  # fmt: skip


def pair(df: Any) -> Any:
    return np.stack([df["x"].to_numpy()] * 2, axis=1)


def _golden() -> tuple[str, ObjectStore]:
    """Return a small store with one of everything."""
    url = f"memory://{uuid.uuid4().hex}"
    store = fs.FeatureStore.create(url, workers=1)
    rows = pl.DataFrame({"id": [1, 2, 1, 2], "day": [1, 1, 2, 3], "x": [0.5, 1.0, None, 2.0]})
    table = store.ingest("t", rows, key="id", time="day", partition_bytes=64)
    store.ingest("u", rows.rename({"x": "y"}), key="id", time="day")
    table.add(fs.Expression(twice=nw.col("x") * 2))
    table.add(fs.Lag("x", by="id"))
    table.feature(pair, inputs=["x"], output="e", shape=(2,))
    table.build()
    store.tag("first", 2)
    objects = open_object_store(url)
    entry = fileset.read_fileset(objects, store._session.snapshot().groups("t")[0].fileset)[0]
    Journal(objects, "t").record_all([("ab" * 16, entry)])
    return url, objects


_LOOKS: list[Callable[[fs.FeatureStore, str], Any]] = [
    lambda store, name: str(store.table(name)),
    lambda store, name: store.table(name).read(),
    lambda store, name: store.table(name).read(rows=slice(1, 3), as_="arrow"),
    lambda store, name: store.table(name).status(),
    lambda store, name: store.table(name).plan(),
]


def _read_everything(url: str) -> None:
    """Look at a store in every way that reads it."""
    fileset._cache.clear()
    store = fs.FeatureStore.open(url, workers=1)
    actions: list[Callable[[], Any]] = [
        store.tables,
        store.tags,
        lambda: str(store.history()),
        lambda: store.checkout("first").tables(),
        lambda: store.checkout(1).table("t").read("x"),
        lambda: store.checkout("2999-01-01").version,
        lambda: store.verify(all_versions=True),
        lambda: store.gc("0s", keep_versions=1, dry_run=True),
        lambda: str(store),
    ]
    actions += [partial(look, store, name) for name in ("t", "u") for look in _LOOKS]
    actions += [
        lambda: list(store.table("t").dataset(features=["x", "twice", "e"]).all.frames()),
        lambda: [one[:] for one in store.table("t").tensor("e")],
        lambda: store.table("t").lineage("twice"),
        lambda: Journal(open_object_store(url), "t").finished(),
        lambda: Leases(open_object_store(url)).live(),
    ]
    for action in actions:
        try:
            action()
        except FeatureStoreError:
            continue


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every member of a JSON value."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, member in members:
        yield (*at, key)
        if isinstance(member, dict | list):
            yield from _places(member, (*at, key))


def _mutated(content: dict[str, Any], own: random.Random) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    for _ in range(own.choice([1, 1, 1, 2])):
        places = list(_places(changed))
        if not places:
            return changed
        *way, last = own.choice(places)
        parent: Any = changed
        for key in way:
            parent = parent[key]
        kind = own.randrange(6)
        if kind == 0:
            del parent[last]
        elif kind == 1 and isinstance(parent, dict):
            parent[own.choice(["x", "table:../x", "group:t:../x", "group:t", "é"])] = parent.pop(
                last
            )
        else:
            parent[last] = copy.deepcopy(own.choice(STRANGE))
    return changed


def _seed() -> int:
    seed = int(os.environ.get("TRUST_SEED", int.from_bytes(os.urandom(4), "little")))
    print("TRUST_SEED", seed)
    return seed


def _opened(url: str, what: str) -> None:
    try:
        _read_everything(url)
    except FeatureStoreError:
        return
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


@pytest.mark.parametrize("rounds", [80, pytest.param(4000, marks=pytest.mark.slow)])
def test_sealed_files_that_say_something_else(rounds: int) -> None:
    own = random.Random(_seed())
    url, store = _golden()
    _read_everything(url)
    sealed = [info.path for info in store.list("") if info.path.endswith(".json")]
    sealed = [path for path in sealed if not path.endswith("zarr.json")]
    assert len(sealed) >= 8
    newest = snapshot_path(fs.FeatureStore.open(url).version)
    for number in range(rounds):
        path = own.choice([newest, own.choice(sealed)])
        sound = store.read(path)
        changed = _mutated(unseal(sound, path), own)
        store.replace(path, seal(changed))
        _opened(url, f"round {number}, {path}: {json.dumps(changed)[:3000]}")
        store.replace(path, sound)


def _arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _strange_row(row: dict[str, Any], own: random.Random) -> dict[str, Any]:
    """Change a row of a fileset, within its types."""
    changed = copy.deepcopy(row)
    *way, last = own.choice(list(_places(changed)))
    parent: Any = changed
    for key in way:
        parent = parent[key]
    old = parent[last]
    if isinstance(old, str):
        parent[last] = own.choice([one for one in STRANGE if one is None or isinstance(one, str)])
    elif isinstance(old, list):
        parent[last] = own.choice([None, [], [None], old * 2])
    elif isinstance(old, dict):
        parent[last] = None
    else:
        parent[last] = own.choice([None, -1, 0, 1, 2**62, -(2**63)])
    return changed


@pytest.mark.parametrize("rounds", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_filesets_that_say_something_else(rounds: int) -> None:
    own = random.Random(_seed())
    url, store = _golden()
    version = fs.FeatureStore.open(url).version
    snapshot = store.read(snapshot_path(version))
    content = unseal(snapshot, "")
    groups = [key for key, one in content["entries"].items() if one.get("fileset")]
    assert len(groups) >= 5
    for number in range(rounds):
        key = own.choice(groups)
        changed = copy.deepcopy(content)
        ref = changed["entries"][key]["fileset"]
        sound = store.read(ref["path"])
        with pa.ipc.open_file(pa.BufferReader(sound)) as reader:
            table = reader.read_all()
        rows = table.to_pylist()
        position = own.randrange(len(rows))
        rows[position] = _strange_row(rows[position], own)
        data = _arrow(pa.Table.from_pylist(rows, schema=table.schema))
        ref.update(bytes=len(data), checksum=digest(data), rows=sum(r["rows"] or 0 for r in rows))
        store.replace(ref["path"], data)
        store.replace(snapshot_path(version), seal(changed))
        _opened(url, f"round {number}, {key}: {rows[position]}")
        store.replace(ref["path"], sound)
    store.replace(snapshot_path(version), snapshot)


class TestNames:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("table:t", "table:../x"),
            ("table:t", "table:a/b"),
            ("group:t:base", "group:t:../../etc"),
            ("group:t:base", "group:t/x:base"),
        ],
    )
    def test_of_entries(self, old: str, new: str) -> None:
        url, store = _golden()
        path = snapshot_path(fs.FeatureStore.open(url).version)
        content = unseal(store.read(path), path)
        content["entries"][new] = content["entries"].pop(old)
        store.replace(path, seal(content))
        opened = fs.FeatureStore.open(url)
        name = new.split(":")[1]
        with pytest.raises((CorruptionError, FormatError, FeatureStoreError)):
            opened.table(name).read()
        with pytest.raises(FeatureStoreError):
            opened.table("t").read()

    def test_paths_that_lead_out(self, tmp_path: Path) -> None:
        """Absolute ones, climbing ones, and links inside the store."""
        secret = tmp_path / "secret.arrow"
        secret.write_bytes(b"secret")
        root = tmp_path / "golden"
        store = fs.FeatureStore.create(root, workers=1)
        store.ingest("t", pl.DataFrame({"x": [1, 2]}))
        sound = (root / snapshot_path(1)).read_bytes()
        for path in (str(secret), "../secret.arrow", "filesets/../../secret.arrow"):
            content = unseal(sound, "")
            content["entries"]["group:t:base"]["fileset"].update(
                path=path, bytes=6, checksum=digest(b"secret")
            )
            (root / snapshot_path(1)).write_bytes(seal(content))
            with pytest.raises(CorruptionError, match="not a path"):
                fs.FeatureStore.open(root).table("t").read()
        link = root / "filesets" / "link.arrow"
        link.symlink_to(secret)
        content["entries"]["group:t:base"]["fileset"].update(
            path="filesets/link.arrow", bytes=link.lstat().st_size
        )
        (root / snapshot_path(1)).write_bytes(seal(content))
        with pytest.raises(CorruptionError, match="symbolic link"):
            fs.FeatureStore.open(root).table("t").read()


def _claiming(size: int) -> bytes:
    """An Arrow file, small, one buffer of which claims to become ``size`` bytes."""
    data = bytearray(_arrow(pa.table({"a": pa.array(range(5000), pa.int64())})))
    honest = struct.pack("<q", 5000 * 8)
    assert data.count(honest) >= 1
    at = data.index(honest, data.index(b"\xff\xff\xff\xff", 16))
    while data[at + 8 : at + 12] != b"\x28\xb5\x2f\xfd":  # the magic of ZSTD
        at = data.index(honest, at + 1)
    data[at : at + 8] = struct.pack("<q", size)
    return bytes(data)


class TestBounds:
    def _read(self, data: bytes) -> pa.Table:
        return read_arrow_file(data, "filesets/a.arrow", "restore it", lambda schema: None)

    def test_an_honest_file(self) -> None:
        table = pa.table({"a": range(5000), "s": ["x" * 100] * 5000, "n": [None, 1] * 2500})
        assert self._read(_arrow(table)).equals(table)
        assert self._read(_arrow(table.slice(0, 0))).num_rows == 0
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
        assert self._read(sink.getvalue().to_pybytes()).equals(table)

    @pytest.mark.parametrize("size", [ALWAYS_FINE + 1, MAX_BYTES + 1, 2**42, 2**62, -2])
    def test_a_small_file_that_claims_much(self, size: int) -> None:
        with pytest.raises(CorruptionError, match="claims"):
            self._read(_claiming(size))

    def test_a_file_that_really_becomes_large(self) -> None:
        """30 KB that decompress to 200 MB, each claim true."""
        zeros = pa.table({"a": np.zeros(25_000_000, np.int64)})
        data = _arrow(zeros)
        assert len(data) < 100_000
        with pytest.raises(CorruptionError, match="claims to become 200000000"):
            self._read(data)

    def test_every_flipped_byte(self) -> None:
        """Of what stands for itself, without a checksum: an error of ours, or a valid table."""
        sound = _arrow(pa.table({"a": [1, 2, 3], "s": ["x", None, "zz"]}))
        for at in range(len(sound)):
            data = bytearray(sound)
            data[at] ^= 1 << (at % 8)
            try:
                self._read(bytes(data)).validate(full=True)
            except CorruptionError:
                continue

    def test_offsets_that_lead_out(self) -> None:
        sink = pa.BufferOutputStream()
        table = pa.table({"s": ["ab", "c"]})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        honest = struct.pack("<iii", 0, 2, 3)
        assert data.count(honest) == 1
        for wrong in ((0, 2, 2**30), (0, -5, 3), (3, 2, 3)):
            with pytest.raises(CorruptionError, match="not an Arrow file"):
                self._read(data.replace(honest, struct.pack("<iii", *wrong)))


class TestParquetBounds:
    @pytest.fixture
    def entry(self) -> tuple[ObjectStore, PartitionEntry]:
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        columns = pa.table({
            "a": pa.array(range(1000), pa.int64()),
            "tiny": pa.array([n % 100 for n in range(1000)], pa.int8()),
            "flag": pa.array([n % 2 == 0 for n in range(1000)]),
            "s": [f"text {n}" for n in range(1000)],
            "l": [[n] * (n % 3) for n in range(1000)],
            "dots.in.name": pa.array([None] * 1000, pa.float64()),
            "t": pa.array(range(1000), pa.timestamp("us")),
        })  # fmt: skip
        entry = write_partition(
            store, table="t", group="base", partition="p1", columns=columns, tensors={},
            provenance=Provenance("ingest", "x"),
        )  # fmt: skip
        return store, entry

    def _with(self, entry: PartitionEntry, **members: Any) -> PartitionEntry:
        return PartitionEntry.from_json({**entry.to_json(), **members})

    def test_honest_files_are_within(self, entry: tuple[ObjectStore, PartitionEntry]) -> None:
        store, one = entry
        names = list(one.nulls)
        assert read_columns(store, one, names).num_rows == 1000
        assert sum(part.num_rows for part in iter_columns(store, one, names)) == 1000

    def test_rows(self, entry: tuple[ObjectStore, PartitionEntry]) -> None:
        store, one = entry
        for rows in (999, 1001, 2**60):
            with pytest.raises(CorruptionError, match="claims 1000 rows"):
                read_columns(store, self._with(one, rows=rows), ["a"])

    def test_an_entry_too_small_for_its_rows(
        self, entry: tuple[ObjectStore, PartitionEntry]
    ) -> None:
        store, one = entry
        small = self._with(one, column_bytes={**one.column_bytes, "a": 10})
        with pytest.raises(CorruptionError, match="64 bits"):
            read_columns(store, small, ["a"])
        assert read_columns(store, small, ["tiny"]).num_rows == 1000

    def test_pages_larger_than_the_entry_allows(self) -> None:
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table({"s": ["x" * 5_000_000] * 10}), sink, compression="zstd", use_dictionary=False
        )
        data = sink.getvalue().to_pybytes()
        assert len(data) < 2**20
        path = f"data/t/base/p1-{'0' * 12}.parquet"
        store.write(path, data)
        file = StoredFile(path, len(data), digest(data))
        entry = PartitionEntry(
            "p1", 10, (file,), {}, Provenance("ingest", "x"), 100, {"s": 100}, 10, {"s": 0}
        )
        for read in (read_columns, lambda *given: list(iter_columns(*given))):
            with pytest.raises(CorruptionError, match="claims 50000") as caught:
                read(store, entry, ["s"])
            assert path in caught.value.problem
        honest = self._with(entry, column_bytes={"s": 50_000_040})
        assert read_columns(store, honest, ["s"]).num_rows == 10
