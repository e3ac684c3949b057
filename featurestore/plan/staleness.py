"""Fresh, stale or missing: what each feature's values are against what they should be.

For every feature and partition the provenance its values *would* have if everything were built now
is computed from fingerprints alone, reading no data. Values whose stored provenance equals it are
fresh. What a feature reads of its own or another table counts with the provenance that *it* would
have, so staleness reaches everything that depends on it, across tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from featurestore.errors import DependencyCycleError, NotReadyError
from featurestore.fingerprint import fingerprint
from featurestore.plan.ahead import is_settled
from featurestore.plan.definition import Feature
from featurestore.plan.learner_sizes import members_of
from featurestore.plan.needs import state_needs
from featurestore.plan.states import (
    Learner,
    SourceSummaries,
    StateNeed,
    require_fit_rows,
)
from featurestore.plan.table_files import TableFiles
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP
from featurestore.transforms.base import Scope, SourceTransformer, UnknownTransformer


class Freshness(StrEnum):
    """How a feature's values in a partition stand."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


CODE: Final = "code"
UNKNOWN: Final = "unknown here"
_REASONS: Final = {Scope.FIT: "fit scope", Scope.SUFFIX: "later rows"}


@dataclass(frozen=True, slots=True)
class Assessment:
    """One feature in one partition.

    Parameters
    ----------
    freshness : Freshness
    reason : str
        Why it is stale: ``"input"``, ``"fit scope"``, ``"earlier rows"``, ``"later rows"``,
        ``"other table"``, ``"parameter"``, ``"code"``; else ``""``. Missing values whose function changed have
        ``"code"`` too, those of a definition that is unknown here ``"unknown here"``.
    provenance : Provenance
        What its values will be computed from.
    need : StateNeed
    """

    freshness: Freshness
    reason: str
    provenance: Provenance
    need: StateNeed

    @property
    def is_fresh(self) -> bool:
        return self.freshness is Freshness.FRESH


