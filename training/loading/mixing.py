"""Random bits and permutations as pure functions of their keys.

Made of SplitMix64 [1]_, a sort of unique numbers and a Feistel network: nothing of NumPy's random
generators, whose streams may change. The same key gives the same permutation on every version and
machine; whoever stores what follows from one names its construction by a version of its own.

.. [1] G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

Rows: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Words: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"

MASK: Final = (1 << 64) - 1
_SEED: Final = 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_MIX_1: Final = 0xBF58476D1CE4E5B9
_MIX_2: Final = 0x94D049BB133111EB
_ROUNDS: Final = 8


def key_of(*words: int) -> int:
    """Return 64 bits that depend on every bit of every word and on their order."""
    state = _SEED
    for word in words:
        state = _mix_word((state ^ _mix_word((word + _GOLDEN) & MASK)) + _GOLDEN & MASK)
    return state


def _mix_word(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MIX_1) & MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & MASK
    return value ^ (value >> 31)


def _mix(words: Words) -> Words:
    """SplitMix64's finaliser, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    return words


def permutation(count: int, key: int) -> Rows:
    """Return a permutation of ``range(count)``: its numbers sorted by 64 random bits each.

    A key is random bits above the number itself, so keys are unique and any correct sort gives the
    same order; sorting plain integers is several times faster than an argsort.
    """
    if count <= 1:
        return np.zeros(count, dtype=np.int64)
    numbers = np.arange(count, dtype=np.uint64)
    keys = _mix((numbers + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key))
    low = np.uint64((1 << (count - 1).bit_length()) - 1)
    keys &= ~low
    keys |= numbers
    keys.sort()
    keys &= low
    return keys.view(np.int64)


def bijection(positions: Words, count: int, key: int) -> Words:
    """Return a permutation of ``range(count)`` at some positions, in memory for those alone.

    A Feistel network permutes the smallest power of two that holds ``count``; values outside are
    sent through again until they fall inside (cycle walking), fewer than twice on average.
    """
    bits = (count - 1).bit_length()
    round_keys = [key_of(key, number) for number in range(_ROUNDS)]
    values = _feistel(positions, bits, round_keys)
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = _feistel(values[outside], bits, round_keys)
        outside = outside[values[outside] >= count]
    return values


def _feistel(values: Words, bits: int, round_keys: list[int]) -> Words:
    width = np.uint64(bits // 2)
    left, right = values >> width, values & np.uint64((1 << (bits // 2)) - 1)
    left_shift = np.uint64(64 - (bits - bits // 2))
    right_shift = np.uint64(64 - bits // 2)
    for number, key in enumerate(round_keys):
        if number % 2 == 0:
            left ^= _round(right, key) >> left_shift
        else:
            right ^= _round(left, key) >> right_shift
    return (left << width) | right


def _round(half: Words, key: int) -> Words:
    words = (half + np.uint64(key)) * np.uint64(_MIX_1)
    words ^= words >> np.uint64(32)
    words *= np.uint64(_MIX_2)
    return words
