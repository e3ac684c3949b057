"""An object store that counts what is asked of another one: requests, bytes in, bytes out.

What a store costs on a network is the number of its requests and their bytes, which does not depend
on the machine a test runs on, as seconds do.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from featurestore.storage.object_store import ObjectInfo, ObjectStore

LOOK_BYTES: Final = 256


@dataclass(slots=True)
class Requests:
    """What was asked of a store.

    Parameters
    ----------
    counts : Counter
        Requests by (method, first part of the path), as ``("read", "snapshots")``; a read of a few
        first bytes is a ``"look"``.
    read, written : Counter
        Bytes by first part of the path.
    paths : list of (str, str)
        Method and path of each request, in order.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    paths: list[tuple[str, str]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.counts.total()

    def reads(self, folder: str) -> list[str]:
        """Return the paths below a folder that were read, wholly or in part, in order."""
        return [path for path, _ in self._reads(folder)]

    def looks(self, folder: str) -> list[str]:
        """Return the paths of those reads that asked for no more than the first bytes of a file."""
        return [path for path, part in self._reads(folder) if part]

    def _reads(self, folder: str) -> list[tuple[str, bool]]:
        return [
            (path, method == "look")
            for method, path in self.paths
            if method in ("read", "look") and path.startswith(folder)
        ]


class CountingStore:
    """Passes every call on to ``inner`` and counts it in ``requests``.

    A stream counts as one request when it was opened for reading, and when it was written; the bytes
    that are read through one are not counted.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self.requests = Requests()
        self._lock = threading.Lock()

    def start(self) -> Requests:
        """Count from nothing again, and return the new counts, which grow from now on."""
        self.requests = Requests()
        return self.requests

    def _note(self, method: str, path: str, read: int = 0, written: int = 0) -> None:
        folder = path.split("/", 1)[0]
        with self._lock:
            self.requests.counts[method, folder] += 1
            self.requests.read[folder] += read
            self.requests.written[folder] += written
            self.requests.paths.append((method, path))

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def shared(self) -> bool:
        return self.inner.shared

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        data = self.inner.read(path, start, length)
        look = not start and length is not None and length <= LOOK_BYTES
        self._note("look" if look else "read", path, read=len(data))
        return data

    def open_read(self, path: str) -> BinaryIO:
        self._note("open_read", path)
        return self.inner.open_read(path)

    @contextmanager
    def open_write(self, path: str, *, named: bool = True) -> Iterator[BinaryIO]:
        with self.inner.open_write(path, named=named) as stream:
            yield stream
        self._note("write", path, written=self.inner.size(path))

    def write(self, path: str, data: bytes) -> None:
        self._note("write", path, written=len(data))
        self.inner.write(path, data)

    def create(self, path: str, data: bytes) -> None:
        self._note("create", path, written=len(data))
        self.inner.create(path, data)

    def replace(self, path: str, data: bytes) -> None:
        self._note("replace", path, written=len(data))
        self.inner.replace(path, data)

    def sync(self, paths: Iterable[str]) -> None:
        self.inner.sync(paths)

    def size(self, path: str) -> int:
        self._note("size", path)
        return self.inner.size(path)

    def exists(self, path: str) -> bool:
        self._note("exists", path)
        return self.inner.exists(path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._note("list", prefix)
        return self.inner.list(prefix)

    def delete(self, paths: Iterable[str], durable: bool = False) -> None:
        for path in paths:
            self._note("delete", path)
            self.inner.delete([path], durable)

    def local_path(self, path: str) -> Path | None:
        return self.inner.local_path(path)

    def zarr_store(self) -> Any:
        return self.inner.zarr_store()
