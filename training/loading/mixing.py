"""Random bits and permutations as pure functions of their keys.

Made of SplitMix64 [1]_, a sort of unique numbers and a Feistel network: nothing of NumPy's random
generators, whose streams may change. The same key gives the same permutation on every version and
machine; whoever stores what follows from one names its construction by a version of its own.

.. [1] G. L. Steele, D. Lea, C. H. Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
.. [2] D. Lemire, "Fast Random Integer Generation in an Interval", 2019; without the rejection that
   makes it exact: no number's chance is off by more than 2**-64.
.. [3] J. Black, P. Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, the generalised Feistel network.
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
_FEW: Final = 1000
"""So few keys are sorted by comparing them alone."""


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
    del numbers
    keys = _sorted(keys)
    keys &= low
    return keys.view(np.int64)


def _sorted(keys: Words) -> Words:
    """Return random keys in ascending order.

    NumPy sorts 16 bits by counting. Keys in the order of their upper 16 are almost sorted, which its
    merge sort makes use of: together two to three times as fast as sorting keys by comparing them.
    """
    if keys.size >= _FEW:
        keys = keys[np.argsort((keys >> np.uint64(48)).astype(np.uint16), kind="stable")]
    keys.sort(kind="stable")
    return keys


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


def words(start: int, stop: int, key: int) -> Words:
    """Return words ``[start, stop)`` of the stream of random 64-bit words that a key has."""
    numbers = np.arange(start + 1, stop + 1, dtype=np.uint64)
    return _mix(numbers * np.uint64(_GOLDEN) + np.uint64(key))


def below(drawn: Words, limits: Words) -> Words:
    """Return an integer in ``[0, limit)`` for each random word: the word times the limit, over 2**64 [2]_.

    Parameters
    ----------
    drawn : uint64 array [n]
    limits : uint64 array [n] or [1]
        Each from 1 on.

    Examples
    --------
    >>> below(np.array([0, MASK], np.uint64), np.array([6], np.uint64)).tolist()
    [0, 5]
    """
    half, low = np.uint64(32), np.uint64((1 << 32) - 1)
    high_1, low_1 = drawn >> half, drawn & low
    high_2, low_2 = limits >> half, limits & low
    across, back = high_1 * low_2, low_1 * high_2
    carry = ((low_1 * low_2) >> half) + (across & low) + (back & low)
    found: Words = high_1 * high_2 + (across >> half) + (back >> half) + (carry >> half)
    return found


def bijections(positions: Words, counts: Words, tweaks: Words, key: int) -> Words:
    """Return permutations of many ranges, each at one position.

    As :func:`bijection`, with a range and keys for each element; halves are digits that count up to about
    the range's root, which are added to and not xored [3]_, so that few values fall outside the range.

    Parameters
    ----------
    positions, counts : uint64 array [n]
        ``positions[i] < counts[i] < 2**52``.
    tweaks : uint64 array [n]
        Elements of equal tweaks and counts are of one permutation.
    key : int

    Notes
    -----
    Of ranges of five and six, pairs of values deviate from equal chances by a tenth; larger ones by less.
    """
    high = np.ceil(np.sqrt(counts.astype(np.float64))).astype(np.uint64)
    low = (counts + high - np.uint64(1)) // high
    keys = _mix(tweaks * np.uint64(_GOLDEN) + np.uint64(key))
    values = _added(positions, high, low, keys)
    outside = np.flatnonzero(values >= counts)
    while outside.size:
        values[outside] = _added(values[outside], high[outside], low[outside], keys[outside])
        outside = outside[values[outside] >= counts[outside]]
    return values


def _added(values: Words, high: Words, low: Words, keys: Words) -> Words:
    half = np.uint64(32)
    left = values // low
    right = values - left * low
    for number in range(_ROUNDS):
        key = keys + np.uint64(key_of(number))
        if number % 2 == 0:
            left += (_round(right, key) >> half) * high >> half
            left -= high * (left >= high)
        else:
            right += (_round(left, key) >> half) * low >> half
            right -= low * (right >= low)
    found: Words = left * low + right
    return found


def _feistel(values: Words, bits: int, round_keys: list[int]) -> Words:
    width = np.uint64(bits // 2)
    left, right = values >> width, values & np.uint64((1 << (bits // 2)) - 1)
    left_shift = np.uint64(64 - (bits - bits // 2))
    right_shift = np.uint64(64 - bits // 2)
    for number, key in enumerate(map(np.uint64, round_keys)):
        if number % 2 == 0:
            left ^= _round(right, key) >> left_shift
        else:
            right ^= _round(left, key) >> right_shift
    return (left << width) | right


def _round(half: Words, key: Words | np.uint64) -> Words:
    mixed = (half + key) * np.uint64(_MIX_1)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(_MIX_2)
    return mixed
