"""Where rows lie in a pack: every place once, whatever the partitions, and mixed as promised."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from training.loading import arrangement as module
from training.loading.arrangement import Arrangement, Chunk


def places(arrangement: Arrangement) -> dict[tuple[int, int], int]:
    """Return the pack's row of each row of each partition."""
    found = {}
    for stripe in arrangement.stripes:
        for partition in stripe.partitions:
            for chunk in arrangement.chunks(stripe, partition):
                for row, place in zip(chunk.order, targets(chunk), strict=True):
                    assert stripe.start <= place < stripe.stop
                    found[partition, chunk.first + int(row)] = place
    return found


def targets(chunk: Chunk) -> Iterator[int]:
    for start, length in zip(chunk.starts.tolist(), chunk.lengths.tolist(), strict=True):
        yield from range(start, start + length)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(1, 300), max_size=40),
    st.booleans(),
    st.integers(1, 50),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_every_place_holds_one_row(
    partitions: list[int], mixed: bool, chunk: int, bed: int, least: int
) -> None:
    with (
        patch.object(module, "_CHUNK_ROWS", chunk),
        patch.object(module, "_BED_ROWS", bed),
        patch.object(module, "STRIPE_PARTITIONS", least),
        patch.object(module, "STRIPE_ROWS", 50),
    ):
        module._deal.cache_clear()  # it may know these partitions under other limits
        made = Arrangement(tuple(partitions), 4, mixed)
        found = places(made)
        stripes = made.stripes
        module._deal.cache_clear()
    assert sorted(found.values()) == list(range(sum(partitions)))
    assert sorted(found) == [(p, r) for p, rows in enumerate(partitions) for r in range(rows)]
    assert sorted(p for one in stripes for p in one.partitions) == list(range(len(partitions)))
    if not mixed:
        assert [found[key] for key in sorted(found)] == list(range(sum(partitions)))
    elif len(partitions) >= least:
        assert all(len(one.partitions) >= least for one in stripes)
    for row in range(made.rows):
        (number,) = made.stripes_of(row, row)
        assert stripes[number].start <= row < stripes[number].stop
    if made.rows:
        assert made.stripes_of(0, made.rows - 1) == range(len(stripes))


def test_each_block_has_rows_of_each_partition_of_its_stripe() -> None:
    partitions = (40_000,) * 64
    made = Arrangement(partitions, 512, mixed=True)
    assert len(made.stripes) == 8
    for stripe in made.stripes:
        assert len(stripe.partitions) == 8
        origin = np.empty(stripe.rows, dtype=np.int64)
        for partition in stripe.partitions:
            for chunk in made.chunks(stripe, partition):
                at = np.fromiter(targets(chunk), np.int64) - stripe.start
                origin[at] = partition
        for start in range(0, stripe.rows - 8192, 8192):
            _, counts = np.unique(origin[start : start + 8192], return_counts=True)
            assert len(counts) == 8
            assert counts.min() > 8192 / 8 * 0.7


def test_rows_that_repeat_within_chunks_are_spread() -> None:
    """Rows come in the order of 4,096 entities, again and again: no bed gets the same ones only."""
    made = Arrangement((1 << 20,), 512, mixed=True)
    entities = np.empty(1 << 20, dtype=np.int64)
    for chunk in made.chunks(made.stripes[0], 0):
        entities[np.fromiter(targets(chunk), np.int64)] = (chunk.first + chunk.order) % 4096
    for start in range(0, 1 << 20, 8192 * 16):
        # Of 8,192 draws from 4,096 about 4096 * (1 - exp(-2)) = 3,542 differ.
        assert len(np.unique(entities[start : start + 8192])) > 3000


def test_partitions_of_a_stripe_come_from_all_over() -> None:
    made = Arrangement((300_000,) * 100, 64, mixed=True)
    assert len(made.stripes) == 12
    for stripe in made.stripes:
        assert len(stripe.partitions) in (8, 9)
        assert max(stripe.partitions) - min(stripe.partitions) > 40


def test_small_parts_are_one_stripe_and_none_is_none() -> None:
    assert len(Arrangement((1000,) * 500, 64, mixed=True).stripes) == 1
    assert Arrangement((), 64, mixed=True).stripes == ()
    assert Arrangement((), 64).stripes_of(0, 0) == range(0)


def test_digest_follows_what_places_depend_on() -> None:
    digests = {
        Arrangement((5, 5), 8).digest,
        Arrangement((5, 5), 8, mixed=True).digest,
        Arrangement((5, 6), 8, mixed=True).digest,
        Arrangement((5, 5), 2**22, mixed=True).digest,
    }
    assert len(digests) == 4
    # Chunks of as many rows are all that a row's width decides here.
    assert Arrangement((5, 5), 8, mixed=True).digest == Arrangement((5, 5), 4, mixed=True).digest


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="leave out partitions"):
        Arrangement((3, 0), 8)
