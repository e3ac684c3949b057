"""A disk that forgets what was not synced: the real calls, plus a model of what would survive.

Every call that changes something is a *step* and is kept, with its bytes. So one undisturbed run of
an operation is enough: the calls are played again onto the model, and before each of them the power
may fail. What a directory may look like after the reboot is a *survivor*. The model is the weakest
that POSIX allows: without a sync of the file any suffix of its bytes may be missing; without a sync
of the directory any change of its entries may be missing, each by itself.

A test can also let a call fail, or the power at a step of a real run; or let the system fail to write
out what is not synced yet, of which only the descriptors open at that moment learn. Calls may come from several
threads; the order in which they were made is the order in which they are played.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from featurestore.storage.backends import open_object_store, register_backend
from featurestore.storage.local import LocalStore
from featurestore.storage.local_io import LocalIO

Survival = Literal["lost", "kept", "mixed"]

_DIRECTORY: Final = 0
"""The number of every directory; files count from 1."""


class PowerFailure(BaseException):
    """The machine is off; not an ``Exception``, so that nothing handles it."""


class Content(NamedTuple):
    """The first ``length`` bytes of the file of that number: equal contents have equal bytes."""

    file: int
    length: int


Survivor = Mapping[str, Content]
"""What is found after the reboot, by path relative to the root; of a directory ``Content(0, 0)``."""


@dataclass(frozen=True, slots=True)
class DiskCall:
    """A call that changed the disk; ``file`` is the number of the file it was about."""

    name: str
    path: str = ""
    target: str = ""
    file: int = 0
    data: bytes = b""


class DiskModel:
    """Names and bytes as they are now, and as they are known to be on the disk.

    Parameters
    ----------
    root : Path
        An existing directory; what is in it is taken as durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._now: dict[str, int] = {}
        self._bytes: list[bytearray] = [bytearray()]
        for path in sorted(root.rglob("*")):
            self._now[str(path)] = _DIRECTORY if path.is_dir() else self._new(path.read_bytes())
        self._durable = dict(self._now)
        self._synced = [len(one) for one in self._bytes]
        self._lost: dict[int, int] = {}  # where the bytes begin that no sync brings to the disk

    def _new(self, data: bytes = b"") -> int:
        self._bytes.append(bytearray(data))
        return len(self._bytes) - 1

    def number(self, path: str) -> int:
        """Return the number of the file that has this name now."""
        return self._now[path]

    def next_number(self) -> int:
        """Return the number that the next file made will have."""
        return len(self._bytes)

    def apply(self, call: DiskCall) -> None:
        """Do what a call does."""
        match call.name:
            case "open":
                self._now[call.path] = self._new()
                self._synced.append(0)
            case "write":
                self._bytes[call.file] += call.data
            case "fsync":
                self._synced[call.file] = self._reachable(call.file)
            case "writeback":
                self._lost |= {file: self._synced[file] for file in self.unsynced()}
            case "link":
                self._now[call.target] = self._now[call.path]
            case "rename":
                self._now[call.target] = self._now.pop(call.path)
            case "unlink" | "rmdir":
                self._now.pop(call.path, None)
            case "mkdir":
                self._now[call.path] = _DIRECTORY
            case "fsync_dir":
                self._sync_entries(call.path)

    def unsynced(self) -> set[int]:
        """Return the numbers of the files with bytes that are not on the disk, and may get there."""
        files = range(1, len(self._bytes))
        return {file for file in files if self._synced[file] < self._reachable(file)}

    def _reachable(self, file: int) -> int:
        return self._lost.get(file, len(self._bytes[file]))

    def _sync_entries(self, directory: str) -> None:
        start = len(directory) + 1
        for entry in self._now.keys() | self._durable.keys():
            if entry.startswith(directory + "/") and "/" not in entry[start:]:
                if entry in self._now:
                    self._durable[entry] = self._now[entry]
                else:
                    del self._durable[entry]

    def survivor(self, survival: Survival, seed: int = 0) -> Survivor:
        """Return what may be found after the power failed.

        Parameters
        ----------
        survival : str
            ``lost``: nothing but what was synced; ``kept``: all entries, but unsynced bytes are
            torn; ``mixed``: every unsynced change by the toss of a coin.
        seed : int
            For tears and tosses.
        """
        chance = random.Random(seed)
        found: dict[str, Content] = {}
        start = len(self.root) + 1
        for entry in sorted(self._now.keys() | self._durable.keys()):
            file = self._surviving(entry, survival, chance)
            place = entry[start:]
            above = place.rpartition("/")[0]
            if file is None or (above and found.get(above) != (_DIRECTORY, 0)):
                continue
            size = self._synced[file]
            if survival != "lost" and size < self._reachable(file):
                size = chance.randint(size, self._reachable(file))
            found[place] = Content(file, size)
        return found

    def _surviving(self, entry: str, survival: Survival, chance: random.Random) -> int | None:
        now, durable = self._now.get(entry), self._durable.get(entry)
        if now == durable or survival == "lost":
            return durable
        if survival == "kept":
            return now if now is not None else durable
        return chance.choice((now, durable))

    def read(self, content: Content) -> bytes:
        return bytes(self._bytes[content.file][: content.length])


