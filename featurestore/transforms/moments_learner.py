"""What transformers share that scale numbers by moments, or by smallest and largest values.

Always true: moments merge exactly (:mod:`moments`), so what is learnt is the same bits for every partitioning,
and kept states serve every transformer of the same columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from featurestore.engines.protocol import Engine, Series
from featurestore.schema import Field, TableSchema
from featurestore.transforms.affine import scaled, scaled_type
from featurestore.transforms.base import Partition, Scope, State
from featurestore.transforms.columnwise import Columnwise
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import rounding_bytes
from featurestore.transforms.moments import (
    combine_moments,
    moments_bytes,
    moments_fingerprint,
    moments_memory,
    summarize_moments,
)


@dataclass(frozen=True)
class MomentsLearner(Columnwise):
    """One scaled column per input column; subclasses say in ``finish`` what values are moved and divided by."""

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    def type_of(self, one: Field) -> pa.DataType:
        return scaled_type(one.type)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_moments(partition, self.inputs(partition.schema), engine)

    def combine(self, earlier: State, later: State) -> State:
        return combine_moments(earlier, later)

    def column(
        self, values: Series, source: Field, target: Field, state: State, engine: Engine
    ) -> Series:
        return scaled(values, source, target, state, engine)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return 16 * extent.rows + rounding_bytes(self.outputs(schema), extent.rows)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return moments_memory(self.inputs(schema), extent.rows)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return moments_bytes(self.inputs(schema))

    def state_fingerprint(self) -> str:
        return moments_fingerprint(self.columns)
