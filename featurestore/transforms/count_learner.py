"""What transformers share that learn how often values occur (:mod:`value_counts`).

Always true: counts are whole numbers, so what is learnt is the same for every partitioning, and states are in
order of their values, so that those that do not fit memory together are combined a range of values at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.transforms.base import State, Transformer
from featurestore.transforms.value_counts import ORDER, combine_counts


class CountLearner(Transformer):
    """Base of transformers whose states are tables of values and their counts."""

    def combine(self, earlier: State, later: State) -> State:
        return combine_counts((earlier, later))

    def combine_all(self, states: Sequence[State]) -> State:
        return combine_counts(states)

    def state_order(self) -> tuple[str, ...]:
        return ORDER
