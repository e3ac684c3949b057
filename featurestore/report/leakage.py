"""What a leak check found, as tables that print well and hold plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from featurestore.markup import html_table
from featurestore.report.tables import text_table


@dataclass(frozen=True, slots=True)
class LeakedRow:
    """A row whose value is another one without the future.

    Parameters
    ----------
    key : mapping of str to value
    time : str
    stored, recomputed : value
        What the table holds, and what was known at that time.
    """

    key: Mapping[str, Any]
    time: str
    stored: Any
    recomputed: Any


@dataclass(frozen=True, slots=True)
class Leak:
    """A feature that looks into the future.

    Parameters
    ----------
    column, kind : str
        The column, and the transformer that gives it.
    differing : int
        How many of the compared rows have another value.
    rows : tuple of LeakedRow
        The first of them in table order.
    through : tuple of str
        Its inputs that leak as well; it may itself be innocent.
    """

    column: str
    kind: str
    differing: int
    rows: tuple[LeakedRow, ...]
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a leak check compared and found.

    Parameters
    ----------
    table : str
    checked : tuple of str
        Columns.
    times, rows : int
        At how many times rows were recomputed, and how many rows these are.
    leaks : tuple of Leak
        In the order in which features need each other: causes first.
    unchecked : mapping of str to str
        Columns that were not checked, or not everywhere or not in every respect, and why.
    """

    table: str
    checked: tuple[str, ...]
    times: int
    rows: int
    leaks: tuple[Leak, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)

    _HEAD: ClassVar = ("feature", "kind", "rows that differ", "through")
    _ROWS: ClassVar = ("feature", "key", "time", "stored", "known then")
    _LEFT: ClassVar = ("feature", "not checked")

    @property
    def ok(self) -> bool:
        """Whether no leak was found; that none is there is more than a sample can say."""
        return not self.leaks

    def __getitem__(self, column: str) -> Leak:
        for one in self.leaks:
            if one.column == column:
                return one
        raise KeyError(column)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; what JSON cannot hold as text."""
        return {
            "table": self.table,
            "checked": list(self.checked),
            "times": self.times,
            "rows": self.rows,
            "leaks": [
                {
                    "column": leak.column,
                    "kind": leak.kind,
                    "differing": leak.differing,
                    "through": list(leak.through),
                    "rows": [
                        {
                            "key": {name: plain_value(value) for name, value in row.key.items()},
                            "time": row.time,
                            "stored": plain_value(row.stored),
                            "recomputed": plain_value(row.recomputed),
                        }
                        for row in leak.rows
                    ],
                }
                for leak in self.leaks
            ],
            "unchecked": dict(self.unchecked),
        }

    def _caption(self) -> str:
        found = f"{len(self.leaks)} of {len(self.checked)} features leak" if self.leaks else (
            f"no leak found in {len(self.checked)} features"
        )  # fmt: skip
        return f"{self.table}: {found} ({self.rows} rows at {self.times} times recomputed)"

    def _leak_rows(self) -> list[tuple[object, ...]]:
        return [(one.column, one.kind, one.differing, ", ".join(one.through)) for one in self.leaks]

    def _row_rows(self) -> list[tuple[object, ...]]:
        return [
            (
                leak.column,
                ", ".join(f"{name}={value}" for name, value in row.key.items()),
                row.time,
                _short(row.stored),
                _short(row.recomputed),
            )
            for leak in self.leaks
            for row in leak.rows
        ]

    def __str__(self) -> str:
        parts = [self._caption()]
        if self.leaks:
            parts.append(text_table(self._HEAD, self._leak_rows()))
            parts.append(text_table(self._ROWS, self._row_rows()))
        if self.unchecked:
            parts.append(text_table(self._LEFT, list(self.unchecked.items())))
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        found: str = html_table(self._caption(), self._HEAD, self._leak_rows())
        found += html_table("the first rows that differ", self._ROWS, self._row_rows())
        return found + html_table("not checked", self._LEFT, list(self.unchecked.items()))


def plain_value(value: Any) -> Any:
    """Return a value as JSON has it; what it cannot hold as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
