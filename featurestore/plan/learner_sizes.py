"""How large the summaries and states of one transformer are, kept or still to be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final

from featurestore.plan.combining import (
    Combining,
    chains_by_ranges,
    combines_by_ranges,
    expected_chaining,
    most_combining,
)
from featurestore.plan.states import StateNeed, Summary
from featurestore.schema import TableSchema
from featurestore.transforms.base import Transformer
from featurestore.transforms.extent import Extent

_FRAME_BYTES: Final = 2**10
"""What a state's file has for each table beside its columns: names, types, lengths. When combining begins, it
goes by the sizes of files."""


class LearnerSizes:
    """The sizes of what one transformer learns from a table.

    Of a state that was never combined nobody knows the size: how many of the keys or values of one
    partition are those of the others. It is expected to be as large as the largest summary may be,
    which has room for a key or value in every row. What it comes to is known, and held against the
    limit, before it is used.

    Parameters
    ----------
    transformer : Transformer
    schema : TableSchema
        Of the transformer's own table.
    extent : callable
        Returns how much of a partition, given by position, ``summarize`` is handed.
    needs : sequence of StateNeed
        All that will be asked about, in table order.
    kept : mapping of str to int
        Bytes of the states that are kept, by key.
    """

    def __init__(
        self,
        transformer: Transformer,
        schema: TableSchema,
        extent: Callable[[int], Extent],
        needs: Sequence[StateNeed],
        kept: Mapping[str, int],
    ) -> None:
        self._transformer = transformer
        self._schema = schema
        self._extent = extent
        self._extents: dict[int, Extent] = {}
        self._kept = kept
        self._members = members_of(needs)

    def summarized(self, position: int) -> Extent:
        """Return what ``summarize`` is handed of a partition."""
        if position not in self._extents:
            self._extents[position] = self._extent(position)
        return self._extents[position]

    def summary_bytes(self, member: Summary) -> int:
        """Return the Arrow bytes of a summary."""
        kept = self._kept.get(member.key)
        if kept is not None:
            return kept
        return self._transformer.state_bytes(self._schema, self.summarized(member.partition))

    @cached_property
    def largest_summary(self) -> int:
        return max(map(self.summary_bytes, self._members), default=0)

    def state_bytes(self, need: StateNeed) -> int:
        """Return the Arrow bytes of a combined state, expected if it is not kept."""
        kept = self._kept.get(need.key)
        if kept is not None:
            return kept
        return self.largest_summary if need.key and need.members else 0

    def combining(self, need: StateNeed, room: int | None) -> Combining:
        """Return how a state is combined, and what that is expected to take.

        Parameters
        ----------
        need : StateNeed
        room : int, optional
            Bytes that it may take.
        """
        if chains_by_ranges(self._transformer):
            return expected_chaining([self.largest_summary], room, self.largest_summary)
        if not combines_by_ranges(self._transformer):
            # The state so far, and one more summary.
            return most_combining([self.largest_summary], room, by_ranges=False)
        columns = self._transformer.learns_from(self._schema)
        framed = _FRAME_BYTES * (1 + len(columns))
        sizes = [self.summary_bytes(one) + framed for one in need.members]
        return most_combining(sizes, room, by_ranges=True)


def members_of(needs: Iterable[StateNeed]) -> list[Summary]:
    """Return the distinct summaries that the needs of one feature, in table order, are combined of.

    Each need goes on where the one before ended, so only what is new of it is looked at.
    """
    found: dict[str, Summary] = {}
    for need in needs:
        for one in reversed(need.members):
            if one.key in found:
                break
            found[one.key] = one
        if need.own is not None:  # no later need has it among its members
            found[need.own.key] = need.own
    return list(found.values())
