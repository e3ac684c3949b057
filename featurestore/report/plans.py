"""What a build would do and take, as a table that prints well: one line per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from featurestore.arguments import format_names
from featurestore.execution.dask import Executor
from featurestore.execution.feasibility import StepPeak, step_peaks, what_would_do
from featurestore.markup import beside, html_table, meter
from featurestore.plan.projection import BuildProjection
from featurestore.plan.staleness import Assessment
from featurestore.report.tables import text_table
from featurestore.storage.scratch import Scratch
from featurestore.units import format_bytes


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a build.

    Parameters
    ----------
    work : {"summarize", "combine", "apply"}
        Compute missing summaries, put states together, compute and write values.
    columns : tuple of str
        Of all features that take part.
    kind : str
        Of their transformers.
    level : int
        Features of a level share one pass over the data.
    partitions : int
        That are read; for ``"combine"`` states that are put together.
    rows : int
        That are read.
    why : tuple of str
        ``"missing"``, or the reasons why values are stale.
    output_bytes : int
        The most that is written, as it is in memory.
    largest : str
        The partition whose task takes most.
    task_bytes : int
        What that task takes.
    at_once : int
        Tasks that run side by side, at least.
    peak_bytes : int
        Of this process and its workers on one host, during the step.
    scratch_bytes : int
        The most scratch space that the step needs.
    """

    work: str
    columns: tuple[str, ...]
    kind: str
    level: int
    partitions: int
    rows: int
    why: tuple[str, ...]
    output_bytes: int
    largest: str
    task_bytes: int
    at_once: int
    peak_bytes: int
    scratch_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What ``build`` would do now.

    Parameters
    ----------
    table : str
    steps : tuple of PlanStep
        In order; empty if everything is fresh.
    reserved_bytes : int
        What this process and its workers hold before it starts, with all loaded that it needs.
    peak_bytes : int
        The largest of the steps; ``reserved_bytes`` if there is none.
    memory_limit : int
    remedy : str
        What would make it fit; ``""`` if it does.
    """

    table: str
    steps: tuple[PlanStep, ...]
    reserved_bytes: int
    peak_bytes: int
    memory_limit: int
    remedy: str = ""

    _HEAD: ClassVar = (
        "pass", "step", "feature", "kind", "why", "partitions", "rows", "writes", "largest task",
        "in partition", "at once", "peak",
    )  # fmt: skip

    @property
    def is_empty(self) -> bool:
        return not self.steps

    @property
    def fits(self) -> bool:
        """Whether ``build`` would begin; what does not fit memory or scratch space is refused."""
        return not self.remedy

    @property
    def scratch_bytes(self) -> int:
        """The most scratch space that a step needs."""
        return max((one.scratch_bytes for one in self.steps), default=0)

    def _rows(self) -> list[tuple[object, ...]]:
        return [
            (
                one.level, one.work, format_names(one.columns), one.kind, ", ".join(one.why),
                one.partitions, one.rows, format_bytes(one.output_bytes),
                format_bytes(one.task_bytes), one.largest, one.at_once,
                format_bytes(one.peak_bytes),
            )
            for one in self.steps
        ]  # fmt: skip

    def _caption(self) -> str:
        said = (
            f"projected peak: {format_bytes(self.reserved_bytes)} reserved + "
            f"{format_bytes(self.peak_bytes - self.reserved_bytes)} in flight = "
            f"{format_bytes(self.peak_bytes)}, of a memory limit of "
            f"{format_bytes(self.memory_limit)}"
        )
        if self.scratch_bytes:
            said += f"; up to {format_bytes(self.scratch_bytes)} of scratch space"
        return said if self.fits else f"{said}: does not fit, {self.remedy}"

    def __str__(self) -> str:
        if self.is_empty:
            return f"table {self.table}: everything is fresh, nothing to build"
        return f"{text_table(self._HEAD, self._rows())}\n{self._caption()}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        if self.is_empty:
            return html_table(f"plan for {self.table}: nothing to build", self._HEAD, [])
        rows = [
            (*row[:-1], beside(row[-1], meter(one.peak_bytes, self.memory_limit, "of the limit")))
            for row, one in zip(self._rows(), self.steps, strict=True)
        ]
        return html_table(f"plan for {self.table}: {self._caption()}", self._HEAD, rows)


def build_plan(
    table: str,
    projection: BuildProjection,
    assessments: Mapping[str, Sequence[Assessment]],
    executor: Executor,
    memory_limit: int,
    scratch: Scratch,
) -> BuildPlan:
    """Return a projected build as it would run here."""
    sites = executor.sites()
    peaks = step_peaks(projection, sites, memory_limit)
    reserved = max(one.reserved_bytes for one in sites)
    return BuildPlan(
        table,
        tuple(_plan_step(one, assessments) for one in peaks),
        reserved,
        max((one.peak_bytes for one in peaks), default=reserved),
        memory_limit,
        what_would_do(projection, sites, memory_limit, scratch),
    )


def _plan_step(peak: StepPeak, assessments: Mapping[str, Sequence[Assessment]]) -> PlanStep:
    step = peak.step
    why = [reason for one in step.features for reason in reasons(assessments[one.group])]
    return PlanStep(
        work=step.work,
        columns=tuple(name for one in step.features for name in one.names),
        kind=", ".join(dict.fromkeys(one.kind for one in step.features)),
        level=step.level,
        partitions=step.partitions,
        rows=step.rows,
        why=tuple(dict.fromkeys(why)),
        output_bytes=step.output_bytes,
        largest=step.largest.partition,
        task_bytes=step.largest.bytes,
        at_once=peak.at_once,
        peak_bytes=peak.peak_bytes,
        scratch_bytes=step.scratch_bytes,
    )


def reasons(assessments: Sequence[Assessment]) -> tuple[str, ...]:
    """Return why values are not fresh, each reason once."""
    found = dict.fromkeys(
        one.reason or str(one.freshness) for one in assessments if not one.is_fresh
    )
    return tuple(found)
