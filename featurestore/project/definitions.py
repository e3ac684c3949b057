"""Definitions: what a ``features.py`` says belongs to a table.

Always true: nothing here knows a store; it is a list that ``featurestore plan`` compares with one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore.expectations.expectation import Expectation, require_expectations
from featurestore.features import definitions_of
from featurestore.plan.definition import FeatureDefinition
from featurestore.schema import check_name
from featurestore.transforms.base import Transformer
from featurestore.transforms.function import feature_from


@dataclass(frozen=True, slots=True)
class Stated:
    """One definition and where it was written.

    Parameters
    ----------
    definition : FeatureDefinition
    line : int
        In the file that defined it.
    """

    definition: FeatureDefinition
    line: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a ``features.py`` says of all tables.

    Parameters
    ----------
    features : mapping of str to tuple of Stated
    expectations : mapping of str to tuple of Expectation
        Of the tables of which it says any, or that there are none.
    """

    features: Mapping[str, tuple[Stated, ...]]
    expectations: Mapping[str, tuple[Expectation, ...]]


class Definitions:
    """The features that a table is to have; the interface of :class:`Table`, computing nothing.

    Parameters
    ----------
    table : str
        It need not be there yet.

    Examples
    --------
    >>> import featurestore as fs
    >>> flights = fs.Definitions("flights")
    >>> flights.add(fs.Rolling("delay", by="carrier", window="7d", stats=["mean"]))
    >>> @flights.feature(inputs=["delay"])
    ... def late(df):
    ...     return df["delay"] > 15
    >>> flights
    Definitions('flights', 2 definitions)
    """

    def __init__(self, table: str) -> None:
        self._table = check_name(table, "table")
        self._stated: list[Stated] = []
        self._expected: list[Expectation] | None = None

    @property
    def table(self) -> str:
        return self._table

    @property
    def stated(self) -> tuple[Stated, ...]:
        """The definitions, as they were added."""
        return tuple(self._stated)

    @property
    def expectations(self) -> tuple[Expectation, ...] | None:
        """What is expected of the table's values; None if nothing is said of that."""
        return None if self._expected is None else tuple(self._expected)

    def expect(self, *expectations: Expectation) -> None:
        """Say what is expected of the table's values, instead of all that was stated; see :meth:`Table.expect`.

        Called without any, nothing is to be expected. Not called, what the table has stays.

        Raises
        ------
        InvalidInputError
            For what is no expectation; what depends on the table is judged by ``plan``.
        """
        require_expectations(expectations)
        self._expected = [*(self._expected or ()), *expectations]

    def __repr__(self) -> str:
        return f"Definitions({self._table!r}, {len(self._stated)} definitions)"

    def add(self, *transformers: Transformer, fit_on: Any = None) -> None:
        """Say that the table is to have these features; parameters as of :meth:`Table.add`.

        Raises
        ------
        InvalidInputError, DefinitionError
            As there; what depends on the table is judged by ``plan``.
        """
        line = sys._getframe(1).f_lineno
        self._stated += [Stated(one, line) for one in definitions_of(transformers, fit_on)]

    def feature(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Say that the table is to have what a function gives; options as of :meth:`Table.feature`.

        The function is returned unchanged.
        """

        def define(function: Callable[..., Any]) -> Callable[..., Any]:
            definition = FeatureDefinition(feature_from(function, **options))
            self._stated.append(Stated(definition, function.__code__.co_firstlineno))
            return function

        return define if function is None else define(function)
