"""What the values of previewed columns are, and which columns of the table they go with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.selection import get_engine
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Available, Workplace
from featurestore.execution.task_costs import reading_cost
from featurestore.execution.tasks import with_row_count
from featurestore.plan.staleness import Assessor
from featurestore.plan.table_files import TableFiles
from featurestore.preview.statistics import Counted, association, correlates
from featurestore.report.previews import Association, Distribution
from featurestore.schema import Field
from featurestore.storage.records import BASE_GROUP
from featurestore.transforms.base import Partition
from featurestore.transforms.frames import to_arrow

SAMPLED: Final = 50_000
"""Rows, of all previewed partitions together, that quantiles and the measures with the label are of."""
COMPARED: Final = 10_000
"""Of them, those that further columns are compared in."""
CLOSEST: Final = 5
_TOGETHER: Final = 64 * 2**20
"""Bytes of a partition's columns that are read at once to be compared."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The previewed partitions of a table, here or in a copy.

    Parameters
    ----------
    place : Workplace
    files : TableFiles
    positions : tuple of int
        In these files.
    """

    place: Workplace
    files: TableFiles
    positions: tuple[int, ...]

    def whole(self, column: str) -> Iterator[pa.ChunkedArray | np.ndarray[Any, Any]]:
        """Yield a column of one partition after the other; a tensor as an array."""
        for position in self.positions:
            yield _values(self._read(position, [column], None), column, self.place)

    def sampled(self, columns: Sequence[str]) -> dict[str, Any]:
        """Return columns of the sampled rows: scalars as Arrow, tensors as arrays."""
        parts: dict[str, list[Any]] = {name: [] for name in columns}
        for position in self.positions:
            part = self._read(position, columns, self._block(position))
            for name in columns:
                parts[name].append(_values(part, name, self.place))
        return {name: _joined(self.files.schema[name], found) for name, found in parts.items()}

    def head(self, columns: Sequence[str], rows: int) -> tuple[dict[str, Any], ...]:
        """Return the first rows."""
        found: list[dict[str, Any]] = []
        for position in self.positions:
            left = rows - len(found)
            if left > 0:
                part = self._read(position, columns, (0, min(left, self._rows(position))))
                engine = get_engine(self.place.engine)
                found += to_arrow(part, columns, engine).to_pylist()
        return tuple(found)

    def _rows(self, position: int) -> int:
        return self.files.base[position].rows

    def _block(self, position: int) -> tuple[int, int]:
        """Return the rows of a partition that are sampled: from its middle."""
        rows = self._rows(position)
        count = min(rows, max(1, SAMPLED // len(self.positions)))
        start = (rows - count) // 2
        return start, start + count

    def _read(
        self, position: int, columns: Sequence[str], rows: tuple[int, int] | None
    ) -> Partition:
        wanted = with_row_count(columns, self.files.schema)
        source = Available(self.files, {}).at(position, wanted)
        need = Need(
            "a preview", 2 * reading_cost(source, wanted, self.files.schema), source.partition
        )
        place, engine = self.place, get_engine(self.place.engine)
        with holding(need, place.memory_limit, place.engine, "preview fewer features at once"):
            return source.read(place.store, engine, wanted, self.files.schema, rows)


def distribution(shown: Shown, column: str, sample: Any) -> Distribution:
    """Return the distribution of a previewed column."""
    counted = Counted()
    for values in shown.whole(column):
        counted.add(values)
    return counted.distribution(sample)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The columns of a table that previewed ones are compared with.

    Parameters
    ----------
    shown : Shown
        Of the table as it is.
    names : tuple of str
    """

    shown: Shown
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        shown: Shown,
        assessor: Assessor,
        against: Sequence[str] | None,
        without: frozenset[str],
    ) -> Neighbours:
        """Return those that are fresh in the previewed partitions, and of a type that correlates.

        Parameters
        ----------
        against : sequence of str, optional
            Only these.
        without : frozenset of str
            The label, keys, and what is previewed.
        """
        files = shown.files
        asked = files.schema.names if against is None else against
        names = [
            name
            for name in asked
            if name not in without
            and not files.schema[name].is_tensor
            and correlates(files.schema[name].type)
        ]
        fresh: dict[str, bool] = {BASE_GROUP: True}
        for name in names:
            group = files.graph.owners[name]
            if group not in fresh:
                found = assessor.group(files.name, group)
                fresh[group] = all(found[one].is_fresh for one in shown.positions)
        return cls(shown, tuple(one for one in names if fresh[files.graph.owners[one]]))

    def closest(self, columns: Mapping[str, pa.ChunkedArray]) -> dict[str, list[Association]]:
        """Return for each of some previewed columns those that go with it most."""
        found: dict[str, list[Association]] = {name: [] for name in columns}
        if not columns or not self.shown.positions:
            return found
        length = len(next(iter(columns.values())))
        at = pa.array(np.linspace(0, max(length - 1, 0), min(length, COMPARED)).astype(np.int64))
        own = {name: one.take(at) for name, one in columns.items()}
        for names in self._chunks():
            for other, values in self.shown.sampled(names).items():
                thinned = values.take(at)
                for name, one in own.items():
                    measures, rows = association(one, thinned)
                    shown = f"{other} (stored)" if other == name else other
                    found[name].append(Association(shown, measures, rows))
            for one in found.values():
                one.sort(key=lambda near: -near.strength)  # stable: the table's order
                del one[CLOSEST:]
        return {name: [one for one in near if one.strength > 0] for name, near in found.items()}

    def _chunks(self) -> Iterator[list[str]]:
        """Yield the columns, as many as are read at once."""
        files, size = self.shown.files, 0
        chunk: list[str] = []
        for name in self.names:
            group = files.graph.owners[name]
            bytes_ = max(
                files.entries[group][files.base[one].partition].column_bytes.get(name, 0)
                for one in self.shown.positions
            )
            if chunk and size + bytes_ > _TOGETHER:
                yield chunk
                chunk, size = [], 0
            chunk.append(name)
            size += bytes_
        if chunk:
            yield chunk


def _values(part: Partition, column: str, place: Workplace) -> Any:
    engine = get_engine(place.engine)
    if column in part.tensors:
        return engine.to_host(part.tensors[column])
    return engine.to_arrow(part.frame.select(column))[column]


def _joined(field: Field, parts: Sequence[Any]) -> Any:
    if field.is_tensor:
        empty = np.empty((0, *(field.shape or ())), field.type.to_pandas_dtype())
        return np.concatenate([empty, *parts])
    chunks = [chunk for one in parts for chunk in one.chunks]
    return pa.chunked_array(chunks, field.type)
