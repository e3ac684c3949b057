"""Moments: count, mean and spread of columns, as a state that merges.

One row per column: how many values are finite, null, NaN or infinite; the mean and the sum of
squared deviations (``m2``) of the finite ones, each as an unevaluated sum of two float64 (about 32
digits); their smallest and largest value.

Always true: merging is exact to about 1e-30 relative, so a statistic does not depend on how rows
were cut into partitions (to about 1e-15), even where the mean is 1e12 times the deviation. NaN and
infinities are counted but do not enter mean and ``m2``.

Within a partition: deviations from a first estimate of the mean, taken from a sample, are summed and
corrected by their own mean (Chan, Golub, LeVeque 1983, equation 1.7), in one pass. Between partitions: the
pairwise update of Chan et al. (equation 2.1) in double-double arithmetic (Dekker 1971).
Trade-off: integers beyond 2**53 are rounded to float64 before anything else, and squares of
deviations below 1e-154 underflow to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.double_double import (
    Floats,
    Pair,
    add,
    choose,
    divide,
    multiply,
    negate,
    two_product,
    two_sum,
)
from featurestore.engines.protocol import Array, Engine
from featurestore.errors import CorruptionError, DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.transforms.base import Partition, State, encode
from featurestore.transforms.selectors import Selection

TABLE: Final = "moments"
# Raise it whenever the moments of the same rows change by more than their last bits (1e-30 of the
# mean): kept states are found by it, and every feature that was learnt from them grows stale.
_VERSION: Final = 1
_SAMPLE: Final = 4096
_BLOCK: Final = 32_768

_COUNTS: Final = ("count", "nulls", "nans", "infinities")
_FLOATS: Final = ("mean", "mean_low", "m2", "m2_low", "smallest", "largest")
SCHEMA: Final = pa.schema(
    [("column", pa.string())]
    + [(name, pa.int64()) for name in _COUNTS]
    + [(name, pa.float64()) for name in _FLOATS]
)


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of several columns; arrays have one element per column.

    ``mean`` and ``m2`` are pairs (high, low). Without finite values, mean and ``m2`` are 0,
    ``smallest`` is infinity and ``largest`` minus infinity.
    """

    columns: tuple[str, ...]
    counts: dict[str, np.ndarray[Any, np.dtype[np.int64]]]
    mean: Pair
    m2: Pair
    smallest: Floats
    largest: Floats

    @property
    def count(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Finite values per column."""
        return self.counts["count"]

    @property
    def constant(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which columns have no two different finite values."""
        return ~(self.smallest < self.largest)

    def deviation(self) -> Floats:
        """Return population standard deviations (divisor n); 0 for constant columns."""
        with np.errstate(invalid="ignore", over="ignore"):
            spread = np.sqrt(self.m2[0] / np.maximum(self.count, 1))
        return np.where(self.constant, 0.0, spread)

    def require_finite(self, values: Floats, what: str) -> None:
        """Refuse statistics that overflowed.

        Raises
        ------
        DefinitionError
        """
        told = zip(self.columns, values, self.count, strict=True)
        wild = [name for name, one, count in told if count and not np.isfinite(one)]
        if wild:
            raise DefinitionError(
                f"the {what} of columns {wild} exceeds float64 (largest value "
                f"{self.largest.max():.3g})",
                "take logarithms or divide the columns first",
            )

    def to_state(self) -> State:
        arrays: list[Any] = [pa.array(self.columns, pa.string())]
        arrays += [pa.array(self.counts[name]) for name in _COUNTS]
        floats = (*self.mean, *self.m2, self.smallest, self.largest)
        arrays += [pa.array(one) for one in floats]
        return {TABLE: pa.Table.from_arrays(arrays, schema=SCHEMA)}

    @classmethod
    def from_state(cls, state: State) -> Moments:
        table = state[TABLE]
        if table.schema != SCHEMA:
            raise CorruptionError(f"a state of moments has columns {table.schema.names}")
        counts = {name: table[name].to_numpy() for name in _COUNTS}
        floats = [table[name].to_numpy() for name in _FLOATS]
        columns = tuple(table["column"].to_pylist())
        return cls(columns, counts, (floats[0], floats[1]), (floats[2], floats[3]), *floats[4:])

    def merge(self, other: Moments) -> Moments:
        """Return the statistics of both runs of rows together."""
        if self.columns != other.columns:
            raise CorruptionError(
                f"states of columns {list(self.columns)} and {list(other.columns)} cannot be merged",
                "build the statistics again",
            )
        counts = {name: self.counts[name] + other.counts[name] for name in _COUNTS}
        n_a, n_b = self.count.astype(np.float64), other.count.astype(np.float64)
        n = np.maximum(n_a + n_b, 1.0)
        zero = np.zeros_like(n)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = add(other.mean, negate(self.mean))
            share = divide((n_b, zero), n)
            moved = add(self.mean, multiply(delta, share))
            weight = divide(two_product(n_a, n_b), n)
            m2 = add(add(self.m2, other.m2), multiply(multiply(delta, delta), weight))
        mean = choose(n_a == 0, other.mean, choose(n_b == 0, self.mean, moved))
        m2 = choose(n_a == 0, other.m2, choose(n_b == 0, self.m2, m2))
        smallest = np.minimum(self.smallest, other.smallest)
        return Moments(
            self.columns, counts, mean, m2, smallest, np.maximum(self.largest, other.largest)
        )


def moments_fingerprint(columns: Selection) -> str:
    """Return the fingerprint of a state of moments, whichever transformer learns it."""
    return fingerprint("moments", _VERSION, encode(columns))


def moments_bytes(columns: Sequence[str]) -> int:
    """Return the most Arrow bytes of a state of moments: 88 per column, and its name."""
    return sum(88 + len(name.encode()) for name in columns) + 16 * len(SCHEMA)


def moments_memory(columns: Sequence[str], rows: int) -> int:
    """Return what ``summarize_moments`` takes: where a column has values, one at a time."""
    return 14 * rows + 2**10 * len(columns)


def summarize_moments(partition: Partition, columns: Sequence[str], engine: Engine) -> State:
    """Return the moments of a partition's columns (numbers, booleans, decimals)."""
    rows = [_of_column(*engine.values(partition.frame[name]), engine.xp) for name in columns]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 10).T
    counts = {name: table[i].astype(np.int64) for i, name in enumerate(_COUNTS)}
    mean, mean_low, m2, m2_low, smallest, largest = table[4:]
    pairs = (mean, mean_low), (m2, m2_low)
    return Moments(tuple(columns), counts, *pairs, smallest, largest).to_state()


