"""The footer of a Parquet file: its metadata, their length in 4 bytes, and the magic ``PAR1``.

Checksums of pages do not cover it, and a flipped bit in it can turn the type of a column into
another one. So its checksum is recorded, and compared before the metadata are parsed.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import CorruptionError
from featurestore.fingerprint import digest
from featurestore.storage.records import StoredFile

_MAGIC: Final = b"PAR1"
_END: Final = 8
_REMEDY: Final = "restore the file from a backup, or compute it again"


def footer_length(tail: bytes) -> int:
    """Return how many bytes the footer has, given at least the last 8 bytes of the file.

    Examples
    --------
    >>> footer_length(b"PAR1" + (3).to_bytes(4, "little") + b"PAR1")
    11
    """
    return int.from_bytes(tail[-_END:-4], "little") + _END


def parquet_footer(tail: bytes) -> bytes:
    """Return the footer at the end of some last bytes of a file.

    Raises
    ------
    CorruptionError
        If they do not end in a footer.
    """
    length = footer_length(tail)
    if not tail.endswith(_MAGIC) or len(tail) < length:
        raise CorruptionError(f"{len(tail)} last bytes do not end in a Parquet footer", _REMEDY)
    return tail[-length:]


def read_footer(file: StoredFile, tail: bytes) -> pq.FileMetaData:
    """Return the metadata of a Parquet file after comparing the footer with its record.

    Raises
    ------
    CorruptionError
        If the footer is not the one that was written.
    """
    try:
        footer = parquet_footer(tail)
    except CorruptionError as error:
        raise CorruptionError(f"{file.path}: {error.problem}", _REMEDY) from error
    if digest(footer) != file.footer:
        raise CorruptionError(f"the footer of {file.path} does not match its checksum", _REMEDY)
    # Metadata are read from the end of a file; what comes before them is not looked at.
    return pq.read_metadata(pa.BufferReader(_MAGIC + footer))
