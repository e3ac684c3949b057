"""Expectations: what each kind counts of a column's rows, and when that is not what was expected.

Each is a plain value with a JSON form, which a snapshot keeps; no code is kept.

Null rules: a null is judged by ``ExpectNulls`` only, all others pass over it. NaN is judged by
``ExpectNulls``, as a missing value, and is outside every range and no allowed value.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.arguments import column_names, shown
from featurestore.errors import InvalidInputError
from featurestore.expectations.tally import EXAMPLES, Example, Tally
from featurestore.fingerprint import Json
from featurestore.schema import Field, TableSchema
from featurestore.units import Duration

REFUSE: Final = "refuse"
WARN: Final = "warn"


@dataclass(frozen=True)
class Expectation:
    """What is expected of a table's values; see the subclasses.

    Parameters
    ----------
    on_failure : {"refuse", "warn"}
        Whether what is not as expected is refused, so that nothing is published, or published with
        an ``ExpectationWarning``.
    """

    on_failure: str = field(default=REFUSE, kw_only=True)

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.on_failure not in (REFUSE, WARN):
            raise InvalidInputError(
                f"on_failure={self.on_failure!r} is not known", "use 'refuse' or 'warn'"
            )

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that are judged."""

    @abstractmethod
    def check(self, schema: TableSchema) -> None:
        """Refuse a column that is not there, or whose type cannot be judged so.

        Raises
        ------
        InvalidInputError
        """

    def as_asked(self) -> Expectation:
        """Return it as somebody states it, without what is found when it is stated."""
        return self

    def to_json(self) -> dict[str, Json]:
        """Return the expectation as JSON values."""
        return {"kind": self.kind, **asdict(self)}

    def __str__(self) -> str:
        shown = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if getattr(self, one.name) != one.default and one.name not in ("edges", "shares")
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True)
class ColumnExpectation(Expectation):
    """An expectation of the values of one column, which are counted row by row."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: TableSchema) -> None:
        found = schema[self.column]
        if found.is_tensor or pa.types.is_nested(found.type):
            raise InvalidInputError(
                f"column {self.column!r} holds arrays, of which nothing can be expected",
                "name a column of single values",
            )
        self._check_type(found)

    def _check_type(self, found: Field) -> None:
        """Refuse a type that cannot be judged so."""

    def summarize(self, values: pa.ChunkedArray, partition: str, start: int = 0) -> Tally:
        """Count rows: some of a partition, from row ``start`` on."""
        wrong = self._wrong(values)
        places = np.flatnonzero(wrong)
        lowest, highest = self._extremes(values)
        return Tally(
            len(values),
            len(places),
            lowest,
            highest,
            self._bins(values),
            tuple(
                Example(partition, start + int(one), values[int(one)].as_py())
                for one in places[:EXAMPLES]
            ),
            ((partition, len(places)),) if len(places) else (),
        )

    def _wrong(self, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        """Return which rows are not as expected."""
        return np.zeros(len(values), bool)

    def _extremes(self, values: pa.ChunkedArray) -> tuple[Any, Any]:
        return None, None

    def _bins(self, values: pa.ChunkedArray) -> tuple[int, ...]:
        return ()

    @abstractmethod
    def judge(self, tally: Tally) -> tuple[float | None, float | None, str]:
        """Return what was seen, the limit, and what is wrong; ``""`` if it is as expected."""


@dataclass(frozen=True)
class ExpectRange(ColumnExpectation):
    """Numbers lie within bounds: ``low <= value <= high``. Nulls do; NaN does not.

    Whole numbers are compared exactly, decimals as doubles.

    Parameters
    ----------
    column : str
        Of numbers.
    low, high : number, optional
        One of them at least.
    at_most : float
        Share of rows that may lie outside.

    Examples
    --------
    >>> ExpectRange("price", low=0)
    ExpectRange(on_failure='refuse', column='price', low=0, high=None, at_most=0.0)
    """

    low: float | None = None
    high: float | None = None
    at_most: float = 0.0
    kind: ClassVar[str] = "range"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.at_most, "at_most")
        for name in ("low", "high"):
            one = _plain(getattr(self, name))
            object.__setattr__(self, name, one)
            if one is not None and not (is_number(one) and math.isfinite(one)):
                raise InvalidInputError(
                    f"{name}={one!r} is no bound", "give a finite number, or none for no bound"
                )
        if self.low is None and self.high is None:
            raise InvalidInputError(f"no bound of {self.column!r} was given", "give low= or high=")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise InvalidInputError(f"low={self.low} is above high={self.high}", "swap them")

    def _check_type(self, found: Field) -> None:
        require_numbers(found)

    def _wrong(self, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        whole = pa.types.is_integer(values.type)
        # Integers beyond 2**53 are compared as such, with bounds that are none.
        bounds = [
            (pc.less, self.low, math.ceil),
            (pc.greater, self.high, math.floor),
        ]
        wrong = _nan(values)
        for compare, bound, towards in bounds:
            if bound is None:
                continue
            if whole:
                wrong |= _outside_integers(values, int(towards(bound)), compare)
            else:
                compared = compare(values.cast(pa.float64(), safe=False), float(bound))
                wrong |= np.asarray(compared.fill_null(False))
        return wrong

    def _extremes(self, values: pa.ChunkedArray) -> tuple[Any, Any]:
        if pa.types.is_float16(values.type):  # Arrow has no kernel for it
            values = values.cast(pa.float32())
        found = pc.min_max(values.filter(pa.array(~_nan(values))))
        return found["min"].as_py(), found["max"].as_py()

    def judge(self, tally: Tally) -> tuple[float | None, float | None, str]:
        bounds = (
            f"[{'' if self.low is None else self.low}, {'' if self.high is None else self.high}]"
        )
        said = (
            f"{tally.failing:,} of {tally.rows:,} values lie outside {bounds} (from {tally.lowest} to "
            f"{tally.highest} there are)"
        )
        return tally.share, self.at_most, said if tally.share > self.at_most else ""


@dataclass(frozen=True)
class ExpectNulls(ColumnExpectation):
    """At most a share of values is missing: null or NaN.

    Parameters
    ----------
    column : str
    at_most : float

    Examples
    --------
    >>> ExpectNulls("price", at_most=0.01, on_failure="warn")
    ExpectNulls(on_failure='warn', column='price', at_most=0.01)
    """

    at_most: float = 0.0
    kind: ClassVar[str] = "nulls"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.at_most, "at_most")

    def _wrong(self, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        missing: np.ndarray[Any, Any] = np.asarray(values.is_null()) | _nan(values)
        return missing

    def judge(self, tally: Tally) -> tuple[float | None, float | None, str]:
        said = f"{tally.failing:,} of {tally.rows:,} values are missing ({tally.share:.2%})"
        return tally.share, self.at_most, said if tally.share > self.at_most else ""


@dataclass(frozen=True)
class ExpectValues(ColumnExpectation):
    """Values are some of a list. Nulls are; NaN is not.

    Parameters
    ----------
    column : str
        Of texts, truth values or whole numbers.
    values : sequence
    at_most : float
        Share of rows that may have others.

    Examples
    --------
    >>> ExpectValues("origin", ["EWR", "JFK", "LGA"]).values
    ('EWR', 'JFK', 'LGA')
    """

    values: Sequence[Any] = ()
    at_most: float = 0.0
    kind: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share(self.at_most, "at_most")
        if isinstance(self.values, str) or not isinstance(self.values, Iterable):
            raise InvalidInputError(
                f"values={shown(self.values)} of {self.column!r} is no list",
                "list those that are allowed: values=[...]",
            )
        object.__setattr__(self, "values", tuple(map(_plain, self.values)))
        if not self.values or any(not isinstance(one, str | int) for one in self.values):
            raise InvalidInputError(
                f"values={list(self.values)!r} of {self.column!r} are no texts, truth values or whole "
                "numbers",
                "list those that are allowed, without null",
            )

    def _check_type(self, found: Field) -> None:
        type_ = found.type
        for known, python in ((pa.types.is_string(type_), str), (pa.types.is_boolean(type_), bool),
                              (pa.types.is_integer(type_), int)):  # fmt: skip
            if known and all(type(one) is python for one in self.values):
                return
        raise InvalidInputError(
            f"column {found.name!r} has type {type_}, its values cannot be among {list(self.values)}",
            "list texts for a text, whole numbers for whole numbers, True and False for truth values",
        )

    def _wrong(self, values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
        wide = pa.int64() if pa.types.is_integer(values.type) else values.type
        if pa.types.is_uint64(values.type):
            wide = pa.uint64()
        small, large = _range_of(wide)
        kept = [one for one in self.values if isinstance(one, str) or small <= one <= large]
        allowed = pa.array(kept, wide)
        inside = pc.is_in(values.cast(wide), allowed)
        wrong: np.ndarray[Any, Any] = ~np.asarray(inside) & np.asarray(values.is_valid())
        return wrong

    def judge(self, tally: Tally) -> tuple[float | None, float | None, str]:
        said = (
            f"{tally.failing:,} of {tally.rows:,} values are none of the {len(self.values)} allowed"
        )
        return tally.share, self.at_most, said if tally.share > self.at_most else ""


@dataclass(frozen=True)
class ExpectUnique(Expectation):
    """No two rows of the table have the same values in some ingested columns.

    Rows with a null in any of them are passed over, as SQL does; NaN equals nothing. What is
    appended is compared with the whole table, so that these columns of it are read.

    Parameters
    ----------
    names : str or sequence of str

    Examples
    --------
    >>> ExpectUnique("order_id").columns
    ('order_id',)
    """

    names: str | Sequence[str] = ()
    kind: ClassVar[str] = "unique"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "names", tuple(column_names(self.names)))
        if not self.names or len(set(self.names)) != len(self.names):
            raise InvalidInputError(
                f"ExpectUnique of the columns {list(self.names)}", "name at least one, each once"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.names)

    def check(self, schema: TableSchema) -> None:
        for name in self.columns:
            if schema[name].is_tensor or pa.types.is_nested(schema[name].type):
                raise InvalidInputError(
                    f"column {name!r} holds arrays, which are not compared", "name other columns"
                )


@dataclass(frozen=True)
class ExpectFresh(Expectation):
    """The newest event time of the table is not older than ``max_age``, on the clock of this machine.

    Judged by ``validate``, and whenever rows are written. Times without a zone are UTC.

    Parameters
    ----------
    max_age : str, timedelta or Duration

    Examples
    --------
    >>> ExpectFresh("2d", on_failure="warn")
    ExpectFresh(on_failure='warn', max_age='2d')
    """

    max_age: Any = "1d"
    kind: ClassVar[str] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_age", str(Duration.parse(self.max_age)))

    @property
    def columns(self) -> tuple[str, ...]:
        return ()

    def check(self, schema: TableSchema) -> None:
        if schema.time is None or not pa.types.is_temporal(schema[schema.time].type):
            raise InvalidInputError(
                "freshness is expected of a table without a timestamp or date as its time",
                "ingest it with time=",
            )


def require_expectations(given: Sequence[Any]) -> None:
    """Refuse what is no expectation.

    Raises
    ------
    InvalidInputError
    """
    for one in given:
        if not isinstance(one, Expectation):
            raise InvalidInputError(
                f"{one!r} is no expectation",
                "pass fs.ExpectRange(...), fs.ExpectNulls(...) and the like",
            )


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _check_share(value: Any, name: str) -> None:
    if not is_number(value) or not 0 <= value <= 1:
        raise InvalidInputError(
            f"{name}={value!r} is no share of rows", "give a number from 0 to 1"
        )


def is_number(value: Any) -> bool:
    """Whether a value is a number, truth values not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_numbers(found: Field) -> None:
    """Refuse a column that is not of numbers.

    Raises
    ------
    InvalidInputError
    """
    type_ = found.type
    if not (
        pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_)
    ):
        raise InvalidInputError(
            f"column {found.name!r} has type {type_}, and numbers are expected",
            "name a column of numbers",
        )


def _nan(values: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    if not pa.types.is_floating(values.type):
        return np.zeros(len(values), bool)
    return np.asarray(pc.is_nan(values).fill_null(False))


def _outside_integers(values: pa.ChunkedArray, bound: int, compare: Any) -> np.ndarray[Any, Any]:
    """Return which whole numbers lie beyond a bound, which may be none of their type."""
    small, large = _range_of(values.type)
    if small <= bound <= large:
        found = compare(values, pa.scalar(bound, values.type))
        return np.asarray(found.fill_null(False))
    beyond = bound > large if compare is pc.less else bound < small
    return np.asarray(values.is_valid()) & beyond


def _range_of(type_: pa.DataType) -> tuple[int, int]:
    if not pa.types.is_integer(type_):
        return 0, 1
    limits = np.iinfo(type_.to_pandas_dtype())
    return int(limits.min), int(limits.max)
