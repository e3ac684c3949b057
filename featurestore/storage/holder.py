"""Which process holds something in a store, and whether it is provably gone.

A process is gone for sure only if it ran under this very kernel, in this very space of process
numbers, and its number is free now. Anything else (another machine, another container, a platform
that does not tell) is not proved: what such a process holds ends by its age.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptionError
from featurestore.fingerprint import Json


@dataclass(frozen=True, slots=True)
class Holder:
    """A process.

    Parameters
    ----------
    host : str
        Its machine's name, for people.
    process : int
    boot : str
        The kernel's boot id and the process name space; empty where they cannot be known.
    """

    host: str
    process: int
    boot: str

    @classmethod
    def this(cls) -> Holder:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), _boot())

    @property
    def is_this(self) -> bool:
        return self == Holder.this()

    @property
    def is_gone(self) -> bool:
        """Whether the process provably ended."""
        if not self.boot or self.boot != _boot():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is there and belongs to somebody else
            return False
        return False

    def to_json(self) -> dict[str, Json]:
        return {"host": self.host, "process": self.process, "boot": self.boot}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Holder:
        """Read what :meth:`to_json` gave.

        Raises
        ------
        CorruptionError
            If members are missing or have other types.
        """
        host, process, boot = value.get("host"), value.get("process"), value.get("boot")
        if not isinstance(process, int) or isinstance(process, bool) or not 0 < process < 2**31:
            raise CorruptionError(f"{process!r} is no number of a process", "delete the file")
        if not (isinstance(host, str) and isinstance(boot, str)):
            raise CorruptionError(f"{host!r} and {boot!r} name no machine", "delete the file")
        return cls(host, process, boot)


@cache
def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux: nothing can be proved, ages decide
        return ""
