"""Checks of a configuration: what each value may be, the words that say so, and what is not known."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields
from typing import Any, Final, TypeVar

from featurestore.errors import InvalidInputError

_S = TypeVar("_S")
Check = tuple[Callable[[Any], bool], str]


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return check, f"an integer from {low} on"


def choice(*values: Any) -> Check:
    return lambda value: value in values and type(value) in map(type, values), f"one of {values}"


def optional(check: Check) -> Check:
    return lambda value: value is None or check[0](value), check[1]


def names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(is_text, value))


TEXT: Final[Check] = (is_text, "a non-empty string")
TEXT_OR_WHOLE: Final[Check] = (
    lambda value: is_text(value) or whole(0)[0](value),
    "a string or an integer",
)
FLAG: Final[Check] = (lambda value: isinstance(value, bool), "true or false")
COLUMNS: Final[Check] = (names, "a list of column names, at least one")
SELECTION: Final[Check] = (
    lambda value: isinstance(value, bool) or names(value),
    "true, false or a list of column names",
)
REFERENCE: Final[Check] = (
    lambda value: is_text(value) and value.count(":") == 1 and all(value.split(":")),
    "a Python object as 'module:name'",
)
CLASS_WEIGHT: Final[Check] = (
    lambda value: (
        value == "balanced"
        or (
            isinstance(value, Mapping)
            and bool(value)
            and all(str(key).isdecimal() for key in value)
            and all(is_number(one) and one > 0 for one in value.values())
        )
    ),
    "'balanced', or a table from class to a number above 0, such as { 1 = 4.0 }",
)
EXECUTION: Final[Check] = (
    lambda value: value == "auto" or whole(1)[0](value),
    "'auto' or an integer from 1 on",
)
BOUNDARY: Final[Check] = (
    lambda value: is_text(value) or is_number(value) or hasattr(value, "isoformat"),
    "a date, an integer time, or for kind='hash' a share in [0, 1)",
)


def key_of(check: Check, **default: Any) -> Any:
    """Return a dataclass field that carries its check."""
    return field(metadata={"check": check}, **default)


def section_of(section: type[_S], values: Any, origin: str, name: str) -> _S:
    """Return a section whose fields carry their checks, from the table that describes it."""
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{origin}: {name} is {values!r}", f"make it a table: [{name}]")
    known = {one.name: one for one in fields(section)}  # type: ignore[arg-type]
    refuse_unknown(values, known, f"{origin} [{name}]", "key")
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    for key, value in found.items():
        check, says = known[key].metadata["check"]
        if value is None or not check(value):
            raise InvalidInputError(
                f"{origin} [{name}]: {key} = {values[key]!r} is not allowed", f"give {says}"
            )
    try:
        return section(**found)
    except TypeError as error:
        missing = [key for key in _required(section) if key not in found]
        raise InvalidInputError(
            f"{origin} [{name}]: {missing} must be given and is not" if missing else str(error),
            "; ".join(f"{key} is {known[key].metadata['check'][1]}" for key in missing),
        ) from None


def _required(section: type[Any]) -> list[str]:
    return [
        one.name
        for one in fields(section)
        if one.default is MISSING and one.default_factory is MISSING
    ]


def refuse_unknown(
    values: Mapping[str, Any], known: Mapping[str, Any], where: str, what: str
) -> None:
    """Refuse a key that is not known, with the closest that is."""
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            shown = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidInputError(
                f"{where} has an unknown {what} {key!r} = {values[key]!r}",
                f"{shown}known ones are {list(known)}",
            )
