"""What transformers share that learn sums by group (:mod:`group_sums`).

Always true: sums are exact, so what is learnt is the same bits for every partitioning, and states are in order
of their keys, so that those that do not fit memory together are combined a range of keys at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.schema import TableSchema
from featurestore.transforms.base import Scope, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes
from featurestore.transforms.group_sums import ORDER, combine_sums


class GroupLearner(Transformer):
    """Base of transformers whose states are tables of sums by group and whose outputs are numbers."""

    @property
    def scope(self) -> Scope:
        return Scope.FIT

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def combine(self, earlier: State, later: State) -> State:
        return combine_sums((earlier, later))

    def combine_all(self, states: Sequence[State]) -> State:
        return combine_sums(states)

    def state_order(self) -> tuple[str, ...]:
        return ORDER

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))
