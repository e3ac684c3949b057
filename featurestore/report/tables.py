"""Tables that print well, show as HTML in a notebook, and hold plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from featurestore.arguments import format_names
from featurestore.markup import Markup, html_table, meter, strip
from featurestore.units import format_bytes


def text_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as aligned text; numbers to the right.

    Examples
    --------
    >>> print(text_table(["feature", "rows"], [["speed", 12], ["late", 3]]))
    feature  rows
    speed      12
    late        3
    """
    cells = [[str(one) for one in row] for row in rows]
    widths = [max([len(head[i]), *(len(row[i]) for row in cells)]) for i in range(len(head))]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        for i in range(len(head))
    ]

    def line(row: Sequence[str]) -> str:
        parts = [
            one.rjust(width) if flag else one.ljust(width)
            for one, width, flag in zip(row, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return "\n".join([line(head), *(line(row) for row in cells)])


@dataclass(frozen=True, slots=True)
class TableSummary:
    """What a table holds.

    Parameters
    ----------
    name : str
    rows, partitions : int
    columns : tuple of (str, str, str)
        Name, type, and where it comes from: ``"ingested"`` or the kind of its transformer.
    key : tuple of str
    time : str, optional
    time_range : (str, str), optional
    stored_bytes : int
        On disk, all column groups together.
    column_bytes : mapping of str to int
        What the values of each column take in memory, as recorded when they were written.
    """

    name: str
    rows: int
    partitions: int
    columns: tuple[tuple[str, str, str], ...]
    key: tuple[str, ...]
    time: str | None
    time_range: tuple[str, str] | None
    stored_bytes: int
    column_bytes: Mapping[str, int] = field(default_factory=dict)

    _HEAD: ClassVar = ("column", "type", "from")

    def caption(self) -> str:
        span = "" if self.time_range is None else f", {self.time_range[0]} to {self.time_range[1]}"
        return (
            f"table {self.name}: {self.rows:,} rows in {self.partitions} partitions, "
            f"{format_bytes(self.stored_bytes)} on disk, key {list(self.key)}, time {self.time}{span}"
        )

    def __str__(self) -> str:
        return f"{self.caption()}\n{text_table(self._HEAD, self.columns)}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(self.caption(), self._HEAD, self.columns)


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """What a store holds at a version."""

    url: str
    version: int
    tables: tuple[TableSummary, ...]

    _HEAD: ClassVar = ("table", "rows", "partitions", "columns", "on disk")

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (one.name, one.rows, one.partitions, len(one.columns), format_bytes(one.stored_bytes))
            for one in self.tables
        ]

    def __str__(self) -> str:
        title = f"FeatureStore {self.url} at version {self.version}"
        return (
            f"{title}\n{text_table(self._HEAD, self._rows())}" if self.tables else f"{title}, empty"
        )

    def to_html(self) -> str:
        most = max((one.stored_bytes for one in self.tables), default=0)
        rows = [
            (*row, meter(one.stored_bytes, most, "share of the largest"))
            for row, one in zip(self._rows(), self.tables, strict=True)
        ]
        return html_table(f"{self.url} at version {self.version}", [*self._HEAD, ""], rows)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __repr__(self) -> str:
        return str(self)


class Version(Protocol):
    """What a history needs of a version."""

    @property
    def version(self) -> int: ...

    @property
    def created(self) -> str: ...

    @property
    def operation(self) -> str: ...

    @property
    def id(self) -> str: ...


class History(tuple[Any, ...]):
    """Versions, oldest first; a tuple that prints as a table."""

    __slots__ = ()
    _HEAD: ClassVar = ("version", "created", "operation", "id")

    def _rows(self) -> list[tuple[object, ...]]:
        versions: Sequence[Version] = self
        return [(one.version, one.created, one.operation, one.id) for one in versions]

    def __str__(self) -> str:
        return text_table(self._HEAD, self._rows())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table("history", self._HEAD, self._rows())


@dataclass(frozen=True, slots=True)
class FeatureStatus:
    """How one feature stands.

    Parameters
    ----------
    columns : tuple of str
    kind : str
        Of its transformer.
    fresh, stale, missing : int
        Partitions.
    reasons : tuple of str
        Why the stale ones are: ``"input"``, ``"code"``, ``"fit scope"`` and so on.
    """

    columns: tuple[str, ...]
    kind: str
    fresh: int
    stale: int
    missing: int
    reasons: tuple[str, ...] = ()

    @property
    def is_fresh(self) -> bool:
        return not self.stale and not self.missing

    def strip(self) -> Markup:
        """Return a bar for a notebook: how many partitions are fresh, stale and missing."""
        counts = (("fresh", self.fresh), ("stale", self.stale), ("missing", self.missing))
        return strip([one for one in counts if one[1]])


@dataclass(frozen=True, slots=True)
class TableStatus:
    """How all features of a table stand."""

    table: str
    features: tuple[FeatureStatus, ...]

    _HEAD: ClassVar = ("feature", "kind", "fresh", "stale", "missing", "why stale")

    @property
    def is_fresh(self) -> bool:
        return all(one.is_fresh for one in self.features)

    def __getitem__(self, column: str) -> FeatureStatus:
        for one in self.features:
            if column in one.columns:
                return one
        raise KeyError(column)

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (
                ", ".join(one.columns),
                one.kind,
                one.fresh,
                one.stale,
                one.missing,
                ", ".join(one.reasons),
            )
            for one in self.features
        ]

    def __str__(self) -> str:
        if not self.features:
            return f"table {self.table} has no features yet"
        return text_table(self._HEAD, self._rows())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [
            (row[0], one.strip(), *row[1:])
            for row, one in zip(self._rows(), self.features, strict=True)
        ]
        head = (self._HEAD[0], "partitions", *self._HEAD[1:])
        return html_table(f"status of {self.table} (partitions)", head, rows)


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Parameters
    ----------
    columns : tuple of str
        That got values.
    computed, resumed, reused : int
        Partitions x features computed now, found finished by an earlier, interrupted build, and
        found to be still right although something they were computed from changed.
    bytes_written : int
    version : int
        That the result was published as.
    seconds : float
    """

    columns: tuple[str, ...]
    computed: int
    resumed: int
    bytes_written: int
    version: int
    seconds: float
    reused: int = 0

    def __str__(self) -> str:
        resumed = f", {self.resumed} found finished" if self.resumed else ""
        reused = f", {self.reused} still right" if self.reused else ""
        return (
            f"version {self.version}: {format_names(self.columns) or 'nothing to do'}; "
            f"{self.computed} partitions computed{resumed}{reused}, "
            f"{format_bytes(self.bytes_written)} written in {self.seconds:.1f} s"
        )


@dataclass(frozen=True, slots=True)
class RowsReport:
    """What a change of rows did.

    Parameters
    ----------
    removed, written : int
        Rows that went, and rows that came. A row that stays counts as neither, although its
        partition may have been written again.
    rewritten : int
        Partitions that gave way to others, or to none.
    version : int
        That the result was published as; the version as it was if nothing changed.
    """

    removed: int
    written: int
    rewritten: int
    version: int

    def __str__(self) -> str:
        if not self.removed and not self.written:
            return f"version {self.version}: no row to change"
        return (
            f"version {self.version}: {self.removed:,} rows removed, {self.written:,} written; "
            f"{self.rewritten} partitions rewritten"
        )


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did.

    Parameters
    ----------
    table : str
    partitions_before, partitions_after : int
    files_before, files_after : int
        Data files that the table's newest version names.
    bytes_written : int
    missing : tuple of str
        Columns that were missing or stale somewhere, and are missing now in a merged partition.
    version : int
        That the result was published as; the version as it was if there was nothing to do.
    seconds : float
    """

    table: str
    partitions_before: int
    partitions_after: int
    files_before: int
    files_after: int
    bytes_written: int
    missing: tuple[str, ...]
    version: int
    seconds: float

    def __str__(self) -> str:
        missing = f"; build is to compute {', '.join(self.missing)}" if self.missing else ""
        return (
            f"version {self.version}: table {self.table} has {self.partitions_after} partitions in "
            f"{self.files_after} files, before {self.partitions_before} in {self.files_before}; "
            f"{format_bytes(self.bytes_written)} written in {self.seconds:.1f} s{missing}"
        )