def combine_moments(earlier: State, later: State) -> State:
    """Return the moments of two runs of rows; ``{}`` on either side returns the other."""
    if not earlier or not later:
        return earlier or later
    return Moments.from_state(earlier).merge(Moments.from_state(later)).to_state()


def _of_column(values: Array, valid: Array, xp: Any) -> tuple[float, ...]:
    total = int(valid.shape[0])
    present = int(xp.count_nonzero(valid))
    known = None if present == total else valid
    nans, finite = 0, 0
    smallest, largest = float("inf"), float("-inf")
    sums: list[float] = []
    squares: list[float] = []
    step = max(1, total // _SAMPLE)
    pivot = _pivot(values[::step] if known is None else values[::step][known[::step]], xp)
    moved: Array | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for where in blocks(total, xp, _BLOCK):
            part = values[where] if known is None else values[where][known[where]]
            if part.shape[0] == 0:
                continue
            low, high = float(part.min()), float(part.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                nans += int(xp.count_nonzero(xp.isnan(part)))
                part = part[xp.isfinite(part)]
                if part.shape[0] == 0:
                    continue
                low, high = float(part.min()), float(part.max())
            if pivot is None:
                pivot = _pivot(part, xp)
            size = int(part.shape[0])
            smallest, largest = min(smallest, low), max(largest, high)
            finite += size
            if moved is None or moved.shape[0] < size:
                moved = xp.empty(where.stop - where.start, dtype=xp.float64)
            # In a cache: of what is long no copy is made, and memory is gone through once.
            apart = moved[:size]
            xp.subtract(part, pivot, out=apart, dtype=xp.float64)
            sums.append(float(apart.sum()))
            # Not dot(): BLAS would start threads of its own for it.
            apart *= apart
            squares.append(float(apart.sum()))
    head = (finite, total - present, nans, present - finite - nans)
    if pivot is None or finite == 0:
        return (*head, 0.0, 0.0, 0.0, 0.0, smallest, largest)
    if smallest == largest:
        return (*head, smallest, 0.0, 0.0, 0.0, smallest, largest)
    drift = _sum(sums) / finite
    m2 = _sum(squares) - finite * drift * drift
    with np.errstate(invalid="ignore"):
        mean, mean_low = (float(one) for one in two_sum(np.float64(pivot), np.float64(drift)))
    return (*head, mean, mean_low, m2 if not m2 < 0 else 0.0, 0.0, smallest, largest)


def _pivot(sample: Array, xp: Any) -> float | None:
    """Return the mean of the finite values of a sample, or None if there are none.

    Any m of n values will do: their mean is at most sqrt(n / m) deviations off, which costs a
    relative error of n / m roundings in the sum of squares.
    """
    x = sample.astype(xp.float64)
    x = x[xp.isfinite(x)]
    # Divided first: the sum of values near the largest float64 would overflow.
    return float((x / x.shape[0]).sum()) if x.shape[0] else None


def _sum(parts: list[float]) -> float:
    # fsum refuses infinities of both signs; a column that overflows is reported when it is fitted.
    return math.fsum(parts) if all(map(math.isfinite, parts)) else float("inf")
