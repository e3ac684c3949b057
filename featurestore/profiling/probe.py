"""The sampling process: reads another process's memory from ``/proc`` and writes it to stdout.

Run as a script in an interpreter of its own, so that it neither waits for the measured process's
locks nor shows up in its memory. It therefore imports the standard library only. Each line is
``monotonic seconds, anonymous, file-backed, shared`` (bytes); it ends when its stdin is closed or
the process is gone.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Final

_FIELDS: Final = (b"RssAnon:", b"RssFile:", b"RssShmem:")


def memory_of(pid: int) -> tuple[int, int, int]:
    """Return a process's resident anonymous, file-backed and shared bytes.

    Raises
    ------
    OSError
        If there is no such process, or no ``/proc``.
    """
    found = dict.fromkeys(_FIELDS, 0)
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        name, _, rest = line.partition(b"\t")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    anonymous, file_backed, shared = found.values()
    return anonymous, file_backed, shared


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


def memory_of_tree(pid: int, without: int) -> tuple[int, int, int]:
    """Return the sums of a process and all processes below it, except one."""
    total = list(memory_of(pid))
    for child in children_of(pid):
        if child != without:
            try:
                more = memory_of(child)
            except OSError:
                continue  # it has ended
            total = [a + b for a, b in zip(total, more, strict=True)]
    return total[0], total[1], total[2]


def main(pid: int, interval: float, children: bool) -> None:
    """Write samples until stdin is closed."""
    while True:
        try:
            sample = memory_of_tree(pid, os.getpid()) if children else memory_of(pid)
        except OSError:
            return
        sys.stdout.write(f"{time.monotonic():.6f} {sample[0]} {sample[1]} {sample[2]}\n")
        sys.stdout.flush()
        if select.select([sys.stdin], [], [], interval)[0]:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "1")
