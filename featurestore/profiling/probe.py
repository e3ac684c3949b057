"""The sampling process: reads another process's memory from ``/proc`` and keeps what it is told.

It runs in an interpreter of its own, so that it neither waits for the measured process's locks nor
shows up in its memory, and outlives it: a recording is there after a kill as well. It imports the
standard library, and modules of this package that do the same; ``gpu`` loads a binding where there
is one. What it is told comes as JSON lines on stdin; when that is closed, or the process is gone, it
writes the recording, to a file or to stdout, and ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from featurestore.profiling.gpu import GpuMemory
from featurestore.profiling.recording import Recording
from featurestore.profiling.records import Sample

_FIELDS: Final = (b"RssAnon:", b"RssFile:", b"RssShmem:")
_LIBRARY: Final = b".so"
# How much file-backed memory must have moved for a look at every mapping, which takes milliseconds.
_LOOK_BYTES: Final = 2**20
# Every sampling process has this in its command.
_MARK: Final = __name__.encode()
_READ_BYTES: Final = 2**16
_LAST_WORDS_SECONDS: Final = 1.0
# Mapped memory that is no file's: it counts as shared.
_NO_FILES: Final = (b"/dev/shm/", b"/memfd:", b"/dev/zero", b"/SYSV")


def memory_of(pid: int) -> tuple[int, int, int]:
    """Return a process's resident anonymous, file-backed and shared bytes.

    Raises
    ------
    OSError
        If there is no such process (any more), or no ``/proc``.
    """
    found: dict[bytes, int] = {}
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        name, _, rest = line.partition(b"\t")
        if name in _FIELDS:
            found[name] = int(rest.split()[0]) * 1024
    if not found:
        raise ProcessLookupError(f"process {pid} has ended and nobody asked how")
    anonymous, file_backed, shared = (found.get(one, 0) for one in _FIELDS)
    return anonymous, file_backed, shared


def mapped_of(pid: int) -> int:
    """Return the resident bytes of a process's mapped files that hold no code; 0 if not told.

    The kernel takes such pages back when it needs memory. Code is every file that is mapped as
    executable, or is named as a library.
    """
    sizes: dict[bytes, int] = {}
    code: set[bytes] = set()
    path = b""
    try:
        for line in Path(f"/proc/{pid}/smaps").read_bytes().splitlines():
            if line.startswith(b"Rss:"):
                if path.startswith(b"/"):
                    sizes[path] = sizes.get(path, 0) + int(line.split()[1]) * 1024
            elif b"-" in line.partition(b" ")[0]:  # the head of a mapping: addresses, rights, path
                words = line.split(maxsplit=5)
                path = words[5] if len(words) == 6 else b""
                path = b"" if path.startswith(_NO_FILES) else path
                if b"x" in words[1] or _LIBRARY in path.rpartition(b"/")[2]:
                    code.add(path)
            elif line.startswith(b"Anonymous:") and path.startswith(b"/"):
                sizes[path] -= int(line.split()[1]) * 1024  # written to: a copy, not the file's
    except OSError:
        return 0  # a kernel that keeps no such list, or a process of somebody else's
    return sum(size for one, size in sizes.items() if one not in code)


def children_of(pid: int) -> list[int]:
    """Return the ids of all processes below this one; none where the kernel does not tell."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            direct = [int(one) for one in (task / "children").read_bytes().split()]
        except OSError:
            continue  # the thread has ended, or the kernel keeps no such list
        for child in direct:
            found += [child, *_descendants(child)]
    return found


def _descendants(pid: int) -> list[int]:
    try:
        return children_of(pid)
    except OSError:
        return []  # it has ended


