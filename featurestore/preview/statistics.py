"""The distribution of a column, and how two columns go together: over arrays in memory.

Missing is null, NaN or infinite. Measures are of the rows where neither column is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.report.previews import Distribution

Array: TypeAlias = np.ndarray[Any, Any]

QUANTILES: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
BINS: Final = 16
FREQUENT: Final = 10


@dataclass(slots=True)
class Counted:
    """Counts and moments of a column's values, part after part (Chan et al. 1979)."""

    rows: int = 0
    nulls: int = 0
    nans: int = 0
    infinities: int = 0
    finite: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: pa.ChunkedArray | Array) -> None:
        """Count further values: a scalar column, or the elements of a tensor."""
        if isinstance(values, np.ndarray):
            self.rows += values.size
            self._add(values.reshape(-1))
            return
        self.rows += len(values)
        self.nulls += values.null_count
        if is_numeric(values.type):
            self._add(_floats(values.drop_null()))

    def _add(self, values: Array) -> None:
        if values.dtype.kind == "f":
            missing = np.isnan(values)
            endless = np.isinf(values)
            self.nans += int(missing.sum())
            self.infinities += int(endless.sum())
            values = values[~(missing | endless)]
        if not values.size:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean(dtype=np.float64))
            squares = float(np.square(values - mean, dtype=np.float64).sum())
            total, away = self.finite + values.size, mean - self.mean
            self.squares += squares + away * away * self.finite * values.size / total
            self.mean += away * values.size / total
        self.finite = total

    def distribution(self, sample: pa.ChunkedArray | Array) -> Distribution:
        """Return the counts, with what a sample of the values says of them.

        Parameters
        ----------
        sample : pyarrow.ChunkedArray or array ``[rows, ...]``
        """
        known = _known(sample)
        numeric = known.dtype.kind in "iuf"
        spread = self.finite > 0
        return Distribution(
            self.rows,
            self.nulls,
            self.nans,
            self.infinities,
            self.mean if spread else None,
            math.sqrt(self.squares / self.finite) if spread else None,
            _quantiles(sample, known),
            _histogram(known) if numeric else (),
            () if numeric else _frequent(sample),
            len(np.unique(known)) if numeric else _distinct(sample),
            len(sample),
        )


def is_numeric(type_: pa.DataType) -> bool:
    """Whether values of a type have a mean."""
    return bool(
        pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    )


def correlates(type_: pa.DataType) -> bool:
    """Whether columns of a type are measured against others: numbers, truth values and texts."""
    return is_numeric(type_) or bool(pa.types.is_boolean(type_) or pa.types.is_string(type_))


