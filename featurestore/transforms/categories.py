"""Categorify: categories as small integers, in an order learnt from the training rows.

Always true: code 0 is null, 1 is a value that was not learnt, 2, 3, ... are the learnt values, most
frequent first and by value among equals; so codes do not depend on the partitioning. Trade-off: the
state holds every distinct value of the fit scope, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import narwhals as nw
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, Scope, State
from featurestore.transforms.columnwise import Columnwise
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import VIEW, grouping_bytes, is_text, state_rows
from featurestore.transforms.selectors import Selection, strings
from featurestore.transforms.value_counts import (
    ORDER,
    check_countable,
    combine_counts,
    counting_memory,
    counts_bytes,
    counts_fingerprint,
    most_frequent,
    most_frequent_first,
    summarize_counts,
)

NULL_CODE: Final = 0
UNSEEN_CODE: Final = 1
FIRST_CODE: Final = 2
_STRINGS: Final = strings()
_LEARNT_TEXT: Final = 24
"""What a text of the vocabulary takes as the engine's own, beside its characters."""


@dataclass(frozen=True)
class Categorify(Columnwise):
    """Replace strings, integers or booleans by codes for an embedding.

    Scope: fit. State: every distinct value with its count. Boundary rule: counts of all rows of the
    fit scope. Null rule: a null gets code 0; a value not among the learnt ones gets code 1. A row of
    the fit scope gets code 1 only where ``max_size`` or ``min_count`` left its value out.
    Output: int32, never null, below ``cardinalities()``.
    Memory: 44 bytes (88 for strings) per row and per value of the vocabulary, for one column at a time. To
    learn, 120 bytes per row (200 for strings), that column, and its
    counts; those of all partitions need not fit.

    Parameters
    ----------
    columns : str, sequence of str or Selector
    max_size : int, optional
        How many values to learn at most: the most frequent ones.
    min_count : int
        How often a value must occur to be learnt.
    prefix, suffix, rename
        As in :class:`~featurestore.transforms.scaling.Standardize`.

    Raises
    ------
    SchemaError
        For columns of other types.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("c", pa.string()),))
    >>> part = Partition(engine.from_arrow(pa.table({"c": ["x", "y", "y", None]})), schema)
    >>> code = Categorify("c")
    >>> state = code.finish(code.summarize(part, engine))
    >>> code.apply(part, state, engine).frame["c"].to_list(), code.cardinalities(state)
    ([3, 2, 2, 0], {'c': 4})
    """

    columns: Selection = _STRINGS
    max_size: int | None = None
    min_count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (1 if self.max_size is None else self.max_size, self.min_count)
        if any(type(one) is not int or not 1 <= one < 2**63 for one in sizes):
            raise DefinitionError(
                f"max_size={self.max_size!r} and min_count={self.min_count!r} must be at least 1 "
                "and below 2**63",
                "leave max_size out for no limit",
            )

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def check(self, one: Field) -> None:
        check_countable(one, "Categorify")

    def type_of(self, one: Field) -> pa.DataType:
        return pa.int32()

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return ()

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_counts(partition, self.inputs(partition.schema), engine)

    def combine(self, earlier: State, later: State) -> State:
        return combine_counts((earlier, later))

    def combine_all(self, states: Sequence[State]) -> State:
        return combine_counts(states)

    def state_order(self) -> tuple[str, ...]:
        return ORDER

    def narrow(self, state: State) -> State:
        return most_frequent(state, self.max_size, self.min_count)

    def finish(self, state: State) -> State:
        """Return, per column, the learnt values in the order of their codes."""
        if not state:
            raise DefinitionError(
                "there is nothing to learn from: the fit scope has no partitions",
                "choose a fit scope or split that has rows",
            )
        out = {}
        for name, counts in state.items():
            ranked = most_frequent_first(counts, self.min_count)
            out[name] = pa.table({"value": ranked.slice(0, self.max_size).combine_chunks()})
        return out

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        codes = _encode(values, state[source.name], engine)
        return engine.column(target.name, codes, None, pa.int32())

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return max(
            (self._coding_bytes(schema, name, extent) for name in self.inputs(schema)), default=0
        )

    def _coding_bytes(self, schema: TableSchema, name: str, extent: Extent) -> int:
        """Return what encoding one column takes: it and its vocabulary, numbered together."""
        learnt, text = state_rows(schema, [name], extent), is_text(schema[name].type)
        together = extent.rows + learnt
        joined = (VIEW if text else 8) * together + (_LEARNT_TEXT if text else 0) * learnt
        grouping = grouping_bytes(schema, [name], together)
        return joined + max(grouping, 12 * together + 5 * extent.rows)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return counting_memory(schema, self.inputs(schema), extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return counts_bytes(schema, self.inputs(schema), extent)

    def cardinalities(self, state: State) -> Mapping[str, int]:
        names = self.names(tuple(state))
        return {names[one]: FIRST_CODE + state[one].num_rows for one in names}

    def state_fingerprint(self) -> str:
        return counts_fingerprint(self.columns)


def _encode(column: Series, vocabulary: pa.Table, engine: Engine) -> Array:
    """Return the code of every row, by numbering vocabulary and column together."""
    xp, name = engine.xp, column.name
    size = vocabulary.num_rows
    known = engine.from_arrow(vocabulary.rename_columns([name]))
    both = nw.concat([known, column.to_frame()], how="vertical")
    groups = engine.codes(both, [name])
    code_of_group = xp.full(len(both), UNSEEN_CODE, dtype=xp.int32)
    code_of_group[groups[:size]] = xp.arange(FIRST_CODE, FIRST_CODE + size, dtype=xp.int32)
    codes = code_of_group[groups[size:]]
    missing, _ = engine.values(column.is_null())
    codes[missing] = NULL_CODE
    return codes
