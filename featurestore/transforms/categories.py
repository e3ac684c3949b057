"""Categorify: categories as small integers, in an order learnt from the training rows.

Always true: code 0 is null, 1 is a value that was not learnt, 2, 3, ... are the learnt values, most
frequent first and by value among equals; so codes do not depend on the partitioning. With ``n`` buckets for what
was not learnt, those are 1 to ``n``, and learnt values follow. Trade-off: the state holds every distinct value
of the fit scope, exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Final, TypeAlias, cast

import pyarrow as pa

from featurestore.engines.finding import NOWHERE
from featurestore.engines.hashing import hash_columns
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, Scope, State, encode
from featurestore.transforms.columnwise import Columnwise
from featurestore.transforms.count_learner import CountLearner
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import state_rows
from featurestore.transforms.learnt_rows import positions, positions_memory
from featurestore.transforms.selectors import Selection, strings
from featurestore.transforms.value_counts import (
    check_countable,
    combine_counts,
    counting_memory,
    counts_bytes,
    counts_fingerprint,
    most_frequent,
    most_frequent_first,
    require_rows,
    summarize_counts,
)

NULL_CODE: Final = 0
UNSEEN_CODE: Final = 1
_STRINGS: Final = strings()
_MOST_BUCKETS: Final = 2**20
_SEED: Final = 0
Shared: TypeAlias = "bool | Sequence[Sequence[str]]"


@dataclass(frozen=True)
class Categorify(CountLearner, Columnwise):
    """Replace strings, integers or booleans by codes for an embedding.

    Scope: fit. State: every distinct value with its count. Boundary rule: counts of all rows of the
    fit scope. Null rule: a null gets code 0; a value not among the learnt ones gets code 1, or one of 1 to
    ``oov_buckets`` by its hash. A row of the fit scope gets such a code only where ``max_size`` or ``min_count`` left
    its value out.
    Output: int32, never null, below ``cardinalities()``.
    Memory: 44 bytes (88 for strings) per row and per value of the vocabulary, for one column at a time. To
    learn, 160 bytes per row (200 for strings), that column, and its
    counts; those of all partitions need not fit.

    Parameters
    ----------
    columns : str, sequence of str or Selector
    max_size : int, optional
        How many values to learn at most: the most frequent ones.
    min_count : int
        How often a value must occur to be learnt.
    oov_buckets : int
        Into how many codes values that were not learnt are hashed.
    shared : bool or sequence of sequences of str
        True: all columns learn one vocabulary together, so that a value has one code wherever it stands, and its
        counts are those of all of them. Or groups of columns that do so; columns of no group learn by
        themselves. Columns of one group are of one type.
    prefix, suffix, rename
        As in :class:`~featurestore.transforms.standardize.Standardize`.

    Raises
    ------
    SchemaError
        For columns of other types, or of several types that share a vocabulary.

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
    _: KW_ONLY
    max_size: int | None = None
    min_count: int = 1
    oov_buckets: int = 1
    shared: Shared = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shared", _normalise_shared(self.shared))
        if type(self.oov_buckets) is not int or not 1 <= self.oov_buckets <= _MOST_BUCKETS:
            raise DefinitionError(
                f"oov_buckets={self.oov_buckets!r} is not from 1 to {_MOST_BUCKETS}",
                "1 gives every value that was not learnt the same code",
            )
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

    def spec(self) -> dict[str, Json]:
        # What was defined before there were these keeps its fingerprint.
        spec, plain = super().spec(), {"oov_buckets": 1, "shared": False}
        params = cast("Mapping[str, Json]", spec["params"])
        kept = {
            name: value
            for name, value in params.items()
            if name not in plain or getattr(self, name) != plain[name]
        }
        return {**spec, "params": kept}

    def check(self, one: Field) -> None:
        check_countable(one, "Categorify")

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = super().inputs(schema)
        for together in self._vocabularies(names):
            types = {name: schema[name].type for name in together}
            if len(set(types.values())) > 1:
                raise SchemaError(
                    f"Categorify has columns { ({n: str(k) for n, k in types.items()}) } share a "
                    "vocabulary",
                    "cast them to one type, or let them learn by themselves",
                )
        return names

    def _vocabularies(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the columns that learn together, for each vocabulary."""
        if self.shared is True:
            return [tuple(names)] if names else []
        groups = self.shared or ()
        unknown = sorted({name for group in groups for name in group} - set(names))
        if unknown:
            raise SchemaError(
                f"shared= names {unknown}, which are not among the columns {list(names)}",
                "name them in columns too",
            )
        grouped = {name: tuple(group) for group in groups for name in group}
        return list(dict.fromkeys(grouped.get(name, (name,)) for name in names))

    def type_of(self, one: Field) -> pa.DataType:
        return pa.int32()

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        return tuple(one.name for one in self.outputs(schema))

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return ()

    def summarize(self, partition: Partition, engine: Engine) -> State:
        names = self.inputs(partition.schema)
        if not self.shared:
            return summarize_counts(partition, names, engine)
        state = {}
        for together in self._vocabularies(names):
            counts = summarize_counts(partition, together, engine)
            state[_key_of(together)] = combine_counts([{"": counts[one]} for one in together])[""]
        return state

    def narrow(self, state: State) -> State:
        return most_frequent(state, self.max_size, self.min_count)

    def most_kept(self, table: str) -> int | None:
        return self.max_size

    def finish(self, state: State) -> State:
        """Return, per column, the learnt values in the order of their codes."""
        require_rows(state)
        out = {}
        for name, counts in state.items():
            ranked = most_frequent_first(counts, self.min_count)
            out[name] = pa.table({"value": ranked.slice(0, self.max_size).combine_chunks()})
        return out

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        (key,) = [one for one in state if source.name in self._columns_of(one)]
        codes = _encode(values, state[key], self.oov_buckets, engine)
        return engine.column(target.name, codes, None, pa.int32())

    def _columns_of(self, key: str) -> tuple[str, ...]:
        """Return the columns whose vocabulary a table of a state is."""
        return tuple(json.loads(key)) if self.shared else (key,)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return max(
            (self._coding_bytes(schema, name, extent) for name in self.inputs(schema)), default=0
        )

    def _coding_bytes(self, schema: TableSchema, name: str, extent: Extent) -> int:
        """Return what encoding one column takes: it and its vocabulary, numbered together."""
        learnt = state_rows(schema, [name], extent)
        hashed = 40 * extent.rows if self.oov_buckets > 1 else 0
        # Its codes do not exist yet while the values are looked up.
        return hashed + positions_memory(schema, [name], extent.rows, learnt) - 4 * extent.rows

    @property
    def summarizes_in_engine(self) -> bool:
        return True

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return counting_memory(schema, self.inputs(schema), extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return counts_bytes(schema, self.inputs(schema), extent)

    def cardinalities(self, state: State) -> Mapping[str, int]:
        sizes = {
            one: 1 + self.oov_buckets + vocabulary.num_rows
            for key, vocabulary in state.items()
            for one in self._columns_of(key)
        }
        names = self.names(tuple(sizes))
        return {names[one]: size for one, size in sizes.items()}

    def state_fingerprint(self) -> str:
        counts = counts_fingerprint(self.columns)
        return fingerprint("shared", counts, encode(self.shared)) if self.shared else counts


def _normalise_shared(shared: Shared) -> bool | tuple[tuple[str, ...], ...]:
    if isinstance(shared, bool):
        return shared
    groups = tuple(() if isinstance(group, str) else tuple(group) for group in shared)
    names = [name for group in groups for name in group]
    if not all(groups) or len(set(names)) != len(names):
        raise DefinitionError(
            f"shared={shared!r} does not divide columns into groups",
            "give True, or lists of different names: shared=[['origin', 'dest']]",
        )
    return groups or False


def _key_of(together: Sequence[str]) -> str:
    return json.dumps(list(together))


def _encode(column: Series, vocabulary: pa.Table, buckets: int, engine: Engine) -> Array:
    """Return the code of every row."""
    xp, frame = engine.xp, column.to_frame()
    codes = positions(frame, [column.name], vocabulary, engine)
    unseen = codes == NOWHERE
    codes += NULL_CODE + 1 + buckets
    codes[unseen] = UNSEEN_CODE
    if buckets > 1 and bool(unseen.any()):
        unknown = engine.take(frame, xp.nonzero(unseen)[0])
        hashed = hash_columns(engine, unknown, [column.name], _SEED) % xp.uint64(buckets)
        codes[unseen] = UNSEEN_CODE + hashed.astype(xp.int32)
    missing, _ = engine.values(column.is_null())
    codes[missing] = NULL_CODE
    return codes
