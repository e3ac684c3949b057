"""Partitions in memory for tests of transformers: cut, fitted, applied and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.schema import Field, TableSchema, normalise_type
from featurestore.transforms.base import EMPTY_STATE, Partition, Scope, State, Transformer


def schema_of(table: pa.Table, key: Sequence[str] = (), time: str | None = None) -> TableSchema:
    """Return the table's schema."""
    fields = tuple(Field(one.name, normalise_type(one.type)) for one in table.schema)
    return TableSchema(fields, tuple(key), time)


def cut_table(
    table: pa.Table,
    cuts: Sequence[int] = (),
    *,
    key: Sequence[str] = (),
    time: str | None = None,
    engine: Engine | None = None,
) -> list[Partition]:
    """Return the table cut before the given rows (taken modulo the row count + 1, in order)."""
    engine = engine or get_engine("polars")
    schema = schema_of(table, key, time)
    edges = [0, *sorted(cut % (table.num_rows + 1) for cut in cuts), table.num_rows]
    pieces = [table.slice(start, stop - start) for start, stop in pairwise(edges)]
    return [Partition(engine.from_arrow(one), schema) for one in pieces]


def learn(
    transformer: Transformer, partitions: Sequence[Partition], engine: Engine | None = None
) -> State:
    """Return what a transformer of scope fit learns from partitions, finished."""
    engine = engine or get_engine("polars")
    states = [transformer.summarize(one, engine) for one in partitions]
    return transformer.finish(reduce(transformer.combine, states, EMPTY_STATE))


def values_of(
    transformer: Transformer,
    partitions: Sequence[Partition],
    state: State | None = None,
    engine: Engine | None = None,
) -> pa.Table:
    """Return a transformer's columns over adjacent partitions, as one table.

    Fitted transformers learn from the same partitions unless ``state`` is given. Declared names and
    types are checked on the way.
    """
    engine = engine or get_engine("polars")
    if state is None:
        state = learn(transformer, partitions) if transformer.scope is Scope.FIT else EMPTY_STATE
    tables = []
    for one in partitions:
        columns = transformer.apply(one, state, engine)
        expected = [(f.name, f.type) for f in transformer.outputs(one.schema) if not f.is_tensor]
        assert columns.frame is not None
        table = engine.to_arrow(columns.frame)
        assert table.schema.equals(pa.schema(expected)), (table.schema, expected)
        assert table.num_rows == one.rows, (table.num_rows, one.rows)
        tables.append(table)
        if transformer.scope is Scope.PREFIX:
            state = transformer.combine(state, transformer.summarize(one, engine))
    return pa.concat_tables(tables).combine_chunks()


def as_floats(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column as float64 with nulls as NaN (and NaN as NaN)."""
    out: np.ndarray[Any, Any] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return out
