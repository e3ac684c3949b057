"""Arguments as callers give them: made plain values here, or refused with what was given.

Always true: what a function here returns is of the plain Python type it says, so that nothing behind
it meets a NumPy number, a frame or None where it expects a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Final

from featurestore.errors import InvalidInputError

_SHOWN: Final = 80
_MOST: Final = 2**63 - 1


def shown(value: object) -> str:
    """Return a value as messages show it: on one short line.

    Examples
    --------
    >>> shown([1, None])
    '[1, None]'
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write the largest
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({type(value).__name__})"


def as_whole(value: object) -> int | None:
    """Return a whole number, of Python or NumPy; None for anything else, booleans included."""
    return None if isinstance(value, bool) or not isinstance(value, Integral) else int(value)


def whole_number(value: object, what: str, lowest: int = 0) -> int:
    """Return a whole number that counts something.

    Raises
    ------
    InvalidInputError
        For anything else, booleans and fractions included, and for less than ``lowest``.

    Examples
    --------
    >>> whole_number(3, "last")
    3
    """
    number = as_whole(value)
    if number is not None and lowest <= number <= _MOST:
        return number
    raise InvalidInputError(
        f"{what} is {shown(value)}", f"give a whole number, {lowest} or more, such as {lowest + 2}"
    )


def text(value: object, what: str) -> str:
    """Return a text.

    Raises
    ------
    InvalidInputError
        For anything else.
    """
    if isinstance(value, str):
        return value
    raise InvalidInputError(f"{shown(value)} is no name of a {what}", "give its name as text")


def column_names(columns: object) -> tuple[str, ...]:
    """Return the names that one name, or several of them, are.

    Raises
    ------
    InvalidInputError
        For anything else: numbers, expressions, nested lists, bytes.

    Examples
    --------
    >>> column_names("x"), column_names(["x", "y"])
    (('x',), ('x', 'y'))
    """
    if isinstance(columns, str):
        return (columns,)
    if isinstance(columns, Iterable) and not isinstance(columns, bytes | Mapping):
        names = tuple(columns)
        if all(isinstance(one, str) for one in names):
            return names
    raise InvalidInputError(
        f"{shown(columns)} does not name columns", "give a name or several, like 'x' or ['x', 'y']"
    )


def format_names(names: Sequence[str], most: int = 5) -> str:
    """Return names with commas between them, the first few of many.

    Examples
    --------
    >>> format_names(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
