"""The layout of a table: which partitions it has, in which order, and how a change of rows alters it.

The rows of a partition never change under its id, so a change of rows is a change of layout:
partitions go, and new ones stand in their places. Always true of a layout with event times: they
rise from partition to partition, and no time is in two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from featurestore.errors import ConflictError
from featurestore.storage.records import PartitionEntry


def with_replaced(
    table: str,
    base: Sequence[PartitionEntry],
    replaced: Mapping[str, Sequence[PartitionEntry]],
    inserted: Sequence[PartitionEntry] = (),
) -> tuple[PartitionEntry, ...]:
    """Return a layout in which some partitions gave way to others.

    Parameters
    ----------
    table : str
        Its name, for messages.
    base : sequence of PartitionEntry
        The partitions now, in table order.
    replaced : mapping of str to sequence of PartitionEntry
        For each partition that goes, by id, those that stand in its place; may be none.
    inserted : sequence of PartitionEntry
        Further ones, in order, that go where their times belong; needs event times.

    Raises
    ------
    ConflictError
        If a partition that is to go is not there, or the result is not in order of time: somebody
        changed the same rows meanwhile.

    Examples
    --------
    >>> from featurestore.testing.entries import partition_entry
    >>> base = [partition_entry("p1", 2, (0, 9)), partition_entry("p2", 2, (10, 19))]
    >>> new = [partition_entry("p3", 1, (0, 5))]
    >>> [one.partition for one in with_replaced("t", base, {"p1": new})]
    ['p3', 'p2']
    """
    gone = replaced.keys() - {one.partition for one in base}
    if gone:
        raise ConflictError(
            f"partition {min(gone)} of {table!r} was rewritten or deleted meanwhile",
            "do it again: it then sees the rows as they are now",
        )
    layout = [new for one in base for new in replaced.get(one.partition, (one,))]
    if inserted:
        first = inserted[0].time_min
        assert first is not None
        # Behind the last that ends before: partitions without rows, which have no times, count for nothing.
        earlier = [
            n for n, one in enumerate(layout) if one.time_max is not None and one.time_max < first
        ]
        place = earlier[-1] + 1 if earlier else 0
        layout[place:place] = inserted
    for before, after in pairwise(one for one in layout if one.rows and one.time_min is not None):
        assert before.time_max is not None
        assert after.time_min is not None
        if before.time_max >= after.time_min:
            raise ConflictError(
                f"partitions {before.partition} and {after.partition} of {table!r} would overlap in "
                "time: rows were added there meanwhile",
                "do it again: it then sees the rows as they are now",
            )
    return tuple(layout)
