"""What a report says of a store: plain values, found by ``collecting`` and drawn by ``page``.

Always true: every value here is a number, a text, or a tuple of them, so that ``to_json`` loses nothing;
numbers are finite, or None where there is none. Nothing here knows how it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Run(NamedTuple):
    """Neighbouring partitions in which a feature stands alike.

    Parameters
    ----------
    state : str
        ``"fresh"``, ``"stale"`` or ``"missing"``.
    partitions : int
    reason : str
        Why it is stale or missing; ``""`` where nothing more is to be said.
    """

    state: str
    partitions: int
    reason: str


@dataclass(frozen=True, slots=True)
class PartValues:
    """What was sampled of a column in one part of the rows.

    Parameters
    ----------
    rows, nulls : int
        Of the sample.
    odd : int
        Values that are NaN or infinite; they are in no count and no statistic below.
    counts : tuple of int
        Values per bin or category of the column.
    mean, deviation : float, optional
        Arithmetic mean and population standard deviation.
    quantiles : tuple of float or None
        At 0, 5, 25, 50, 75, 95 and 100 percent, linear between values; empty for categories.
    psi, ks : float, optional
        Against the first part that has values; see ``drift``. None of that part itself, and where one of
        the two has too few values.
    """

    rows: int
    nulls: int
    odd: int
    counts: tuple[int, ...]
    mean: float | None = None
    deviation: float | None = None
    quantiles: tuple[float | None, ...] = ()
    psi: float | None = None
    ks: float | None = None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rows": self.rows,
            "nulls": self.nulls,
            "odd": self.odd,
            "counts": list(self.counts),
            "mean": self.mean,
            "deviation": self.deviation,
            "quantiles": list(self.quantiles),
            "psi": self.psi,
            "ks": self.ks,
        }
        return {name: value for name, value in found.items() if value not in (None, [])}


@dataclass(frozen=True, slots=True)
class ColumnValues:
    """How a column's values are distributed in each part.

    Parameters
    ----------
    form : {"numbers", "times", "categories"}
    edges : tuple of float
        Of the bins, one more than there are; the outer bins also hold what lies beyond. Times are
        seconds since 1970.
    labels : tuple of str
        Of the categories; the last one is all others where ``others`` is true.
    others : bool
    distinct : int
        Different values in the whole sample.
    parts : tuple of PartValues
        In the order of the table's parts.
    """

    form: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    others: bool
    distinct: int
    parts: tuple[PartValues, ...]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "form": self.form,
            "edges": list(self.edges),
            "labels": list(self.labels),
            "others": self.others,
            "distinct": self.distinct,
            "parts": [one.to_json() for one in self.parts],
        }
        return {name: value for name, value in found.items() if value not in (None, [], False)}


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One column.

    Parameters
    ----------
    name, type : str
    nulls : int, optional
        Recorded of all partitions that have values; None for tensors, which have none.
    bytes : int
        In memory, of all partitions that have values.
    coverage : tuple of (int or None)
        Rows with a value among all rows, in per mille, for each bin of neighbouring partitions; None
        where nothing is built.
    values : ColumnValues, optional
    unseen : str
        Why there are no values; ``""`` if there are, or if nobody asked.
    """

    name: str
    type: str
    nulls: int | None
    bytes: int
    coverage: tuple[int | None, ...]
    values: ColumnValues | None = None
    unseen: str = ""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "nulls": self.nulls,
            "bytes": self.bytes,
            "coverage": list(self.coverage),
            "values": None if self.values is None else self.values.to_json(),
            "unseen": self.unseen or None,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class FeatureFacts:
    """A feature, or the ingested columns of a table (``kind`` is ``"ingested"``).

    Parameters
    ----------
    kind : str
        Of the transformer.
    parameters : tuple of (str, str)
    source : str
        Of its functions, as text.
    fingerprint : str
        Of its definition.
    inputs : tuple of str
        Columns of its own table.
    reads : tuple of (str, str)
        Table and column, of other tables.
    looks_ahead : bool
        Whether it is a label: it looks at later rows.
    runs : tuple of Run
        In table order; empty for ingested columns, which are always fresh.
    rows : int
        In partitions that have values.
    stored_bytes : int
        On disk; of a file that several features share, its part by size in memory.
    columns : tuple of ColumnFacts
    """

    kind: str
    parameters: tuple[tuple[str, str], ...]
    source: str
    fingerprint: str
    inputs: tuple[str, ...]
    reads: tuple[tuple[str, str], ...]
    looks_ahead: bool
    runs: tuple[Run, ...]
    rows: int
    stored_bytes: int
    columns: tuple[ColumnFacts, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "parameters": [list(one) for one in self.parameters],
            "source": self.source,
            "fingerprint": self.fingerprint,
            "inputs": list(self.inputs),
            "reads": [list(one) for one in self.reads],
            "ahead": self.looks_ahead,
            "runs": [list(one) for one in self.runs],
            "rows": self.rows,
            "stored": self.stored_bytes,
            "columns": [one.to_json() for one in self.columns],
        }


@dataclass(frozen=True, slots=True)
class TablePart:
    """Rows that are compared with others: a part of a split, or of the table in its order.

    Parameters
    ----------
    name : str
    first, last : str
        Times of the sampled rows; ``""`` without a time column.
    rows : int
        That were sampled.
    """

    name: str
    first: str
    last: str
    rows: int


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One table.

    Parameters
    ----------
    name : str
    rows : int
    key : tuple of str
    time : str, optional
    stored_bytes : int
    partitions : tuple of (str, int, str, str)
        Name, rows, first and last time (``""`` without a time column) of each, in table order.
    bins : tuple of int
        How many neighbouring partitions each bin of coverage has.
    parts : tuple of TablePart
        What distributions are of; empty where values were not looked at.
    divided : str
        What made the parts, in words.
    features : tuple of FeatureFacts
        The ingested columns first, then features, each after those that it needs.
    """

    name: str
    rows: int
    key: tuple[str, ...]
    time: str | None
    stored_bytes: int
    partitions: tuple[tuple[str, int, str, str], ...]
    bins: tuple[int, ...]
    parts: tuple[TablePart, ...]
    divided: str
    features: tuple[FeatureFacts, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rows": self.rows,
            "key": list(self.key),
            "time": self.time,
            "stored": self.stored_bytes,
            "partitions": [list(one) for one in self.partitions],
            "bins": list(self.bins),
            "parts": [[one.name, one.first, one.last, one.rows] for one in self.parts],
            "divided": self.divided,
            "features": [one.to_json() for one in self.features],
        }


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A store at one version.

    Parameters
    ----------
    url : str
    version : int
    snapshot : str
    made : str
        When the report was made: UTC, ISO 8601.
    software : str
    history : tuple of (int, str, str, str)
        Version, when it was made, by what, and its fault if it cannot be read; newest first.
    older : int
        Versions that are left out of it.
    tags : mapping of str to int
    tables : tuple of TableFacts
    """

    url: str
    version: int
    snapshot: str
    made: str
    software: str
    history: tuple[tuple[int, str, str, str], ...]
    older: int
    tags: Mapping[str, int] = field(default_factory=dict)
    tables: tuple[TableFacts, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "version": self.version,
            "snapshot": self.snapshot,
            "made": self.made,
            "software": self.software,
            "history": [list(one) for one in self.history],
            "older": self.older,
            "tags": sorted(self.tags.items()),
            "tables": [one.to_json() for one in self.tables],
        }
