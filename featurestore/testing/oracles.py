"""Brute-force versions of the transformers, and a stand-in for the runner to compare them with.

The oracles work on plain Python rows (dictionaries; null is None), one row at a time, without any
array: slow and hard to get wrong. :func:`run_partitioned` runs a transformer as a build would, with
states summarised per partition and combined in order, over any cutting of a table.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.arrow import HostArray
from featurestore.engines.protocol import Engine
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    SourceWindow,
    State,
    Transformer,
)
from featurestore.transforms.event_time import arrow_times

Row: TypeAlias = "Mapping[str, Any]"


# --- a stand-in for the runner ------------------------------------------------------------------------


def schema_of(
    table: pa.Table,
    key: Sequence[str] = (),
    time: str | None = None,
    sources: Mapping[str, TableSchema] | None = None,
) -> TableSchema:
    """Return the schema of an Arrow table whose types are normalised."""
    fields = tuple(Field(one.name, one.type) for one in table.schema)
    return TableSchema(fields, tuple(key), time, dict(sources or {}))


def cut(table: pa.Table, time: str | None, points: Iterable[int]) -> list[pa.Table]:
    """Return the table cut before these rows, moved down so that no time is in two pieces."""
    rows = len(table)
    times = arrow_times(table[time]).tolist() if time is not None else list(range(rows))
    edges = {0, rows}
    for point in points:
        at = min(max(point, 0), rows)
        while 0 < at < rows and times[at] == times[at - 1]:
            at -= 1
        edges.add(at)
    ordered = sorted(edges)
    pieces = [table.slice(a, b - a) for a, b in pairwise(ordered)]
    return pieces or [table]


def run_partitioned(
    transformer: Transformer,
    partitions: Sequence[pa.Table],
    schema: TableSchema,
    engine: Engine,
    source: Sequence[pa.Table] = (),
    fit_on: Sequence[pa.Table] | None = None,
) -> pa.Table:
    """Return a transformer's outputs over a table in partitions, as a build computes them.

    Parameters
    ----------
    transformer : Transformer
        Of any scope, or a source transformer.
    partitions : sequence of pyarrow.Table
        In table order; partitions may be empty.
    schema : TableSchema
    engine : Engine
    source : sequence of pyarrow.Table
        The partitions of the other table, for source transformers.
    fit_on : sequence of pyarrow.Table, optional
        What a ``fit`` state is learnt from, cut in another way; by default the partitions themselves.

    Returns
    -------
    pyarrow.Table
        The declared output columns, of the declared types, for all rows.
    """
    pieces = []
    fitted = _fitted(transformer, partitions if fit_on is None else fit_on, schema, engine)
    state: State = EMPTY_STATE
    later = _later_states(transformer, partitions, schema, engine)
    for table, ahead in zip(partitions, later, strict=True):
        part = _partition(table, transformer.inputs(schema), schema, engine)
        part = replace(part, learnt_from=True)
        if isinstance(transformer, SourceTransformer):
            given = _source_state(transformer, table, source, schema, engine)
        elif transformer.scope is Scope.FIT:
            given = fitted
        elif transformer.scope is Scope.SUFFIX:
            given = ahead
        else:
            given = state if transformer.scope is Scope.PREFIX else EMPTY_STATE
        pieces.append(_outputs(transformer, part, given, schema, engine))
        if transformer.scope is Scope.PREFIX and not isinstance(transformer, SourceTransformer):
            state = transformer.combine(state, transformer.summarize(part, engine))
    return pa.concat_tables(pieces).combine_chunks()


def _later_states(
    transformer: Transformer, tables: Sequence[pa.Table], schema: TableSchema, engine: Engine
) -> list[State]:
    """Return for each partition the state of all later ones; empty but for scope suffix."""
    if transformer.scope is not Scope.SUFFIX:
        return [EMPTY_STATE] * len(tables)
    states: list[State] = [EMPTY_STATE]
    for table in reversed(tables[1:]):
        part = _partition(table, transformer.inputs(schema), schema, engine)
        states.append(transformer.combine(transformer.summarize(part, engine), states[-1]))
    return states[::-1]


def _partition(
    table: pa.Table, columns: Sequence[str], schema: TableSchema, engine: Engine
) -> Partition:
    return Partition(engine.from_arrow(table.select(list(columns))), schema)


def _outputs(
    transformer: Transformer, part: Partition, state: State, schema: TableSchema, engine: Engine
) -> pa.Table:
    columns = transformer.apply(part, state, engine)
    fields = [field for field in transformer.outputs(schema) if not field.is_tensor]
    wanted = pa.schema([(field.name, field.type) for field in fields])
    made: dict[str, pa.ChunkedArray | pa.Array] = {}
    if fields:
        assert columns.frame is not None, "a transformer with scalar outputs returned no frame"
        table = engine.to_arrow(columns.frame)
        assert table.column_names == wanted.names, (table.column_names, wanted.names)
        assert len(table) == part.rows, (len(table), part.rows)
        if engine.name == "polars":
            assert table.schema.equals(wanted), (table.schema, wanted)
        table = table.cast(wanted)
        made.update(zip(table.column_names, table.columns, strict=True))
    for field in transformer.outputs(schema):
        if field.is_tensor:
            values = engine.to_host(columns.tensors[field.name])
            assert values.shape == (part.rows, *(field.shape or ())), (values.shape, field)
            assert values.dtype == field.type.to_pandas_dtype(), (values.dtype, field)
            made.update(tensor_cells(field.name, values))
    return pa.table(made)


def tensor_cells(name: str, values: HostArray) -> dict[str, pa.Array]:
    """Return a tensor column as one column per cell, named ``tensor[0, 1]``."""
    places = [list(place) for place in np.ndindex(*values.shape[1:])]
    return {f"{name}{one}": pa.array(values[(slice(None), *one)]) for one in places}


def _fitted(
    transformer: Transformer, tables: Sequence[pa.Table], schema: TableSchema, engine: Engine
) -> State:
    if transformer.scope is not Scope.FIT:
        return EMPTY_STATE
    state: State = EMPTY_STATE
    for table in tables:
        part = _partition(table, transformer.learns_from(schema), schema, engine)
        state = transformer.combine(state, transformer.summarize(part, engine))
    return transformer.finish(state)


def _source_state(
    transformer: SourceTransformer,
    table: pa.Table,
    source: Sequence[pa.Table],
    schema: TableSchema,
    engine: Engine,
) -> State:
    """Return what a build gathers: carry of partitions before the window, rows of those in it."""
    other = schema.source(transformer.source_table)
    columns = transformer.source_inputs(schema)
    times = arrow_times(table[schema.time]) if schema.time is not None else None
    low, high = (None, None) if times is None or not len(times) else (times.min(), times.max())
    window = transformer.source_window(
        schema, None if low is None else int(low), None if high is None else int(high)
    )
    carry: State = EMPTY_STATE
    rows = []
    for piece in source:
        part = _partition(piece, columns, other, engine)
        where = _compare(piece, other, window)
        if where < 0 and window.carry:
            carry = transformer.combine(carry, transformer.summarize(part, engine))
        elif where == 0:
            rows.append(transformer.rows(part, engine))
    return transformer.gather(carry, rows)


def _compare(piece: pa.Table, schema: TableSchema, window: SourceWindow) -> int:
    """Return -1, 0 or 1 for a partition before, in or after a window."""
    if schema.time is None:
        return 0
    if not len(piece):
        return -1
    times = arrow_times(piece[schema.time])
    if window.lower is not None and int(times.max()) < window.lower:
        return -1
    return 1 if window.upper is not None and int(times.min()) > window.upper else 0


# --- comparing ----------------------------------------------------------------------------------------


def same_values(left: pa.Table, right: pa.Table) -> bool:
    """Whether two tables are equal bit for bit, all NaN being one value."""
    if left.schema != right.schema or len(left) != len(right):
        return False
    for one, other in zip(left.columns, right.columns, strict=True):
        if pa.types.is_floating(one.type):
            a, b = ([_bits(value) for value in column.to_pylist()] for column in (one, other))
        else:
            a, b = one.to_pylist(), other.to_pylist()
        if a != b:
            return False
    return True


def _bits(value: float | None) -> str | None:
    return None if value is None else float.hex(value)


def close_values(actual: Sequence[Any], expected: Sequence[Any], tolerance: float = 1e-9) -> bool:
    """Whether values agree: nulls, NaN and infinities exactly, floats relative to their size."""
    return len(actual) == len(expected) and all(
        _close(a, b, tolerance) for a, b in zip(actual, expected, strict=True)
    )


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if isinstance(a, float) and isinstance(b, float | int):
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return a == b or math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    return bool(a == b)


# --- oracles ------------------------------------------------------------------------------------------


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table as rows of Python values; times as integers of steps."""
    out = {}
    for name in table.column_names:
        type_ = table[name].type
        if pa.types.is_timestamp(type_):
            out[name] = pc.cast(table[name], pa.int64()).to_pylist()
        elif pa.types.is_date32(type_):
            day = dt.date(1970, 1, 1).toordinal()
            out[name] = [
                None if one is None else (one.toordinal() - day) * 86_400_000_000
                for one in table[name].to_pylist()
            ]
        else:
            out[name] = table[name].to_pylist()
    return [dict(zip(out, values, strict=True)) for values in zip(*out.values(), strict=True)]


