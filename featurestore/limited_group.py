"""A memory control group of one's own: made, limited, entered, left and removed again.

Version 1: a group below the process's own. Version 2 allows processes in leaves only, so there it is one of:
below the own group, if that is the root or holds nobody but this process (whose group is then free to
pass the memory controller on); else beside it, where the group above passes the controller on. A group
beside the own one escapes the own one's limit, so it gets that as well.

Always true: nobody else's process is moved and no group's settings are changed but those of groups made
here (one's own group passes the controller on for as long as it is empty, and no longer). What a
process held before it entered stays charged where it was, in both versions. A group's name says which process
made it, so that groups of processes that were killed are known, and removed by the next that makes one;
the kernel refuses to remove a group with processes in it.

Source: the kernel's documents cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestore.control_groups import ControlGroup, content, own_group
from featurestore.errors import UnsupportedError

PREFIX: Final = "featurestore"
# A process that starts another while it leaves is found the second time; a thousand times is a fork bomb.
_ROUNDS: Final = 1000

_NAME: Final = re.compile(rf"{PREFIX}-(\d+)-(\d+)-(\d+)")
_REMEDY: Final = "run without enforcement, or start Python in a limited group (systemd-run, docker)"


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """The kernel's files, as a process sees them; a simulated kernel overrides what changes them.

    Parameters
    ----------
    root : Path
        Where the system's files begin.
    process : int
        Whose view it is; 0 for this process.
    """

    root: Path = Path("/")
    process: int = 0

    @property
    def own_process(self) -> int:
        return self.process or os.getpid()

    def group_of(self, process: int) -> ControlGroup | None:
        return own_group(self.root, process)

    def make(self, path: Path) -> None:
        path.mkdir()

    def remove(self, path: Path) -> None:
        path.rmdir()

    def write(self, path: Path, text: str) -> None:
        file = os.open(path, os.O_WRONLY)  # never one that the kernel did not make
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def started(self, process: int) -> int | None:
        """Return when a process was started, in clock ticks since boot; None if there is no such."""
        fields = content(self.root / f"proc/{process}/stat").rpartition(")")[2].split()
        return int(fields[19]) if len(fields) > 19 else None

    def held(self, process: int) -> int:
        """Return the resident bytes of a process; 0 if there is no such."""
        pages = content(self.root / f"proc/{process}/statm").split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0

    def namespace(self) -> int:
        """Return which numbering of processes this is: containers have their own."""
        try:
            return (self.root / "proc/self/ns/pid").stat().st_ino
        except OSError:
            return 0


class LimitedGroup:
    """A group that this process made; it is still outside. See :func:`make_group`.

    Parameters
    ----------
    files : GroupFiles
    group : ControlGroup
    ceiling : int, optional
        A limit in bytes that holds anyway.
    emptied : ControlGroup, optional
        The own group, if it has to pass the memory controller on to this one.
    """

    def __init__(
        self,
        files: GroupFiles,
        group: ControlGroup,
        ceiling: int | None,
        emptied: ControlGroup | None,
    ) -> None:
        self._files, self._group, self._emptied = files, group, emptied
        self._ceiling = ceiling
        self._homes: dict[int, ControlGroup] = {}
        self._home: ControlGroup | None = None

    @property
    def version(self) -> int:
        return self._group.version

    @property
    def path(self) -> Path:
        return self._group.path

    @property
    def limits_swap(self) -> bool:
        """Whether the kernel counts swapped memory too."""
        return (self.path / _SWAP[self.version]).exists()

    def limit(self, size: int) -> None:
        """Set how much the processes in it may be charged together, swap included.

        Raises
        ------
        OSError
            If the kernel refuses, as when it is less than is held already.
        """
        size = size if self._ceiling is None else min(size, self._ceiling)
        hard, swap = self.path / _HARD[self.version], self.path / _SWAP[self.version]
        if self.version == 2:
            self._files.write(hard, str(size))
            if swap.exists():
                self._files.write(swap, "0")
            return
        steps = [hard, swap] if swap.exists() else [hard]
        now = content(hard)
        # Memory with swap must never be less than memory alone.
        for path in steps if not now.isdigit() or int(now) > size else reversed(steps):
            self._files.write(path, str(size))

    def lift(self) -> None:
        """Let its processes be as free as those around it.

        Raises
        ------
        OSError
            If the kernel refuses.
        """
        nothing = {1: "-1", 2: "max"}[self.version]
        for path in (self.path / _SWAP[self.version], self.path / _HARD[self.version]):
            if path.exists():  # not where the group above no longer passes the controller on
                self._files.write(path, nothing)

    def admit(self, processes: Iterable[int]) -> None:
        """Move processes with all their threads into the group.

        Raises
        ------
        OSError
            If the kernel refuses; those moved before stay inside.
        """
        for one in processes:
            home = self._files.group_of(one)
            if home is None or home.path == self.path:
                continue
            self._move(one, self.path)
            self._homes[one] = home
            self._home = self._home or home

    def dissolve(self) -> None:
        """Move all processes back to where they came from, their children along, and remove the group.

        Raises
        ------
        OSError
            If the kernel refuses.
        """
        if self._emptied is not None:
            self._pass_on(False)
        for _ in range(_ROUNDS):
            inside = self._group.processes()
            if not inside:
                break
            for one in inside:
                home = self._homes.get(one, self._home) or self._group_above()
                with suppress(ProcessLookupError):  # it has ended
                    self._move(one, home.path)
        self._files.remove(self.path)

    def _group_above(self) -> ControlGroup:
        return ControlGroup(self.version, self.path.parent, self._group.top)

    def _move(self, process: int, place: Path) -> None:
        self._files.write(place / "cgroup.procs", str(process))

    def _pass_on(self, passed: bool) -> None:
        assert self._emptied is not None
        control = self._emptied.path / "cgroup.subtree_control"
        self._files.write(control, "+memory" if passed else "-memory")


_HARD: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
_SWAP: Final = {1: "memory.memsw.limit_in_bytes", 2: "memory.swap.max"}


def make_group(files: GroupFiles) -> LimitedGroup:
    """Make a group that this process may move into; one that can be limited, and is not limited yet.

    With version 2 the process may be inside already: its own group must be empty to have limited ones below.

    Raises
    ------
    UnsupportedError
        If the system does not offer one; nothing is changed then.
    """
    own, me = files.group_of(files.own_process), files.own_process
    if own is None:
        raise UnsupportedError("this system shows no memory control groups", _REMEDY)
    remove_abandoned(files, (own.path, own.path.parent))
    place, emptied = _place(files, own)
    name = f"{PREFIX}-{files.namespace()}-{me}-{files.started(me) or 0}"
    group = ControlGroup(own.version, place / name, own.top)
    try:
        files.make(group.path)
    except OSError as error:
        raise UnsupportedError(f"no group can be made in {place}: {error}", _REMEDY) from error
    made = LimitedGroup(files, group, min(own.limits(), default=None), emptied)
    try:
        if emptied is not None:
            made.admit(own.processes())
            made._pass_on(True)
        if not (group.path / _HARD[own.version]).exists():
            raise OSError(f"{group.path} has no {_HARD[own.version]}")
    except OSError as error:
        with suppress(OSError):  # what is reported is why it began
            made.dissolve()
        raise UnsupportedError(f"{place} cannot hold limits: {error}", _REMEDY) from error
    return made


def remove_abandoned(files: GroupFiles, places: Iterable[Path]) -> list[Path]:
    """Remove groups whose processes were killed before they could; return which."""
    removed = []
    for path in _named(places):
        match = _NAME.fullmatch(path.name)
        if match is None or int(match[1]) != files.namespace():
            continue  # of another container: its processes cannot be seen here
        if files.started(int(match[2])) == int(match[3]):
            continue
        with suppress(OSError):  # another process is in it, or was faster
            files.remove(path)
            removed.append(path)
    return removed


def _named(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        with suppress(OSError):  # what may not be listed holds nothing of ours
            yield from sorted(place.glob(f"{PREFIX}-*"))


def _place(files: GroupFiles, own: ControlGroup) -> tuple[Path, ControlGroup | None]:
    """Return where a group can be made, and the own group if that must be emptied for it."""
    if own.version == 1:
        return own.path, None
    if not (own.path / "cgroup.events").exists():  # the root: the only one that may hold both
        if _passes_memory_on(own.path):
            return own.path, None
        raise UnsupportedError(
            f"{own.path} does not pass the memory controller on",
            f"let it do so: echo +memory > {own.path}/cgroup.subtree_control",
        )
    if "memory" not in content(own.path / "cgroup.controllers").split():
        raise UnsupportedError(f"{own.path} has no memory controller", _REMEDY)
    if own.processes() == [files.own_process]:
        return own.path, own
    if _NAME.fullmatch(own.path.name):
        raise UnsupportedError(
            f"this process is in {own.path}, a limit of another process", "let that one set it"
        )
    if own.path != own.top and _passes_memory_on(own.path.parent):
        return own.path.parent, None
    raise UnsupportedError(
        f"{own.path} holds other processes too, and none can be made beside it", _REMEDY
    )


def _passes_memory_on(path: Path) -> bool:
    return "memory" in content(path / "cgroup.subtree_control").split()
