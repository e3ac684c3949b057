"""What two tables should be: their rows and features, with every value from all rows at once.

``rows`` reads ``other`` by joins. Windows and joins are looked up row by row in plain Python, which is
hard to get wrong, and slow: enough for a hundred rows. Values are worked out once for a world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import narwhals as nw
import polars as pl

from featurestore.testing.tables import HOUR, count_of_a_day, observations
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.base import Transformer
from featurestore.transforms.cross_section import CrossSection
from featurestore.transforms.expression import Expression
from featurestore.transforms.function import Function
from featurestore.transforms.lag import Lag
from featurestore.transforms.lookup import Lookup
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.window import Rolling

KEYS: Final = "abcd"
# The first four differ in which ends are closed alone, so they share states.
WINDOWS: Final = ("n_left", "n_both", "n_none", "n_first", "n_rows", "recent")
JOINS: Final = ("y_young", "y_strict", "y_last", "q_joined")
FEATURES: Final = {
    "rows": ("m", "m_sum_6h", "x_lag_2", "x_rank", "e", "std_n", "more", *WINDOWS, *JOINS),
    "other": ("q", "q_lag_1"),
}
READS: Final = {"m_sum_6h": "m", "e": "m", "q_joined": "q", "q_lag_1": "q"}
VARIED: Final = {"rows": "m", "other": "q"}
"""The feature of each table that comes in variants with other values."""


def definition(name: str, variant: int) -> Transformer:
    """Return the transformer of a column; variants of ``m`` and ``q`` have other values."""
    own = {"k": "k"}  # whatever the key of the other table is
    given: dict[str, Callable[[], Transformer]] = {
        "m": lambda: Expression(m=nw.col("n") * variant),
        "m_sum_6h": lambda: Rolling("m", "6h", stats=["sum"]),
        "x_lag_2": lambda: Lag("x", 2),
        "x_rank": lambda: CrossSection("x"),
        "e": lambda: Expression(e=nw.col("m") + nw.col("n")),
        "std_n": lambda: Standardize("n", prefix="std_"),
        "n_left": lambda: Rolling("n", "3h", stats="sum", closed="left", lag="2h", rename={"n_sum_3h": "n_left"}),
        "n_both": lambda: Rolling("n", "3h", stats="count", closed="both", lag="2h", rename={"n_count_3h": "n_both"}),
        "n_none": lambda: Rolling("n", "3h", stats="last", closed="none", lag="2h", rename={"n_last_3h": "n_none"}),
        "n_first": lambda: Rolling("n", "3h", stats="first", lag="2h", rename={"n_first_3h": "n_first"}),
        "n_rows": lambda: Rolling("n", 2, stats="sum", closed="none", lag=1, rename={"n_sum_2r": "n_rows"}),
        "recent": lambda: Function(
            count_of_a_day, ["t", "n"], "recent", frame="polars", dtypes="int64", lookback="1d"
        ),
        "y_young": lambda: AsOfJoin(
            "other", "y", by=own, lag="1h", max_age="5h", rename={"y": "y_young"}
        ),
        "y_strict": lambda: AsOfJoin("other", "y", by=own, exact=False, rename={"y": "y_strict"}),
        "y_last": lambda: Lookup("other", "y", by=own, rename={"y": "y_last"}),
        "q_joined": lambda: AsOfJoin("other", "q", by=own, lag="2h", rename={"q": "q_joined"}),
        "q": lambda: Rolling("y", f"{variant + 1}h", stats="sum", closed="left", rename={f"y_sum_{variant + 1}h": "q"}),
        "q_lag_1": lambda: Lag("q", 1),
    }  # fmt: skip
    return given[name]()


# --- the model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What a table should be: rows, features, and the variant of the one that comes in variants.

    Parameters
    ----------
    rows : polars.DataFrame
        By time, then key, which together are unique.
    key, time : str
        Empty while there is no such table.
    """

    rows: pl.DataFrame
    features: frozenset[str] = frozenset()
    variant: int = 1
    key: str = "k"
    time: str = "t"

    def with_rows(self, *rows: pl.DataFrame) -> Model:
        """Return the model with these rows instead, in order."""
        return replace(self, rows=pl.concat(rows).sort(self.time, self.key))

    @property
    def is_there(self) -> bool:
        """Whether there is such a table."""
        return bool(self.key)

    @property
    def times(self) -> list[int]:
        """The hour of each row."""
        return hours(self.rows, self.time)

    @property
    def newest_hour(self) -> int:
        """The last hour that any time column has; -1 without rows."""
        columns = [name for name, kind in self.rows.schema.items() if kind == pl.Datetime]
        return max((hour for name in columns for hour in hours(self.rows, name)), default=-1)


