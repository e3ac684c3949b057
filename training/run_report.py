"""A report of runs: what run folders and recorded memory say, as one HTML file.

Reads the small files of a folder only; of no run is a model loaded or code run. Always true: numbers in it
are finite or None, and curves have no more points than can be told apart.
"""

from __future__ import annotations

import csv
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.errors import CorruptionError
from featurestore.profiling.timeline import Timeline
from featurestore.report.page import Page, write_page
from training.durable import read_json

POINTS: Final = 600
"""Of a curve, at most."""
_REMEDY: Final = "name folders that training.fit made"


@dataclass(frozen=True, slots=True)
class Curve:
    """A number over epochs, rounds or seconds.

    Parameters
    ----------
    name : str
    points : tuple of (float, float or None)
        Where it was no finite number, None.
    """

    name: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run folder says.

    Parameters
    ----------
    name : str
        Of the folder.
    created, snapshot, task : str
    parts : mapping of str to mapping of str to float
        The metrics of each part.
    figures : tuple of (str, float)
        Other numbers of ``metrics.json``: epochs, seconds, rows per second.
    curves : tuple of Curve
        The columns of ``history.csv`` over epochs, from 1 on.
    memory : tuple of (str, int)
        Bytes, of ``memory.json``.
    configuration, environment : tuple of (str, str)
        By dotted name.
    """

    name: str
    created: str
    snapshot: str
    task: str
    parts: Mapping[str, Mapping[str, float | None]]
    figures: tuple[tuple[str, float | None], ...]
    curves: tuple[Curve, ...]
    memory: tuple[tuple[str, int], ...]
    configuration: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Memory as it was recorded.

    Parameters
    ----------
    name : str
        Of the file.
    ended : str
    limit, peak : int
        Bytes; a limit of 0 was none.
    curves : tuple of Curve
        Bytes over seconds.
    phases : tuple of (str, float, float, int, int)
        Label, start and stop in seconds, peak and projected bytes.
    """

    name: str
    ended: str
    limit: int
    peak: int
    curves: tuple[Curve, ...]
    phases: tuple[tuple[str, float, float, int, int], ...]


def report(
    runs: Sequence[str | Path], path: str | Path, timelines: Sequence[str | Path] = ()
) -> Path:
    """Write one HTML file about runs, which needs nothing but a browser; return its path.

    Parameters
    ----------
    runs : sequence of path
        Run folders, the one that others are compared with first.
    path : path
        Replaced if it is there.
    timelines : sequence of path
        What ``--profile`` recorded.

    Raises
    ------
    CorruptionError, FormatError
        If a folder is no run, or a file no recording.
    """
    facts = {
        "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "runs": [asdict(run_facts(Path(one))) for one in runs],
        "timelines": [asdict(memory_facts(Path(one))) for one in timelines],
    }
    return write_page(Page("Training runs", "run_report", facts, home="training"), path)


def run_facts(folder: Path) -> RunFacts:
    """Return what a run folder says.

    Raises
    ------
    CorruptionError
        If it is none, or a file in it cannot be read.
    """
    run, metrics, config, memory, environment = (
        read_json(folder / f"{name}.json", _REMEDY)
        for name in ("run", "metrics", "config", "memory", "environment")
    )
    parts = {
        str(part): {str(name): _finite(value) for name, value in values.items()}
        for part, values in metrics.get("parts", {}).items()
    }
    figures = [
        (name, _finite(value)) for name, value in metrics.items() if isinstance(value, int | float)
    ]
    return RunFacts(
        folder.resolve().name,
        str(run.get("created", "")),
        str(run.get("snapshot", "")),
        str(metrics.get("task", "")),
        parts,
        tuple(figures),
        curves(folder / "history.csv"),
        tuple((name, value) for name, value in memory.items() if isinstance(value, int)),
        tuple(flat(config)),
        tuple(flat(environment)),
    )


def curves(path: Path) -> tuple[Curve, ...]:
    """Return the columns of a history over its lines.

    Raises
    ------
    CorruptionError
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {
            name: [_finite(float(row[name])) if row[name] else None for row in rows]
            for name in (rows[0] if rows else {})
        }
    except (OSError, ValueError, TypeError) as error:
        raise CorruptionError(f"{path} cannot be read: {error}", _REMEDY) from error
    return tuple(
        Curve(name, thinned([(at + 1.0, value) for at, value in enumerate(values)]))
        for name, values in columns.items()
        if name != "epoch"
    )


def memory_facts(path: Path) -> MemoryFacts:
    """Return what a recording says."""
    timeline = Timeline.load(path)
    samples = timeline.measurement.samples
    kinds = {
        "held": [(one.seconds, float(one.held)) for one in samples],
        "mapped files": [(one.seconds, float(one.mapped)) for one in samples],
        "GPU": [(one.seconds, float(one.gpu)) for one in samples],
    }
    limits = [timeline.memory_limit, *(one.memory_limit for one in timeline.phases)]
    return MemoryFacts(
        path.name,
        timeline.ended,
        max(limits),
        timeline.measurement.peak_bytes,
        tuple(
            Curve(name, thinned(points))
            for name, points in kinds.items()
            if name == "held" or any(value for _, value in points)
        ),
        tuple(
            (one.label, one.start, one.stop, one.peak_bytes, one.projected_bytes)
            for one in timeline.phases
        ),
    )


def thinned(
    points: Sequence[tuple[float, float | None]], most: int = POINTS
) -> tuple[tuple[float, float | None], ...]:
    """Return no more than ``most`` points: of each run of neighbours the least and the largest.

    Examples
    --------
    >>> thinned([(0, 1.0), (1, 5.0), (2, 2.0), (3, 0.0)], most=2)
    ((1, 5.0), (3, 0.0))
    """
    if len(points) <= most:
        return tuple(points)
    runs = max(1, most // 2)
    kept: list[tuple[float, float | None]] = []
    for one in range(runs):
        some = points[len(points) * one // runs : len(points) * (one + 1) // runs]
        known = [(value, at) for at, (_, value) in enumerate(some) if value is not None]
        chosen = {min(known)[1], max(known)[1]} if known else {0}
        kept += [some[at] for at in sorted(chosen)]
    return tuple(kept)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested values by dotted names, without those that are null."""
    found: list[tuple[str, str]] = []
    for name, one in value.items():
        if isinstance(one, Mapping):
            found += flat(one, f"{before}{name}.")
        elif isinstance(one, list):
            found.append((f"{before}{name}", ", ".join(map(str, one))))
        elif one is not None:
            found.append((f"{before}{name}", str(one)))
    return found
