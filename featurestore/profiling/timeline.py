"""A memory timeline: samples, the phases they fell into, and lines to compare them with.

Saved as JSON, drawn as a picture. Recording observes the events the core emits; the core knows
nothing of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from featurestore.errors import FormatError, MissingDependencyError
from featurestore.execution.events import Event, StepFinished, StepStarted, observed_by
from featurestore.fingerprint import Json
from featurestore.profiling.sampler import Measurement, Sample, measure

_FORMAT: Final = 1
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Phase:
    """A named stretch of a timeline, in seconds since its start."""

    label: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was measured.

    Parameters
    ----------
    measurement : Measurement
    phases : tuple of Phase
    lines : mapping of str to int
        Bytes to draw as horizontal lines: a memory limit, a projection.
    """

    measurement: Measurement
    phases: tuple[Phase, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        one = self.measurement
        return {
            "format": _FORMAT,
            "seconds": one.seconds,
            "start_bytes": one.start_bytes,
            "peak_bytes": one.peak_bytes,
            "peak_anonymous": one.peak_anonymous,
            "method": one.method,
            "samples": [[s.seconds, s.anonymous, s.file_backed, s.shared] for s in one.samples],
            "phases": [[phase.label, phase.start, phase.stop] for phase in self.phases],
            "lines": dict(self.lines),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timeline:
        if value.get("format") != _FORMAT:
            raise FormatError(
                f"a timeline of format {value.get('format')!r}; this package reads {_FORMAT}",
                "record it again, or upgrade featurestore",
            )
        measurement = Measurement(
            value["seconds"],
            value["start_bytes"],
            value["peak_bytes"],
            value["peak_anonymous"],
            value["method"],
            tuple(Sample(*one) for one in value["samples"]),
        )
        return cls(measurement, tuple(Phase(*one) for one in value["phases"]), value["lines"])

    def save(self, path: str | Path) -> None:
        """Write the timeline as JSON."""
        Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Timeline:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FormatError
            If the file is not a timeline of a known format.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is not a memory timeline: {error}") from error

    def draw(self, path: str | Path) -> None:
        """Draw the timeline into a picture (PNG, SVG or PDF by its suffix).

        Raises
        ------
        MissingDependencyError
            Without matplotlib.
        """
        figure = _figure()
        axes = figure.subplots()
        samples = self.measurement.samples
        seconds = [one.seconds for one in samples]
        bands = (
            [one.anonymous / _MIB for one in samples],
            [one.shared / _MIB for one in samples],
            [one.file_backed / _MIB for one in samples],
        )
        axes.stackplot(
            seconds, *bands, labels=("anonymous", "shared", "file-backed"),
            colors=("#3b6ea5", "#a9c4de", "#d9d9d9"),
        )  # fmt: skip
        for number, phase in enumerate(self.phases):
            shade = "#f2b134" if number % 2 else "#8ab17d"
            axes.axvspan(phase.start, phase.stop, color=shade, alpha=0.15, lw=0)
            axes.text(
                phase.start, 1.01, phase.label, fontsize=7, rotation=30,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        peak = self.measurement.peak_bytes
        for label, height in {f"peak ({self.measurement.method})": peak, **self.lines}.items():
            axes.axhline(height / _MIB, ls="--", lw=1, color="#9b2226")
            axes.text(
                0, height / _MIB, f" {label} {height / _MIB:,.0f} MiB", fontsize=8, va="bottom"
            )
        axes.set(xlabel="seconds", ylabel="resident memory (MiB)", ylim=(0, None))
        axes.legend(loc="lower right", fontsize=8)
        figure.savefig(path)


def _figure() -> Any:
    """Return an empty figure that needs no display and touches no global state of matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "drawing a timeline needs matplotlib", "pip install 'featurestore[plots]'"
        ) from error
    figure = Figure(figsize=(9, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def profile(
    path: str | Path, *, children: bool = False, lines: Mapping[str, int] | None = None
) -> Iterator[None]:
    """Record the memory of a block of code and its steps, and save it as JSON.

    Parameters
    ----------
    path : str or Path
        Written when the block ends, also if it raised.
    children : bool
        Add the memory of child processes.
    lines : mapping of str to int, optional
        Bytes to draw as lines, a memory limit for example.
    """
    began = time.monotonic()
    running: dict[int, StepStarted] = {}
    starts: dict[int, float] = {}
    phases: list[Phase] = []

    def observe(event: Event) -> None:
        now = time.monotonic() - began
        if isinstance(event, StepStarted):
            running[event.step], starts[event.step] = event, now
        elif isinstance(event, StepFinished) and event.step in running:
            label = running.pop(event.step).label
            phases.append(Phase(label, starts.pop(event.step), now))

    meter = measure(children=children)
    try:
        with meter, observed_by(observe):
            yield
    finally:
        Timeline(meter.result, tuple(phases), dict(lines or {})).save(path)
