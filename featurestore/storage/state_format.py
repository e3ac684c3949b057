"""What the file of a state ends with, and how large it may be."""

from __future__ import annotations

import hashlib
from typing import Final

MAGIC: Final = b"FSSTATE1"
KEY_MAGIC: Final = b"FSSTKEY1"
MAX_BYTES: Final = 4 * 2**30
DIGEST_BYTES: Final = 16
TAIL: Final = len(MAGIC) + DIGEST_BYTES
"""Bytes at the end of the tables: that they are all there, and their digest."""
KEY_TAIL: Final = DIGEST_BYTES + len(KEY_MAGIC)
"""Bytes behind that: the seal that ties it to its key."""
NAME: Final = b"featurestore.state"
"""Where a table's schema has its name."""
REMEDY: Final = "delete the file; the state is computed again"
TOO_LARGE: Final = "learn from fewer columns, or from columns with fewer distinct values"


def key_seal(digest: bytes, key: str) -> bytes:
    """Return what ties the digest of a state to its key."""
    return hashlib.blake2b(digest + key.encode(), digest_size=DIGEST_BYTES).digest()
