"""What a run ran on and how it is run again: versions and processor, no names of machines, people or variables."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shlex
from pathlib import Path
from typing import Final

from featurestore.fingerprint import Json
from featurestore.limits import available_memory

_PROCESSOR: Final = Path("/proc/cpuinfo")


@functools.cache
def environment() -> dict[str, Json]:
    """Return Python, system, processor, memory it may take, and the version of every installed package.

    Nothing of ``os.environ`` and no path is in it.
    """
    installed = {
        one.metadata["Name"].lower(): one.version
        for one in importlib.metadata.distributions()
        if one.metadata["Name"]
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": processor(_PROCESSOR),
        "cpus": os.cpu_count(),
        "memory_bytes": available_memory(),
        "packages": dict(sorted(installed.items())),
    }


def processor(path: Path) -> str:
    """Return the name of the processor as the kernel has it, or what the platform says."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:  # a system without it
        return platform.processor()
    names = (one.partition(":")[2].strip() for one in lines if one.startswith("model name"))
    return next(names, platform.processor())


def command(target: Path) -> str:
    """Return the command, for a POSIX shell, that trains a finished run once more beside it."""
    again = target.with_name(f"{target.name}-again")
    return shlex.join(["python", "-m", "training", "fit", str(target), "--output", str(again)])
