"""Small JSON files that carry their own checksum: snapshots, tags, journal entries.

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

MAX_BYTES: Final = 256 * 2**20


def seal(content: Mapping[str, Json]) -> bytes:
    """Return the bytes of a sealed file.

    Examples
    --------
    >>> unseal(seal({"version": 3}), "tags/a.json")
    {'version': 3}
    """
    return canonical_json({**content, "checksum": digest(canonical_json(content))})


def unseal(data: bytes, path: str, remedy: str = "restore it from a backup") -> dict[str, Any]:
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
