"""An object store in memory whose requests fail as real ones do; it stands in for obstore's client.

A bucket counts its requests by kind, and lets one of them fail: refused before anything happened, done
with the answer lost, timed out, answered with *exists*, or followed by the death of the process. A
listing can be stale: without what was written lately, and with what was deleted lately. Every change
is kept, so that the bucket can be had as it was after each of them, which is what a crash leaves.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from obstore.exceptions import AlreadyExistsError, GenericError

from featurestore.storage.backends import open_object_store, register_backend
from featurestore.storage.remote import RemoteStore
from featurestore.testing.simulated_disk import PowerFailure

RequestKind = Literal["create", "put", "delete", "list", "read"]
Fault = Literal[
    "refused", "timeout", "lost", "exists", "landed, exists", "stale", "outage", "crash"
]

FAULTS: Final[dict[RequestKind, tuple[Fault, ...]]] = {
    "create": ("refused", "timeout", "lost", "exists", "landed, exists", "outage", "crash"),
    "put": ("refused", "timeout", "lost", "outage"),
    "delete": ("refused", "timeout", "lost", "outage"),
    "list": ("refused", "timeout", "stale", "outage"),
    "read": ("refused", "timeout", "outage"),
}
"""What can go wrong with each kind of request."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was made: its kind and the object, prefix or first object it was about."""

    kind: RequestKind
    path: str


@dataclass(frozen=True, slots=True)
class FaultAt:
    """The ``number``-th request of a kind (from 0) fails.

    ``refused``, ``timeout``: nothing happened; ``lost``: it happened, and the answer was lost;
    ``exists``: a conditional put was answered so, wrongly; ``landed, exists``: rightly, as it met its
    own first attempt; ``stale``: a listing of the time when the fault was armed; ``outage``: it
    happened, the answer was lost, and all requests after it fail; ``crash``: it happened, and the
    process died.
    """

    kind: RequestKind
    number: int
    fault: Fault

    def __post_init__(self) -> None:
        if self.fault not in FAULTS[self.kind]:
            raise ValueError(f"a {self.kind} request cannot be {self.fault!r}: {FAULTS[self.kind]}")


Objects = dict[str, tuple[bytes, float]]


