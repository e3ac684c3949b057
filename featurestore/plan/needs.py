"""Which state each partition of a table needs for a feature, whatever the feature's scope.

Always true: needs come in table order, one for each partition, and follow from metadata alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.fingerprint import fingerprint
from featurestore.plan.ahead import suffix_needs
from featurestore.plan.definition import Feature
from featurestore.plan.states import (
    Learner,
    SourceSummaries,
    StateNeed,
    Summary,
    chain_key,
    fit_needs,
    prefix_key,
    source_need,
)
from featurestore.plan.stretch import Stretch
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import PartitionEntry
from featurestore.transforms.base import Scope, SourceTransformer


def state_needs(
    feature: Feature,
    files: TableFiles,
    inputs: Sequence[str],
    source: SourceSummaries | None,
) -> list[StateNeed]:
    """Return what a feature needs in each partition.

    Parameters
    ----------
    feature : Feature
    files : TableFiles
    inputs : sequence of str
        For each partition the fingerprint its inputs have, or will have after the build.
    source : SourceSummaries, optional
        The other table of a source transformer.
    """
    transformer = feature.transformer
    if isinstance(transformer, SourceTransformer):
        assert source is not None
        return [source_need(transformer, files.schema, one, source) for one in files.base]
    if transformer.scope is Scope.FIT:
        return [fit_needs(feature, files, inputs)] * len(files.base)
    if transformer.scope is Scope.NONE:
        return [StateNeed()] * len(files.base)
    learner = Learner(transformer, files.schema, feature.inputs)
    needs = _prefix_needs if transformer.scope is Scope.PREFIX else suffix_needs
    return needs(learner, files.base, inputs)


def _prefix_needs(
    learner: Learner, base: Sequence[PartitionEntry], inputs: Sequence[str]
) -> list[StateNeed]:
    reach = learner.transformer.reach(learner.schema)
    needs: list[StateNeed] = []
    summaries: list[Summary] = []
    first = 0
    chain = ""
    since: int | None = None
    for position, entry in enumerate(base):
        if reach is not None and entry.time_min is not None:
            since = entry.time_min - reach
            # Partitions are in order of time: what is out of reach stays so.
            while first < len(summaries) and not _reaches(base[summaries[first].partition], since):
                first += 1
            chain = fingerprint("prefix", [one.key for one in summaries[first:]])
        members = Stretch(summaries, first, len(summaries))
        key = prefix_key(chain, since)
        needs.append(StateNeed(chain, key, members, since=since) if members else StateNeed())
        if entry.rows:
            summary = Summary(learner.summary_key(inputs[position]), position)
            summaries.append(summary)
            chain = chain_key(chain, summary.key)
    return needs


def _reaches(entry: PartitionEntry, since: int) -> bool:
    return entry.time_max is None or entry.time_max >= since
