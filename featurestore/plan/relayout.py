"""What a table becomes once it is compacted: its layout, its features' entries, what is fresh there.

Always true: what was fresh before is fresh after. Its provenance names the partitions it was computed
in, and is stamped anew; with that of everything that reads it, in other tables too. Values that were
built on the old partitions meanwhile, and not merged, are a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from featurestore.errors import ConflictError
from featurestore.plan.ahead import seen_by
from featurestore.plan.compaction import CompactionPlan, Merged
from featurestore.plan.layout import with_replaced
from featurestore.plan.staleness import Assessor, Standing
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.transforms.base import UnknownTransformer


@dataclass(frozen=True, slots=True)
class Relayout:
    """A table before and after it is compacted, and all tables that read it.

    Parameters
    ----------
    before : Standing
    tables : mapping of str to TableFiles
        As they are afterwards, their provenances stamped.
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
    for span in plan.spans:
        origins[span.partition] = tuple(positions[one.partition] for one in span.parts)
    origins = {one.partition: origins[one.partition] for one in base}
    entries: dict[str, Mapping[str, PartitionEntry]] = {
        BASE_GROUP: {one.partition: one for one in base}
    }
    missing: list[str] = []
    for group, entry in files.groups.items():
        if group != BASE_GROUP:
            entries[group] = _feature_after(before, files, group, origins, plan, merged)
            if any(span.merges and span.partition not in entries[group] for span in plan.spans):
                missing += entry.names
    tables = {**before.tables, plan.table: files.with_entries(entries)}
    return _stamped(before, tables, plan.table, origins, tuple(missing))


def _base_after(
    files: TableFiles, positions: Mapping[str, int], plan: CompactionPlan, merged: Merged
) -> tuple[PartitionEntry, ...]:
    stored = files.base
    replaced: dict[str, tuple[PartitionEntry, ...]] = dict.fromkeys(plan.dropped, ())
    for span in plan.spans:
        ids = [one.partition for one in span.parts]
        gone = [one for one in ids if one not in positions]
        if gone:
            raise _rewritten(plan.table, gone[0])
        if not span.merges:
            continue
        first, last = positions[ids[0]], positions[ids[-1]]
        between = [one.partition for one in stored[first : last + 1] if one.rows]
        piece, entry = merged[BASE_GROUP, span.partition]
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
    for span in plan.spans:
        if not before.is_fresh(files.name, group, origins[span.partition]):
            continue
        parts = [stored[one.partition] for one in span.parts]
        piece, entry = merged.get((group, span.partition), (None, None))
        if piece is not None and entry is not None and piece.is_of(parts):
            found[span.partition] = entry
        elif span.merges:
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
                    if not one.is_fresh:
                        raise feature.transformer.problem
                    continue
                until = _until(before, name, feature.group, origin)
                provenance = one.provenance
                if until is not None:
                    seen = seen_by(one.need, files.base, until)
                    provenance = replace(provenance, until=until, seen=seen)
                found[base.partition] = replace(found[base.partition], provenance=provenance)
            entries[feature.group] = found
        stamped[name] = files.with_entries(entries)
        changed += [
            (name, group)
            for group, found in entries.items()
            if dict(found) != dict(before.tables[name].entries[group])
        ]
    return Relayout(before, stamped, wanted, tuple(changed), origins, missing)


def _until(before: Standing, table: str, group: str, origin: tuple[int, ...]) -> int | None:
    """Return until when values looked at later rows in all parts of a partition; None if not known."""
    files = before.tables[table]
    provenance = files.provenance(group)
    found = [provenance[files.base[position].partition].until for position in origin]
    known = [one for one in found if one is not None]
    return max(known) if len(known) == len(found) else None
