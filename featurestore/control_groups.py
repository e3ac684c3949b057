"""The memory control groups of Linux, as a process sees its own: where its group lies, and what it allows.

A group's limit holds for all groups below it, so what a process may use is the least of all from its own
up to the top. A container may hide the upper ones, or show its own group as the top; what cannot be seen
cannot be read, and nothing here fails because of it: a missing, unreadable or odd file sets no limit.

Source: the kernel's documents cgroup-v1/memory.rst and cgroup-v2.rst, and cgroups(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

# Above memory.high a group is slowed down until it fits: no more than that is of use.
_LIMITS: Final = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_BYTES: Final = re.compile("[1-9][0-9]{0,19}")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A memory control group.

    Parameters
    ----------
    version : {1, 2}
    path : Path
        Its directory.
    top : Path
        The directory of the uppermost group that can be seen.
    """

    version: int
    path: Path
    top: Path

    def lineage(self) -> Iterator[ControlGroup]:
        """Yield this group and those above it, as far as they can be seen."""
        path = self.path
        yield self
        while path != self.top:
            path = path.parent
            yield ControlGroup(self.version, path, self.top)

    def limits(self) -> Iterator[int]:
        """Yield the limits in bytes of this group and of those above it; there may be none."""
        for group in self.lineage():
            for name in _LIMITS[group.version]:
                text = content(group.path / name)
                if _BYTES.fullmatch(text):
                    yield int(text)

    def processes(self) -> list[int]:
        """Return the ids of the processes in this very group; none where they cannot be read."""
        return [int(one) for one in content(self.path / "cgroup.procs").split() if one.isdigit()]


def own_group(root: Path = Path("/"), process: int | str = "self") -> ControlGroup | None:
    """Return a process's memory control group.

    Parameters
    ----------
    root : Path
        Where the system's files begin.
    process : int or str
        A process id.

    Returns
    -------
    ControlGroup or None
        The lowest one that can be seen; None where there is no such thing.
    """
    for version, inside in _memberships(content(root / f"proc/{process}/cgroup")):
        shown = _mounts(content(root / f"proc/{process}/mountinfo"), version)
        for visible_from, mount in shown:
            top = root / mount.lstrip("/")
            try:
                path = top / PurePosixPath(inside).relative_to(visible_from)
            except ValueError:
                continue  # it shows another part of the hierarchy
            if ".." not in path.parts and path.is_dir():
                return ControlGroup(version, path, top)
        if shown:
            # A container that shows its own group as the top, but not under which name.
            top = root / shown[0][1].lstrip("/")
            return ControlGroup(version, top, top)
    return None


def content(path: Path) -> str:
    """Return what a file of the kernel says; nothing if it is not there or may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _memberships(text: str) -> list[tuple[int, str]]:
    """Return the version and path of the groups that may limit memory: that of version 1 first.

    Where the memory controller is used by version 1, version 2 has none.
    """
    found: list[tuple[int, str]] = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found.insert(0, (1, path))
        elif number == "0" and not controllers:
            found.append((2, path))
    return found[:1] if found and found[0][0] == 1 else found


def _mounts(text: str, version: int) -> list[tuple[str, str]]:
    """Return, for each mount of the hierarchy, which of its groups it shows, and where."""
    found = []
    for line in text.splitlines():
        mount, separator, system = line.partition(" - ")
        before, after = mount.split(" "), system.split(" ")
        if not separator or len(before) < 5 or len(after) < 3:
            continue
        first = after[0] == "cgroup" and "memory" in after[2].split(",")
        if first if version == 1 else after[0] == "cgroup2":
            found.append((_plain(before[3]), _plain(before[4])))
    return found


def _plain(text: str) -> str:
    """Return a path without the escapes that stand for blanks."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
