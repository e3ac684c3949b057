"""Which rows a report looks at: within bounds, each once, all of a small table, and of the right part."""

from __future__ import annotations

import uuid

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.selection import Selection
from featurestore.report import slices as module
from featurestore.report.slices import (
    FEWEST_ROWS,
    PARTS,
    ROWS,
    SLICES,
    Mask,
    Slice,
    slices_in_order,
    slices_of,
)


def new_store() -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)


def positions(found: tuple[Slice, ...], sizes: list[int]) -> list[int]:
    """Return the rows of slices by their position in the table."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows = []
    for one in found:
        assert 0 <= one.start < one.stop <= sizes[one.position]
        kept = np.ones(one.stop - one.start, bool) if one.kept is None else one.kept
        rows += list(starts[one.position] + one.start + np.flatnonzero(kept))
    return rows


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 12_000), max_size=12))
def test_parts_are_in_order_and_no_row_is_looked_at_twice(sizes: list[int]) -> None:
    parts = slices_in_order(sizes)
    total = sum(sizes)
    assert len(parts) <= min(PARTS, total)
    assert len(parts) >= min(2, total)
    assert len(parts) <= 2 or total >= FEWEST_ROWS * len(parts)
    rows = [positions(part, sizes) for part in parts]
    together = [one for part in rows for one in part]
    assert together == sorted(set(together))
    for number, part in enumerate(rows):
        low, high = total * number // len(parts), total * (number + 1) // len(parts)
        assert all(low <= one < high for one in part)
        assert len(part) == min(high - low, ROWS)
        assert sum(1 for _ in parts[number]) <= SLICES + len(sizes)


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(module, "ROWS", 40)
    return 40


@pytest.mark.parametrize(
    "split",
    [
        fs.TimeSplit(valid=700, test=730),
        fs.TimeSplit(valid=701, test=990, embargo=7),
        fs.HashSplit(valid=0.3, test=0.05, by="k"),
    ],
    ids=str,
)
def test_slices_of_a_split_have_rows_of_its_parts_alone(
    small_samples: int, split: fs.TimeSplit | fs.HashSplit
) -> None:
    frame = pl.DataFrame({"k": [one % 97 for one in range(1000)], "t": range(1000)})
    table = new_store().ingest("rows", frame, key="k", time="t", partition_bytes=1600)
    files = table._files()
    sizes = [one.rows for one in files.base]
    assert len(sizes) > 5
    view = table.dataset("t", split=split)._view
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def masks(position: int, selection: Selection) -> Mask:
        return np.asarray(selection.mask(view.read(position, ["k", "t"]), view.engine))

    for part in split.parts():
        rows = split.rows(part, files.schema)
        selected = {
            int(starts[at] + one)
            for at in range(len(sizes))
            for one in np.flatnonzero(masks(at, rows))
        }
        found = positions(slices_of(files.base, rows, masks), sizes)
        assert found
        assert len(found) == len(set(found)) <= small_samples
        assert set(found) <= selected
        # Spread over all of them: from the first tenth to the last quarter.
        low, high = min(selected), max(selected)
        assert min(found) < low + 0.25 * (high - low)
        assert max(found) > high - 0.25 * (high - low)


def test_rows_of_a_part_that_are_few_in_a_partition_are_found() -> None:
    frame = pl.DataFrame({"t": range(20_000)})
    table = new_store().ingest("rows", frame, time="t")
    files = table._files()
    view = table.dataset("t")._view
    rows = fs.TimeSplit(valid=19_990).rows("valid", files.schema)
    (found,) = slices_of(
        files.base,
        rows,
        lambda at, some: np.asarray(some.mask(view.read(at, ["t"]), view.engine)),
    )
    assert (found.start, found.stop, found.rows) == (19_990, 20_000, 10)
