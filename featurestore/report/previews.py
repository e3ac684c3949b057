"""What a preview found of features, as values that print well."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from featurestore.markup import html_table
from featurestore.report.leakage import LeakReport
from featurestore.report.tables import text_table
from featurestore.units import format_bytes

_BARS: Final = " ▁▂▃▄▅▆▇█"
_WIDEST: Final = 32


@dataclass(frozen=True, slots=True)
class Association:
    """How two columns go together in the sampled rows.

    Parameters
    ----------
    column : str
        The other column.
    measures : mapping of str to float
        ``"pearson"`` and ``"spearman"`` of two numeric columns; ``"correlation_ratio"`` of a numeric
        and a categorical one; ``"cramers_v"`` of two categorical ones. NaN where one of them is
        constant.
    rows : int
        In which both have a finite value.
    """

    column: str
    measures: Mapping[str, float]
    rows: int

    @property
    def strength(self) -> float:
        """The largest measure without its sign; 0 if none is known."""
        return max((abs(one) for one in self.measures.values() if not math.isnan(one)), default=0.0)

    def __str__(self) -> str:
        return ", ".join(f"{name} {_number(one)}" for name, one in self.measures.items())


@dataclass(frozen=True, slots=True)
class Distribution:
    """The values of a column.

    Parameters
    ----------
    rows, nulls, nans, infinities : int
        Of all previewed rows; of a tensor ``rows`` is its elements.
    mean, deviation : float, optional
        Of the finite values of all previewed rows, the deviation with the denominator n.
    quantiles : mapping of str to value
        Of the sampled rows: ``"0"``, ``"0.01"``, ... ``"1"``; lower values, so they occur.
    histogram : tuple of (float, float, int)
        Of the sampled rows: from, to (the last one included), how many.
    values : tuple of (value, int)
        Of a column that is not numeric: the most frequent of the sampled rows, and how often.
    distinct : int
        Different values among the sampled rows.
    sampled : int
        Rows that are sampled.
    """

    rows: int
    nulls: int
    nans: int
    infinities: int
    mean: float | None
    deviation: float | None
    quantiles: Mapping[str, Any]
    histogram: tuple[tuple[float, float, int], ...]
    values: tuple[tuple[Any, int], ...]
    distinct: int
    sampled: int

    @property
    def null_share(self) -> float:
        return self.nulls / self.rows if self.rows else 0.0

    @property
    def nan_share(self) -> float:
        return self.nans / self.rows if self.rows else 0.0

    @property
    def bars(self) -> str:
        """The histogram as one line of text."""
        most = max((count for _, _, count in self.histogram), default=0)
        return "".join(
            _BARS[math.ceil(count / most * (len(_BARS) - 1))] for _, _, count in self.histogram
        )


@dataclass(frozen=True, slots=True)
class ColumnPreview:
    """One column of a previewed feature.

    Parameters
    ----------
    name, type, kind : str
        The kind of its transformer.
    distribution : Distribution
    label : Association, optional
        With the label; None if there is none, or the column is none that correlates.
    closest : tuple of Association
        The stored columns that go with it most, the strongest first.
    differs : str
        Why its values may differ from those of a build; ``""`` if they do not.
    verdict : str
        Of the leak check: ``"leak: ..."``, ``"no leak found"`` or ``"not checked: ..."``.
    """

    name: str
    type: str
    kind: str
    distribution: Distribution
    label: Association | None
    closest: tuple[Association, ...]
    differs: str
    verdict: str


@dataclass(frozen=True, slots=True)
class PartitionCost:
    """What computing a partition took, all previewed features together.

    Parameters
    ----------
    position : int
        In the table.
    rows : int
    seconds : float
        Of one core's task: reading, computing, writing; summaries included.
    bytes : int
        Written, as files.
    """

    position: int
    rows: int
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class PreviewCost:
    """What building the features everywhere is expected to take.

    Parameters
    ----------
    partitions : tuple of PartitionCost
        Those that were computed.
    seconds : float
        Of the whole build with ``workers`` tasks at once: the median seconds per row, times the
        table's rows.
    workers : int
    peak_bytes : int
        As the plan of the build projects it.
    disk_bytes : int
        From the files that were written.
    memory_limit : int
    remedy : str
        What would make the build fit its memory limit; ``""`` if it does.
    """

    partitions: tuple[PartitionCost, ...]
    seconds: float
    workers: int
    peak_bytes: int
    disk_bytes: int
    memory_limit: int
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """What features give on a few partitions of a table.

    Parameters
    ----------
    table : str
    version : int
        Of the store.
    label : str, optional
    columns : tuple of ColumnPreview
    head : tuple of mapping
        The first previewed rows: key, time, the features, and the label.
    partitions : tuple of int
        Positions that are previewed.
    read : int
        Partitions that were read, with those that previewed rows look at.
    table_partitions, table_rows : int
        That there are.
    rows : int
        Previewed.
    learnt_on : mapping of str to str
        Of fitted columns: from which rows they learnt here.
    cost : PreviewCost
    leaks : LeakReport, optional
        None if nothing could be checked.
    seconds : float
        That the preview took.
    """

    table: str
    version: int
    label: str | None
    columns: tuple[ColumnPreview, ...]
    head: tuple[Mapping[str, Any], ...]
    partitions: tuple[int, ...]
    read: int
    table_partitions: int
    table_rows: int
    rows: int
    learnt_on: Mapping[str, str]
    cost: PreviewCost
    leaks: LeakReport | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def leaky(self) -> tuple[str, ...]:
        """The columns that leak."""
        return tuple(one.name for one in self.columns if one.verdict.startswith("leak"))

    def __getitem__(self, column: str) -> ColumnPreview:
        for one in self.columns:
            if one.name == column:
                return one
        raise KeyError(column)

    def to_dict(self) -> dict[str, Any]:
        """Return the preview as plain values; what JSON cannot hold as text."""
        return {
            "table": self.table,
            "version": self.version,
            "label": self.label,
            "columns": [_column(one) for one in self.columns],
            "head": [{name: _plain(one) for name, one in row.items()} for row in self.head],
            "partitions": list(self.partitions),
            "read": self.read,
            "table_partitions": self.table_partitions,
            "table_rows": self.table_rows,
            "rows": self.rows,
            "learnt_on": dict(self.learnt_on),
            "cost": {
                "partitions": [
                    {
                        "position": one.position, "rows": one.rows, "seconds": one.seconds,
                        "bytes": one.bytes,
                    }
                    for one in self.cost.partitions
                ],
                "seconds": self.cost.seconds,
                "workers": self.cost.workers,
                "peak_bytes": self.cost.peak_bytes,
                "disk_bytes": self.cost.disk_bytes,
                "memory_limit": self.cost.memory_limit,
                "remedy": self.cost.remedy,
            },
            "leaks": None if self.leaks is None else self.leaks.to_json(),
            "seconds": self.seconds,
        }  # fmt: skip

    # --- as text -------------------------------------------------------------------------------

    def _caption(self) -> str:
        return (
            f"preview of {', '.join(one.name for one in self.columns)} on table {self.table}: "
            f"{self.rows:,} rows of partitions {', '.join(map(str, self.partitions)) or 'none'} "
            f"({self.table_partitions} there are, {self.read} read)"
        )

    def _distribution_rows(self) -> list[tuple[object, ...]]:
        return [
            (
                one.name, one.type, f"{one.distribution.null_share:.2%}",
                f"{one.distribution.nan_share:.2%}", one.distribution.distinct,
                *(_number(one.distribution.quantiles.get(at)) for at in ("0", "0.25", "0.5", "0.75", "1")),
                one.distribution.bars or _frequent(one.distribution.values),
            )
            for one in self.columns
        ]  # fmt: skip

    _DISTRIBUTION = (
        "column", "type", "null", "NaN", "distinct", "min", "25%", "50%", "75%", "max", "values",
    )  # fmt: skip

    def _finding_rows(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for one in self.columns:
            if one.label is not None:
                rows.append((one.name, f"with label {self.label}", str(one.label)))
            rows += [(one.name, f"close to {near.column}", str(near)) for near in one.closest]
            rows.append((one.name, "leak check", one.verdict))
            if one.name in self.learnt_on:
                rows.append((one.name, "learnt on", self.learnt_on[one.name]))
            if one.differs:
                rows.append((one.name, "may differ", one.differs))
        return rows

    _FINDINGS = ("column", "", "found")

    def _cost_line(self) -> str:
        cost = self.cost
        each = ", ".join(
            f"{one.seconds:.2f} s and {format_bytes(one.bytes)}" for one in cost.partitions
        )
        line = (
            f"cost: {each or 'nothing'} per partition; all {self.table_partitions} partitions "
            f"about {duration_text(cost.seconds)} with {cost.workers} at once, peak "
            f"{format_bytes(cost.peak_bytes)} of {format_bytes(cost.memory_limit)}, "
            f"{format_bytes(cost.disk_bytes)} on disk"
        )
        return f"{line}; does not fit: {cost.remedy}" if cost.remedy else line

    def _head_table(self) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
        names = tuple(self.head[0]) if self.head else ()
        return names, [tuple(_cell(row[name]) for name in names) for row in self.head]

    def __str__(self) -> str:
        parts = [self._caption()]
        if self.head:
            parts.append(text_table(*self._head_table()))
        if self.columns:
            parts.append(text_table(self._DISTRIBUTION, self._distribution_rows()))
            parts.append(text_table(self._FINDINGS, self._finding_rows()))
        parts.append(self._cost_line())
        return "\n\n".join(parts)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        names, rows = self._head_table()
        found: str = html_table(self._caption(), names, rows)
        found += html_table("distribution", self._DISTRIBUTION, self._distribution_rows())
        found += html_table("found", self._FINDINGS, self._finding_rows())
        return found + html_table("cost", ("expected",), [(self._cost_line(),)])


def _column(one: ColumnPreview) -> dict[str, Any]:
    spread = one.distribution
    return {
        "name": one.name,
        "type": one.type,
        "kind": one.kind,
        "rows": spread.rows,
        "nulls": spread.nulls,
        "nans": spread.nans,
        "infinities": spread.infinities,
        "mean": _plain(spread.mean),
        "deviation": _plain(spread.deviation),
        "quantiles": {at: _plain(value) for at, value in spread.quantiles.items()},
        "histogram": [list(bin_) for bin_ in spread.histogram],
        "values": [[_plain(value), count] for value, count in spread.values],
        "distinct": spread.distinct,
        "sampled": spread.sampled,
        "label": None if one.label is None else _association(one.label),
        "closest": [_association(near) for near in one.closest],
        "differs": one.differs,
        "verdict": one.verdict,
    }


def _association(one: Association) -> dict[str, Any]:
    return {
        "column": one.column,
        "rows": one.rows,
        **{name: _plain(value) for name, value in one.measures.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return _cell(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dt.datetime):
        return value.isoformat(" ")
    text = str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _frequent(values: Sequence[tuple[Any, int]]) -> str:
    shown = ", ".join(f"{_cell(value)} ({count})" for value, count in values[:3])
    return f"{shown}, ..." if len(values) > 3 else shown


def duration_text(seconds: float) -> str:
    """Return an estimated length of time as people say it.

    Examples
    --------
    >>> duration_text(0.25), duration_text(75.2), duration_text(1300)
    ('0.25 s', '75 s', '22 min')
    """
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
