"""Types and ranges of what a store says, checked when it is read.

A checksum says that a file is as it was written, not who wrote it. So nothing that was read is taken
for a number, a name or a list before it was looked at; what is not, is damage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from featurestore.errors import CorruptionError, InvalidInputError

T = TypeVar("T")

_MOST: Final = 2**63
_REMEDY: Final = "restore the store from a backup; do not trust it if you did not write it"
_MALFORMED: Final = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def read_as(what: str, read: Callable[[], T]) -> T:
    """Return what ``read`` makes of something stored; what it trips over is damage to ``what``.

    Raises
    ------
    CorruptionError
    """
    try:
        return read()
    except (CorruptionError, InvalidInputError) as error:
        raise CorruptionError(f"{what} is not valid: {error.problem}", _REMEDY) from error
    except _MALFORMED as error:
        raise CorruptionError(f"{what} is not valid: {error!r}", _REMEDY) from error


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise CorruptionError(f"the store holds {value!r} where a text must be", _REMEDY)
    return value


def count(value: Any) -> int:
    """Return a whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST:
        raise CorruptionError(f"the store holds {value!r} where a count must be", _REMEDY)
    return value


def whole(value: Any) -> int | None:
    """Return a whole number, or None."""
    if value is not None and (
        not isinstance(value, int) or isinstance(value, bool) or not -_MOST <= value < _MOST
    ):
        raise CorruptionError(f"the store holds {value!r} where a number must be", _REMEDY)
    return value


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise CorruptionError(f"the store holds {value!r} where a list must be", _REMEDY)
    return tuple(text(one) for one in value)


def counts(value: Any) -> Mapping[str, int]:
    """Return a mapping from names to counts."""
    if not isinstance(value, Mapping):
        raise CorruptionError(f"the store holds {value!r} where counts must be", _REMEDY)
    return {text(name): count(one) for name, one in value.items()}