class SimulatedDisk(LocalIO):
    """System calls below one directory that are recorded, and can be made to fail.

    Parameters
    ----------
    root : Path
        An existing directory; what is in it is taken as durable.
    power_failure : int, optional
        The step (from 0) that no longer happens; a write is torn there.
    error : tuple of int and int, optional
        A step and the ``errno`` it fails with.
    error_steps : callable, optional
        Which calls, by name, count for ``error``; all by default.
    failed_writeback : int, optional
        Before this step the system tries to write out all bytes that are not synced, and fails. The
        next sync through each descriptor that is open then says so. The files leave memory as
        they are closed: a descriptor that is opened later never learns of it, and its sync succeeds.
    """

    def __init__(
        self,
        root: Path,
        power_failure: int | None = None,
        error: tuple[int, int] | None = None,
        error_steps: Callable[[str], bool] = lambda name: True,
        failed_writeback: int | None = None,
    ) -> None:
        self.model = DiskModel(root)
        self.calls: list[DiskCall] = []
        self._before = copy.deepcopy(self.model)
        self._power_failure = power_failure
        self._error = error
        self._error_steps = error_steps
        self._eligible = 0
        self._failed_writeback = failed_writeback
        self._to_be_told: set[int] = set()
        self._off = False
        self._open: dict[int, int] = {}
        self._lock = threading.RLock()

    @property
    def steps(self) -> list[str]:
        """The names of the calls made."""
        return [call.name for call in self.calls]

    @property
    def errors_met(self) -> bool:
        """Whether the step that was to fail was reached."""
        return self._error is not None and self._eligible > self._error[0]

    @property
    def eligible(self) -> int:
        """How many of the calls made count for ``error``."""
        return self._eligible

    def power_failures(self) -> Iterator[tuple[int, DiskModel]]:
        """Yield the disk at every moment at which the power may have failed.

        Yields
        ------
        tuple of int and DiskModel
            How many calls were complete, and the disk; it is the same object each time, valid until
            the next one is asked for. A write also gives a moment at which half of it was made.
        """
        model = copy.deepcopy(self._before)
        for step, call in enumerate(self.calls):
            yield step, model
            if call.name == "write" and len(call.data) > 1:
                half = len(call.data) // 2
                model.apply(DiskCall("write", file=call.file, data=call.data[:half]))
                yield step, model
                model.apply(DiskCall("write", file=call.file, data=call.data[half:]))
            else:
                model.apply(call)
        yield len(self.calls), model

    def survivors(self, target: Path, survival: Survival, seed: int = 0) -> Path:
        """Write a directory as it may be found if the power fails now; ``target`` must not exist."""
        return Materializer(self.model).write(self.model.survivor(survival, seed), target)

    # --- the calls -----------------------------------------------------------------------------

    def _step(self, call: DiskCall) -> bool:
        """Count a step; return whether a write is to be torn, raise if the step fails."""
        if self._off:
            raise PowerFailure
        number = len(self.calls)
        if number == self._failed_writeback:
            lost = self.model.unsynced()
            self._to_be_told |= {one for one, file in self._open.items() if file in lost}
            self._done(DiskCall("writeback"))
        torn = number == self._power_failure
        if torn:
            self._off = True
            if call.name != "write":
                raise PowerFailure
        elif self._error_steps(call.name):
            self._eligible += 1
            if self._error is not None and self._eligible - 1 == self._error[0]:
                raise OSError(self._error[1], os.strerror(self._error[1]))
        return torn

    def _done(self, call: DiskCall) -> None:
        self.calls.append(call)
        self.model.apply(call)

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            if flags & os.O_CREAT:
                call = DiskCall("open", path, file=self.model.next_number())
                self._step(call)
                descriptor = super().open(path, flags)
                self._done(call)
                self._open[descriptor] = call.file
                return descriptor
            if self._off:
                raise PowerFailure
            descriptor = super().open(path, flags)
            self._open[descriptor] = self.model.number(path)
            return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        with self._lock:
            file = self._open[descriptor]
            torn = self._step(DiskCall("write", file=file))
            count = super().write(descriptor, data[: len(data) // 2] if torn else data)
            self._done(DiskCall("write", file=file, data=bytes(data[:count])))
            if torn:
                raise PowerFailure
            return count

    def fsync(self, descriptor: int) -> None:
        call = DiskCall("fsync", file=self.number(descriptor))
        self._change(call, lambda: self._tell(descriptor))

    def _tell(self, descriptor: int) -> None:
        """Raise what the system has to say about a file, once for each descriptor."""
        if descriptor in self._to_be_told:
            self._to_be_told.remove(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def number(self, descriptor: int) -> int:
        """Return the number of an open file."""
        with self._lock:
            return self._open[descriptor]

    def fsync_number(self, file: int) -> None:
        """Sync a file by its number, which needs no open descriptor here."""
        self._change(DiskCall("fsync", file=file), lambda: None)

    def close(self, descriptor: int) -> None:
        with self._lock:
            self._open.pop(descriptor, None)
            self._to_be_told.discard(descriptor)
            super().close(descriptor)

    def link(self, source: str, target: str) -> None:
        self._change(DiskCall("link", source, target), lambda: LocalIO.link(self, source, target))

    def rename(self, source: str, target: str) -> None:
        self._change(
            DiskCall("rename", source, target), lambda: LocalIO.rename(self, source, target)
        )

    def unlink(self, path: str) -> None:
        self._change(DiskCall("unlink", path), lambda: LocalIO.unlink(self, path))

    def mkdir(self, path: str) -> None:
        self._change(DiskCall("mkdir", path), lambda: LocalIO.mkdir(self, path))

    def rmdir(self, path: str) -> None:
        self._change(DiskCall("rmdir", path), lambda: LocalIO.rmdir(self, path))

    def fsync_dir(self, path: str) -> None:
        self._change(DiskCall("fsync_dir", path), lambda: None)

    def _change(self, call: DiskCall, really: Callable[[], None]) -> None:
        with self._lock:
            self._step(call)
            really()
            self._done(call)


class Materializer:
    """Writes survivors as directories; equal files share their bytes through hard links.

    The files are an hour old: the machine was off for a while, and nobody writes them any more. A
    store never changes a file in place, so what is done in one directory does not touch others.

    Parameters
    ----------
    model : DiskModel
        Of the whole run: it has the bytes of every file.
    pool : Path, optional
        A directory for the bytes, on the same file system as the targets. Without it every
        directory gets files of its own.
    """

    def __init__(self, model: DiskModel, pool: Path | None = None) -> None:
        self._model = model
        self._pool = pool
        self._pooled: dict[Content, Path] = {}

    def write(self, survivor: Survivor, target: Path) -> Path:
        """Make a directory of what was found; ``target`` must not exist."""
        target.mkdir()
        for path, content in survivor.items():
            place = target / path
            if content.file == _DIRECTORY:
                place.mkdir()
            else:
                self._file(content, place)
        return target

    def _file(self, content: Content, place: Path) -> None:
        if self._pool is None:
            self._write(content, place)
            return
        pooled = self._pooled.get(content)
        if pooled is None:
            pooled = self._pool / f"{content.file}-{content.length}"
            self._write(content, pooled)
            self._pooled[content] = pooled
        place.hardlink_to(pooled)

    def _write(self, content: Content, place: Path) -> None:
        place.write_bytes(self._model.read(content))
        then = time.time() - 3600
        os.utime(place, (then, then))


class SimulatedStore(LocalStore):
    """A local store on a simulated disk; its URL, ``simulated://name``, opens it on that disk again.

    So do tasks of builds: whatever works on the store goes through the disk.
    """

    def __init__(self, name: str, root: Path, disk: SimulatedDisk) -> None:
        super().__init__(root, disk)
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return (open_object_store, (self.url,))

    @property
    def url(self) -> str:
        return f"simulated://{self._name}"


def attach(name: str, root: Path, disk: SimulatedDisk) -> str:
    """Let ``simulated://name`` be the store at ``root`` on this disk; return the URL.

    A name may be attached again, to another disk.
    """
    _attached[name] = (root, disk)
    register_backend("simulated", _open)
    return f"simulated://{name}"


_attached: Final[dict[str, tuple[Path, SimulatedDisk]]] = {}


def _open(url: str) -> SimulatedStore:
    name = url.removeprefix("simulated://")
    return SimulatedStore(name, *_attached[name])