def group_key(row: Row, by: Sequence[str]) -> tuple[Any, ...]:
    """Return a row's group: null equals null, NaN equals NaN, -0.0 equals 0.0."""
    key: list[Any] = []
    for name in by:
        value = row[name]
        nan = isinstance(value, float) and math.isnan(value)
        key.append("NaN" if nan else ("value", value))
    return tuple(key)


def in_window(age: int, width: int, closed: str) -> bool:
    """Whether a row that is ``age`` older than the window's end is in a window of that width."""
    newest = age >= 0 if closed in ("right", "both") else age > 0
    oldest = age <= width if closed in ("left", "both") else age < width
    return newest and oldest


def rolling(
    rows: Sequence[Row],
    column: str,
    stat: str,
    by: Sequence[str],
    *,
    time: str | None,
    width: int,
    lag: int = 0,
    closed: str = "right",
    min_count: int = 1,
) -> list[Any]:
    """Return a rolling statistic; ``time`` None for windows of rows."""
    out = []
    for i, row in enumerate(rows):
        group = [j for j in range(len(rows)) if group_key(rows[j], by) == group_key(row, by)]
        if time is not None:
            ages = {j: row[time] - lag - rows[j][time] for j in group}
        else:
            ages = {j: group.index(i) - lag - n for n, j in enumerate(group)}
        chosen = [rows[j][column] for j in group if in_window(ages[j], width, closed)]
        values = [value for value in chosen if value is not None]
        out.append(statistic(values, stat, min_count))
    return out


