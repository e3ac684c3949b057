"""Compaction as metadata: which partitions become one, what is written for that, and what results.

A *run* is adjacent partitions whose ingested columns together stay within a target size. Always true:
rows, their order and all values stay what they are, so what was fresh before is fresh after. Its
provenance names the partitions it was computed in, and is stamped anew; with that of everything that
reads it, in other tables too. What is missing or stale in a part has to be built anyway: it is left
missing where parts become one.

The trade-off: parts are put together from the first on, so a large partition followed by a small one is
written again for its sake, as long as both fit the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from featurestore.errors import ConflictError, MemoryLimitError
from featurestore.fingerprint import fingerprint
from featurestore.limits import resident_bytes
from featurestore.plan.layout import with_replaced
from featurestore.plan.staleness import Assessor, Freshness
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, GroupEntry, PartitionEntry
from featurestore.transforms.base import UnknownTransformer
from featurestore.units import format_bytes

_COPIES: Final = 3
"""What writing columns holds of them at once: as read, as put together, as encoded."""


@dataclass(frozen=True, slots=True)
class Run:
    """Adjacent partitions that become one; a single one stays what it is.

    Parameters
    ----------
    parts : tuple of PartitionEntry
        Of the base group; none is empty.
    """

    parts: tuple[PartitionEntry, ...]

    @property
    def merges(self) -> bool:
        return len(self.parts) > 1

    @property
    def partition(self) -> str:
        """The id of the result: the same for the same parts, so that work can be taken up again."""
        if not self.merges:
            return self.parts[0].partition
        sequence = self.parts[0].partition.partition("-")[0]
        return f"{sequence}-{fingerprint([one.partition for one in self.parts])[:8]}"


def runs_within(base: Sequence[PartitionEntry], target: int) -> tuple[Run, ...]:
    """Return the runs of a table, single ones included; empty partitions are in none.

    Parameters
    ----------
    base : sequence of PartitionEntry
    target : int
        Decoded bytes that a run of several may have.

    Examples
    --------
    >>> from featurestore.testing.entries import partition_entry
    >>> base = [partition_entry(f"p{i}", rows) for i, rows in enumerate([1, 1, 0, 3, 1])]
    >>> [[one.partition for one in run.parts] for run in runs_within(base, 32)]
    [['p0', 'p1'], ['p3', 'p4']]
    """
    runs: list[Run] = []
    parts: list[PartitionEntry] = []
    size = 0
    for one in base:
        if not one.rows:
            continue
        if parts and size + one.decoded_bytes > target:
            runs.append(Run(tuple(parts)))
            parts, size = [], 0
        parts.append(one)
        size += one.decoded_bytes
    return (*runs, Run(tuple(parts))) if parts else tuple(runs)


@dataclass(frozen=True, slots=True)
class Standing:
    """All tables of a snapshot, and how their features stand there.

    Parameters
    ----------
    tables : mapping of str to TableFiles
    assessor : Assessor
        Of the stored definitions, whatever their code is in this process.
    """

    tables: Mapping[str, TableFiles]
    assessor: Assessor

    @classmethod
    def of(cls, tables: Mapping[str, TableFiles]) -> Standing:
        return cls(tables, Assessor(tables, check_code=False))

    def is_fresh(self, table: str, group: str, positions: Sequence[int]) -> bool:
        """Whether a feature's values are fresh in all of some partitions."""
        found = self.assessor.group(table, group)
        return all(found[one].freshness is Freshness.FRESH for one in positions)

    def readers(self, table: str) -> tuple[str, ...]:
        """Return a table and all whose features read it, directly or not."""
        found = [table]
        for name in found:  # grows on the way
            found += [
                other
                for other, files in self.tables.items()
                if other not in found and name in _sources(files)
            ]
        return tuple(found)


def _sources(files: TableFiles) -> set[str]:
    """Return the tables that a table's features read."""
    return {one.source_table for one in files.graph.features() if one.source_table is not None}


