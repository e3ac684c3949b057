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
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from featurestore.errors import FeatureStoreError
from featurestore.execution.feasibility import projected
from featurestore.execution.publish_repair import mended_groups
from featurestore.execution.runner import Build
from featurestore.plan.damage import Damage, GroupDamage
from featurestore.plan.remains import At, Remains, TableRound, Targets
from featurestore.plan.table_files import TableFiles
from featurestore.report.progress import progress_bars
from featurestore.report.repair_outcome import RepairOutcome
from featurestore.report.repairs import RepairReport
from featurestore.session import Session
from featurestore.storage.faults import VerifyReport
from featurestore.storage.intact_copies import IntactCopy, intact_copies
from featurestore.storage.journal import Journal
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry, Snapshot
from featurestore.storage.states import STATES, StateStore


def repair(
    session: Session, snapshot: Snapshot, report: VerifyReport, dry_run: bool
) -> RepairReport:
    """Mend what can be mended of the newest version; see ``FeatureStore.repair``.

    Parameters
    ----------
    session : Session
    snapshot : Snapshot
        The newest version.
    report : VerifyReport
        Of that version.
    dry_run : bool
    """
    damage = Damage.of(session.log, snapshot, report.faults)
    if not dry_run:
        _delete_caches(session.objects, damage)
    remains, copies = _copied(session, snapshot, damage, _remaining(session, snapshot, damage))
    with ExitStack() as held:
        for number in sorted({one.version for one in copies.values()}):
            # Until they are published here, only these versions keep the copies from gc.
            held.enter_context(session.hold(session.log.read(number)))
        targets = Targets.of(damage, remains, copies)
        made = _computed(session, remains, targets, dry_run)
        version = snapshot.version
        new = {**{at: copy.entry for at, copy in copies.items()}, **made.values}
        if not dry_run and (new or targets.missing):
            change = mended_groups(
                session.objects, damage, _by_group(new.items()), _partitions(targets)
            )
            version = session.commit("repair", change, new.values()).version
            for table, keys in made.journal_keys.items():
                Journal(session.objects, table).clear(keys)
    versions = {at: copy.version for at, copy in copies.items()}
    outcome = RepairOutcome(
        damage, remains, versions, made.values.keys(), targets.missing, made.reasons
    )
    return RepairReport(dry_run, version, outcome.mended(), outcome.left())


def _delete_caches(store: ObjectStore, damage: Damage) -> None:
    store.delete(damage.caches)
    for table in sorted({one.table for one in damage.groups}):
        # An interrupted build may have left entries that name the damaged files.
        journal = Journal(store, table)
        journal.clear(
            key
            for key, entry in journal.finished().items()
            if not damage.paths.isdisjoint(file.path for file in entry.all_files())
        )


def _remaining(session: Session, snapshot: Snapshot, damage: Damage) -> Remains:
    """Read the damaged tables and all that their features read, without the damaged values."""
    tables: dict[str, TableFiles] = {}
    unreadable: dict[str, str] = {}
    for table in sorted({one.table for one in damage.groups}):
        if table in tables:
            continue
        try:
            files = session.files(table, damage.readable(snapshot))
            found = {table: files, **session.sources(files)}
            sound = {name: damage.sound(one) for name, one in found.items()}
        except FeatureStoreError as error:
            unreadable[table] = error.problem
            continue
        tables = {**sound, **tables}
    states = StateStore(session.objects)

    def state_exists(key: str) -> bool:
        return f"{STATES}/{key}.arrow" not in damage.caches and states.has(key)

    return Remains.of(damage, tables, unreadable, state_exists)


