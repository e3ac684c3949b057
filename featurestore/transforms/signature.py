"""Arguments of definitions, refused by what their signature says before anything looks at them.

Always true: a definition holds plain Python values of the types that it declares, so that nothing that
computes meets a NumPy number or a text where it counts, and its fingerprint can be told. What lies
behind the type (a range, a choice, a column of the table) each transformer checks by itself.
"""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from featurestore.arguments import shown
from featurestore.errors import DefinitionError
from featurestore.transforms.selectors import Selector
from featurestore.units import Duration


def check_arguments(kind: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that are not of the types that the class declares.

    Parameters
    ----------
    kind : type
        A class of definitions whose ``__init__`` declares types as text.
    args, kwargs
        What it is called with. That they are too many, or of other names, Python says itself.

    Raises
    ------
    DefinitionError

    Examples
    --------
    >>> from featurestore.transforms.lag import Lag
    >>> check_arguments(Lag, ["close"], {"periods": [1, 2]})
    """
    checks = _checks(kind)
    for name, value in zip(_placed(kind), args, strict=False):
        _check(kind, name, checks.get(name), value)
    for name, value in kwargs.items():
        _check(kind, name, checks.get(name), value)


@cache
def _placed(kind: type) -> tuple[str, ...]:
    """Return the names of the arguments that can be given by position."""
    found = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    return tuple(one.name for one in found if one.kind is one.POSITIONAL_OR_KEYWORD)


def _check(kind: type, name: str, rule: _Rule | None, value: Any) -> None:
    if rule is not None and not rule[0](value):
        raise DefinitionError(f"{kind.__name__} has {name}={shown(value)}", f"give {rule[1]}")


# --- what there is ---------------------------------------------------------------------------------


def _is_whole(value: Any) -> bool:
    return type(value) is int and value.bit_length() <= 128  # longer ones overflow in messages too


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)  # of NumPy float64 is a float


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return not any("\ud800" <= one <= "\udfff" for one in value)  # half a character has no UTF-8


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    """Whether it is a sequence, in whose order there is nothing accidental."""
    listed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not listed or isinstance(value, str | bytes | Mapping):
        return False
    try:
        return all(of(one) for one in value)
    except TypeError:  # an array without dimensions has a length that it does not tell
        return False


def _are_names(value: Any) -> bool:
    return _is_text(value) or _is_list(value, _is_text)


def _is_pair(value: Any) -> bool:
    return _is_list(value, _is_text) and len(value) == 2


def _are_pairs(value: Any) -> bool:
    given = list(value.items()) if isinstance(value, Mapping) else value
    return _is_list(given, _is_pair)


def _is_category(value: Any) -> bool:
    return type(value) in (bool, int) or _is_text(value)


def _is_type(value: Any) -> bool:
    return isinstance(value, pa.DataType) or _is_text(value)


def _are_types(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_text(name) and _is_type(one) for name, one in value.items())
    return _is_type(value)


_Rule = tuple[Callable[[Any], bool], str]

_NUMBERS: Final = (lambda value: _is_list(value, _is_number), "numbers")
_NAMES: Final = (_are_names, "a name or several, like 'x' or ['x', 'y']")
_RULES: Final[Mapping[str, _Rule]] = {
    "bool": (lambda value: type(value) is bool, "True or False"),
    "int": (_is_whole, "a whole number, as a Python int"),
    "float": (_is_number, "a number, as a Python int or float"),
    "str": (_is_text, "a text"),
    "By": _NAMES,
    "Category": (_is_category, "a text, an integer or a boolean"),
    "Pairs": (
        lambda value: _are_names(value) or _are_pairs(value),
        "shared names, or {'own column': 'column of the other table'}",
    ),
    "Renaming": (_are_pairs, "new names by old ones, like {'old': 'new'}"),
    "Shared": (
        lambda value: type(value) is bool or _is_list(value, lambda one: _is_list(one, _is_text)),
        "True, False or groups of columns that share a vocabulary",
    ),
    "Value": (lambda value: _is_number(value) or _is_category(value), "a number, text or boolean"),
    "Selection": (
        lambda value: isinstance(value, Selector) or _are_names(value),
        "a name, a list of names or a selector",
    ),
    "Types": (_are_types, "a type, or types by the names of outputs"),
    "Mapping[str, Any]": (
        lambda value: isinstance(value, Mapping) and all(map(_is_text, value)),
        "values by name, like {'limit': 20}",
    ),
    "Sequence[Category]": (
        lambda value: _is_text(value) or _is_list(value, _is_category),
        "a list of strings, of integers or of booleans",
    ),
    "Sequence[float]": _NUMBERS,
    "Sequence[int]": (lambda value: _is_list(value, _is_whole), "whole numbers"),
    "Sequence[str]": _NAMES,
    "tuple[float, float]": (
        lambda value: _is_list(value, _is_number) and len(value) == 2,
        "two numbers",
    ),
    "tuple[int, int]": (
        lambda value: _is_list(value, _is_whole) and len(value) == 2,
        "two whole numbers",
    ),
    "tuple[str, ...]": _NAMES,
    "dt.timedelta": (lambda value: isinstance(value, dt.timedelta), "a length of time"),
    "Duration": (lambda value: isinstance(value, Duration), "a length of time"),
    "Path": (lambda value: isinstance(value, Path), "a path"),
    "None": (lambda value: value is None, "None"),
}


@cache
def _checks(kind: type) -> Mapping[str, _Rule | None]:
    """Return the rule of each parameter, in order; None where its type is not told here."""
    found = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [one for one in list(found)[1:] if one.kind in plain]
    return {
        one.name: _rule("Renaming" if one.name == "rename" else one.annotation) for one in named
    }


def _rule(annotation: Any) -> _Rule | None:
    parts = str(annotation).split(" | ")
    rules = [_RULES.get(one) for one in parts]
    known = [one for one in rules if one is not None]
    if len(known) < len(parts):
        return None
    if annotation in ("By", "Pairs", "Renaming", "Types"):
        known.append(_RULES["None"])
    told = dict.fromkeys(words for _, words in known)
    return (lambda value: any(holds(value) for holds, _ in known)), " or ".join(told)