class Probe:
    """Reads the memory of a process, its children and its GPUs, again and again."""

    def __init__(self, pid: int, children: bool, gpu: GpuMemory | None = None) -> None:
        self._pid, self._children, self._gpu = pid, children, gpu
        self._mapped = self._looked_at = 0
        self._share, self._look_after = 0.0, 0.0
        # Children, and whether they count; None for those seen once.
        self._counts: dict[int, bool | None] = {}
        # Children that run another program than their parent.
        self._on_its_own: set[int] = set()

    def sample(self, recording: Recording, seconds: float) -> None:
        """Add one sample.

        Raises
        ------
        OSError
            If the process is gone.
        """
        anonymous, file_backed, shared = memory_of(self._pid)
        mapped = self._mapped_part(file_backed)
        pids, children = [self._pid], 0
        for child in self._known_children():
            try:
                held = self._held_by(child)
            except OSError:
                continue  # it has ended
            pids.append(child)
            children += held
            recording.add_child(child, held, partial(_name_of, child))
        gpu = self._gpu.used_by(pids) if self._gpu is not None else 0
        recording.add_sample(Sample(seconds, anonymous, file_backed, shared, mapped, children, gpu))

    def _known_children(self) -> list[int]:
        """Return the children that were there at the last look too, without sampling processes."""
        now = children_of(self._pid) if self._children else []
        for child in now:
            if self._counts.get(child, False) is None:
                self._counts[child] = _MARK not in _command_of(child)
        self._counts = {child: self._counts.get(child) for child in now}
        self._on_its_own &= set(now)
        return [child for child in now if self._counts[child]]

    def _held_by(self, child: int) -> int:
        """Return what a child holds and its parent does not.

        From its birth to its program's start, a child shows its parent's memory as its own: it may be
        that very memory, which its size tells, or a copy of which few pages are its own.
        """
        if child not in self._on_its_own:
            parent = _parent_of(child)
            if _command_of(child) == _command_of(parent):
                before, size, after = _size_of(parent), _size_of(child), _size_of(parent)
                return 0 if size in (before, after) else _private_of(child)
            self._on_its_own.add(child)
        return sum(memory_of(child))

    def _mapped_part(self, file_backed: int) -> int:
        """Return how much of the file-backed memory is mapped data.

        Looks again when that memory has moved, as often as a tenth of the time allows. Until then
        what moved is taken to be what moved before the last look.
        """
        moved = file_backed - self._looked_at
        began = time.monotonic()
        if abs(moved) >= _LOOK_BYTES and began >= self._look_after:
            before, self._mapped = self._mapped, mapped_of(self._pid)
            self._share = min(1.0, max(0.0, (self._mapped - before) / moved))
            self._looked_at, moved = file_backed, 0
            ended = time.monotonic()
            self._look_after = ended + 9 * (ended - began)
        return max(0, min(file_backed, self._mapped + int(self._share * moved)))


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # it has ended


def _parent_of(pid: int) -> int:
    # The name, in parentheses, may hold anything.
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def _size_of(pid: int) -> int:
    """Return the pages that a process has addresses for."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[0])


def _private_of(pid: int) -> int:
    """Return the resident bytes that no other process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    return sum(int(one.split()[1]) * 1024 for one in lines if one.startswith(b"Private_"))


def _name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""  # it has ended


class _Lines:
    """The lines that arrive on stdin, without ever waiting for one longer than asked."""

    def __init__(self) -> None:
        self._rest = b""
        self.closed = False

    def within(self, seconds: float) -> Iterator[str]:
        """Yield the lines that arrive in a time, which ends early when stdin is closed."""
        until = time.monotonic() + seconds
        left = seconds
        while not self.closed and left > 0:
            if select.select([sys.stdin], [], [], left)[0]:
                data = os.read(sys.stdin.fileno(), _READ_BYTES)
                self.closed = not data
                *lines, self._rest = (self._rest + data).split(b"\n")
                yield from (one.decode() for one in lines)
            left = until - time.monotonic()


def main(pid: int, began: float, interval: float, children: bool, path: str) -> None:
    """Record until stdin is closed or the process is gone; then write the recording.

    Parameters
    ----------
    pid : int
    began : float
        The moment that counts as second 0, of ``time.monotonic``.
    interval : float
        Seconds between samples.
    children : bool
        Look at the processes below, and at GPUs, too.
    path : str
        Where to write; stdout if empty.
    """
    recording, lines = Recording(), _Lines()
    gpu = GpuMemory.find() if children else None
    probe = Probe(pid, children, gpu)
    while not lines.closed:
        try:
            probe.sample(recording, time.monotonic() - began)
        except OSError:
            if Path("/proc/self/status").exists():
                break  # the process is gone; elsewhere there is no /proc, and nothing to sample
        for line in lines.within(interval):
            recording.tell(json.loads(line))
    for line in lines.within(_LAST_WORDS_SECONDS):
        recording.tell(json.loads(line))
    recording.tell(["head", {"gpu": "" if gpu is None else gpu.method}])
    text = json.dumps(recording.to_json(time.monotonic() - began))
    if not path:
        sys.stdout.write(text)
        return
    unfinished = Path(f"{path}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
