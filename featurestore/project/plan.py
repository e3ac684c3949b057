"""A project's plan: what would have to be done for a store to be as the definitions say, and its cost.

Always true: a plan is a value; it says what was found at one version of the store, and nothing was
computed for it but trials on a sample of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from featurestore.markup import beside, html_table, meter
from featurestore.report.previews import duration_text
from featurestore.units import format_bytes


class Action(StrEnum):
    """What becomes of a feature."""

    ADD = "add"
    CHANGE = "change"
    BUILD = "build"
    DROP = "drop"


_SIGNS: Final = {Action.ADD: "+", Action.CHANGE: "~", Action.BUILD: "!", Action.DROP: "-"}
_WORDS: Final = {
    Action.ADD: "to add", Action.CHANGE: "changed", Action.BUILD: "to compute again",
    Action.DROP: "to drop",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """One feature that is not as it should be.

    Parameters
    ----------
    action : Action
        ``BUILD`` for one whose definition stays and whose values are stale or missing.
    table : str
    columns : tuple of str
    kind : str
        Of its transformer.
    why : tuple of str
        For ``CHANGE`` the parameters, or a unified diff of the function; for ``BUILD`` the reasons.
    partitions : int
        In which it has to be computed.
    peak_bytes : int
        Projected, of this process and its workers, were it built alone; 0 if there is nothing to compute.
    output_bytes : int
        The most that is written, as it is in memory.
    at_least : bool
        Whether it reads another table's features that are not there yet, so that it may take more.
    seconds : float, optional
        Of computing it in these partitions, estimated from a sampled one; None if that was not asked
        for, or cannot be known yet.
    """

    action: Action
    table: str
    columns: tuple[str, ...]
    kind: str
    why: tuple[str, ...] = ()
    partitions: int = 0
    peak_bytes: int = 0
    output_bytes: int = 0
    at_least: bool = False
    seconds: float | None = None

    def __str__(self) -> str:
        lines = [f"{_SIGNS[self.action]} {self.table}: {', '.join(self.columns)}  ({self.kind})"]
        lines += [f"    {line}" for line in self.why]
        if self.partitions:
            most = "at least " if self.at_least else ""
            took = "" if self.seconds is None else f"about {duration_text(self.seconds)}, "
            lines.append(
                f"    {self.partitions} partitions, {took}peak {most}{format_bytes(self.peak_bytes)}, "
                f"writes {'about' if self.at_least else 'up to'} {format_bytes(self.output_bytes)}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "action": str(self.action),
            "table": self.table,
            "columns": list(self.columns),
            "kind": self.kind,
            "why": list(self.why),
            "partitions": self.partitions,
            "peak_bytes": self.peak_bytes,
            "output_bytes": self.output_bytes,
            "at_least": self.at_least,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class ExpectedChange:
    """What is to be expected of a table that is not, and is not to be that is.

    Parameters
    ----------
    table : str
    stated, dropped : tuple of str
    """

    table: str
    stated: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"+ {self.table} expects {one}" for one in self.stated]
        return "\n".join([*lines, *(f"- {self.table} expects {one}" for one in self.dropped)])

    def to_json(self) -> dict[str, Any]:
        return {"table": self.table, "state": list(self.stated), "drop": list(self.dropped)}


@dataclass(frozen=True, slots=True)
class ProjectPlan:
    """What ``featurestore apply`` would do.

    Parameters
    ----------
    store : str
    version : int, optional
        Of the store that it was made for; None if there is none.
    changes : tuple of FeatureChange
        In the order of building, those of a table together, those that go last.
    waiting : tuple of (str, str)
        Tables whose definitions wait for a table that is not ingested, and which that is.
    peak_bytes : int
        Projected, of the whole; 0 if nothing is computed.
    memory_limit : int
    remedies : tuple of str
        What would make it fit, by table; empty if it does.
    expected : tuple of ExpectedChange
    """

    store: str
    version: int | None
    changes: tuple[FeatureChange, ...] = ()
    waiting: tuple[tuple[str, str], ...] = ()
    peak_bytes: int = 0
    memory_limit: int = 0
    remedies: tuple[str, ...] = ()
    expected: tuple[ExpectedChange, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the store is as the definitions say."""
        return not self.changes and not self.waiting and not self.expected

    def __str__(self) -> str:
        at = "there is no store yet" if self.version is None else f"version {self.version}"
        head = f"{self.store}, {at}"
        if self.is_empty and self.version is None:
            return f"{head}, and nothing is defined"
        if self.is_empty:
            return f"{head}: everything is as defined"
        parts = [str(one) for one in (*self.changes, *self.expected)]
        parts += [
            f"? {table}: its definitions wait for table {missing!r}, which is not ingested\n"
            f"    featurestore ingest {self.store} {missing} FILES --key KEY --time TIME"
            for table, missing in self.waiting
        ]
        return "\n".join([head, "", *parts, "", *self._summary()])

    @property
    def seconds(self) -> float | None:
        """Of all changes that were timed; None if none was."""
        timed = [one.seconds for one in self.changes if one.seconds is not None]
        return sum(timed) if timed else None

    def _summary(self) -> list[str]:
        counts = [
            f"{number} {_WORDS[action]}"
            for action in Action
            if (number := sum(one.action is action for one in self.changes))
        ]
        counts += [f"{len(self.waiting)} tables wait"] if self.waiting else []
        for word, some in (
            ("state", [one for each in self.expected for one in each.stated]),
            ("drop", [one for each in self.expected for one in each.dropped]),
        ):
            counts += [f"{len(some)} expectations to {word}"] if some else []
        lines = [", ".join(counts)]
        if self.peak_bytes:
            lines.append(
                f"projected peak {format_bytes(self.peak_bytes)} of a memory limit of "
                f"{format_bytes(self.memory_limit)}"
            )
        if self.seconds is not None:
            untimed = sum(one.seconds is None and one.partitions > 0 for one in self.changes)
            more = f", without {untimed} that cannot be timed yet" if untimed else ""
            lines.append(f"about {duration_text(self.seconds)} one after the other{more}")
        return [*lines, *(f"does not fit: {one}" for one in self.remedies)]

    def _repr_html_(self) -> str:
        most = max(self.memory_limit, 1)
        rows = [
            (
                f"{_SIGNS[one.action]} {_WORDS[one.action]}", one.table, ", ".join(one.columns),
                one.kind, "\n".join(one.why), one.partitions or "",
                beside(format_bytes(one.peak_bytes), meter(one.peak_bytes, most, "of the limit"))
                if one.partitions else "",
            )
            for one in self.changes
        ]  # fmt: skip
        said = [f"{self.store}: everything is as defined"] if self.is_empty else self._summary()
        head = ("", "table", "columns", "kind", "why", "partitions", "peak")
        return html_table("; ".join(said), head, rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "store": self.store,
            "version": self.version,
            "changes": [one.to_json() for one in self.changes],
            "waiting": [{"table": table, "for": missing} for table, missing in self.waiting],
            "peak_bytes": self.peak_bytes,
            "memory_limit": self.memory_limit,
            "seconds": self.seconds,
            "expectations": [one.to_json() for one in self.expected],
            "does_not_fit": list(self.remedies),
        }
