"""What became of everything that was damaged: how it was mended, or why it was left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from featurestore.plan.damage import Damage
from featurestore.plan.remains import At, Remains
from featurestore.report.repairs import Left, Mended
from featurestore.storage.faults import Fault
from featurestore.storage.records import BASE_GROUP

_LOST: Final = "its definition was in that file and in no other"
_ADD_AGAIN: Final = "restore the file from a backup, or drop the feature and add it again"
# Of a damaged fileset: what could be computed has a new one.
_BUILD: Final = "the rest is missing now: mend what it needs, then build"


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """What a repair did, beside what it found.

    Parameters
    ----------
    damage : Damage
    remains : Remains
        What could be read.
    copied : mapping of At to int
        Values that were taken from an older version, and its number.
    computed : set of At
        Values that were computed again.
    missing : set of At
        Values that were stale and are missing now.
    reasons : mapping of At to str
        Why values could not be computed.
    """

    damage: Damage
    remains: Remains
    copied: Mapping[At, int]
    computed: Set[At]
    missing: Set[At]
    reasons: Mapping[At, str]

    def mended(self) -> tuple[Mended, ...]:
        """Return what was mended, partitions of one column group together."""
        how = {at: f"copy of version {version}" for at, version in self.copied.items()}
        how |= dict.fromkeys(self.computed, "computed again")
        how |= dict.fromkeys(self.missing, "made missing")
        found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for (table, group, partition), text in sorted(how.items()):
            found[table, group, text].append(partition)
        columns = {(one.table, one.group): one.columns for one in self.damage.groups}
        values = tuple(
            Mended(text, table, columns[table, group], tuple(partitions))
            for (table, group, text), partitions in found.items()
        )
        return values + tuple(Mended("deleted", files=(path,)) for path in self.damage.caches)

    def left(self) -> tuple[Left, ...]:
        """Return each fault that is still there, why, and what mends it."""
        mended = self.copied.keys() | self.computed | self.missing
        found = []
        for fault in self.damage.faults:
            at = (fault.table, fault.group, fault.partition)
            if fault.file in self.damage.caches or at in mended:
                continue
            reason = self._reason(at)
            if fault.group and not fault.partition:
                reason = self._reason_of_group(fault.table, fault.group, mended)
                if not reason:
                    continue
            found.append(
                Left(
                    fault.file, fault.problem, reason, _remedy(fault, reason, mended),
                    fault.table, fault.columns, fault.partition,
                )
            )  # fmt: skip
        return tuple(found)

    def _reason(self, at: At) -> str:
        table, group, _ = at
        if table in self.remains.unreadable:
            return f"the table cannot be read: {self.remains.unreadable[table]}"
        if group == BASE_GROUP:
            return "it was ingested, and no kept version has an intact copy"
        if table in self.remains.tables and not self.remains.has_group(table, group):
            return "it needs a feature whose definition is lost"
        return self.reasons.get(at, "") or "it is no file of values of the newest version"

    def _reason_of_group(self, table: str, group: str, mended: Set[At]) -> str:
        """Return why a column group whose fileset is damaged could not be mended, or nothing."""
        damaged = next(
            (one for one in self.damage.groups if (one.table, one.group) == (table, group)), None
        )
        if damaged is None or table in self.remains.unreadable or group == BASE_GROUP:
            return self._reason((table, group, ""))
        if damaged.definition is None:
            return _LOST
        if not self.remains.has_group(table, group):
            return self._reason((table, group, ""))  # it reads one whose definition is lost
        left = [name for name in damaged.partitions if (table, group, name) not in mended]
        reasons = dict.fromkeys(self.reasons.get((table, group, name), "") for name in left)
        return "; ".join(one for one in reasons if one) if left else ""


def _remedy(fault: Fault, reason: str, mended: Set[At]) -> str:
    if reason == _LOST:
        return _ADD_AGAIN
    partly = any((table, group) == (fault.table, fault.group) for table, group, _ in mended)
    return _BUILD if fault.group and not fault.partition and partly else fault.remedy
