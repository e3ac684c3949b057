"""Fingerprints: short digests of what a value was computed from.

A fingerprint is BLAKE2b-128 over canonical JSON (sorted keys, no spaces, no floats that JSON cannot
hold), in hexadecimal. Equal fingerprints mean equal definitions and inputs; they are compared, never
decoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

# Made once: a status of a wide table asks for millions of fingerprints.
_ENCODER: Final = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def canonical_json(value: Json) -> bytes:
    """Return the one way in which ``value`` is written as JSON.

    Examples
    --------
    >>> canonical_json({"b": 1, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    return _ENCODER.encode(value).encode()


def fingerprint(*parts: Json) -> str:
    """Return the fingerprint of some JSON values, in order.

    Examples
    --------
    >>> fingerprint("a", 1) == fingerprint("a", 1)
    True
    >>> fingerprint("a", 1) == fingerprint("a1")
    False
    """
    return digest(canonical_json(list(parts)))


def digest(data: bytes | bytearray | memoryview) -> str:
    """Return the checksum of some bytes: BLAKE2b, 16 bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
