"""A preview: features computed on a few partitions, in a store of their own, and what is found of them.

Always true: nothing is written to the store that is looked at. Memory is that of the features' own tasks,
of one partition's columns, and of a bounded sample of rows (``SAMPLED``) of a few columns at a time.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featurestore.arguments import whole_number
from featurestore.dataset.columns import looks_ahead_through
from featurestore.errors import InvalidInputError
from featurestore.execution.feasibility import projected
from featurestore.execution.sampling import bind_to_sample
from featurestore.features import definitions_of
from featurestore.leakage import AVAILABLE, check_leakage
from featurestore.plan.definition import Feature, FeatureDefinition
from featurestore.plan.staleness import Assessment, Assessor
from featurestore.plan.table_files import TableFiles
from featurestore.preview.columns import Neighbours, Shown, distribution
from featurestore.preview.copying import Excerpt, copied
from featurestore.preview.sample import Asked, Sample, sample_of, source_columns
from featurestore.preview.statistics import association, correlates
from featurestore.preview.trial import Trial
from featurestore.report.leakage import LeakReport
from featurestore.report.plans import BuildPlan, build_plan
from featurestore.report.previews import (
    Association,
    ColumnPreview,
    Preview,
)
from featurestore.schema import Field, type_to_text
from featurestore.session import Session
from featurestore.storage.records import Snapshot
from featurestore.storage.states import StateStore
from featurestore.transforms.base import Scope, SourceTransformer, Transformer


@dataclass(frozen=True, slots=True)
class Request:
    """What ``Table.preview`` was asked for; see there.

    ``beside`` are definitions that the features may read, and that are not previewed themselves.
    """

    feature: Any
    label: str | None = None
    partitions: int | Sequence[int] = 3
    fit_on: Any = None
    rows: int = 5
    against: Sequence[str] | None = None
    leak_rows: int = 20
    seed: int = 0
    known: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[FeatureDefinition] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.partitions, Iterable):
            object.__setattr__(self, "partitions", whole_number(self.partitions, "partitions", 1))
        whole_number(self.rows, "rows")
        whole_number(self.leak_rows, "leak_rows")


def preview(session: Session, table: str, request: Request) -> Preview:
    """Return what features give on a few partitions; see ``Table.preview``."""
    with session.holding_newest() as (held, snapshot):
        return _Preview.of(held, snapshot, table, request).run()


def expected_seconds(session: Session, table: str, request: Request) -> float:
    """Return what building features everywhere is expected to take, from partitions of a sample."""
    with session.holding_newest() as (held, snapshot):
        return _Preview.of(held, snapshot, table, request).seconds()


@dataclass(frozen=True, slots=True)
class _Preview:
    """One preview.

    Parameters
    ----------
    session : Session
    before, files : TableFiles
        The table as it is, and as it will be with the features.
    sources : mapping of str to TableFiles
    features : tuple of Feature
        Those that are previewed.
    defined : tuple of Feature
        Those, and others that they may read.
    unsaid : frozenset of str
        Groups of fitted features of which nobody said what they learn from.
    request : Request
    """

    session: Session
    before: TableFiles
    files: TableFiles
    sources: Mapping[str, TableFiles]
    features: tuple[Feature, ...]
    defined: tuple[Feature, ...]
    unsaid: frozenset[str]
    request: Request

    @classmethod
    def of(cls, session: Session, snapshot: Snapshot, table: str, request: Request) -> _Preview:
        before = session.files(table, snapshot)
        features, defined, unsaid = _asked_for(session, before, request)
        new = tuple(one for one in defined if one.group not in before.groups)
        names = {name for one in new for name in one.names}
        taken = tuple(sorted(names & set(before.schema.names)))
        files = before.with_features(new, frozenset(before.groups_of(taken)))
        sources = session.sources(files)
        return cls(session, before, files, sources, features, defined, unsaid, request)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for one in self.features for name in one.names)

    def run(self) -> Preview:
        started = clock.perf_counter()
        assessor = Assessor({**self.sources, self.files.name: self.files})
        sample = self._sample(assessor)
        plan = self._plan(assessor)
        with copied(self.session, self._excerpts(sample)) as copy:
            trial = Trial.build(copy, self.files, sample)
            leaks, verdicts = self._leaks(trial)
            columns = self._columns(trial, sample, verdicts)
            head = self._head(trial, sample)
            cost = trial.cost(
                self.files, sample, self.features, plan, self.session.executor.workers
            )
        return Preview(
            self.files.name,
            self.files.snapshot.version,
            self.request.label,
            columns,
            head,
            sample.shown,
            len(sample.kept),
            len(self.files.base),
            self.files.rows,
            sum(self.files.base[one].rows for one in sample.shown),
            self._learnt(sample),
            cost,
            leaks,
            clock.perf_counter() - started,
        )

    def seconds(self) -> float:
        """Return what a build is expected to take; nothing is looked at but the clock."""
        assessor = Assessor({**self.sources, self.files.name: self.files})
        sample, workers = self._sample(assessor), self.session.executor.workers
        with copied(self.session, self._excerpts(sample)) as copy:
            trial = Trial.build(copy, self.files, sample)
            plan = self._plan(assessor)
            return trial.cost(self.files, sample, self.features, plan, workers).seconds

    def _sample(self, assessor: Assessor) -> Sample:
        groups = [one.group for one in self.files.graph.needed([f.group for f in self.features])]
        assessor.require_buildable(self.files.name, groups)
        return sample_of(
            Asked(
                self.files, self.sources, assessor, self.features, self.request.partitions,
                self._label(), self.unsaid,
            )
        )  # fmt: skip

    def _label(self) -> tuple[str, ...]:
        label = self.request.label
        if label is None:
            return ()
        self.files.schema[label]
        return () if label in self.names else (label,)

    def _plan(self, assessor: Assessor) -> BuildPlan:
        """Return the plan of building the previewed features everywhere, and what they need."""
        place, groups = self.session.place, [one.group for one in self.features]
        needed = {one.group for one in self.files.graph.needed(groups)}
        found: dict[str, tuple[Assessment, ...]] = {
            one.group: assessor.group(self.files.name, one.group) if one.group in needed else ()
            for one in self.files.graph.features()
        }
        states = StateStore(place.store)
        projection = projected(self.files, self.sources, found, states, place.executor)
        return build_plan(
            self.files.name, projection, found, place.executor, place.memory_limit, place.scratch
        )

    def _excerpts(self, sample: Sample) -> list[Excerpt]:
        """Return what is copied: of this table and of those that its features read."""
        found = []
        for name, positions in sample.sources.items():
            files = self.sources[name]
            columns = [*files.entry.key, *source_columns(sample.computed, self.files, name)]
            columns += [] if files.entry.time is None else [files.entry.time]
            rule = self.request.known.get(name)
            columns += [
                one for one in (AVAILABLE, rule) if isinstance(one, str) and one in files.schema
            ]
            found.append(Excerpt(files, tuple(dict.fromkeys(columns)), positions))
        return [*found, Excerpt(self.files, sample.columns, sample.kept)]

    def _learnt(self, sample: Sample) -> dict[str, str]:
        """Return for fitted columns which rows they learnt from here."""
        found: dict[str, str] = {}
        for one in self.features:
            if one.transformer.scope is not Scope.FIT:
                continue
            fit_on = one.definition.fit_on
            rows = f"the rows of {len(sample.kept)} of {len(self.files.base)} partitions"
            if isinstance(fit_on, tuple):
                rows += f" with {fit_on[0]} <= time < {fit_on[1]}"
            if one.group in self.unsaid:
                rows += "; no fit_on= was given"
            found |= dict.fromkeys(one.names, rows)
        return found

    # --- values --------------------------------------------------------------------------------

    def _columns(
        self, trial: Trial, sample: Sample, verdicts: Mapping[str, str]
    ) -> tuple[ColumnPreview, ...]:
        """Return what is found of each previewed column."""
        shown, label = self._shown(trial, sample), self.request.label
        fields = {one.name: (feature, one) for feature in self.features for one in feature.outputs}
        extra = () if label is None or label in fields else (label,)
        sampled = shown.sampled((*fields, *extra))
        measured = {
            name: sampled[name]
            for name, (_, one) in fields.items()
            if not one.is_tensor and correlates(one.type)
        }
        closest = self._neighbours(sample).closest(measured)
        found = []
        for name, (feature, one) in fields.items():
            of_label = None
            if label is not None and name != label and name in measured:
                of_label = _with_label(sampled[name], label, sampled[label])
            found.append(
                ColumnPreview(
                    name, _type_text(one), feature.kind,
                    distribution(shown, name, sampled[name]), of_label,
                    tuple(closest.get(name, ())), sample.differs.get(name, ""), verdicts[name],
                )
            )  # fmt: skip
        return tuple(found)

    def _head(self, trial: Trial, sample: Sample) -> tuple[Mapping[str, Any], ...]:
        entry = self.files.entry
        names = [*entry.key, *([] if entry.time is None else [entry.time]), *self.names]
        names += [] if self.request.label is None else [self.request.label]
        shown = self._shown(trial, sample)
        return shown.head(tuple(dict.fromkeys(names)), self.request.rows)

    def _shown(self, trial: Trial, sample: Sample) -> Shown:
        """Return the previewed partitions where they were computed."""
        if not sample.shown:
            return Shown(self.session.place, self.files, ())
        at = {position: place for place, position in enumerate(sample.kept)}
        return Shown(
            trial.session.place, trial.files, tuple(at[one] for one in sample.shown)
        )  # fmt: skip

    def _neighbours(self, sample: Sample) -> Neighbours:
        """Return the stored columns that previewed ones are compared with."""
        stored = {
            name for one in self.features if one.group in self.before.groups for name in one.names
        }
        without = {*self.before.entry.key, *stored, *(_given(self.request.label))}
        without |= set(_given(self.before.entry.time))
        tables = {**self.session.sources(self.before), self.before.name: self.before}
        against = self.request.against
        for name in against or ():
            self.before.schema[name]
        return Neighbours.of(
            Shown(self.session.place, self.before, sample.shown),
            Assessor(tables),
            against,
            frozenset(without),
        )

    # --- leaks -----------------------------------------------------------------------------------

    def _leaks(self, trial: Trial) -> tuple[LeakReport | None, dict[str, str]]:
        """Return what the leak check says of a few rows, and the verdict of each column."""
        verdicts: dict[str, str] = {}
        for one in self.features:
            verdicts |= dict.fromkeys(one.names, self._known_verdict(one))
        checked = [name for name, verdict in verdicts.items() if not verdict]
        if not checked:
            return None, verdicts
        if not trial.files.rows:
            return None, verdicts | dict.fromkeys(checked, "not checked: there are no rows")
        report = check_leakage(
            trial.session, self.files.name, checked, self.request.leak_rows, self.request.seed,
            self.request.known,
        )  # fmt: skip
        leaking = {one.column: one for one in report.leaks}
        for name in checked:
            if name in leaking:
                count = leaking[name].differing
                verdicts[name] = f"leak: {count} of {report.rows} rows differ without the future"
            else:
                partly = f" ({report.unchecked[name]})" if name in report.unchecked else ""
                verdicts[name] = f"no leak found in {report.rows} rows{partly}"
        return report, verdicts

    def _known_verdict(self, feature: Feature) -> str:
        """Return what is known of a feature without computing anything; ``""`` if nothing is."""
        if self._looks_ahead(feature):
            return "not checked: a label, it looks ahead by definition"
        through = self._through_label(feature)
        if through:
            return f"leak: it reads {through}, which looks ahead"
        if self.files.schema.time is None:
            return "not checked: the table has no time, so nothing in it is later than anything"
        if not self.request.leak_rows:
            return "not checked: leak_rows=0"
        if feature.group in self.unsaid:
            return "not checked: no fit_on= says what it learns from"
        return ""

    def _looks_ahead(self, feature: Feature) -> bool:
        return feature.transformer.scope is Scope.SUFFIX

    def _through_label(self, feature: Feature) -> str:
        """Return what of a feature's inputs, other previewed ones included, looks into the future."""
        owners = {name: one for one in self.defined for name in one.names}
        snapshot = self.files.snapshot
        waiting, seen = [feature], set()
        for one in waiting:  # grows on the way
            read = [(self.files.name, name) for name in one.inputs]
            if isinstance(one.transformer, SourceTransformer):
                table = one.transformer.source_table
                read += [(table, name) for name in one.transformer.source_inputs(self.files.schema)]
            for table, name in read:
                own = owners.get(name) if table == self.files.name else None
                if own is not None and own.group not in seen:
                    seen.add(own.group)
                    if self._looks_ahead(own):
                        return repr(name)
                    waiting.append(own)
                elif own is None:
                    through = looks_ahead_through(name, snapshot, table)
                    if through:
                        return repr(name)
        return ""


