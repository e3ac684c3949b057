"""The process beside this one that samples it: started, told things, and ended.

It stands apart from the terminal's process group, so that an interrupt of the work leaves it alive
to write what it has. Where it dies all the same, telling it something does nothing.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from os import getpid
from pathlib import Path
from typing import Any, Final

from featurestore.errors import InvalidInputError
from featurestore.profiling.probe import mapped_of, memory_of
from featurestore.profiling.records import Sample

# Isolated and without site-packages, whose start-up code costs memory and may do anything; the folders
# with this package and with the binding to GPUs are added behind the standard library.
_CODE: Final = (
    "import json, sys; folders, arguments = json.loads(sys.argv[1]); sys.path += folders; "
    "from featurestore.profiling.probe import main; main(*arguments)"
)
_END_SECONDS: Final = 60.0


class SamplingProcess:
    """Samples this process until :meth:`end`.

    Parameters
    ----------
    interval : float
        Seconds between samples, 0.001 to 60.
    children : bool
        Look at child processes and GPUs as well.
    path : Path, optional
        Where the recording goes; if not given, :meth:`end` returns it.

    Raises
    ------
    InvalidInputError
        If the interval is out of range.
    """

    def __init__(self, interval: float, children: bool, path: Path | None = None) -> None:
        self.check(interval)
        self.began = time.monotonic()
        place = "" if path is None else str(path)
        arguments = [getpid(), self.began, interval, children, place]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CODE, json.dumps([_folders(), arguments])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._tell_first_sample(children)

    def _tell_first_sample(self, mapped: bool) -> None:
        """Tell how it was before anything ran: the sampling process takes a moment to start."""
        try:
            anonymous, file_backed, shared = memory_of(getpid())
        except OSError:
            return  # a system without /proc
        mapped_bytes = mapped_of(getpid()) if mapped else 0
        self.tell("sample", Sample(0.0, anonymous, file_backed, shared, mapped_bytes, 0, 0))

    @staticmethod
    def check(interval: float) -> None:
        """Refuse an interval that is out of range."""
        if not 0.001 <= interval <= 60:
            raise InvalidInputError(
                f"a sampling interval of {interval} s", "choose one from 0.001 to 60 seconds"
            )

    def tell(self, *message: Any) -> None:
        """Send a message of ``Recording.tell``."""
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            return
        try:
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:
            return  # it was killed; the end says so

    def end(self) -> bytes | None:
        """End it and return what it wrote to stdout; None if it did not end well."""
        try:
            output, _ = self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return None
        return output if self._process.returncode == 0 else None


def _folders() -> list[str]:
    """Return where the sampling process finds this package and, if there, ``pynvml``."""
    found = [str(Path(__file__).parent.parent.parent)]
    binding = importlib.util.find_spec("pynvml")
    if binding is not None and binding.origin is not None:
        origin = Path(binding.origin)
        found.append(str(origin.parent.parent if origin.stem == "__init__" else origin.parent))
    return found
