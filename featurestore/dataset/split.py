"""Splits: which rows a model trains on, is tuned on, and is judged on.

A split is a specification. ``parts()`` names its parts and ``rows(part, schema)`` gives each as a
selection of rows; it holds no data and names no partition. Parts never share a row, and a row's part
never changes when rows are appended.

``folds()`` is there for splits that evaluate more than once: each fold is a split of its own.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from featurestore.arguments import as_whole
from featurestore.dataset.selection import HASH_SPACE, HashRange, Selection, TimeRange
from featurestore.engines.hashing import HASH_VERSION
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import TableSchema, time_steps
from featurestore.times import TimeLike, to_steps
from featurestore.units import Duration

TRAIN: Final = "train"
VALID: Final = "valid"
TEST: Final = "test"
ALL: Final = "all"
Length: TypeAlias = "Duration | dt.timedelta | int | str"
"""A length of time; an integer counts steps of an integer time column."""
_TOO_FINE: Final = re.compile(r"[.,]\d{7,}")


class Split(Protocol):
    """What a dataset needs of a split."""

    def parts(self) -> tuple[str, ...]:
        """Return the names of its parts, ``train`` first."""

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part.

        Raises
        ------
        NotFoundError
            If there is no such part.
        DefinitionError
            If the split does not fit such a table.
        """

    def folds(self) -> tuple[Split, ...]:
        """Return the evaluations it consists of; itself alone unless it has several."""

    def spec(self) -> dict[str, Json]:
        """Return it as JSON: ``{"kind", "params"}``."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal parts."""


@dataclass(frozen=True, slots=True)
class TimeSplit:
    """Train on the past, validate on what follows, test on what follows that.

    With boundaries ``valid`` and ``test``:

    * train: ``time < valid - embargo``
    * valid: ``valid <= time < test - embargo`` (to the end of the table without ``test``)
    * test: ``time >= test``

    Parameters
    ----------
    valid, test : str, date, datetime or int
        ISO 8601, or an integer for an integer time column; a date is its midnight. With a UTC offset
        if the time column has a zone (it may be left out where that is UTC), without one if not.
    embargo : str, timedelta, Duration or int, optional
        Rows this long before each boundary belong to no part: what their label or their features
        overlap with is on the other side. An integer for an integer time column.

    Raises
    ------
    InvalidInputError, DefinitionError
        If a boundary is not a point in time, or ``test`` is not after ``valid``.

    Examples
    --------
    >>> split = TimeSplit(valid="2013-10-01", test="2013-11-15", embargo="1d")
    >>> split.parts()
    ('train', 'valid', 'test')
    """

    valid: TimeLike
    test: TimeLike | None = None
    embargo: Length | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", boundary(self.valid))
        if self.test is not None:
            object.__setattr__(self, "test", boundary(self.test))
            if isinstance(self.test, int) != isinstance(self.valid, int):
                raise DefinitionError(
                    f"valid={self.valid!r} and test={self.test!r} are of different kinds",
                    "give both as dates or both as integers",
                )
            if isinstance(self.test, int) and isinstance(self.valid, int):
                _check_order(self.valid, self.test, self.valid, self.test)
        object.__setattr__(self, "embargo", length(self.embargo, "embargo"))

    def parts(self) -> tuple[str, ...]:
        """Return ``train``, ``valid`` and, if there is a boundary for it, ``test``."""
        return (TRAIN, VALID) if self.test is None else (TRAIN, VALID, TEST)

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part as a range of times."""
        check_part(self, part)
        valid = boundary_steps(self.valid, schema)
        embargo = length_steps(self.embargo, schema)
        stop = None
        if self.test is not None:
            test = boundary_steps(self.test, schema)
            _check_order(valid, test, self.valid, self.test)
            stop = test - embargo
            if stop <= valid:
                raise DefinitionError(
                    f"an embargo of {self.embargo} leaves no rows between valid={self.valid!r} and "
                    f"test={self.test!r}",
                    "shorten the embargo or move the boundaries apart",
                )
            if part == TEST:
                return Selection((TimeRange(test, None),))
        ranges = {TRAIN: TimeRange(None, valid - embargo), VALID: TimeRange(valid, stop)}
        return Selection((ranges[part],))

    def folds(self) -> tuple[Split, ...]:
        """Return itself: it evaluates once."""
        return (self,)

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {"kind": "TimeSplit", "params": spec_of(self)}

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal parts."""
        return fingerprint("split", self.spec())


