"""What every object store must do: a suite to inherit, with a ``store`` fixture of one's own."""

from __future__ import annotations

import pickle
import threading
import uuid
from typing import Any

import pytest

from featurestore.errors import ConflictError, CorruptionError, NotFoundError
from featurestore.storage.backends import open_object_store
from featurestore.storage.object_store import ObjectStore


class ObjectStoreContract:
    """Inherit, and give a fixture ``store``: an empty object store."""

    def test_bytes_come_back(self, store: ObjectStore) -> None:
        data = bytes(range(256)) * 100
        store.write("data/a/b.bin", data)
        assert store.read("data/a/b.bin") == data
        assert store.read("data/a/b.bin", 5) == data[5:]
        assert store.read("data/a/b.bin", 5, 7) == data[5:12]
        assert store.read("data/a/b.bin", 5, 0) == b""
        assert store.size("data/a/b.bin") == len(data)
        assert store.exists("data/a/b.bin")

    def test_an_empty_file_is_a_file(self, store: ObjectStore) -> None:
        store.write("empty", b"")
        assert store.exists("empty")
        assert store.read("empty") == b""
        assert store.size("empty") == 0

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (5, 6), (10, 1), (99, 1)])
    def test_a_short_read_is_corruption(self, store: ObjectStore, start: int, length: int) -> None:
        store.write("short", b"0123456789")
        with pytest.raises(CorruptionError):
            store.read("short", start, length)

    def test_missing_files(self, store: ObjectStore) -> None:
        assert not store.exists("data/none")
        with pytest.raises(NotFoundError):
            store.read("data/none")
        with pytest.raises(NotFoundError):
            store.read("data/none", 1, 2)
        with pytest.raises(NotFoundError):
            store.size("data/none")
        with pytest.raises(NotFoundError):
            store.open_read("data/none")
        store.delete(["data/none", "none"])

    def test_a_directory_is_no_file(self, store: ObjectStore) -> None:
        store.write("data/a/b.bin", b"x")
        assert not store.exists("data/a")

    def test_reader_seeks(self, store: ObjectStore) -> None:
        store.write("seek", b"0123456789")
        with store.open_read("seek") as stream:
            assert stream.read(3) == b"012"
            assert stream.tell() == 3
            assert stream.seek(-2, 2) == 8
            assert stream.read() == b"89"
            assert stream.read() == b""
            assert stream.seek(1) == 1
            buffer = bytearray(4)
            assert stream.readinto(buffer) == 4  # type: ignore[attr-defined]
            assert bytes(buffer) == b"1234"

    def test_a_stream_appears_at_its_end(self, store: ObjectStore) -> None:
        with store.open_write("data/stream") as stream:
            assert stream.write(b"one") == 3
            assert not store.exists("data/stream")
            assert [info.path for info in store.list("")] == []
            stream.write(memoryview(b"two"))
        assert store.read("data/stream") == b"onetwo"

    def test_a_failed_stream_never_appears(self, store: ObjectStore) -> None:
        with pytest.raises(ZeroDivisionError), store.open_write("data/stream") as stream:  # noqa: PT012
            stream.write(b"one")
            raise ZeroDivisionError
        assert not store.exists("data/stream")
        assert list(store.list("data")) == []

    def test_create_excludes(self, store: ObjectStore) -> None:
        store.create("snapshots/1", b"first")
        with pytest.raises(ConflictError):
            store.create("snapshots/1", b"second")
        assert store.read("snapshots/1") == b"first"

    def test_one_of_many_creates_wins(self, store: ObjectStore) -> None:
        won: list[bytes] = []
        barrier = threading.Barrier(8)

        def race(own: bytes) -> None:
            barrier.wait()
            try:
                store.create("snapshots/race", own)
            except ConflictError:
                return
            won.append(own)

        threads = [
            threading.Thread(target=race, args=(f"writer {index}".encode(),)) for index in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert won == [store.read("snapshots/race")]

    def test_replace(self, store: ObjectStore) -> None:
        store.replace("tags/a", b"first")
        store.replace("tags/a", b"second")
        assert store.read("tags/a") == b"second"

    def test_sync(self, store: ObjectStore) -> None:
        store.write("data/a/b/c", b"x")
        store.write("data/a/d", b"x")
        store.sync(["data/a/b/c", "data/a/d"])
        store.sync([])

    def test_list_is_recursive_and_in_order(self, store: ObjectStore) -> None:
        paths = ["data/t/g-1/p", "data/t/g/p", "data/t/g.1/p", "data/t/g/p.zarr/c.0", "data/u/p"]
        for path in paths:
            store.write(path, path.encode())
        store.write("other/p", b"x")
        found = list(store.list("data"))
        assert [info.path for info in found] == sorted(paths)
        assert [info.bytes for info in found] == [len(path) for path in sorted(paths)]
        assert all(info.modified > 1.6e9 for info in found)
        assert [info.path for info in store.list("data/t/g")] == [
            "data/t/g/p",
            "data/t/g/p.zarr/c.0",
        ]
        assert [info.path for info in store.list("")] == sorted([*paths, "other/p"])
        assert list(store.list("nothing")) == []

    def test_delete(self, store: ObjectStore) -> None:
        for path in ("data/a", "data/b", "data/x.0.zarr/c.0.0"):
            store.write(path, b"x")
        store.delete(["data/a", "data/missing", "data/x.0.zarr/c.0.0"])
        assert [info.path for info in store.list("")] == ["data/b"]
        store.delete([])

    @pytest.mark.parametrize(
        "path", ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".hidden", "a/.b", "a\x00", "a b"]
    )
    def test_paths_stay_inside(self, store: ObjectStore, path: str) -> None:
        for call in (
            lambda: store.read(path),
            lambda: store.write(path, b"x"),
            lambda: store.create(path, b"x"),
            lambda: store.replace(path, b"x"),
            lambda: store.delete([path]),
            lambda: store.exists(path),
            lambda: store.open_read(path),
            lambda: store.local_path(path),
        ):
            with pytest.raises(CorruptionError):
                call()
        assert list(store.list("")) == []

    def test_url_and_pickle_reopen_it(self, store: ObjectStore) -> None:
        store.write("a", b"x")
        copies: list[Any] = [
            open_object_store(store.url),
            pickle.loads(pickle.dumps(store)),  # noqa: S301 - what was pickled a moment ago
        ]
        for copy in copies:
            assert copy.url == store.url
            assert copy.read("a") == b"x"

    def test_local_path(self, store: ObjectStore) -> None:
        store.write("a", b"x")
        path = store.local_path("a")
        assert path is None or path.read_bytes() == b"x"

    def test_many_names(self, store: ObjectStore) -> None:
        names = [f"data/{uuid.uuid4().hex}" for _ in range(50)]
        for name in names:
            store.write(name, name.encode())
        assert [info.path for info in store.list("data")] == sorted(names)
        store.delete(names)
        assert list(store.list("")) == []
