"""Rows that share key and time: found among sorted rows, refused or thinned out.

``"error"`` refuses them, ``"keep"`` keeps all in the order they came, ``"last"`` keeps the one that
came last. A table without a key allows equal times always: nothing says that its rows are the same
entity's. Keys of floats are compared as numbers (``-0.0`` equals ``0.0``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import DuplicateRowsError, InvalidInputError
from featurestore.ingest.arrays import to_arrow, to_numpy
from featurestore.ingest.event_time import time_text, time_values
from featurestore.ingest.sources import Source
from featurestore.schema import TableSchema

POLICIES: Final = ("error", "keep", "last")
Mask: TypeAlias = npt.NDArray[np.bool_]
_EXAMPLES: Final = 3


def check_policy(policy: str) -> None:
    """Refuse a word that is none of ``POLICIES``.

    Raises
    ------
    InvalidInputError
    """
    if policy not in POLICIES:
        raise InvalidInputError(f"duplicates={policy!r} is not known", f"use one of {POLICIES}")


def equals_previous(table: pa.Table, names: Sequence[str]) -> Mask:
    """Return per row whether it equals the row before in these columns, which hold no nulls."""
    same = np.ones(table.num_rows, np.bool_)
    same[:1] = False
    for name in names:
        column = table.column(name)
        same[1:] &= to_numpy(pc.equal(column.slice(1), column.slice(0, len(column) - 1)))
    return same


class Duplicates:
    """Applies a table's policy to sorted rows, and counts what it met.

    Parameters
    ----------
    schema : TableSchema
    policy : str
    """

    def __init__(self, schema: TableSchema, policy: str) -> None:
        self._schema = schema
        self.policy = policy
        self._names = (*schema.key, *([schema.time] if schema.time is not None else []))
        self.count = 0
        self._examples: list[dict[str, Any]] = []

    @property
    def unique(self) -> bool:
        """Whether nothing has to be refused so far."""
        return self.count == 0 or self.policy != "error"

    def filter(self, rows: pa.Table) -> pa.Table:
        """Return the rows that stay; ``rows`` are sorted and hold whole time groups."""
        if not self._schema.key or self.policy == "keep" or rows.num_rows < 2:
            return rows
        same = equals_previous(rows, self._names)
        if not same.any():
            return rows
        self.note(rows, same)
        if self.policy == "error":
            return rows
        # A row goes if the one after it is its equal: the last to come stays.
        return rows.filter(to_arrow(~np.append(same[1:], False)))

    def note(self, rows: pa.Table, repeated: Mask) -> None:
        """Count repeated rows and keep the first of them as examples."""
        self.count += int(repeated.sum())
        wanted = _EXAMPLES - len(self._examples)
        # One per group of equals.
        places = np.flatnonzero(repeated[1:] & ~repeated[:-1])[:wanted] + 1
        examples = rows.select(list(self._names)).take(to_arrow(places)).to_pylist()
        self._examples += [one for one in examples if one not in self._examples]

    def error(self, source: Source | None) -> DuplicateRowsError:
        """Return the refusal, with the places of the examples in the source if there is one."""
        said = [f"{self._words(example)}{_places(source, example)}" for example in self._examples]
        what = "key and time" if self._schema.time is not None else "key"
        return DuplicateRowsError(
            f"{self.count} rows repeat the {what} of another row: " + "; ".join(said),
            'remove them, add a column to the key that tells them apart, or say duplicates="last" '
            '(the last to come wins) or duplicates="keep" (all stay)',
        )

    def _words(self, example: dict[str, Any]) -> str:
        parts = [f"{name}={example[name]!r}" for name in self._schema.key]
        time = self._schema.time
        if time is not None and time not in self._schema.key:
            column = pa.array([example[time]], self._schema[time].type)
            parts.append(f"{time}={time_text(int(time_values(column)[0]), column.type)}")
        return "(" + ", ".join(parts) + ")"


def _places(source: Source | None, example: dict[str, Any]) -> str:
    """Return where rows like this are; the source is read once more, only to help the caller."""
    if source is None:
        return ""
    found: list[str] = []
    for piece in source.pieces(list(example)):
        same: Any = True
        for name, value in example.items():
            column = piece.batch.column(name)
            same = pc.and_(same, pc.equal(column, pa.scalar(value, column.type)))
        for row in np.flatnonzero(to_numpy(same)):
            found.append(f"{piece.where} row {piece.start + int(row) + 1}")
            if len(found) == 2:
                return f" in {' and '.join(found)}"
    return ""
