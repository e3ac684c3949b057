"""Which sample a random number falls on, where each has a share of it in proportion to its weight.

Weights are made whole numbers, by a power of two such that all together stay below 2**62, and added up:
sample ``i`` has the numbers from the sum of those before it to the sum with its own. Which one a number
falls on is looked up in buckets of equal width (the method of cutpoints [1]_), then halved in.

Always true: no sample of weight 0 is found; weights that are whole numbers below 2**53, or
such divided by a power of two, keep their exact proportions as long as they fit, others to
2**-61 of the sum; the index depends on the weights and their order alone, not on partitions.

The trade-off: 12 bytes a sample on disk, for about three places looked at per draw, however
many samples there are.

.. [1] H. C. Chen, Y. Asau, "On Generating Random Variates from an Empirical Distribution", 1974.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import xxhash

from featurestore.errors import InvalidInputError
from training.loading.class_index import PIECE_ROWS
from training.loading.mixing import Rows
from training.loading.scratch import ScratchFiles

WEIGHT_PIECE_BYTES: Final = PIECE_ROWS * 48
"""What weights that are looked at together take: as whole numbers, their sums, and copies of them."""
_SUM_BITS: Final = 61

Weights: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


class WeightIndex:
    """Samples in proportion to their weights.

    Parameters
    ----------
    weights : iterable of float64 array
        Of each sample in the order of the table.
    root : Path
        The cache; the files are removed with this object.
    what : str
        What the weights are, for errors.

    Raises
    ------
    InvalidInputError
        If a weight is null, NaN, negative or infinite, or there are samples and none has a positive one.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> cache = TemporaryDirectory()
    >>> index = WeightIndex([np.array([1.0, 0.0]), np.array([3.0])], Path(cache.name), "w")
    >>> quarter = index.total // 4
    >>> index.find(np.array([0, quarter - 1, quarter, index.total - 1])).tolist()
    [0, 0, 2, 2]
    >>> cache.cleanup()
    """

    def __init__(self, weights: Iterable[Weights], root: Path, what: str) -> None:
        self._files = ScratchFiles(root)
        content, total, self.rows = xxhash.xxh3_128(), 0.0, 0
        with self._files.writing("weights") as file:
            for many in weights:
                for start in range(0, len(many), PIECE_ROWS):
                    piece = many[start : start + PIECE_ROWS]
                    _require(piece, what)
                    content.update(piece.tobytes())
                    file.write(piece.tobytes())
                    # One after the other, so that the sum does not depend on how they are cut.
                    with np.errstate(over="ignore"):
                        total = float(np.cumsum(np.append(total, piece))[-1])
                    self.rows += len(piece)
        self.digest = content.hexdigest()
        """Equal digests have equal weights."""
        if self.rows and not 0 < total < math.inf:
            raise InvalidInputError(
                f"the sum of {what} over {self.rows} rows is {total}",
                "select rows of positive weights, or scale the weights",
            )
        self.total = self._add_up(_SUM_BITS - math.frexp(total)[1])
        """What numbers are below; below 2**62."""
        self._shift = max(0, (2 * self.total // max(1, self.rows)).bit_length())
        self._cut()
        self._map()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a path: another process maps the same files."""
        return _open_again, (self._files, self.rows, self.total, self._shift, self.digest)

    @property
    def _buckets(self) -> int:
        return (self.total >> self._shift) + 1 if self.rows else 0

    def find(self, numbers: Rows) -> Rows:
        """Return the sample that each number falls on.

        Parameters
        ----------
        numbers : int64 array
            In ``[0, total)``.
        """
        bucket = numbers >> self._shift
        low: Rows = self._cuts[bucket]
        high = self._cuts[bucket + 1]
        left = np.flatnonzero(low < high)
        while left.size:
            first, last = low[left], high[left]
            middle = (first + last) >> 1
            beyond = self._sums[middle] > numbers[left]
            high[left] = np.where(beyond, middle, last)
            low[left] = np.where(beyond, first, middle + 1)
            left = left[low[left] < high[left]]
        return low

    def _add_up(self, exponent: int) -> int:
        """Write the sums of the weights as whole numbers; return the last."""
        total = 0
        with self._files.writing("sums") as file:
            for piece in self._files.pieces("weights", np.float64, PIECE_ROWS):
                whole = np.rint(np.ldexp(piece, exponent)).astype(np.int64)
                sums = np.cumsum(whole) + total
                file.write(sums.tobytes())
                total = int(sums[-1])
        self._files.remove("weights")
        return total

    def _cut(self) -> None:
        """Write for each bucket the sample on which its first number falls, and the last one."""
        bucket, base, last = 0, 0, max(0, self.rows - 1)
        with self._files.writing("cuts") as file:
            for sums in self._files.pieces("sums", np.int64, PIECE_ROWS):
                ends = -(-int(sums[-1]) >> self._shift)  # buckets that begin before the last sum
                for start in range(bucket, ends, PIECE_ROWS):
                    begins = np.arange(start, min(ends, start + PIECE_ROWS)) << self._shift
                    file.write((np.searchsorted(sums, begins, side="right") + base).tobytes())
                bucket, base = max(bucket, ends), base + len(sums)
            rest = self._buckets + 1 - bucket
            file.write(np.full(rest, last, dtype=np.int64).tobytes())

    def _map(self) -> None:
        self._sums: Rows = self._files.mapped("sums", np.int64, self.rows)
        self._cuts: Rows = self._files.mapped("cuts", np.int64, self._buckets + 1)


def _require(weights: Weights, what: str) -> None:
    bad = ~((weights >= 0) & np.isfinite(weights))
    if bad.any():
        value = weights[bad][0]
        seen = "null or NaN" if np.isnan(value) else f"{value}"
        raise InvalidInputError(
            f"{what} is {seen} in a selected row; rows are drawn in proportion to finite numbers "
            "from 0 on",
            "leave such rows out with where=, or fill or clip the column with fs.Expression",
        )


def _open_again(files: ScratchFiles, rows: int, total: int, shift: int, digest: str) -> WeightIndex:
    """Return the index that another process made, which removes it."""
    made = WeightIndex.__new__(WeightIndex)
    made._files, made.rows, made.total, made._shift, made.digest = files, rows, total, shift, digest
    made._map()
    return made
