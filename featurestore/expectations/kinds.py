"""The kinds of expectations there are, by the name they are stored with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from featurestore.errors import FormatError
from featurestore.expectations.drift import ExpectDrift
from featurestore.expectations.expectation import (
    Expectation,
    ExpectFresh,
    ExpectNulls,
    ExpectRange,
    ExpectUnique,
    ExpectValues,
)

KINDS: Final[Mapping[str, type[Expectation]]] = {
    one.kind: one
    for one in (ExpectRange, ExpectNulls, ExpectValues, ExpectUnique, ExpectFresh, ExpectDrift)
}


def expectation_from_json(value: Mapping[str, Any]) -> Expectation:
    """Return the expectation that :meth:`Expectation.to_json` wrote.

    Raises
    ------
    FormatError
        If it is of a kind, or has a member, that this version does not know.
    """
    given = dict(value)
    kind = KINDS.get(str(given.pop("kind", None)))
    if kind is None or given.keys() - {one.name for one in fields(kind)}:
        raise FormatError(
            f"the expectation {dict(value)!r} was stated by a newer version", "upgrade featurestore"
        )
    return kind(**given)
