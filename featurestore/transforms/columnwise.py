"""Transformers that make one column of one: the names they share, and how they go through columns.

Always true: outputs come in the order of the inputs and have their names, unless ``prefix``, ``suffix``
or ``rename`` say otherwise, so that in a pipeline a step replaces the columns it works on. One column's
arrays are gone before the next one's are made.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import narwhals as nw
import pyarrow as pa

from featurestore.engines.protocol import Engine, Frame, Series
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.naming import normalise_renaming, output_names
from featurestore.transforms.selectors import Selection, normalise_selection, numeric, resolve

_NUMERIC: Final = numeric()


@dataclass(frozen=True)
class Columnwise(Transformer):
    """One output column per input column.

    Subclasses say which columns they take (:meth:`check`), what type comes out (:meth:`type_of`) and
    how one column is made (:meth:`column`).

    Parameters
    ----------
    columns : str, sequence of str or Selector
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.
    """

    columns: Selection = _NUMERIC
    prefix: str = field(default="", kw_only=True)
    suffix: str = field(default="", kw_only=True)
    rename: Any = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", normalise_selection(self.columns))
        object.__setattr__(self, "rename", normalise_renaming(self.rename) or ())

    # --- what a subclass says --------------------------------------------------------------------

    def check(self, one: Field) -> None:
        """Refuse a column that it cannot work on: all but numeric ones.

        Raises
        ------
        SchemaError
        """
        check_numeric(one, type(self).__name__)

    @abstractmethod
    def type_of(self, one: Field) -> pa.DataType:
        """Return the type of the output that is made of a column."""

    @abstractmethod
    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        """Return the output ``target`` of the column ``source``, which has these values."""

    # --- what follows ------------------------------------------------------------------------------

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def selected(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns that it works on: ``inputs``, without those it merely looks at."""
        names = resolve(self.columns, schema)
        for name in names:
            self.check(schema[name])
        return names

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return self.selected(schema)

    def names(self, columns: Sequence[str]) -> dict[str, str]:
        """Return the name of the output for each of the input columns."""
        made = output_names(columns, self.prefix, self.rename, type(self).__name__, self.suffix)
        return dict(zip(columns, made, strict=True))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        names = self.names(self.selected(schema))
        return tuple(Field(name, self.type_of(schema[one])) for one, name in names.items())

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return self.selected(schema)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, frame = partition.schema, partition.frame
        pairs = zip(self.selected(schema), self.outputs(schema), strict=True)
        made = [
            self.column(frame[one], schema[one], target, state, engine) for one, target in pairs
        ]
        return Columns(side_by_side(made))

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


def check_numeric(one: Field, transformer: str) -> None:
    """Refuse columns that are neither numbers, booleans nor decimals.

    Raises
    ------
    SchemaError
    """
    if not one.is_numeric:
        kind = f"a tensor of {one.type}" if one.is_tensor else str(one.type)
        raise SchemaError(
            f"{transformer} takes numeric columns; {one.name!r} is {kind}",
            "select with numeric(), or Categorify strings first",
        )


def require_learnt(state: State) -> None:
    """Refuse the state of no partitions.

    Raises
    ------
    DefinitionError
    """
    if not state:
        raise DefinitionError(
            "there is nothing to learn from: the fit scope has no partitions",
            "choose a fit scope or split that has rows",
        )


def side_by_side(columns: Sequence[Series]) -> Frame | None:
    """Return columns as a frame; None if there are none."""
    if not columns:
        return None
    return nw.concat([one.to_frame() for one in columns], how="horizontal")
