"""Publishing a repair: mended values take the places of damaged ones, in one commit.

As in ``publish``, a *change* is evaluated again on every newer head. Whatever somebody else wrote
meanwhile stays: only entries that are still the damaged ones give way.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from featurestore.execution.publish import unless_written
from featurestore.plan.damage import Damage, GroupDamage
from featurestore.storage.commit_log import Change
from featurestore.storage.fileset import read_fileset, with_partitions
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    BASE_GROUP,
    GroupEntry,
    PartitionEntry,
    Snapshot,
)


def mended_groups(
    store: ObjectStore,
    damage: Damage,
    new: Mapping[tuple[str, str], Mapping[str, PartitionEntry]],
    gone: Mapping[tuple[str, str], AbstractSet[str]],
) -> Change:
    """Publish mended values.

    Parameters
    ----------
    store : ObjectStore
    damage : Damage
        As it was found.
    new : mapping of (str, str) to mapping of str to PartitionEntry
        Table and group, then partition id: what takes the place of damaged values.
    gone : mapping of (str, str) to set of str
        Damaged values that become missing.
    """

    def change(head: Snapshot) -> Mapping[str, Mapping[str, Any] | None]:
        entries: dict[str, Mapping[str, Any] | None] = {}
        for one in damage.groups:
            at = (one.table, one.group)
            group = head.group(*at)
            if group is None or (at not in new and at not in gone):
                continue  # dropped meanwhile, or nothing of it could be mended
            values = _mended(store, one, group, new.get(at, {}), gone.get(at, frozenset()))
            order = list(values)
            if one.group != BASE_GROUP:
                base = head.group(one.table, BASE_GROUP)
                assert base is not None
                order = [each.partition for each in read_fileset(store, base.fileset)]
            ordered = [values[name] for name in order if name in values]
            lost = one.unreadable and group.fileset == one.fileset
            new_group = with_partitions(store, group, ordered, one.definition if lost else None)
            entries[group.key] = new_group.to_json()
        return entries

    return change


def _mended(
    store: ObjectStore,
    damage: GroupDamage,
    group: GroupEntry,
    new: Mapping[str, PartitionEntry],
    gone: AbstractSet[str],
) -> dict[str, PartitionEntry]:
    if damage.unreadable and group.fileset == damage.fileset:
        return dict(new)
    # Of a fileset that cannot be read no entries are known: only what is missing now is filled in.
    exchanged = {**new, **dict.fromkeys(gone)}
    return unless_written(read_fileset(store, group.fileset), damage.entries, exchanged)
