"""Hash and HashCross: values as one of so many codes, without a vocabulary.

Always true: the code of a value is the same in every table, on every engine and in every version of this
package (``engines.hashing``); code 0 is null, as in ``Categorify``. Trade-off: values that share a code
cannot be told apart; of ``n`` values, about ``n / buckets`` share one with a given value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.blocks import blocks
from featurestore.engines.coded import row_codes
from featurestore.engines.hashing import hash_columns
from featurestore.engines.protocol import Array, Engine, Frame, Series
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.columnwise import side_by_side
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes, is_text, rounding_bytes
from featurestore.transforms.row_wise import RowWise
from featurestore.transforms.selectors import Selection, normalise_selection, resolve, strings

_STRINGS: Final = strings()
_BLOCK: Final = 16_384
_ROW_BYTES: Final = 64
_TEXT_BYTES: Final = 100
"""What hashing takes per row of a block, and what it takes more for texts, beside their characters."""
NULL_CODE: Final = 0
MOST_BUCKETS: Final = 2**31 - 2


@dataclass(frozen=True)
class Hash(RowWise):
    """Strings, integers or booleans as codes 1, 2, ..., ``buckets`` by their hash.

    Scope: none. State: none. Null rule: a null gets code 0. Boundary rule: a value depends on its own row
    only; equal values have equal codes, in whatever column, for one ``seed``. Integers of different widths
    are equal if their values are.
    Output: int32, never null, below ``buckets + 1``. Memory: for 16,384 rows at a time, 64 bytes
    per row; of texts 164, and twice their characters.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Strings, integers or booleans.
    buckets : int
        How many codes besides that of null.
    seed : int
        Another seed gives independent codes.
    prefix, suffix : str
        Put around the input's name; by default the output replaces the input in a pipeline.
    rename : mapping of str to str
        Output names of single columns.

    Raises
    ------
    DefinitionError
        For another number of buckets.
    SchemaError
        For columns of other types.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, schema = PolarsEngine(), TableSchema((Field("city", pa.string()),))
    >>> part = Partition(engine.from_arrow(pa.table({"city": ["Rome", None, "Oslo"]})), schema)
    >>> Hash("city", 100).apply(part, {}, engine).frame["city"].to_list()
    [55, 0, 4]
    """

    columns: Selection = _STRINGS
    buckets: int = 1024
    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_buckets(self.buckets, self.seed, "Hash")

    def check(self, one: Field) -> None:
        check_hashable(one, "Hash")

    def type_of(self, one: Field) -> pa.DataType:
        return pa.int32()

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def code_counts(self, schema: TableSchema) -> Mapping[str, int]:
        return dict.fromkeys(self.codes(schema), self.buckets + 1)

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return ()

    def compared(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one for one in self.selected(schema) if schema[one].is_string)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        if not partition.coded:
            return super().apply(partition, state, engine)
        made = []
        pairs = zip(self.selected(partition.schema), self.outputs(partition.schema), strict=True)
        for one, target in pairs:
            if one in partition.coded:
                codes = self._of_dictionary(partition.coded[one], engine)
                made.append(engine.column(target.name, codes, None, target.type))
            else:
                source = partition.schema[one]
                made.append(self.column(partition.frame[one], source, target, state, engine))
        return Columns(side_by_side(made))

    def _of_dictionary(self, coded: pa.DictionaryArray, engine: Engine) -> Array:
        """Return the codes of texts of which each different one is hashed once."""
        texts = engine.from_arrow(pa.table({"text": coded.dictionary}))
        codes = bucket_codes(engine, texts, self.buckets, self.seed)
        found, _ = row_codes(coded, np.append(codes, np.int32(NULL_CODE)))
        return found

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        codes = bucket_codes(engine, values.to_frame(), self.buckets, self.seed)
        return engine.column(target.name, codes, None, pa.int32())

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        each = [hashing_bytes(schema, [name], extent) for name in self.inputs(schema)]
        return max(each, default=0) + rounding_bytes(self.outputs(schema), extent.rows)


@dataclass(frozen=True)
class HashCross(Transformer):
    """Several columns together as one code by their hash: a feature for each combination of values.

    Scope: none. State: none. Null rule: a row with a null in any of the columns gets code 0.
    Boundary rule: a value depends on its own row only. The order of the columns matters.
    Output: int32, never null, below ``buckets + 1``. Memory: for 16,384 rows at a time, 64 bytes
    per row; with texts 164, and twice their characters.

    Parameters
    ----------
    columns : sequence of str or Selector
        Two or more; strings, integers or booleans.
    buckets : int
        How many codes besides that of null.
    seed : int
        Another seed gives independent codes.
    output : str, optional
        By default the columns' names with ``_x_`` between them.

    Raises
    ------
    DefinitionError
        For another number of buckets, or fewer than two columns.
    SchemaError
        For columns of other types.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> table = pa.table({"city": ["Rome", None, "Oslo"], "hour": [7, 8, 9]})
    >>> schema = TableSchema(tuple(Field(one.name, one.type) for one in table.schema))
    >>> part = Partition(engine.from_arrow(table), schema)
    >>> HashCross(["city", "hour"], 100).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'city_x_hour': [100, 0, 86]}
    """

    columns: Selection
    buckets: int = 1024
    _: KW_ONLY
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", normalise_selection(self.columns))
        check_buckets(self.buckets, self.seed, "HashCross")

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            check_hashable(schema[name], "HashCross")
        if len(names) < 2:
            raise DefinitionError(
                f"HashCross has the columns {list(names)}", "name two or more, or use Hash"
            )
        return names

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        name = "_x_".join(self.inputs(schema)) if self.output is None else self.output
        return (Field(name, pa.int32()),)

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def code_counts(self, schema: TableSchema) -> Mapping[str, int]:
        return dict.fromkeys(self.codes(schema), self.buckets + 1)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        frame = partition.frame.select(*self.inputs(partition.schema))
        codes = bucket_codes(engine, frame, self.buckets, self.seed)
        (target,) = self.outputs(partition.schema)
        return Columns(side_by_side([engine.column(target.name, codes, None, target.type)]))

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        rounding = rounding_bytes(self.outputs(schema), extent.rows)
        return hashing_bytes(schema, self.inputs(schema), extent) + rounding

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))


def bucket_codes(engine: Engine, frame: Frame, buckets: int, seed: int) -> Array:
    """Return ``int32 [rows]``: 1 to ``buckets`` by the hash of all columns, 0 where one is null."""
    xp: Any = engine.xp
    out = xp.empty(len(frame), dtype=xp.int32)
    for where in blocks(len(frame), xp, _BLOCK):
        part = frame[where]
        hashed = hash_columns(engine, part, frame.columns, seed) % xp.uint64(buckets)
        out[where] = hashed.astype(xp.int32) + 1
        for name in frame.columns:
            if part[name].null_count():
                missing, _ = engine.values(part[name].is_null())
                out[where][missing] = NULL_CODE
    return out


def hashing_bytes(schema: TableSchema, names: Sequence[str], extent: Extent) -> int:
    """Return what hashing columns takes."""
    rows = min(extent.rows, _BLOCK)
    texts = [name for name in names if is_text(schema[name].type)]
    widest = extent.widest_row or extent.input_bytes
    characters = min(extent.bytes_of(texts), rows * widest) if texts else 0
    return rows * (_ROW_BYTES + (_TEXT_BYTES if texts else 0)) + 2 * characters


def check_buckets(buckets: object, seed: object, transformer: str) -> None:
    """Refuse what is no number of buckets, or no seed.

    Raises
    ------
    DefinitionError
    """
    whole = type(buckets) is int and type(seed) is int
    if not whole or not 1 <= buckets <= MOST_BUCKETS or not 0 <= seed < 2**63:  # type: ignore[operator]
        raise DefinitionError(
            f"{transformer} has buckets={buckets!r} and seed={seed!r}",
            f"give 1 to {MOST_BUCKETS} buckets, and a seed from 0 below 2**63",
        )


def check_hashable(one: Field, transformer: str) -> None:
    """Refuse columns other than strings, integers and booleans.

    Raises
    ------
    SchemaError
    """
    discrete = one.is_string or pa.types.is_integer(one.type) or pa.types.is_boolean(one.type)
    if one.is_tensor or not discrete:
        kind = f"a tensor of {one.type}" if one.is_tensor else str(one.type)
        raise SchemaError(
            f"{transformer} takes strings, integers and booleans; column {one.name!r} is {kind}",
            "choose other columns, Bucketize numbers first, or cast them",
        )
