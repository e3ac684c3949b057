"""What a repair did, and what it could not do, as tables that print well and hold plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from featurestore.markup import html_table
from featurestore.report.tables import text_table


@dataclass(frozen=True, slots=True)
class Mended:
    """What was mended, or with ``dry_run`` would be.

    Parameters
    ----------
    table : str
        Empty for files that belong to none.
    columns : tuple of str
        Of the feature, or of the ingested data.
    partitions : tuple of str
        Their ids.
    files : tuple of str
        For deleted files.
    how : str
        ``"computed again"``, ``"copy of version 7"``, ``"made missing"`` or ``"deleted"``.
    """

    how: str
    table: str = ""
    columns: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        return f"{self.table}: {', '.join(self.columns)}" if self.table else ", ".join(self.files)


@dataclass(frozen=True, slots=True)
class Left:
    """What could not be mended.

    Parameters
    ----------
    file : str
        The damaged file.
    problem, reason, remedy : str
        What is wrong with it, why it cannot be mended here, and what mends it.
    table, partition : str
    columns : tuple of str
    """

    file: str
    problem: str
    reason: str
    remedy: str
    table: str = ""
    columns: tuple[str, ...] = ()
    partition: str = ""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did, or with ``dry_run`` would do.

    Parameters
    ----------
    dry_run : bool
    version : int
        That the store is at afterwards.
    mended : tuple of Mended
    left : tuple of Left
    """

    dry_run: bool
    version: int
    mended: tuple[Mended, ...] = ()
    left: tuple[Left, ...] = ()

    _MENDED: ClassVar = ("what", "partitions", "how")
    _LEFT: ClassVar = ("what", "partition", "file", "problem", "why it is left", "remedy")

    @property
    def ok(self) -> bool:
        """Whether nothing damaged is left."""
        return not self.left

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "dry_run": self.dry_run,
            "version": self.version,
            "mended": [
                {
                    "how": one.how,
                    "table": one.table,
                    "columns": list(one.columns),
                    "partitions": list(one.partitions),
                    "files": list(one.files),
                }
                for one in self.mended
            ],
            "left": [
                {
                    "file": one.file,
                    "problem": one.problem,
                    "reason": one.reason,
                    "remedy": one.remedy,
                    "table": one.table,
                    "columns": list(one.columns),
                    "partition": one.partition,
                }
                for one in self.left
            ],
        }

    def _mended_rows(self) -> list[tuple[object, ...]]:
        return [(one.what, len(one.partitions), one.how) for one in self.mended]

    def _left_rows(self) -> list[tuple[object, ...]]:
        return [
            (
                f"{one.table}: {', '.join(one.columns)}" if one.table else "",
                one.partition,
                one.file,
                one.problem,
                one.reason,
                one.remedy,
            )
            for one in self.left
        ]

    def _caption(self) -> str:
        verb = "would mend" if self.dry_run else "mended"
        return f"{verb} {len(self.mended)}, left {len(self.left)}, version {self.version}"

    def __str__(self) -> str:
        if not self.mended and not self.left:
            return f"version {self.version}: nothing is damaged"
        lines = [self._caption()]
        if self.mended:
            lines.append(text_table(self._MENDED, self._mended_rows()))
        for one in self.left:
            where = f" ({one.table}: {', '.join(one.columns)})" if one.table else ""
            lines.append(f"left: {one.file}{where}: {one.problem}; {one.reason}; {one.remedy}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        mended = html_table(self._caption(), self._MENDED, self._mended_rows())
        return mended + html_table("left", self._LEFT, self._left_rows())
