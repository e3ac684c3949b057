"""Repair: derived values that were damaged are computed again, if all they need is sound.

Damaged partitions of features count as missing; where an older kept version names an intact copy of
the same values (equal provenance), the copy is used, for ingested data too. What was fresh before the
damage is then computed as a build would, in rounds over all tables, and everything is published in
one commit. Damaged states, journal entries, leases and hints are caches and are deleted.

Always true: nothing that is sound changes, and nothing is guessed. Ingested data without a copy, features
whose function is not here or changed, and values whose inputs are damaged are left as they are, named
by the store, so that restoring their files from a backup still mends them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Final

from featurestore.errors import DefinitionError, FeatureStoreError
from featurestore.execution.publish_repair import mended_groups
from featurestore.execution.runner import Build
from featurestore.plan.damage import Damage, GroupDamage
from featurestore.plan.definition import Feature
from featurestore.plan.projection import project
from featurestore.plan.staleness import CODE, Assessment, Assessor, Freshness
from featurestore.plan.states import Summary
from featurestore.plan.table_files import TableFiles
from featurestore.report.progress import progress_bars
from featurestore.report.repairs import Left, Mended, RepairReport
from featurestore.session import Session
from featurestore.storage.intact_copies import IntactCopy, intact_copies
from featurestore.storage.journal import Journal
from featurestore.storage.records import BASE_GROUP, PartitionEntry, Provenance, Snapshot
from featurestore.storage.states import STATES, StateStore
from featurestore.storage.verification import Fault, VerifyReport
from featurestore.transforms.base import SourceTransformer, UnknownTransformer
from featurestore.transforms.function import Function

_LOST: Final = "its definition was in that file and in no other"
_ADD_AGAIN: Final = "restore the file from a backup, or drop the feature and add it again"
# Of a damaged fileset: what could be computed has a new one.
_BUILD: Final = "the rest is missing now: mend what it needs, then build"
_At = tuple[str, str, str]  # table, group, partition id


class Repair:
    """One repair of a store at its newest version; see :meth:`run`.

    Parameters
    ----------
    session : Session
    snapshot : Snapshot
        The newest version.
    report : VerifyReport
        Of that version.
    dry_run : bool
    """

    def __init__(
        self, session: Session, snapshot: Snapshot, report: VerifyReport, dry_run: bool
    ) -> None:
        self._session = session
        self._dry_run = dry_run
        self._snapshot = snapshot
        self._damage = Damage.of(session.log, self._snapshot, report.faults)
        self._states = StateStore(session.objects)
        self._known_states: dict[str, bool] = {}
        self._tables: dict[str, TableFiles] = {}
        self._ids: dict[str, tuple[str, ...]] = {}  # of the partitions, in order
        self._unreadable: dict[str, str] = {}
        self._targets: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._reasons: dict[_At, str] = {}
        self._copies: dict[_At, IntactCopy] = {}
        self._computed: dict[_At, PartitionEntry] = {}
        self._stale: set[_At] = set()
        self._journalled: dict[str, list[str]] = defaultdict(list)

    def run(self) -> RepairReport:
        """Mend what can be mended; return that and what cannot."""
        self._delete_caches()
        for table in sorted({one.table for one in self._damage.groups}):
            self._load(table)
        self._find_copies()
        with ExitStack() as held:
            for number in sorted({one.version for one in self._copies.values()}):
                # Until they are published here, only these versions keep the copies from gc.
                held.enter_context(self._session.hold(self._session.log.read(number)))
            self._choose_targets()
            while self._round():
                pass
            version = self._snapshot.version
            if not self._dry_run:
                version = self._publish()
        return RepairReport(self._dry_run, version, self._mended(), self._left())

    # --- what there is ---------------------------------------------------------------------------

    def _delete_caches(self) -> None:
        if self._dry_run:
            return
        store = self._session.objects
        store.delete(self._damage.caches)
        for table in sorted({one.table for one in self._damage.groups}):
            # An interrupted build may have left entries that name the damaged files.
            journal = Journal(store, table)
            journal.clear(
                key
                for key, entry in journal.finished().items()
                if not self._damage.paths.isdisjoint(file.path for file in entry.all_files())
            )

    def _load(self, table: str) -> None:
        """Read a table and all that its features read, without the damaged values."""
        if table in self._tables or table in self._unreadable:
            return
        try:
            files = self._session.files(table, self._damage.readable(self._snapshot))
            found = {table: files, **self._session.sources(files)}
            entries = {name: self._without_damage(one) for name, one in found.items()}
        except FeatureStoreError as error:
            self._unreadable[table] = error.problem
            return
        for name, one in found.items():
            if name not in self._tables:
                self._tables[name] = replace(one, entries=entries[name])
                self._ids[name] = tuple(entries[name][BASE_GROUP])

    def _without_damage(self, files: TableFiles) -> dict[str, Mapping[str, PartitionEntry]]:
        """Return all that is stored of a table but the damaged values of features."""
        entries = dict(files.entries)
        for one in self._damage.groups:
            if one.table == files.name and one.group != BASE_GROUP and one.group in entries:
                kept = entries[one.group].items()
                entries[one.group] = {
                    partition: entry for partition, entry in kept if partition not in one.partitions
                }
        return entries

    def _find_copies(self) -> None:
        for one in self._damage.groups:
            if one.table not in self._tables or one.group not in self._tables[one.table].groups:
                continue
            files = self._tables[one.table]
            wanted = self._wanted(files, one)
            rows = {base.partition: base.rows for base in files.base}
            found = intact_copies(
                self._session.log,
                one.table,
                one.group,
                wanted,
                partial(self._holds, one, wanted, rows),
                self._snapshot.version,
            )
            for partition, copy in found.items():
                self._copies[one.table, one.group, partition] = copy
                self._put(one.table, one.group, copy.entry)

    def _holds(
        self,
        damage: GroupDamage,
        wanted: Mapping[str, Provenance],
        rows: Mapping[str, int],
        entry: PartitionEntry,
    ) -> bool:
        """Whether an older entry has the values that were damaged, in other files."""
        return (
            entry.provenance == wanted[entry.partition]
            and entry.rows == rows.get(entry.partition)
            and self._damage.paths.isdisjoint(file.path for file in entry.all_files())
            and entry != damage.entries.get(entry.partition)
        )

    def _wanted(self, files: TableFiles, one: GroupDamage) -> dict[str, Provenance]:
        """Return the provenance of the damaged values, by partition; of lost ones, as if fresh."""
        known = {name: entry.provenance for name, entry in one.entries.items()}
        if one.group == BASE_GROUP or not one.unreadable:
            return {name: known[name] for name in one.partitions}
        found = self._assessor().group(files.name, one.group)
        names = self._ids[files.name]
        fresh = {name: one.provenance for name, one in zip(names, found, strict=True)}
        return {name: fresh[name] for name in one.partitions if name in fresh}

    def _put(self, table: str, group: str, entry: PartitionEntry) -> None:
        """Take an entry as the partition's values from here on."""
        files = self._tables[table]
        entries = {**files.entries, group: {**files.entries[group], entry.partition: entry}}
        self._tables[table] = replace(files, entries=entries)

    # --- what is computed ------------------------------------------------------------------------

    def _assessor(self) -> Assessor:
        return Assessor(self._tables)

    def _choose_targets(self) -> None:
        """Pick the damaged values that were fresh: what was stale just becomes missing."""
        assessor = self._assessor()
        for one in self._damage.groups:
            if one.table not in self._tables or one.group == BASE_GROUP:
                continue
            if one.group not in self._tables[one.table].groups:  # its definition is lost
                continue
            names = self._ids[one.table]
            found = assessor.group(one.table, one.group)
            for name, assessment in zip(names, found, strict=True):
                at = (one.table, one.group, name)
                if name not in one.partitions or at in self._copies:
                    continue
                old = one.entries.get(name)
                fresh = old is None or old.provenance == assessment.provenance
                if fresh or assessment.reason == CODE:
                    self._targets[one.table, one.group].add(name)
                else:
                    self._stale.add(at)
            gone = one.partitions.difference(names)
            self._stale.update((one.table, one.group, name) for name in gone)

    def _round(self) -> bool:
        """Compute what can be computed now; return whether there was any."""
        progress = False
        for table in sorted(self._tables):
            assessor = self._assessor()
            todo = self._ready(self._tables[table], assessor)
            if todo:
                self._compute(table, todo, assessor)
                progress = True
        return progress

    def _ready(self, files: TableFiles, assessor: Assessor) -> dict[str, set[int]]:
        """Return for each feature the damaged positions whose needs are there, or computed before."""
        todo: dict[str, set[int]] = {}
        for level in files.graph.levels:
            for feature in level:
                targets = self._targets.get((files.name, feature.group), set())
                if not targets:
                    continue
                reason = _function_problem(feature)
                for position, name in enumerate(self._ids[files.name]):
                    if name not in targets:
                        continue
                    assessment = assessor.group(files.name, feature.group)[position]
                    found = reason or self._obstacle(
                        files, feature, position, assessment, assessor, todo
                    )
                    self._reasons[files.name, feature.group, name] = found
                    if not found:
                        todo.setdefault(feature.group, set()).add(position)
        return todo

    def _obstacle(
        self,
        files: TableFiles,
        feature: Feature,
        position: int,
        assessment: Assessment,
        assessor: Assessor,
        todo: Mapping[str, set[int]],
    ) -> str:
        """Return why a value cannot be computed now, or nothing."""
        if assessment.reason == CODE:
            return "its function computes something else now than when the feature was defined"

        def lacking(table: TableFiles, columns: tuple[str, ...], at: int) -> str:
            for group in table.groups_of(columns):
                if table.name == files.name and at in todo.get(group, ()):
                    continue
                if not self._is_sound(table, group, at, assessor):
                    names = ", ".join(table.groups[group].names)
                    return (
                        f"it needs {names} of table {table.name!r} in partition "
                        f"{self._ids[table.name][at]}, which is damaged or not built"
                    )
            return ""

        found = lacking(files, feature.inputs, position)
        if found:
            return found
        source, columns = files, feature.inputs
        transformer = feature.transformer
        if isinstance(transformer, SourceTransformer):
            source = self._tables[transformer.source_table]
            columns = transformer.source_inputs(files.schema)
            for at in assessment.need.rows:
                found = lacking(source, columns, at)
                if found:
                    return found
        if assessment.need.key and not self._has_state(assessment.need.key):
            for member in assessment.need.members:
                if not self._has_state(member.key):
                    summarised = _summarised(source, columns, member)
                    found = lacking(source, summarised, member.partition)
                    if found:
                        return found
        return ""

    def _is_sound(self, files: TableFiles, group: str, position: int, assessor: Assessor) -> bool:
        partition = self._ids[files.name][position]
        if group == BASE_GROUP:
            damaged = self._damage.partitions(files.name, group)
            return partition not in damaged or (files.name, group, partition) in self._copies
        return assessor.group(files.name, group)[position].freshness is Freshness.FRESH

    def _has_state(self, key: str) -> bool:
        if key not in self._known_states:
            path = f"{STATES}/{key}.arrow"
            self._known_states[key] = path not in self._damage.caches and self._states.has(key)
        return self._known_states[key]

    def _compute(self, table: str, todo: Mapping[str, set[int]], assessor: Assessor) -> None:
        files = self._tables[table]
        assessments = {
            group: tuple(
                one if position in todo[group] else replace(one, freshness=Freshness.FRESH)
                for position, one in enumerate(found)
            )
            if group in todo
            else ()
            for group, found in assessor.table(table).items()
        }
        if self._dry_run:
            entries: Mapping[str, Mapping[str, PartitionEntry]]
            entries = _promised(files, assessments, todo)
        else:
            with progress_bars():
                build = Build(self._session.place, files, self._tables, assessments)
                result = build.run(project(files, self._tables, assessments))
            self._journalled[table] += result.journal_keys
            entries = result.entries
        for group, values in entries.items():
            for entry in values.values():
                self._computed[table, group, entry.partition] = entry
                self._targets[table, group].discard(entry.partition)
                self._put(table, group, entry)
        self._known_states.clear()  # the build made further ones

    # --- the outcome -----------------------------------------------------------------------------

    def _publish(self) -> int:
        new: dict[tuple[str, str], dict[str, PartitionEntry]] = defaultdict(dict)
        for (table, group, partition), copy in self._copies.items():
            new[table, group][partition] = copy.entry
        for (table, group, partition), entry in self._computed.items():
            new[table, group][partition] = entry
        gone: dict[tuple[str, str], set[str]] = defaultdict(set)
        for table, group, partition in self._stale:
            gone[table, group].add(partition)
        if not new and not gone:
            return self._snapshot.version
        written = [one for values in new.values() for one in values.values()]
        change = mended_groups(self._session.objects, self._damage, new, gone)
        version = self._session.commit("repair", change, written).version
        for table, keys in self._journalled.items():
            Journal(self._session.objects, table).clear(keys)
        return version

    def _mended(self) -> tuple[Mended, ...]:
        how = {at: f"copy of version {copy.version}" for at, copy in self._copies.items()}
        how |= dict.fromkeys(self._computed, "computed again")
        how |= dict.fromkeys(self._stale, "made missing")
        found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for (table, group, partition), text in sorted(how.items()):
            found[table, group, text].append(partition)
        columns = {(one.table, one.group): one.columns for one in self._damage.groups}
        values = tuple(
            Mended(text, table, columns[table, group], tuple(partitions))
            for (table, group, text), partitions in found.items()
        )
        return values + tuple(Mended("deleted", files=(path,)) for path in self._damage.caches)

    def _left(self) -> tuple[Left, ...]:
        mended = self._copies.keys() | self._computed.keys() | self._stale
        found = []
        for fault in self._damage.faults:
            at = (fault.table, fault.group, fault.partition)
            if fault.file in self._damage.caches or at in mended:
                continue
            reason = self._reason(at)
            if fault.group and not fault.partition:
                reason = self._reason_of_group(fault.table, fault.group, mended)
                if not reason:
                    continue
            found.append(
                Left(
                    fault.file, fault.problem, reason, self._remedy(fault, reason, mended),
                    fault.table, fault.columns, fault.partition,
                )
            )  # fmt: skip
        return tuple(found)

    def _remedy(self, fault: Fault, reason: str, mended: set[_At]) -> str:
        if reason == _LOST:
            return _ADD_AGAIN
        partly = any((table, group) == (fault.table, fault.group) for table, group, _ in mended)
        return _BUILD if fault.group and not fault.partition and partly else fault.remedy

    def _reason(self, at: _At) -> str:
        table, group, _ = at
        if table in self._unreadable:
            return f"the table cannot be read: {self._unreadable[table]}"
        if group == BASE_GROUP:
            return "it was ingested, and no kept version has an intact copy"
        if table in self._tables and group not in self._tables[table].groups:
            return "it needs a feature whose definition is lost"
        return self._reasons.get(at, "") or "it is no file of values of the newest version"

    def _reason_of_group(self, table: str, group: str, mended: set[_At]) -> str:
        """Return why a column group whose fileset is damaged could not be mended, or nothing."""
        damaged = next(
            (one for one in self._damage.groups if (one.table, one.group) == (table, group)), None
        )
        if damaged is None or table in self._unreadable or group == BASE_GROUP:
            return self._reason((table, group, ""))
        if damaged.definition is None:
            return _LOST
        left = [name for name in damaged.partitions if (table, group, name) not in mended]
        reasons = dict.fromkeys(self._reasons.get((table, group, name), "") for name in left)
        return "; ".join(one for one in reasons if one) if left else ""


def _summarised(files: TableFiles, columns: tuple[str, ...], member: Summary) -> tuple[str, ...]:
    """Return the columns that a summary is computed from."""
    if member.time_range is None or files.schema.time is None:
        return columns
    return (*columns, files.schema.time)


def _function_problem(feature: Feature) -> str:
    """Return why a feature cannot be computed in this process at all, or nothing."""
    transformer = feature.transformer
    if isinstance(transformer, UnknownTransformer):
        return transformer.problem.problem
    if isinstance(transformer, Function):
        try:
            transformer.function.resolve()
        except DefinitionError as error:
            return error.problem
    return ""


def _promised(
    files: TableFiles,
    assessments: Mapping[str, tuple[Assessment, ...]],
    todo: Mapping[str, set[int]],
) -> dict[str, dict[str, PartitionEntry]]:
    """Return entries as a build would give them, without files."""
    base = files.base
    return {
        group: {
            base[position].partition: PartitionEntry(
                base[position].partition,
                base[position].rows,
                (), {}, assessments[group][position].provenance, 0, {}, 0, {},
            )
            for position in positions
        }
        for group, positions in todo.items()
    }  # fmt: skip
