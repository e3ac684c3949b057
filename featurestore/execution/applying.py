"""A feature's columns of some rows, its transformer told which of them it learnt from if it asks for it.

Always true: what is told follows from the definition (``fit_on``) and the rows' times alone, so that rows
that are built and rows that are served get the same values.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace
from typing import Any

from featurestore.engines.protocol import Engine
from featurestore.plan.definition import Feature
from featurestore.plan.states import fit_range
from featurestore.schema import TableSchema
from featurestore.transforms.base import Columns, Partition, State


def apply_feature(feature: Feature, partition: Partition, state: State, engine: Engine) -> Columns:
    """Return what a feature's transformer makes of a partition and its state."""
    transformer = feature.transformer
    if transformer.tells_learnt_rows:
        partition = replace(partition, learnt_from=_learnt_from(feature, partition, engine))
    return transformer.apply(partition, state, engine)


def compared_only(features: Iterable[Feature], schema: TableSchema) -> Set[str]:
    """Return the inputs of features of which none asks more than which rows have equal values."""
    plain, compared = set[str](), set[str]()
    for one in features:
        equal = set(one.transformer.compared(schema)).intersection(one.inputs)
        compared |= equal
        plain |= set(one.inputs) - equal
    return compared - plain


def _learnt_from(feature: Feature, partition: Partition, engine: Engine) -> Any:
    schema = partition.schema
    within = fit_range(feature, schema)
    if within is None:
        return True
    assert schema.time is not None
    times, _ = engine.values(partition.frame[schema.time])
    return (times >= within[0]) & (times < within[1])