@dataclass(frozen=True)
class World:
    """Both tables, and the values of their features as far as anybody asked for them."""

    rows: Model
    other: Model
    _values: dict[str, list[Any]] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def empty(cls) -> World:
        nothing = Model(pl.DataFrame(), key="", time="")
        return cls(nothing, nothing)

    def table(self, name: str) -> Model:
        return self.rows if name == "rows" else self.other

    def put(self, name: str, model: Model) -> World:
        """Return the world with another model of a table."""
        return World(model, self.other) if name == "rows" else World(self.rows, model)

    def readers(self, name: str) -> set[str]:
        """Return the features that are there and read a feature."""
        there = self.rows.features | self.other.features
        return {one for one, read in READS.items() if read == name and one in there}

    def expected(self, table: str, names: Sequence[str]) -> pl.DataFrame:
        """Return columns of a table."""
        rows = self.table(table).rows
        features = [one for one in names if one not in rows.columns]
        return rows.with_columns(
            pl.Series(one, self.values(one), strict=False) for one in features
        ).select(names)

    def values(self, name: str) -> list[Any]:
        """Return the values of a feature."""
        if name not in self._values:
            self._values[name] = self._worked_out(name)
        return self._values[name]

    def _worked_out(self, name: str) -> list[Any]:
        match name:
            case "q":
                width = self.other.variant + 1
                return window(
                    self.other, self.other.rows["y"].to_list(), sum, lambda age: 0 < age <= width
                )
            case "q_lag_1":
                return earlier_row(self.other, self.values("q"), 1)
            case "m_sum_6h":
                return window(self.rows, self.values("m"), sum, lambda age: 0 <= age < 6)
            case "n_left":
                return window(self.rows, self._n, sum, lambda age: 2 < age <= 5)
            case "n_both":
                return window(self.rows, self._n, len, lambda age: 2 <= age <= 5, empty=0)
            case "n_none":
                return window(self.rows, self._n, lambda found: found[-1], lambda age: 2 < age < 5)
            case "n_first":
                return window(self.rows, self._n, lambda found: found[0], lambda age: 2 <= age < 5)
            case "n_rows":
                return earlier_row(self.rows, self._n, 2)
            case "y_young":
                return self._joined(self.other.rows["y"].to_list(), lambda age: 1 <= age <= 5)
            case "y_strict":
                return self._joined(self.other.rows["y"].to_list(), lambda age: age > 0)
            case "y_last":
                return self._joined(self.other.rows["y"].to_list(), lambda age: True)
            case "q_joined":
                return self._joined(self.values("q"), lambda age: age >= 2)
            case _:
                return self._by_polars(name)

    @property
    def _n(self) -> list[Any]:
        return self.rows.rows["n"].to_list()

    def _by_polars(self, name: str) -> list[Any]:
        m, n = pl.col("n") * self.rows.variant, pl.col("n")
        centred, spread = n - n.mean(), n.std(ddof=0)
        given = {
            "m": m,
            "x_lag_2": pl.col("x").shift(2).over("k"),
            "x_rank": pl.col("x").rank("average").over("t") / pl.col("x").count().over("t"),
            "e": m + n,
            "std_n": pl.when(spread > 0).then(centred / spread).otherwise(centred),
            "more": pl.col("x") + 1,
            "recent": n.is_not_null().cast(pl.Int64).rolling_sum_by("t", "1d"),
        }
        return self.rows.rows.select(given[name].alias(name))[name].to_list()

    def _joined(self, values: list[Any], visible: Callable[[int], bool]) -> list[Any]:
        """Return for each row the value of the last visible row of the other table with its key."""
        by_key: dict[str, list[tuple[int, Any]]] = {key: [] for key in KEYS}
        for key, hour, value in zip(self.other.rows["k"], self.other.times, values, strict=True):
            by_key[key].append((hour, value))
        return [
            next((v for hour, v in reversed(by_key[key]) if visible(now - hour)), None)
            for key, now in zip(self.rows.rows["k"], self.rows.times, strict=True)
        ]


def window(
    model: Model,
    values: list[Any],
    fold: Callable[[list[Any]], Any],
    inside: Callable[[int], bool],
    empty: Any = None,
) -> list[Any]:
    """Return for each row what the values of its key's rows come to whose age in hours is inside."""
    by_key: dict[str, list[tuple[int, Any]]] = {key: [] for key in KEYS}
    rows = list(zip(model.rows[model.key], model.times, values, strict=True))
    for key, hour, value in rows:
        if value is not None:
            by_key[key].append((hour, value))
    found = ([v for hour, v in by_key[key] if inside(now - hour)] for key, now, _ in rows)
    return [fold(one) if one else empty for one in found]


def earlier_row(model: Model, values: list[Any], back: int) -> list[Any]:
    """Return for each row the value of its key so many rows before."""
    seen: dict[str, list[Any]] = {key: [None] * back for key in KEYS}
    found = []
    for key, value in zip(model.rows[model.key], values, strict=True):
        found.append(seen[key][-back])
        seen[key].append(value)
    return found


# --- rows -----------------------------------------------------------------------------------------------


def made_rows(table: str, count: int, seed: int, start: int) -> pl.DataFrame:
    """Return rows, each with an ``id`` that says when and where it was made.

    Those of ``other`` have two keys and two times, ``k`` or ``l`` and ``t`` or ``u``: any pair is unique,
    and each pair gives another order of rows. From an even ``start`` both times begin there.
    """
    found = observations(count, seed, start).sort("t", "k").drop("word")
    found = found.with_columns(id=pl.int_range(pl.len(), dtype=pl.Int64) * 10 + start * 1000 + seed)
    if table == "rows":
        return found
    hour = pl.col("t").dt.epoch("ms") // HOUR
    return found.select(
        "k",
        "t",
        "id",
        y=pl.col("x"),
        l=pl.col("k").replace_strict(list(KEYS), list(KEYS[1:] + KEYS[:1])),
        u=((hour // 2 * 2 + (1 - hour % 2)) * HOUR).cast(pl.Datetime("ms")),
    )


def hours(rows: pl.DataFrame, column: str) -> list[int]:
    return (rows[column].dt.epoch("ms") // HOUR).to_list()


def moment(hour: int) -> Any:
    return pl.select(pl.lit(hour * HOUR).cast(pl.Datetime("ms"))).item()
