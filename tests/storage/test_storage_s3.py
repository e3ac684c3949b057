"""The store on S3, against a server on loopback."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import FeatureStoreError
from featurestore.storage import column_group
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import iter_columns, read_columns, write_partition
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.fileset import read_fileset, write_fileset
from featurestore.storage.maintenance import gc, verify_store
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.tensor_group import read_tensor
from featurestore.testing.loopback_s3 import LoopbackS3, loopback_s3
from featurestore.testing.object_store_contract import ObjectStoreContract


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackS3]:
    with loopback_s3(page=7) as running:
        yield running


@pytest.fixture
def store(server: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_object_store(f"s3://bucket/{uuid.uuid4().hex}/store")


class TestS3Contract(ObjectStoreContract):
    @pytest.fixture
    def store(self, store: ObjectStore) -> ObjectStore:
        return store


def test_a_large_file_is_uploaded_in_parts(store: ObjectStore) -> None:
    data = np.random.default_rng(0).bytes(70 * 2**20)
    with store.open_write("data/large") as stream:
        for start in range(0, len(data), 2**22):
            stream.write(data[start : start + 2**22])
    assert store.size("data/large") == len(data)
    assert store.read("data/large", 50 * 2**20, 1000) == data[50 * 2**20 :][:1000]
    assert store.read("data/large") == data


def test_a_store_end_to_end(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_group, "CHECKED_WHOLE", 0)
    log = CommitLog.create(store)
    table = pa.table({"a": np.arange(100_000), "s": np.arange(100_000).astype(str)})
    tensor = np.arange(600_000, dtype=np.float32).reshape(100_000, 6)
    entry = write_partition(
        store,
        table="t",
        group="base",
        partition="p1",
        columns=table,
        tensors={"e": tensor},
        provenance=Provenance("d", "i"),
    )
    ref = write_fileset(store, [entry])
    log.commit("a", lambda head: {"x": {"fileset": ref.to_json()}})
    log.tag("first")
    again = CommitLog.open(store)
    assert again.resolve("first") == again.head() == log.head()
    (found,) = read_fileset(store, ref)
    assert read_columns(store, found, ["s", "a"]).equals(table.select(["s", "a"]))
    assert pa.concat_tables(iter_columns(store, found, ["a"])).equals(table.select(["a"]))
    assert np.array_equal(read_tensor(store, found, "e", 5, 99_000), tensor[5:99_000])
    assert verify_store(log).ok
    assert gc(log).removed == ()


def test_writers_race(store: ObjectStore) -> None:
    CommitLog.create(store)
    acknowledged: list[str] = []

    def work(writer: int) -> None:
        log = CommitLog.open(store)
        for number in range(5):
            name = f"{writer}/{number}"
            acknowledged.append(log.commit(name, lambda head, name=name: {name: {"v": 1}}).id)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = CommitLog.open(store).history()[1:]
    assert sorted(acknowledged) == sorted(one.id for one in history)
    assert len(acknowledged) == 30


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback_s3() as gone:
        environment = gone.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = open_object_store("s3://bucket/none")
    store._client = _impatient(environment)  # type: ignore[attr-defined]
    for call in (
        lambda: store.read("x"),
        lambda: store.write("x", b""),
        lambda: store.exists("x"),
        lambda: store.create("x", b""),
        lambda: list(store.list("")),
    ):
        with pytest.raises(FeatureStoreError) as caught:
            call()
        assert caught.value.remedy


def _impatient(environment: dict[str, str]) -> object:
    from obstore.store import S3Store

    return S3Store(
        "bucket",
        endpoint=environment["AWS_ENDPOINT"],
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
