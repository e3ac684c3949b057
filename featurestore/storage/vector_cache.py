"""Vectors by the content they were made of, in a local file that outlives the process.

What an encoder makes of a text costs far more than to look it up. So each vector is kept under the
digest of its content, in one SQLite file per encoder; SQLite gives what several processes writing at
once and a kill at any moment need. Always true: a vector that comes out is the one that went in, or
:class:`CorruptionError` is raised; content is encoded by one process at a time, so nothing is encoded
twice. A cache is disposable: delete its file whenever nothing uses it.

Trade-off: encoders that share a file wait for each other, a batch at a time. They would wait for the
same cores or the same GPU anyway.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from featurestore.errors import CorruptionError, DiskFullError, InvalidInputError

CACHE_VARIABLE: Final = "FEATURESTORE_CACHE"
_AT_ONCE: Final = 500  # SQLite takes 999 parameters by default in its older versions
_PATIENCE: Final = 3600.0
"""Seconds to wait for another process that encodes a batch."""
_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB NOT NULL, "
    "checksum BLOB NOT NULL)"
)
Vectors: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


def cache_folder(kind: str) -> Path:
    """Return where a kind of cached data lies: in ``$FEATURESTORE_CACHE``, else under ``~/.cache``.

    Examples
    --------
    >>> cache_folder("vectors").name
    'vectors'
    """
    root = os.environ.get(CACHE_VARIABLE) or "~/.cache/featurestore"
    return (Path(root).expanduser() / kind).absolute()


def content_digest(content: bytes | memoryview) -> bytes:
    """Return what a vector is kept under: 16 bytes of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=16).digest()


class VectorCache:
    """The vectors of one encoder.

    Parameters
    ----------
    path : Path
        The file; made if it does not exist.
    width : int
        Numbers per vector, float32.

    Raises
    ------
    InvalidInputError
        If its folder cannot be written.
    CorruptionError
        If the file is not such a cache.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = VectorCache(Path(folder) / "one.sqlite", width=2)
    ...     key = content_digest(b"word")
    ...     made = cache.get([key], lambda missing: np.full((len(missing), 2), 7, np.float32))
    ...     again = cache.get([key], lambda missing: 1 / 0)
    >>> again.tolist()
    [[7.0, 7.0]]
    """

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        with self._connection() as database:
            # Readers do not wait for a writer then, and a power failure does not damage the file.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(_CREATE)

    def get(
        self, digests: Sequence[bytes], encode: Callable[[Sequence[int]], Vectors], batch: int = 256
    ) -> Vectors:
        """Return the vectors of some contents, ``float32 [n, width]``; those not there are made.

        Parameters
        ----------
        digests : sequence of bytes
            All different.
        encode : callable
            Gets positions in ``digests``, at most ``batch`` of them, and returns their vectors.
        batch : int

        Raises
        ------
        CorruptionError
            If a vector is not as it was written.
        DiskFullError
            If the disk cannot hold the new ones.
        """
        out = np.empty((len(digests), self._width), np.float32)
        with self._connection() as database:
            missing = self._read(database, digests, range(len(digests)), out)
            for start in range(0, len(missing), batch):
                self._make(database, digests, missing[start : start + batch], encode, out)
        return out

    def _make(
        self,
        database: sqlite3.Connection,
        digests: Sequence[bytes],
        wanted: Sequence[int],
        encode: Callable[[Sequence[int]], Vectors],
        out: Vectors,
    ) -> None:
        """Encode what nobody else encoded meanwhile; no other process encodes until it is kept."""
        database.execute("BEGIN IMMEDIATE")
        try:
            missing = self._read(database, digests, wanted, out)
            if missing:
                out[missing] = encode(missing)
                blobs = ((digests[one], out[one].tobytes()) for one in missing)
                rows = ((key, blob, _checksum(key, blob)) for key, blob in blobs)
                database.executemany("INSERT INTO vectors VALUES (?, ?, ?)", rows)
            database.execute("COMMIT")
        except BaseException:  # whatever ends it, Ctrl-C too, lets the others go on; raised again
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _read(
        self,
        database: sqlite3.Connection,
        digests: Sequence[bytes],
        wanted: Sequence[int],
        out: Vectors,
    ) -> list[int]:
        """Put what is there into ``out``; return the positions of what is not."""
        missing: list[int] = []
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            query = f"SELECT digest, vector, checksum FROM vectors WHERE digest IN ({marks})"
            found = database.execute(query, [digests[one] for one in some])
            known = {key: self._checked(key, blob, sum_) for key, blob, sum_ in found}
            for one in some:
                vector = known.get(digests[one])
                if vector is None:
                    missing.append(one)
                else:
                    out[one] = vector
        return missing

    def _checked(self, digest: bytes, blob: bytes, checksum: bytes) -> Vectors:
        if len(blob) != 4 * self._width or checksum != _checksum(digest, blob):
            raise CorruptionError(
                f"a vector of {len(blob)} bytes in cache {self._path} is not as it was written",
                "delete that file; what it held is encoded again",
            )
        return np.frombuffer(blob, np.float32)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open the file: connections belong to one thread, and cost little beside encoding."""
        try:
            opened = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
            with closing(opened) as database:
                # Of the journal a power failure may take the newest batches, never the file.
                database.execute("PRAGMA synchronous=NORMAL")
                yield database
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> Exception:
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
            return DiskFullError(
                f"the disk of cache {self._path} is full",
                f"free some space, or set {CACHE_VARIABLE} to another disk",
            )
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            return CorruptionError(
                f"cache {self._path} is damaged: {error}",
                "delete that file; what it held is encoded again",
            )
        return InvalidInputError(
            f"cache {self._path} cannot be used: {error}",
            f"set {CACHE_VARIABLE} to a folder that can be written, or give cache=False",
        )


def _checksum(digest: bytes, blob: bytes) -> bytes:
    return hashlib.blake2b(blob, digest_size=8, key=digest).digest()
