"""What was counted of a column in some rows: a monoid, so that partitions are counted one by one.

Always true: ``combine`` is associative, ``Tally()`` is its identity, and what is counted of rows does not
depend on how they are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Example:
    """A value that is not as expected: where it is (row of its partition, from 0), and what it is."""

    partition: str
    row: int
    value: Any


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of some rows.

    Parameters
    ----------
    rows : int
    failing : int
        Rows that are not as expected.
    lowest, highest : value, optional
        Of the values that were compared; None if there was none.
    bins : tuple of int
        How many values each bin of a reference has; empty if there is no reference.
    examples : tuple of Example
        The first failing rows.
    worst : tuple of (str, int)
        The partitions with most failing rows, most first; ties in table order.
    """

    rows: int = 0
    failing: int = 0
    lowest: Any = None
    highest: Any = None
    bins: tuple[int, ...] = ()
    examples: tuple[Example, ...] = ()
    worst: tuple[tuple[str, int], ...] = ()

    def combine(self, later: Tally) -> Tally:
        """Return the counts of these rows and of later ones.

        Rows of a partition may be counted in slices, as long as these are combined first or in order.
        """
        bins = tuple(
            one + other
            for one, other in zip(self.bins or later.bins, _like(later, self), strict=True)
        )
        return Tally(
            self.rows + later.rows,
            self.failing + later.failing,
            _least(self.lowest, later.lowest, min),
            _least(self.highest, later.highest, max),
            bins,
            (*self.examples, *later.examples)[:EXAMPLES],
            self.worst + later.worst,
        )

    @property
    def share(self) -> float:
        """The share of failing rows; 0 of no rows."""
        return self.failing / self.rows if self.rows else 0.0

    def worst_partitions(self) -> tuple[tuple[str, int], ...]:
        """Return the partitions with most failing rows."""
        counts: dict[str, int] = {}
        for name, count in self.worst:
            counts[name] = counts.get(name, 0) + count
        return tuple(sorted(counts.items(), key=lambda one: -one[1])[:EXAMPLES])


def combined(tallies: Sequence[Tally]) -> Tally:
    """Return the counts of adjacent runs of rows, from the first on."""
    found = Tally()
    for one in tallies:
        found = found.combine(one)
    return found


def _like(later: Tally, earlier: Tally) -> tuple[int, ...]:
    """Return the bins to add to those that are taken first; zeros where only one has any."""
    if earlier.bins and later.bins:
        return later.bins
    return (0,) * len(earlier.bins or later.bins)


def _least(one: Any, other: Any, choose: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return choose(one, other)
