"""The features of a table: defined, planned, built, judged and dropped.

A definition that is added again is the same feature; a changed one takes ``replace=True``. Nothing
becomes visible before the one commit at the end.
"""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.errors import InvalidInputError, MemoryLimitError, NotReadyError
from featurestore.execution.publish import drop_groups, publish_features
from featurestore.execution.runner import Build
from featurestore.execution.sampling import bind_to_sample
from featurestore.plan.definition import Feature, FeatureDefinition
from featurestore.plan.projection import project, resident_bytes, workers_within
from featurestore.plan.staleness import Assessment, Freshness, assess
from featurestore.plan.table_files import TableFiles
from featurestore.report.progress import progress_bars
from featurestore.report.tables import (
    BuildPlan,
    BuildReport,
    FeatureStatus,
    PlanStep,
    TableStatus,
)
from featurestore.session import Session
from featurestore.storage.journal import Journal
from featurestore.storage.records import BASE_GROUP
from featurestore.transforms.function import Function


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """The features of one table.

    Parameters
    ----------
    session : Session
    table : str
    """

    session: Session
    table: str

    # --- defining ------------------------------------------------------------------------------

    def add(self, definitions: Sequence[FeatureDefinition], replace: bool) -> BuildReport:
        """Define features, compute what is missing of them and of what they need, and publish."""
        self.session.require_writable()
        files, features, removed = self._with(definitions, replace)
        wanted = frozenset(one.group for one in features)
        return self._build(files, wanted, removed, f"add {_names(features)} to {self.table}")

    def define(self, definitions: Sequence[FeatureDefinition], replace: bool) -> None:
        """Publish definitions without values."""
        self.session.require_writable()
        _, features, removed = self._with(definitions, replace)
        change = publish_features(self.session.objects, self.table, features, {}, removed)
        self.session.commit(f"define {_names(features)} of {self.table}", change)

    def drop(self, columns: Sequence[str]) -> None:
        """Remove features; see ``Table.drop``."""
        files = self.session.files(self.table)
        for name in columns:
            files.schema[name]
        groups = frozenset(files.groups_of(tuple(columns)))
        if BASE_GROUP in groups:
            ingested = [name for name in columns if files.graph.owners[name] == BASE_GROUP]
            raise InvalidInputError(
                f"column {ingested[0]!r} was ingested and cannot be dropped",
                "leave it out of datasets instead",
            )
        for group in groups:
            _check_droppable(files, group, groups, columns)
        change = drop_groups(self.table, groups)
        self.session.commit(f"drop {', '.join(columns)} of {self.table}", change)

    # --- judging -------------------------------------------------------------------------------

    def status(self) -> TableStatus:
        """Return how all features stand."""
        files = self.session.files(self.table)
        found = self._assess(files)
        return TableStatus(
            self.table,
            tuple(_feature_status(one, found[one.group]) for one in files.graph.features()),
        )

    def plan(self) -> BuildPlan:
        """Return what ``build`` would do and cost; computes nothing."""
        files = self.session.files(self.table)
        sources = self.session.sources(files)
        assessments = assess(files, sources)
        projections = project(files, sources, assessments)
        limit = self.session.place.memory_limit
        try:
            workers = workers_within(projections, limit, self.session.executor.workers)
        except MemoryLimitError:
            workers = 0
        levels = {one.group: n for n, level in enumerate(files.graph.levels, 1) for one in level}
        steps = tuple(
            PlanStep(
                columns=one.feature.names,
                kind=type(one.feature.transformer).__name__,
                level=levels[one.feature.group],
                partitions=one.partitions,
                rows=one.rows,
                why=_reasons(assessments[one.feature.group]),
                output_bytes=one.output_bytes,
                peak_bytes=one.peak_bytes,
            )
            for one in projections
        )
        at_once = max(1, min(workers, max((one.partitions for one in projections), default=1)))
        worst = max((one.peak_bytes for one in projections), default=0)
        reserved = resident_bytes()
        return BuildPlan(self.table, steps, reserved, workers, reserved + at_once * worst, limit)

    def require_fresh(self, files: TableFiles, columns: Sequence[str]) -> None:
        """Refuse columns whose values are not all there and up to date.

        Raises
        ------
        NotReadyError
            With the command that mends it.
        """
        groups = set(files.groups_of(tuple(columns))) - {BASE_GROUP}
        if not groups:
            return
        found = self._assess(files)
        for group in sorted(groups):
            missing = sum(one.freshness is Freshness.MISSING for one in found[group])
            stale = sum(one.freshness is Freshness.STALE for one in found[group])
            if missing or stale:
                raise NotReadyError(
                    f"{', '.join(files.groups[group].names)} of table {self.table!r}: {missing} of "
                    f"{len(files.base)} partitions missing, {stale} stale "
                    f"({', '.join(_reasons(found[group]))})",
                    f"run store.table({self.table!r}).build()",
                )

    # --- building ------------------------------------------------------------------------------

    def build(self) -> BuildReport:
        """Compute everything that is missing or stale, and publish it."""
        self.session.require_writable()
        files = self.session.files(self.table)
        wanted = frozenset(one.group for one in files.graph.features())
        return self._build(files, wanted, frozenset(), f"build {self.table}")

    def _build(
        self, files: TableFiles, wanted: frozenset[str], removed: frozenset[str], operation: str
    ) -> BuildReport:
        started = clock.perf_counter()
        sources = self.session.sources(files)
        needed = _with_needed(files, wanted)
        assessments = {
            group: found if group in needed else ()
            for group, found in assess(files, sources).items()
        }
        projections = project(files, sources, assessments)
        with progress_bars():
            result = Build(self.session.place, files, sources, assessments).run(projections)
        features = tuple(
            one
            for one in files.graph.features()
            if one.group in result.entries or one.group in wanted
        )
        change = publish_features(
            self.session.objects, self.table, features, result.entries, removed
        )
        snapshot = self.session.commit(operation, change)
        Journal(self.session.objects, self.table).clear(result.journal_keys)
        written = [entry for entries in result.entries.values() for entry in entries.values()]
        return BuildReport(
            columns=tuple(
                name for one in features if one.group in result.entries for name in one.names
            ),
            computed=result.computed,
            resumed=result.resumed,
            bytes_written=sum(file.bytes for entry in written for file in entry.all_files()),
            version=snapshot.version,
            seconds=clock.perf_counter() - started,
        )

    def _with(
        self, definitions: Sequence[FeatureDefinition], replace: bool
    ) -> tuple[TableFiles, tuple[Feature, ...], frozenset[str]]:
        """Return the table with definitions added, their features, and the groups they replace."""
        before = self.session.files(self.table)
        sources = {
            name: self.session.files(name, before.snapshot) for name in before.schema.sources
        }
        bound, removed = bind_to_sample(definitions, before, sources, self.session.place, replace)
        known = {one.group: one for one in before.graph.features()}
        new = tuple(one for one in bound if one.group not in known)
        files = before.without_groups(removed).with_features(new)
        return files, tuple(known.get(one.group, one) for one in bound), removed

    def _assess(self, files: TableFiles) -> dict[str, tuple[Assessment, ...]]:
        return assess(files, self.session.sources(files))


