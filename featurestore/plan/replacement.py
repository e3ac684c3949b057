"""Which partitions give way when the rows of a range of times are replaced.

Judged by the recorded times alone, so partitions that lie wholly in the range are never read. At
most two are cut: those at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurestore.storage.records import PartitionEntry


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a range of times touches.

    Parameters
    ----------
    position : int
        Where the new partitions stand among those of the table.
    whole : tuple of PartitionEntry
        Those whose rows all lie in the range.
    cut : tuple of PartitionEntry
        Those that reach beyond it; they may hold no row of it.
    """

    position: int
    whole: tuple[PartitionEntry, ...]
    cut: tuple[PartitionEntry, ...]

    @classmethod
    def of(
        cls, base: Sequence[PartitionEntry], lower: int | None, upper: int | None
    ) -> Replacement:
        """Return what ``lower <= time < upper`` touches; ``None`` is an open end.

        Examples
        --------
        >>> from featurestore.testing.entries import partition_entry
        >>> base = [partition_entry(f"p{i}", 5, (10 * i, 10 * i + 9)) for i in range(4)]
        >>> found = Replacement.of(base, 15, 30)
        >>> [one.partition for one in found.cut], [one.partition for one in found.whole]
        (['p1'], ['p2'])
        """
        whole: list[PartitionEntry] = []
        cut: list[PartitionEntry] = []
        position = 0
        for one in base:
            if one.time_min is None or one.time_max is None:
                continue
            if lower is not None and one.time_max < lower:
                position += 1
            elif upper is None or one.time_min < upper:
                inside = lower is None or lower <= one.time_min
                inside = inside and (upper is None or one.time_max < upper)
                (whole if inside else cut).append(one)
        return cls(position, tuple(whole), tuple(cut))

    def replaced(self, new: Sequence[PartitionEntry]) -> dict[str, tuple[PartitionEntry, ...]]:
        """Return for each partition that goes those in its place: all new ones in that of the first.

        Empty if none goes; the new ones are then inserted between others.
        """
        gone = sorted((*self.whole, *self.cut), key=lambda one: one.time_min or 0)
        return {one.partition: tuple(new) if not i else () for i, one in enumerate(gone)}
