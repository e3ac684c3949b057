"""The features of a preview, built in a store of their own, and what that took."""

from __future__ import annotations

import time as clock
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from featurestore.execution.events import Event, TaskFinished, TaskStarted, observed_by
from featurestore.features import FeatureSet
from featurestore.plan.definition import Feature
from featurestore.plan.table_files import TableFiles
from featurestore.preview.sample import Sample
from featurestore.report.plans import BuildPlan
from featurestore.report.previews import PartitionCost, PreviewCost
from featurestore.session import Session


@dataclass(frozen=True, slots=True)
class Trial:
    """Features that were built in a store of their own, and what that took.

    Parameters
    ----------
    session : Session
    files : TableFiles
    spent : mapping of str to float
        Seconds of tasks by partition.
    overhead : float
        Seconds of everything else.
    """

    session: Session
    files: TableFiles
    spent: Mapping[str, float]
    overhead: float

    @classmethod
    def build(cls, session: Session, files: TableFiles, sample: Sample) -> Trial:
        """Compute the features of a sample."""
        watched = _Watched()
        started = clock.perf_counter()
        if sample.kept:
            definitions = [one.definition for one in sample.computed]
            with observed_by(watched):
                FeatureSet(session, files.name).add(definitions, replace=False)
        took = clock.perf_counter() - started
        return cls(
            session, session.files(files.name), watched.seconds,
            max(0.0, took - sum(watched.seconds.values())),
        )  # fmt: skip

    def cost(
        self,
        files: TableFiles,
        sample: Sample,
        features: Sequence[Feature],
        plan: BuildPlan,
        workers: int,
    ) -> PreviewCost:
        """Return what was measured, and what follows for the whole table."""
        groups = self.files.groups_of(tuple(n for one in features for n in one.names)) if (
            sample.kept) else ()  # fmt: skip
        found = []
        for position, base in zip(sample.kept, self.files.base, strict=True):
            written = [self.files.entries[one].get(base.partition) for one in groups]
            size = sum(f.bytes for one in written if one is not None for f in one.all_files())
            seconds = self.spent.get(base.partition, 0.0)
            found.append(PartitionCost(position, base.rows, seconds, size))
        per_row = [one.seconds / one.rows for one in found if one.rows]
        rows = sum(one.rows for one in found)
        total, at_once = files.rows, max(1, min(workers, len(files.base)))
        seconds = median(per_row) * total / at_once + self.overhead if per_row else 0.0
        size = sum(one.bytes for one in found) * total // rows if rows else 0
        return PreviewCost(
            tuple(one for one in found if one.position in sample.shown), seconds, at_once,
            plan.peak_bytes, size, plan.memory_limit, plan.remedy,
        )  # fmt: skip


class _Watched:
    """Adds up the seconds of tasks by the partition they are named after."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._begun: dict[tuple[int, int], tuple[str, float]] = {}

    def __call__(self, event: Event) -> None:
        now = clock.perf_counter()
        if isinstance(event, TaskStarted):
            self._begun[event.step, event.task] = event.label, now
        elif isinstance(event, TaskFinished):
            begun = self._begun.pop((event.step, event.task), None)
            if begun is not None:  # None: of other work, which had begun before
                self.seconds[begun[0]] += now - begun[1]