def statistic(values: list[Any], stat: str, min_count: int) -> Any:
    """Return a statistic of a window's values, nulls left out."""
    if stat == "count":
        return len(values)
    if len(values) < min_count or len(values) < (2 if stat == "std" else 1):
        return None
    if stat in ("first", "last"):
        return values[0 if stat == "first" else -1]
    nan = any(isinstance(value, float) and math.isnan(value) for value in values)
    if stat == "median" or stat.startswith("q"):
        level = 0.5 if stat == "median" else float(stat[1:])
        return math.nan if nan else _quantile(sorted(map(float, values)), level)
    if stat in ("min", "max"):
        return math.nan if nan else (min(values) if stat == "min" else max(values))
    if stat == "std":
        return _deviation([float(value) for value in values])
    total = sum(values) if not isinstance(values[0], float) else _total(values)
    return total if stat == "sum" else float(total) / len(values)


def _total(values: Sequence[float]) -> float:
    if all(math.isfinite(value) for value in values):
        return math.fsum(values)
    return sum(values)


def _quantile(values: Sequence[float], level: float) -> float:
    place = (len(values) - 1) * level
    below, share = values[math.floor(place)], place - math.floor(place)
    above = values[math.ceil(place)]
    return below if below == above or not share else below * (1 - share) + above * share


