"""What transformers share that compute statistics: columns and options checked, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from featurestore.engines.quantiles import level_of
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.naming import Renaming, output_names
from featurestore.transforms.selectors import Selection, resolve


def normalise_statistics(
    stats: str | Sequence[str], known: Sequence[str], kind: str, *, quantiles: bool = False
) -> tuple[str, ...]:
    """Return the statistics that a transformer was asked for, as they are kept in a definition.

    Raises
    ------
    DefinitionError
        If there are none, one is not known, or one is given twice.
    """
    chosen = (stats,) if isinstance(stats, str) else tuple(stats)
    strange = [
        one
        for one in chosen
        if one not in known
        and not (quantiles and isinstance(one, str) and level_of(one) is not None)
    ]
    if not chosen or strange or len(set(chosen)) != len(chosen):
        more = " and quantiles ('median', 'q0.25', 'q0.9')" if quantiles else ""
        raise DefinitionError(
            f"{kind} has stats={list(chosen)}", f"use some of {list(known)}{more}, each once"
        )
    return chosen


def check_min_count(min_count: int, kind: str) -> None:
    """Refuse numbers of values below which statistics are null that are none.

    Raises
    ------
    DefinitionError
    """
    if type(min_count) is not int or min_count < 1:
        raise DefinitionError(f"{kind} has min_count={min_count!r}", "use 1 or more")


def check_flag(value: bool, name: str, kind: str) -> None:
    """Refuse what is neither True nor False.

    Raises
    ------
    DefinitionError
    """
    if type(value) is not bool:
        raise DefinitionError(f"{kind} has {name}={value!r}", "use True or False")


def numeric_columns(columns: Selection, schema: TableSchema, kind: str) -> tuple[str, ...]:
    """Return the chosen columns, which have numbers or booleans.

    Raises
    ------
    SchemaError
        For others.
    """
    names = resolve(columns, schema)
    for name in names:
        if not schema[name].is_numeric:
            raise SchemaError(
                f"{kind} cannot work on column {name!r} of type {schema[name].type}",
                "name numeric or boolean columns",
            )
    return names


def made_fields(
    made: Sequence[tuple[str, pa.DataType]], prefix: str | None, rename: Renaming, kind: str
) -> tuple[Field, ...]:
    """Return the outputs of a transformer, of their default names and types."""
    names = output_names([name for name, _ in made], prefix, rename, kind)
    return tuple(Field(name, type_) for name, (_, type_) in zip(names, made, strict=True))


def statistic_type(type_: pa.DataType, stat: str) -> pa.DataType:
    """Return the type of a statistic of values of a type.

    Examples
    --------
    >>> statistic_type(pa.int8(), "sum"), statistic_type(pa.int8(), "max")
    (DataType(int64), DataType(int8))
    """
    if stat == "count":
        return pa.int64()
    if stat == "sum" and is_whole(type_):
        return pa.uint64() if pa.types.is_uint64(type_) else pa.int64()
    if stat not in ("min", "max", "first", "last") or pa.types.is_decimal(type_):
        return pa.float64()
    return type_


def is_whole(type_: pa.DataType) -> bool:
    """Whether values of a type are added exactly: integers and booleans."""
    return bool(pa.types.is_integer(type_) or pa.types.is_boolean(type_))
