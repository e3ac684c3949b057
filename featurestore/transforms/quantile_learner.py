"""Transformers that learn quantiles of their columns: what they share.

Always true: all of them, over the same columns, learn one state, which is computed and kept once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.schema import TableSchema
from featurestore.transforms.base import Partition, State
from featurestore.transforms.columnwise import Columnwise, require_learnt
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes
from featurestore.transforms.quantiles import (
    column_quantiles,
    combine_quantiles,
    quantiles_bytes,
    quantiles_fingerprint,
    quantiles_memory,
    summarize_quantiles,
    summary_quantiles_bytes,
)


@dataclass(frozen=True)
class QuantileLearner(Columnwise):
    """One output column per input column, of quantiles of the fit scope.

    Subclasses say which quantiles (:meth:`shares`) and make a column of them; ``learnt`` has a state's.
    """

    @abstractmethod
    def shares(self, rows: int) -> Sequence[float]:
        """Return which quantiles it wants of a column with so many finite values; 0.5 is the median."""

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_quantiles(partition, self.selected(partition.schema), engine)

    def combine(self, earlier: State, later: State) -> State:
        return combine_quantiles(earlier, later)

    def finish(self, state: State) -> State:
        """Return the quantiles of each column, none where it has no finite value."""
        require_learnt(state)
        found = column_quantiles(state, self.shares)
        return {name: pa.table({"value": pa.array(one)}) for name, one in found.items()}

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return 16 * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return quantiles_memory(self.selected(schema), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return quantiles_bytes(self.selected(schema), extent.rows)

    def summary_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return summary_quantiles_bytes(self.selected(schema), extent.rows)

    def state_fingerprint(self) -> str:
        return quantiles_fingerprint(self.columns)


def learnt(state: State, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what ``finish`` made of a column: its quantiles, or none."""
    found: np.ndarray[Any, np.dtype[np.float64]] = state[column]["value"].to_numpy()
    return found
