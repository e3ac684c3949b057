"""Small JSON files that carry their own checksum: snapshots, tags, leases, journal entries.

A sealed file is canonical JSON of an object whose ``checksum`` member is the BLAKE2b-128 digest of
the canonical JSON of the rest. Always true: any changed, missing or added byte is found, because the
bytes must be exactly those that sealing the parsed content gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from featurestore.errors import CorruptionError
from featurestore.fingerprint import Json, canonical_json, digest
from featurestore.storage.object_store import ObjectStore

MAX_BYTES: Final = 256 * 2**20
SMALL_BYTES: Final = 2**20
_RESTORE: Final = "restore it from a backup"


def seal(content: Mapping[str, Json]) -> bytes:
    """Return the bytes of a sealed file.

    Examples
    --------
    >>> unseal(seal({"version": 3}), "tags/a.json")
    {'version': 3}
    """
    return canonical_json({**content, "checksum": digest(canonical_json(content))})


def unseal(data: bytes, path: str, remedy: str = _RESTORE) -> dict[str, Any]:
    """Return the content of a sealed file.

    Raises
    ------
    CorruptionError
        If the bytes are not what :func:`seal` wrote; ``path`` and ``remedy`` are in the message.
    """
    try:
        content = json.loads(data)
        if isinstance(content, dict):
            content.pop("checksum", None)
            if seal(content) == data:
                return content
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested beyond reason
        raise CorruptionError(
            f"{path} ({len(data)} bytes) is torn or damaged: {error}", remedy
        ) from error
    raise CorruptionError(
        f"{path} ({len(data)} bytes) does not match the checksum it carries", remedy
    )


def read_sealed(
    store: ObjectStore, path: str, remedy: str = _RESTORE, max_bytes: int = SMALL_BYTES
) -> dict[str, Any]:
    """Return the content of a sealed file of a store; more than ``max_bytes`` are not read.

    Raises
    ------
    NotFoundError
        If there is none.
    CorruptionError
        As :func:`unseal`, or if the file is larger.
    """
    return unseal(read_bounded(store, path, remedy, max_bytes), path, remedy)


def read_bounded(store: ObjectStore, path: str, remedy: str, max_bytes: int) -> bytes:
    """Return a file's bytes, refusing to load more than ``max_bytes``.

    Raises
    ------
    NotFoundError
        If there is none.
    CorruptionError
        If it is larger.
    """
    size = store.size(path)
    if size > max_bytes:
        raise CorruptionError(
            f"{path} has {size} bytes, more than the {max_bytes} that such a file may have", remedy
        )
    return store.read(path)
