"""Which columns a dataset is made of, and how its pipeline gets from the table's to the model's.

The pipeline sees the features, the key and the time; never the label and never columns that were
not asked for, so ``fs.numeric()`` inside it means "the numeric features".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from featurestore.dataset.assembly import dataset_schema
from featurestore.dataset.batch import Role
from featurestore.dataset.targets import Targets
from featurestore.errors import DefinitionError, MissingColumnError
from featurestore.plan.definition import parsed
from featurestore.schema import Field, TableSchema
from featurestore.storage.records import GroupEntry, Snapshot
from featurestore.transforms.base import Scope
from featurestore.transforms.pipeline import Pipeline
from featurestore.transforms.selectors import Selector, resolve


@dataclass(frozen=True, slots=True)
class DatasetColumns:
    """The columns of a dataset.

    Parameters
    ----------
    features : tuple of str
        Columns of the table, in the order asked for.
    targets : Targets
        What a model is told beside them: labels, weight, group, base margin.
    pipeline : Pipeline
        Without steps if none was given.
    inputs : TableSchema
        What the pipeline sees.
    outputs : TableSchema
        What there is after the pipeline, targets included.
    model : tuple of str
        The columns a model is fed, in order: the features, then what the pipeline added. Features
        that have no form a model understands and that the pipeline turned into new columns (a time
        into its parts) are left out.
    reads : tuple of str
        Columns of the table that rows of the dataset are made of; follows from the others.
    """

    features: tuple[str, ...]
    targets: Targets
    pipeline: Pipeline
    inputs: TableSchema
    outputs: TableSchema
    model: tuple[str, ...]
    # Once, not for each partition: it takes time in proportion to columns and steps.
    reads: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        in_pipeline = self.pipeline.reads(self.inputs)
        wanted = [*self.features, *(name for one in in_pipeline for name in one)]
        wanted += self.targets.names
        object.__setattr__(self, "reads", tuple(dict.fromkeys(wanted)))

    @property
    def labels(self) -> tuple[str, ...]:
        return self.targets.labels

    @property
    def label(self) -> str | None:
        """The label, if there is exactly one."""
        return self.labels[0] if len(self.labels) == 1 else None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that arrays are made of: the model's, then the targets."""
        return (*self.model, *self.targets.names)

    @property
    def lists(self) -> tuple[str, ...]:
        """Those of the columns that are lists of any length."""
        return tuple(one for one in self.names if pa.types.is_list(self.outputs[one].type))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row after the pipeline, :attr:`lists` left out."""
        lists = self.lists
        return sum(_width(self.outputs[name]) for name in self.names if name not in lists)


def _width(one: Field) -> int:
    # All but lists has a fixed width; booleans count as whole bytes.
    bits = max(8, int(one.type.bit_width))
    return bits // 8 * math.prod(one.shape or ())


def resolve_features(features: object, targets: Targets, schema: TableSchema) -> tuple[str, ...]:
    """Return feature names for names, selectors, and sequences of both.

    Selectors leave out targets, key and time; names are taken as given.

    Raises
    ------
    SchemaError
        If a column does not exist or is named twice.
    DefinitionError
        If a target is among the names, or nothing is selected.
    """
    given = [features] if isinstance(features, str | Selector) else features
    if not isinstance(given, Sequence):
        raise DefinitionError(
            f"features={features!r} does not select columns",
            "give a name, a list of names, or a selector like fs.numeric()",
        )
    kept_out = {*targets.names, schema.time, *schema.key}
    names: list[str] = []
    for one in given:
        if isinstance(one, Selector):
            found = resolve(one, schema)
            names += [name for name in found if name not in kept_out and name not in names]
        elif isinstance(one, str):
            names += resolve([*names, one], schema)[len(names) :]
        else:
            raise DefinitionError(
                f"{one!r} does not name a feature", "give names or selectors like fs.numeric()"
            )
    for one, role in targets.roles.items():
        if one in names:
            raise DefinitionError(
                f"{role} {one!r} is among the features",
                "leave it out: the model would be told"
                if role is Role.LABEL
                else "leave it out, or give the model a copy made with fs.Expression",
            )
    if not names:
        raise DefinitionError(f"features={features!r} selects no column", "name at least one")
    return tuple(names)


def dataset_columns(
    features: object, targets: Targets, schema: TableSchema, pipeline: Pipeline | None
) -> DatasetColumns:
    """Return a dataset's columns, checked as far as that goes without data.

    Raises
    ------
    SchemaError, DefinitionError
        If columns do not exist, or have no form that a model understands after the pipeline.
    """
    told = targets.hidden(schema)
    names = resolve_features(features, targets, schema)
    seen = {*names, *schema.key, *([] if schema.time is None else [schema.time])} - told
    # A key that was asked for as a feature is one: selectors in the pipeline shall pick it.
    key = tuple(name for name in schema.key if name in seen and name not in names)
    time = schema.time if schema.time in seen else None
    inputs = TableSchema(tuple(one for one in schema if one.name in seen), key, time)
    pipeline = Pipeline() if pipeline is None else pipeline
    schemas = _schemas(pipeline, inputs, schema)
    outputs = schemas[-1]
    _refuse_unknown_teachers(pipeline, inputs, targets.labels)
    made = {
        one.name
        for step, before in zip(pipeline.steps, schemas[:-1], strict=True)
        for one in step.outputs(before)
    }
    for name, role in targets.roles.items():
        if name in made:
            raise DefinitionError(
                f"the pipeline makes a column called {name!r}, which is the {role}'s name",
                "rename that output",
            )
        if name in told:
            outputs = outputs.with_fields((schema[name],))
    added = [one.name for one in outputs if one.name not in inputs and one.name not in told]
    new = set(added)
    consumed = {
        name
        for step, before in zip(pipeline.steps, schemas[:-1], strict=True)
        if any(one.name in new for one in step.outputs(before))
        for name in step.inputs(before)
    }
    model = tuple(
        name for name in names if name not in consumed or _feedable(name, outputs)
    ) + tuple(added)
    dataset_schema(model, targets, outputs, {})  # raises for what no model can be fed
    return DatasetColumns(names, targets, pipeline, inputs, outputs, model)


def _feedable(name: str, schema: TableSchema) -> bool:
    return schema[name].is_numeric or schema[name].is_tensor


def _schemas(
    pipeline: Pipeline, inputs: TableSchema, table: TableSchema
) -> tuple[TableSchema, ...]:
    try:
        return pipeline.schemas(inputs)
    except MissingColumnError as error:
        if error.column not in table:
            raise
        raise DefinitionError(
            f"the pipeline reads {error.column!r}, which is not among the features",
            f"add {error.column!r} to the features",
        ) from error


def _refuse_unknown_teachers(
    pipeline: Pipeline, inputs: TableSchema, labels: tuple[str, ...]
) -> None:
    for step, learnt in zip(pipeline.steps, pipeline.learns_from(inputs), strict=True):
        unknown = [name for name in learnt if name not in inputs and name not in labels]
        if unknown:
            raise DefinitionError(
                f"{type(step).__name__} learns from {unknown}, which are not among the features; "
                f"the labels are {list(labels)}",
                "let it learn from features, key, time or the label",
            )


def refuse_future(columns: Sequence[str], snapshot: Snapshot, table: str) -> None:
    """Refuse features that look into the future, directly or through their inputs.

    Raises
    ------
    DefinitionError
    """
    for column in columns:
        through = looks_ahead_through(column, snapshot, table)
        if through:
            raise DefinitionError(
                f"feature {column!r} looks into the future (through {through})",
                "use it as the label only, and leave it out of the features",
            )


def looks_ahead_through(column: str, snapshot: Snapshot, table: str) -> str:
    """Return what of a column looks into the future, its inputs in all tables included; or nothing."""
    owners: dict[str, Mapping[str, GroupEntry]] = {}
    waiting, visited = [(table, column)], set()
    while waiting:
        at = waiting.pop()
        if at in visited:
            continue
        visited.add(at)
        of, name = at
        if of not in owners:
            owners[of] = {one: group for group in snapshot.groups(of) for one in group.names}
        group = owners[of].get(name)
        if group is None:
            continue
        if _looks_ahead(group):
            return f"{group.kind} {name!r}" + ("" if of == table else f" of table {of!r}")
        waiting += [(of, one) for one in group.inputs]
        waiting += [(source, one) for source, names in group.reads.items() for one in names]
    return ""


def _looks_ahead(group: GroupEntry) -> bool:
    if group.definition is None:
        return group.looks_ahead
    return parsed(group.definition).transformer.scope is Scope.SUFFIX  # of format 1
