"""The doctor calls sound places sound, and finds each way in which a place can lie."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import FeatureStoreError, InvalidInputError
from featurestore.storage import doctor
from featurestore.storage.backends import open_object_store, register_backend
from featurestore.storage.doctor import Outcome, examine
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.testing.loopback_s3 import loopback_s3


class Liar:
    """A sound store, some of whose methods are replaced."""

    def __init__(self, inner: ObjectStore, url: str, lies: dict[str, Callable[..., Any]]) -> None:
        self.inner = inner
        self.url = url
        self.lies = lies

    def __getattr__(self, name: str) -> Any:
        lie = self.lies.get(name)
        if lie is None:
            return getattr(self.inner, name)
        return lambda *arguments, **more: lie(self.inner, *arguments, **more)


def overwriting(inner: ObjectStore, path: str, data: bytes) -> None:
    inner.replace(path, data)


def check_then_write(inner: ObjectStore, path: str, data: bytes) -> None:
    """Exclude one after the other, not at once."""
    import time

    if inner.exists(path):
        inner.create(path, data)
    time.sleep(0.01)
    inner.replace(path, data)


def replacing_when_refused(inner: ObjectStore, path: str, data: bytes) -> None:
    try:
        inner.create(path, data)
    except FeatureStoreError:
        inner.replace(path, data)
        raise


def stale_list(inner: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    return iter(())


def list_of_the_dead(inner: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    found = list(inner.list(prefix))
    if found or not prefix.endswith("/list"):
        return iter(found)
    return iter([ObjectInfo(f"{prefix}/one", 5, 0.0)])


def late_clock(seconds: float) -> Callable[..., Iterator[ObjectInfo]]:
    def listed(inner: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
        for one in inner.list(prefix):
            yield ObjectInfo(one.path, one.bytes, one.modified - seconds)

    return listed


def old_bytes(inner: ObjectStore, path: str, data: bytes) -> None:
    if not inner.exists(path):
        inner.write(path, data)


def wrong_range(inner: ObjectStore, path: str, start: int = 0, length: int | None = None) -> bytes:
    return inner.read(path) if length is None else inner.read(path)[:length]


def refused(inner: ObjectStore, *arguments: Any) -> Any:
    raise FeatureStoreError("the place is read-only", "make it writable")


def torn(inner: ObjectStore, path: str, data: bytes) -> None:
    inner.write(path, data[:-1])


LIES: list[tuple[dict[str, Callable[..., Any]], str, Outcome]] = [
    ({"create": overwriting}, "exclusive create", Outcome.FAILED),
    ({"create": replacing_when_refused}, "exclusive create", Outcome.FAILED),
    ({"create": check_then_write}, "racing creates", Outcome.FAILED),
    ({"list": stale_list}, "listing", Outcome.FAILED),
    ({"list": list_of_the_dead}, "listing", Outcome.FAILED),
    ({"list": late_clock(300)}, "clock", Outcome.WARNING),
    ({"list": late_clock(-90_000)}, "clock", Outcome.FAILED),
    ({"replace": old_bytes}, "overwrite", Outcome.FAILED),
    ({"read": wrong_range}, "ranges", Outcome.FAILED),
    ({"delete": lambda inner, paths: None}, "delete", Outcome.FAILED),
    ({"write": refused}, "write and read", Outcome.FAILED),
    ({"write": torn}, "write and read", Outcome.FAILED),
]


def _named(value: object) -> str:
    """Return the same text in every process, as parallel test runs need it."""
    return "+".join(value) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize(("lies", "name", "outcome"), LIES, ids=_named)
def test_each_lie_is_found(
    lies: dict[str, Callable[..., Any]], name: str, outcome: Outcome
) -> None:
    inner = open_object_store(f"memory://{uuid.uuid4().hex}")
    url = f"liar://{uuid.uuid4().hex}"
    register_backend("liar", lambda _: Liar(inner, url, lies))
    report = examine(url)
    assert report[name].outcome is outcome, str(report)
    assert report[name].meaning
    assert report.ok == (outcome is Outcome.WARNING)
    assert ("LOST" in str(report)) == ("create" in lies)
    json.dumps(report.to_json())
    if "delete" not in lies:
        assert list(inner.list("")) == []


def test_a_memory_store_is_sound() -> None:
    report = examine(f"memory://{uuid.uuid4().hex}")
    assert report.ok, str(report)
    assert {one.outcome for one in report.checks} == {Outcome.OK}


def test_s3_is_sound_and_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    with loopback_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.objects["store/mine"] = b"kept"
        report = examine("s3://bucket/store")
        assert report.ok, str(report)
        assert "AlreadyExists" in report["exclusive create"].seen
        assert server.objects == {"store/mine": b"kept"}


def test_a_directory_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    report = examine(tmp_path)
    assert report.ok, str(report)
    assert "ms" in report["durable writes"].seen
    assert "free" in report["free space"].seen
    assert {one.name for one in tmp_path.iterdir()} == {"mine"}
    report = examine(tmp_path / "new" / "store")
    assert report.ok
    assert not (tmp_path / "new" / "store").exists()
    assert "fit for a store" in str(report)


def test_what_a_directory_warns_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "way").symlink_to(real)
    (real / "data").symlink_to(tmp_path)
    assert examine(real)["symbolic links"].outcome is Outcome.WARNING
    (real / "data").unlink()
    assert str(real) in examine(tmp_path / "way")["symbolic links"].seen
    for kind, outcome in (
        ("tmpfs", Outcome.WARNING), ("nfs4", Outcome.WARNING), ("fuse.sshfs", Outcome.WARNING),
        ("overlay", Outcome.WARNING), ("ext4", Outcome.OK), (None, Outcome.OK),
    ):  # fmt: skip
        monkeypatch.setattr(doctor, "_file_system_type", lambda _, kind=kind: kind)
        assert doctor._file_system(real)[0] is outcome
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 2**80)
    assert doctor._free_space(real)[0] is Outcome.WARNING


def test_a_place_that_is_a_file_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    report = examine(tmp_path / "file")
    assert not report.ok
    with pytest.raises(InvalidInputError, match="names no store"):
        examine("ftp://somewhere")
