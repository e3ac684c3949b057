"""Compaction as metadata: which partitions become one, and what is written for that.

A *span* is adjacent partitions whose ingested columns together stay within a target size. Always true:
rows, their order and all values stay what they are. What is missing or stale in a part has to be built
anyway: it is not merged, and left missing where parts become one. What results is in ``relayout``.

The trade-off: parts are put together from the first on, so a large partition followed by a small one is
written again for its sake, as long as both fit the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from featurestore.arguments import format_names
from featurestore.fingerprint import fingerprint
from featurestore.plan.staleness import Standing
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, GroupEntry, PartitionEntry
from featurestore.transforms.base import UnknownTransformer

_COPIES: Final = 3
"""What writing columns holds of them at once: as read, as put together, as encoded."""


@dataclass(frozen=True, slots=True)
class Span:
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


def spans_within(base: Sequence[PartitionEntry], target: int) -> tuple[Span, ...]:
    """Return the spans of a table, single ones included; empty partitions are in none.

    Parameters
    ----------
    base : sequence of PartitionEntry
    target : int
        Decoded bytes that a span of several may have.

    Examples
    --------
    >>> from featurestore.testing.entries import partition_entry
    >>> base = [partition_entry(f"p{i}", rows) for i, rows in enumerate([1, 1, 0, 3, 1])]
    >>> [[one.partition for one in span.parts] for span in spans_within(base, 32)]
    [['p0', 'p1'], ['p3', 'p4']]
    """
    spans: list[Span] = []
    parts: list[PartitionEntry] = []
    size = 0
    for one in base:
        if not one.rows:
            continue
        if parts and size + one.decoded_bytes > target:
            spans.append(Span(tuple(parts)))
            parts, size = [], 0
        parts.append(one)
        size += one.decoded_bytes
    return (*spans, Span(tuple(parts))) if parts else tuple(spans)


@dataclass(frozen=True, slots=True)
class Piece:
    """One column group's values in a span.

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
    """What one task writes: one column group of a span, or several whose scalars share a file."""

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

    def __str__(self) -> str:
        names = [name for piece in self.pieces for name in piece.group.names]
        return f"merging {format_names(names)} of {len(self.pieces[0].parts)} partitions"

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
    spans : tuple of Span
        Those that become one, or whose features move into one file.
    dropped : tuple of str
        Empty partitions that vanish.
    merges : tuple of Merge
    """

    table: str
    spans: tuple[Span, ...]
    dropped: tuple[str, ...]
    merges: tuple[Merge, ...]

    @property
    def is_empty(self) -> bool:
        return not self.spans and not self.dropped


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
    spans, merges = [], []
    for span in spans_within(files.base, target):
        found = _merges_of(
            standing, files, span, [positions[one.partition] for one in span.parts], merge_groups
        )
        if found:
            spans.append(span)
            merges += found
    # A table keeps a partition, be it an empty one.
    dropped = empty if len(empty) < len(files.base) else empty[1:]
    return CompactionPlan(table, tuple(spans), tuple(dropped), tuple(merges))


def _merges_of(
    standing: Standing, files: TableFiles, span: Span, positions: Sequence[int], merge_groups: bool
) -> list[Merge]:
    if not span.merges and not merge_groups:
        return []
    pieces = []
    for feature in files.graph.features():
        if not standing.is_fresh(files.name, feature.group, positions):
            continue
        if span.merges and isinstance(feature.transformer, UnknownTransformer):
            raise feature.transformer.problem
        entries = files.entries[feature.group]
        pieces.append(
            Piece(
                files.groups[feature.group],
                tuple(entries[one.partition] for one in span.parts),
            )
        )
    shared = tuple(one for one in pieces if one.scalars) if merge_groups else ()
    shared = shared if len(shared) > 1 else ()
    if not span.merges:
        paths = {file.path for piece in shared for part in piece.parts for file in part.files}
        return [Merge(span.partition, shared)] if len(paths) > 1 else []
    base = Piece(files.groups[BASE_GROUP], span.parts)
    alone = [Merge(span.partition, (one,)) for one in (base, *pieces) if one not in shared]
    return [*alone, Merge(span.partition, shared)] if shared else alone
