"""Partition entries without files, for tests of what looks at metadata alone."""

from __future__ import annotations

from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry


def partition_entry(
    partition: str,
    rows: int = 1,
    times: tuple[int, int] | None = None,
    provenance: Provenance | None = None,
) -> PartitionEntry:
    """Return an entry that names no files; its provenance follows from its id unless given."""
    return PartitionEntry(
        partition=partition,
        rows=rows,
        files=(),
        tensors={},
        provenance=Provenance("ingest", partition) if provenance is None else provenance,
        decoded_bytes=8 * rows,
        column_bytes={},
        widest_row=8,
        nulls={},
        time_min=None if times is None else times[0],
        time_max=None if times is None else times[1],
    )
