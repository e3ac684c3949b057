"""The order of an epoch: every row once, pure, ours for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from training.loading.mixing import bijection, key_of, permutation, words
from training.loading.order import EpochOrder, Shuffle
from training.loading.striped_order import StripedOrder

orders = st.builds(
    EpochOrder,
    rows=st.integers(0, 700),
    block_rows=st.integers(1, 40),
    window_blocks=st.integers(1, 6),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1),
    shuffle=st.sampled_from(Shuffle),
)


@settings(deadline=None, max_examples=300)
@given(orders)
def test_every_row_once(order: EpochOrder) -> None:
    rows = order.indices(0, order.rows)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.sort(rows), np.arange(order.rows))


@settings(deadline=None, max_examples=200)
@given(orders, st.data())
def test_any_range_equals_its_place_in_the_whole(order: EpochOrder, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, order.rows))
    stop = data.draw(st.integers(start, order.rows))
    whole = order.indices(0, order.rows)
    np.testing.assert_array_equal(order.indices(start, stop), whole[start:stop])


@settings(deadline=None, max_examples=100)
@given(orders)
def test_a_window_mixes_whole_blocks(order: EpochOrder) -> None:
    if order.shuffle is not Shuffle.WINDOW:
        return
    position = 0
    for window in range(order.windows):
        blocks = set(order.blocks_of(window).tolist())
        size = sum(min(order.block_rows, order.rows - one * order.block_rows) for one in blocks)
        rows = order.indices(position, position + size)
        assert {int(row) // order.block_rows for row in rows} == blocks
        assert order.window_at(position) == window
        assert order.window_at(position + size - 1) == window
        position += size
    assert position == order.rows


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 5000), st.integers(0, 2**64 - 1))
def test_the_scattered_order_is_a_permutation(count: int, key: int) -> None:
    found = bijection(np.arange(count, dtype=np.uint64), count, key)
    np.testing.assert_array_equal(np.sort(found), np.arange(count))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 999, 1000, 1001, 65_537, 300_000])
def test_a_permutation_is_the_order_of_its_keys(count: int) -> None:
    """The order that packs and states of earlier versions stand on: of 64 random bits, the upper ones."""
    kept = max(0, 64 - max(0, count - 1).bit_length())
    keys = [int(one) >> (64 - kept) if kept else 0 for one in words(0, count, 17)]
    expected = sorted(range(count), key=lambda one: (keys[one], one))
    assert permutation(count, 17).tolist() == expected


def test_a_large_global_order_is_a_permutation_that_mixes() -> None:
    order = EpochOrder(300_000, seed=1, shuffle=Shuffle.GLOBAL)
    rows = order.indices(0, order.rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(order.rows))
    assert abs(np.corrcoef(rows, np.arange(order.rows))[0, 1]) < 0.01
    # A random permutation has one fixed point on average, and neighbours far apart.
    assert int((rows == np.arange(order.rows)).sum()) < 10
    assert abs(np.abs(np.diff(rows)).mean() / (order.rows / 3) - 1) < 0.01


@pytest.mark.parametrize(
    ("mode", "seed", "epoch", "expected"),
    [
        (Shuffle.WINDOW, 0, 0, [6, 5, 3, 2, 1, 4, 7, 0, 13, 11, 12, 9, 10, 8, 14]),
        (Shuffle.WINDOW, 0, 1, [7, 5, 6, 4, 12, 14, 13, 11, 3, 8, 1, 10, 0, 9, 2]),
        (Shuffle.WINDOW, 7, 0, [14, 0, 13, 3, 2, 1, 12, 9, 8, 6, 10, 5, 7, 11, 4]),
        (Shuffle.GLOBAL, 0, 0, [3, 10, 9, 2, 6, 7, 1, 12, 4, 5, 11, 14, 0, 13, 8]),
    ],
)
def test_golden_orders(mode: Shuffle, seed: int, epoch: int, expected: list[int]) -> None:
    order = EpochOrder(15, block_rows=4, window_blocks=2, seed=seed, epoch=epoch, shuffle=mode)
    assert order.indices(0, 15).tolist() == expected


def test_golden_scattered_order() -> None:
    order = EpochOrder(10**6, seed=3, epoch=2, shuffle=Shuffle.GLOBAL)
    assert order.indices(500, 506).tolist() == [56127, 569986, 189319, 636797, 304996, 411214]


def test_any_piece_of_a_scattered_order_is_that_of_the_whole() -> None:
    order = EpochOrder(200_000, seed=1, epoch=4, shuffle=Shuffle.GLOBAL)
    whole = bijection(np.arange(order.rows, dtype=np.uint64), order.rows, key_of(1, 4, 2))

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 200_000), st.integers(0, 40_000))
    def check(start: int, count: int) -> None:
        stop = min(start + count, order.rows)
        np.testing.assert_array_equal(order.indices(start, stop), whole[start:stop])

    check()


def test_golden_digest() -> None:
    digest = EpochOrder(15, block_rows=4, window_blocks=2, seed=0).digest
    assert digest == "3e4367abcee1e552f375649da08d5500"
    assert EpochOrder(15, block_rows=4, window_blocks=2, seed=0, epoch=9).digest == digest
    assert EpochOrder(15, block_rows=4, window_blocks=2, seed=1).digest != digest


def test_every_permutation_of_few_rows_is_reached_about_equally_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        rows = EpochOrder(4, block_rows=2, window_blocks=2, seed=seed).indices(0, 4)
        counts[tuple(rows.tolist())] = counts.get(tuple(rows.tolist()), 0) + 1
    assert len(counts) == 24
    expected = 100
    chi_squared = sum((one - expected) ** 2 / expected for one in counts.values())
    assert chi_squared < 52.6  # 99.96% quantile with 23 degrees of freedom


def test_batches_of_sorted_data_differ_little_from_independent_ones() -> None:
    # Blocks of 64 rows, 16 in a window: the spread of batch means against that of independent rows.
    rows, batch = 2**16, 512
    order = EpochOrder(rows, block_rows=64, window_blocks=16, seed=0)
    means = order.indices(0, rows).reshape(-1, batch).mean(axis=1)
    ideal = np.sqrt((rows**2 - 1) / 12 / batch)
    assert means.std() / ideal < 8
    scattered = EpochOrder(rows, seed=0, shuffle=Shuffle.GLOBAL).indices(0, rows)
    assert 0.7 < scattered.reshape(-1, batch).mean(axis=1).std() / ideal < 1.3


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": -1},
        {"rows": 1, "block_rows": 0},
        {"rows": 1, "window_blocks": 0},
        {"rows": 1, "seed": -1},
        {"rows": 1, "epoch": 2**64},
        {"rows": 1, "seed": True},
    ],
)
def test_bad_orders_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        EpochOrder(**arguments)


def test_positions_outside_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="outside an epoch of 3 rows"):
        EpochOrder(3).indices(1, 4)


@pytest.mark.parametrize("value", ["blocks", 1, None])
def test_unknown_shuffles_are_refused(value: object) -> None:
    with pytest.raises(InvalidInputError):
        Shuffle.parse(value)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=8),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_a_striped_order_visits_stripe_after_stripe(
    stripes: list[int], block: int, window: int, seed: int, data: st.DataObject
) -> None:
    rows = sum(stripes)
    order = StripedOrder(EpochOrder(rows, block, window, seed), tuple(stripes))
    whole = order.indices(0, rows)
    np.testing.assert_array_equal(np.sort(whole), np.arange(rows))
    bases = np.concatenate([[0], np.cumsum(stripes)])
    position = 0
    for number in order.visited:
        seen = whole[position : position + stripes[number]]
        assert bases[number] <= seen.min()
        assert seen.max() < bases[number + 1]
        assert order.stripes_from(position)[0] == number
        position += stripes[number]
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    np.testing.assert_array_equal(order.indices(start, stop), whole[start:stop])
    position = 0
    for number in range(order.windows):
        starts = set(order.starts_of(number).tolist())
        first = position
        while position < rows and order.window_at(position) == number:
            row = int(whole[position])
            stripe = int(np.searchsorted(bases, row, side="right")) - 1
            assert bases[stripe] + (row - bases[stripe]) // block * block in starts
            position += 1
        assert position > first
    assert position == rows


def test_striped_orders_differ_by_seed_and_epoch() -> None:
    def order(**options: int) -> list[int]:
        made = StripedOrder(EpochOrder(400, 16, 2, **options), (100,) * 4)
        return made.indices(0, 400).tolist()

    orders = [order(seed=0), order(seed=1), order(seed=0, epoch=1)]
    assert len({tuple(one) for one in orders}) == 3


def test_stripes_that_are_not_the_epoch_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no epoch of 5"):
        StripedOrder(EpochOrder(5), (2, 2))
    with pytest.raises(InvalidInputError, match="lie outside"):
        StripedOrder(EpochOrder(4), (2, 2)).indices(2, 5)
