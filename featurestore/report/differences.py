"""What differs between two versions of a store: values that print well, show as HTML, and are plain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from featurestore.markup import html_table
from featurestore.report.tables import text_table

TimeRange = tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class RowsDiff:
    """How the ingested rows of a table differ.

    Parameters
    ----------
    partitions_added, partitions_removed : int
        By id: rows never change under one.
    stored_added, stored_removed : int
        Rows of these partitions, whether or not they differ.
    added, removed : int, optional
        Rows that are in one version only, compared by content; None where that was not asked for.
    added_range, removed_range : (str, str), optional
        First and last event time: of these rows, or where they were not compared of the partitions.
    """

    partitions_added: int = 0
    partitions_removed: int = 0
    stored_added: int = 0
    stored_removed: int = 0
    added: int | None = None
    removed: int | None = None
    added_range: TimeRange = None
    removed_range: TimeRange = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs, as far as it was compared."""
        if self.added is None:
            return not self.partitions_added and not self.partitions_removed
        return not self.added and not self.removed


@dataclass(frozen=True, slots=True)
class FeatureDiff:
    """How a feature differs.

    Parameters
    ----------
    columns : tuple of str
        As the newer version has them; of a removed feature, as the older one.
    change : str
        ``"added"``, ``"removed"``, ``"redefined"``, or ``""`` if the definition is the same.
    parameters : tuple of (str, str, str)
        What was redefined: name, before, after.
    source : str
        A unified diff of a function's source; empty if it is the same.
    built, changed, missing : int
        Partitions that have values now and had none; whose values are of another provenance; that
        have none and had some, or are new. Where the rows are the same, only cut anew, and all have
        values as all had, nothing counts as built.
    """

    columns: tuple[str, ...]
    change: str = ""
    parameters: tuple[tuple[str, str, str], ...] = ()
    source: str = ""
    built: int = 0
    changed: int = 0
    missing: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.change or self.built or self.changed or self.missing)


@dataclass(frozen=True, slots=True)
class TableDiff:
    """How a table differs.

    Parameters
    ----------
    table : str
    change : str
        ``"added"``, ``"removed"``, ``"ingested anew"`` (other columns, key or time), or ``""``.
    rows : RowsDiff
    features : tuple of FeatureDiff
        Those that differ.
    """

    table: str
    change: str = ""
    rows: RowsDiff = RowsDiff()
    features: tuple[FeatureDiff, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.change and self.rows.is_empty and not self.features

    def __getitem__(self, column: str) -> FeatureDiff:
        for one in self.features:
            if column in one.columns:
                return one
        raise KeyError(column)


@dataclass(frozen=True, slots=True)
class StoreDiff:
    """What differs between two versions of a store.

    Parameters
    ----------
    before, after : str
        Ids of the snapshots.
    tables : tuple of TableDiff
        Those in which something differs, or whose partitions do.
    """

    before: str
    after: str
    tables: tuple[TableDiff, ...] = ()

    _HEAD: ClassVar = ("table", "what", "change", "details")

    @property
    def is_empty(self) -> bool:
        """Whether rows, features and values are the same; how rows are cut may differ."""
        return all(one.is_empty for one in self.tables)

    def __getitem__(self, table: str) -> TableDiff:
        for one in self.tables:
            if one.table == table:
                return one
        raise KeyError(table)

    def to_json(self) -> dict[str, Any]:
        """Return the differences as JSON values."""
        return {"is_empty": self.is_empty, **asdict(self)}

    def _rows(self) -> list[tuple[object, ...]]:
        return [line for one in self.tables for line in _lines(one)]

    def _caption(self) -> str:
        return f"from {self.before} to {self.after}"

    def __str__(self) -> str:
        rows = self._rows()
        if not rows:
            return f"{self._caption()}: no difference"
        sources = [one.source for table in self.tables for one in table.features if one.source]
        return "\n".join([self._caption(), text_table(self._HEAD, rows), *sources])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_table(self._caption(), self._HEAD, self._rows())


def _lines(diff: TableDiff) -> Iterator[tuple[object, ...]]:
    if diff.change:
        yield diff.table, "table", diff.change, ""
    rows = diff.rows
    if rows.added is None:
        added, removed, of = rows.stored_added, rows.stored_removed, " (of whole partitions)"
    else:
        added, removed, of = rows.added, rows.removed or 0, ""
    for count, what, span in (
        (added, "added", rows.added_range),
        (removed, "removed", rows.removed_range),
    ):
        if count:
            times = "" if span is None else f"{span[0]} to {span[1]}"
            yield diff.table, "rows", f"{count:,} {what}{of}", times
    if rows.partitions_added or rows.partitions_removed:
        text = f"{rows.partitions_added} added, {rows.partitions_removed} removed"
        yield diff.table, "partitions", text, ""
    for one in diff.features:
        parts = [f"{name}: {before} -> {after}" for name, before, after in one.parameters]
        counts = ((one.built, "built"), (one.changed, "changed"), (one.missing, "missing"))
        parts += [f"{count} partitions {what}" for count, what in counts if count]
        change = one.change or "values"
        yield diff.table, ", ".join(one.columns), change, "; ".join(parts)
