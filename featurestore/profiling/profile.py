"""``fs.profile``: a block of code under observation, saved as a timeline and shown as a picture.

Always true: the recording is written when the block ends, raises, or the process is killed, and
written whole or not at all. What it costs this process is a few KiB; samples, phases and spans are
kept by the sampling process.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from featurestore.errors import InvalidInputError
from featurestore.execution.events import FRAMEWORK, STORE, observed_by, step
from featurestore.limits import memory_limit as default_limit
from featurestore.profiling.recorder import Recorder
from featurestore.profiling.sampling_process import SamplingProcess
from featurestore.profiling.timeline import Timeline
from featurestore.watermark import Watermark


class Profile:
    """A recording in progress, and its timeline after the block; see :func:`profile`."""

    def __init__(
        self,
        path: str | Path | None,
        interval: float,
        children: bool,
        memory_limit: int | str | None,
        lines: Mapping[str, int] | None,
    ) -> None:
        SamplingProcess.check(interval)
        if path is not None and not isinstance(path, str | Path):
            raise InvalidInputError(f"{path!r} is no path", "give the file to write: 'run.json'")
        self._path = None if path is None else _writable(Path(path))
        self._interval, self._children = interval, children
        self._head = {
            "memory_limit": default_limit(memory_limit),
            "lines": {str(name): int(value) for name, value in (lines or {}).items()},
        }
        self._mark = Watermark()
        self._process: SamplingProcess | None = None
        self._recorder: Recorder | None = None
        self._open = ExitStack()
        self._timeline: Timeline | None = None

    @property
    def timeline(self) -> Timeline:
        """What was recorded.

        Raises
        ------
        InvalidInputError
            If the block has not ended, or its sampling process was killed.
        """
        if self._timeline is None:
            raise InvalidInputError(
                "there is no timeline (yet)", "read it after the with block has ended"
            )
        return self._timeline

    @contextmanager
    def phase(self, label: str, kind: str = FRAMEWORK) -> Iterator[None]:
        """Name a stretch of the recording: training that the package does not see, for example.

        Parameters
        ----------
        label : str
        kind : str
            ``"framework"``: what a machine-learning framework takes, shown apart; or ``"store"``.

        Examples
        --------
        >>> with profile() as run, run.phase("my own training loop"):
        ...     block = bytearray(2**20)
        >>> [one.label for one in run.timeline.phases if one.kind == "framework"]
        ['my own training loop']
        """
        if not isinstance(label, str):
            raise InvalidInputError(f"a phase cannot be called {label!r}", "give it a name")
        if kind not in (STORE, FRAMEWORK):
            raise InvalidInputError(
                f"kind={kind!r} is no kind of phase", f"use {STORE!r} or {FRAMEWORK!r}"
            )
        with step(label, 0, kind=kind):
            yield

    def __enter__(self) -> Profile:
        if self._process is not None:
            raise InvalidInputError("this profile was used before", "call fs.profile again")
        self._process = SamplingProcess(self._interval, self._children, self._path)
        self._process.tell("head", self._head)
        self._mark.start()
        self._recorder = Recorder(self._process.tell, self._process.began)
        self._open.enter_context(observed_by(self._recorder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self._open.close()
        if self._process is None or self._recorder is None:
            return
        self._recorder.close()
        peak = self._mark.stop()
        self._process.tell(
            "head",
            {
                "ended": _ending(error),
                "seconds": time.monotonic() - self._process.began,
                "start_bytes": self._mark.start_bytes,
                "peak_bytes": peak,
                "method": "high-water mark" if self._mark.exact else "since process start",
            },
        )
        output = self._process.end()
        if output is None:
            warnings.warn(
                "the process that samples memory did not end well: there is no profile",
                RuntimeWarning,
                stacklevel=2,
            )
        elif self._path is None:
            self._timeline = Timeline.from_json(json.loads(output))
        else:
            self._timeline = Timeline.load(self._path)

    def __str__(self) -> str:
        return "a profile in progress" if self._timeline is None else str(self._timeline)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str | None:
        return None if self._timeline is None else self._timeline._repr_html_()

    def _repr_png_(self) -> bytes | None:
        return None if self._timeline is None else self._timeline._repr_png_()


def profile(
    path: str | Path | None = None,
    *,
    interval: float = 0.02,
    children: bool = True,
    memory_limit: int | str | None = None,
    lines: Mapping[str, int] | None = None,
) -> Profile:
    """Record the memory of a block of code, step by step, and save it as JSON.

    Parameters
    ----------
    path : str or Path, optional
        Written when the block ends, also if it raises or the process is killed. If not given, the
        recording is kept in memory.
    interval : float
        Seconds between samples, 0.001 to 60. Peaks of steps are exact whatever it is.
    children : bool
        Look at child processes and GPUs too.
    memory_limit : int or str, optional
        Drawn as a line where a step does not say under which limit it ran; the limit of a store that
        is given none, if not given.
    lines : mapping of str to int, optional
        More lines to draw: names and bytes.

    Returns
    -------
    Profile
        A context manager. Its ``timeline`` is a :class:`~featurestore.profiling.timeline.Timeline`
        after the block; a notebook shows it.

    Raises
    ------
    InvalidInputError
        If the file cannot be written; before the block begins.

    Examples
    --------
    >>> with profile() as run:
    ...     block = bytearray(64 * 2**20)
    >>> run.timeline.measurement.added_bytes > 60 * 2**20
    True
    """
    return Profile(path, interval, children, memory_limit, lines)


def _ending(error: BaseException | None) -> str:
    if isinstance(error, SystemExit):
        return f"exited with {error.code}" if error.code else "finished"
    return "finished" if error is None else f"raised {type(error).__name__}"


def _writable(path: Path) -> Path:
    """Return the absolute path of a file that can be written; nothing is left of the trial.

    A link is followed: what it names is written anew, not the link.
    """
    path = path.resolve()
    trial = path.with_name(f"{path.name}.{os.getpid()}.trial")
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        if path.exists() and not path.is_file():
            raise OSError(22, "it is no file but a device, a pipe or a socket")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InvalidInputError(
            f"the profile {path} cannot be written: {error.strerror}",
            "name a file in a folder that exists and is yours",
        ) from error
    return path
