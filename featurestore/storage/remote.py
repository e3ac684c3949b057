"""Object stores and memory as an object store of this package, through obstore.

``create`` is a conditional put. An answer of *exists*, or none at all, is never believed: the object
is read back and compared, because a retried request may have met its own first attempt. Everything
else written has a unique name, so a plain put is enough.

The trade-off: a stream is spooled to a temporary file before it is uploaded, so that an exception
leaves nothing behind; half-finished multipart uploads of killed processes are left to the bucket's
lifecycle rules.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    FeatureStoreError,
    NotFoundError,
    UnsupportedError,
)
from featurestore.storage.object_store import ObjectInfo
from featurestore.storage.records import check_path

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_SPOOL: Final = 4 * 2**20
"""Of a file that is uploaded: more waits on disk, where temporary files go."""
_ATTEMPTS: Final = 3
_DELETE_AT_ONCE: Final = 1000

_memory: Final[dict[str, Any]] = {}
_memory_lock: Final = threading.Lock()


class RemoteStore:
    """Objects below a prefix.

    Parameters
    ----------
    client : obstore store
        With the prefix applied.
    url : str
        Reopens it.
    shared : bool
        Whether other processes see it.
    """

    def __init__(self, client: Any, url: str, shared: bool) -> None:
        from obstore.exceptions import BaseError

        self._errors: type[Exception] = BaseError
        self._failures: tuple[type[Exception], ...] = (BaseError, OSError)
        self._client = client
        self._url = url
        self._shared = shared

    @classmethod
    def memory(cls, name: str) -> RemoteStore:
        """Open the memory store of that name; this process has one per name."""
        from obstore.store import MemoryStore

        with _memory_lock:
            client = _memory.setdefault(name, MemoryStore())
        return cls(client, f"memory://{name}", shared=False)

    @classmethod
    def s3(cls, url: str) -> RemoteStore:
        """Open ``s3://bucket/prefix``; credentials, region and endpoint come from ``AWS_*``."""
        from obstore.store import S3Store

        return cls(S3Store.from_url(url), url, shared=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self._url, self._shared, os.getpid()))

    def __repr__(self) -> str:
        return f"RemoteStore({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    @property
    def shared(self) -> bool:
        return self._shared

    # --- reading -------------------------------------------------------------------------------

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        check_path(path)
        if length == 0:
            return b""
        with self._translated(path, "read"):
            if length is None:
                whole = self._client.get(path).bytes().to_bytes()
                return cast(bytes, whole[start:] if start else whole)
            try:
                data = self._client.get_range(path, start=start, length=length).to_bytes()
            except self._errors:
                size = self.size(path)  # also says whether the object is there at all
                if size >= start + length:
                    raise
                data = b""
        if len(data) != length:
            raise CorruptionError(
                f"{path} ends before byte {start + length}: got {len(data)} of {length} bytes",
                "run verify",
            )
        return cast(bytes, data)

    def open_read(self, path: str) -> BinaryIO:
        return cast(BinaryIO, _RangeReader(self, path, self.size(path)))

    def size(self, path: str) -> int:
        with self._translated(path, "look at"):
            return int(self._client.head(check_path(path))["size"])

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except NotFoundError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix:
            prefix = check_path(prefix.rstrip("/"))
        with self._translated(prefix, "list"):
            found = [
                ObjectInfo(one["path"], int(one["size"]), one["last_modified"].timestamp())
                for chunk in self._client.list(prefix or None)
                for one in chunk
            ]
        # The order is that of most services already; sorting makes it so for all.
        yield from sorted(found, key=lambda one: one.path)

    def zarr_store(self) -> Any:
        from zarr.storage import ObjectStore as ZarrStore

        return ZarrStore(self._client, read_only=True)

    def local_path(self, path: str) -> Path | None:
        check_path(path)
        return None

    # --- writing -------------------------------------------------------------------------------

    @contextmanager
    def open_write(self, path: str, *, named: bool = True) -> Iterator[BinaryIO]:
        check_path(path)
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL) as spool:
            yield cast(BinaryIO, spool)
            spool.seek(0)
            with self._translated(path, "write"):
                # The inner file is what obstore accepts: it checks for known file classes.
                self._client.put(path, cast(Any, spool)._file)

    def write(self, path: str, data: bytes) -> None:
        with self._translated(path, "write"):
            self._client.put(check_path(path), data)

    def create(self, path: str, data: bytes) -> None:
        check_path(path)
        failure: Exception | None = None
        for _ in range(_ATTEMPTS):
            try:
                self._client.put(path, data, mode="create")
                return
            except NotImplementedError as error:
                raise UnsupportedError(
                    f"{self._url} has no conditional put", "use a store that has one"
                ) from error
            except self._failures as error:
                failure = error
            # Whatever the answer was, what lies there now says who won. Trying the same bytes
            # again is harmless: whichever attempt lands, it is ours.
            try:
                existing = self.read(path)
            except NotFoundError:
                continue
            if existing == data:
                return
            raise ConflictError(f"{path} exists") from failure
        raise FeatureStoreError(
            f"whether {path} was created is unknown after {_ATTEMPTS} attempts: {failure}",
            "look whether it is there before trying again; delete nothing",
        ) from failure

    def replace(self, path: str, data: bytes) -> None:
        self.write(path, data)

    def sync(self, paths: Iterable[str]) -> None:
        """Do nothing: an object is durable when its put was answered."""

    def delete(self, paths: Iterable[str], durable: bool = False) -> None:
        todo = [check_path(path) for path in paths]
        for start in range(0, len(todo), _DELETE_AT_ONCE):
            batch = todo[start : start + _DELETE_AT_ONCE]
            try:
                with self._translated(batch[0], "delete"):
                    self._client.delete(batch)
            except NotFoundError:
                # Some services refuse a batch for one missing object; take them one by one.
                for path in batch:
                    self._delete_one(path)

    def _delete_one(self, path: str) -> None:
        try:
            with self._translated(path, "delete"):
                self._client.delete(path)
        except NotFoundError:
            return

    @contextmanager
    def _translated(self, path: str, action: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFoundError(
                f"there is no object {path} in {self._url}", "run verify if the store names it"
            ) from error
        except self._failures as error:
            first_line = str(error).split("\n", 1)[0]
            raise FeatureStoreError(
                f"cannot {action} {path} in {self._url}: {first_line}",
                "check credentials, region, endpoint and network, then try again",
            ) from error


def _reopen(url: str, shared: bool, process: int) -> RemoteStore:
    """Open a pickled store again."""
    if shared:
        return RemoteStore.s3(url)
    if process != os.getpid():
        raise UnsupportedError(
            f"{url} lives in the memory of process {process}, this is process {os.getpid()}",
            "use a directory or an object store with several processes",
        )
    return RemoteStore.memory(url.removeprefix("memory://"))


class _RangeReader(io.RawIOBase):
    """A seekable reader of one object; every read is one ranged request."""

    def __init__(self, store: RemoteStore, path: str, size: int) -> None:
        self._store = store
        self._path = path
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        data = self._store.read(self._path, self._position, length)
        self._position += length
        return data

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
