"""The samples of each class: their numbers in a scratch file, class after class.

Two passes: the first reads the columns that tell classes apart, numbers the classes by their first
occurrence and writes each sample's; the second writes the samples of each class, in the order of the
table, to where that class begins.

Always true: the index depends on the rows and their order alone, not on partitions or memory; memory does
not grow with the rows, only with the classes, of which there are at most ``CLASS_LIMIT``.

The trade-off: it is made anew in each process, at 8 bytes a sample on disk; where classes are many, a piece
of samples is written in many small writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import xxhash

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError
from training.loading.mixing import Rows, Words
from training.loading.scratch import ScratchFiles

CLASS_LIMIT: Final = 100_000
PIECE_ROWS: Final = 1 << 16
"""Samples that are looked at together."""
PIECE_BYTES: Final = PIECE_ROWS * 112
"""What that takes: hashes sorted, their places, numbers, and copies of them."""
CLASS_BYTES: Final = 96
"""Of each class: its hash and number, twice while new ones are put in between; its count and beginning."""

_Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int32]]"


class ClassIndex:
    """Which samples are of which class.

    Parameters
    ----------
    hashes : iterable of uint64 array
        Of each sample in the order of the table, the hash of its class.
    root : Path
        The cache; the files are removed with this object.
    what : str
        What classes are told apart by, for errors.

    Raises
    ------
    InvalidInputError
        If there are more than ``CLASS_LIMIT`` classes.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> cache = TemporaryDirectory()
    >>> hashes = np.array([7, 7, 9, 7], np.uint64)
    >>> index = ClassIndex([hashes[:3], hashes[3:]], Path(cache.name), "label")
    >>> index.samples.tolist(), index.begins.tolist()
    ([0, 1, 3, 2], [0, 3])
    >>> cache.cleanup()
    """

    def __init__(self, hashes: Iterable[Words], root: Path, what: str) -> None:
        self._files = ScratchFiles(root)
        classes, content = _Classes(what), xxhash.xxh3_128()
        with self._files.writing("classes") as file:
            for many in hashes:
                for start in range(0, len(many), PIECE_ROWS):
                    piece = many[start : start + PIECE_ROWS]
                    content.update(piece.tobytes())
                    file.write(classes.number(piece).tobytes())
        self.digest = content.hexdigest()
        """Equal digests have equal samples in each class."""
        self.counts: Rows = classes.counts
        """Samples of each class, int64 [classes]."""
        self.rows = int(self.counts.sum())
        self._sort()
        self._map()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a path: another process maps the same file."""
        return _open_again, (self._files, self.counts, self.rows, self.digest)

    def _map(self) -> None:
        self.begins: Rows = np.cumsum(self.counts) - self.counts
        """Where each class begins in ``samples``, int64 [classes]."""
        self.samples: Rows = self._files.mapped("samples", np.int64, self.rows)
        """The samples of each class, one class after the other, int64 [rows]."""

    def _sort(self) -> None:
        """Write the samples of each class to where it begins."""
        nexts, start = self.counts.cumsum() - self.counts, 0
        with self._files.writing("samples") as file:
            file.truncate(8 * self.rows)
            for piece in self._files.pieces("classes", np.int32, PIECE_ROWS):
                order = np.argsort(piece, kind="stable")
                ordered = piece[order]
                samples = order + start
                firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
                lengths = np.diff(firsts, append=len(piece))
                found = ordered[firsts]
                for at, first, length in zip(
                    nexts[found].tolist(), firsts.tolist(), lengths.tolist(), strict=True
                ):
                    _write(file.fileno(), samples[first : first + length], 8 * at)
                nexts[found] += lengths
                start += len(piece)
        self._files.remove("classes")


class _Classes:
    """Classes numbered by their first occurrence, and how many samples each has."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._hashes: Words = np.empty(0, dtype=np.uint64)
        self._ids: _Ids = np.empty(0, dtype=np.int32)
        self._counts = np.empty(0, dtype=np.int64)

    @property
    def counts(self) -> Rows:
        return self._counts

    def number(self, hashes: Words) -> _Ids:
        """Return the class of each sample."""
        found, first, inverse, counts = np.unique(
            hashes, return_index=True, return_inverse=True, return_counts=True
        )
        at = np.searchsorted(self._hashes, found)
        known = np.zeros(len(found), dtype=np.bool_)
        if len(self._hashes):
            known = self._hashes[np.minimum(at, len(self._hashes) - 1)] == found
        ids = np.empty(len(found), dtype=np.int32)
        ids[known] = self._ids[at[known]]
        fresh = np.flatnonzero(~known)
        fresh = fresh[np.argsort(first[fresh])]
        before = len(self._ids)
        self._require(before + len(fresh))
        ids[fresh] = np.arange(before, before + len(fresh), dtype=np.int32)
        self._hashes = np.insert(self._hashes, at[~known], found[~known])
        self._ids = np.insert(self._ids, at[~known], ids[~known])
        self._counts = np.append(self._counts, np.zeros(len(fresh), dtype=np.int64))
        self._counts[ids] += counts
        return ids[inverse]

    def _require(self, classes: int) -> None:
        if classes > CLASS_LIMIT:
            raise InvalidInputError(
                f"{self._what} has more than {CLASS_LIMIT:,} different values; each is a class",
                "name a column of classes with by=, or cut numbers into ranges with fs.Bucketize",
            )


def _write(handle: int, values: HostArray, at: int) -> None:
    data = values.view(np.uint8).data
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def _open_again(files: ScratchFiles, counts: Rows, rows: int, digest: str) -> ClassIndex:
    """Return the index that another process made, which removes it."""
    made = ClassIndex.__new__(ClassIndex)
    made._files, made.counts, made.rows, made.digest = files, counts, rows, digest
    made._map()
    return made