# --- what is to be written ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """One column group's values in a run.

    Parameters
    ----------
    group : GroupEntry
    parts : tuple of PartitionEntry
        Of this group.
    """

    group: GroupEntry
    parts: tuple[PartitionEntry, ...]

    @property
    def scalars(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.group.fields if not one.is_tensor)

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(one.name for one in self.group.fields if one.is_tensor)

    def is_of(self, parts: Sequence[PartitionEntry | None]) -> bool:
        """Whether it was made of the very files of these entries."""
        return [one.all_files() for one in self.parts] == [
            () if one is None else one.all_files() for one in parts
        ]


@dataclass(frozen=True, slots=True)
class Merge:
    """What one task writes: one column group of a run, or several whose scalars share a file."""

    partition: str
    pieces: tuple[Piece, ...]

    @property
    def peak_bytes(self) -> int:
        """What it holds at once: all columns that share a file, and their copies."""
        return _COPIES * sum(
            size
            for piece in self.pieces
            for part in piece.parts
            for name, size in part.column_bytes.items()
            if len(piece.parts) > 1 or name in piece.scalars
        )

    def key(self, piece: Piece) -> str:
        """Return the key under which a finished piece is journaled."""
        shared = [one.group.group for one in self.pieces]
        paths = [[file.path for file in part.all_files()] for part in piece.parts]
        return fingerprint("compact", self.partition, piece.group.group, shared, paths)


Merged: TypeAlias = Mapping[tuple[str, str], tuple[Piece, PartitionEntry]]
"""What was written, by group and partition: of what, and the entry. Its provenance is to be stamped."""


@dataclass(frozen=True, slots=True)
class CompactionPlan:
    """What a compaction does to a table.

    Parameters
    ----------
    table : str
    runs : tuple of Run
        Those that become one, or whose features move into one file.
    dropped : tuple of str
        Empty partitions that vanish.
    merges : tuple of Merge
    """

    table: str
    runs: tuple[Run, ...]
    dropped: tuple[str, ...]
    merges: tuple[Merge, ...]

    @property
    def is_empty(self) -> bool:
        return not self.runs and not self.dropped


def plan_compaction(
    standing: Standing, table: str, target: int, merge_groups: bool
) -> CompactionPlan:
    """Return what compacting a table would do; reads metadata only.

    Raises
    ------
    FormatError
        If a feature is of a kind this process does not know: whether its values stay fresh could
        not be told.
    """
    files = standing.tables[table]
    positions = {one.partition: position for position, one in enumerate(files.base)}
    empty = [one.partition for one in files.base if not one.rows]
    runs, merges = [], []
    for run in runs_within(files.base, target):
        found = _merges_of(
            standing, files, run, [positions[one.partition] for one in run.parts], merge_groups
        )
        if found:
            runs.append(run)
            merges += found
    # A table keeps a partition, be it an empty one.
    dropped = empty if len(empty) < len(files.base) else empty[1:]
    return CompactionPlan(table, tuple(runs), tuple(dropped), tuple(merges))


def _merges_of(
    standing: Standing, files: TableFiles, run: Run, positions: Sequence[int], merge_groups: bool
) -> list[Merge]:
    if not run.merges and not merge_groups:
        return []
    pieces = []
    for feature in files.graph.features():
        if not standing.is_fresh(files.name, feature.group, positions):
            continue
        if run.merges and isinstance(feature.transformer, UnknownTransformer):
            raise feature.transformer.problem
        entries = files.entries[feature.group]
        pieces.append(
            Piece(
                files.groups[feature.group],
                tuple(entries[one.partition] for one in run.parts),
            )
        )
    shared = tuple(one for one in pieces if one.scalars) if merge_groups else ()
    shared = shared if len(shared) > 1 else ()
    if not run.merges:
        paths = {file.path for piece in shared for part in piece.parts for file in part.files}
        return [Merge(run.partition, shared)] if len(paths) > 1 else []
    base = Piece(files.groups[BASE_GROUP], run.parts)
    alone = [Merge(run.partition, (one,)) for one in (base, *pieces) if one not in shared]
    return [*alone, Merge(run.partition, shared)] if shared else alone


def merges_at_once(merges: Sequence[Merge], memory_limit: int, workers: int) -> int:
    """Return how many merges may run at once within the memory limit.

    Raises
    ------
    MemoryLimitError
        If not even one fits.
    """
    if not merges:
        return workers
    reserved = resident_bytes()
    worst = max(merges, key=lambda one: one.peak_bytes)
    fitting = (memory_limit - reserved) // max(worst.peak_bytes, 1)
    if fitting < 1:
        names = [name for piece in worst.pieces for name in piece.group.names]
        raise MemoryLimitError(
            f"merging {', '.join(names)} of {len(worst.pieces[0].parts)} partitions needs "
            f"{format_bytes(worst.peak_bytes)} beside {format_bytes(reserved)} already in use, the "
            f"memory limit is {format_bytes(memory_limit)}",
            f"raise memory_limit to at least {reserved + worst.peak_bytes} bytes, or pass a smaller "
            "partition_bytes",
        )
    return int(min(workers, fitting))


# --- what results ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relayout:
    """A table before and after it is compacted, and all tables that read it.

    Parameters
    ----------
    before : Standing
    tables : mapping of str to TableFiles
        As they are afterwards, provenances stamped.
    wanted : Assessor
        What values are computed from afterwards.
    changed : tuple of (str, str)
        Table and group of every column group that is not what it was.
    origins : mapping of str to tuple of int
        For each partition of the compacted table, by id, the positions it had before.
    missing : tuple of str
        Columns that are left missing in a merged partition.
    """

    before: Standing
    tables: Mapping[str, TableFiles]
    wanted: Assessor
    changed: tuple[tuple[str, str], ...]
    origins: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]

    @classmethod
    def unchanged(cls, before: Standing, table: str) -> Relayout:
        """Return that nothing changes."""
        base = before.tables[table].base
        origins = {one.partition: (position,) for position, one in enumerate(base)}
        return cls(before, before.tables, before.assessor, (), origins, ())

    def entries(self, table: str, group: str) -> tuple[PartitionEntry, ...]:
        """Return a column group's entries afterwards, in table order."""
        return tuple(self.tables[table].entries[group].values())


