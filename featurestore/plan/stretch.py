"""A stretch of a longer sequence, by reference.

Each partition of a table may need the states of all earlier ones. Named one by one that is half a
million names for a thousand partitions; as stretches of one sequence it is a thousand pairs of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch(Sequence[T_co], Generic[T_co]):
    """The elements ``start <= position < stop`` of a sequence.

    Parameters
    ----------
    of : sequence
        May grow afterwards; what lies before ``stop`` must stay as it is.
    start, stop : int
        ``0 <= start <= stop <= len(of)``.

    Examples
    --------
    >>> some = Stretch("abcdef", 2, 5)
    >>> list(some), some[-1], list(some[1:]), len(some)
    (['c', 'd', 'e'], 'e', ['d', 'e'], 3)
    >>> some == Stretch("cde", 0, 3)
    True
    """

    of: Sequence[T_co]
    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.stop <= len(self.of), (self.start, self.stop, len(self.of))

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[T_co]:
        return (self.of[position] for position in range(self.start, self.stop))

    def __reversed__(self) -> Iterator[T_co]:
        return (self.of[position] for position in range(self.stop - 1, self.start - 1, -1))

    @overload
    def __getitem__(self, at: int) -> T_co: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T_co]: ...
    def __getitem__(self, at: int | slice) -> T_co | Sequence[T_co]:
        positions = range(self.start, self.stop)[at]
        if isinstance(positions, int):
            return self.of[positions]
        if positions.step == 1:
            return Stretch(self.of, positions.start, max(positions.start, positions.stop))
        return tuple(self.of[position] for position in positions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Stretch):
            return NotImplemented
        if self.of is other.of and (self.start, self.stop) == (other.start, other.stop):
            return True
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((len(self), *self[:1], *self[-1:]))

    def __reduce__(self) -> tuple[Any, ...]:
        # Alone, not with all it is a part of.
        return Stretch, (tuple(self), 0, len(self))
