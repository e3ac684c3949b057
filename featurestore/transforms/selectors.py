"""Selectors: which columns a transformer works on, said by type or pattern instead of by name.

A selector is a value: it holds no schema, compares by content and has a JSON form, so that a stored
definition keeps meaning "all numeric columns" and not the names of one day.

Always true: a selector gives columns in schema order; names given explicitly keep their own order.
Trade-off: ``numeric()`` and ``strings()`` leave out key and time columns, because a statistic of an
identifier or of the clock is almost never what is meant; name such a column to include it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, overload

import pyarrow as pa

from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import Json
from featurestore.schema import Field, TableSchema, normalise_type, type_from_text, type_to_text
from featurestore.transforms.base import register_codec

MAX_PATTERN: Final = 200
MAX_DEPTH: Final = 50

_FAMILIES: Final[Mapping[str, Callable[[pa.DataType], Any]]] = {
    "integer": pa.types.is_integer,
    "float": pa.types.is_floating,
    "boolean": pa.types.is_boolean,
    "decimal": pa.types.is_decimal,
    "timestamp": pa.types.is_timestamp,
    "duration": pa.types.is_duration,
    "date": pa.types.is_date,
    "list": pa.types.is_list,
}
_LEAVES: Final = {"numeric", "strings", "everything", "names", "matching", "dtype"}
_COMBINATIONS: Final = {"or": 2, "and": 2, "minus": 2, "not": 1}


@dataclass(frozen=True, slots=True)
class Selector:
    """A rule that picks columns of a schema; combine rules with ``|``, ``&``, ``-`` and ``~``.

    Made by :func:`numeric`, :func:`strings`, :func:`by_name`, :func:`matching`, :func:`by_dtype` and
    :func:`everything`, not directly.

    Parameters
    ----------
    rule : str
    arguments : tuple
        Strings for the basic rules, selectors for combinations.

    Examples
    --------
    >>> schema = TableSchema((Field("price", pa.float64()), Field("sector", pa.string())))
    >>> resolve(numeric() | by_name("sector"), schema)
    ('price', 'sector')
    >>> resolve(~numeric(), schema)
    ('sector',)
    """

    rule: str
    arguments: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.rule in _COMBINATIONS:
            fits = len(self.arguments) == _COMBINATIONS[self.rule] and all(
                isinstance(one, Selector) for one in self.arguments
            )
        else:
            fits = self.rule in _LEAVES and all(isinstance(one, str) for one in self.arguments)
        if not fits:
            raise DefinitionError(
                f"{self.rule!r} with {self.arguments!r} is not a selector",
                "use numeric(), strings(), by_name(), matching(), by_dtype() or everything()",
            )
        if self.rule == "matching":
            _check_pattern(self.arguments)
        if self.rule == "dtype":
            _check_dtypes(self.arguments)
        if self.depth > MAX_DEPTH:
            raise DefinitionError(
                f"a selector nests {self.depth} levels deep, the limit is {MAX_DEPTH}",
                "name the columns in one by_name()",
            )

    @property
    def depth(self) -> int:
        """How many combinations are nested in one another."""
        inner = [one.depth for one in self.arguments if isinstance(one, Selector)]
        return 1 + max(inner, default=0)

    def __or__(self, other: Selector) -> Selector:
        return Selector("or", (self, _checked(other)))

    def __and__(self, other: Selector) -> Selector:
        return Selector("and", (self, _checked(other)))

    def __sub__(self, other: Selector) -> Selector:
        return Selector("minus", (self, _checked(other)))

    def __invert__(self) -> Selector:
        return Selector("not", (self,))

    def names(self, schema: TableSchema) -> frozenset[str]:
        """Return the names of the columns it picks.

        Raises
        ------
        MissingColumnError
            If ``by_name`` names a column that does not exist.
        """
        if self.rule in _COMBINATIONS:
            sets: list[frozenset[str]] = [one.names(schema) for one in self.arguments]
            if self.rule == "or":
                return sets[0] | sets[1]
            if self.rule == "and":
                return sets[0] & sets[1]
            if self.rule == "minus":
                return sets[0] - sets[1]
            return frozenset(schema.names) - sets[0]
        if self.rule == "names":
            return frozenset(_known(self.arguments, schema))
        return frozenset(one.name for one in schema if self._matches(one, schema))

    def _matches(self, one: Field, schema: TableSchema) -> bool:
        if self.rule == "everything":
            return True
        if self.rule == "matching":
            return re.fullmatch(self.arguments[0], one.name) is not None
        if self.rule == "dtype":
            return not one.is_tensor and any(_is_of(one.type, text) for text in self.arguments)
        if one.name in schema.key or one.name == schema.time:
            return False
        return one.is_numeric if self.rule == "numeric" else one.is_string

    def to_json(self) -> Json:
        """Return ``[rule, argument, ...]``, nested for combinations."""
        inner = [one.to_json() if isinstance(one, Selector) else one for one in self.arguments]
        return [self.rule, *inner]

    @classmethod
    def from_json(cls, value: Any, depth: int = 1) -> Selector:
        """Return the selector :meth:`to_json` wrote.

        Raises
        ------
        DefinitionError
            If it is not one.
        """
        if not isinstance(value, list | tuple) or not value or not isinstance(value[0], str):
            raise DefinitionError(f"{value!r} is not a stored selector")
        if depth > MAX_DEPTH:
            raise DefinitionError(f"a stored selector nests deeper than {MAX_DEPTH} levels")
        rule, arguments = value[0], value[1:]
        if rule in _COMBINATIONS:
            return cls(rule, tuple(cls.from_json(one, depth + 1) for one in arguments))
        return cls(rule, tuple(arguments))


Selection: TypeAlias = "str | Sequence[str] | Selector"
"""Columns by name, by several names, or by a selector."""


def numeric() -> Selector:
    """Pick numbers and booleans, except key and time columns."""
    return Selector("numeric")


def strings() -> Selector:
    """Pick string columns, except key and time columns."""
    return Selector("strings")


def everything() -> Selector:
    """Pick all columns: key, time and tensors too."""
    return Selector("everything")


def by_name(*names: str) -> Selector:
    """Pick columns by name; a name that the schema lacks is an error."""
    return Selector("names", names)


def matching(pattern: str) -> Selector:
    """Pick columns whose whole name matches a regular expression of at most 200 characters.

    Examples
    --------
    >>> matching("temp_.*").rule
    'matching'
    """
    return Selector("matching", (pattern,))


def by_dtype(*types: pa.DataType | str) -> Selector:
    """Pick scalar columns by type.

    Parameters
    ----------
    *types : pyarrow.DataType or str
        A type (``pa.int64()``), its written form (``"int64"``, ``"timestamp[us, UTC]"``), or a
        family: ``integer float boolean decimal timestamp duration date list``.
    """
    texts = [one if isinstance(one, str) else type_to_text(normalise_type(one)) for one in types]
    return Selector("dtype", tuple(texts))


def resolve(selection: Selection, schema: TableSchema) -> tuple[str, ...]:
    """Return the names of the selected columns.

    Names given explicitly keep the order they were given in; a selector gives schema order and may
    give no column at all.

    Raises
    ------
    MissingColumnError
        If a name does not exist; the message lists close matches.
    SchemaError
        If a name is given twice.
    """
    if isinstance(selection, Selector):
        chosen = selection.names(schema)
        return tuple(name for name in schema.names if name in chosen)
    checked = normalise_selection(selection)
    names = (checked,) if isinstance(checked, str) else checked
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise SchemaError(f"columns {repeated} are selected more than once", "name each once")
    return _known(names, schema)


@overload
def normalise_selection(selection: str | Sequence[str]) -> str | tuple[str, ...]: ...


@overload
def normalise_selection(selection: Selector) -> Selector: ...


def normalise_selection(selection: Selection) -> str | tuple[str, ...] | Selector:
    """Return a selection as it is kept in a definition.

    Raises
    ------
    DefinitionError
        If it is neither a name, nor names, nor a selector.
    """
    if isinstance(selection, str | Selector):
        return selection
    names = tuple(selection) if isinstance(selection, Sequence) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise DefinitionError(
            f"{selection!r} does not select columns", "give a name, a list of names or a selector"
        )
    return names


def _known(names: Sequence[str], schema: TableSchema) -> tuple[str, ...]:
    for name in names:
        schema[name]  # raises MissingColumnError, with close matches
    return tuple(names)


def _checked(other: object) -> Selector:
    if not isinstance(other, Selector):
        raise DefinitionError(
            f"a selector cannot be combined with {other!r}", "wrap names in by_name()"
        )
    return other


def _check_pattern(arguments: tuple[str, ...]) -> None:
    pattern = arguments[0] if len(arguments) == 1 else ""
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise DefinitionError(
            f"matching() takes one pattern of 1 to {MAX_PATTERN} characters, not {arguments!r}",
            "shorten it, or join several with |",
        )
    # A repeated group that itself repeats can take exponential time on a name that does not match.
    if re.search(r"[*+}]\s*\)+\s*[*+{]", pattern):
        raise DefinitionError(
            f"the pattern {pattern!r} repeats a repetition, which can take for ever",
            "write it without nested repetition",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise DefinitionError(
            f"{pattern!r} is not a regular expression: {error}", "correct the pattern"
        ) from error


def _check_dtypes(texts: tuple[str, ...]) -> None:
    for text in texts:
        if text not in _FAMILIES:
            type_from_text(text)


def _is_of(type_: pa.DataType, text: str) -> bool:
    if text in _FAMILIES:
        return bool(_FAMILIES[text](type_))
    return bool(type_ == type_from_text(text))


register_codec(Selector, "$selector", Selector.to_json, Selector.from_json)
