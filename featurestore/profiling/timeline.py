"""A memory timeline: samples, the phases they fell into, and what they are to be compared with.

A value that is saved as JSON, and shows itself as a picture. Files of format 1, which knew samples,
labels of phases and lines only, still load. Always true of a loaded timeline: its numbers are finite
and not negative, its phases end after they begin, and its spans name phases that are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from featurestore.errors import FormatError, InvalidInputError
from featurestore.fingerprint import Json
from featurestore.profiling.recording import FORMAT
from featurestore.profiling.records import Phase, Sample, Span
from featurestore.profiling.sampler import Measurement

_OLD_FORMAT: Final = 1
_REMEDY: Final = "record it again"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Child:
    """A process below the one that was measured, and the most it held."""

    pid: int
    name: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was measured.

    Parameters
    ----------
    measurement : Measurement
    phases : tuple of Phase
        By their start.
    lines : mapping of str to int
        Bytes to draw as further horizontal lines.
    spans : tuple of Span
    children : tuple of Child
        The largest first.
    memory_limit : int
        Where no phase says another one; 0 if there is none.
    ended : str
        ``"finished"``, ``"raised ValueError"``, or ``"killed"``.
    gpu : str
        ``"own"`` if GPU memory is what the process held, ``"device"`` if it is how much more of the
        devices was in use than at the start, by anybody; empty without a GPU.
    """

    measurement: Measurement
    phases: tuple[Phase, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    children: tuple[Child, ...] = ()
    memory_limit: int = 0
    ended: str = "finished"
    gpu: str = ""

    def to_json(self) -> dict[str, Json]:
        one = self.measurement
        return {
            "format": FORMAT,
            "ended": self.ended,
            "seconds": one.seconds,
            "start_bytes": one.start_bytes,
            "peak_bytes": one.peak_bytes,
            "peaks": {"anonymous": one.peak_anonymous},
            "method": one.method,
            "memory_limit": self.memory_limit,
            "lines": dict(self.lines),
            "gpu": self.gpu,
            "samples": [list(sample) for sample in one.samples],
            "phases": [asdict(phase) for phase in self.phases],
            "spans": [asdict(span) for span in self.spans],
            "children": [asdict(child) for child in self.children],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timeline:
        """Return a timeline from its JSON.

        Raises
        ------
        FormatError
            If it is none, or of an unknown format.
        """
        try:
            version = value["format"]
            if version not in (_OLD_FORMAT, FORMAT):
                raise FormatError(
                    f"a timeline of format {version!r}; this package reads {_OLD_FORMAT} and {FORMAT}",
                    "record it again, or upgrade featurestore",
                )
            found = _from_first(value) if version == _OLD_FORMAT else _from_second(value)
            _check(found)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise FormatError(f"this is not a memory timeline: {error!r}", _REMEDY) from error
        return found

    def save(self, path: str | Path) -> None:
        """Write the timeline as JSON: whole or not at all.

        Raises
        ------
        InvalidInputError
            If something is there that is no file, as a device; it would be replaced.
        """
        place = Path(path).resolve()
        if place.exists() and not place.is_file():
            raise InvalidInputError(f"{path} is no file", "give the path of a file, or of none")
        unfinished = Path(f"{place}.{os.getpid()}")
        unfinished.write_text(json.dumps(self.to_json()), encoding="utf-8")
        unfinished.replace(place)

    @classmethod
    def load(cls, path: str | Path) -> Timeline:
        """Read what :meth:`save` or a profile wrote.

        Raises
        ------
        InvalidInputError
            If there is no such file.
        FormatError
            If the file is not a timeline of a known format.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputError(
                f"the profile {path} cannot be read: {error.strerror}", "name a recorded file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path} is not a memory timeline: {error}", _REMEDY) from error
        return cls.from_json(value)

    def draw(self, path: str | Path) -> None:
        """Draw the timeline into a file: SVG, HTML, PNG or PDF by its suffix.

        Raises
        ------
        InvalidInputError
            If the suffix is another one.
        MissingDependencyError
            For PNG and PDF without matplotlib.
        """
        from featurestore.profiling.drawing import draw

        draw(self, Path(path))

    def __str__(self) -> str:
        from featurestore.profiling.text import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from featurestore.profiling.drawing import as_html

        return as_html(self)

    def _repr_png_(self) -> bytes | None:
        from featurestore.profiling.drawing import as_png

        return as_png(self)


def _from_first(value: Mapping[str, Any]) -> Timeline:
    """Return a timeline of format 1."""
    return Timeline(
        Measurement(
            _size(value["seconds"]),
            _bytes(value["start_bytes"]),
            _bytes(value["peak_bytes"]),
            _bytes(value["peak_anonymous"]),
            str(value["method"]),
            tuple(_sample(one) for one in value["samples"]),
        ),
        tuple(Phase(str(a), _size(b), _size(c)) for a, b, c in value["phases"]),
        {str(name): _bytes(one) for name, one in value["lines"].items()},
    )


def _from_second(value: Mapping[str, Any]) -> Timeline:
    return Timeline(
        Measurement(
            _size(value["seconds"]),
            _bytes(value["start_bytes"]),
            _bytes(value["peak_bytes"]),
            _bytes(value["peaks"].get("anonymous", 0)),
            str(value["method"]),
            tuple(_sample(one) for one in value["samples"]),
        ),
        tuple(_record(Phase, one) for one in value["phases"]),
        {str(name): _bytes(one) for name, one in value["lines"].items()},
        tuple(_record(Span, one) for one in value["spans"]),
        tuple(_record(Child, one) for one in value["children"]),
        _bytes(value["memory_limit"]),
        str(value["ended"]),
        str(value["gpu"]),
    )


def _check(timeline: Timeline) -> None:
    samples = timeline.measurement.samples
    if any(a.seconds > b.seconds for a, b in pairwise(samples)):
        raise ValueError("its samples are not in order")
    if any(one.mapped > one.file_backed for one in samples):
        raise ValueError("a sample has more mapped than file-backed memory")
    stretches: list[Phase | Span] = [*timeline.phases, *timeline.spans]
    if any(one.stop < one.start for one in stretches):
        raise ValueError("a phase ends before it begins")
    if any(one.phase >= len(timeline.phases) for one in timeline.spans):
        raise ValueError("a span is in no phase")


def _sample(one: Any) -> Sample:
    seconds, *sizes = one
    return Sample(_size(seconds), *(_bytes(size) for size in sizes))


def _record(kind: type[T], value: Mapping[str, Any]) -> T:
    """Return a dataclass from its members, each of the type that it says."""
    readers: dict[str, Callable[[Any], Any]] = {
        "float": _size,
        "int": _bytes,
        "str": str,
        "bool": bool,
    }
    return kind(
        **{
            one.name: readers[str(one.type)](value[one.name])
            for one in fields(kind)  # type: ignore[arg-type]
        }
    )


def _size(value: Any) -> float:
    """Return a number that a timeline may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e300:
        raise ValueError(f"{value!r} is no time and no size")
    return float(value)


def _bytes(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return int(_size(value))
