"""What the features and datasets of hostile tables must come to, by brute force over all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.testing.hostile_tables import INTEGERS, SECOND, shown, value_columns

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_CODE: Final = 2
Expected = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Oracle:
    """The rows of a hostile table in table order, and what is expected in some of them.

    Parameters
    ----------
    name : str
        Of the set.
    rows : pyarrow.Table
    positions : array of int
        The rows that are looked at.
    """

    name: str
    rows: pa.Table
    positions: npt.NDArray[np.int64]

    def expected(self, work: str) -> Expected:
        """Return the columns that a family, or ``read``, ``epoch``, ``feed`` and ``matrix``, gives in these rows.

        Of many columns those that ``shown`` names.
        """
        if work in ("read", "epoch", "feed", "matrix"):
            return self._dataset()
        found: Callable[[], Expected] = getattr(self, f"_{work}")
        return found()

    # --- rows ------------------------------------------------------------------------------------

    @cached_property
    def _times(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.rows["t"].cast(pa.int64()).to_numpy())

    @cached_property
    def _keys(self) -> npt.NDArray[np.int64]:
        codes = self.rows["k"].combine_chunks().dictionary_encode().indices
        return np.asarray(codes.to_numpy()).astype(np.int64)

    @property
    def _text(self) -> bool:
        return self.name == "long_text"

    @property
    def _numbers(self) -> list[str]:
        return ["x0"] if self._text else shown(value_columns(self.name))

    @property
    def _values(self) -> list[str]:
        return shown(value_columns(self.name))

    def _at(self, column: str, places: Sequence[int | None]) -> list[Any]:
        """Return values of a column, null where there is no place."""
        found: list[Any] = self.rows[column].take(pa.array(places, pa.int64())).to_pylist()
        return found

    def _of_key(self, position: int, after: int | None, until: int) -> npt.NDArray[np.int64]:
        """Return the rows of the same key with ``after < time <= until``."""
        same = (self._keys == self._keys[position]) & (self._times <= until)
        return np.flatnonzero(same if after is None else same & (self._times > after))

    # --- features --------------------------------------------------------------------------------

    def _expression(self) -> Expected:
        if self._text:
            return {"text_made": [len(one) for one in self._at("text", self._list)]}
        return {
            f"{name}_made": [
                None if one is None else one * 2 + 1 for one in self._at(name, self._list)
            ]
            for name in self._numbers
        }

    @property
    def _list(self) -> list[int]:
        return [int(one) for one in self.positions]

    def _function(self) -> Expected:
        if self._text:
            return {"made": self._expression()["text_made"]}
        columns = value_columns(self.name)
        rows = self.rows.select(columns).take(pa.array(self.positions))
        made = np.stack([one.to_numpy() for one in rows.itercolumns()], axis=1)
        return {"made": made.astype(np.float32).tolist()}

    def _rolling(self) -> Expected:
        made = {}
        for name in self._numbers:
            sums = []
            for position in self._list:
                now = int(self._times[position])
                inside = self._of_key(position, now - 90 * SECOND, now)
                values = [one for one in self._at(name, inside.tolist()) if one is not None]
                sums.append(sum(values) if values else None)
            made[f"{name}_made"] = sums
        return made

    def _lag(self) -> Expected:
        places: list[int | None] = []
        for position in self._list:
            same = np.flatnonzero(self._keys[:position] == self._keys[position])
            places.append(int(same[-1]) if len(same) else None)
        return {f"{name}_made": self._at(name, places) for name in self._values}

    def _as_of(self) -> Expected:
        places: list[int | None] = []
        for position in self._list:
            found = self._of_key(position, None, int(self._times[position]) - SECOND)
            places.append(int(found[-1]) if len(found) else None)
        return {f"{name}_made": self._at(name, places) for name in self._values}

    def _lookup(self) -> Expected:
        places: list[int | None] = [
            int(np.argmax(self._keys == self._keys[position])) for position in self._list
        ]
        return {f"{name}_made": self._at(name, places) for name in self._values}

    def _cross_section(self) -> Expected:
        made = {}
        for name in self._numbers:
            column = self.rows[name].to_numpy()
            ranks: list[float | None] = []
            for position in self._list:
                value = column[position]
                others = column[self._times == self._times[position]]
                others = others[~np.isnan(others)]
                below, equal = np.sum(others < value), np.sum(others == value)
                rank = (below + (equal + 1) / 2) / max(1, len(others))
                ranks.append(None if np.isnan(value) else float(rank))
            made[f"{name}_made"] = ranks
        return made

    def _calendar(self) -> Expected:
        moments = [_EPOCH + timedelta(microseconds=int(self._times[one])) for one in self._list]
        return {
            "t_minute": [one.minute for one in moments],
            "t_weekday": [one.weekday() for one in moments],
        }

    def _standardize(self) -> Expected:
        return {f"{name}_made": self._scaled(name, imputed=False) for name in self._numbers}

    def _scaled(self, name: str, *, imputed: bool) -> list[float | None]:
        column = self.rows[name].to_numpy()
        if imputed:
            column = np.where(np.isnan(column), np.nanmean(column), column)
        mean, deviation = np.nanmean(column), np.nanstd(column)
        values = (column[self.positions] - mean) / deviation
        return [None if np.isnan(one) else float(one) for one in values]

    def _impute(self) -> Expected:
        made = {}
        for name in shown([*([] if self._text else value_columns(self.name)[:-1]), "x3"]):
            column = self.rows[name].to_numpy()
            filled = np.where(np.isnan(column), np.nanmean(column), column)
            made[f"{name}_made"] = filled[self.positions].tolist()
        return made

    def _categorify(self) -> Expected:
        if self.name == "many_columns":
            names = shown([f"c{one}" for one in range(INTEGERS)])
        else:
            names = ["text" if self._text else "k"]
        return {f"{name}_made": self._codes(name) for name in names}

    def _codes(self, name: str) -> list[int]:
        counts = pc.value_counts(self.rows[name].combine_chunks()).to_pylist()
        ordered = sorted(counts, key=lambda one: (-one["counts"], one["values"]))
        codes = {one["values"]: _FIRST_CODE + code for code, one in enumerate(ordered)}
        return [codes[one] for one in self._at(name, self._list)]

    # --- datasets --------------------------------------------------------------------------------

    def _dataset(self) -> Expected:
        numbers = ["x0", "x3"] if self._text else value_columns(self.name)
        category = "text" if self._text else "c0" if self.name == "many_columns" else "k"
        # Numbers first, as a loader has them.
        made: dict[str, Sequence[Any]] = {
            "row": self.positions.tolist(),
            category: self._codes(category),
        }
        made |= {name: self._scaled(name, imputed=True) for name in shown(numbers)}
        return made