def _asked_for(
    session: Session, files: TableFiles, request: Request
) -> tuple[tuple[Feature, ...], tuple[Feature, ...], frozenset[str]]:
    """Return the features that are previewed, with those beside them, and the fitted ones without ``fit_on``."""
    given = request.feature
    if isinstance(given, str | Transformer | FeatureDefinition):
        given = [given]
    if not isinstance(given, Sequence) or not given:
        raise InvalidInputError(
            f"preview was given {given!r}, which is no feature",
            "pass a transformer such as fs.Expression(...), several in a list, or the name of a "
            "feature that is defined",
        )
    named = [_stored(files, one) for one in given if isinstance(one, str)]
    stated = [one for one in given if isinstance(one, FeatureDefinition)]
    made = [one for one in given if not isinstance(one, str | FeatureDefinition)]
    fitted = any(isinstance(one, Transformer) and one.scope is Scope.FIT for one in made)
    unsaid = fitted and request.fit_on is None
    definitions = [
        *stated,
        *(definitions_of(made, "all" if unsaid else request.fit_on) if made else ()),
    ]
    bound, _ = bind_to_sample([*definitions, *request.beside], files, session.place, replacing=True)
    shown = [_bound_of(one, bound) for one in definitions]
    learning = frozenset(
        one.group for one in shown[len(stated) :] if unsaid and one.transformer.scope is Scope.FIT
    )
    found = tuple({one.group: one for one in (*named, *shown)}.values())
    return found, tuple({one.group: one for one in (*found, *bound)}.values()), learning


def _bound_of(definition: FeatureDefinition, bound: Sequence[Feature]) -> Feature:
    given = definition.fingerprint
    return next(one for one in bound if one.stated.is_what_was_asked(given))


def _stored(files: TableFiles, name: str) -> Feature:
    files.schema[name]
    for one in files.graph.features():
        if name in one.names:
            return one
    raise InvalidInputError(
        f"column {name!r} of table {files.name!r} was ingested: nothing computes it",
        "name a feature, or pass a transformer",
    )


def _with_label(values: Any, label: str, labels: Any) -> Association | None:
    """Return how a column goes with the label; None for a label that does not correlate."""
    if isinstance(labels, np.ndarray) or not correlates(labels.type):
        return None
    return Association(label, *association(values, labels))


def _type_text(field: Field) -> str:
    text = type_to_text(field.type)
    return text if field.shape is None else f"{text}{list(field.shape)}"


def _given(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)
