"""Counts by name, as every partition of a table has them: many mappings that share their names.

A table of 250 columns has two of them in each partition's entry, and the driver holds the entries of all
partitions. As dictionaries with texts of their own they take 50 kB a partition, which grows with the rows;
here the names are kept once for all, and a value takes one to eight bytes.

Always true: it is a mapping like any other, equal to a dictionary with the same items, in the same order.
The trade-off: a look-up takes a little longer, and it cannot be changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Final

_KINDS: Final = (("B", 2**8), ("H", 2**16), ("I", 2**32))
_REMEMBERED: Final = 10_000
"""How many lists of names are kept; most tables need one for each column group."""


class _Names:
    """Names in their order, and where each is."""

    __slots__ = ("names", "positions")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.positions = {name: at for at, name in enumerate(names)}


_known: Final[dict[tuple[str, ...], _Names]] = {}


class Counts(Mapping[str, int]):
    """An immutable mapping from names to counts that shares its names with others like it.

    Parameters
    ----------
    counts : mapping of str to int
        Whole numbers below 2**63.

    Examples
    --------
    >>> one, two = Counts({"a": 1, "b": 300}), Counts({"a": 2, "b": 0})
    >>> one["b"], list(two), one == {"b": 300, "a": 1}
    (300, ['a', 'b'], True)
    """

    __slots__ = ("_shared", "_values")

    _shared: _Names
    _values: array[int]

    def __init__(self, counts: Mapping[str, int]) -> None:
        if isinstance(counts, Counts):
            self._shared, self._values = counts._shared, counts._values
            return
        self._shared = _shared(tuple(counts))
        values = counts.values()
        least, most = min(values, default=0), max(values, default=0)
        fitting = (kind for kind, limit in _KINDS if least >= 0 and most < limit)
        self._values = array(next(fitting, "q"), values)

    def __getitem__(self, name: str) -> int:
        return self._values[self._shared.positions[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shared.names)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._shared.positions

    def __reduce__(self) -> tuple[type[Counts], tuple[dict[str, int]]]:
        # Names that are the same objects are written once in what is pickled together.
        return Counts, (dict(self),)

    def __repr__(self) -> str:
        return repr(dict(self))


def _shared(names: tuple[str, ...]) -> _Names:
    known = _known.get(names)
    if known is None:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        known = _known[names] = _Names(names)
    return known
