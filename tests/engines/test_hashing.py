"""Stable hashes: published vectors that may never change, and their properties."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.engines.hashing import hash_columns, hash_strings, splitmix64
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import InvalidInputError, UnsupportedError

ENGINE = PolarsEngine()
MASK = 2**64 - 1


def hashed(*columns: pa.Array, seed: int = 0) -> list[int]:
    table = pa.table({f"c{i}": column for i, column in enumerate(columns)})
    out = hash_columns(ENGINE, ENGINE.from_arrow(table), table.column_names, seed)
    assert out.dtype == np.uint64
    return list(out.tolist())


def mix(value: int) -> int:
    """SplitMix64 in Python's integers."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def fnv1a(data: bytes) -> int:
    state = 0xCBF29CE484222325
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def test_splitmix64_published_vector() -> None:
    # The first outputs of the reference implementation seeded with 1234567.
    gamma, state, out = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        out.append(int(splitmix64(np, np.array([state], np.uint64))[0]))
        state = (state + gamma) & MASK
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_fnv1a_published_vectors() -> None:
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a(b"foobar") == 0x85944171F73967E8


VECTORS = [
    (
        pa.array([0, 1, -1, 2**63 - 1, None]),
        "e220a8397b1dcdaf d300120a5ea35cac 379c1e9f8d23af2a 0064020f69eca326 538e1b002775f36f",
    ),
    (
        pa.array([0.0, 1.0, math.nan, -math.inf, None]),
        "85b7ae4e814861f5 e649a98c5256fb17 1fc59e5599200a3d 2591ede76035337b 538e1b002775f36f",
    ),
    (
        pa.array(["", "a", "foobar", "日本", None]),
        "6a4a6fb563734334 c2d913e558385aec 54425a309bda8067 d0ea3bd8347ff1c0 538e1b002775f36f",
    ),
    (pa.array([True, False, None]), "d300120a5ea35cac e220a8397b1dcdaf 538e1b002775f36f"),
]


@pytest.mark.parametrize(("column", "expected"), VECTORS)
def test_vectors_never_change(column: pa.Array, expected: str) -> None:
    assert " ".join(f"{one:016x}" for one in hashed(column)) == expected


def test_combined_vector_never_changes() -> None:
    both = hashed(pa.array(["a", None]), pa.array([1, 2]), seed=7)
    assert [f"{one:016x}" for one in both] == ["a88cdb6e08dc31ba", "e5b91ab0c91c85ba"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))), st.integers(0, 2**64))
def test_integers_against_python(values: list[int | None], seed: int) -> None:
    null = 0x6E756C6C00000000
    expected = [
        mix(mix(seed & MASK) ^ (null if one is None else mix(one & MASK))) for one in values
    ]
    assert hashed(pa.array(values, pa.int64()), seed=seed) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(st.lists(st.one_of(st.none(), st.text(max_size=60)), max_size=40))
def test_strings_against_python(values: list[str | None]) -> None:
    null, tag = 0x6E756C6C00000000, 0x737472696E670000
    expected = [
        mix(mix(0) ^ (null if one is None else mix(fnv1a(one.encode()) ^ tag))) for one in values
    ]
    assert hashed(pa.array(values, pa.string())) == expected


def test_long_repeated_strings_hash_like_any() -> None:
    texts = ["x" * 500, "y" * 300, "x" * 500, "short", None] * 50
    assert hashed(pa.array(texts)) == hashed(pa.array(texts[:5])) * 50


def test_a_slice_of_bytes_is_hashed_alone() -> None:
    offsets, data = np.array([1, 3, 3]), np.frombuffer(b"zabz", np.uint8)
    alone = hash_strings(np, np.array([0, 2, 2]), np.frombuffer(b"ab", np.uint8))
    assert hash_strings(np, offsets, data).tolist() == alone.tolist()


def test_equal_values_hash_equal_whatever_their_width() -> None:
    wide = hashed(pa.array([5, -7], pa.int64()))
    for type_ in (pa.int8(), pa.int16(), pa.int32()):
        assert hashed(pa.array([5, -7], type_)) == wide
    assert hashed(pa.array([0.5], pa.float32())) == hashed(pa.array([0.5], pa.float64()))
    assert hashed(pa.array([-0.0])) == hashed(pa.array([0.0]))
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    assert len(set(hashed(pa.array(odd)))) == 1


def test_order_of_columns_and_seed_matter() -> None:
    one, other = pa.array([1, 2]), pa.array([2, 1])
    assert hashed(one, other) != hashed(other, one)
    assert hashed(one, other)[0] == hashed(other, one)[1]
    assert hashed(one) != hashed(one, seed=1)


def test_hashes_spread_evenly() -> None:
    hashes = np.array(hashed(pa.array(range(40_000))), np.uint64)
    for shift in (0, 32, 58):
        counts = np.bincount(
            ((hashes >> np.uint64(shift)) & np.uint64(63)).astype(int), minlength=64
        )
        assert abs(counts - 625).max() < 6 * 25
    assert len(np.unique(hashes)) == 40_000


def test_refusals() -> None:
    with pytest.raises(InvalidInputError, match="at least one column"):
        hashed()
    with pytest.raises(UnsupportedError):
        hashed(pa.array([[1]]))
