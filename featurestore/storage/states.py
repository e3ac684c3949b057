"""Stored states: what transformers learnt, one file per key, as concatenated Arrow IPC streams.

A file holds one Arrow stream per named table, in order of the names, each table's name in its schema
metadata under ``featurestore.state``; then the magic ``FSSTATE1`` and the BLAKE2b-128 digest of
everything before it. Any Arrow stream reader opens the first table.

States are a cache of something that can be computed again. So a damaged file is no error: ``get``
logs a warning, deletes it and says that there is none, and the caller computes the state anew. A
key is a fingerprint of everything the state depends on, so equal keys mean equal states, and
putting one twice changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Final, cast

import pyarrow as pa

from featurestore.errors import ConflictError, CorruptionError, InvalidInputError, NotFoundError
from featurestore.storage.object_store import ObjectStore

STATES: Final = "states"
MAGIC: Final = b"FSSTATE1"
_NAME: Final = b"featurestore.state"
_DIGEST_BYTES: Final = 16
_TAIL: Final = len(MAGIC) + _DIGEST_BYTES
_KEY: Final = re.compile(r"[0-9a-f]{8,128}")
_REMEDY: Final = "delete the file; the state is computed again"

_log: Final = logging.getLogger(__name__)


def encode_state(state: Mapping[str, pa.Table]) -> bytes:
    """Return a state as bytes; equal tables in any order of names and chunks give equal bytes.

    Examples
    --------
    >>> state = {"mean": pa.table({"x": [1.5]})}
    >>> decode_state(encode_state(state))["mean"].to_pydict()
    {'x': [1.5]}
    """
    sink = pa.BufferOutputStream()
    for name in sorted(state):
        table = state[name].combine_chunks()
        metadata = {**(table.schema.metadata or {}), _NAME: name.encode()}
        table = table.replace_schema_metadata(metadata)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    sink.write(MAGIC)
    body = cast(bytes, sink.getvalue().to_pybytes())
    return body + hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()


def decode_state(data: bytes) -> dict[str, pa.Table]:
    """Return the state that :func:`encode_state` wrote, in order of the names.

    Raises
    ------
    CorruptionError
        If the bytes are torn or changed.
    """
    body, found = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if (
        len(data) < _TAIL
        or not body.endswith(MAGIC)
        or hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != found
    ):
        raise CorruptionError(f"a state of {len(data)} bytes is torn or damaged", _REMEDY)
    state: dict[str, pa.Table] = {}
    reader = pa.BufferReader(pa.py_buffer(data).slice(0, len(body) - len(MAGIC)))
    try:
        while reader.tell() < reader.size():
            with pa.ipc.open_stream(reader) as stream:
                table = stream.read_all()
            metadata = dict(table.schema.metadata or {})
            name = metadata.pop(_NAME).decode()
            state[name] = table.replace_schema_metadata(metadata or None)
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise CorruptionError(f"a state cannot be read: {error}", _REMEDY) from error
    return state


class StateStore:
    """The states of one store.

    Examples
    --------
    >>> from featurestore.storage.backends import open_object_store
    >>> states = StateStore(open_object_store("memory://states-example"))
    >>> states.put("0badcafe", {"count": pa.table({"n": [3]})})
    >>> states.has("0badcafe"), states.get("feedbeef")
    (True, None)
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def has(self, key: str) -> bool:
        """Whether there is a state of that key; it may still turn out to be damaged."""
        return self._store.exists(_path(key))

    def get(self, key: str) -> Mapping[str, pa.Table] | None:
        """Return a state, or None if there is none or it is damaged."""
        path = _path(key)
        try:
            return decode_state(self._store.read(path))
        except NotFoundError:
            return None
        except CorruptionError as error:
            _log.warning("%s: %s; it will be computed again", path, error.problem)
            self._store.delete([path])
            return None

    def put(self, key: str, state: Mapping[str, pa.Table]) -> None:
        """Keep a state; it is durable when this returns. One that exists is left as it is."""
        path = _path(key)
        if self._store.exists(path):
            return
        try:
            self._store.create(path, encode_state(state))
        except ConflictError:  # somebody else computed the same
            return


def _path(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidInputError(f"{key!r} is no key of a state", "use a hexadecimal fingerprint")
    return f"{STATES}/{key}.arrow"
