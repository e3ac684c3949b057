"""How much of a table one call of a transformer's verb is handed, known before it runs.

Sizes are Arrow bytes as recorded when the columns were written, so that what a call needs can be said
from metadata alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from featurestore.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Extent:
    """Rows and bytes of what one call works on.

    Parameters
    ----------
    rows : int
    column_bytes : mapping of str to int
        Arrow bytes of each input column in these rows.
    widest_row : int
        The most bytes that one row of the inputs takes.
    state_bytes : int
        Arrow bytes of the state that ``apply`` is handed.
    source_rows, source_bytes : int
        Rows of another table that are handed over as well, and the bytes of the columns read of it.
    source_widest_row : int
        The most bytes that one row of it takes, of those handed over and of those its state is of; of a
        state of rows by key of this table's own, the most that a row of any of its partitions takes.
    state_rows : int
        The most rows that the state was learnt of; 0 if nobody knows.
    nulls : mapping of str to int
        How many nulls an input column has at most; of one that is not named it may be every row.

    Raises
    ------
    InvalidInputError
        If a number is negative.

    Examples
    --------
    >>> Extent(1000, {"x": 8000, "day": 4000}).input_bytes
    12000
    """

    rows: int
    column_bytes: Mapping[str, int] = field(default_factory=dict)
    widest_row: int = 0
    state_bytes: int = 0
    source_rows: int = 0
    source_bytes: int = 0
    source_widest_row: int = 0
    state_rows: int = 0
    nulls: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = (
            self.rows,
            self.widest_row,
            self.state_bytes,
            self.source_rows,
            self.source_bytes,
            self.source_widest_row,
            self.state_rows,
        )
        if min(*numbers, *self.column_bytes.values(), *self.nulls.values()) < 0:
            raise InvalidInputError(f"{self} has a negative size", "sizes are 0 or more")

    @property
    def input_bytes(self) -> int:
        return sum(self.column_bytes.values())

    def bytes_of(self, columns: Iterable[str]) -> int:
        """Return the bytes of some of the input columns; those that are not there count nothing."""
        return sum(self.column_bytes.get(name, 0) for name in dict.fromkeys(columns))

    def most_nulls(self, column: str) -> int:
        """Return the most nulls that a column has in these rows.

        Examples
        --------
        >>> extent = Extent(1000, nulls={"x": 20})
        >>> extent.most_nulls("x"), extent.most_nulls("y")
        (20, 1000)
        """
        return min(self.rows, self.nulls.get(column, self.rows))
