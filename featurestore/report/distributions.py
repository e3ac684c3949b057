"""How sampled values are distributed: bins, statistics, categories, and drift from part to part.

Values arrive per part as Arrow columns and leave as :class:`~featurestore.report.facts.ColumnValues`; a
column that has no distribution worth drawing (tensors, lists, bytes) is told apart by its type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.report.drift import FEWEST, Floats, ks, psi, psi_of_numbers
from featurestore.report.facts import ColumnValues, PartValues
from featurestore.schema import Field

BINS: Final = 20
CATEGORIES: Final = 12
"""Values with bars of their own; numbers that have no more are drawn so too."""
TEXT: Final = 60
"""Characters of a text that are looked at."""
_QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_DIGITS: Final = 6


def no_distribution(one: Field) -> str:
    """Return why values of a column are not drawn; ``""`` if they are."""
    if one.is_tensor:
        return "tensors have no distribution here"
    if pa.types.is_list(one.type) or pa.types.is_binary(one.type):
        return f"values of type {one.type} have no distribution here"
    return ""


def is_number(type_: pa.DataType) -> bool:
    """Whether values are drawn on an axis: numbers, dates, times and lengths of time."""
    kinds = pa.types
    return bool(
        kinds.is_integer(type_) or kinds.is_floating(type_) or kinds.is_decimal(type_)
        or kinds.is_temporal(type_)
    )  # fmt: skip


def compact(column: pa.ChunkedArray) -> pa.Array:
    """Return a column of a sample in the form it is kept in until all parts are there: small."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Slicing counts characters, so one text of 100 MB keeps sixty of them.
        column = pc.utf8_slice_codeunits(column, 0, TEXT)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def distribution(type_: pa.DataType, parts: Sequence[pa.Array], drifts: bool) -> ColumnValues:
    """Return how a column is distributed in each part.

    Parameters
    ----------
    type_ : pyarrow.DataType
    parts : sequence of pyarrow.Array
        As :func:`compact` gave them.
    drifts : bool
        Whether later parts are compared with the first; not for a column that says when a row is.
    """
    if is_number(type_):
        return _of_numbers(type_, [_Numbers.of(one) for one in parts], drifts)
    return _of_categories(parts, [_counted(one) for one in parts], drifts)


# --- numbers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The numbers of one part: finite ones sorted, the others counted."""

    rows: int
    nulls: int
    odd: int
    values: Floats

    @classmethod
    def of(cls, column: pa.Array) -> _Numbers:
        known = column.drop_null()
        values = _floats(known)
        finite = np.sort(values[np.isfinite(values)])
        return cls(len(column), len(column) - len(known), len(values) - len(finite), finite)


def _floats(column: pa.Array) -> Floats:
    """Return numbers as float64, times and lengths of time as seconds."""
    type_ = column.type
    if pa.types.is_date32(type_):
        return np.asarray(column.cast(pa.int32()), np.float64) * 86_400
    if pa.types.is_temporal(type_):
        per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[getattr(type_, "unit", "ms")]
        steps = pa.int32() if type_.bit_width == 32 else pa.int64()
        return np.asarray(column.cast(steps), np.float64) / per_second
    return np.asarray(column.cast(pa.float64(), safe=False), np.float64)


def _of_numbers(type_: pa.DataType, parts: Sequence[_Numbers], drifts: bool) -> ColumnValues:
    pooled = np.concatenate([one.values for one in parts]) if parts else np.zeros(0)
    distinct = np.unique(pooled)
    form = "times" if pa.types.is_date(type_) or pa.types.is_timestamp(type_) else "numbers"
    few = 0 < len(distinct) <= CATEGORIES and form == "numbers"
    edges = np.zeros(0) if few or not len(distinct) else _edges(pooled)
    reference = next((one for one in parts if len(one.values)), None) if drifts else None
    found = []
    for one in parts:
        if few:
            counts = np.bincount(np.searchsorted(distinct, one.values), minlength=len(distinct))
        else:
            counts = _histogram(one.values, edges)
        enough = reference is not None and min(len(reference.values), len(one.values)) >= FEWEST
        moved = distance = None
        if reference is not None and one is not reference and enough:
            distance = ks(reference.values, one.values)
            if few:
                first = np.bincount(
                    np.searchsorted(distinct, reference.values), minlength=len(distinct)
                )
                moved = psi(first, counts)
            else:
                moved = psi_of_numbers(reference.values, one.values)
        found.append(_part(one, counts, moved, distance))
    labels = tuple(f"{one:.6g}" for one in distinct) if few else ()
    rounded = tuple(float(one) for one in edges)
    return ColumnValues(form, rounded, labels, False, len(distinct), tuple(found))


