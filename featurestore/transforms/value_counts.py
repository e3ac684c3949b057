"""Value counts: how often each value of a column occurs, as a state that merges.

One table per column, ``value`` and ``count``, in ascending order of value, nulls last if there are
any. Always true: the counts are exact and do not depend on the partitioning. Trade-off: the state
holds every distinct value (about 8 bytes plus the value), so it grows with the column's cardinality,
not with the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import narwhals as nw
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.protocol import Engine
from featurestore.errors import CorruptionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, State, encode
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import copied_bytes, is_text
from featurestore.transforms.selectors import Selection

_COUNT: Final = "__fs_count"
# Raise it whenever the counts of the same rows change: kept states are found by it.
_VERSION: Final = 1


def check_countable(one: Field, transformer: str) -> None:
    """Refuse columns whose values are not discrete.

    Raises
    ------
    SchemaError
        Unless it is a string, integer or boolean column.
    """
    discrete = one.is_string or pa.types.is_integer(one.type) or pa.types.is_boolean(one.type)
    if one.is_tensor or not discrete:
        kind = f"a tensor of {one.type}" if one.is_tensor else str(one.type)
        raise SchemaError(
            f"{transformer} counts distinct values; column {one.name!r} is {kind}",
            "choose string, integer or boolean columns, or cast it",
        )


def counts_fingerprint(columns: Selection) -> str:
    """Return the fingerprint of a state of counts, whichever transformer learns it."""
    return fingerprint("value counts", _VERSION, encode(columns))


def counts_bytes(schema: TableSchema, columns: Sequence[str], extent: Extent) -> int:
    """Return the most Arrow bytes of a state of counts: every value may be there once."""
    return copied_bytes(schema, columns, extent) + 8 * extent.rows * len(columns)


def counting_memory(schema: TableSchema, columns: Sequence[str], extent: Extent) -> int:
    """Return what ``summarize_counts`` takes, its result included: all columns' counts, and one being
    counted.
    """
    texts = any(is_text(schema[name].type) for name in columns)
    largest = max((extent.bytes_of([name]) for name in columns), default=0)
    working = (200 if texts else 130) * extent.rows + largest
    return counts_bytes(schema, columns, extent) + working


def summarize_counts(partition: Partition, columns: Sequence[str], engine: Engine) -> State:
    """Return the value counts of a partition's columns (strings, integers, booleans)."""
    state = {}
    for name in columns:
        counted = (
            partition.frame.select(nw.col(name).alias("value"))
            .group_by("value")
            .agg(nw.len().cast(nw.Int64).alias(_COUNT))
        )
        table = engine.to_arrow(counted)
        type_ = partition.schema[name].type
        values = table["value"].cast(type_)
        state[name] = _ordered(pa.table({"value": values, "count": table[_COUNT]}))
    return state


def combine_counts(earlier: State, later: State) -> State:
    """Return the counts of two runs of rows; ``{}`` on either side returns the other."""
    if not earlier or not later:
        return earlier or later
    if set(earlier) != set(later):
        raise CorruptionError(
            f"counts of columns {sorted(earlier)} and {sorted(later)} cannot be merged",
            "build the statistics again",
        )
    return {name: _merge(earlier[name], later[name]) for name in earlier}


def most_frequent_first(counts: pa.Table) -> pa.Table:
    """Return the counts of the values that are not null: most frequent first, then by value."""
    known = counts.filter(pc.is_valid(counts["value"]))
    return known.sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()


def _merge(earlier: pa.Table, later: pa.Table) -> pa.Table:
    both = pa.concat_tables([earlier, later]).group_by("value", use_threads=False)
    summed = both.aggregate([("count", "sum")])
    return _ordered(pa.table({"value": summed["value"], "count": summed["count_sum"]}))


def _ordered(counts: pa.Table) -> pa.Table:
    order = pc.sort_indices(counts, sort_keys=[("value", "ascending")])
    return counts.take(order).combine_chunks()
