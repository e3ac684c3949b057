"""Splits of several folds: each trains and is judged on its own, and all together judge a model.

* :class:`WalkForward`: train on the past, judge on what follows, move on, again.
* :class:`PurgedKFold`: each stretch of time is judged once (or each combination of stretches), by a
  model that trained on what lies before and after.
* :class:`HashKFold`: each entity is judged once, with all its rows.

A label looks ahead: over ``horizon`` it knows what comes after its row. A row trained on whose label
overlaps in time with that of a row it is judged on has seen a part of the answer. Such rows are
*purged*: they belong to no part of that fold. An ``embargo`` keeps further rows away, for what is
correlated beyond that.

Always true: like every split these are specifications, which hold no data; a row's part in a fold
depends on its own time, or key, alone, and does not change with appends. Boundaries are therefore
given, not counted off: stretches are equal in time, not in rows.

Source: M. Lopez de Prado, "Advances in Financial Machine Learning", 2018, chapters 7 and 12.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Final

from featurestore.arguments import whole_number
from featurestore.dataset.selection import HASH_SPACE, HashRange, Selection, TimeRange
from featurestore.dataset.split import (
    TRAIN,
    VALID,
    Length,
    Split,
    boundary,
    boundary_steps,
    check_part,
    check_seed,
    entity_columns,
    entity_names,
    length,
    length_steps,
    spec_of,
)
from featurestore.engines.hashing import HASH_VERSION
from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import TableSchema
from featurestore.times import TimeLike

MOST_FOLDS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Fold:
    """One evaluation of a split of several: a split of two parts.

    Parameters
    ----------
    of : FoldedSplit
    number : int
        From 0 on.
    """

    of: FoldedSplit
    number: int

    def parts(self) -> tuple[str, ...]:
        """Return ``train`` and ``valid``."""
        return (TRAIN, VALID)

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Return the rows of a part."""
        check_part(self, part)
        train, valid = self.of.fold(self.number, schema)
        return train if part == TRAIN else valid

    def folds(self) -> tuple[Split, ...]:
        """Return itself: it evaluates once."""
        return (self,)

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {"kind": "Fold", "params": {"of": self.of.spec(), "number": self.number}}

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal parts."""
        return fingerprint("fold", self.of.fingerprint, self.number)


@dataclass(frozen=True)
class FoldedSplit(ABC):
    """What splits of several folds share: only their folds have parts."""

    def parts(self) -> tuple[str, ...]:
        """Return nothing: each fold has its own parts."""
        return ()

    def rows(self, part: str, schema: TableSchema) -> Selection:
        """Refuse: each fold has its own parts.

        Raises
        ------
        DefinitionError
            Always.
        """
        raise DefinitionError(
            f"{type(self).__name__} has {self.count} folds, each with its own part {part!r}",
            "take them one by one: for fold in dataset.folds",
        )

    def folds(self) -> tuple[Split, ...]:
        """Return its evaluations, in order."""
        return tuple(Fold(self, number) for number in range(self.count))

    @property
    @abstractmethod
    def count(self) -> int:
        """How many folds there are."""

    @abstractmethod
    def fold(self, number: int, schema: TableSchema) -> tuple[Selection, Selection]:
        """Return the rows that one fold trains on, and those it is judged on.

        Raises
        ------
        DefinitionError
            If the split does not fit such a table.
        """

    def spec(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {"kind": type(self).__name__, "params": spec_of(self)}

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal folds."""
        return fingerprint("split", self.spec(), HASH_VERSION)