def _edges(pooled: Floats) -> Floats:
    """Return boundaries of equally wide bins over the middle 99% of values, or all where that is one."""
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers near the largest there is
        low, high = np.quantile(pooled, (0.005, 0.995))
        if not low < high:
            low, high = pooled.min(), pooled.max()
        width = (high - low) / BINS
    if not np.isfinite(width):
        return np.array([pooled.min(), 0.0, pooled.max()])
    edges = low + width * np.arange(BINS + 1)
    edges[-1] = high
    unique: Floats = np.unique(edges)  # neighbouring floats have no twenty bins between them
    return unique


def _histogram(values: Floats, edges: Floats) -> npt.NDArray[np.int64]:
    if len(edges) < 2:
        return np.zeros(0, np.int64)
    at = np.searchsorted(edges[1:-1], values, side="right")
    return np.bincount(at, minlength=len(edges) - 1)


def _part(
    numbers: _Numbers, counts: npt.NDArray[np.int64], moved: float | None, distance: float | None
) -> PartValues:
    values = numbers.values
    mean = deviation = None
    quantiles: tuple[float | None, ...] = ()
    if len(values):
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(values.mean()), float(values.std())
            quantiles = tuple(_rounded(float(one)) for one in np.quantile(values, _QUANTILES))
    return PartValues(
        numbers.rows,
        numbers.nulls,
        numbers.odd,
        tuple(int(one) for one in counts),
        _rounded(mean),
        _rounded(deviation),
        quantiles,
        _rounded(moved),
        _rounded(distance),
    )


def _rounded(value: float | None) -> float | None:
    """Return a number with six digits, seconds since 1970 whole; None for what is not finite."""
    if value is None or not np.isfinite(value):
        return None
    return (
        round(value) if abs(value) >= 10**_DIGITS and abs(value) < 2**53 else float(f"{value:.6g}")
    )


# --- categories --------------------------------------------------------------------------------


def _counted(column: pa.Array) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in pc.value_counts(column.drop_null()).to_pylist():
        found[_label(one["values"])] += one["counts"]
    return found


def _label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _of_categories(
    columns: Sequence[pa.Array], parts: Sequence[Counter[str]], drifts: bool
) -> ColumnValues:
    pooled: Counter[str] = Counter()
    for one in parts:
        pooled.update(one)
    # By count, then by name, so that equal counts do not make the report differ.
    ranked = sorted(pooled, key=lambda label: (-pooled[label], label))
    others = len(ranked) > CATEGORIES
    labels = ranked[: CATEGORIES - 1] if others else ranked
    rows = [_counts(one, labels, others) for one in parts]
    reference = next((one for one in rows if one.sum()), None) if drifts else None
    found = []
    for column, counts in zip(columns, rows, strict=True):
        moved = None
        enough = reference is not None and min(reference.sum(), counts.sum()) >= FEWEST
        if reference is not None and counts is not reference and enough:
            moved = _rounded(psi(reference, counts))
        shown = tuple(int(one) for one in counts)
        found.append(PartValues(len(column), column.null_count, 0, shown, psi=moved))
    return ColumnValues("categories", (), tuple(labels), others, len(ranked), tuple(found))


def _counts(part: Counter[str], labels: Sequence[str], others: bool) -> npt.NDArray[np.int64]:
    known = [part[label] for label in labels]
    return np.array([*known, part.total() - sum(known)] if others else known, np.int64)
