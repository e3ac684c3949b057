"""Tables of the shapes that memory models are held against: narrow, wide, strings, lists, skewed keys.

Every table has a key ``k``, a time ``t`` (rows are in its order, several share one) and value columns;
what they hold follows from shape, rows and seed alone.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.errors import InvalidInputError
from featurestore.schema import Field, TableSchema

KEYS: Final = 1000
WIDE_COLUMNS: Final = 500
_STEP: Final = 1_000_000  # microseconds between times
_ROWS_PER_TIME: Final = 4
_TEXT: Final = 160
_ITEMS: Final = 60
_KINDS: Final = 20
_DIGITS: Final = 7  # of a kind, however many there are
_LETTERS: Final = string.ascii_letters.encode() + string.digits.encode()
_NAME: Final = "entity number {:09d}"

Columns: TypeAlias = "dict[str, pa.Array]"


def shape_table(shape: str, rows: int, seed: int = 0, start: int = 0) -> pa.Table:
    """Return a table of one of ``SHAPES``.

    Parameters
    ----------
    shape : str
    rows : int
    seed : int
    start : int
        How many rows of the same table came before: times go on from there.

    Raises
    ------
    InvalidInputError
        For another shape.

    Examples
    --------
    >>> shape_table("strings", 8).column_names
    ['k', 't', 's', 'c']
    """
    if shape not in SHAPES:
        raise InvalidInputError(f"there is no shape {shape!r}", f"choose from {list(SHAPES)}")
    keys, values = SHAPES[shape]
    when = (np.arange(start, start + rows) // _ROWS_PER_TIME) * _STEP
    # Generators of their own, so that shapes that differ in their keys alone have the same values.
    random, others = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    columns = {"k": keys(random, rows), "t": pa.array(when).cast(pa.timestamp("us"))}
    return pa.table({**columns, **values(others, rows)})


def shape_schema(shape: str, sources: Mapping[str, TableSchema] | None = None) -> TableSchema:
    """Return the schema of the tables of a shape, keyed by ``k`` and timed by ``t``."""
    fields = tuple(Field(one.name, one.type) for one in shape_table(shape, 1).schema)
    return TableSchema(fields, ("k",), "t", dict(sources or {}))


def _few(random: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(random.integers(0, KEYS, rows))


def _few_texts(random: np.random.Generator, rows: int) -> pa.Array:
    names = pa.array([_NAME.format(one) for one in range(KEYS)])
    taken = names.take(pa.array(random.integers(0, KEYS, rows)))
    # Without null marks, as texts have that are not taken.
    return pa.Array.from_buffers(pa.string(), rows, [None, *taken.buffers()[1:]])


def _distinct_texts(random: np.random.Generator, rows: int) -> pa.Array:
    return pa.array([_NAME.format(one) for one in random.permutation(rows).tolist()])


def _skewed(random: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(np.where(random.random(rows) < 0.9, 0, random.integers(1, KEYS, rows)))


def _distinct(random: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(random.permutation(rows) << 20)  # far apart, as hashes are


def _numbers(random: np.random.Generator, rows: int) -> Columns:
    return {
        "x": pa.array(random.standard_normal(rows), mask=random.random(rows) < 0.05),
        "n": pa.array(random.integers(0, 10_000, rows).astype(np.int32)),
        "y": pa.array(random.standard_normal(rows).astype(np.float32)),
    }


def _late(random: np.random.Generator, rows: int) -> Columns:
    # Some known before their time, some long after, in no order.
    known = random.integers(0, rows * _STEP, rows)
    return {**_numbers(random, rows), "a": pa.array(known).cast(pa.timestamp("us"))}


def _wide(random: np.random.Generator, rows: int) -> Columns:
    names = [f"x{one:03d}" for one in range(WIDE_COLUMNS)]
    return {name: pa.array(random.standard_normal(rows).astype(np.float32)) for name in names}


def _offsets(random: np.random.Generator, rows: int, longest: int) -> np.ndarray[Any, Any]:
    # A bound by the widest row is twice what is there only if rows are about as wide.
    sizes = random.integers(3 * longest // 4, longest + 1, rows)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def _texts(random: np.random.Generator, rows: int) -> Columns:
    return _with_kinds(random, rows, few=True)


def _different_texts(random: np.random.Generator, rows: int) -> Columns:
    return _with_kinds(random, rows, few=False)


def _words(random: np.random.Generator, rows: int) -> Columns:
    return _with_kinds(random, rows, few=False, words=True)


def _with_kinds(
    random: np.random.Generator, rows: int, *, few: bool, words: bool = False
) -> Columns:
    offsets = _offsets(random, rows, _TEXT)
    letters = random.integers(97, 123, int(offsets[-1])).astype(np.uint8)
    if words:  # of four letters, most of them different
        letters = np.frombuffer(_LETTERS, np.uint8)[random.integers(0, len(_LETTERS), len(letters))]
        letters[4::5] = ord(" ")
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(letters)]
    kind = random.integers(0, _KINDS, rows) if few else np.arange(rows)
    names = np.char.add("c", np.char.zfill(kind.astype(str), _DIGITS))
    missing = np.random.default_rng(rows).random(rows) < 0.05
    return {
        "s": pa.Array.from_buffers(pa.string(), rows, buffers),
        "c": pa.array(names, pa.string(), mask=missing),
    }


def _lists(random: np.random.Generator, rows: int) -> Columns:
    offsets = _offsets(random, rows, _ITEMS)
    items = pa.array(random.standard_normal(int(offsets[-1])).astype(np.float32))
    return {"v": pa.ListArray.from_arrays(pa.array(offsets), items)}


_Maker: TypeAlias = "Callable[[np.random.Generator, int], Any]"
SHAPES: Final[Mapping[str, tuple[_Maker, _Maker]]] = {
    "narrow": (_few, _numbers),
    "wide": (_few, _wide),
    "strings": (_few_texts, _texts),
    "lists": (_few, _lists),
    "skewed": (_skewed, _numbers),
    "late": (_few, _late),
    "distinct": (_distinct, _numbers),
    "distinct-late": (_distinct, _late),
    "distinct-wide": (_distinct, _wide),
    "distinct-strings": (_distinct_texts, _different_texts),
    "distinct-lists": (_distinct, _lists),
    "distinct-words": (_distinct_texts, _words),
}
"""How keys and values of each shape are made."""
TWINS: Final[Mapping[str, str]] = {
    "narrow": "distinct",
    "skewed": "distinct",
    "late": "distinct-late",
    "wide": "distinct-wide",
    "strings": "distinct-strings",
    "lists": "distinct-lists",
}
"""Shapes of few groups, and those in which every row is a group of its own: equal in rows, in the bytes of
each column and in the widest row, which is all that a model is told."""