@dataclass(frozen=True)
class WalkForward(FoldedSplit):
    """Train on the past, validate on what follows, move on by a step and train again.

    Fold ``i`` validates on ``valid`` from ``first + i * step`` on, and trains on the rows whose labels
    were known by then: ``time < first + i * step - horizon - embargo``.

    Parameters
    ----------
    first : str, date, datetime or int
        Where the first validation begins; as ``valid`` of :class:`TimeSplit`.
    n_splits : int
        How many times.
    valid : str, timedelta, Duration or int
        How long each validation is. An integer for an integer time column, as all lengths.
    step : str, timedelta, Duration or int, optional
        How far each goes on; as long as the validation if not given, so that they neither overlap
        nor leave gaps.
    train : str, timedelta, Duration or int, optional
        How long the training part is, which slides along; all that came before if not given.
    horizon : str, timedelta, Duration or int, optional
        How far labels look ahead of their rows.
    embargo : str, timedelta, Duration or int, optional
        How much farther training stays away.

    Raises
    ------
    InvalidInputError, DefinitionError
        If an argument is not what it should be.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field
    >>> split = WalkForward(first=100, n_splits=2, valid=10, train=50, horizon=5)
    >>> schema = TableSchema((Field("t", pa.int64()),), (), "t")
    >>> for fold in split.folds():
    ...     print([fold.rows(part, schema).times[0] for part in fold.parts()])
    [TimeRange(lower=45, upper=95), TimeRange(lower=100, upper=110)]
    [TimeRange(lower=55, upper=105), TimeRange(lower=110, upper=120)]
    """

    first: TimeLike
    n_splits: int
    valid: Length
    step: Length | None = None
    train: Length | None = None
    horizon: Length | None = None
    embargo: Length | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", boundary(self.first))
        _keep_lengths(self, ("valid", "step", "train", "horizon", "embargo"))
        _keep_count(self, "n_splits", 1)
        _check_folds(self.count, f"n_splits={self.n_splits}")
        if self.valid is None:
            raise DefinitionError("valid=None is not a length of time", "say how long to validate")

    @property
    def count(self) -> int:
        """How many folds there are."""
        return self.n_splits

    def fold(self, number: int, schema: TableSchema) -> tuple[Selection, Selection]:
        """Return the rows that one fold trains on, and those it is judged on."""
        valid = _positive_steps(self.valid, "valid", schema)
        step = valid if self.step is None else _positive_steps(self.step, "step", schema)
        begin = boundary_steps(self.first, schema) + number * step
        known = begin - length_steps(self.horizon, schema) - length_steps(self.embargo, schema)
        lower = None if self.train is None else known - _positive_steps(self.train, "train", schema)
        return Selection((TimeRange(lower, known),)), Selection((TimeRange(begin, begin + valid),))


