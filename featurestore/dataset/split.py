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
from dataclasses import dataclass
from typing import Any, Final, Protocol

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
    embargo: Duration | int | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "valid", _stored_form(self.valid))
        if self.test is not None:
            object.__setattr__(self, "test", _stored_form(self.test))
            if isinstance(self.test, int) != isinstance(self.valid, int):
                raise DefinitionError(
                    f"valid={self.valid!r} and test={self.test!r} are of different kinds",
                    "give both as dates or both as integers",
                )
            if isinstance(self.test, int) and isinstance(self.valid, int):
                _check_order(self.valid, self.test, self.valid, self.test)
        if isinstance(self.embargo, bool) or (isinstance(self.embargo, int) and self.embargo < 0):
            raise DefinitionError(f"embargo={self.embargo!r} is not a length of time")
        if self.embargo is not None and not isinstance(self.embargo, int):
            object.__setattr__(self, "embargo", Duration.parse(self.embargo))

    def parts(self) -> tuple[str, ...]:
        """Return ``train``, ``valid`` and, if there is a boundary for it, ``test``."""
        return (TRAIN, VALID) if self.test is None else (TRAIN, VALID, TEST)

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part as a range of times."""
        _check_part(self, part)
        valid = _steps(self.valid, schema)
        embargo = self._embargo_steps(schema)
        stop = None
        if self.test is not None:
            test = _steps(self.test, schema)
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

    def _embargo_steps(self, schema: TableSchema) -> int:
        if self.embargo is None:
            return 0
        embargo = self.embargo if isinstance(self.embargo, int) else Duration.parse(self.embargo)
        return time_steps(embargo, schema.time_unit, schema.time)

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        embargo = str(self.embargo) if isinstance(self.embargo, Duration) else self.embargo
        params: dict[str, Any] = {"valid": self.valid, "test": self.test, "embargo": embargo}
        return {"kind": "TimeSplit", "params": params}

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
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise DefinitionError(f"seed={self.seed!r} is not an integer from 0 on")
        if self.by is not None:
            by = (self.by,) if isinstance(self.by, str) else tuple(self.by)
            if not by or len(set(by)) != len(by):
                raise DefinitionError(
                    f"by={self.by!r} does not name columns, each once", "leave it out for the key"
                )
            object.__setattr__(self, "by", by)

    def parts(self) -> tuple[str, ...]:
        """Return ``train`` and those of ``valid`` and ``test`` whose share is not 0."""
        shares = ((VALID, self.valid), (TEST, self.test))
        return (TRAIN, *(name for name, share in shares if share > 0))

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part as a range of hashes."""
        _check_part(self, part)
        columns = schema.key if self.by is None else tuple(self.by)
        if not columns:
            raise DefinitionError(
                "HashSplit needs an entity and the table has no key",
                "pass by= with the columns that make one",
            )
        for name in columns:
            if schema[name].is_tensor:
                raise DefinitionError(f"tensor column {name!r} cannot make an entity")
        first = round(self.valid * HASH_SPACE)
        second = round((self.valid + self.test) * HASH_SPACE)
        bounds = {VALID: (0, first), TEST: (first, second), TRAIN: (second, HASH_SPACE)}
        return Selection(hashed=HashRange(columns, self.seed, *bounds[part]))

    def folds(self) -> tuple[Split, ...]:
        """Return itself: it evaluates once."""
        return (self,)

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        by = None if self.by is None else list(self.by)
        params: dict[str, Json] = {
            "valid": self.valid, "test": self.test, "by": by, "seed": self.seed,
        }  # fmt: skip
        return {"kind": "HashSplit", "params": params}

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal parts."""
        return fingerprint("split", self.spec(), HASH_VERSION)


def _stored_form(value: object) -> str | int:
    """Return a boundary as it is kept: an integer or ISO 8601 text."""
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


def _steps(boundary: TimeLike, schema: TableSchema) -> int:
    if schema.time is None:
        raise DefinitionError(
            f"TimeSplit at {boundary!r} needs a time column and the table has none",
            "ingest the table with time=, or split by HashSplit",
        )
    return to_steps(boundary, schema[schema.time].type, schema.time)


def _check_part(split: Split, part: str) -> None:
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
