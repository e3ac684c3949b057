"""The runs of a folder beside each other: finished, unfinished and broken ones, sorted.

Reads the small files of each run folder only; of no run is a model loaded, a checksum computed or code
run, so that hundreds are listed at once. Always true: what is wrong with one run is said in its line and
keeps no other from being listed. Trade-off: a file that was altered but is still there is not noticed
here; ``RunBundle.load`` checks the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from featurestore.errors import CorruptionError, FormatError, InvalidInputError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.markup import html_table
from featurestore.report.tables import text_table
from training.durable import read_json
from training.run_folder import RUN_VERSION, RUNS
from training.unfinished import UNFINISHED

State = Literal["complete", "unfinished", "broken"]
SORTS: Final = ("created", "name", "seconds", "epochs")
"""What runs are sorted by beside their metrics."""
_LARGER_IS_BETTER: Final = ("auc", "accuracy", "ndcg")
_OURS: Final = ("config.json", "metrics.json", "pipeline.json")
"""A folder without ``run.json`` that has one of these was a run; any other is none of ours."""
_COMPARISON: Final = "compare.json"
"""Is in the folder of a comparison, beside ``runs``."""
_FACTS: Final = ("state", "created", "table", "model", "task", "epochs", "seconds")


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A line of :func:`list_runs`.

    Parameters
    ----------
    name : str
        Of the folder that the run is in, or is to become; after that of its comparison, as
        ``news/0-fold0-seed0``, where it was listed with others.
    path : Path
        Where its files are now; of an unfinished run the hidden folder with its checkpoints.
    state : {"complete", "unfinished", "broken"}
    problem : str, optional
        Of a broken run, what is wrong.
    created, table, model, task : str, optional
        ``created`` in ISO 8601 and UTC.
    epochs, seconds : float, optional
    metrics : mapping of str to float or None
        By part and name, as ``valid.auc``; None where it is not defined.
    """

    name: str
    path: Path
    state: State
    problem: str | None = None
    created: str | None = None
    table: str | None = None
    model: str | None = None
    task: str | None = None
    epochs: float | None = None
    seconds: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Return what is known of it, with ``null`` where nothing is."""
        facts: dict[str, Json] = {one: getattr(self, one) for one in _FACTS}
        return {
            "name": self.name,
            "path": str(self.path),
            **facts,
            "metrics": dict(self.metrics),
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class RunList:
    """Runs in order.

    Parameters
    ----------
    folder : Path
    runs : tuple of ListedRun
    sort : str
        What they are sorted by.
    """

    folder: Path
    runs: tuple[ListedRun, ...]
    sort: str = "created"

    def to_json(self) -> list[Json]:
        return [one.to_json() for one in self.runs]

    def to_tsv(self) -> str:
        """Return a head and a line per run, separated by tabs, numbers in full.

        What is not known is empty. Characters that a terminal would obey are replaced.
        """
        metrics = list(dict.fromkeys(name for one in self.runs for name in one.metrics))
        lines: list[list[object]] = [["name", *_FACTS, *metrics, "path", "problem"]]
        for one in self.runs:
            cells = [one.name, *(getattr(one, fact) for fact in _FACTS)]
            lines.append(
                [*cells, *(one.metrics.get(name) for name in metrics), one.path, one.problem]
            )
        return "\n".join(
            "\t".join("" if cell is None else _printable(cell) for cell in line) for line in lines
        )

    def __str__(self) -> str:
        """Return a table for people: metrics of the validation part, and what it is sorted by."""
        if not self.runs:
            return f"{_printable(self.folder)} holds no runs"
        notes = [
            f"{_printable(one.name)}: {_printable(one.problem)}" for one in self.runs if one.problem
        ]
        return "\n".join([text_table(*self._table()), *notes])

    def _repr_html_(self) -> str:
        head, rows = self._table()
        told = [
            [*row, _printable(one.problem or "")] for row, one in zip(rows, self.runs, strict=True)
        ]
        return html_table(f"runs in {_printable(self.folder)}", [*head, "problem"], told)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows for people."""
        names = dict.fromkeys(name for one in self.runs for name in one.metrics)
        shown = [name for name in names if name.startswith("valid.") and name != "valid.rows"]
        by = _metric_name(self.sort, names)
        shown += [by] if by is not None and by not in shown else []
        head = ["run", "state", "created", "table", "model", "epochs", "seconds", *shown]
        rows = [
            [
                _printable(one.name),
                one.state,
                _printable(one.created or ""),
                _printable(one.table or ""),
                _printable(one.model or ""),
                _short(one.epochs),
                _short(one.seconds),
                *(_short(one.metrics.get(name)) for name in shown),
            ]
            for one in self.runs
        ]
        return head, rows


