"""The features of a table: defined, planned, built, judged and dropped.

A definition that is added again is the same feature; a changed one takes ``replace=True``. Nothing
becomes visible before the one commit at the end.
"""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurestore.arguments import format_names
from featurestore.dataset.view import TableView
from featurestore.errors import InvalidInputError, NotReadyError
from featurestore.execution.feasibility import projected
from featurestore.execution.publish import drop_groups, publish_features
from featurestore.execution.runner import Build
from featurestore.execution.sampling import bind_to_sample
from featurestore.execution.states import Available, StateRequest, prepared_state
from featurestore.expectations.checking import Judged, concerned, enforce, noted
from featurestore.plan.definition import Feature, FeatureDefinition
from featurestore.plan.lineage import lineage
from featurestore.plan.readers import changed_columns, readers
from featurestore.plan.staleness import Assessment, Freshness
from featurestore.plan.states import require_fit_rows
from featurestore.plan.table_files import TableFiles
from featurestore.report.plans import BuildPlan, build_plan, reasons
from featurestore.report.progress import progress_bars
from featurestore.report.tables import (
    BuildReport,
    FeatureStatus,
    TableStatus,
)
from featurestore.session import Session
from featurestore.storage.journal import Journal
from featurestore.storage.leases import NO_LEASE, Lease
from featurestore.storage.records import BASE_GROUP, Snapshot
from featurestore.storage.states import StateStore
from featurestore.transforms.base import EMPTY_STATE, Scope, State, Transformer


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
        with self.session.writing_newest() as (session, snapshot):
            work = FeatureSet(session, self.table)
            change = work._with(snapshot, definitions, replace)
            return work._build(change, f"add {_names(change.features)} to {self.table}")

    def define(self, definitions: Sequence[FeatureDefinition], replace: bool) -> None:
        """Publish definitions without values."""
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            work = FeatureSet(session, self.table)
            work._define(work._with(snapshot, definitions, replace))

    def _define(self, change: _Change) -> None:
        new = tuple(one for one in change.features if one.group in change.new)
        if not new:
            return  # a script that runs again defines nothing
        assessor = self.session.assessor(change.files)
        for one in new:  # raises if features of several tables need each other
            assessor.group(self.table, one.group)
        self.session.commit(
            f"define {_names(new)} of {self.table}",
            publish_features(
                self.session.objects, change.files, new, {}, change.new, change.removed
            ),
        )

    def drop(self, columns: Sequence[str]) -> None:
        """Remove features; see ``Table.drop``."""
        if not columns:
            raise InvalidInputError("drop was given no column", "name the columns of a feature")
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
        for group in sorted(groups):
            left = [name for name in files.groups[group].names if name not in columns]
            if left:
                raise InvalidInputError(
                    f"{left} belong to the same feature as {files.groups[group].names[0]!r}",
                    "name all columns of the feature, or keep it",
                )
        for reader in readers(files.snapshot, self.table, set(columns)):
            if reader.table != self.table or reader.group not in groups:
                raise InvalidInputError(str(reader), "drop that feature as well")
        self.session.commit(
            f"drop {', '.join(columns)} of {self.table}", drop_groups(files, groups)
        )

    # --- judging -------------------------------------------------------------------------------

    def status(self) -> TableStatus:
        """Return how all features stand."""
        files = self.session.files(self.table)
        found = self.session.assessor(files).table(self.table)
        return TableStatus(
            self.table,
            tuple(_feature_status(one, found[one.group]) for one in files.graph.features()),
        )

    def plan(self) -> BuildPlan:
        """Return what ``build`` would do and cost; computes nothing.

        Raises
        ------
        NotReadyError
            As ``build``: if a function's code changed, or another table has to be built before.
        """
        files = self.session.files(self.table)
        assessor = self.session.assessor(files)
        assessor.require_buildable(self.table, [one.group for one in files.graph.features()])
        assessments = assessor.table(self.table)
        place = self.session.place
        projection = projected(
            files, self.session.sources(files), assessments, StateStore(place.store), place.executor
        )
        return build_plan(
            self.table,
            projection,
            assessments,
            place.executor,
            place.memory_limit,
            place.scratch,
        )

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
        assessor = self.session.assessor(files)
        for group in sorted(groups):
            found = assessor.group(self.table, group)
            missing = sum(one.freshness is Freshness.MISSING for one in found)
            stale = sum(one.freshness is Freshness.STALE for one in found)
            if missing or stale:
                needed = files.graph.needed([group])
                assessor.require_buildable(self.table, [one.group for one in needed])
                raise NotReadyError(
                    f"{', '.join(files.groups[group].names)} of table {self.table!r}: {missing} of "
                    f"{len(files.base)} partitions missing, {stale} stale "
                    f"({', '.join(reasons(found))})",
                    f"run store.table({self.table!r}).build()",
                )

    def cardinalities(self, files: TableFiles, columns: Sequence[str]) -> dict[str, int]:
        """Return how many codes each stored categorical column among these may take."""
        found: dict[str, int] = {}
        assessor = self.session.assessor(files)
        groups = set(files.groups_of(tuple(columns)))
        for feature in files.graph.features():
            if feature.group not in groups or not files.base:
                continue
            state: State = EMPTY_STATE
            if feature.transformer.scope is Scope.FIT:
                need = assessor.group(self.table, feature.group)[0].need
                require_fit_rows(feature, need)
                request = StateRequest(
                    feature.transformer,
                    files.schema,
                    Available(files, {}),
                    feature.inputs,
                    [need],
                )
                # Kept from the build, unless it was cleared away since.
                state = prepared_state(request, self.session.place)
            found.update(feature.transformer.code_counts(files.schema))
            found.update(feature.transformer.cardinalities(state))
        return {name: count for name, count in found.items() if name in columns}

    def view(self, files: TableFiles, columns: Sequence[str], lease: Lease = NO_LEASE) -> TableView:
        """Return a view of columns whose values are all fresh.

        Raises
        ------
        NotReadyError
            If they are not.
        """
        for name in columns:
            files.schema[name]
        self.require_fresh(files, columns)
        place, available = self.session.place, Available(files, {})
        return TableView(
            store=self.session.objects,
            snapshot=files.snapshot,
            table=self.table,
            schema=files.schema,
            partitions=tuple(available.at(n, columns) for n in range(len(files.base))),
            engine_name=place.engine,
            memory_limit=place.memory_limit,
            executor=place.executor,
            scratch=place.scratch,
            cardinalities=self.cardinalities(files, columns),
            lineage=lineage(files, self.session.sources(files), columns),
            lease=lease,
        )

    # --- building ------------------------------------------------------------------------------

    def build(self) -> BuildReport:
        """Compute everything that is missing or stale, and publish it."""
        self.session.require_writable()
        with self.session.writing_newest() as (session, snapshot):
            files = session.files(self.table, snapshot)
            change = _Change(files, files.graph.features(), frozenset(), frozenset())
            return FeatureSet(session, self.table)._build(change, f"build {self.table}")

    def _build(self, asked: _Change, operation: str) -> BuildReport:
        started = clock.perf_counter()
        files = asked.files
        sources = self.session.sources(files)
        assessor = self.session.assessor(files)
        needed = [one.group for one in files.graph.needed(one.group for one in asked.features)]
        assessor.require_buildable(self.table, needed)
        wanted = frozenset(needed)
        assessments = {
            one.group: assessor.group(self.table, one.group) if one.group in wanted else ()
            for one in files.graph.features()
        }
        place = self.session.place
        states = StateStore(place.store)
        projection = projected(files, sources, assessments, states, place.executor)
        with progress_bars():
            result = Build(place, files, sources, assessments).run(projection)
        expected = concerned(files, result.entries, rows=False)
        written_now = {group: tuple(one.values()) for group, one in result.entries.items()}
        # Refused, what is finished stays in the journal: nothing is computed twice.
        judged = Judged(place, files, written_now, files.base)
        operation += noted(enforce(judged, expected, operation))
        features = tuple(
            one
            for one in files.graph.features()
            if one.group in result.entries or one.group in asked.new
        )
        change = publish_features(
            self.session.objects, files, features, result.entries, asked.new, asked.removed
        )
        written = [entry for entries in result.entries.values() for entry in entries.values()]
        snapshot = self.session.commit(operation, change, written)
        Journal(self.session.objects, self.table).clear(result.journal_keys)
        return BuildReport(
            columns=tuple(
                name for one in features if one.group in result.entries for name in one.names
            ),
            computed=result.computed,
            resumed=result.resumed,
            reused=result.reused,
            bytes_written=result.bytes_written,
            version=snapshot.version,
            seconds=clock.perf_counter() - started,
        )

    def _with(
        self, snapshot: Snapshot, definitions: Sequence[FeatureDefinition], replace: bool
    ) -> _Change:
        """Return the table with definitions added."""
        before = self.session.files(self.table, snapshot)
        bound, removed = bind_to_sample(definitions, before, self.session.place, replace)
        new = tuple(one for one in bound if one.group not in before.groups)
        _check_readers_stay(before, new, removed)
        files = before.with_features(new, removed)
        return _Change(files, bound, frozenset(one.group for one in new), removed)


