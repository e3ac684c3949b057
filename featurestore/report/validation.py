"""What a table's values are against what is expected of them, as a table that prints well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.markup import html_table
from featurestore.report.leakage import plain_value
from featurestore.report.tables import text_table


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation, and what was found.

    Parameters
    ----------
    expectation, kind : str
        As it was stated, and its kind: ``"range"``, ``"nulls"``, ``"values"``, ``"unique"``,
        ``"fresh"``, ``"drift"``.
    columns : tuple of str
    on_failure : {"refuse", "warn"}
    problem : str
        What is not as expected; ``""`` if all is.
    rows : int
        That were judged.
    failing : int
        Of them, those that are not as expected; 0 where a whole is judged (freshness, drift).
    seen, limit : float, optional
        What is compared: shares of rows, a number of rows, seconds, or a measure of drift. None
        where nothing could be judged.
    examples : tuple of (str, int, value)
        Partition, row of it (from 0) and value of the first failing rows.
    worst : tuple of (str, int)
        The partitions with most failing rows, and how many.
    """

    expectation: str
    kind: str
    columns: tuple[str, ...]
    on_failure: str
    problem: str
    rows: int
    failing: int = 0
    seen: float | None = None
    limit: float | None = None
    examples: tuple[tuple[str, int, Any], ...] = ()
    worst: tuple[tuple[str, int], ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        """Return what is wrong, with rows and partitions that show it."""
        parts = [f"{self.expectation}: {self.problem or 'as expected'}"]
        if self.examples:
            shown = ", ".join(
                f"{plain_value(value)!r} in row {row} of {name}"
                for name, row, value in self.examples[:3]
            )
            parts.append(f"the first are {shown}")
        if len(self.worst) > 1:
            parts.append(
                "most are in " + ", ".join(f"{name} ({count})" for name, count in self.worst[:3])
            )
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Validation:
    """What ``validate`` found.

    Parameters
    ----------
    table : str
    version : int
        Of the store.
    findings : tuple of Finding
        In the order in which the expectations were stated.
    """

    table: str
    version: int
    findings: tuple[Finding, ...]

    _HEAD: ClassVar = ("expectation", "on failure", "rows", "seen", "limit", "found")

    @property
    def ok(self) -> bool:
        """Whether everything is as expected, warnings included."""
        return all(one.ok for one in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if not one.ok)

    def to_json(self) -> Mapping[str, Any]:
        """Return the findings as JSON values; what JSON cannot hold as text."""
        return {
            "table": self.table,
            "version": self.version,
            "ok": self.ok,
            "findings": [
                {
                    "expectation": one.expectation,
                    "kind": one.kind,
                    "columns": list(one.columns),
                    "on_failure": one.on_failure,
                    "ok": one.ok,
                    "problem": one.problem,
                    "rows": one.rows,
                    "failing": one.failing,
                    "seen": plain_value(one.seen),
                    "limit": plain_value(one.limit),
                    "examples": [
                        {"partition": name, "row": row, "value": plain_value(value)}
                        for name, row, value in one.examples
                    ],
                    "worst": [{"partition": name, "failing": count} for name, count in one.worst],
                }
                for one in self.findings
            ],
        }

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (
                one.expectation, one.on_failure, one.rows, _measure(one.seen), _measure(one.limit),
                one.problem or "as expected",
            )
            for one in self.findings
        ]  # fmt: skip

    def _caption(self) -> str:
        if not self.findings:
            return f"{self.table}: nothing is expected of it"
        bad = len(self.failures)
        said = f"{bad} of {len(self.findings)} expectations are not met" if bad else (
            f"all {len(self.findings)} expectations are met"
        )  # fmt: skip
        return f"{self.table}: {said}"

    def __str__(self) -> str:
        if not self.findings:
            return self._caption()
        parts = [self._caption(), text_table(self._HEAD, self._rows())]
        parts += [str(one) for one in self.failures if one.examples]
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(self._caption(), self._HEAD, self._rows())


def _measure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