class Assessor:
    """Judges the features of some tables at one snapshot, each of them once.

    Parameters
    ----------
    tables : mapping of str to TableFiles
        Tables, and all others that their features read, directly or not.
    check_code : bool
        Whether a function that computes something else in this process than when its feature was
        defined makes the values stale. Not for old versions, which are what they are.
    """

    def __init__(self, tables: Mapping[str, TableFiles], check_code: bool = True) -> None:
        self._tables = tables
        self._check_code = check_code
        self._found: dict[tuple[str, str], tuple[Assessment, ...]] = {}
        self._features = {
            (files.name, feature.group): feature
            for files in tables.values()
            for feature in files.graph.features()
        }
        self._prints: dict[tuple[str, frozenset[str]], list[str]] = {}
        self._path: list[tuple[str, str]] = []

    def table(self, name: str) -> dict[str, tuple[Assessment, ...]]:
        """Return for each feature's group an assessment per partition, in table order.

        Raises
        ------
        DependencyCycleError
            If features of several tables need each other.
        """
        features = self._tables[name].graph.features()
        return {feature.group: self.group(name, feature.group) for feature in features}

    def group(self, table: str, group: str) -> tuple[Assessment, ...]:
        """Return the assessments of one feature."""
        at = table, group
        if at not in self._found:
            if at in self._path:
                raise self._cycle(at)
            self._path.append(at)
            self._found[at] = self._assess(self._tables[table], self._features[at])
            self._path.pop()
        return self._found[at]

    def prints(self, table: str, columns: Sequence[str]) -> Sequence[str]:
        """Return the fingerprint that columns have, or will have once built, per partition."""
        files = self._tables[table]
        at = table, frozenset(files.groups_of(tuple(columns)))
        if at not in self._prints:  # many features read the same
            parts = {group: self._group_prints(table, group) for group in at[1]}
            self._prints[at] = [
                columns_print({group: found[position] for group, found in parts.items()})
                for position in range(len(files.base))
            ]
        return self._prints[at]

    def require_built(self, table: str, columns: Sequence[str], positions: Sequence[int]) -> None:
        """Refuse columns that are missing or stale in one of some partitions.

        Raises
        ------
        NotReadyError
        """
        files = self._tables[table]
        for group in files.groups_of(tuple(columns)):
            if group == BASE_GROUP:
                continue
            found = self.group(table, group)
            for position in positions:
                if not found[position].is_fresh:
                    raise NotReadyError(
                        f"columns {list(files.groups[group].names)} of table {table!r} are not "
                        f"built in partition {files.base[position].partition} "
                        f"({found[position].reason or found[position].freshness})",
                        f"run store.table({table!r}).build() first",
                    )

    def require_buildable(self, table: str, groups: Sequence[str]) -> None:
        """Refuse features that a build of this table alone cannot make fresh.

        Raises
        ------
        NotReadyError
            If a function's code changed, or another table has to be built before.
        """
        files = self._tables[table]
        for group in groups:
            feature = self._features[table, group]
            found = self.group(table, group)
            if isinstance(feature.transformer, UnknownTransformer) and any(
                not one.is_fresh for one in found
            ):
                raise feature.transformer.problem
            if any(one.reason == CODE for one in found):
                raise NotReadyError(
                    f"the function of {list(feature.names)} in table {table!r} computes something "
                    "else now than when the feature was defined",
                    "define it again with replace=True",
                )
            for one in found:
                if not one.is_fresh:
                    require_fit_rows(feature, one.need)
            transformer = feature.transformer
            if any(not one.is_fresh for one in found):
                unknown = transformer.unknown_code()
                if unknown is not None:
                    raise unknown
            if isinstance(transformer, SourceTransformer):
                needs = [one.need for one in found if not one.is_fresh]
                rows = {position for need in needs for position in need.rows}
                carried = {one.partition for one in members_of(needs)}
                self.require_built(
                    transformer.source_table,
                    transformer.source_inputs(files.schema),
                    sorted(rows | carried),
                )

    # --- one feature -------------------------------------------------------------------------------

    def _group_prints(self, table: str, group: str) -> list[str]:
        if group == BASE_GROUP:
            return [one.provenance.fingerprint for one in self._tables[table].base]
        return [
            # Nobody knows yet what changed code will give: it equals nothing that is stored.
            fingerprint(CODE, one.provenance.fingerprint)
            if one.reason == CODE
            else one.provenance.fingerprint
            for one in self.group(table, group)
        ]

    def _assess(self, files: TableFiles, feature: Feature) -> tuple[Assessment, ...]:
        inputs = self.prints(files.name, feature.inputs)
        if isinstance(feature.transformer, UnknownTransformer):
            return _assess_unknown(files, feature, inputs)
        needs = state_needs(feature, files, inputs, self._source(files, feature))
        changed = self._check_code and _code_changed(feature)
        definition = feature.definition.fingerprint
        provenance = files.provenance(feature.group)
        found = []
        for position, entry in enumerate(files.base):
            wanted = Provenance(definition, inputs[position], needs[position].fingerprint)
            stored = provenance.get(entry.partition)
            if stored is not None and is_settled(stored, wanted, needs[position], files.base):
                wanted = stored
            freshness, reason = _compare(feature, stored, wanted)
            if changed:
                freshness = Freshness.MISSING if stored is None else Freshness.STALE
                reason = CODE
            found.append(Assessment(freshness, reason, wanted, needs[position]))
        return tuple(found)

    def _source(self, files: TableFiles, feature: Feature) -> SourceSummaries | None:
        transformer = feature.transformer
        if not isinstance(transformer, SourceTransformer):
            return None
        table = transformer.source_table
        columns = transformer.source_inputs(files.schema)
        source = self._tables[table]
        return SourceSummaries.of(
            Learner(transformer, source.schema, columns), source.base, self.prints(table, columns)
        )

    def _cycle(self, at: tuple[str, str]) -> DependencyCycleError:
        loop = [*self._path[self._path.index(at) :], at]
        names = [f"{one[0]}.{self._features[one].names[0]}" for one in loop]
        return DependencyCycleError(
            f"features need each other: {' needs '.join(names)}",
            "break the cycle by renaming an output",
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Tables of a snapshot and all that they read, and how their features stand there.

    Parameters
    ----------
    tables : mapping of str to TableFiles
    assessor : Assessor
        Of these tables.
    """

    tables: Mapping[str, TableFiles]
    assessor: Assessor

    @classmethod
    def of(cls, tables: Mapping[str, TableFiles], *, check_code: bool = False) -> Standing:
        return cls(tables, Assessor(tables, check_code))

    def is_fresh(self, table: str, group: str, positions: Sequence[int]) -> bool:
        """Whether a feature's values are fresh in all of some partitions."""
        found = self.assessor.group(table, group)
        return all(found[one].is_fresh for one in positions)

    def readers(self, table: str) -> tuple[str, ...]:
        """Return a table and all whose features read it, directly or not."""
        found = [table]
        for name in found:  # grows on the way
            found += [
                other
                for other, files in self.tables.items()
                if other not in found and name in _sources(files)
            ]
        return tuple(found)


def _sources(files: TableFiles) -> set[str]:
    """Return the tables that a table's features read."""
    return {one.source_table for one in files.graph.features() if one.source_table is not None}


def columns_print(groups: Mapping[str, str]) -> str:
    """Return the fingerprint of columns in a partition, from those of their groups' values."""
    return fingerprint("columns", [[group, groups[group]] for group in sorted(groups)])


def _assess_unknown(
    files: TableFiles, feature: Feature, inputs: Sequence[str]
) -> tuple[Assessment, ...]:
    """Judge values whose definition is not known here: by their inputs alone."""
    found = []
    provenance = files.provenance(feature.group)
    for position, entry in enumerate(files.base):
        stored = provenance.get(entry.partition)
        if stored is None:
            definition = files.groups[feature.group].definition_fingerprint
            missing = Provenance(definition, inputs[position])
            found.append(Assessment(Freshness.MISSING, UNKNOWN, missing, StateNeed()))
            continue
        same = stored.inputs == inputs[position]
        freshness, reason = (Freshness.FRESH, "") if same else (Freshness.STALE, "input")
        found.append(Assessment(freshness, reason, stored, StateNeed()))
    return tuple(found)


def _code_changed(feature: Feature) -> bool:
    current = feature.transformer.current_code()
    return current is not None and current != feature.transformer.code()


def _compare(
    feature: Feature, stored: Provenance | None, wanted: Provenance
) -> tuple[Freshness, str]:
    if stored is None:
        return Freshness.MISSING, ""
    if stored == wanted:
        return Freshness.FRESH, ""
    if stored.definition != wanted.definition:
        return Freshness.STALE, "parameter"
    if stored.inputs != wanted.inputs:
        return Freshness.STALE, "input"
    if isinstance(feature.transformer, SourceTransformer):
        return Freshness.STALE, "other table"
    return Freshness.STALE, _REASONS.get(feature.transformer.scope, "earlier rows")