def _deviation(values: Sequence[float]) -> float:
    if not all(math.isfinite(value) for value in values):
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def lag(rows: Sequence[Row], column: str, periods: int, by: Sequence[str]) -> list[Any]:
    """Return the value ``periods`` rows before, within the group."""
    out, seen = [], dict[tuple[Any, ...], list[Any]]()
    for row in rows:
        history = seen.setdefault(group_key(row, by), [])
        out.append(history[-periods] if len(history) >= periods else None)
        history.append(row[column])
    return out


def cross_section(rows: Sequence[Row], column: str, stat: str, by: Sequence[str]) -> list[Any]:
    """Return rank or z-score among the rows of a group; ``by`` includes the time."""
    out: list[Any] = []
    for row in rows:
        value = row[column]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            out.append(value)
            continue
        group = [one[column] for one in rows if group_key(one, by) == group_key(row, by)]
        group = [
            one
            for one in group
            if one is not None and not (isinstance(one, float) and math.isnan(one))
        ]
        if stat == "rank":
            below = sum(one < value for one in group)
            ties = sum(one == value for one in group)
            out.append((below + (ties + 1) / 2) / len(group))
            continue
        numbers = [float(one) for one in group]
        if not all(math.isfinite(one) for one in numbers):
            out.append(math.nan)
        elif min(group) == max(group):
            out.append(0.0)
        else:
            mean, deviation = math.fsum(numbers) / len(numbers), _deviation(numbers)
            out.append((float(value) - mean) / deviation if deviation else 0.0)
    return out


def visible_rows(
    row: Row,
    right: Sequence[Row],
    by: Mapping[str, str],
    times: tuple[str, str],
    *,
    factors: tuple[int, int] = (1, 1),
    lag: int = 0,
    exact: bool = True,
    available: str | None = None,
) -> list[tuple[int, Row]]:
    """Return the right rows that are known at a left row's time, oldest first, each with its age.

    Spans, ages and the column ``available`` are in the unit after ``factors``.
    """
    now, found = row[times[0]] * factors[0], []
    for other in right:
        if any(row[a] is None or row[a] != other[b] for a, b in by.items()):
            continue
        known = other[times[1]] * factors[1] + lag
        if available is not None:
            if other[available] is None:
                continue
            known = max(known, other[available])
        if known <= now if exact else known < now:
            found.append((now - other[times[1]] * factors[1], other))
    return sorted(found, key=lambda one: -one[0])


def asof(
    left: Sequence[Row],
    right: Sequence[Row],
    column: str,
    by: Mapping[str, str],
    times: tuple[str, str],
    *,
    factors: tuple[int, int] = (1, 1),
    lag: int = 0,
    max_age: int | None = None,
    exact: bool = True,
    available: str | None = None,
) -> list[Any]:
    """Return the newest visible right value per left row; spans in the unit after ``factors``."""
    out = []
    for row in left:
        seen = visible_rows(
            row, right, by, times, factors=factors, lag=lag, exact=exact, available=available
        )
        young = [one for age, one in seen if max_age is None or age <= max_age]
        out.append(young[-1][column] if young else None)
    return out


def lookup(
    left: Sequence[Row], right: Sequence[Row], column: str, by: Mapping[str, str]
) -> list[Any]:
    """Return the last right value with the left row's key."""
    out = []
    for row in left:
        value = None
        for other in right:
            if all(row[a] is not None and row[a] == other[b] for a, b in by.items()):
                value = other[column]
        out.append(value)
    return out
