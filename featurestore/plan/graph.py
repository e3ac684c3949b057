"""Which feature needs which: dependencies by column, in levels.

All features of one level depend on lower levels only, so a build makes as many passes as there are
levels, however many features there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from featurestore.errors import DependencyCycleError, FeatureStoreError, MissingColumnError
from featurestore.plan.definition import Feature, FeatureDefinition, bind
from featurestore.schema import Field, TableSchema
from featurestore.storage.records import BASE_GROUP


@dataclass(frozen=True, slots=True)
class FeatureGraph:
    """The features of one table in levels.

    Parameters
    ----------
    levels : tuple of tuple of Feature
    owners : mapping of str to str
        For each column the group that holds it.
    """

    levels: tuple[tuple[Feature, ...], ...]
    owners: Mapping[str, str]

    def features(self) -> tuple[Feature, ...]:
        """All features, each after those it needs."""
        return tuple(feature for level in self.levels for feature in level)

    def groups_of(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the groups that hold these columns, each once, in order of first mention.

        Raises
        ------
        MissingColumnError
        """
        found: dict[str, None] = {}
        for column in columns:
            if column not in self.owners:
                raise MissingColumnError(column, tuple(self.owners))
            found[self.owners[column]] = None
        return tuple(found)

    def needed(self, groups: Iterable[str]) -> tuple[Feature, ...]:
        """Return the features of some groups and all that they need, each after those it needs."""
        wanted, features = set(groups), self.features()
        for feature in reversed(features):
            if feature.group in wanted:
                wanted.update(self.groups_of(feature.inputs))
        return tuple(one for one in features if one.group in wanted)


def build_graph(base: Sequence[Field], features: Sequence[Feature]) -> FeatureGraph:
    """Return the graph of a table's features.

    Raises
    ------
    DependencyCycleError
        If features need each other; the message names them in order.
    MissingColumnError
        If an input exists nowhere.
    """
    owners = {one.name: BASE_GROUP for one in base}
    owners |= {name: feature.group for feature in features for name in feature.names}
    waiting = {feature.group: feature for feature in features}
    done = {BASE_GROUP}
    levels: list[tuple[Feature, ...]] = []
    for feature in features:
        for name in feature.inputs:
            if name not in owners:
                raise MissingColumnError(name, tuple(owners))
    while waiting:
        ready = tuple(
            feature
            for feature in waiting.values()
            if all(owners[name] in done for name in feature.inputs)
        )
        if not ready:
            raise _cycle(list(waiting.values()), owners)
        levels.append(ready)
        for feature in ready:
            done.add(feature.group)
            del waiting[feature.group]
    return FeatureGraph(tuple(levels), owners)


def explain_blocked(
    blocked: Sequence[tuple[FeatureDefinition, MissingColumnError]], schema: TableSchema
) -> None:
    """Raise why none of some definitions can be bound: a missing column, or a cycle among them.

    Raises
    ------
    DependencyCycleError
        If the missing columns are outputs of the blocked definitions.
    MissingColumnError
    """
    missing = {error.column for _, error in blocked}
    supposed = schema.with_fields(tuple(Field(name, pa.float64()) for name in sorted(missing)))
    features = []
    for definition, error in blocked:
        try:
            features.append(bind(definition, supposed))
        except FeatureStoreError:  # what it says of a column that is only supposed helps nobody
            raise error from None
    produced = {name for feature in features for name in feature.names}
    for _, error in blocked:
        if error.column not in produced:
            raise error
    owners = dict.fromkeys(schema.names, BASE_GROUP)
    owners |= {name: feature.group for feature in features for name in feature.names}
    cycle = _cycle(features, owners)
    alone = [
        error
        for feature, (_, error) in zip(features, blocked, strict=True)
        if error.column in feature.names
    ]
    if alone:  # a name that was mistyped, most often
        hint = f"{alone[0].problem}: {alone[0].remedy}; or rename the output"
        raise DependencyCycleError(cycle.problem, hint)
    raise cycle


def _cycle(features: Sequence[Feature], owners: Mapping[str, str]) -> DependencyCycleError:
    """Return the error that names one cycle among features that all wait for each other."""
    by_group = {feature.group: feature for feature in features}
    path = [features[0].group]
    while True:
        feature = by_group[path[-1]]
        following = next(owners[name] for name in feature.inputs if owners[name] in by_group)
        if following in path:
            loop = [by_group[group].names[0] for group in path[path.index(following) :]]
            chain = " needs ".join([*loop, loop[0]])
            return DependencyCycleError(
                f"features need each other: {chain}", "break the cycle by renaming an output"
            )
        path.append(following)
