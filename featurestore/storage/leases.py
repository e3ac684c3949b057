"""Leases: who is reading or writing at a version right now, so that gc leaves it alone.

A lease is a small sealed file ``leases/<id>.json``: version, commit, when it was first taken, by which
process, and whether it writes. gc keeps a version with a live lease and all its files; and while
somebody writes under a lease, every file that is younger than that lease, published or not.

A lease is live while its file is younger than ``LEASE_SECONDS`` and its process is not provably gone
(see ``holder``). Holders call :meth:`Lease.touch` when they work; it writes the file anew, under a new
name, when a tenth of that time has passed, so that a holder is seen for as long as it works, without
a thread of its own. A process has one file per version and kind however many holders it has; who
takes a lease on one that has come of age renews it first. Leases of this process that nobody holds
any more count as gone: a holder may be forgotten wherever a thread allocates memory, whatever locks
it holds there, so that is only noted, and the next use of leases in this process, or its end,
removes the file.

Taking a lease races with gc: the lease is written first, then the taker looks whether
the version is still there and not condemned (see ``condemned``), while gc looks at leases after it
condemned versions. So one of both sees the other. A tag is written under a lease, and gc looks at
leases before it looks at tags. A lease that is written anew while gc lists has another name in every
listing, so gc lists until two listings in a row agree.

The trade-offs: nothing is synced, because a power loss ends every holder too; a place that cannot be
written to is read without a lease, said at level INFO; a holder that does not work for
``LEASE_SECONDS`` may lose its version, and is told so by its next ``touch``; a holder that was
forgotten keeps its version from other processes until this one uses leases again.
"""

from __future__ import annotations

import atexit
import datetime as dt
import logging
import os
import re
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError
from featurestore.storage.condemned import Condemned
from featurestore.storage.holder import Holder
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.storage.records import Snapshot
from featurestore.storage.sealed_json import read_sealed, seal
from featurestore.storage.snapshot_file import is_let_go

