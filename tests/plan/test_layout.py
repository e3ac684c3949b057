"""Layouts: partitions that give way to others, in place and in order of time."""

from __future__ import annotations

import pytest

from featurestore.errors import ConflictError
from featurestore.plan.layout import with_replaced
from featurestore.testing.entries import partition_entry

BASE = [
    partition_entry("p1", 2, (0, 9)),
    partition_entry("p2", 2, (10, 19)),
    partition_entry("p3", 2, (30, 39)),
]


def ids(layout: tuple[object, ...]) -> list[str]:
    return [one.partition for one in layout]  # type: ignore[attr-defined]


def test_in_place() -> None:
    halves = [partition_entry("q1", 1, (10, 12)), partition_entry("q2", 1, (13, 19))]
    assert ids(with_replaced("t", BASE, {"p2": halves, "p3": ()})) == ["p1", "q1", "q2"]
    assert ids(with_replaced("t", BASE, {})) == ["p1", "p2", "p3"]


@pytest.mark.parametrize(("times", "place"), [((-5, -1), 0), ((20, 25), 2), ((40, 41), 3)])
def test_insertion_by_time(times: tuple[int, int], place: int) -> None:
    layout = with_replaced("t", BASE, {}, [partition_entry("new", 1, times)])
    assert ids(layout).index("new") == place


def test_an_empty_partition_has_no_time_and_is_no_obstacle() -> None:
    base = [BASE[0], partition_entry("empty", 0), BASE[2]]
    assert "new" in ids(with_replaced("t", base, {}, [partition_entry("new", 1, (20, 25))]))
    base = [partition_entry("empty", 0), *BASE]
    layout = ids(with_replaced("t", base, {}, [partition_entry("new", 1, (20, 25))]))
    assert layout == ["empty", "p1", "p2", "new", "p3"]


def test_without_times_places_stay() -> None:
    base = [partition_entry("a"), partition_entry("b"), partition_entry("c")]
    assert ids(with_replaced("t", base, {"b": [partition_entry("d")]})) == ["a", "d", "c"]


def test_conflicts() -> None:
    with pytest.raises(ConflictError, match="p9 of 't' was rewritten"):
        with_replaced("t", BASE, {"p9": ()})
    with pytest.raises(ConflictError, match="overlap in time"):
        with_replaced("t", BASE, {}, [partition_entry("new", 1, (19, 25))])
    with pytest.raises(ConflictError, match="overlap in time"):
        with_replaced("t", BASE, {"p2": [partition_entry("new", 1, (10, 30))]})