@dataclass(frozen=True, slots=True)
class HashSplit:
    """Give each entity, with all its rows, to one part by a hash of its key.

    Which part an entity is in depends on its key and the seed alone: not on other rows, the order
    of rows, partitions, appends or the engine. Parts of few entities are only roughly as large as
    asked for. Of ``[0, 1)``, ``valid`` comes first, then ``test``, then ``train``; so a part keeps
    its entities when only the fractions after it change.

    Parameters
    ----------
    valid, test : float
        Shares of the entities, ``0 <= share < 1``, together below 1. A part of share 0 is absent.
    by : str or sequence of str, optional
        The columns that make an entity; the table's key if not given. Nulls equal each other.
    seed : int
        Not negative; another seed deals the entities anew.

    Raises
    ------
    DefinitionError
        If the shares do not leave a training part.

    Examples
    --------
    >>> HashSplit(valid=0.2, test=0).parts()
    ('train', 'valid')
    """

    valid: float = 0.1
    test: float = 0.1
    by: str | Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in ((VALID, self.valid), (TEST, self.test)):
            if isinstance(share, bool) or not 0 <= share < 1:
                raise DefinitionError(
                    f"{name}={share!r} is not a share of the entities", "give a number in [0, 1)"
                )
        if self.valid + self.test >= 1 or self.valid + self.test == 0:
            raise DefinitionError(
                f"valid={self.valid} and test={self.test} together are {self.valid + self.test}",
                "let them sum to more than 0 and less than 1, the rest is for training",
            )
        check_seed(self.seed)
        object.__setattr__(self, "by", entity_names(self.by))

    def parts(self) -> tuple[str, ...]:
        """Return ``train`` and those of ``valid`` and ``test`` whose share is not 0."""
        shares = ((VALID, self.valid), (TEST, self.test))
        return (TRAIN, *(name for name, share in shares if share > 0))

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part as a range of hashes."""
        check_part(self, part)
        columns = entity_columns(self.by, schema)
        first = round(self.valid * HASH_SPACE)
        second = round((self.valid + self.test) * HASH_SPACE)
        bounds = {VALID: (0, first), TEST: (first, second), TRAIN: (second, HASH_SPACE)}
        return Selection(hashed=HashRange(columns, self.seed, *bounds[part]))

    def folds(self) -> tuple[Split, ...]:
        """Return itself: it evaluates once."""
        return (self,)

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {"kind": "HashSplit", "params": spec_of(self)}

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal parts."""
        return fingerprint("split", self.spec(), HASH_VERSION)


# --- what splits are made of -------------------------------------------------------------------------


def spec_of(split: Any) -> dict[str, Json]:
    """Return the fields of a split as JSON."""
    return {one.name: _plain(getattr(split, one.name)) for one in fields(split)}


def _plain(value: Any) -> Json:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Duration) else value


def boundary(value: object) -> str | int:
    """Return a boundary as it is kept: an integer or ISO 8601 text.

    Raises
    ------
    DefinitionError
        If it is no point in time.
    """
    if (whole := as_whole(value)) is not None:
        return whole
    if isinstance(value, np.datetime64):
        coarse = value.astype("datetime64[us]")
        value = coarse.item() if coarse == value else value  # refused below if it is finer
    text = value.isoformat() if isinstance(value, dt.date) else value  # datetimes are dates too
    try:
        if isinstance(text, str) and not _TOO_FINE.search(text):
            return dt.datetime.fromisoformat(text).isoformat()
    except ValueError:
        pass  # the message below says what was expected
    raise DefinitionError(
        f"{value!r} is not a boundary in time",
        "give a date, a datetime or ISO text like '2013-10-01' (microseconds at the finest), or "
        "an integer for an integer time column",
    )


def boundary_steps(point: TimeLike, schema: TableSchema) -> int:
    """Return a boundary in steps of a table's time column."""
    if schema.time is None:
        raise DefinitionError(
            f"a split at {point!r} needs a time column and the table has none",
            "ingest the table with time=, or split by HashSplit",
        )
    return to_steps(point, schema[schema.time].type, schema.time)


def length(value: Length | None, what: str) -> Duration | int | None:
    """Return a length of time as it is kept; None stays None.

    Raises
    ------
    DefinitionError, InvalidInputError
        If it is none.
    """
    if value is None:
        return None
    if isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise DefinitionError(f"{what}={value!r} is not a length of time", "give 0 or more")
    return value if isinstance(value, int) else Duration.parse(value)


def length_steps(value: Length | None, schema: TableSchema) -> int:
    """Return a length in steps of a table's time column; 0 for None."""
    if value is None:
        return 0
    span = value if isinstance(value, int) else Duration.parse(value)
    return time_steps(span, schema.time_unit, schema.time)


def entity_names(by: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the columns that make an entity as they are kept; None for the table's key."""
    if by is None:
        return None
    names = (by,) if isinstance(by, str) else tuple(by)
    if not names or len(set(names)) != len(names):
        raise DefinitionError(
            f"by={by!r} does not name columns, each once", "leave it out for the key"
        )
    return names


def entity_columns(by: str | Sequence[str] | None, schema: TableSchema) -> tuple[str, ...]:
    """Return the columns that make an entity in a table."""
    columns = schema.key if by is None else tuple(by)
    if not columns:
        raise DefinitionError(
            "a split by entity needs one and the table has no key",
            "pass by= with the columns that make one",
        )
    for name in columns:
        if schema[name].is_tensor:
            raise DefinitionError(f"tensor column {name!r} cannot make an entity")
    return columns


def check_seed(seed: int) -> None:
    """Refuse what is no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DefinitionError(f"seed={seed!r} is not an integer from 0 on")


def check_part(split: Split, part: str) -> None:
    """Refuse a part that a split does not have."""
    if part not in split.parts():
        raise NotFoundError(
            f"{type(split).__name__} has no part {part!r}",
            f"its parts are {list(split.parts())}; give it a boundary or share for {part!r}",
        )


def _check_order(valid: int, test: int, valid_text: object, test_text: object) -> None:
    if test <= valid:
        raise DefinitionError(
            f"test={test_text!r} is not after valid={valid_text!r}", "swap or move the boundaries"
        )