LEASES: Final = "leases"
LEASE_SECONDS: Final = 86_400.0
_AGE: Final = LEASE_SECONDS / 10  # at which a file is written anew
_LISTINGS: Final = 30
_FILE: Final = re.compile(rf"{LEASES}/[0-9a-f]{{16}}\.json")
_REMEDY: Final = "delete the file if nobody reads the store"

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """What a lease's file says.

    Parameters
    ----------
    version : int
    commit : str
    since : float
        When it was first taken, in seconds since 1970.
    writes : bool
        Whether its holder writes files that no version names yet.
    holder : Holder
    """

    version: int
    commit: str
    since: float
    writes: bool
    holder: Holder

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        created = dt.datetime.fromtimestamp(self.since, dt.UTC)
        return seal(
            {
                "version": self.version,
                "commit": self.commit,
                "created": created.isoformat(timespec="microseconds"),
                "writes": self.writes,
                **self.holder.to_json(),
            }
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LeaseFile:
        """Read the content of a lease's file.

        Raises
        ------
        CorruptionError
            If members are missing or have other types.
        """
        version, commit, created, writes = (
            content.get(name) for name in ("version", "commit", "created", "writes")
        )
        whole = isinstance(version, int) and not isinstance(version, bool) and version >= 0
        if not (whole and isinstance(commit, str) and isinstance(writes, bool)):
            raise CorruptionError(f"a lease names version {version!r}, {commit!r}", _REMEDY)
        try:
            since = dt.datetime.fromisoformat(str(created)).timestamp()
        except (ValueError, OverflowError, OSError) as error:
            raise CorruptionError(f"a lease was taken at {created!r}", _REMEDY) from error
        assert isinstance(version, int)
        return cls(version, commit, since, writes, Holder.from_json(content))


class Lease:
    """What keeps a version from gc, until it is released, left as a context, or forgotten.

    May be used by several threads. Handed to another process it holds nothing there: it is the
    process that took it that holds.
    """

    __slots__ = ("__weakref__", "_file", "_finalizer")

    def __init__(self, file: _SharedFile | None) -> None:
        self._file = file
        self._finalizer: weakref.finalize[[_SharedFile], Lease] | None = None
        if file is not None:
            # Nothing but the append: it may run while this thread holds any lock there is.
            self._finalizer = weakref.finalize(self, _forgotten.append, file)
            self._finalizer.atexit = False  # see _end

    def __reduce__(self) -> tuple[Any, ...]:
        return (Lease, (None,))

    def touch(self) -> None:
        """Say that the holder is at work; writes only when the file has come of age.

        Raises
        ------
        NotFoundError
            If the lease had run out, and gc let the version go.
        """
        _tidy()
        if self._file is not None:
            self._file.touch()

    def require_held(self) -> None:
        """Refuse to rely on a lease whose file could not be written.

        Raises
        ------
        FeatureStoreError
        """
        if self._file is not None and self._file.failure is not None:
            raise self._file.failure

    def release(self) -> None:
        """End the lease; doing so again is no error."""
        if self._finalizer is not None:
            self._finalizer()
        _sweep()

    def keep(self) -> Self:
        """Hold on, whatever becomes of this object, while this process works.

        It is renewed whenever the process takes or touches any lease. One that does neither for
        ``LEASE_SECONDS``, or ends, holds the version no more.
        """
        if self._file is not None:
            _kept.setdefault(self._file.key, self)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


NO_LEASE: Final = Lease(None)
"""Holds nothing: for version 0, which gc cannot take, and where nothing can be written."""


class Leases:
    """The leases of one store.

    Examples
    --------
    >>> from featurestore.storage.backends import open_object_store
    >>> store = open_object_store("memory://leases-example")
    >>> snapshot = Snapshot(0, "store", "2026-01-01T00:00:00+00:00", "create", {})
    >>> with Leases(store).take(snapshot, writes=True):
    ...     [one.version for one in Leases(store).live()]
    [0]
    >>> Leases(store).live()
    []
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def take(self, snapshot: Snapshot, *, writes: bool = False) -> Lease:
        """Keep a version, and what is written from now on, from gc.

        Parameters
        ----------
        snapshot : Snapshot
        writes : bool
            Whether the holder writes files that no version names yet.

        Raises
        ------
        NotFoundError
            If gc let the version go, or does so at this moment.
        """
        if not snapshot.version and not writes:
            return NO_LEASE
        _tidy()
        key = (self._store.url, snapshot.version, snapshot.commit, writes, os.getpid())
        with _lock:
            shared = _shared.get(key)
            if shared is None:
                shared = _shared[key] = _SharedFile(self._store, snapshot, writes, key)
            shared.holders += 1
        return _held(shared)

    def take_newest(
        self, newest: Callable[[], Snapshot], *, writes: bool = False
    ) -> tuple[Snapshot, Lease]:
        """Keep the newest version; where others publish and collect meanwhile, the one they made.

        Parameters
        ----------
        newest : callable
            Returns the newest snapshot.
        writes : bool
            As for :meth:`take`.

        Raises
        ------
        NotFoundError
            If gc let the version go, and there is no newer one.
        """
        while True:
            snapshot = newest()
            try:
                return snapshot, self.take(snapshot, writes=writes)
            except NotFoundError:
                if newest().version == snapshot.version:
                    raise

    def join(self, snapshot: Snapshot) -> Lease:
        """Hold the lease under which this process writes already, or else take one at a snapshot.

        For what is written from now on; nothing keeps that snapshot itself if another is held.

        Raises
        ------
        NotFoundError
            If gc let the version go.
        """
        _tidy()
        url, process = self._store.url, os.getpid()
        for shared in list(_shared.values()):
            if (shared.key[0], shared.key[3], shared.key[4]) != (url, True, process):
                continue
            with _lock:
                if not shared.holders:  # they left since
                    continue
                shared.holders += 1
            try:
                return _held(shared)
            except NotFoundError:  # that work lost its version, of which its own touch tells it
                continue
        return self.take(snapshot, writes=True)

    def live(self) -> list[LeaseFile]:
        """Return the leases that gc must respect; some that end at this moment may be among them."""
        _sweep()
        seen: dict[str, LeaseFile | None] = {}
        before: set[str] | None = None
        for _ in range(_LISTINGS):
            infos = self._files()
            for info in infos:
                if info.path not in seen:
                    seen[info.path] = self._read(info)
            now = {info.path for info in infos}
            if now == before:
                break
            before = now
        return [one for one in seen.values() if one is not None]

    def dead(self) -> list[ObjectInfo]:
        """Return the files of leases that ended without being released."""
        _sweep()
        over = [info for info in self._files() if self._read(info) is None]
        return [info for info in over if self._store.exists(info.path)]

    def _files(self) -> list[ObjectInfo]:
        return [one for one in self._store.list(LEASES) if _FILE.fullmatch(one.path)]

    def _read(self, info: ObjectInfo) -> LeaseFile | None:
        """Return a lease, or None if it is over."""
        if info.modified < time.time() - LEASE_SECONDS:
            return None
        try:
            found = LeaseFile.from_json(read_sealed(self._store, info.path, _REMEDY))
        except NotFoundError:  # released since the listing
            return None
        except CorruptionError:  # torn by the power loss that ended its holder
            return None
        if found.holder.is_this:
            return found if info.path in _own else None
        return None if found.holder.is_gone else found


_Key = tuple[str, int, str, bool, int]


@dataclass(slots=True)
class _SharedFile:
    """The one file of all holders of a version in this process."""

    store: ObjectStore
    snapshot: Snapshot
    writes: bool
    key: _Key
    holders: int = 0
    since: float = field(default_factory=time.time)
    path: str | None = None
    failure: FeatureStoreError | None = None  # of the last attempt to write it
    _written: float = 0.0
    _checked: bool = False  # whether the version was still there when this was written
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ensure(self) -> None:
        """Have the file there, young, and the version."""
        with self._lock:
            if self._age >= _AGE or self.path is None or not self.store.exists(self.path):
                self._renew()
                self._checked = False
            self._require_version()

    def touch(self) -> None:
        if (self._checked and self._age < _AGE) or self.key[-1] != os.getpid():
            return
        with self._lock:
            if not self.holders:  # released meanwhile
                return
            age = self._age
            if age >= _AGE:  # not done by another thread
                self._renew()
                self._checked &= age < LEASE_SECONDS
            self._require_version()

    def leave(self) -> None:
        """Count one holder less; the last one removes the file."""
        if self.key[-1] != os.getpid():  # a fork's copy: the file is its parent's
            return
        with _lock:
            self.holders -= 1
            if self.holders:
                return
            _shared.pop(self.key, None)
        self.remove()

    def remove(self) -> None:
        """Remove the file; nobody holds it any more."""
        with self._lock:
            path, self.path = self.path, None
            if path is None:
                return
            try:
                self.store.delete([path])
            except FeatureStoreError as error:  # gc sweeps it
                _log.info("lease %s was not removed: %s", path, error.problem)
            _own.discard(path)

    @property
    def _age(self) -> float:
        return time.time() - self._written

    def _renew(self) -> None:
        """Write the file under a new name, then remove the old one: files are written once."""
        old, path = self.path, f"{LEASES}/{secrets.token_hex(8)}.json"
        content = LeaseFile(
            self.snapshot.version, self.snapshot.commit, self.since, self.writes, Holder.this()
        )
        self._written = time.time()
        _own.add(path)
        try:
            self.store.write(path, content.encode())
            self.path, self.failure = path, None
            if old is not None:
                self.store.delete([old])
                _own.discard(old)
        except FeatureStoreError as error:
            self.failure = None if self.path == path else error
            _own.discard(path if self.path != path else old or path)
            _log.info(
                "%s is used without a lease, which cannot be written: %s",
                self.store.url,
                error.problem,
            )

    def _require_version(self) -> None:
        version = self.snapshot.version
        if self._checked or not version:
            return
        if Condemned(self.store).includes(version) or is_let_go(self.store, version):
            raise NotFoundError(
                f"gc let version {version} go", "use a newer version, or tag those you want to keep"
            )
        self._checked = True


_lock = threading.Lock()  # of the numbers of holders, and of the next; held for no other call
_shared: Final[dict[_Key, _SharedFile]] = {}
_kept: Final[dict[_Key, Lease]] = {}
_forgotten: Final[deque[_SharedFile]] = deque()  # one entry for each holder that is gone
# The files that this process holds, whatever URLs it opened their stores by. One that names this
# process and is not among them was left behind.
_own: Final[set[str]] = set()


def _held(shared: _SharedFile) -> Lease:
    """Return a lease that was counted already, when its file is there."""
    lease = Lease(shared)
    try:
        shared.ensure()
    except BaseException:  # Ctrl-C too: a lease nobody holds would keep gc from files for ever
        lease.release()
        raise
    return lease


def _tidy() -> None:
    """Leave what was forgotten, and renew what is kept."""
    _sweep()
    for key, lease in list(_kept.items()):
        assert lease._file is not None
        try:
            lease._file.touch()
        except NotFoundError as error:  # no matter of the work at hand
            _log.warning("%s was kept for too long without work: %s", key[0], error.problem)
            _kept.pop(key, None)


def _sweep() -> None:
    """Count down for every holder that was forgotten or released."""
    while _forgotten:
        try:
            shared = _forgotten.popleft()
        except IndexError:  # another thread was quicker
            return
        shared.leave()


@atexit.register
def _end() -> None:
    """Remove the files of this process, whoever still holds them."""
    for shared in list(_shared.values()):
        if shared.key[-1] == os.getpid():
            shared.remove()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have had it
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
