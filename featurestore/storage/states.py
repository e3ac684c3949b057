"""Stored states: what transformers learnt, one file per key, as concatenated Arrow IPC streams.

A file holds one Arrow stream per named table, in order of the names, each table's name in its schema
metadata under ``featurestore.state``; then the magic ``FSSTATE1`` and the BLAKE2b-128 digest of
everything before it; then a seal that ties these to the key, so that two files that were exchanged
are found out. Any Arrow stream reader opens the first table.

States are a cache of something that can be computed again. So they are not synced: a build keeps
thousands of them, and what a power failure takes is computed anew. And a damaged file is no error:
``get`` logs a warning, deletes it and says that there is none. A key is a fingerprint of everything
the state depends on, so equal keys mean equal states, and putting one twice changes nothing.

Opening a store must not cost more memory than its files have: tables are not compressed, so that
what is decoded is as large as what was read, and a file has at most ``MAX_BYTES``. gc removes states
by their age; ``get`` writes one again that is older than a day, so that those in use stay.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
)
from featurestore.storage.arrow_bounds import is_compressed, messages
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.state_format import (
    DIGEST_BYTES,
    KEY_MAGIC,
    KEY_TAIL,
    MAGIC,
    MAX_BYTES,
    NAME,
    REMEDY,
    TAIL,
    key_seal,
)
from featurestore.storage.state_parts import PART_BYTES, PartWriter, parts_of

STATES: Final = "states"
REFRESH_SECONDS: Final = 86_400.0
_KEY: Final = re.compile(r"[0-9a-f]{8,128}")
_ASKED_ONE_BY_ONE: Final = 20
"""So many sizes are asked for one by one; a store behind a network lists a thousand at once."""

_log: Final = logging.getLogger(__name__)


class StateLostError(CorruptionError):
    """A state that was computed before is gone or damaged; whoever can computes it again."""


def encode_state(state: Mapping[str, pa.Table]) -> bytes:
    """Return a state as bytes; equal tables in any order of names and chunks give equal bytes.

    Examples
    --------
    >>> state = {"mean": pa.table({"x": [1.5]})}
    >>> decode_state(encode_state(state))["mean"].to_pydict()
    {'x': [1.5]}
    """
    return b"".join(_encoded(state))


def _encoded(state: Mapping[str, pa.Table]) -> tuple[memoryview, bytes]:
    """Return the tables with the magic, and the digest: joined they are an encoded state.

    Apart, so that a large state is copied once only.
    """
    tables = []
    for name in sorted(state):
        table = state[name].combine_chunks()
        metadata = {**(table.schema.metadata or {}), NAME: name.encode()}
        tables.append(table.replace_schema_metadata(metadata))
    # Counted first: a stream that grows would hold it twice and more.
    counted = pa.MockOutputStream()
    _write_to(counted, tables)
    body = pa.allocate_buffer(counted.size())
    _write_to(pa.FixedSizeBufferWriter(body), tables)
    view = memoryview(body)
    return view, hashlib.blake2b(view, digest_size=DIGEST_BYTES).digest()


def _write_to(sink: pa.NativeFile, tables: Sequence[pa.Table]) -> None:
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    sink.write(MAGIC)


def decode_state(data: bytes | memoryview) -> dict[str, pa.Table]:
    """Return the state that :func:`encode_state` wrote, in order of the names.

    Raises
    ------
    CorruptionError
        If the bytes are torn or changed, too many, or hold compressed tables.
    """
    _require_size(len(data))
    data = memoryview(data)  # slices of it are no copies
    body, found = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if (
        len(data) < TAIL
        or bytes(body[-len(MAGIC) :]) != MAGIC
        or hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() != found
    ):
        raise CorruptionError(f"a state of {len(data)} bytes is torn or damaged", REMEDY)
    state: dict[str, pa.Table] = {}
    reader = pa.BufferReader(pa.py_buffer(data).slice(0, len(body) - len(MAGIC)))
    try:
        _refuse_compressed(reader)
        reader.seek(0)
        while reader.tell() < reader.size():
            with pa.ipc.open_stream(reader) as stream:
                table = stream.read_all()
            table.validate(full=True)  # a hostile offset leads nowhere
            metadata = dict(table.schema.metadata or {})
            name = metadata.pop(NAME).decode()
            state[name] = table.replace_schema_metadata(metadata or None)
    except (pa.ArrowException, KeyError, UnicodeDecodeError, struct.error) as error:
        raise CorruptionError(f"a state cannot be read: {error}", REMEDY) from error
    return state


def _with_key(state: Mapping[str, pa.Table], key: str) -> bytes:
    """Return a state encoded, with the seal that ties it to its key."""
    body, digest = _encoded(state)
    return b"".join((body, digest, key_seal(digest, key), KEY_MAGIC))


def read_state(data: bytes, key: str) -> dict[str, pa.Table]:
    """Return the state that the file of a key holds.

    Raises
    ------
    CorruptionError
        As :func:`decode_state`, or if it is the state of another key.
    """
    if not data.endswith(KEY_MAGIC):  # of an earlier version of this package
        return decode_state(data)
    state, seal = memoryview(data)[:-KEY_TAIL], data[-KEY_TAIL : -len(KEY_MAGIC)]
    if seal != key_seal(bytes(state[-DIGEST_BYTES:]), key):
        raise CorruptionError(f"the file of state {key} holds another state", REMEDY)
    return decode_state(state)


def _require_size(size: int) -> None:
    if size > MAX_BYTES:
        raise CorruptionError(
            f"a state has {size} bytes, more than the {MAX_BYTES} that one may have", REMEDY
        )


def _refuse_compressed(reader: pa.NativeFile) -> None:
    """Raise ``CorruptionError`` if a record batch is compressed; only metadata is looked at."""
    while reader.tell() < reader.size():
        for kind, metadata, _ in messages(reader):  # of one stream
            if kind in ("record batch", "dictionary") and is_compressed(
                metadata, dictionary=kind == "dictionary"
            ):
                raise CorruptionError("a state holds compressed tables", REMEDY)


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

    def is_sound(self, key: str) -> bool:
        """Whether there is a state of that key, and it can be read; a damaged one is deleted."""
        return self.get(key) is not None

    def sizes(self, keys: Collection[str]) -> dict[str, int]:
        """Return the bytes that kept states take, in their files and as tables; by key.

        Keys of which nothing is kept are left out.
        """
        if self._store.local_path(STATES) is None and len(keys) > _ASKED_ONE_BY_ONE:
            names = {_path(key): key for key in keys}
            listed = self._store.list(STATES)
            return {names[one.path]: one.bytes for one in listed if one.path in names}
        found = {}
        for key in keys:
            try:
                found[key] = self._store.size(_path(key))
            except NotFoundError:
                continue
        return found

    def digest(self, key: str) -> bytes | None:
        """Return the digest that a state was written with, without reading it; None if there is none.

        Equal digests mean that equal bytes were written. The bytes may be damaged by now.
        """
        path = _path(key)
        try:
            size = self._store.size(path)
            length = min(size, TAIL + KEY_TAIL)
            tail = self._store.read(path, size - length, length)
        except (NotFoundError, CorruptionError):
            return None
        if tail.endswith(KEY_MAGIC):
            tail = tail[:-KEY_TAIL]
        tail = tail[-TAIL:]
        return tail[len(MAGIC) :] if len(tail) == TAIL and tail.startswith(MAGIC) else None

    def require(self, key: str) -> Mapping[str, pa.Table]:
        """Return a state that was computed before.

        Raises
        ------
        StateLostError
            If it has gone since: a damaged state file is deleted when read.
        """
        state = self.get(key)
        if state is None:
            raise self._lost(key)
        return state

    def get(self, key: str) -> Mapping[str, pa.Table] | None:
        """Return a state, or None if there is none or it is damaged.

        On a local disk, one that is older than a day is written again: gc goes by the age.
        """
        path = _path(key)
        try:
            _require_size(self._store.size(path))
            data = self._store.read(path)
            state = read_state(data, key)
        except NotFoundError:
            return None
        except CorruptionError as error:
            _log.warning("%s: %s; it will be computed again", path, error.problem)
            self._store.delete([path])
            return None
        self._refresh(path, data)
        return state

    def put(self, key: str, state: Mapping[str, pa.Table]) -> None:
        """Keep a state, whole but not synced. One that exists is left as it is.

        Raises
        ------
        LimitError
            If it has more than 4 GiB.
        """
        path = _path(key)
        if self._store.exists(path):
            return
        try:
            if sum(table.nbytes for table in state.values()) <= PART_BYTES:
                self._store.write(path, _with_key(state, key))
                return
            # Encoded whole, a large one would be there twice more.
            with self._store.open_write(path, named=False) as target:
                writer = PartWriter(target, key)
                for name in sorted(state):
                    writer.add_table(name, state[name])
                writer.end()
        except ConflictError:  # somebody else computed the same
            return

    def forget(self, keys: Collection[str]) -> None:
        """Delete states that nobody will ask for again."""
        self._store.delete([_path(key) for key in keys])

    def put_parts(self, key: str, name: str, parts: Iterable[pa.Table]) -> None:
        """Keep a state of one table that comes in parts, as ``put`` does; all of them are taken.

        Raises
        ------
        LimitError
            If it has more than 4 GiB.
        """
        path = _path(key)
        if self._store.exists(path):
            deque(parts, maxlen=0)
            return
        try:
            with self._store.open_write(path, named=False) as target:
                writer = PartWriter(target, key)
                for part in parts:
                    writer.add(name, part)
                writer.end()
        except ConflictError:  # somebody else computed the same
            return

    def parts(self, key: str) -> Iterator[tuple[str, pa.Table]]:
        """Yield a state that was computed before part by part, with the names of the tables.

        Nothing may be done with them before the last was taken: it may turn out then that they are wrong.

        Raises
        ------
        StateLostError
            If it has gone since, or is damaged, and then deleted.
        """
        path = _path(key)
        try:
            with self._store.open_read(path) as source:
                yield from parts_of(source, self._store.size(path), key)
        except NotFoundError as error:
            raise self._lost(key) from error
        except CorruptionError as error:
            _log.warning("%s: %s; it will be computed again", path, error.problem)
            self._store.delete([path])
            raise self._lost(key) from error
        place = self._store.local_path(path)
        if place is not None and _is_old(place):
            _touch(place)

    @staticmethod
    def _lost(key: str) -> StateLostError:
        return StateLostError(
            f"state {key} is gone or damaged", "do it again: the state is computed anew"
        )

    def _refresh(self, path: str, data: bytes) -> None:
        """Make a state young again that gc would remove although it is in use."""
        place = self._store.local_path(path)
        if place is None or not _is_old(place):
            return
        try:
            self._store.replace(path, data)
        # The state itself was read: a read-only store serves too.
        except FeatureStoreError as error:
            _log.warning("%s could not be made young: %s", path, error.problem)


def _is_old(place: Path) -> bool:
    try:
        return time.time() - place.stat().st_mtime > REFRESH_SECONDS
    except FileNotFoundError:  # removed since it was read
        return False


def _touch(place: Path) -> None:
    """Make a state young again that was read in parts."""
    try:
        os.utime(place)
    except OSError as error:  # the state itself was read: a read-only store serves too
        _log.warning("%s could not be made young: %s", place, error)


def _path(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise InvalidInputError(f"{key!r} is no key of a state", "use a hexadecimal fingerprint")
    return f"{STATES}/{key}.arrow"
