"""What transformers share that make each value of one value of its row.

Always true: a value depends on its own row only, so that nothing is learnt and a partition may be cut
anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from featurestore.errors import SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Scope
from featurestore.transforms.columnwise import Columnwise
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes


@dataclass(frozen=True)
class RowWise(Columnwise):
    """One output column per input column, value by value. See :class:`Columnwise`."""

    row_bytes: ClassVar[int] = 12
    """What one column takes per row beside its output."""

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return self.row_bytes * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)


def check_plain(one: Field, transformer: str) -> None:
    """Refuse columns that are neither integers nor floats.

    Raises
    ------
    SchemaError
    """
    if one.is_tensor or not (pa.types.is_integer(one.type) or pa.types.is_floating(one.type)):
        kind = f"a tensor of {one.type}" if one.is_tensor else str(one.type)
        raise SchemaError(
            f"{transformer} takes integers and floats; {one.name!r} is {kind}",
            "choose other columns, or Cast it to float64 first",
        )
