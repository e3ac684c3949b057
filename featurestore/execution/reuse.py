"""Values that are still right although what they were computed from has another name now.

Provenance names what values come from, so a change of early rows gives every later partition of a feature
that looks back a new name for its state. Often the state itself did not change: the last row per key is
where it was. Then the values need not be computed, only stamped anew. That is certain when

* the definition is the same;
* the inputs are the same values: the same names, or the stored values were computed from stored
  inputs that are fresh, or were found still right themselves;
* the state has the same name, or was written with the same bytes as the old one, which is still kept.

``apply`` is a function of these three alone. States of another table's rows are compared by name only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessment, Freshness, columns_print
from featurestore.plan.states import prefix_key
from featurestore.plan.table_files import TableFiles
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.storage.states import StateStore


@dataclass(frozen=True, slots=True)
class StoredValues:
    """The values that a table has, and what is known of them during a build.

    Parameters
    ----------
    files : TableFiles
    assessments : mapping of str to sequence of Assessment
    states : StateStore
        With the states of the features that are asked about.
    """

    files: TableFiles
    assessments: Mapping[str, Sequence[Assessment]]
    states: StateStore

    def still_right(
        self, feature: Feature, position: int, reused: AbstractSet[tuple[str, str]]
    ) -> PartitionEntry | None:
        """Return stale values of a partition with their new provenance, None if they must be computed.

        Parameters
        ----------
        feature : Feature
        position : int
        reused : set of (str, str)
            Groups and partitions that were found still right.
        """
        assessment = self.assessments[feature.group][position]
        if assessment.freshness is not Freshness.STALE:
            return None
        partition = self.files.base[position].partition
        stored, wanted = self.files.entries[feature.group][partition], assessment.provenance
        if (
            stored.provenance.definition == wanted.definition
            and self._same_inputs(feature, position, stored.provenance, reused)
            and self._same_state(stored.provenance, assessment)
        ):
            kept = stored.provenance  # the same state looked until the same time
            wanted = replace(wanted, until=kept.until, seen=kept.seen)
            return replace(stored, provenance=wanted)
        return None

    def _same_inputs(
        self,
        feature: Feature,
        position: int,
        stored: Provenance,
        reused: AbstractSet[tuple[str, str]],
    ) -> bool:
        if stored.inputs == self.assessments[feature.group][position].provenance.inputs:
            return True
        partition = self.files.base[position].partition
        before = {}
        for group in self.files.groups_of(feature.inputs):
            unchanged = (
                group == BASE_GROUP  # rows never change under a partition's id
                or self.assessments[group][position].is_fresh
                or (group, partition) in reused
            )
            if not unchanged:
                return False
            before[group] = self.files.entries[group][partition].provenance.fingerprint
        return columns_print(before) == stored.inputs

    def _same_state(self, stored: Provenance, assessment: Assessment) -> bool:
        wanted = assessment.provenance.state
        if stored.state == wanted:
            return True
        since = assessment.need.since
        key = prefix_key(wanted, since)
        if not stored.state or not wanted or key != assessment.need.key:
            return False
        digest = self.states.digest(key)
        return digest is not None and digest == self.states.digest(prefix_key(stored.state, since))