class Bucket:
    """Objects by path, with the time of their last change.

    Parameters
    ----------
    objects : dict, optional
        What is in it at first.
    """

    def __init__(self, objects: Objects | None = None) -> None:
        self.objects: Objects = dict(objects or {})
        self.requests: list[Request] = []
        self.failed_at: int | None = None
        self._counts: Counter[str] = Counter()
        self._first = dict(self.objects)
        self._changes: list[tuple[str, tuple[bytes, float] | None]] = []
        self._fault: FaultAt | None = None
        self._down = False
        self._dead = False
        self._lock = threading.RLock()

    def arm(self, fault: FaultAt) -> None:
        """Let one request from now on fail; a stale listing shows what is there now."""
        self._fault = fault

    def disarm(self) -> None:
        """Let all requests succeed."""
        self._fault, self._down = None, False

    def count(self, kind: RequestKind) -> int:
        """Return how many requests of a kind were made."""
        return self._counts[kind]

    def age(self, seconds: float) -> None:
        """Make all objects older."""
        self.objects = {path: (data, then - seconds) for path, (data, then) in self.objects.items()}
        self._first = dict(self.objects)
        self._changes.clear()

    def moments(self) -> Iterator[Objects]:
        """Yield the objects after each change, first those there were at the beginning."""
        objects = dict(self._first)
        yield dict(objects)
        for path, new in self._changes:
            if new is None:
                objects.pop(path, None)
            else:
                objects[path] = new
            yield dict(objects)

    # --- what obstore's client has ---------------------------------------------------------------

    def put(self, path: str, file: Any, *, mode: str = "overwrite") -> dict[str, Any]:
        data = bytes(file) if isinstance(file, bytes | bytearray | memoryview) else file.read()
        kind: RequestKind = "create" if mode == "create" else "put"
        with self._request(kind, path) as fault:
            taken = kind == "create" and path in self.objects
            if taken:
                raise AlreadyExistsError(f"Object at location {path} already exists")
            if fault != "exists":
                self._change(path, (data, time.time()))
            if fault in ("exists", "landed, exists"):
                raise AlreadyExistsError(f"Object at location {path} already exists")
        return {"e_tag": None, "version": None}

    def get(self, path: str) -> _Body:
        with self._request("read", path):
            return _Body(self._find(path)[0])

    def get_range(self, path: str, *, start: int, length: int) -> _Body:
        with self._request("read", path):
            data = self._find(path)[0]
            if start >= len(data):
                raise GenericError(
                    f"Wanted range starting at {start}, object has {len(data)} bytes"
                )
            return _Body(data[start : start + length])

    def head(self, path: str) -> dict[str, Any]:
        with self._request("read", path):
            return _meta(path, self._find(path))

    def list(self, prefix: str | None = None) -> list[list[dict[str, Any]]]:
        with self._request("list", prefix or "") as fault:
            shown = self._first if fault == "stale" else self.objects
            below = f"{prefix}/" if prefix else ""
            return [[_meta(path, shown[path]) for path in sorted(shown) if path.startswith(below)]]

    def delete(self, paths: str | Sequence[str]) -> None:
        names = [paths] if isinstance(paths, str) else paths
        with self._request("delete", names[0]):
            for name in names:
                if name in self.objects:
                    self._change(name, None)

    # --- pieces --------------------------------------------------------------------------------

    def _request(self, kind: RequestKind, path: str) -> _Attempt:
        return _Attempt(self, kind, path)

    def _begin(self, kind: RequestKind, path: str) -> Fault | None:
        """Count a request; raise if it does not get through, return what else goes wrong with it."""
        if self._dead:
            raise PowerFailure
        number = self._counts[kind]
        self._counts[kind] += 1
        self.requests.append(Request(kind, path))
        if self._down:
            raise GenericError("503 Service Unavailable: an outage")
        if self._fault is None or (kind, number) != (self._fault.kind, self._fault.number):
            return None
        self.failed_at = len(self.requests) - 1
        if self._fault.fault == "refused":
            raise GenericError("500 Internal Server Error")
        if self._fault.fault == "timeout":
            raise TimeoutError("operation timed out")
        return self._fault.fault

    def _end(self, fault: Fault | None) -> None:
        """Lose the answer of a request that got through, if that is its fault."""
        if fault == "crash":
            self._dead = True
            raise PowerFailure
        self._down = fault == "outage"
        if fault in ("lost", "outage"):
            raise GenericError("error sending request: connection closed before message completed")

    def _change(self, path: str, new: tuple[bytes, float] | None) -> None:
        self._changes.append((path, new))
        if new is None:
            del self.objects[path]
        else:
            self.objects[path] = new

    def _find(self, path: str) -> tuple[bytes, float]:
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(f"Object at location {path} not found") from None


class _Attempt:
    """One request under way; the bucket serves one at a time."""

    def __init__(self, bucket: Bucket, kind: RequestKind, path: str) -> None:
        self._bucket, self._kind, self._path = bucket, kind, path
        self._fault: Fault | None = None

    def __enter__(self) -> Fault | None:
        self._bucket._lock.acquire()
        try:
            self._fault = self._bucket._begin(self._kind, self._path)
        except BaseException:  # a simulated kill too: the others' requests go on
            self._bucket._lock.release()
            raise
        return self._fault

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._bucket._end(self._fault)
        finally:
            self._bucket._lock.release()


@dataclass(frozen=True, slots=True)
class _Body:
    """The answer to a get, in the two forms that obstore gives it."""

    data: bytes

    def to_bytes(self) -> bytes:
        return self.data

    def bytes(self) -> _Body:
        return self


def _meta(path: str, found: tuple[bytes, float]) -> dict[str, Any]:
    data, modified = found
    return {
        "path": path,
        "size": len(data),
        "last_modified": dt.datetime.fromtimestamp(modified, dt.UTC),
        "e_tag": None,
        "version": None,
    }


class SimulatedRemote(RemoteStore):
    """A remote store whose URL opens it on the same bucket again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_object_store, (self.url,))


def attach_bucket(name: str, bucket: Bucket) -> str:
    """Let ``objects://name`` be the store in this bucket; return the URL."""
    _attached[name] = bucket
    register_backend("objects", _open)
    return f"objects://{name}"


_attached: Final[dict[str, Bucket]] = {}


def _open(url: str) -> SimulatedRemote:
    return SimulatedRemote(_attached[url.removeprefix("objects://")], url, shared=False)
