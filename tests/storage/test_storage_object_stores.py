"""Object stores: the contract, and what is special about each."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import MemoryStore

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from featurestore.storage.backends import open_object_store
from featurestore.storage.local import LocalStore
from featurestore.storage.local_io import LocalIO
from featurestore.storage.remote import RemoteStore
from featurestore.testing.object_store_contract import ObjectStoreContract


class TestLocalStoreContract(ObjectStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "deep" / "store with späces")


class TestMemoryStoreContract(ObjectStoreContract):
    @pytest.fixture
    def store(self) -> Any:
        return open_object_store(f"memory://{uuid.uuid4().hex}")


class TestUrls:
    def test_a_path_and_its_url_are_one_place(self, tmp_path: Path) -> None:
        open_object_store(tmp_path / "a b").write("x", b"1")
        assert open_object_store(str(tmp_path / "a b")).read("x") == b"1"
        assert open_object_store((tmp_path / "a b").as_uri()).read("x") == b"1"
        assert open_object_store(tmp_path).shared

    def test_memory_is_one_per_name(self) -> None:
        name = uuid.uuid4().hex
        open_object_store(f"memory://{name}").write("x", b"1")
        assert open_object_store(f"memory://{name}").read("x") == b"1"
        assert not open_object_store(f"memory://{name}2").exists("x")
        assert not open_object_store(f"memory://{name}").shared

    @pytest.mark.parametrize("url", ["", "ftp://x/y", "memory://", "s3://", "file://host/x"])
    def test_others_are_refused(self, url: str) -> None:
        with pytest.raises(InvalidInputError):
            open_object_store(url)

    def test_s3_opens_without_a_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        store = open_object_store("s3://bucket/some/prefix")
        assert store.url == "s3://bucket/some/prefix"
        assert store.shared
        assert store.local_path("x") is None
        assert pickle.loads(pickle.dumps(store)).url == store.url

    def test_memory_does_not_travel(self) -> None:
        data = pickle.dumps(open_object_store("memory://traveller"))
        script = (
            "import pickle, sys\n"
            "from featurestore.errors import UnsupportedError\n"
            "try: pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "except UnsupportedError as error: print('refused')\n"
        )
        root = Path(__file__).parents[2]
        out = subprocess.run(
            [sys.executable, "-c", script, data.hex()],
            capture_output=True,
            check=True,
            cwd=root,
            text=True,
        )
        assert out.stdout == "refused\n"


class _FailingCalls(LocalIO):
    """Fails one call by name, from its n-th time on, or once."""

    def __init__(self, name: str, code: int, times: int = 1) -> None:
        self.name, self.code, self.times = name, code, times

    def _maybe(self, name: str) -> None:
        if name == self.name and self.times > 0:
            self.times -= 1
            raise OSError(self.code, os.strerror(self.code))

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_CREAT:
            self._maybe("open")
        return super().open(path, flags)

    def write(self, descriptor: int, data: memoryview) -> int:
        self._maybe("write")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._maybe("fsync")
        super().fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        self._maybe("link")
        super().link(source, target)

    def mkdir(self, path: str) -> None:
        self._maybe("mkdir")
        super().mkdir(path)

    def fsync_dir(self, path: str) -> None:
        self._maybe("fsync_dir")
        super().fsync_dir(path)


def _writers(store: LocalStore) -> dict[str, Any]:
    return {
        "write": lambda: store.write("data/x", b"data"),
        "create": lambda: store.create("data/x", b"data"),
        "replace": lambda: store.replace("data/x", b"data"),
    }


class TestLocalFaults:
    @pytest.mark.parametrize("how", ["write", "create", "replace"])
    @pytest.mark.parametrize("call", ["open", "write", "mkdir"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_leaves_nothing(
        self, tmp_path: Path, how: str, call: str, code: int
    ) -> None:
        store = LocalStore(tmp_path, _FailingCalls(call, code))
        with pytest.raises(DiskFullError) as caught:
            _writers(store)[how]()
        assert "data/x" in str(caught.value)
        assert "free space" in caught.value.remedy
        assert list(store.list("")) == []
        assert list(store.list("tmp")) == []
        _writers(store)[how]()
        assert store.read("data/x") == b"data"

    @pytest.mark.parametrize(
        ("call", "code", "words"),
        [
            ("open", errno.EMFILE, "ulimit"),
            ("open", errno.EACCES, "permissions"),
            ("mkdir", errno.EROFS, "read-only"),
        ],
    )
    def test_other_failures_say_what_to_do(
        self, tmp_path: Path, call: str, code: int, words: str
    ) -> None:
        store = LocalStore(tmp_path, _FailingCalls(call, code))
        with pytest.raises(FeatureStoreError) as caught:
            store.write("data/x", b"data")
        assert words in caught.value.remedy

    def test_no_hard_links_is_said_so(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path, _FailingCalls("link", errno.EPERM))
        with pytest.raises(UnsupportedError, match="hard links"):
            store.create("x", b"data")
        assert not store.exists("x")

    def test_a_failed_sync_condemns_the_file(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path, _FailingCalls("fsync", errno.EIO))
        store.write("data/x", b"data")
        with pytest.raises(CorruptionError):
            store.sync(["data/x"])
        with pytest.raises(CorruptionError, match="earlier sync"):
            store.sync(["data/x"])
        store.write("data/y", b"data")
        store.sync(["data/y"])

    def test_a_failed_sync_creates_nothing(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path, _FailingCalls("fsync", errno.EIO))
        with pytest.raises(CorruptionError):
            store.create("x", b"data")
        assert not store.exists("x")
        store.create("x", b"data")

    def test_an_unknown_outcome_is_said_so(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path, _FailingCalls("fsync_dir", errno.EIO))
        with pytest.raises(FeatureStoreError, match="unknown"):
            store.create("x", b"data")
        assert store.read("x") == b"data"

    def test_sync_of_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError):
            LocalStore(tmp_path).sync(["data/none"])

    def test_directories_are_synced_up_to_the_first_known(self, tmp_path: Path) -> None:
        synced: list[str] = []

        class Recorder(LocalIO):
            def fsync_dir(self, path: str) -> None:
                synced.append(os.path.relpath(path, tmp_path))
                super().fsync_dir(path)

        store = LocalStore(tmp_path / "store", Recorder())
        store.write("data/t/g/x", b"1")
        store.write("data/t/g/y", b"1")
        synced.clear()
        store.sync(["data/t/g/x", "data/t/g/y"])
        assert sorted(synced) == [".", "store", "store/data", "store/data/t", "store/data/t/g"]
        synced.clear()
        store.write("data/t/g/z", b"1")
        store.sync(["data/t/g/z"])
        assert synced == ["store/data/t/g"]
        synced.clear()
        store.write("data/t/h/z", b"1")
        store.sync(["data/t/h/z"])
        assert sorted(synced) == ["store/data/t", "store/data/t/h"]

    def test_directories_made_by_others_are_synced_too(self, tmp_path: Path) -> None:
        LocalStore(tmp_path).write("data/t/x", b"1")
        synced: list[str] = []

        class Recorder(LocalIO):
            def fsync_dir(self, path: str) -> None:
                synced.append(os.path.relpath(path, tmp_path))

        LocalStore(tmp_path, Recorder()).sync(["data/t/x"])
        assert {"data/t", "data", "."} <= set(synced)

    def test_links_out_of_the_store_are_refused(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        root = tmp_path / "store"
        store = LocalStore(root)
        store.write("data/x", b"1")
        (root / "data" / "link").symlink_to(outside / "secret")
        (root / "folder").symlink_to(outside)
        for path in ("data/link", "folder/secret"):
            with pytest.raises(CorruptionError):
                store.read(path)
        assert [info.path for info in store.list("")] == ["data/x"]

    def test_write_does_not_overwrite(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.write("x", b"1")
        with pytest.raises(ConflictError):
            store.write("x", b"2")
        assert store.read("x") == b"1"

    def test_delete_removes_emptied_arrays_only(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path)
        store.write("data/t/g/p.0.zarr/zarr.json", b"1")
        store.write("data/t/g/p.0.zarr/c.0", b"1")
        store.delete(["data/t/g/p.0.zarr/zarr.json"])
        assert (tmp_path / "data/t/g/p.0.zarr").is_dir()
        store.delete(["data/t/g/p.0.zarr/c.0"])
        assert not (tmp_path / "data/t/g/p.0.zarr").exists()
        assert (tmp_path / "data/t/g").is_dir()


class _Client:
    """A memory client whose ``put`` answers wrongly, as services do."""

    def __init__(self, *answers: str) -> None:
        self._inner = MemoryStore()
        self.answers = list(answers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def put(self, path: str, data: Any, **options: Any) -> Any:
        answer = self.answers.pop(0) if self.answers else "ok"
        if answer == "lost request":
            raise GenericError("connection reset")
        if answer == "other wins":
            self._inner.put(path, b"other")
            raise GenericError("500 Internal Server Error")
        if answer == "conflict without object":
            raise AlreadyExistsError("409 ConditionalRequestConflict")
        if answer == "timeout":
            raise TimeoutError("timed out")
        result = self._inner.put(path, data, **options)
        if answer == "lost response":
            raise GenericError("connection closed before the answer")
        if answer == "repeated":
            raise AlreadyExistsError("412 after an automatic repetition")
        return result


class TestRemoteAnswers:
    @pytest.mark.parametrize(
        "answers",
        [
            ["lost response"],
            ["repeated"],
            ["lost request"],
            ["timeout", "lost response"],
            ["conflict without object"],
            ["lost request", "lost request"],
        ],
    )
    def test_create_finds_out_that_it_won(self, answers: list[str]) -> None:
        store = RemoteStore(_Client(*answers), "memory://answers", shared=False)
        store.create("x", b"own")
        assert store.read("x") == b"own"

    @pytest.mark.parametrize("answers", [["other wins"], ["lost request", "other wins"]])
    def test_create_finds_out_that_it_lost(self, answers: list[str]) -> None:
        store = RemoteStore(_Client(*answers), "memory://answers", shared=False)
        with pytest.raises(ConflictError):
            store.create("x", b"own")
        assert store.read("x") == b"other"

    def test_an_unknown_outcome_is_said_so(self) -> None:
        store = RemoteStore(_Client(*["lost request"] * 5), "memory://answers", shared=False)
        with pytest.raises(FeatureStoreError, match="unknown") as caught:
            store.create("x", b"own")
        assert "delete nothing" in caught.value.remedy

    def test_a_failed_write_is_an_error_of_the_tree(self) -> None:
        store = RemoteStore(_Client("lost request", "timeout"), "memory://answers", shared=False)
        with pytest.raises(FeatureStoreError, match="connection reset"):
            store.write("x", b"1")
        with pytest.raises(FeatureStoreError, match="timed out"), store.open_write("x") as stream:
            stream.write(b"1")
        assert not store.exists("x")
