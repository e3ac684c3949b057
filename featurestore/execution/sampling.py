"""New definitions tried on a sample before anything is built.

A few rows of the table are enough to find the types a function returns, to see that every definition
runs at all, and to catch a function whose values depend on where the table is cut. So a mistake
costs a moment, not a build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.errors import MissingColumnError, NameTakenError
from featurestore.execution.made_columns import checked_columns
from featurestore.execution.states import Available, Workplace
from featurestore.execution.tasks import SAMPLE_ROWS, with_row_count
from featurestore.plan.definition import Feature, FeatureDefinition, bind
from featurestore.plan.graph import explain_blocked
from featurestore.plan.table_files import TableFiles
from featurestore.schema import Field, TableSchema
from featurestore.storage.records import BASE_GROUP
from featurestore.transforms.base import (
    EMPTY_STATE,
    Columns,
    Partition,
    Scope,
    SourceTransformer,
)
from featurestore.transforms.independence import check_partition_independent, is_foreign


def bind_to_sample(
    definitions: Sequence[FeatureDefinition],
    files: TableFiles,
    place: Workplace,
    replacing: bool,
) -> tuple[tuple[Feature, ...], frozenset[str]]:
    """Bind definitions to a table, trying each on a sample of its rows.

    Parameters
    ----------
    definitions : sequence of FeatureDefinition
        May use each other's outputs, in any order.
    files : TableFiles
        The table as it is.
    place : Workplace
    replacing : bool
        Whether features that give columns of the same names go.

    Returns
    -------
    features : tuple of Feature
        One per definition; one that exists already has the group it has there.
    removed : frozenset of str
        Groups of the features that are replaced.

    Raises
    ------
    NameTakenError, DependencyCycleError, MissingColumnError, DefinitionError
    NotPartitionIndependentError
    """
    trial = _Trial.of(files, place)
    bound: list[Feature] = []
    removed: set[str] = set()
    waiting = list(definitions)
    while waiting:
        blocked: list[tuple[FeatureDefinition, MissingColumnError]] = []
        for definition in waiting:
            try:
                feature = trial.bind(definition)
            except MissingColumnError as error:
                blocked.append((definition, error))
                continue
            if feature.group not in files.groups:
                removed |= _displaced(feature, files, bound, replacing)
                trial.admit(feature)
            else:
                trial.show(feature)
            bound.append(feature)
        if len(blocked) == len(waiting):
            explain_blocked(blocked, trial.schema)
        waiting = [definition for definition, _ in blocked]
    return tuple(bound), frozenset(removed)


def _displaced(
    feature: Feature, files: TableFiles, bound: Sequence[Feature], replacing: bool
) -> set[str]:
    """Return the groups that a new feature takes the place of."""
    for other in bound:
        twice = set(other.names) & set(feature.names)
        if twice:
            raise NameTakenError(
                f"two definitions give column {min(twice)!r}", "rename one: prefix= or rename="
            )
    clashes = [name for name in feature.names if name in files.schema]
    groups = set(files.groups_of(tuple(clashes)))
    if BASE_GROUP in groups or (groups and not replacing):
        raise NameTakenError(
            f"column {clashes[0]!r} exists already in table {files.name!r}",
            "choose another name (prefix= or rename=)"
            + ("" if BASE_GROUP in groups else ", drop the old feature, or pass replace=True"),
        )
    return groups


@dataclass(slots=True)
class _Trial:
    """A growing sample: the table's columns are read when wanted, new ones computed."""

    files: TableFiles
    place: Workplace
    engine: Engine
    schema: TableSchema
    position: int | None
    sample: Partition | None

    @classmethod
    def of(cls, files: TableFiles, place: Workplace) -> _Trial:
        position = next((n for n, one in enumerate(files.base) if one.rows), None)
        return cls(files, place, get_engine(place.engine), files.schema, position, None)

    def bind(self, definition: FeatureDefinition) -> Feature:
        """Return the feature, its output types found by running it if they are not known."""
        given = definition.fingerprint  # once, for a table of thousands
        for one in self.files.graph.features():
            if one.stated.is_what_was_asked(given):
                return one
        definition = self._named(definition)
        sample = self._with(definition.transformer.inputs(self.schema))
        transformer = definition.transformer.bound(sample, self.engine)
        made = bind(replace(definition, transformer=transformer), self.schema)
        return self._of_older_code(made) or made

    def _named(self, definition: FeatureDefinition) -> FeatureDefinition:
        """Return a definition with names for selectors, which select nothing that it takes the place of."""
        named = definition.with_names(self.schema)
        if named is definition:
            return definition
        made = {one.name for one in named.transformer.outputs(self.schema)}
        taken = tuple(name for name in made if name in self.files.graph.owners)
        groups = set(self.files.groups_of(taken)) - {BASE_GROUP}
        gone = {name for one in groups for name in self.files.groups[one].names}
        if not gone & set(named.transformer.inputs(self.schema)):
            return named
        left = tuple(one for one in self.schema if one.name not in gone)
        return definition.with_names(replace(self.schema, fields=left))

    def _of_older_code(self, made: Feature) -> Feature | None:
        """Return the stored feature that a new one is, though its fingerprint was another then."""
        taken = tuple(name for name in made.names if name in self.files.graph.owners)
        groups = set(self.files.groups_of(taken)) - {BASE_GROUP}
        for one in self.files.graph.features() if groups else ():
            if one.group in groups and one.definition.is_what_was_asked(
                made.definition.fingerprint
            ):
                return one
        return None

    def admit(self, feature: Feature) -> None:
        """Try a new feature on the sample, and let further ones use its outputs."""
        self.schema = self.schema.with_fields(feature.outputs)
        if self.position is None:
            return
        sample = self._with(feature.inputs)
        if is_foreign(feature.transformer):
            check_partition_independent(feature.transformer, sample, self.engine)
        self.sample = sample.replace(self._try(feature, sample), self.schema)

    def show(self, feature: Feature) -> None:
        """Let further features use a stored one's outputs, also where the table hides what is stored."""
        self.schema = self.schema.with_fields(feature.outputs)

    def _try(self, feature: Feature, sample: Partition) -> Columns:
        """Return the feature's columns on the sample; nulls where they need more than the sample."""
        transformer = feature.transformer
        if isinstance(transformer, SourceTransformer) or transformer.scope is Scope.FIT:
            return null_columns(feature.outputs, sample.rows, self.engine)
        columns = transformer.apply(sample, EMPTY_STATE, self.engine)
        checked_columns(feature.outputs, columns, sample.rows, self.engine, "a sample of the table")
        return columns

    def _with(self, columns: Sequence[str]) -> Partition:
        """Return the sample with (at least) these columns."""
        sample = self.sample
        have = set() if sample is None else {*sample.frame.columns, *sample.tensors}
        missing = tuple(name for name in columns if name not in have)
        if sample is None or missing:
            read = self._read(missing)
            sample = read if sample is None else _joined(sample, read)
        self.sample = Partition(sample.frame, self.schema, sample.tensors)
        return self.sample

    def _read(self, columns: Sequence[str]) -> Partition:
        """Read the sample's rows of stored columns; of features that are not built, nulls."""
        if self.position is None:
            fields = [self.schema[name] for name in with_row_count(columns, self.schema)]
            empty = null_columns(fields, 0, self.engine)
            assert empty.frame is not None
            return Partition(empty.frame, self.schema, empty.tensors)
        entry = self.files.base[self.position]
        stored = [
            name
            for name in with_row_count(columns, self.schema)
            if entry.partition in self.files.entries[self.files.graph.owners[name]]
        ]
        wanted = with_row_count(stored, self.schema)
        source = Available(self.files, {}).at(self.position, wanted)
        rows = min(source.rows, SAMPLE_ROWS)
        part = source.read(self.place.store, self.engine, wanted, self.schema, (0, rows))
        unbuilt = [self.schema[name] for name in columns if name not in wanted]
        return part.replace(null_columns(unbuilt, rows, self.engine), self.schema)


def _joined(sample: Partition, more: Partition) -> Partition:
    return sample.replace(Columns(more.frame, more.tensors), sample.schema)


def null_columns(fields: Sequence[Field], rows: int, engine: Engine) -> Columns:
    """Return columns of nulls; tensors, which have none, of zeros."""
    scalars = [one for one in fields if not one.is_tensor]
    table = pa.table({one.name: pa.nulls(rows, one.type) for one in scalars})
    tensors = {
        one.name: engine.xp.zeros((rows, *(one.shape or ())), one.type.to_pandas_dtype())
        for one in fields
        if one.is_tensor
    }
    return Columns(engine.from_arrow(table) if scalars else None, tensors)
