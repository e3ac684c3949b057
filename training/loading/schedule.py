"""In which order several sources take turns, such that each has its share of any stretch.

A cycle of turns is made once and repeats for ever: turn ``j`` of a source that has ``n`` in a cycle is due at
``(j + 1/2) / n`` of it, and turns come as they are due [1]_. How often a source had its turn before a position
is computed, not counted.

Always true: of the first ``p`` turns a source with the share ``s`` has had ``p * s``, give or take
``(1 + s * sources) / 2``; of whole cycles exactly. A schedule depends on the weights alone.

The trade-off: a share is a multiple of 1 / ``CYCLE``, unless the weights are to each other as whole numbers
of a smaller sum; no source has less than one turn of a cycle.

.. [1] R. R. Inman, R. L. Bulfin, "Sequencing JIT Mixed-Model Assembly Lines", Management Science 37(7), 1991.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np

from featurestore.errors import InvalidInputError
from training.loading.mixing import Rows

CYCLE: Final = 1 << 14


@dataclass(frozen=True)
class Schedule:
    """The turns of several sources.

    Parameters
    ----------
    turns : tuple of int
        How many each has in a cycle; from 1 on.

    Examples
    --------
    >>> schedule = Schedule.of([3, 1])
    >>> schedule.at(0, 8).tolist(), schedule.before(6)
    ([0, 0, 1, 0, 0, 0, 1, 0], (5, 1))
    """

    turns: tuple[int, ...]

    @classmethod
    def of(cls, weights: Sequence[float]) -> Schedule:
        """Return the schedule of sources whose shares are as their weights.

        Raises
        ------
        InvalidInputError
            If there are none, one is not positive and finite, or they are more than a cycle has turns.
        """
        bad = [one for one in weights if isinstance(one, bool) or not 0 < one < math.inf]
        if bad or not weights:
            raise InvalidInputError(
                f"weights={list(weights)} are no shares",
                "give a positive number for each loader; leave out those that have no share",
            )
        if len(weights) > CYCLE:
            raise InvalidInputError(f"{len(weights)} loaders are more than {CYCLE}", "mix fewer")
        exact = [_fraction(one) for one in weights]
        smallest = math.lcm(*(one.denominator for one in exact))
        whole = [int(one * smallest) for one in exact]
        divisor = math.gcd(*whole)
        if sum(whole) // divisor <= CYCLE:
            return cls(tuple(one // divisor for one in whole))
        return cls(_rounded(exact))

    @property
    def cycle(self) -> int:
        """Turns of a cycle."""
        return sum(self.turns)

    def at(self, start: int, stop: int) -> Rows:
        """Return whose turns ``[start, stop)`` are."""
        places = (np.arange(stop - start, dtype=np.int64) + start % self.cycle) % self.cycle
        found: Rows = self._order[places]
        return found

    def before(self, position: int) -> tuple[int, ...]:
        """Return how many turns each had before a position."""
        cycles, place = divmod(position, self.cycle)
        had = np.bincount(self._order[:place], minlength=len(self.turns)).tolist()
        return tuple(cycles * turns + one for turns, one in zip(self.turns, had, strict=True))

    def place(self, source: int, turn: int) -> int:
        """Return the position at which a source has a turn, which counts from 0."""
        cycles, rest = divmod(turn, self.turns[source])
        return cycles * self.cycle + int(np.flatnonzero(self._order == source)[rest])

    @cached_property
    def _order(self) -> Rows:
        """Whose turn each of a cycle is; of those that are due at once, the first source's comes first."""
        due = [
            (Fraction(2 * turn + 1, 2 * count), source)  # of floats, rounding would tell ties apart
            for source, count in enumerate(self.turns)
            for turn in range(count)
        ]
        return np.array([source for _, source in sorted(due)], dtype=np.int64)


def _fraction(weight: float) -> Fraction:
    """Return a weight; the simple fraction that it is as near to as a float is, such as 3/10 or 1/3."""
    exact = Fraction(weight)
    simple = exact.limit_denominator(CYCLE)
    return simple if abs(simple - exact) * 2**50 <= exact else exact


def _rounded(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Return turns of a cycle by largest remainders, at least one each."""
    total = sum(shares)
    exact = [one * CYCLE / total for one in shares]
    turns = [max(1, math.floor(one)) for one in exact]
    by_rest = sorted(range(len(exact)), key=lambda one: (turns[one] - exact[one], one))
    for one in by_rest[: max(0, CYCLE - sum(turns))]:
        turns[one] += 1
    return tuple(turns)
