"""FrequencyEncode: categories as how often they occur in the rows that were learnt from.

Always true: counts are exact, so values do not depend on the partitioning. Trade-off: the state holds every
distinct value of the fit scope; ``min_count`` drops what is rare before it has to fit memory.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine, Series
from featurestore.errors import DefinitionError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition, Scope, State
from featurestore.transforms.columnwise import Columnwise
from featurestore.transforms.count_learner import CountLearner
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import row_bits, state_rows
from featurestore.transforms.learnt_rows import positions, positions_memory
from featurestore.transforms.selectors import Selection, strings
from featurestore.transforms.value_counts import (
    check_countable,
    counting_memory,
    counts_bytes,
    counts_fingerprint,
    most_frequent,
    require_rows,
    summarize_counts,
)

_STRINGS: Final = strings()


@dataclass(frozen=True)
class FrequencyEncode(CountLearner, Columnwise):
    """Replace a category by the number, or the share, of the rows that have it.

    Scope: fit. State: every distinct value with its count. Boundary rule: counts of all rows of the fit
    scope, the row itself included if it is one of them. Null rule: a null gives null and is no category; the share
    is that of the rows that are not null. A value that was not learnt gives 0.
    Output: int64 counts, or with ``share`` float64.
    Memory: 44 bytes (88 for strings) per row and per learnt value, for one column at a time. To learn, 160
    bytes per row (200 for strings), that column, and its counts; those of all partitions need not fit.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Strings, integers or booleans.
    share : bool
        Whether to give shares instead of counts.
    min_count : int
        Values that occur less often give 0.
    prefix, suffix, rename
        As in :class:`~featurestore.transforms.standardize.Standardize`.

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
    >>> code = FrequencyEncode("c")
    >>> state = code.finish(code.summarize(part, engine))
    >>> code.apply(part, state, engine).frame["c"].to_list()
    [1, 2, 2, None]
    """

    columns: Selection = _STRINGS
    _: KW_ONLY
    share: bool = False
    min_count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.min_count) is not int or not 1 <= self.min_count < 2**63:
            raise DefinitionError(
                f"min_count={self.min_count!r} is not from 1 to below 2**63",
                "give 1 for all values",
            )

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def check(self, one: Field) -> None:
        check_countable(one, "FrequencyEncode")

    def type_of(self, one: Field) -> pa.DataType:
        return pa.float64() if self.share else pa.int64()

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        return ()

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_counts(partition, self.inputs(partition.schema), engine)

    def narrow(self, state: State) -> State:
        # A share needs the count of all, rare ones too.
        return state if self.share else most_frequent(state, None, self.min_count)

    def finish(self, state: State) -> State:
        """Return, per column, the values that occur often enough and what they are replaced by."""
        require_rows(state)
        finished = {}
        for name, counts in most_frequent(state, None).items():
            total = int(counts["count"].to_numpy().sum())
            kept = most_frequent({name: counts}, None, self.min_count)[name].combine_chunks()
            numbers = kept["count"].to_numpy()
            given = numbers / total if self.share and total else numbers.astype(self._dtype)
            finished[name] = pa.table({"value": kept["value"], "given": given})
        return finished

    @property
    def _dtype(self) -> type[np.float64] | type[np.int64]:
        return np.float64 if self.share else np.int64

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        learnt = state[source.name]
        at = positions(values.to_frame(), [values.name], learnt.select(["value"]), engine)
        given = np.append(learnt["given"].to_numpy(), self._dtype(0))
        missing, _ = engine.values(values.is_null())
        return engine.column(target.name, engine.from_host(given)[at], ~missing, target.type)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return max((self._bytes(schema, one, extent) for one in self.inputs(schema)), default=0)

    def _bytes(self, schema: TableSchema, name: str, extent: Extent) -> int:
        # Beside each value the state has what it is replaced by, eight bytes.
        most = 8 * extent.state_bytes // (row_bits(schema[name].type) + 64)
        learnt = min(state_rows(schema, [name], extent), most)
        return positions_memory(schema, [name], extent.rows, learnt) + 8 * learnt

    @property
    def summarizes_in_engine(self) -> bool:
        return True

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return counting_memory(schema, self.inputs(schema), extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return counts_bytes(schema, self.inputs(schema), extent)

    def state_fingerprint(self) -> str:
        return counts_fingerprint(self.columns)
