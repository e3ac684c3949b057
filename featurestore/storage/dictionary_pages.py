"""Which text columns of a Parquet file are kept as dictionaries of few values, so that they can be read so.

Always true: what is read so takes less memory than the texts would: a dictionary of a row group, and four
bytes per row. Sizes in the footer tell: pages that name values of a dictionary take far less than texts do,
each of which has four bytes for its length alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pyarrow.parquet as pq

_BYTES_PER_ROW: Final = 3
_MARGIN: Final = 64 * 1024


def kept_as_dictionaries(metadata: pq.FileMetaData, names: Collection[str]) -> list[str]:
    """Return those of some columns that are texts of few different values."""
    wanted = set(names)
    if not wanted or not metadata.num_row_groups:
        return []
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    found = []
    for position in range(metadata.num_columns):
        columns = [one.column(position) for one in groups]
        name = columns[0].path_in_schema
        if name not in wanted or columns[0].physical_type != "BYTE_ARRAY":
            continue
        pages = sum(one.total_uncompressed_size for one in columns)
        most = _BYTES_PER_ROW * metadata.num_rows + _MARGIN
        if all(one.has_dictionary_page for one in columns) and pages <= most:
            found.append(name)
    return found
