"""A local directory as an object store, durable as far as the file system keeps its word.

Files are written under ``tmp/`` and get their final name by a hard link, which fails if the name
exists: no reader ever sees half a file, and of two writers of one name exactly one succeeds.
``sync`` makes files durable together with every directory entry that leads to them, whoever made
those directories.

Always true: nothing outside the root is touched; a file whose ``fsync`` failed is never declared
durable afterwards (Linux forgets the error, so asking again would lie), by no store object of this
process. The price of the hard link is that file systems without them (some network and USB ones) are
refused.
"""

# Paths are text here, as the system calls take them.
# ruff: noqa: PTH112, PTH116, PTH118, PTH120, PTH121

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)
from featurestore.storage.local_io import LocalIO
from featurestore.storage.object_store import ObjectInfo
from featurestore.storage.records import check_path

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STAGING: Final = "tmp"
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_BLOCK: Final = 64 * 2**20  # os.write takes at most 2 GiB at once
# A file system commits what several threads sync at once together: with 8 threads, 400 small files
# take half the time, and 20 do on a busy disk; fewer are not worth the threads.
_SYNCS_AT_ONCE: Final = 8
_MANY: Final = 16


class _Known:
    """What this process knows of a directory tree, whichever of its store objects found out.

    Every task of a build opens its store anew, and should not sync again the directories that the
    task before synced. Lives as long as one of those objects does.

    Attributes
    ----------
    condemned : set of str
        Files whose sync failed.
    anchored : set of str
        Directories whose entry in their parent is known to be durable. This only saves work; a
        directory missing here is synced again.
    """

    def __init__(self, io: LocalIO) -> None:
        self.io = io  # held, so that its id stays its own
        self.condemned: set[str] = set()
        self.anchored: set[str] = set()
        self.lock = threading.Lock()


_SYSTEM: Final = LocalIO()
_known: Final[weakref.WeakValueDictionary[tuple[str, int], _Known]] = weakref.WeakValueDictionary()
_known_lock: Final = threading.Lock()


def _knowledge(root: str, io: LocalIO) -> _Known:
    with _known_lock:
        return _known.setdefault((root, id(io)), _Known(io))


