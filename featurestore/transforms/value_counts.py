"""Value counts: how often each value of a column occurs, as a state that merges.

One table per column, ``value`` and ``count``, in ascending order of value, nulls last if there are
any. Always true: the counts are exact and do not depend on the partitioning. Trade-off: the state
holds every distinct value (about 8 bytes plus the value), so it grows with the column's cardinality,
not with the rows. As the tables are in order, states that do not fit memory together are combined a
range of values at a time (``ORDER``), and ``most_frequent`` says what to keep of each range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.protocol import Engine
from featurestore.errors import CorruptionError, DefinitionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, State, encode
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import copied_bytes, is_text
from featurestore.transforms.selectors import Selection

_COUNT: Final = "__fs_count"
ORDER: Final = ("value",)
"""By which the tables of a state are in order."""
NO_ROWS: Final = "there is nothing to learn from: the fit scope has no partitions"
_BY_RANK: Final = [("count", "descending"), ("value", "ascending")]
# Raise it whenever the counts of the same rows change: kept states are found by it.
_VERSION: Final = 1


def require_rows(state: State) -> None:
    """Refuse to finish what was learnt of no rows.

    Raises
    ------
    DefinitionError
    """
    if not state:
        raise DefinitionError(NO_ROWS, "choose a fit scope or split that has rows")


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
    working = (180 if texts else 160) * extent.rows + largest
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


def combine_counts(states: Sequence[State]) -> State:
    """Return the counts of several runs of rows; empty states change nothing."""
    states = [one for one in states if one]
    if len(states) < 2:
        return states[0] if states else {}
    first = states[0]
    for one in states[1:]:
        if set(one) != set(first):
            raise CorruptionError(
                f"counts of columns {sorted(first)} and {sorted(one)} cannot be merged",
                "build the statistics again",
            )
    return {name: _merged([one[name] for one in states]) for name in first}


def most_frequent_first(counts: pa.Table, least: int = 1) -> pa.ChunkedArray:
    """Return the values that occur at least ``least`` times: most frequent first, then by value.

    Null is none of them.
    """
    known = _known(counts, least)
    return known["value"].take(pc.sort_indices(known, sort_keys=_BY_RANK))


def most_frequent(state: State, most: int | None, least: int = 1) -> State:
    """Return the counts of at most ``most`` values that occur at least ``least`` times.

    The most frequent ones, by value among equals, in any order; null is none of them. It does not
    matter whether they are chosen at once or range by range.
    """
    chosen = {}
    for name, counts in state.items():
        known = _known(counts, least)
        if most is not None and known.num_rows > most:
            known = known.take(pc.select_k_unstable(known, most, sort_keys=_BY_RANK))
        chosen[name] = known
    return chosen


def _known(counts: pa.Table, least: int = 1) -> pa.Table:
    """Return counts without null and what occurs too seldom; the same if there is nothing of it."""
    if least <= 1 and not counts["value"].null_count:
        return counts
    wanted = pc.and_(pc.is_valid(counts["value"]), pc.greater_equal(counts["count"], least))
    return counts.filter(wanted)


def _merged(parts: Sequence[pa.Table]) -> pa.Table:
    """Return the counts of one column, those of equal values added."""
    both = _ordered(pa.concat_tables(parts))
    begins = np.flatnonzero(_differs_from_before(both["value"]))
    if len(begins) == both.num_rows:
        return both
    counts = np.add.reduceat(both["count"].to_numpy(), begins)
    return pa.table({"value": both["value"].take(pa.array(begins)), "count": counts})


def _ordered(counts: pa.Table) -> pa.Table:
    order = pc.sort_indices(counts, sort_keys=[("value", "ascending")])
    return counts.take(order).combine_chunks()


def _differs_from_before(values: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each of ascending values, nulls last, whether it is another than the one before."""
    rows, known = len(values), len(values) - values.null_count
    differs = np.ones(rows, dtype=np.bool_)
    differs[known + 1 :] = False
    if known > 1:
        unequal = pc.not_equal(values.slice(1, known - 1), values.slice(0, known - 1))
        differs[1:known] = unequal.to_numpy()
    return differs
