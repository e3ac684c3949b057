"""A disk that forgets what was not synced: the real calls, plus a model of what would survive.

Every call that changes something is a *step*. A test names the step at which the power fails, or at
which a call fails with an error, and afterwards asks for a directory as it could be found after
reboot. The model is the weakest that POSIX allows: without a sync of the file any suffix of its bytes
may be missing; without a sync of the directory any change of its entries may be missing, each by
itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from featurestore.storage.local_io import LocalIO

Survival = Literal["lost", "kept", "mixed"]


class PowerFailure(BaseException):
    """The machine is off; not an ``Exception``, so that nothing handles it."""


@dataclass(slots=True)
class _File:
    """Bytes as written, and as they are known to be on the disk."""

    written: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


_DIRECTORY = _File()


class SimulatedDisk(LocalIO):
    """System calls below one directory that can be made to fail.

    Parameters
    ----------
    root : Path
        An existing directory, empty and taken as durable.
    power_failure : int, optional
        The step (from 0) that no longer happens; a write is torn there.
    error : tuple of int and int, optional
        A step and the ``errno`` it fails with.
    error_steps : callable, optional
        Which calls, by name, count for ``error``; all by default.
    """

    def __init__(
        self,
        root: Path,
        power_failure: int | None = None,
        error: tuple[int, int] | None = None,
        error_steps: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.root = str(root)
        self.steps: list[str] = []
        self._power_failure = power_failure
        self._error = error
        self._error_steps = error_steps
        self._eligible = 0
        self._off = False
        self._now: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._open: dict[int, _File] = {}

    @property
    def errors_met(self) -> bool:
        """Whether the step that was to fail was reached."""
        return self._error is not None and self._eligible > self._error[0]

    def _step(self, name: str) -> bool:
        """Count a step; return whether a write is to be torn, raise if the step fails."""
        if self._off:
            raise PowerFailure
        number = len(self.steps)
        self.steps.append(name)
        if number == self._power_failure:
            self._off = True
            if name != "write":
                raise PowerFailure
            return True
        if self._error_steps(name):
            self._eligible += 1
            if self._error is not None and self._eligible - 1 == self._error[0]:
                raise OSError(self._error[1], os.strerror(self._error[1]))
        return False

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_CREAT:
            self._step("open")
            descriptor = super().open(path, flags)
            self._now[path] = self._open[descriptor] = _File()
            return descriptor
        if self._off:
            raise PowerFailure
        descriptor = super().open(path, flags)
        self._open[descriptor] = self._now[path]
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        torn = self._step("write")
        count = super().write(descriptor, data[: len(data) // 2] if torn else data)
        self._open[descriptor].written += data[:count]
        if torn:
            raise PowerFailure
        return count

    def fsync(self, descriptor: int) -> None:
        self._step("fsync")
        file = self._open[descriptor]
        file.durable = bytes(file.written)

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        super().close(descriptor)

    def link(self, source: str, target: str) -> None:
        self._step("link")
        super().link(source, target)
        self._now[target] = self._now[source]

    def rename(self, source: str, target: str) -> None:
        self._step("rename")
        super().rename(source, target)
        self._now[target] = self._now.pop(source)

    def unlink(self, path: str) -> None:
        self._step("unlink")
        super().unlink(path)
        self._now.pop(path, None)

    def mkdir(self, path: str) -> None:
        self._step("mkdir")
        super().mkdir(path)
        self._now[path] = _DIRECTORY

    def rmdir(self, path: str) -> None:
        self._step("rmdir")
        super().rmdir(path)
        self._now.pop(path, None)

    def fsync_dir(self, path: str) -> None:
        self._step("fsync_dir")
        for entry in {**self._now, **self._durable}:
            if os.path.dirname(entry) == path:  # noqa: PTH120 - texts, as the calls give them
                if entry in self._now:
                    self._durable[entry] = self._now[entry]
                else:
                    del self._durable[entry]

    def survivors(self, target: Path, survival: Survival, seed: int = 0) -> Path:
        """Write a directory as it may be found after the power failed.

        Parameters
        ----------
        target : Path
            Must not exist.
        survival : str
            ``lost``: nothing but what was synced; ``kept``: all entries, but unsynced bytes are
            torn; ``mixed``: every unsynced change by the toss of a coin.
        seed : int
            For tears and tosses.
        """
        chance = random.Random(seed)
        target.mkdir()
        for entry in sorted({**self._now, **self._durable}):
            file = self._survivor(entry, survival, chance)
            place = target / Path(entry).relative_to(self.root)
            if file is None or not place.parent.is_dir():
                continue
            if file is _DIRECTORY:
                place.mkdir()
                continue
            size = len(file.durable)
            if survival != "lost":
                size = chance.randint(size, max(size, len(file.written)))
            place.write_bytes(bytes(file.written[:size]))
        return target

    def _survivor(self, entry: str, survival: Survival, chance: random.Random) -> _File | None:
        now, durable = self._now.get(entry), self._durable.get(entry)
        if now is durable or survival == "lost":
            return durable
        if survival == "kept":
            return now if now is not None else durable
        return chance.choice((now, durable))