@dataclass(frozen=True)
class PurgedKFold(FoldedSplit):
    """Judge each stretch of time by a model that trained on what lies before and after it.

    ``start <= time < stop`` is cut into ``n_splits`` stretches of equal length; rows outside belong to
    no part. Each fold validates on ``valid_splits`` of them, in every combination: one by default,
    which is k-fold; more are combinatorial cross-validation, of which the folds make up several
    histories. Around each run ``[begin, end)`` of stretches to validate on, these rows are left out:

    * ``begin - horizon <= time < begin``: their labels look into what is validated on;
    * ``end <= time < end + horizon + embargo``: labels of what is validated on look at them, and what
      follows soon resembles it.

    Parameters
    ----------
    start, stop : str, date, datetime or int
        As ``valid`` of :class:`TimeSplit`. Nothing is counted, so that rows keep their folds.
    n_splits : int
        How many stretches; two or more.
    valid_splits : int
        How many of them each fold validates on; fewer than there are.
    horizon : str, timedelta, Duration or int, optional
        How far labels look ahead of their rows.
    embargo : str, timedelta, Duration or int, optional
        How much longer training stays away after what is validated on.

    Raises
    ------
    InvalidInputError, DefinitionError
        If an argument is not what it should be, or there would be more than 1,000 folds.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from featurestore.schema import Field
    >>> split = PurgedKFold(0, 90, n_splits=3, horizon=5, embargo=2)
    >>> schema = TableSchema((Field("t", pa.int64()),), (), "t")
    >>> print(*split.folds()[1].rows("train", schema).times)
    TimeRange(lower=0, upper=25) TimeRange(lower=67, upper=90)
    >>> PurgedKFold(0, 90, n_splits=6, valid_splits=2).count
    15
    """

    start: TimeLike
    stop: TimeLike
    n_splits: int = 5
    valid_splits: int = 1
    horizon: Length | None = None
    embargo: Length | None = None

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            object.__setattr__(self, name, boundary(getattr(self, name)))
        _keep_lengths(self, ("horizon", "embargo"))
        _keep_count(self, "n_splits", 2)
        _keep_count(self, "valid_splits", 1)
        if self.valid_splits >= self.n_splits:
            raise DefinitionError(
                f"valid_splits={self.valid_splits} of n_splits={self.n_splits} leave nothing to train on",
                "validate on fewer",
            )
        if isinstance(self.start, int) != isinstance(self.stop, int):
            raise DefinitionError(
                f"start={self.start!r} and stop={self.stop!r} are of different kinds",
                "give both as dates or both as integers",
            )
        _check_folds(self.count, f"n_splits={self.n_splits} with valid_splits={self.valid_splits}")

    @property
    def count(self) -> int:
        """How many folds there are."""
        return comb(self.n_splits, self.valid_splits)

    def fold(self, number: int, schema: TableSchema) -> tuple[Selection, Selection]:
        """Return the rows that one fold trains on, and those it is judged on."""
        bounds = self._bounds(schema)
        chosen = list(combinations(range(self.n_splits), self.valid_splits))[number]
        valid = _joined((bounds[one], bounds[one + 1]) for one in chosen)
        before = length_steps(self.horizon, schema)
        after = before + length_steps(self.embargo, schema)
        train, begin = [], bounds[0]
        for lower, upper in [*valid, (bounds[-1] + before, 0)]:
            if begin < min(lower - before, bounds[-1]):
                train.append(TimeRange(begin, min(lower - before, bounds[-1])))
            begin = max(begin, upper + after)
        if not train:
            raise DefinitionError(
                f"horizon={self.horizon} and embargo={self.embargo} leave fold {number} of {self} "
                "nothing to train on",
                "cut into fewer stretches, or validate on fewer of them",
            )
        return Selection(tuple(train)), Selection(tuple(TimeRange(*one) for one in valid))

    def _bounds(self, schema: TableSchema) -> list[int]:
        start, stop = (boundary_steps(one, schema) for one in (self.start, self.stop))
        if stop - start < self.n_splits:
            raise DefinitionError(
                f"from start={self.start!r} to stop={self.stop!r} there is no room for "
                f"{self.n_splits} stretches",
                "move them apart",
            )
        return [start + (stop - start) * one // self.n_splits for one in range(self.n_splits + 1)]


@dataclass(frozen=True)
class HashKFold(FoldedSplit):
    """Judge each entity once, with all its rows, by a model that has not seen it.

    Which fold validates on an entity depends on its key and the seed alone, as in :class:`HashSplit`.
    With ``by`` naming what rows have in common (a patient, a user, a document), that is group k-fold.

    Parameters
    ----------
    n_splits : int
        How many folds; two or more.
    by : str or sequence of str, optional
        The columns that make an entity; the table's key if not given. Nulls equal each other.
    seed : int
        Not negative; another seed deals the entities anew.

    Raises
    ------
    InvalidInputError, DefinitionError
        If an argument is not what it should be.

    Examples
    --------
    >>> [fold.parts() for fold in HashKFold(2).folds()]
    [('train', 'valid'), ('train', 'valid')]
    """

    n_splits: int = 5
    by: str | Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _keep_count(self, "n_splits", 2)
        _check_folds(self.count, f"n_splits={self.n_splits}")
        check_seed(self.seed)
        object.__setattr__(self, "by", entity_names(self.by))

    @property
    def count(self) -> int:
        """How many folds there are."""
        return self.n_splits

    def fold(self, number: int, schema: TableSchema) -> tuple[Selection, Selection]:
        """Return the rows that one fold trains on, and those it is judged on."""
        columns = entity_columns(self.by, schema)
        first, last = (HASH_SPACE * one // self.n_splits for one in (number, number + 1))
        valid = HashRange(columns, self.seed, first, last)
        return Selection(hashed=valid.complement()), Selection(hashed=valid)


def _keep_lengths(split: FoldedSplit, names: Iterable[str]) -> None:
    for name in names:
        object.__setattr__(split, name, length(getattr(split, name), name))


def _keep_count(split: FoldedSplit, name: str, lowest: int) -> None:
    object.__setattr__(split, name, whole_number(getattr(split, name), name, lowest))


def _positive_steps(value: Length, what: str, schema: TableSchema) -> int:
    steps = length_steps(value, schema)
    if steps < 1:
        raise DefinitionError(f"{what}={value} is no time", "give more than 0")
    return steps


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges in order with those joined that touch."""
    found: list[tuple[int, int]] = []
    for lower, upper in ranges:
        if found and found[-1][1] == lower:
            found[-1] = (found[-1][0], upper)
        else:
            found.append((lower, upper))
    return found


def _check_folds(count: int, what: str) -> None:
    if count > MOST_FOLDS:
        raise DefinitionError(
            f"{what} are {count:,} folds, more than {MOST_FOLDS:,}", "train fewer times"
        )
