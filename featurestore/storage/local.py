"""A local directory as an object store, durable as far as the file system keeps its word.

Files are written under ``tmp/`` and get their final name by a hard link, which fails if the name
exists: no reader ever sees half a file, and of two writers of one name exactly one succeeds.
``sync`` makes files durable together with every directory entry that leads to them, whoever made
those directories. What ``open_write`` wrote is synced through the descriptor that wrote it, see
``unsynced``.

Always true: nothing outside the root is touched; a file whose ``fsync`` failed is never declared
durable afterwards (Linux forgets the error, so asking again would lie) while any store object of this
process for that directory lives. The price of the hard link is that file systems without them (some
network and USB ones) are refused.
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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar, cast

from featurestore.errors import ConflictError, CorruptionError, FeatureStoreError
from featurestore.storage.local_io import LocalIO
from featurestore.storage.object_store import ObjectInfo
from featurestore.storage.records import check_path
from featurestore.storage.system_errors import system_error, translated
from featurestore.storage.unsynced import UnsyncedFiles, side_by_side

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STAGING: Final = "tmp"
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_BLOCK: Final = 64 * 2**20  # os.write takes at most 2 GiB at once
_T = TypeVar("_T")


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
    unsynced : UnsyncedFiles
        Files that wait to be synced through the descriptor that wrote them.
    """

    def __init__(self, io: LocalIO) -> None:
        self.io = io  # held, so that its id stays its own
        self.condemned: set[str] = set()
        self.anchored: set[str] = set()
        self.unsynced = UnsyncedFiles(io)
        self.lock = threading.Lock()


_SYSTEM: Final = LocalIO()
_known: Final[weakref.WeakValueDictionary[tuple[str, int], _Known]] = weakref.WeakValueDictionary()
_known_lock: Final = threading.Lock()


def _knowledge(root: str, io: LocalIO) -> _Known:
    with _known_lock:
        known = _known.get((root, id(io)))
        if known is None:
            known = _known[root, id(io)] = _Known(io)
        return known


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
        with translated(path, "read"):
            target = self._locate(path)
            opened = self._relieved(lambda: os.open(target, os.O_RDONLY | _NOFOLLOW))
            return os.fdopen(opened, "rb")

    def size(self, path: str) -> int:
        with translated(path, "look at"):
            return self._stat(path).st_size

    def exists(self, path: str) -> bool:
        try:
            return stat.S_ISREG(self._stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise system_error(error, path, "look at") from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix:
            prefix = check_path(prefix.rstrip("/"))
        yield from self._list(self.root / prefix, prefix)

    def _list(self, directory: Path, prefix: str) -> Iterator[ObjectInfo]:
        with translated(prefix or str(directory), "list"):
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
    def open_write(self, path: str, *, named: bool = True) -> Iterator[BinaryIO]:
        with self._writing(path, keep=named) as stream:
            yield stream

    def write(self, path: str, data: bytes) -> None:
        with self._writing(path, keep=False) as stream:
            stream.write(data)

    def create(self, path: str, data: bytes) -> None:
        target = self._locate(path)
        if os.path.lexists(target):  # spares the loser of a race its two syncs
            raise ConflictError(f"{path} exists")
        with self._staged(path) as staged:
            self._fill(path, staged.descriptor, data)
            with translated(path, "publish"):
                self._link(staged.name, target)
            self._publish_durably(path, target)

    def replace(self, path: str, data: bytes) -> None:
        target = self._locate(path)
        with self._staged(path) as staged:
            self._fill(path, staged.descriptor, data)
            with translated(path, "publish"):
                self._make_directories(os.path.dirname(target))
                self._io.rename(staged.name, target)
            self._known.unsynced.forget(target)
            self._publish_durably(path, target)

    def sync(self, paths: Iterable[str]) -> None:
        targets = dict.fromkeys(self._locate(path) for path in paths)
        side_by_side(self._sync_file, targets)
        with translated("a directory of the store", "make durable"):
            self._sync_directories({os.path.dirname(target) for target in targets})

    def delete(self, paths: Iterable[str], durable: bool = False) -> None:
        directories = set()
        for path in paths:
            target = self._locate(path)
            directories.add(os.path.dirname(target))
            with translated(path, "delete"), suppress(FileNotFoundError, NotADirectoryError):
                self._io.unlink(target)
            self._known.unsynced.forget(target)
            self._prune(os.path.dirname(target))
        if durable:
            with translated("a directory of the store", "make durable"):
                self._sync_directories({one for one in directories if os.path.isdir(one)})

    def zarr_store(self) -> Any:
        from zarr.storage import LocalStore as ZarrStore

        return ZarrStore(self.root, read_only=True)

    # --- pieces --------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, path: str, keep: bool) -> Iterator[BinaryIO]:
        """Write a new file as a stream; ``keep`` its descriptor if it is to be synced later."""
        target = self._locate(path)
        with self._staged(path) as staged:
            stream = _Stream(self._io, staged.descriptor, path)
            try:
                yield cast(BinaryIO, stream)
            finally:
                stream.close()
            with translated(path, "publish"):
                self._link(staged.name, target)
            if keep:
                self._known.unsynced.keep(target, staged.take())

    @contextmanager
    def _staged(self, path: str) -> Iterator[_Staged]:
        """Open a new file under ``tmp/``.

        At the end that name is removed, and the descriptor closed unless somebody took it.
        """
        staging = os.path.join(self.root, STAGING)
        name = os.path.join(staging, f"{os.getpid()}-{secrets.token_hex(8)}")
        with translated(path, "write"):
            self._make_directories(staging)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            staged = _Staged(name, self._relieved(lambda: self._io.open(name, flags)))
        try:
            yield staged
        finally:
            try:
                if not staged.taken:
                    with translated(path, "write"):  # network file systems may fail only here
                        self._io.close(staged.descriptor)
            finally:
                with suppress(OSError):  # renamed away, or gc sweeps it: never a final name
                    self._io.unlink(name)

    def _relieved(self, call: Callable[[], _T]) -> _T:
        """Make a call that needs a descriptor; if there are no more, give back those kept."""
        try:
            return call()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if not self._known.unsynced.give_back():
                raise
        return call()

    def _fill(self, path: str, descriptor: int, data: bytes) -> None:
        with translated(path, "write"):
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
        with translated(path, "make durable"):
            try:
                if self._known.unsynced.settle(target):
                    return
            except OSError:
                self._known.condemned.add(target)
                raise
            # Written by another process or by ``write``, or synced before.
            descriptor = self._relieved(lambda: self._io.open(target, os.O_RDONLY | _NOFOLLOW))
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
                self._relieved(lambda: self._io.fsync_dir(directory))
            except PermissionError:
                # A parent of the root that we may not read is not one we made an entry in.
                if directory != outside:
                    raise

        side_by_side(sync, sorted(todo, reverse=True))
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


class _Staged:
    """A file under ``tmp/`` that is open, until somebody takes the descriptor."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.taken = False

    def take(self) -> int:
        self.taken = True
        return self.descriptor


class _Stream(io.RawIOBase):
    """Writes to a descriptor that somebody else closes; its errors are of the package's tree.

    Closed, it refuses to write: whoever still holds it, like the Parquet writer of a file that could
    not be written, must not reach what has that descriptor by then.
    """

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
        if self.closed:
            raise ValueError(f"{self._path} was closed before everything was written")
        view = memoryview(data).cast("B")
        done = 0
        with translated(self._path, "write"):
            while done < len(view):
                done += self._calls.write(self._descriptor, view[done : done + _BLOCK])
        self._position += done
        return done