def association(left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[dict[str, float], int]:
    """Return the measures of how two columns of equal length go together, and of how many rows.

    Two numeric columns (truth values are 0 and 1): Pearson's and Spearman's correlation, ties with
    their average rank. A numeric and a text: the correlation ratio, corrected for the number of
    different texts (Kelley 1935). Two texts: Cramer's V, corrected likewise (Bergsma 2013).
    """
    one, other = _measured(left), _measured(right)
    both = one.known & other.known
    x, y = one.values[both], other.values[both]
    if one.categorical and other.categorical:
        found = {"cramers_v": cramers_v(x, y)}
    elif one.categorical:
        found = {"correlation_ratio": correlation_ratio(x, y)}
    elif other.categorical:
        found = {"correlation_ratio": correlation_ratio(y, x)}
    else:
        found = {"pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y))}
    return found, int(both.sum())


def pearson(x: Array, y: Array) -> float:
    """Return Pearson's correlation; NaN where a column is constant."""
    if len(x) < 2:
        return math.nan
    x, y = _centred(x), _centred(y)
    size = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(np.clip(float(x @ y) / size, -1, 1)) if size > 0 else math.nan


def _centred(values: Array) -> Array:
    """Return values less their mean, scaled so that squares neither overflow nor vanish."""
    scale = float(np.abs(values).max())
    scaled = values / scale if scale > 0 else values
    away = scaled - scaled.mean()
    most = float(np.abs(away).max())
    # What is left of a constant column is rounding.
    return away / most if most > 1e-13 else np.zeros_like(away)


def ranks(values: Array) -> Array:
    """Return the rank of each value from 0 on; equal values have their average."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    averages: Array = (last - counts + last - 1) / 2
    return averages[place]


def correlation_ratio(groups: Array, values: Array) -> float:
    """Return the corrected correlation ratio of values with groups; NaN if it is not known."""
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    rows, kinds = len(values), len(counts)
    if kinds < 2 or rows <= kinds:
        return math.nan
    away = _centred(values)
    total = float(away @ away)
    if not total > 0:
        return math.nan
    between = float((np.bincount(place, away) ** 2 / counts).sum())
    chance = (kinds - 1) * (total - between) / (rows - kinds)
    return math.sqrt(min(max((between - chance) / total, 0.0), 1.0))


def cramers_v(left: Array, right: Array) -> float:
    """Return the corrected Cramer's V of two columns of codes; NaN if one is constant."""
    rows = len(left)
    _, one, ones = np.unique(left, return_inverse=True, return_counts=True)
    _, other, others = np.unique(right, return_inverse=True, return_counts=True)
    if len(ones) < 2 or len(others) < 2:
        return math.nan
    pairs, counts = np.unique(one * len(others) + other, return_counts=True)
    expected = ones[pairs // len(others)].astype(float) * others[pairs % len(others)]
    phi = float((counts.astype(float) ** 2 / expected).sum()) - 1
    r, k = len(ones), len(others)
    phi = max(0.0, phi - (r - 1) * (k - 1) / (rows - 1))
    size = min(r - (r - 1) ** 2 / (rows - 1), k - (k - 1) ** 2 / (rows - 1)) - 1
    return math.sqrt(min(phi / size, 1.0)) if size > 0 else math.nan


@dataclass(frozen=True, slots=True)
class _Measured:
    """A column's values as numbers or codes, and where they are known."""

    values: Array
    known: Array
    categorical: bool


def _measured(column: pa.ChunkedArray) -> _Measured:
    if pa.types.is_string(column.type):
        codes = pc.dictionary_encode(column.combine_chunks())
        whole = codes if isinstance(codes, pa.Array) else pa.concat_arrays(codes.chunks)
        known = ~np.asarray(whole.indices.is_null())
        return _Measured(np.asarray(whole.indices.fill_null(0)), known, True)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = _floats(column.cast(pa.float64(), safe=False).fill_null(math.nan))
    return _Measured(values, np.isfinite(values), False)


def _floats(column: pa.ChunkedArray) -> Array:
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy(), np.float64)


def _known(sample: pa.ChunkedArray | Array) -> Array:
    """Return the finite values of a numeric column in its own type; else an array of no numbers."""
    if isinstance(sample, np.ndarray):
        values = sample.reshape(-1)
    elif is_numeric(sample.type):
        dropped = sample.drop_null()
        whole = pa.types.is_integer(sample.type)
        values = np.asarray(dropped.to_numpy()) if whole else _floats(dropped)
    else:
        return np.empty(0, object)
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def _quantiles(sample: pa.ChunkedArray | Array, known: Array) -> Mapping[str, Any]:
    """Return lower quantiles: values that occur."""
    if known.dtype.kind in "iuf":
        ordered: Any = np.sort(known)
    elif isinstance(sample, pa.ChunkedArray) and pa.types.is_temporal(sample.type):
        dropped = sample.drop_null()
        ordered = dropped.take(pc.sort_indices(dropped))
    else:
        return {}
    last = len(ordered) - 1
    if last < 0:
        return {}
    found = {f"{at:g}": ordered[math.floor(at * last)] for at in QUANTILES}
    return {
        at: one.as_py() if isinstance(one, pa.Scalar) else one.item() for at, one in found.items()
    }


def _histogram(known: Array) -> tuple[tuple[float, float, int], ...]:
    """Return bins of equal width from the 1% to the 99% quantile; the outer two reach to the ends."""
    if not known.size:
        return ()
    values = known.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    first, last = (float(one) for one in np.quantile(values, (0.01, 0.99), method="lower"))
    if not math.isfinite(last - first) or first == last:
        first, last = low, high
    if not 0 < last - first < math.inf:
        return ((low, high, len(values)),)
    edges = np.linspace(first, last, BINS + 1)
    edges[0], edges[-1] = low, high
    if not (np.diff(edges) > 0).all():  # too close together for doubles
        return ((low, high, len(values)),)
    counts, _ = np.histogram(values, edges)
    return tuple(
        (float(edges[at]), float(edges[at + 1]), int(count)) for at, count in enumerate(counts)
    )


def _counted(sample: pa.ChunkedArray | Array) -> pa.ChunkedArray | None:
    """Return the values of a column that are compared as wholes; None for tensors and lists."""
    if isinstance(sample, np.ndarray) or pa.types.is_nested(sample.type):
        return None
    return sample.drop_null()


def _frequent(sample: pa.ChunkedArray | Array) -> tuple[tuple[Any, int], ...]:
    """Return the most frequent values, ties in order of appearance."""
    known = _counted(sample)
    if known is None:
        return ()
    counted = pc.value_counts(known).to_pylist()
    counted.sort(key=lambda one: -one["counts"])
    return tuple((one["values"], one["counts"]) for one in counted[:FREQUENT])


def _distinct(sample: pa.ChunkedArray | Array) -> int:
    known = _counted(sample)
    return 0 if known is None else len(pc.unique(known))
