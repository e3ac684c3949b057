"""What transformers that compare the rows of one timestamp share.

Always true: all rows of a time are in one partition, so nothing else has to be known; what is made of
them depends on their values and not on their order.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.windows import canonical
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State
from featurestore.transforms.columnwise import Columnwise, side_by_side
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import grouping_bytes, rounding_bytes
from featurestore.transforms.grouping import By, normalise_by, require_time

ROW_BYTES = 128
"""What comparing the rows of one column takes, per row."""


def time_groups(schema: TableSchema, by: By, kind: str) -> tuple[str, ...]:
    """Return the columns that say which rows are compared: the time, then ``by``.

    Raises
    ------
    DefinitionError
        If the table has no time column, or a column is a tensor or holds lists.
    """
    time = require_time(schema, kind, "compares the rows of one time")
    names = normalise_by(by) or ()
    for name in names:
        one = schema[name]
        if one.is_tensor or pa.types.is_nested(one.type):
            what = "tensor" if one.is_tensor else str(one.type)
            raise DefinitionError(
                f"{kind} cannot group by {what} column {name!r}", "group by a scalar column"
            )
    return tuple(dict.fromkeys((time, *names)))


def numbers_of(xp: Any, engine: Engine, column: Series) -> tuple[Array, Array, Array]:
    """Return a column's values as numbers, which are valid, and which are NaN."""
    values, valid = engine.values(column)
    if values.dtype == xp.bool_:
        values = values.astype(xp.int8)
    missing = xp.isnan(values) if values.dtype.kind == "f" else xp.zeros_like(valid)
    return values, valid, missing


def check_by(transformer: WithinTime) -> None:
    """Refuse ``by`` for what learns from a fit scope.

    Raises
    ------
    DefinitionError
    """
    if transformer.by is not None and not transformer.crosses:
        raise DefinitionError(
            f"{type(transformer).__name__} has by={list(transformer.by)} and learns from a fit scope",
            'leave out by=, or compare the rows of each time with within="time"',
        )


@dataclass(frozen=True)
class WithinTime(Columnwise):
    """One output column per input column, of the rows of each timestamp.

    Subclasses say what becomes of one column (:meth:`crossed`). One that can also learn from a fit
    scope says which of both it does (:attr:`crosses`), and how it applies what it learnt (``column``).

    Parameters
    ----------
    by : str or sequence of str, optional
        Compare only rows that agree in these columns too (a sector); nulls are a group.
    """

    by: By = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "by", normalise_by(self.by))

    @property
    def crosses(self) -> bool:
        """Whether it compares rows of one time, and learns nothing."""
        return True

    @abstractmethod
    def crossed(
        self, xp: Any, codes: Array, values: Array, valid: Array, missing: Array
    ) -> tuple[Array, Array | None]:
        """Return what becomes of a column, and which rows have a value (None: all).

        Parameters
        ----------
        xp : module
        codes : Array
            ``int64 [n]`` in ``[0, n)``, equal for rows that are compared.
        values, valid, missing : Array
            ``[n]``: numbers, where they are not null, and where they are NaN.
        """

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        raise NotImplementedError(f"{type(self).__name__} learns nothing to apply")

    @property
    def scope(self) -> Scope:
        return Scope.NONE if self.crosses else Scope.FIT

    @property
    def slicing(self) -> Slicing:
        return Slicing.TIMES if self.crosses else Slicing.ROWS

    def groups(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns that say which rows are compared."""
        return time_groups(schema, self.by, type(self).__name__)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        groups = self.groups(schema) if self.crosses else ()
        return tuple(dict.fromkeys((*groups, *self.selected(schema))))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        return super().outputs(schema)

    def type_of(self, one: Field) -> pa.DataType:
        return pa.float64()

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        if not self.crosses:
            return super().apply(partition, state, engine)
        schema, xp = partition.schema, engine.xp
        codes = engine.codes(partition.frame, self.groups(schema))
        out = []
        for source, target in zip(self.selected(schema), self.outputs(schema), strict=True):
            values, valid, missing = numbers_of(xp, engine, partition.frame[source])
            made, known = self.crossed(xp, codes, values, valid, missing)
            if known is not None:
                made = canonical(xp, made, known)
            out.append(engine.column(target.name, made, known, target.type))
        return Columns(side_by_side(out))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        grouping = grouping_bytes(schema, self.groups(schema), extent.rows)
        return rounding + max(grouping, ROW_BYTES * extent.rows)
