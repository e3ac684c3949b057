"""What a comparison found, as plain values: per variant, its scores, what differs from the base, and a verdict.

A verdict is about the metric on the rows validated on, nothing else: *helps* or *hurts* where the difference
is more than chance would give once in twenty, over all variants; *no difference* where it is not; *leaks*,
whatever the metric says, where a feature knows what was not known yet; *undecided* where there is too little
to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptionError, FormatError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.markup import html_table
from featurestore.report.tables import text_table
from featurestore.units import format_bytes
from training.comparison.scores import rises
from training.comparison.statistics import LEVEL, Interval
from training.durable import read_json, write_json
from training.run_folder import finite

COMPARISON_VERSION = 1
FILE = "comparison.json"


class Verdict(StrEnum):
    """What is said of a variant."""

    BASE = "base"
    HELPS = "helps"
    HURTS = "hurts"
    SAME = "no difference"
    LEAKS = "leaks"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class VariantResult:
    """What came of a variant.

    Parameters
    ----------
    name : str
    added : tuple of str
        The features that the base lacks.
    score : float
        The mean of the metric over folds and seeds.
    scores : mapping of str to float
        The means of all metrics.
    by_cell : tuple of (int, int, float)
        Fold, seed, and the metric.
    difference : Interval, optional
        To the base, of the metric itself; None for the base.
    p : float
        Of the difference, adjusted for the number of variants; NaN for the base.
    verdict : Verdict
    reason : str
        In words.
    leaks : tuple of str
        Features that differ if they are computed from what was known at their time.
    importance : mapping of str to float
        Mean over folds.
    training_seconds : float
        Of one cell, on average.
    feature_bytes : mapping of str to int
        What the values of each added feature take in memory.
    """

    name: str
    added: tuple[str, ...]
    score: float
    scores: Mapping[str, float]
    by_cell: tuple[tuple[int, int, float], ...]
    difference: Interval | None
    p: float
    verdict: Verdict
    reason: str
    leaks: tuple[str, ...] = ()
    importance: Mapping[str, float] = field(default_factory=dict)
    training_seconds: float = 0.0
    feature_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Period:
    """The metric of every variant over a stretch of time.

    Parameters
    ----------
    fold : int
    first, last : str
    scores : mapping of str to float
        Of each variant, mean over seeds; NaN where it is not defined.
    """

    fold: int
    first: str
    last: str
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Parameters
    ----------
    path : Path
        Its folder, with a run folder for each cell.
    config : mapping
        As ``compare.toml``, resolved.
    snapshot : str
        Of the store, the same for all cells.
    task, metric : str
    folds, seeds : int
    results : tuple of VariantResult
        The base first.
    periods : tuple of Period
        The metric over time; empty if the table has no time.
    unchecked : mapping of str to str
        Features that were not checked for leakage, and why.
    """

    path: Path
    config: Mapping[str, Any]
    snapshot: str
    task: str
    metric: str
    folds: int
    seeds: int
    results: tuple[VariantResult, ...]
    periods: tuple[Period, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)

    _HEAD = ("variant", "metric", "difference", "95% interval", "p", "verdict", "training")

    def __getitem__(self, name: str) -> VariantResult:
        for one in self.results:
            if one.name == name:
                return one
        raise KeyError(name)

    # --- looked at -------------------------------------------------------------------------------

    @property
    def caption(self) -> str:
        """What was compared, on one line."""
        better = "more" if rises(self.metric) else "less"
        return (
            f"{self.metric} ({better} is better) of {len(self.results)} variants, each trained "
            f"{self.folds * self.seeds} times: folds {self.folds}, seeds {self.seeds}"
        )

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (
                one.name,
                _number(one.score),
                "" if one.difference is None else _signed(one.difference.mean),
                "" if one.difference is None else _range(one.difference),
                "" if math.isnan(one.p) else f"{one.p:.3f}",
                str(one.verdict),
                f"{one.training_seconds:.1f} s",
            )
            for one in self.results
        ]

    def __str__(self) -> str:
        lines = [self.caption, text_table(self._HEAD, self._rows()), ""]
        for one in self.results[1:]:
            lines.append(f"{one.name}: {one.verdict}; {one.reason}")
            cost = ", ".join(
                f"{name} {format_bytes(size)}" for name, size in one.feature_bytes.items()
            )
            lines += [f"    added: {cost}"] if cost else []
            worth = ", ".join(f"{name} {_signed(value)}" for name, value in one.importance.items())
            lines += [f"    worse by, if shuffled: {worth}"] if worth else []
        lines += [f"not checked for leakage: {name}: {why}" for name, why in self.unchecked.items()]
        return "\n".join([*lines, str(self.path)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(self.caption, self._HEAD, self._rows())

    # --- kept ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Json]:
        """Return it as JSON values; what is not a number is null."""
        found: dict[str, Json] = {
            "version": COMPARISON_VERSION,
            "snapshot": self.snapshot,
            "task": self.task,
            "metric": self.metric,
            "more_is_better": rises(self.metric),
            "folds": self.folds,
            "seeds": self.seeds,
            "config": dict(self.config),
            "results": [_result_json(one) for one in self.results],
            "periods": [
                {
                    "fold": one.fold,
                    "first": one.first,
                    "last": one.last,
                    "scores": finite(one.scores),
                }
                for one in self.periods
            ],
            "unchecked": dict(self.unchecked),
        }
        return found

    def save(self) -> None:
        """Write it into its folder."""
        write_json(self.path / FILE, self.to_json())

    @classmethod
    def open(cls, path: str | Path) -> Comparison:
        """Read a finished comparison from its folder.

        Raises
        ------
        NotFoundError
            If there is none, or it is not finished.
        FormatError
            If a newer version wrote it.
        CorruptionError
        """
        path = Path(path).expanduser()
        if not (path / FILE).is_file():
            raise NotFoundError(
                f"{path} holds no finished comparison",
                "give the folder that 'python -m training compare' made, or run it again with --resume",
            )
        content = read_json(path / FILE)
        version = content.get("version")
        if not isinstance(version, int) or version > COMPARISON_VERSION:
            raise FormatError(
                f"{path} has format version {version!r}, this package reads up to {COMPARISON_VERSION}",
                "upgrade featurestore",
            )
        try:
            return cls(
                path,
                content["config"],
                content["snapshot"],
                content["task"],
                content["metric"],
                content["folds"],
                content["seeds"],
                tuple(_result_of(one) for one in content["results"]),
                tuple(
                    Period(one["fold"], one["first"], one["last"], _floats(one["scores"]))
                    for one in content["periods"]
                ),
                content["unchecked"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(
                f"{path / FILE} is no comparison: {error!r}",
                "delete it, and run it again with --resume",
            ) from error


def _result_json(one: VariantResult) -> dict[str, Any]:
    difference = one.difference
    found: dict[str, Any] = finite(
        {
            "name": one.name,
            "added": list(one.added),
            "score": one.score,
            "scores": dict(one.scores),
            "p": one.p,
            "verdict": str(one.verdict),
            "reason": one.reason,
            "leaks": list(one.leaks),
            "importance": dict(one.importance),
            "training_seconds": one.training_seconds,
            "feature_bytes": dict(one.feature_bytes),
        }
    )
    found["by_cell"] = [
        {"fold": fold, "seed": seed, "score": finite(value)} for fold, seed, value in one.by_cell
    ]
    found["difference"] = None if difference is None else finite(
        {
            "mean": difference.mean,
            "lower": difference.lower,
            "upper": difference.upper,
            "p": difference.p,
            "method": difference.method,
        }
    )  # fmt: skip
    return found


def _result_of(content: Mapping[str, Any]) -> VariantResult:
    told = content["difference"]
    return VariantResult(
        content["name"],
        tuple(content["added"]),
        _float(content["score"]),
        _floats(content["scores"]),
        tuple((one["fold"], one["seed"], _float(one["score"])) for one in content["by_cell"]),
        None if told is None else _interval_of(told),
        _float(content["p"]),
        Verdict(content["verdict"]),
        content["reason"],
        tuple(content["leaks"]),
        _floats(content["importance"]),
        content["training_seconds"],
        content["feature_bytes"],
    )


def _interval_of(told: Mapping[str, Any]) -> Interval:
    lower, upper = _float(told["lower"]), _float(told["upper"])
    return Interval(_float(told["mean"]), lower, upper, _float(told["p"]), told["method"])


def judged(
    metric: str, difference: Interval, p: float, leaks: Sequence[str]
) -> tuple[Verdict, str]:
    """Return the verdict on a variant, and why."""
    if leaks:
        return Verdict.LEAKS, (
            f"{', '.join(leaks)} differ if computed from what was known at their time: "
            "see table.check_leakage"
        )
    if math.isnan(p):
        return Verdict.UNDECIDED, difference.method
    better = difference.mean > 0 if rises(metric) else difference.mean < 0
    said = f"{metric} {_signed(difference.mean)} ({_range(difference)}), p {p:.3f}, {difference.method}"
    if p > LEVEL:
        return Verdict.SAME, said
    return Verdict.HELPS if better else Verdict.HURTS, said


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _floats(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: _float(value) for key, value in values.items()}


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f}"


def _range(one: Interval) -> str:
    return "" if math.isnan(one.lower) else f"{one.lower:+.4f} to {one.upper:+.4f}"