def _check_droppable(
    files: TableFiles, group: str, groups: frozenset[str], columns: Sequence[str]
) -> None:
    left = [name for name in files.groups[group].names if name not in columns]
    if left:
        raise InvalidInputError(
            f"{left} belong to the same feature as {files.groups[group].names[0]!r}",
            "name all columns of the feature, or keep it",
        )
    users = [one for one in files.graph.dependents(group) if one not in groups]
    if users:
        raise InvalidInputError(
            f"feature {files.groups[users[0]].names[0]!r} reads {files.groups[group].names[0]!r}",
            "drop that feature as well",
        )


def _with_needed(files: TableFiles, groups: frozenset[str]) -> frozenset[str]:
    """Return features' groups and those of all features that they need."""
    needed = set(groups)
    for feature in reversed(files.graph.features()):
        if feature.group in needed:
            needed.update(files.groups_of(feature.inputs))
    return frozenset(needed - {BASE_GROUP})


def _names(features: Sequence[Feature]) -> str:
    names = [name for one in features for name in one.names]
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _reasons(assessments: Sequence[Assessment]) -> tuple[str, ...]:
    found = dict.fromkeys(
        one.reason or str(one.freshness)
        for one in assessments
        if one.freshness is not Freshness.FRESH
    )
    return tuple(found)


def _feature_status(feature: Feature, assessments: Sequence[Assessment]) -> FeatureStatus:
    fresh, stale, missing = (
        sum(one.freshness is kind for one in assessments) for kind in Freshness
    )
    reasons = [one.reason for one in assessments if one.freshness is Freshness.STALE]
    transformer = feature.transformer
    if isinstance(transformer, Function) and _code_changed(transformer):
        # The function in this process is not the one the values were computed by.
        fresh, stale, reasons = 0, fresh + stale, ["code", *reasons]
    return FeatureStatus(
        feature.names,
        type(transformer).__name__,
        fresh,
        stale,
        missing,
        tuple(dict.fromkeys(reasons)),
    )


def _code_changed(function: Function) -> bool:
    current = function.current_code_fingerprint()
    return current is not None and current != function.function.code