def relaid(before: Standing, plan: CompactionPlan, merged: Merged) -> Relayout:
    """Return what a snapshot's tables become with what was written for a plan.

    Raises
    ------
    ConflictError
        If partitions of the plan are gone or no longer adjacent there, or values were built on them
        that were not merged: the plan has to be made anew.
    """
    files = before.tables[plan.table]
    positions = {one.partition: position for position, one in enumerate(files.base)}
    base = _base_after(files, positions, plan, merged)
    origins: dict[str, tuple[int, ...]] = {one: (position,) for one, position in positions.items()}
    for run in plan.runs:
        origins[run.partition] = tuple(positions[one.partition] for one in run.parts)
    origins = {one.partition: origins[one.partition] for one in base}
    entries: dict[str, Mapping[str, PartitionEntry]] = {
        BASE_GROUP: {one.partition: one for one in base}
    }
    missing: list[str] = []
    for group, entry in files.groups.items():
        if group != BASE_GROUP:
            entries[group] = _feature_after(before, files, group, origins, plan, merged)
            if any(run.merges and run.partition not in entries[group] for run in plan.runs):
                missing += entry.names
    tables = {**before.tables, plan.table: replace(files, entries=entries)}
    return _stamped(before, tables, plan.table, origins, tuple(missing))


def _base_after(
    files: TableFiles, positions: Mapping[str, int], plan: CompactionPlan, merged: Merged
) -> tuple[PartitionEntry, ...]:
    stored = files.base
    replaced: dict[str, tuple[PartitionEntry, ...]] = dict.fromkeys(plan.dropped, ())
    for run in plan.runs:
        ids = [one.partition for one in run.parts]
        gone = [one for one in ids if one not in positions]
        if gone:
            raise _rewritten(plan.table, gone[0])
        if not run.merges:
            continue
        first, last = positions[ids[0]], positions[ids[-1]]
        between = [one.partition for one in stored[first : last + 1] if one.rows]
        piece, entry = merged[BASE_GROUP, run.partition]
        if between != ids or not piece.is_of([stored[positions[one]] for one in ids]):
            raise _rewritten(plan.table, ids[0])
        replaced |= dict.fromkeys(ids, ())
        replaced[ids[0]] = (entry,)
    return with_replaced(plan.table, stored, replaced)


def _rewritten(table: str, partition: str) -> ConflictError:
    return ConflictError(
        f"partition {partition} of {table!r} was rewritten or deleted while it was compacted",
        "compact again: it then sees the rows as they are now",
    )


def _feature_after(
    before: Standing,
    files: TableFiles,
    group: str,
    origins: Mapping[str, tuple[int, ...]],
    plan: CompactionPlan,
    merged: Merged,
) -> dict[str, PartitionEntry]:
    """Return a feature's entries in the new layout; provenances are those before."""
    stored = files.entries[group]
    found = dict(stored)
    for run in plan.runs:
        if not before.is_fresh(files.name, group, origins[run.partition]):
            continue
        parts = [stored[one.partition] for one in run.parts]
        piece, entry = merged.get((group, run.partition), (None, None))
        if piece is not None and entry is not None and piece.is_of(parts):
            found[run.partition] = entry
        elif run.merges:
            raise ConflictError(
                f"{list(files.groups[group].names)} of {files.name!r} was built on partitions while "
                "they were compacted",
                "compact again: it then takes the new values along",
            )
    return {one: found[one] for one in origins if one in found}


def _stamped(
    before: Standing,
    tables: Mapping[str, TableFiles],
    table: str,
    origins: Mapping[str, tuple[int, ...]],
    missing: tuple[str, ...],
) -> Relayout:
    """Give everything that was fresh the provenance it has in the new layout."""
    wanted = Assessor(tables, check_code=False)
    stamped, changed = dict(tables), []
    for name in before.readers(table):
        files = tables[name]
        entries = {BASE_GROUP: files.entries[BASE_GROUP]}
        for feature in files.graph.features():
            found = dict(files.entries[feature.group])
            assessed = wanted.group(name, feature.group)
            for position, base in enumerate(files.base):
                origin = origins[base.partition] if name == table else (position,)
                if base.partition not in found or not before.is_fresh(name, feature.group, origin):
                    continue
                one = assessed[position]
                if isinstance(feature.transformer, UnknownTransformer):
                    if one.freshness is not Freshness.FRESH:
                        raise feature.transformer.problem
                    continue
                found[base.partition] = replace(found[base.partition], provenance=one.provenance)
            entries[feature.group] = found
        stamped[name] = replace(files, entries=entries)
        changed += [
            (name, group)
            for group, found in entries.items()
            if dict(found) != dict(before.tables[name].entries[group])
        ]
    return Relayout(before, stamped, wanted, tuple(changed), origins, missing)
