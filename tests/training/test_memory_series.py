"""Memory over a run: few moments however many are taken, and the largest among them."""

from __future__ import annotations

import csv
import mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from training.memory_series import MemorySeries, Moment


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.none() | st.integers(0, 2**40)), max_size=200),
    st.integers(4, 17),
)
def test_it_stays_small_and_keeps_the_largest(
    seen: list[tuple[int, int | None]], points: int
) -> None:
    series = MemorySeries(points)
    for at, (resident, anonymous) in enumerate(seen):
        series.add(Moment(float(at), resident, anonymous))
        assert len(series.moments) <= points
    found = series.moments
    assert [one.seconds for one in found] == sorted({one.seconds for one in found})
    assert {one.seconds for one in found} <= {float(at) for at in range(len(seen))}
    assert max((one.resident_bytes for one in found), default=0) == max(
        (one for one, _ in seen), default=0
    )
    known = [one for _, one in seen if one is not None]
    kept = [one.anonymous_bytes for one in found if one.anonymous_bytes is not None]
    assert max(kept, default=0) == max(known, default=0)
    assert not found or found[0].seconds == 0
    assert len(found) > points // 2 or len(found) == len(seen)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_what_is_held_is_seen_and_mapped_files_are_told_apart(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "file"
    path.write_bytes(b"\1" * size)
    with MemorySeries() as series:
        first = series.moments[0]
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            assert sum(mapped[at] for at in range(0, size, 4096)) == size // 4096
    last = series.moments[-1]
    assert last.resident_bytes - first.resident_bytes > size // 2
    assert first.anonymous_bytes is not None
    assert last.anonymous_bytes is not None
    assert last.anonymous_bytes - first.anonymous_bytes < size // 2
    mapped.close()
    with MemorySeries() as series:
        held = b"\2" * size
    assert series.moments[-1].anonymous_bytes - series.moments[0].anonymous_bytes > size // 2  # type: ignore[operator]
    assert len(held) == size


def test_it_samples_until_its_block_ends_also_with_an_error(tmp_path: Path) -> None:
    def failing(series: MemorySeries) -> None:
        with series:
            series._ended.wait(0.05)
            raise KeyError

    series = MemorySeries(interval=0.001)
    with pytest.raises(KeyError):
        failing(series)
    assert not series._thread.is_alive()
    series.write(tmp_path / "series.csv")
    with (tmp_path / "series.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(one["resident_bytes"]) for one in rows] == [
        one.resident_bytes for one in series.moments
    ]


@pytest.mark.parametrize(("points", "interval"), [(3, 1.0), (240, 0.0)])
def test_a_series_that_cannot_be_is_refused(points: int, interval: float) -> None:
    with pytest.raises(InvalidInputError, match=f"{points} points"):
        MemorySeries(points, interval)
