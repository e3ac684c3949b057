"""Fresh, stale or missing: what each feature's values are against what they should be.

For every feature and partition the provenance its values *would* have if built now is computed from
fingerprints alone, reading no data. Values whose stored provenance equals it are fresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature
from featurestore.plan.states import StateNeed, state_needs
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, Provenance
from featurestore.transforms.base import Scope, SourceTransformer


class Freshness(StrEnum):
    """How a feature's values in a partition stand."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Assessment:
    """One feature in one partition.

    Parameters
    ----------
    freshness : Freshness
    reason : str
        Why it is stale: ``"input"``, ``"fit scope"``, ``"earlier rows"``, ``"other table"``,
        ``"parameter"``; else ``""``.
    provenance : Provenance
        What its values will be computed from.
    need : StateNeed
    """

    freshness: Freshness
    reason: str
    provenance: Provenance
    need: StateNeed


def assess(
    files: TableFiles, sources: Mapping[str, TableFiles]
) -> dict[str, tuple[Assessment, ...]]:
    """Return for each feature's group an assessment per partition, in table order.

    Parameters
    ----------
    files : TableFiles
    sources : mapping of str to TableFiles
        The other tables that source transformers read.
    """
    expected: dict[str, list[str]] = {
        BASE_GROUP: [one.provenance.fingerprint for one in files.base]
    }
    found: dict[str, tuple[Assessment, ...]] = {}
    for feature in files.graph.features():
        inputs = _input_fingerprints(feature, files, expected)
        transformer = feature.transformer
        source = (
            sources[transformer.source_table]
            if isinstance(transformer, SourceTransformer)
            else None
        )
        needs = state_needs(feature, files, inputs, source)
        assessments = []
        for position, entry in enumerate(files.base):
            provenance = Provenance(
                feature.definition.fingerprint, inputs[position], needs[position].fingerprint
            )
            stored = files.entries[feature.group].get(entry.partition)
            freshness, reason = _compare(
                feature, None if stored is None else stored.provenance, provenance
            )
            assessments.append(Assessment(freshness, reason, provenance, needs[position]))
        found[feature.group] = tuple(assessments)
        expected[feature.group] = [one.provenance.fingerprint for one in assessments]
    return found


def _input_fingerprints(
    feature: Feature, files: TableFiles, expected: Mapping[str, list[str]]
) -> list[str]:
    groups = sorted(files.groups_of(feature.inputs))
    return [
        fingerprint("columns", [[group, expected[group][position]] for group in groups])
        for position in range(len(files.base))
    ]


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
    fitted = feature.transformer.scope is Scope.FIT
    return Freshness.STALE, "fit scope" if fitted else "earlier rows"
