"""A proposal: definitions held against a store at one version, shown as a plan, and applied as such.

Applying is one commit that exchanges all definitions of all tables, made on the version that was shown or
not at all, and then a build of each table. Killed in between, the next plan says what is left to compute,
and its builds resume from their journals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featurestore.errors import LimitError, NotReadyError
from featurestore.execution.feasibility import projected, step_peaks
from featurestore.execution.publish import exchange_features, require_unchanged
from featurestore.expectations.checking import expectations_of
from featurestore.expectations.expectation import Expectation
from featurestore.features import FeatureSet
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessment, Assessor, Freshness
from featurestore.plan.states import require_fit_rows
from featurestore.plan.table_files import TableFiles, source_of
from featurestore.project.definitions import Stated, Wanted
from featurestore.project.differences import differences
from featurestore.project.intent import IntendedTable, intended_tables
from featurestore.project.plan import Action, ExpectedChange, FeatureChange, ProjectPlan
from featurestore.report.plans import build_plan, reasons
from featurestore.report.tables import BuildReport
from featurestore.session import Session
from featurestore.storage.records import BASE_GROUP, Snapshot
from featurestore.storage.states import StateStore
from featurestore.validation import ExpectationSet, check_expectation


@dataclass(frozen=True, slots=True)
class Proposal:
    """What definitions make of a store at one version.

    Parameters
    ----------
    session : Session
    snapshot : Snapshot
    tables : mapping of str to IntendedTable
        In the order of building.
    plan : ProjectPlan
    expected : mapping of str to sequence of Expectation
        All of the tables of which something is said.
    """

    session: Session
    snapshot: Snapshot
    tables: Mapping[str, IntendedTable]
    plan: ProjectPlan
    expected: Mapping[str, Sequence[Expectation]]

    def apply(self, report: Callable[[str, BuildReport], None]) -> None:
        """Do what the plan says.

        Parameters
        ----------
        report : callable
            Told each table's name and what was built of it.

        Raises
        ------
        NotReadyError
            If definitions wait for a table.
        LimitError
            If the plan does not fit the memory limit. Nothing is done in both cases.
        ConflictError
            If somebody published anything since the plan was made; nothing is done then.
        """
        if self.plan.waiting:
            table, missing = self.plan.waiting[0]
            raise NotReadyError(
                f"the definitions of table {table!r} wait for table {missing!r}, which is not ingested",
                "ingest it, or take the definitions out; nothing was applied",
            )
        if self.plan.remedies:
            raise LimitError(
                f"the plan does not fit the memory limit of {self.plan.memory_limit:,} bytes",
                f"{self.plan.remedies[0]}; nothing was applied",
            )
        new = [(one.files, one.new) for one in self.tables.values()]
        removed = {
            name: frozenset(feature.group for feature in one.removed)
            for name, one in self.tables.items()
        }
        if any(features for _, features in new) or any(removed.values()):
            self.session.commit(
                "apply definitions",
                exchange_features(self.session.objects, self.snapshot, new, removed),
            )
        else:
            require_unchanged(self.snapshot, self.session.snapshot())
        for change in self.plan.expected:  # before what is built is held against them
            ExpectationSet(self.session, change.table).state(
                self.expected[change.table], replacing=True
            )
        built = {one.table for one in self.plan.changes if one.partitions}
        for name in self.tables:
            if name in built:
                report(name, FeatureSet(self.session, name).build())


def propose(session: Session, wanted: Wanted, url: str) -> Proposal:
    """Hold definitions against the newest version of a store.

    Raises
    ------
    FeatureStoreError
        As :func:`intended_tables`; or if a fitted feature has no row to learn from.
    """
    with session.holding_newest() as (held, snapshot):
        waiting = waiting_tables(wanted.features, snapshot.tables())
        tables = intended_tables(held, snapshot, wanted.features, waiting)
        expected = {name: some for name, some in wanted.expectations.items() if name in tables}
        costs = _Costs.of(held, tables)
        changes = [one for name in tables for one in costs.changes(name)]
        changes.sort(key=lambda one: one.action is Action.DROP)  # stable: the rest stay in order
        plans = [
            build_plan(
                name, projected(one.files, costs.files, costs.found[name], costs.states,
                held.executor), costs.found[name], held.executor, held.place.memory_limit,
                held.place.scratch,
            )
            for name, one in tables.items()
        ]  # fmt: skip
        plan = ProjectPlan(
            url,
            snapshot.version,
            tuple(changes),
            tuple(waiting.items()),
            max((one.peak_bytes for one in plans if one.steps), default=0),
            held.place.memory_limit,
            tuple(f"table {one.table}: {one.remedy}" for one in plans if not one.fits),
            tuple(
                change
                for name, some in expected.items()
                if (change := _expected_change(held, tables[name].files, some)) is not None
            ),
        )
    return Proposal(session, snapshot, tables, plan, expected)


def _expected_change(
    session: Session, files: TableFiles, wanted: Sequence[Expectation]
) -> ExpectedChange | None:
    """Return what a table is to expect that it does not, and the reverse; None if that is nothing."""
    for one in wanted:
        check_expectation(session, files, one)
    now = [one.as_asked() for one in expectations_of(files.entry)]
    stated = tuple(str(one) for one in dict.fromkeys(wanted) if one not in now)
    dropped = tuple(str(one) for one in now if one not in wanted)
    return ExpectedChange(files.name, stated, dropped) if stated or dropped else None


def plan_without_store(url: str, wanted: Wanted) -> ProjectPlan:
    """Return the plan for a store that is not there: everything waits to be ingested."""
    return ProjectPlan(url, None, waiting=tuple(waiting_tables(wanted.features, ()).items()))


def waiting_tables(wanted: Mapping[str, Sequence[Stated]], tables: Sequence[str]) -> dict[str, str]:
    """Return the tables whose definitions cannot be bound yet, and which table each waits for."""
    waiting = {name: name for name in wanted if name not in tables}
    grew = True
    while grew:
        grew = False
        for name, stated in wanted.items():
            reads = [one.definition.source_table for one in stated]
            for other in reads if name not in waiting else ():
                if other is not None and (other not in tables or other in waiting):
                    waiting[name], grew = waiting.get(other, other), True
                    break
    return waiting


@dataclass(frozen=True, slots=True)
class _Costs:
    """How the features of intended tables stand, and what they cost."""

    session: Session
    tables: Mapping[str, IntendedTable]
    files: Mapping[str, TableFiles]
    found: Mapping[str, Mapping[str, tuple[Assessment, ...]]]
    states: StateStore

    @classmethod
    def of(cls, session: Session, tables: Mapping[str, IntendedTable]) -> _Costs:
        files = {name: one.files for name, one in tables.items()}
        assessor = Assessor(files)
        found = {name: assessor.table(name) for name in tables}
        return cls(session, tables, files, found, StateStore(session.objects))

    def changes(self, name: str) -> list[FeatureChange]:
        """Return what changes of a table's features: those that come and change, stale ones, dropped ones."""
        table = self.tables[name]
        before = {column: one for one in table.removed for column in one.names}
        replaced: set[str] = set()
        changes = []
        for feature in table.new:
            old = dict.fromkeys(before[column] for column in feature.names if column in before)
            replaced.update(one.group for one in old)
            why = tuple(line for one in old for line in _changed(one, feature))
            changes.append(self._costed(name, feature, Action.CHANGE if old else Action.ADD, why))
        for feature in table.kept:
            if not all(one.is_fresh for one in self.found[name][feature.group]):
                changes.append(
                    self._costed(name, feature, Action.BUILD, self._stale(name, feature))
                )
        changes += [
            FeatureChange(Action.DROP, name, one.names, one.kind)
            for one in table.removed
            if one.group not in replaced
        ]
        return changes

    def _stale(self, name: str, feature: Feature) -> tuple[str, ...]:
        """Return why values of a feature that stays are not fresh, and what upstream made them so."""
        found = self.found[name][feature.group]
        lines = []
        stale = sum(one.freshness is Freshness.STALE for one in found)
        missing = sum(one.freshness is Freshness.MISSING for one in found)
        if stale:
            why = ", ".join(one for one in reasons(found) if one != Freshness.MISSING)
            upstream = self._unready(name, feature)
            because = f"; upstream: {', '.join(upstream)}" if upstream else ""
            lines.append(f"stale in {stale} partitions ({why}{because})")
        if missing:
            lines.append(f"missing in {missing} partitions")
        return tuple(lines)

    def _unready(self, name: str, feature: Feature) -> tuple[str, ...]:
        """Return the columns that a feature reads and that are not fresh everywhere."""
        table = self.files[name]
        read = [(table, column) for column in feature.inputs]
        source = source_of(feature, table, self.files)
        if source is not None:
            read += [(source[0], column) for column in source[1]]
        return tuple(
            f"{files.name}.{column}" for files, column in read if not self._is_fresh(files, column)
        )

    def _is_fresh(self, files: TableFiles, column: str) -> bool:
        group = files.graph.owners[column]
        return group == BASE_GROUP or all(one.is_fresh for one in self.found[files.name][group])

    def _costed(
        self, name: str, feature: Feature, action: Action, why: tuple[str, ...]
    ) -> FeatureChange:
        found, place = self.found[name], self.session.place
        unfinished = [one for one in found[feature.group] if not one.is_fresh]
        for one in unfinished:
            require_fit_rows(feature, one.need)
        files = self.files[name]
        # Of thousands of others, only what it reads matters to what it costs.
        needed = {one.group for one in files.graph.needed([feature.group])}
        relevant = {group: one if group in needed else () for group, one in found.items()}
        projection = projected(
            files, self.files, relevant, self.states, place.executor, {feature.group}
        )
        peaks = step_peaks(projection, place.executor.sites(), place.memory_limit)
        others = [one for one in self._unready(name, feature) if not one.startswith(f"{name}.")]
        return FeatureChange(
            action,
            name,
            feature.names,
            feature.kind,
            why,
            len(unfinished),
            max((one.peak_bytes for one in peaks), default=0),
            sum(one.output_bytes for one in projection.steps),
            bool(others),
        )


def _changed(old: Feature, new: Feature) -> tuple[str, ...]:
    lost = [name for name in old.names if name not in new.names]
    gone = (f"no longer gives {', '.join(lost)}",) if lost else ()
    return (*differences(old.definition, new.definition), *gone)
