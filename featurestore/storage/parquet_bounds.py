"""What a Parquet file claims, compared with what the store says of it, before values are decoded.

A footer gives row counts and the sizes that pages have once they are decompressed; a reader allocates
what it says. Here the rows must be those of the partition's entry, and the pages of a column no
larger than ``FACTOR`` times the bytes that the entry gives the column in memory, plus a margin per
row and row group. The encodings that are written never come near: 8-bit integers take four bytes in
a page, levels of lists and nulls at most a few bytes per value.

The entry itself must fit its rows: a column of fixed width takes at least its width in every row.
What is left to a hostile store are strings: a dictionary holds each once, and a page of a few bytes
may name a large one many times. ``memory_limit`` is then what bounds the process, not this module.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import CorruptionError
from featurestore.storage.records import PartitionEntry, StoredFile

FACTOR: Final = 8
ROW_MARGIN: Final = 64
GROUP_MARGIN: Final = 2**20
_LIST: Final = ".list.element"
_REMEDY: Final = "do not trust this store if you did not write it; else restore it from a backup"


def require_bounded(
    parquet: pq.ParquetFile, file: StoredFile, entry: PartitionEntry, names: Sequence[str]
) -> None:
    """Refuse to read columns of a file that claims other sizes than the entry.

    Raises
    ------
    CorruptionError
    """
    metadata = parquet.metadata
    if metadata.num_rows != entry.rows:
        raise CorruptionError(
            f"{file.path} claims {metadata.num_rows} rows, the store says {entry.rows}", _REMEDY
        )
    schema = parquet.schema_arrow
    for name in names:
        _require_width(schema, name, file, entry)
    sizes = dict.fromkeys(names, 0)
    positions = _positions(parquet, frozenset(names))
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        for position, name in positions:
            sizes[name] += max(0, group.column(position).total_uncompressed_size)
    for name, claimed in sizes.items():
        known = entry.column_bytes.get(name, 0)
        limit = FACTOR * known + ROW_MARGIN * entry.rows + GROUP_MARGIN * metadata.num_row_groups
        if claimed > limit:
            raise CorruptionError(
                f"{file.path} claims {claimed} bytes of pages for column {name!r}, more than {limit} "
                f"({entry.rows} rows of {known} bytes)",
                _REMEDY,
            )


def _positions(parquet: pq.ParquetFile, names: Set[str]) -> list[tuple[int, str]]:
    """Return where these columns are among the file's leaves."""
    leaves = parquet.schema
    found = []
    for position in range(len(leaves)):
        # Lists are a path below their column's name; a name may hold dots itself.
        name = leaves.column(position).path.removesuffix(_LIST)
        if name in names:
            found.append((position, name))
    return found


def _require_width(schema: pa.Schema, name: str, file: StoredFile, entry: PartitionEntry) -> None:
    position = schema.get_field_index(name)
    if position < 0:
        raise CorruptionError(f"{file.path} has no column {name!r}", _REMEDY)
    try:
        bits = schema.field(position).type.bit_width
    except ValueError:  # strings and lists have none
        return
    known = entry.column_bytes.get(name, 0)
    if known < entry.rows * bits // 8:
        raise CorruptionError(
            f"column {name!r} of {file.path} has {entry.rows} rows of {bits} bits, the store says "
            f"{known} bytes",
            _REMEDY,
        )