class LocalStore:
    """Files below one directory of this machine.

    Parameters
    ----------
    root : path
        Made, with its parents, by the first write if it does not exist.
    io : LocalIO, optional
        The system calls that write.
    """

    def __init__(self, root: str | Path, io: LocalIO | None = None) -> None:
        self.root = Path(root).expanduser().resolve()
        self._io = io if io is not None else _SYSTEM
        self._known = _knowledge(str(self.root), self._io)
        self._inside: set[str] = set()  # directories that are no links; only saves looking again

    def __reduce__(self) -> tuple[Any, ...]:
        return (LocalStore, (str(self.root), None if self._io is _SYSTEM else self._io))

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def url(self) -> str:
        return self.root.as_uri()

    @property
    def shared(self) -> bool:
        return True

    # --- reading -------------------------------------------------------------------------------

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        with self.open_read(path) as stream:
            if start:
                stream.seek(start)
            data = stream.read() if length is None else stream.read(length)
        if length is not None and len(data) != length:
            raise CorruptionError(
                f"{path} ends after {start + len(data)} bytes, wanted {length} from {start}",
                "run verify",
            )
        return data

    def open_read(self, path: str) -> BinaryIO:
        with _translated(path, "read"):
            return os.fdopen(os.open(self._locate(path), os.O_RDONLY | _NOFOLLOW), "rb")

    def size(self, path: str) -> int:
        with _translated(path, "look at"):
            return self._stat(path).st_size

    def exists(self, path: str) -> bool:
        try:
            return stat.S_ISREG(self._stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _error(error, path, "look at") from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix:
            prefix = check_path(prefix.rstrip("/"))
        yield from self._list(self.root / prefix, prefix)

    def _list(self, directory: Path, prefix: str) -> Iterator[ObjectInfo]:
        with _translated(prefix or str(directory), "list"):
            try:
                with os.scandir(directory) as found:
                    entries = sorted(
                        (one.name + "/" * one.is_dir(follow_symlinks=False), one) for one in found
                    )
            except (FileNotFoundError, NotADirectoryError):
                return
        for name, entry in entries:
            if name.startswith(".") or (not prefix and name == STAGING + "/"):
                continue
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if name.endswith("/"):
                yield from self._list(directory / entry.name, path)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed since the directory was read
                continue
            if stat.S_ISREG(status.st_mode):
                yield ObjectInfo(path, status.st_size, status.st_mtime)

    def local_path(self, path: str) -> Path | None:
        return Path(self._locate(path))

    # --- writing -------------------------------------------------------------------------------

    @contextmanager
    def open_write(self, path: str) -> Iterator[BinaryIO]:
        target = self._locate(path)
        with self._staged(path) as (staged, descriptor):
            stream = _Stream(self._io, descriptor, path)
            yield cast(BinaryIO, stream)
            stream.close()
            with _translated(path, "publish"):
                self._link(staged, target)

    def write(self, path: str, data: bytes) -> None:
        with self.open_write(path) as stream:
            stream.write(data)

    def create(self, path: str, data: bytes) -> None:
        target = self._locate(path)
        if os.path.lexists(target):  # spares the loser of a race its two syncs
            raise ConflictError(f"{path} exists")
        with self._staged(path) as (staged, descriptor):
            self._fill(path, descriptor, data)
            with _translated(path, "publish"):
                self._link(staged, target)
            self._publish_durably(path, target)

    def replace(self, path: str, data: bytes) -> None:
        target = self._locate(path)
        with self._staged(path) as (staged, descriptor):
            self._fill(path, descriptor, data)
            with _translated(path, "publish"):
                self._make_directories(os.path.dirname(target))
                self._io.rename(staged, target)
            self._publish_durably(path, target)

    def sync(self, paths: Iterable[str]) -> None:
        targets = dict.fromkeys(self._locate(path) for path in paths)
        _for_each(self._sync_file, targets)
        with _translated("a directory of the store", "make durable"):
            self._sync_directories({os.path.dirname(target) for target in targets})

    def delete(self, paths: Iterable[str], durable: bool = False) -> None:
        directories = set()
        for path in paths:
            target = self._locate(path)
            directories.add(os.path.dirname(target))
            with _translated(path, "delete"), suppress(FileNotFoundError, NotADirectoryError):
                self._io.unlink(target)
            self._prune(os.path.dirname(target))
        if durable:
            with _translated("a directory of the store", "make durable"):
                self._sync_directories({one for one in directories if os.path.isdir(one)})

    def zarr_store(self) -> Any:
        from zarr.storage import LocalStore as ZarrStore

        return ZarrStore(self.root, read_only=True)

    # --- pieces --------------------------------------------------------------------------------

    @contextmanager
    def _staged(self, path: str) -> Iterator[tuple[str, int]]:
        """Open a new file under ``tmp/``; it is closed and that name removed at the end."""
        staging = os.path.join(self.root, STAGING)
        staged = os.path.join(staging, f"{os.getpid()}-{secrets.token_hex(8)}")
        with _translated(path, "write"):
            self._make_directories(staging)
            descriptor = self._io.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            yield staged, descriptor
        finally:
            try:
                with _translated(path, "write"):  # network file systems may fail only here
                    self._io.close(descriptor)
            finally:
                with suppress(OSError):  # renamed away, or gc sweeps it: never a final name
                    self._io.unlink(staged)

    def _fill(self, path: str, descriptor: int, data: bytes) -> None:
        with _translated(path, "write"):
            _Stream(self._io, descriptor, path).write(data)
            self._io.fsync(descriptor)

    def _link(self, staged: str, target: str) -> None:
        for _ in range(5):  # a directory may be pruned between making it and linking into it
            self._make_directories(os.path.dirname(target))
            try:
                self._io.link(staged, target)
                return
            except FileNotFoundError:
                continue
            except FileExistsError as error:
                # Network file systems may repeat a request whose answer was lost: then the name
                # that exists is our own.
                if os.path.samefile(staged, target):
                    return
                raise ConflictError(f"{os.path.relpath(target, self.root)} exists") from error
        raise FeatureStoreError(f"directories above {target} keep vanishing", "stop what does it")

    def _publish_durably(self, path: str, target: str) -> None:
        try:
            self._sync_directories({os.path.dirname(target)})
        except OSError as error:
            raise FeatureStoreError(
                f"{path} was published, but making its directory durable failed: {error}. "
                "Whether it survives a power loss is unknown",
                "check the disk, then look whether the file is there; do not delete anything yet",
            ) from error

    def _sync_file(self, target: str) -> None:
        path = os.path.relpath(target, self.root)
        if target in self._known.condemned:
            raise CorruptionError(
                f"an earlier sync of {path} failed: its bytes may be lost", "write a new file"
            )
        with _translated(path, "make durable"):
            descriptor = self._io.open(target, os.O_RDONLY | _NOFOLLOW)
            try:
                self._io.fsync(descriptor)
            except OSError:
                self._known.condemned.add(target)
                raise
            finally:
                self._io.close(descriptor)

    def _sync_directories(self, directories: set[str]) -> None:
        """Sync directories, and those above them whose entries are not known to be durable."""
        todo, anchored = set(directories), set()
        for directory in directories:
            here = directory
            while here not in self._known.anchored and here not in anchored:
                above = os.path.dirname(here)
                todo.add(above)
                anchored.add(here)
                if here == str(self.root):
                    break
                here = above
        outside = os.path.dirname(self.root)

        def sync(directory: str) -> None:
            try:
                self._io.fsync_dir(directory)
            except PermissionError:
                # A parent of the root that we may not read is not one we made an entry in.
                if directory != outside:
                    raise

        _for_each(sync, sorted(todo, reverse=True))
        with self._known.lock:
            self._known.anchored |= anchored

    def _make_directories(self, directory: str) -> None:
        if os.path.isdir(directory):
            return
        above = os.path.dirname(directory)
        self._make_directories(above)
        try:
            self._io.mkdir(directory)
        except FileExistsError:
            return
        with self._known.lock:
            self._known.anchored.discard(directory)
        if not directory.startswith(os.path.join(self.root, "")):  # the root and what leads to it
            try:
                self._io.fsync_dir(above)
            except OSError:  # else the next attempt would find it there, and take it for durable
                with suppress(OSError):
                    self._io.rmdir(directory)
                raise
            # Whoever made the directory above may have been stopped before it synced that entry.
            # Where one was made long ago, it may lie in one that we may not read.
            with suppress(PermissionError):
                self._io.fsync_dir(os.path.dirname(above))

    def _prune(self, directory: str) -> None:
        """Remove emptied directories of a Zarr array.

        Only these: their names are unique, so nobody makes them again. Others could be made again
        by a process that relies on having synced their entry before.
        """
        while ".zarr" in os.path.relpath(directory, self.root):
            try:
                self._io.rmdir(directory)
            except OSError:  # not empty, or gone: either way there is nothing left to do
                return
            directory = os.path.dirname(directory)

    def _stat(self, path: str) -> os.stat_result:
        return os.stat(self._locate(path), follow_symlinks=False)

    def _locate(self, path: str) -> str:
        """Return where a file is, refusing names and links that lead out of the root."""
        target = os.path.join(self.root, check_path(path))
        directory = os.path.dirname(target)
        if directory not in self._inside and os.path.isdir(directory):
            real = os.path.realpath(directory)
            if real != directory:
                raise CorruptionError(
                    f"{path} lies behind a symbolic link to {real}",
                    "move the files into the store; links inside a store are refused",
                )
            self._inside.add(directory)
        return target


def _for_each(sync: Callable[[str], None], paths: Collection[str]) -> None:
    """Sync all of these, many of them side by side; the first failure is raised at the end."""
    if len(paths) < _MANY:
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(_SYNCS_AT_ONCE, "featurestore-sync") as pool:
        for _ in pool.map(sync, paths):
            pass


class _Stream(io.RawIOBase):
    """Writes to a descriptor that somebody else closes; its errors are of the package's tree."""

    def __init__(self, calls: LocalIO, descriptor: int, path: str) -> None:
        self._calls = calls
        self._descriptor = descriptor
        self._path = path
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        with _translated(self._path, "write"):
            while done < len(view):
                done += self._calls.write(self._descriptor, view[done : done + _BLOCK])
        self._position += done
        return done


@contextmanager
def _translated(path: str, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(error, path, action) from error


def _error(error: OSError, path: str, action: str) -> FeatureStoreError:
    """Return the error of the package's tree that an ``OSError`` stands for."""
    problem = f"cannot {action} {path}: {error.strerror or error}"
    code = error.errno
    if code in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(problem, "free space or raise the quota; gc removes unused files")
    if code == errno.ENOTDIR and action not in ("read", "look at"):
        return InvalidInputError(
            f"{problem}: something above it is a file", "name a directory for the store"
        )
    if code in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"there is no file {path}", "run verify if the store names it")
    if code == errno.ELOOP:
        return CorruptionError(
            f"{path} is a symbolic link", "links inside a store are refused; copy the file"
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return FeatureStoreError(problem, "raise the limit of open files (ulimit -n)")
    if code == errno.EROFS:
        return FeatureStoreError(problem, "the file system is mounted read-only")
    if code in (errno.EACCES, errno.EPERM):
        if action == "publish" and code == errno.EPERM:
            return UnsupportedError(
                f"{problem}: hard links may not be supported here", "use another file system"
            )
        return FeatureStoreError(problem, "check owner and permissions of the store's directory")
    if code in (errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
        return UnsupportedError(problem, "put the whole store on one file system with hard links")
    if code == errno.EIO:
        return CorruptionError(problem, "check the disk, then run verify")
    return FeatureStoreError(problem, "see the system's message")
