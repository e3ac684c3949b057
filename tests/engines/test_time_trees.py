"""Trees over time against their definition, with a merge whose every order can be seen in its result."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engines.quantiles import quantiles
from featurestore.engines.time_trees import Nodes, TimeTree, bit_length, join_levels
from featurestore.engines.windows import group_rows

MASK = 2**64 - 1
TIMES = st.one_of(
    st.integers(-8, 40), st.sampled_from([-(2**63), 2**63 - 1]), st.integers(-(2**62), 2**62)
)


def merged(a: int, b: int) -> int:
    return (a * 1_000_003 ^ (b + 0x9E3779B97F4A7C15)) * 31 & MASK


def merge(xp: Any, older: tuple[Any, ...], younger: tuple[Any, ...]) -> tuple[Any, ...]:
    a, b = older[0], younger[0]
    made = ((a * np.uint64(1_000_003)) ^ (b + np.uint64(0x9E3779B97F4A7C15))) * np.uint64(31)
    # 0 stands for no rows.
    return (np.where(a == 0, b, np.where(b == 0, a, made)),)


def place(time: int, nth: int) -> int:
    return (time + 2**63) << 64 | nth


def folded(rows: list[tuple[int, int]], low: int, bits: int) -> int:
    """Return the fold of (place, value) in the stretch of 2 ** bits places from ``low``; 0 for none."""
    if not rows:
        return 0
    if len(rows) == 1:
        return rows[0][1]
    half = low + 2 ** (bits - 1)
    older = folded([one for one in rows if one[0] < half], low, bits - 1)
    younger = folded([one for one in rows if one[0] >= half], half, bits - 1)
    return merged(older, younger) if older and younger else older or younger


def before(rows: list[tuple[int, int]], at: int) -> int:
    """Return the older halves beside the path to a place, oldest first, put together."""
    low, bits, out = 0, 128, 0
    while bits:
        bits -= 1
        half = low + 2**bits
        if at >= half:
            beside = folded([one for one in rows if low <= one[0] < half], low, bits)
            out = merged(out, beside) if out and beside else out or beside
            low = half
    return out


@settings(deadline=None, max_examples=60)
@given(st.lists(TIMES, max_size=25), st.data())
def test_what_comes_before_a_row_is_folded_by_the_definition(
    times: list[int], data: st.DataObject
) -> None:
    times.sort()
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(times), max_size=len(times)))
    cut = times[data.draw(st.integers(0, len(times) - 1))] if times else 0
    codes, when = np.array(groups, np.int64), np.array(times, np.int64)
    values = np.arange(1, len(times) + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
    sorted_ = group_rows(np, codes)
    rows: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    wanted = []
    for group, time, value in zip(groups, times, values.tolist(), strict=True):
        nth = sum(one[0] >> 64 == time + 2**63 for one in rows[group])
        wanted.append(before(rows[group], place(time, nth)))
        rows[group].append((place(time, nth), value))
    level = join_levels(np, sorted_.number, when[sorted_.order])
    found = TimeTree.of(np, level).before((values[sorted_.order],), (0,), merge)[0]
    assert found[np.argsort(sorted_.order)].tolist() == wanted

    # The same with the rows up to a cut replaced by what is kept of them.
    early = when < cut
    if early.any() and not early.all():
        kept = group_rows(np, codes[early])
        span = when[:1], when[early][-1:]
        nodes = Nodes.of(np, kept, when[early], *span, exact=False)
        found = nodes.folds(
            lambda where: {"one": (values[early][kept.order][where],)}, {"one": merge}
        )
        folds = found["one"][0]
        codes = np.concatenate([codes[early][nodes.rows], codes[~early]])
        when = np.concatenate([when[early][nodes.rows], when[~early]])
        values = np.concatenate([folds, values[~early]])
        again = group_rows(np, codes)
        level = join_levels(np, again.number, when[again.order])
        found = TimeTree.of(np, level).before((values[again.order],), (0,), merge)[0]
        found = found[np.argsort(again.order)][len(nodes.rows) :]
        assert found.tolist() == wanted[int(early.sum()) :]


def test_bits_are_counted_where_floats_round() -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 2**53 - 1, 2**53 + 1, 2**63, 2**64 - 1]
    found = bit_length(np, np.array(numbers, np.uint64)).tolist()
    assert found == [one.bit_length() for one in numbers]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 2.5, -3.0, float("inf"), -float("inf")]), max_size=20
    ),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=12),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
)
def test_quantiles_of_any_windows(
    values: list[float], windows: list[tuple[int, int]], level: float
) -> None:
    begin = [min(one, len(values)) for one, _ in windows]
    end = [min(start + size, len(values)) for start, (_, size) in zip(begin, windows, strict=True)]
    bounds = np.array(begin, np.int64), np.array(end, np.int64)
    found = quantiles(np, np.array(values, np.float64), *bounds, level)
    for start, stop, one in zip(begin, end, found.tolist(), strict=True):
        if start == stop:
            continue
        inside = sorted(values[start:stop])
        at = (len(inside) - 1) * level
        below, above, share = inside[int(at)], inside[-int(-at // 1)], at - int(at)
        wanted = below if below == above else below * (1 - share) + above * share
        np.testing.assert_allclose(one, wanted if share else below, rtol=1e-15)