def list_runs(folder: str | Path = RUNS, sort: str = "created") -> RunList:
    """Return the runs of a folder.

    Parameters
    ----------
    folder : path
        Its folders are looked at, not what is in those, but for the runs of comparisons; a run folder
        itself is a list of one, and of a comparison folder its runs are listed.
    sort : str
        A metric, as ``valid.auc``, or ``auc``, which is that of the validation part: best first
        (largest for AUC, accuracy and NDCG, least for losses and errors); ``created``: newest first;
        ``name``, ``seconds``, ``epochs``: least first. Runs that lack it come last, by name.

    Returns
    -------
    RunList

    Raises
    ------
    NotFoundError
        If there is no such folder.
    InvalidInputError
        If no run has what they are to be sorted by, or the folder cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder}",
            "name the folder that holds run folders; 'python -m training fit' makes them in runs",
        )
    try:
        within = folder / "runs" if _is_comparison(folder) else folder
        paths = [folder] if (folder / "run.json").exists() else sorted(within.iterdir())
        found = [one for path in paths for one in _looked_at(path)]
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be read: {error}", "name a folder that can be"
        ) from error
    return RunList(folder, tuple(_sorted(found, sort)), sort)


def _looked_at(path: Path) -> Iterator[ListedRun]:
    """Yield what a folder is a run of, if it is one."""
    hidden = path.name.startswith(".")
    try:
        if not path.is_dir():
            return
        if hidden and path.name.endswith(UNFINISHED):
            name = path.name[1 : -len(UNFINISHED)]
            yield _unfinished(ListedRun(name, path, "unfinished"))
        elif not hidden and any((path / one).exists() for one in ("run.json", *_OURS)):
            yield _complete(ListedRun(path.resolve().name, path, "complete"))
        elif not hidden and _is_comparison(path):
            for below in sorted((path / "runs").iterdir()):
                for one in _looked_at(below):
                    yield replace(one, name=f"{path.name}/{one.name}")
    except (CorruptionError, FormatError, RecursionError, OSError) as error:
        yield ListedRun(path.resolve().name, path, "broken", str(error).partition("\n")[0])


def _is_comparison(path: Path) -> bool:
    """Return whether a folder is that of a comparison which has begun with its runs."""
    return (path / _COMPARISON).is_file() and (path / "runs").is_dir()


def _unfinished(run: ListedRun) -> ListedRun:
    """Return an unfinished run with what its configuration says; one that has just begun has none."""
    path = run.path / "config.json"
    config = read_json(path) if path.exists() else {}
    return replace(run, **_of_config(config))


def _complete(run: ListedRun) -> ListedRun:
    """Return a run with all that its files say.

    Raises
    ------
    CorruptionError, FormatError
    """
    path = run.path
    if not (path / "run.json").exists():
        raise CorruptionError(f"{path} has no run.json")
    info = read_json(path / "run.json")
    version = info.get("version")
    if not isinstance(version, int) or version > RUN_VERSION:
        raise FormatError(f"format version {version!r}, this package reads up to {RUN_VERSION}")
    files = info.get("files")
    if not isinstance(files, dict):
        raise CorruptionError("run.json names no files")
    missing = [name for name in files if not (path / name).is_file()]
    if missing:
        raise CorruptionError(f"files are missing: {', '.join(missing)}")
    metrics = read_json(path / "metrics.json")
    parts = metrics.get("parts")
    if not isinstance(parts, dict) or not all(isinstance(one, dict) for one in parts.values()):
        raise CorruptionError("metrics.json holds no parts")
    return replace(
        run,
        created=_text(info.get("created")),
        task=_text(metrics.get("task")),
        epochs=_number(metrics.get("epochs")),
        seconds=_number(metrics.get("seconds")),
        metrics={
            f"{part}.{name}": _number(value)
            for part, values in parts.items()
            for name, value in values.items()
        },
        **_of_config(read_json(path / "config.json")),
    )


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    data, model = config.get("data"), config.get("model")
    return {
        "table": _text(data.get("table")) if isinstance(data, dict) else None,
        "model": _text(model.get("kind")) if isinstance(model, dict) else None,
    }


def _sorted(runs: Sequence[ListedRun], sort: str) -> list[ListedRun]:
    """Return runs by what they are to be sorted by, those that lack it last."""
    names = {name for one in runs for name in one.metrics}
    metric = _metric_name(sort, names)
    if metric is None and sort not in SORTS and runs:
        raise InvalidInputError(
            f"no run has {sort!r} to be sorted by", f"sort by one of {[*SORTS, *sorted(names)]}"
        )
    by_name = sorted(runs, key=lambda one: one.name)
    if metric is None and sort not in SORTS:
        return by_name

    def value(one: ListedRun) -> Any:
        return one.metrics.get(metric) if metric is not None else getattr(one, sort)

    last = metric.rpartition(".")[2] if metric is not None else sort
    known = [one for one in by_name if value(one) is not None]
    known.sort(key=value, reverse=last in (*_LARGER_IS_BETTER, "created"))
    return known + [one for one in by_name if value(one) is None]


def _metric_name(sort: str, names: Any) -> str | None:
    """Return the metric in full that a short name means."""
    return next(
        (one for one in (sort, f"valid.{sort}") if one in names and sort not in SORTS), None
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """Return a finite number; what is none, or too large for one, is not known."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if value % 1 else f"{value:.0f}"


def _printable(value: object) -> str:
    """Return text that changes no terminal and no line: names of folders may hold anything."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in str(value))