def _copied(
    session: Session, snapshot: Snapshot, damage: Damage, remains: Remains
) -> tuple[Remains, dict[At, IntactCopy]]:
    """Find intact copies in older versions; return what remains with them, and where they are."""
    copies: dict[At, IntactCopy] = {}
    for one in damage.groups:
        if not remains.has_group(one.table, one.group):
            continue
        wanted = remains.provenance(one)
        rows = {base.partition: base.rows for base in remains.tables[one.table].base}
        holds = partial(_holds, damage, one, wanted, rows)
        found = intact_copies(session.log, one.table, one.group, wanted, holds, snapshot.version)
        if found:
            copies |= {(one.table, one.group, name): copy for name, copy in found.items()}
            values = {name: copy.entry for name, copy in found.items()}
            remains = remains.with_values({(one.table, one.group): values})
    return remains, copies


def _holds(
    damage: Damage,
    group: GroupDamage,
    wanted: Mapping[str, Provenance],
    rows: Mapping[str, int],
    entry: PartitionEntry,
) -> bool:
    """Whether an older entry has the values that were damaged, in other files."""
    return (
        entry.provenance == wanted[entry.partition]
        and entry.rows == rows.get(entry.partition)
        and damage.paths.isdisjoint(file.path for file in entry.all_files())
        and entry != group.entries.get(entry.partition)
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """What was computed, or with ``dry_run`` would be.

    Parameters
    ----------
    values : mapping of At to PartitionEntry
    journal_keys : mapping of str to list of str
        By table: to be cleared once the values are published.
    reasons : mapping of At to str
        Why the other targets could not be computed.
    """

    values: Mapping[At, PartitionEntry]
    journal_keys: Mapping[str, list[str]]
    reasons: Mapping[At, str]


def _computed(session: Session, remains: Remains, targets: Targets, dry_run: bool) -> _Made:
    """Compute what can be computed, in rounds over the tables, until nothing more can."""
    values: dict[At, PartitionEntry] = {}
    journal_keys: dict[str, list[str]] = defaultdict(list)
    reasons: dict[At, str] = {}
    progress = True
    while progress:
        progress = False
        for table in sorted(remains.tables):
            ready = TableRound.of(remains, table, targets.computed - values.keys())
            reasons |= ready.reasons
            if not ready.positions:
                continue
            if dry_run:
                new = _promised(remains, table, ready)
            else:
                new, keys = _built(session, remains, table, ready)
                journal_keys[table] += keys
            values |= new
            remains = remains.with_values(_by_group(new.items()))
            progress = True
    return _Made(values, journal_keys, reasons)


def _built(
    session: Session, remains: Remains, table: str, ready: TableRound
) -> tuple[dict[At, PartitionEntry], tuple[str, ...]]:
    files, assessments = remains.tables[table], ready.assessments(remains, table)
    with progress_bars():
        build = Build(session.place, files, remains.tables, assessments)
        states = StateStore(session.objects)
        executor = session.place.executor
        result = build.run(projected(files, remains.tables, assessments, states, executor))
    values = {
        (table, group, entry.partition): entry
        for group, entries in result.entries.items()
        for entry in entries.values()
    }
    return values, result.journal_keys


def _promised(remains: Remains, table: str, ready: TableRound) -> dict[At, PartitionEntry]:
    """Return entries as a build would give them, without files."""
    base = remains.tables[table].base
    return {
        (table, group, base[at].partition): PartitionEntry(
            base[at].partition, base[at].rows, (), {},
            remains.standing.assessor.group(table, group)[at].provenance, 0, {}, 0, {},
        )
        for group, positions in ready.positions.items()
        for at in positions
    }  # fmt: skip


def _by_group(
    values: Iterable[tuple[At, PartitionEntry]],
) -> dict[tuple[str, str], dict[str, PartitionEntry]]:
    found: dict[tuple[str, str], dict[str, PartitionEntry]] = defaultdict(dict)
    for (table, group, partition), entry in values:
        found[table, group][partition] = entry
    return found


def _partitions(targets: Targets) -> dict[tuple[str, str], set[str]]:
    """Return the partitions in which values become missing, by table and group."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for table, group, partition in targets.missing:
        found[table, group].add(partition)
    return found