@dataclass(frozen=True, slots=True)
class _Change:
    """A table as it will be, and how that differs from what it is.

    Parameters
    ----------
    files : TableFiles
    features : tuple of Feature
        Those that are to have values afterwards.
    new, removed : frozenset of str
        Groups.
    """

    files: TableFiles
    features: tuple[Feature, ...]
    new: frozenset[str]
    removed: frozenset[str]


def definitions_of(transformers: Sequence[Any], fit_on: Any) -> list[FeatureDefinition]:
    """Return what ``add`` was asked to define.

    Raises
    ------
    InvalidInputError
        If there is none, one is no transformer, or none learns and ``fit_on`` says from what.
    """
    if not transformers:
        raise InvalidInputError("add was given no transformer", "pass at least one")
    for one in transformers:
        if not isinstance(one, Transformer):
            raise InvalidInputError(
                f"{one!r} is no transformer",
                "pass fs.Expression(...), fs.Rolling(...) and the like; use "
                "@table.feature(...) for a plain function",
            )
    fitted = [one.scope is Scope.FIT for one in transformers]
    if fit_on is not None and not any(fitted):
        raise InvalidInputError(
            f"fit_on={fit_on!r} was given and none of the transformers learns anything",
            "leave fit_on out",
        )
    return [
        FeatureDefinition(one, fit_on if learns else None)
        for one, learns in zip(transformers, fitted, strict=True)
    ]


def _check_readers_stay(
    before: TableFiles, new: Sequence[Feature], removed: frozenset[str]
) -> None:
    """Refuse to replace a column by none, or by one of another type, while features read it."""
    old = {field.name: field for group in removed for field in before.groups[group].fields}
    given = {field.name: field for one in new for field in one.outputs}
    for reader in readers(before.snapshot, before.name, changed_columns(old, given)):
        if reader.table != before.name or reader.group not in removed:
            what = "has another type in" if reader.column in given else "is missing from"
            raise InvalidInputError(
                f"{reader}, which {what} the new definition",
                "keep the column and its type, or drop that feature first",
            )


def _names(features: Sequence[Feature]) -> str:
    return format_names([name for one in features for name in one.names])


def _feature_status(feature: Feature, assessments: Sequence[Assessment]) -> FeatureStatus:
    fresh, stale, missing = (
        sum(one.freshness is kind for one in assessments) for kind in Freshness
    )
    reasons = [one.reason for one in assessments if one.freshness is Freshness.STALE]
    return FeatureStatus(
        feature.names,
        feature.kind,
        fresh,
        stale,
        missing,
        tuple(dict.fromkeys(reasons)),
    )
