"""A trial of the promise that a value does not depend on where the table is cut.

The transformer runs on a sample as a whole and on the same sample cut in two, at several places; the
values must agree. Always true: a difference is real. Trade-off: agreement on a sample is evidence,
not proof; a dependence that the sample does not show goes unnoticed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.errors import NotPartitionIndependentError
from featurestore.transforms.base import (
    EMPTY_STATE,
    Columns,
    Partition,
    Scope,
    State,
    Transformer,
)

_REMEDY: Final = (
    "declare lookback= if it looks back in time; use Lag, Rolling or Rank for other rows; put "
    "statistics of the whole table into a fitted transformer (Standardize, Impute, Categorify)"
)
_TOLERANCE: Final = {2: 1e-2, 4: 1e-6, 8: 1e-12}


def is_foreign(transformer: Transformer) -> bool:
    """Return whether its code is not this package's, whose transformers have proofs of their own."""
    return transformer.code() is not None or not type(transformer).__module__.startswith(
        "featurestore."
    )


def check_partition_independent(
    transformer: Transformer, sample: Partition, engine: Engine
) -> None:
    """Compare values on a whole sample with values on the sample cut in two.

    Cuts: after the first row, in the middle, before the last row, and at a place drawn from the
    number of rows. A transformer with history is cut between timestamps only, as a table is.
    Floats may differ by 1e-12 relative (float32: 1e-6); NaN equals NaN.

    Raises
    ------
    NotPartitionIndependentError
        With the first row that differs, both values, and the remedy.
    """
    rows = sample.rows
    whole = _values(transformer, [sample], engine)
    for cut in _cuts(transformer, sample, engine):
        pieces = [_slice(sample, 0, cut), _slice(sample, cut, rows)]
        parts = _values(transformer, pieces, engine)
        for name, expected in whole.items():
            found = _difference(expected, parts[name])
            if found is not None:
                raise NotPartitionIndependentError(
                    f"{type(transformer).__name__} output {name!r} depends on where the table is "
                    f"cut: row {found} of {rows} is {_show(expected, found)} when computed at once "
                    f"and {_show(parts[name], found)} when cut before row {cut}",
                    _REMEDY,
                )


def _cuts(transformer: Transformer, sample: Partition, engine: Engine) -> Iterator[int]:
    rows = sample.rows
    if rows < 2:
        return
    allowed = np.arange(1, rows)
    time = sample.schema.time
    if transformer.scope in (Scope.PREFIX, Scope.SUFFIX) and time is not None:
        steps = engine.to_host(engine.values(sample.frame[time])[0])
        allowed = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    if len(allowed) == 0:
        return
    last = len(allowed) - 1
    drawn = random.Random(rows).randint(0, last)
    yield from dict.fromkeys(int(allowed[i]) for i in (0, last // 2, last, drawn))


def _slice(sample: Partition, start: int, stop: int) -> Partition:
    tensors = {name: array[start:stop] for name, array in sample.tensors.items()}
    return Partition(sample.frame[start:stop], sample.schema, tensors)


def _values(transformer: Transformer, pieces: list[Partition], engine: Engine) -> dict[str, Any]:
    """Return the outputs over adjacent pieces, put together again on this machine."""
    state: State = EMPTY_STATE
    if transformer.scope is Scope.FIT:
        for piece in pieces:
            state = transformer.combine(state, transformer.summarize(piece, engine))
        state = transformer.finish(state)
    done: list[dict[str, Any]] = []
    ahead = transformer.scope is Scope.SUFFIX
    for piece in reversed(pieces) if ahead else pieces:
        done.append(_on_host(transformer.apply(piece, state, engine), engine))
        if transformer.scope is Scope.PREFIX:
            state = transformer.combine(state, transformer.summarize(piece, engine))
        elif ahead:
            state = transformer.combine(transformer.summarize(piece, engine), state)
    done = done[::-1] if ahead else done
    return {name: _join([one[name] for one in done]) for name in done[0]}


def _on_host(columns: Columns, engine: Engine) -> dict[str, Any]:
    out: dict[str, Any] = {name: engine.to_host(one) for name, one in columns.tensors.items()}
    if columns.frame is not None:
        table = engine.to_arrow(columns.frame)
        out.update({name: table[name] for name in table.column_names})
    return out


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return pa.chunked_array([chunk for one in parts for chunk in one.chunks], parts[0].type)


def _difference(expected: Any, found: Any) -> int | None:
    """Return the first row in which two columns differ."""
    wrong = np.flatnonzero(~equal_rows(expected, found))
    return int(wrong[0]) if len(wrong) else None


def equal_rows(expected: Any, found: Any) -> np.ndarray[Any, Any]:
    """Return in which rows two columns on the host agree, floats to rounding and NaN with NaN.

    Parameters
    ----------
    expected, found : numpy.ndarray or pyarrow.ChunkedArray
        Of the same type and length.
    """
    if isinstance(expected, np.ndarray):
        same = _close(expected, found).reshape(len(expected), -1).all(axis=1)
    elif pa.types.is_floating(expected.type):
        a, b = (one.to_numpy(zero_copy_only=False) for one in (expected, found))
        nulls = [one.is_null().to_numpy(zero_copy_only=False) for one in (expected, found)]
        same = _close(a, b) & (nulls[0] == nulls[1])
    else:
        pairs = zip(expected.to_pylist(), found.to_pylist(), strict=True)
        # Lists with NaN are not equal to themselves, but look the same.
        same = np.array([a == b or repr(a) == repr(b) for a, b in pairs], dtype=bool)
    return np.asarray(same)


def _close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if a.dtype.kind != "f":
        return np.asarray(a == b)
    tolerance = _TOLERANCE.get(a.dtype.itemsize, 1e-12)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b))
    return np.asarray((a == b) | close | (np.isnan(a) & np.isnan(b)))


def _show(column: Any, row: int) -> str:
    value = column[row]
    return repr(value.as_py() if isinstance(value, pa.Scalar) else value.tolist())
