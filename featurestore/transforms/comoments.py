"""Comoments: means of columns and how they vary together, as a state that merges.

How many rows are complete (no null, NaN or infinity in any of the columns), the mean of each column over
them, and for each two columns the sum of the products of their deviations; both as an unevaluated sum of
two float64.

Always true: merging is exact to about 1e-30 relative; what is learnt of a block of rows is right to about
1e-15 of the products' size, even where means are far larger than deviations. So results agree to that for
every partitioning. Within a block deviations are taken from its own mean and corrected by theirs (Chan,
Golub, LeVeque 1983, equation 1.7). Trade-off: the products of 500 columns are 4 MB.
"""

from __future__ import annotations

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
    divide,
    multiply,
    negate,
    two_product,
    two_sum,
)
from featurestore.engines.protocol import Array, Engine
from featurestore.errors import CorruptionError
from featurestore.fingerprint import fingerprint
from featurestore.transforms.base import Partition, State, encode
from featurestore.transforms.selectors import Selection

# Raise it whenever the comoments of the same rows change: kept states are found by it.
_VERSION: Final = 1
_BLOCK: Final = 16_384
_MEANS: Final = pa.schema(
    [
        ("column", pa.string()), ("count", pa.int64()), ("mean", pa.float64()),
        ("mean_low", pa.float64()),
    ]
)  # fmt: skip
_PRODUCTS: Final = pa.schema([("high", pa.float64()), ("low", pa.float64())])


@dataclass(frozen=True, slots=True)
class Comoments:
    """Statistics of complete rows.

    Parameters
    ----------
    columns : tuple of str
    count : int
        Complete rows.
    mean : (array, array)
        ``[p]``, high and low; 0 without rows.
    products : (array, array)
        ``[p, p]``, symmetric.
    """

    columns: tuple[str, ...]
    count: int
    mean: Pair
    products: Pair

    def merge(self, other: Comoments) -> Comoments:
        """Return the statistics of both runs of rows together."""
        if self.columns != other.columns:
            raise CorruptionError(
                f"states of columns {list(self.columns)} and {list(other.columns)} cannot be merged",
                "build the statistics again",
            )
        if not self.count or not other.count:
            return self if self.count else other
        n_a, n_b = np.array([float(self.count)]), np.array([float(other.count)])
        zero = np.zeros(1)
        with np.errstate(invalid="ignore", over="ignore"):
            apart = add(other.mean, negate(self.mean))
            mean = add(self.mean, multiply(apart, divide((n_b, zero), n_a + n_b)))
            weight = divide(two_product(n_a, n_b), n_a + n_b)
            rows, across = ((one[:, None] for one in apart), (one[None, :] for one in apart))
            between = multiply(multiply(_pair(*rows), _pair(*across)), weight)
            products = add(add(self.products, other.products), between)
        return Comoments(self.columns, self.count + other.count, mean, products)

    def to_state(self) -> State:
        count = np.full(len(self.columns), self.count)
        arrays = [pa.array(self.columns, pa.string()), *map(pa.array, (count, *self.mean))]
        # Of no rows nothing is kept: a column or a thousand make no difference.
        products = [
            pa.array(one.ravel() if self.count else one[:0].ravel()) for one in self.products
        ]
        return {
            "means": pa.Table.from_arrays(arrays, schema=_MEANS),
            "products": pa.Table.from_arrays(products, schema=_PRODUCTS),
        }

    @classmethod
    def from_state(cls, state: State) -> Comoments:
        means, products = state.get("means"), state.get("products")
        if means is None or products is None or means.schema != _MEANS:
            raise CorruptionError(f"a state of comoments has tables {sorted(state)}")
        columns = tuple(means["column"].to_pylist())
        count = means["count"][0].as_py() if columns else 0
        size = len(columns) if count else 0
        if products.schema != _PRODUCTS or products.num_rows != size * size:
            raise CorruptionError(f"a state of {size} columns has {products.num_rows} products")
        high, low = (products[name].to_numpy().reshape(size, size) for name in ("high", "low"))
        if not count:
            high = low = np.zeros((len(columns), len(columns)))
        mean = (means["mean"].to_numpy(), means["mean_low"].to_numpy())
        return cls(columns, count, mean, (high, low))


def comoments_fingerprint(columns: Selection) -> str:
    """Return the fingerprint of a state of comoments, whichever transformer learns it."""
    return fingerprint("comoments", _VERSION, encode(columns))


def comoments_bytes(columns: Sequence[str], rows: int) -> int:
    """Return the most Arrow bytes of a state: 16 for each two columns, and 28 and the name of each."""
    names = sum(28 + len(one.encode()) for one in columns)
    return 16 * len(columns) * min(len(columns), rows * len(columns)) + names + 128 * 8


def comoments_memory(columns: Sequence[str], rows: int) -> int:
    """Return what ``summarize_comoments`` takes, its result included, whatever the partition's size."""
    size = len(columns)
    return (64 + 18 * size) * min(rows, _BLOCK) + 100 * min(size, rows) * size


def summarize_comoments(partition: Partition, columns: Sequence[str], engine: Engine) -> State:
    """Return the comoments of a partition's columns (numbers, booleans, decimals)."""
    size = len(columns)
    none = np.zeros(size), np.zeros((size, size))
    found = Comoments(tuple(columns), 0, (none[0], none[0]), (none[1], none[1]))
    frame = partition.frame.select(list(columns))
    for where in blocks(len(frame), np, _BLOCK):
        part = frame[where.start : where.stop]
        rows, complete = _matrix([engine.values(part[name]) for name in columns], engine.xp)
        if not bool(complete.all()):
            rows = rows[:, complete]
        if rows.shape[1]:
            found = found.merge(_of_block(tuple(columns), rows, engine))
    return found.to_state()


def combine_comoments(earlier: State, later: State) -> State:
    """Return the comoments of two runs of rows; ``{}`` on either side returns the other."""
    if not earlier or not later:
        return earlier or later
    return Comoments.from_state(earlier).merge(Comoments.from_state(later)).to_state()


def _matrix(columns: Sequence[tuple[Array, Array]], xp: Any) -> tuple[Array, Array]:
    """Return columns as ``float64 [p, rows]``, and which rows are complete."""
    rows = int(columns[0][1].shape[0])
    out = xp.empty((len(columns), rows), dtype=xp.float64)
    complete = xp.ones(rows, dtype=bool)
    for i, (values, valid) in enumerate(columns):
        out[i] = values
        complete &= valid & xp.isfinite(out[i])
    return out, complete


def _of_block(columns: tuple[str, ...], rows: Array, engine: Engine) -> Comoments:
    """Return the comoments of complete rows ``[p, n]``, which are changed."""
    count = int(rows.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        # Divided first: the sum of values near the largest float64 would overflow.
        mean = (rows / count).sum(axis=1)
        rows -= mean[:, None]
        drift = rows.sum(axis=1) / count
        products = rows @ rows.T - count * (drift[:, None] * drift[None, :])
        means: Pair = two_sum(engine.to_host(mean), engine.to_host(drift))
    # The same from both sides, whatever order the sums were taken in.
    products = engine.to_host(products)
    products = np.triu(products) + np.triu(products, 1).T
    return Comoments(columns, count, means, (products, np.zeros_like(products)))


def _pair(high: Floats, low: Floats) -> Pair:
    return high, low
