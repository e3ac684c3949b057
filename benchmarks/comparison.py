"""One task done by several libraries in one run: cases, a table, bars, a file of results.

A result is what its case returned, with the case's name; or its error, which the table shows in its
place, so that a library that runs out of memory is a row like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from measuring import MIB, OUT, figure, print_table, run_case, save

Result = dict[str, Any]
_OURS = "#3b6ea5"
_THEIRS = "#a9c4de"
_COLOURS = (_OURS, _THEIRS, "#d9d9d9", "#e3c78a")
_LIBRARIES = (
    "polars", "duckdb", "dask", "pandas", "torch", "tensorflow", "datasets", "petastorm", "ray",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of each result: its heading, how it is read, how many digits are shown."""

    heading: str
    of: Callable[[Result], float]
    digits: int = 2

    def text(self, result: Result) -> str:
        return f"{self.of(result):,.{self.digits}f}"


def mebibytes(key: str, heading: str, digits: int = 0) -> Measure:
    """Return the measure of one of a result's byte counts."""
    return Measure(heading, lambda one: one[key] / MIB, digits)


SECONDS = Measure("seconds", lambda one: one["seconds"])
PEAK = mebibytes("peak_bytes", "peak MiB")
ADDED = mebibytes("added_bytes", "MiB above imports")
WRITTEN = mebibytes("written_bytes", "MiB written", 1)


def million_rows(rows: int) -> Measure:
    """Return the rate of results that went through so many rows."""
    return Measure("million rows/s", lambda one: rows / one["seconds"] / 1e6)


def ingested(script: str, arguments: Mapping[str, Any]) -> Result:
    """Run a script's ``ingest`` case; without its store there is nothing to compare.

    Raises
    ------
    SystemExit
        If it failed.
    """
    made = run_case(script, "ingest", arguments)
    if "error" in made:
        raise SystemExit(f"ingest failed: {made['error']}")
    return made


def run_cases(script: str, cases: Mapping[str, str], arguments: Mapping[str, Any]) -> list[Result]:
    """Run each case in a fresh process, one after the other; those of libraries not installed are left out."""
    there = [one for one in cases if one not in _LIBRARIES or find_spec(one) is not None]
    if len(there) < len(cases):
        print(f"not installed, left out: {', '.join(one for one in cases if one not in there)}")
    return [{"case": one, **run_case(script, one, arguments)} for one in there]


def show(
    title: str, labels: Mapping[str, str], results: Sequence[Result], measures: Sequence[Measure]
) -> None:
    """Print a row for each result."""
    print_table(
        title,
        ("", *(one.heading for one in measures)),
        [
            [labels[one["case"]], one["error"]]
            if "error" in one
            else [labels[one["case"]], *(measure.text(one) for measure in measures)]
            for one in results
        ],
    )


def keep(
    name: str,
    title: str,
    labels: Mapping[str, str],
    results: Sequence[Result],
    measures: Sequence[Measure],
    configuration: Mapping[str, Any],
    others: Collection[str] = _LIBRARIES,
) -> None:
    """Save results as JSON and bars of some measures beside it; say where.

    ``others`` are the cases that are not ours.
    """
    OUT.mkdir(exist_ok=True)
    saved = save(name, configuration, results)
    picture = _bars(OUT / f"{name}.png", title, labels, results, measures, others)
    print(f"saved {saved} and {picture}")


def _bars(
    path: Path,
    title: str,
    labels: Mapping[str, str],
    results: Sequence[Result],
    measures: Sequence[Measure],
    others: Collection[str],
) -> Path:
    done = [one for one in results if "error" not in one]
    picture = figure(11, 1.2 + 0.4 * len(done))
    picture.suptitle(title, fontsize=10)
    names = [labels[one["case"]] for one in done]
    colours = [_THEIRS if one["case"] in others else _OURS for one in done]
    grid = picture.subplots(1, len(measures), squeeze=False, sharey=True)
    for axes, measure in zip(grid[0], measures, strict=True):
        bars = axes.barh(names, [measure.of(one) for one in done], color=colours)
        axes.bar_label(bars, [measure.text(one) for one in done], fontsize=8, padding=2)
        axes.margins(x=0.12)
        axes.set_title(measure.heading, fontsize=9)
        axes.tick_params(labelsize=8)
    grid[0][0].invert_yaxis()
    picture.savefig(path)
    return path


def keep_grouped(
    name: str,
    title: str,
    groups: tuple[str, Sequence[str]],
    series: tuple[str, Mapping[str, str]],
    results: Sequence[Result],
    measures: Sequence[Measure],
    configuration: Mapping[str, Any],
) -> None:
    """Save results of several tasks as JSON, and bars with those of one task side by side; say where.

    Parameters
    ----------
    name, title : str
    groups : (str, sequence of str)
        What says of a result which task it is of, and the tasks.
    series : (str, mapping of str to str)
        What says of a result whose it is, and the labels of whom there are.
    results, measures, configuration
    """
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.png"
    picture = figure(11, 3.6)
    picture.suptitle(title, fontsize=10)
    (group, tasks), (whose, labels) = groups, series
    width = 0.8 / len(labels)
    grid = picture.subplots(1, len(measures), squeeze=False)
    for axes, measure in zip(grid[0], measures, strict=True):
        for number, (one, label) in enumerate(labels.items()):
            done = [found for found in results if found[whose] == one and "error" not in found]
            places = [tasks.index(found[group]) + width * number for found in done]
            heights = [measure.of(found) for found in done]
            axes.bar(places, heights, width, color=_COLOURS[number], label=label)
        axes.set_xticks([0.4 - width / 2 + one for one in range(len(tasks))], tasks, fontsize=8)
        axes.set_title(measure.heading, fontsize=9)
        axes.legend(fontsize=7)
    picture.savefig(path)
    print(f"saved {save(name, configuration, results)} and {path}")
