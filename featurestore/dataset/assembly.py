"""From processed columns to what a model is fed: roles of columns, and row-major arrays.

Numeric columns are scattered into one preallocated row-major array, a few thousand rows at a time,
so that both the columns read and the rows written stay in the processor's cache: several times
faster than stacking whole columns, and without a second copy of the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.dataset.batch import NUMERIC, Batch, DatasetSchema, HostArray, Input, Role
from featurestore.dataset.ragged import Ragged, item_dtype, ragged_of
from featurestore.dataset.targets import Targets, numpy_name
from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition

BLOCK_ROWS: Final = 4096
"""Rows that are turned from columns to rows at once."""
_LINE: Final = 16
"""Columns of float32 that fill one cache line of a row: so many are written at once."""
COLUMNS_AT_ONCE: Final = 64
"""So many columns exist as arrays of their own at once: enough to write whole cache lines."""
ASSEMBLY_VERSION: Final = 1
"""Part of every digest of a part: raise it when equal columns give other arrays than before."""


def dataset_schema(
    features: Sequence[str],
    targets: Targets,
    schema: TableSchema,
    cardinalities: Mapping[str, int],
) -> DatasetSchema:
    """Return how a model sees columns.

    Parameters
    ----------
    features : sequence of str
        Columns after the pipeline, in the order asked for.
    targets : Targets
    schema : TableSchema
        With the columns after the pipeline.
    cardinalities : mapping of str to int
        The number of codes of each categorical column.

    Raises
    ------
    DefinitionError
        If a column has no form that a model understands: the message names the remedy.
    """
    columns = [_input(schema[name], cardinalities.get(name)) for name in features]
    return DatasetSchema((*columns, *targets.inputs(schema)))


def _input(one: Field, cardinality: int | None) -> Input:
    if one.shape is not None:
        return Input(one.name, Role.TENSOR, numpy_name(one.type), one.shape)
    if cardinality is not None:
        return Input(one.name, Role.CATEGORICAL, "int32", cardinality=cardinality)
    if one.is_numeric:
        return Input(one.name, Role.NUMERIC, "float32")
    if (items := item_dtype(one.type)) is not None:
        return Input(one.name, Role.RAGGED, items)
    raise DefinitionError(
        f"feature {one.name!r} has type {one.type}, which a model cannot be fed", _remedy(one)
    )


def _remedy(one: Field) -> str:
    if one.is_string:
        return f"add Categorify({one.name!r}) to the pipeline"
    if pa.types.is_temporal(one.type):
        return f"add Calendar({one.name!r}) to the pipeline for its parts, or leave it out"
    if pa.types.is_list(one.type):
        return (
            "models take lists of floats, and of integers that int64 holds: turn it into such lists, "
            "a tensor or a number with a Function, or leave it out"
        )
    return "turn it into numbers with a Function, or leave it out"


def to_batch(
    partition: Partition, schema: DatasetSchema, engine: Engine, *, label: bool = True
) -> Batch:
    """Return a partition's rows as the arrays a model is fed.

    Parameters
    ----------
    partition : Partition
        After the pipeline.
    schema : DatasetSchema
    engine : Engine
        Whose frame the partition is.
    label : bool
        False where there are neither labels nor weights and the like, as in rows to predict for.

    Returns
    -------
    Batch
        ``numeric`` float32 ``[rows, n]`` with nulls as NaN and values beyond float32 as infinity;
        categorical int32 ``[rows]``; tensors ``[rows, ...]``; lists as :func:`ragged_of` gives them;
        labels with their own dtypes, booleans
        as uint8; the weight float32 ``[rows]``; the group as integers, dates and times as int64; the
        base margin float32 ``[rows]`` or ``[rows, classes]``. All C-contiguous.

    Raises
    ------
    DefinitionError
        If a categorical column, a list of integers, or what a model is told has nulls; NaN in the latter counts. If a
        weight is negative or infinite, or a base margin infinite.
    """
    inputs: dict[str, HostArray] = {}
    if schema.numeric:
        inputs[NUMERIC] = _numeric(partition, schema.numeric, engine)
    for one in schema.columns:
        if one.role is Role.CATEGORICAL:
            inputs[one.name] = _codes(partition, one.name, engine)
        elif one.role is Role.TENSOR:
            host = engine.to_host(partition.tensors[one.name])
            inputs[one.name] = np.ascontiguousarray(host, dtype=one.dtype)
    lists = {one.name: _lists(partition, one, engine) for one in schema.ragged}
    if not label:
        return Batch(inputs, None, lists=lists)
    labels = {one.name: _known_values(partition, one, engine) for one in schema.labels}
    weight = None if schema.weight is None else _weights(partition, schema.weight, engine)
    group = None if schema.group is None else _known_values(partition, schema.group, engine)
    margin = None if schema.base_margin is None else _margins(partition, schema.base_margin, engine)
    if schema.label is not None:
        return Batch(inputs, labels[schema.label.name], weight, {}, group, margin, lists)
    return Batch(inputs, None, weight, labels, group, margin, lists)


def _numeric(partition: Partition, names: Sequence[str], engine: Engine) -> HostArray:
    out = np.empty((partition.rows, len(names)), dtype=np.float32)
    for first in range(0, len(names), COLUMNS_AT_ONCE):
        several = names[first : first + COLUMNS_AT_ONCE]
        _scatter(partition, several, engine, out[:, first : first + len(several)])
    return out


def _scatter(partition: Partition, names: Sequence[str], engine: Engine, out: HostArray) -> None:
    """Write columns into those of ``out``."""
    columns = [_host(partition, name, engine) for name in names]
    nulls = [None if valid.all() else ~valid for _, valid in columns]
    # Columns side by side, few enough rows to stay in a processor's cache while they are turned, a cache
    # line of each row at a time: four times as fast as writing each column with the row's width between
    # its values.
    turned = np.empty((len(names), min(BLOCK_ROWS, len(out))), dtype=np.float32)
    with np.errstate(over="ignore"):  # beyond float32 is infinity, as documented
        for start in range(0, len(out), BLOCK_ROWS):
            rows = slice(start, min(start + BLOCK_ROWS, len(out)))
            block = turned[:, : rows.stop - start]
            for row, (values, _), null in zip(block, columns, nulls, strict=True):
                row[:] = values[rows]
                if null is not None:
                    row[null[rows]] = np.nan
            for first in range(0, len(names), _LINE):
                out[rows, first : first + _LINE] = block[first : first + _LINE].T


def _codes(partition: Partition, name: str, engine: Engine) -> HostArray:
    values, valid = _host(partition, name, engine)
    if not valid.all():
        raise DefinitionError(
            f"categorical column {name!r} has {int((~valid).sum())} nulls after the pipeline",
            "let Categorify be the last step that writes it: it gives nulls a code of their own",
        )
    return np.ascontiguousarray(values, dtype=np.int32)


def _lists(partition: Partition, one: Input, engine: Engine) -> Ragged:
    column = engine.to_arrow(partition.frame.select(one.name))[one.name]
    return ragged_of(column.combine_chunks(), one.dtype, one.name)


def _known_values(partition: Partition, one: Input, engine: Engine) -> HostArray:
    """Return the values of what a model is told, which none may lack."""
    values, valid = _host(partition, one.name, engine)
    nulls = int((~valid).sum())
    nans = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    if nulls or nans:
        raise unknown_value(one.role, one.name, nulls, nans, len(values))
    with np.errstate(over="ignore"):  # beyond float32 is infinity: refused in a weight
        return np.ascontiguousarray(values, dtype=one.dtype)


def _weights(partition: Partition, one: Input, engine: Engine) -> HostArray:
    values = _known_values(partition, one, engine)
    bad = ~((values >= 0) & np.isfinite(values))
    if bad.any():
        raise DefinitionError(
            f"weight {one.name!r} is {values[bad][0]} in one of {int(bad.sum())} selected rows that "
            "have no weight a model can use",
            f"leave them out with where=nw.col({one.name!r}) >= 0, or clip them with fs.Expression",
        )
    return values


def _margins(partition: Partition, one: Input, engine: Engine) -> HostArray:
    if one.shape:
        with np.errstate(over="ignore"):
            host = engine.to_host(partition.tensors[one.name])
            values = np.ascontiguousarray(host, dtype=one.dtype)
    else:
        values = _known_values(partition, one, engine)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DefinitionError(
            f"base_margin {one.name!r} is {values[bad][0]} in one of {int(bad.sum())} selected values "
            "that no prediction can begin from",
            "leave these rows out with where=, or clip them with fs.Expression",
        )
    return values


def unknown_value(role: Role, name: str, nulls: int, nans: int, rows: int) -> DefinitionError:
    """Return the error for selected rows of which something that a model is told is unknown."""
    seen = [f"{nulls} nulls"] * (nulls > 0) + [f"{nans} NaN"] * (nans > 0)
    known = [f"~nw.col({name!r}).is_null()"] * (nulls > 0) + [f"~nw.col({name!r}).is_nan()"] * (
        nans > 0
    )
    return DefinitionError(
        f"{role} {name!r} has {' and '.join(seen)} in {rows} selected rows",
        f"leave these rows out with where={' & '.join(known)}, or fill them beforehand",
    )


def _host(partition: Partition, name: str, engine: Engine) -> tuple[HostArray, HostArray]:
    values, valid = engine.values(partition.frame.get_column(name))
    return engine.to_host(values), engine.to_host(valid)
