"""What a report says of a table, found in its records and, if asked for, in a bounded sample of its rows.

Freshness, nulls, coverage and bytes are exact: they are recorded. Distributions are of the rows of
``slices``; columns are read a few at a time, so that memory depends neither on rows nor on how many columns
there are. Of each column group the entries of its partitions are read once and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.dataset.selection import Selection
from featurestore.dataset.split import Split
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.errors import MemoryLimitError, NotReadyError
from featurestore.execution.collecting import needed
from featurestore.execution.reading import PartitionSource
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Workplace
from featurestore.execution.tasks import with_row_count
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessment
from featurestore.plan.table_files import TableFiles
from featurestore.report.definitions import parameters, source
from featurestore.report.distributions import compact, distribution, no_distribution
from featurestore.report.facts import (
    ColumnFacts,
    ColumnValues,
    FeatureFacts,
    Run,
    TableFacts,
    TablePart,
)
from featurestore.report.slices import Mask, Slice, slices_in_order, slices_of
from featurestore.schema import Field
from featurestore.storage.fileset import read_fileset
from featurestore.storage.records import BASE_GROUP, GroupEntry, PartitionEntry
from featurestore.times import from_steps
from featurestore.transforms.frames import to_arrow

BINS: Final = 60
"""Of coverage over partitions."""
_TOGETHER: Final = 64
"""Columns that are read at once, at most."""
_SAMPLE_BYTES: Final = 64 * 2**20
"""What reading them may take; a single column that takes more is read if memory allows."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@dataclass(frozen=True, slots=True)
class SampledParts:
    """Which rows are looked at.

    Parameters
    ----------
    names : tuple of str
        Of the parts.
    slices : tuple of tuple of Slice
        Of each part.
    divided : str
        What made the parts, in words.
    """

    names: tuple[str, ...] = ()
    slices: tuple[tuple[Slice, ...], ...] = ()
    divided: str = ""

    @property
    def positions(self) -> set[int]:
        """Partitions that are read from."""
        return {one.position for part in self.slices for one in part}


def table_facts(
    files: TableFiles,
    assessments: Mapping[str, Sequence[Assessment]],
    place: Workplace,
    progress: Progress,
    *,
    values: bool = True,
    split: Split | None = None,
) -> TableFacts:
    """Return what is to be said of a table.

    Parameters
    ----------
    files : TableFiles
    assessments : mapping of str to sequence of Assessment
        Of each feature's group.
    place : Workplace
    progress : callable
    values : bool
        Whether rows are sampled; without it nothing but records is read.
    split : Split, optional
        Whose parts are compared; without it, parts of the table in its order. Of a split of several
        folds, those of the last.

    Raises
    ------
    DefinitionError
        If the split does not fit the table.
    NotReadyError
        If it divides rows by a column that is not built.
    """
    survey = _Survey(files, place, progress)
    parts = survey.parts(split) if values else SampledParts()
    groups = [BASE_GROUP, *(one.group for one in files.graph.features())]
    records = [survey.records(group, parts.positions) for group in groups]
    seen, unseen = survey.values(parts) if values else ({}, {})
    shared = survey.shared_bytes()
    features = {one.group: one for one in files.graph.features()}
    found = tuple(
        _feature_facts(
            files.groups[group],
            features.get(group),
            assessments.get(group, ()),
            one.stored_bytes + shared.get(group, 0),
            one.rows,
            tuple(
                replace(column, values=seen.get(column.name), unseen=unseen.get(column.name, ""))
                for column in one.columns
            ),
        )
        for group, one in zip(groups, records, strict=True)
    )
    return TableFacts(
        files.name,
        files.rows,
        files.entry.key,
        files.entry.time,
        sum(one.stored_bytes for one in found),
        tuple(survey.partitions()),
        tuple(stop - start for start, stop in pairwise(survey.bounds)),
        survey.described(parts),
        parts.divided,
        found,
    )


@dataclass(frozen=True, slots=True)
class _Records:
    """What the entries of a column group say together."""

    rows: int
    stored_bytes: int
    columns: tuple[ColumnFacts, ...]


class _Survey:
    """One look at one table; keeps only what more than one question needs."""

    def __init__(self, files: TableFiles, place: Workplace, progress: Progress) -> None:
        self._files = files
        self._place = place
        self._progress = progress
        count = len(files.base)
        bins = min(BINS, count)
        self.bounds = [one * count // max(bins, 1) for one in range(bins + 1)]
        self._sampled: dict[tuple[str, int], PartitionEntry] = {}
        self._shared: dict[str, tuple[int, dict[str, int]]] = {}

    # --- records -------------------------------------------------------------------------------

    def partitions(self) -> Iterator[tuple[str, int, str, str]]:
        """Yield name, rows and times of each partition."""
        for one in self._files.base:
            times = (self._time(one.time_min), self._time(one.time_max))
            yield one.partition, one.rows, *times

    def _time(self, steps: int | None) -> str:
        schema = self._files.schema
        if steps is None or schema.time is None:
            return ""
        return from_steps(steps, schema[schema.time].type)

    def records(self, group: str, wanted: set[int]) -> _Records:
        """Return what a group's entries say; keep those of the ``wanted`` positions."""
        base = self._files.base
        entries = {one.partition: one for one in self._entries(group)}
        there = [entries.get(one.partition) for one in base]
        for position in wanted:
            entry = there[position]
            if entry is not None:
                self._sampled[group, position] = entry
        built = [one for one in there if one is not None]
        columns = tuple(self._column(one, there) for one in self._files.groups[group].fields)
        return _Records(sum(one.rows for one in built), self._stored(group, built), columns)

    def _entries(self, group: str) -> Sequence[PartitionEntry]:
        if group == BASE_GROUP:
            return self._files.base
        fileset = self._files.groups[group].fileset
        # Not through the table's files, which would keep what is read here for thousands of groups.
        return () if fileset is None else tuple(read_fileset(self._place.store, fileset))

    def _column(self, one: Field, there: Sequence[PartitionEntry | None]) -> ColumnFacts:
        nulls = None if one.is_tensor else 0
        size = 0
        known = np.zeros(len(there), np.int64)
        for position, entry in enumerate(there):
            if entry is None:
                continue
            null = entry.nulls.get(one.name, 0)
            nulls = None if nulls is None else nulls + null
            size += entry.column_bytes.get(one.name, 0)
            known[position] = entry.rows - null
        return ColumnFacts(one.name, str(one.type) if one.shape is None else (
            f"{one.type} {list(one.shape)}"), nulls, size, tuple(self._coverage(known, there)))  # fmt: skip

    def _coverage(
        self, known: np.ndarray, there: Sequence[PartitionEntry | None]
    ) -> Iterator[int | None]:
        for start, stop in pairwise(self.bounds):
            rows = sum(one.rows for one in self._files.base[start:stop])
            some = any(one is not None for one in there[start:stop])
            yield None if not some else 1000 if not rows else (
                int(known[start:stop].sum()) * 1000 // rows
            )  # fmt: skip

    def _stored(self, group: str, built: Sequence[PartitionEntry]) -> int:
        """Return the bytes of files that are this group's alone; note those it shares."""
        own = 0
        home = f"data/{self._files.name}/{group}/"
        for entry in built:
            for file in entry.all_files():
                if file.path.startswith(home):
                    own += file.bytes
                else:
                    _, users = self._shared.setdefault(file.path, (file.bytes, {}))
                    users[group] = entry.decoded_bytes
        return own

    def shared_bytes(self) -> dict[str, int]:
        """Return each group's part of the files that several have, by size in memory."""
        found: dict[str, int] = {}
        for size, users in self._shared.values():
            total = sum(users.values())
            for group, own in users.items():
                share = size * own // total if total else size // len(users)
                found[group] = found.get(group, 0) + share
        return found

    # --- rows ----------------------------------------------------------------------------------

    def parts(self, split: Split | None) -> SampledParts:
        """Return which rows to look at."""
        files = self._files
        if split is None:
            slices = slices_in_order([one.rows for one in files.base])
            what = "time" if files.schema.time is not None else "order"
            names = tuple(f"{one + 1} of {len(slices)}" for one in range(len(slices)))
            return SampledParts(names, slices, f"equally many rows each, in the table's {what}")
        folds = split.folds()
        fold = folds[-1]
        kind = type(split).__name__
        said = kind if len(folds) == 1 else f"{kind}, the last of {len(folds)} folds"
        selections = [fold.rows(part, files.schema) for part in fold.parts()]
        return SampledParts(
            fold.parts(),
            tuple(slices_of(files.base, one, self._mask) for one in selections),
            said,
        )

    def _mask(self, position: int, selection: Selection) -> Mask:
        """Return which rows of a partition a selection takes."""
        files, place = self._files, self._place
        columns = selection.columns(files.schema)
        for group in files.groups_of(columns):
            self._keep(group, position)
        part = self._source(position, columns)
        engine = get_engine(place.engine)
        need = needed([(part, 0, part.rows)], files.schema, columns, 2)
        with holding(need, place.memory_limit, place.engine, "report without the split"):
            read = part.read(
                place.store, engine, with_row_count(columns, files.schema), files.schema
            )
            mask: Mask = np.asarray(engine.to_host(selection.mask(read, engine)))
            return mask

    def _keep(self, group: str, position: int) -> None:
        """Have the entry of a group's partition, which a selection reads before all are surveyed."""
        name = self._files.base[position].partition
        if (group, position) in self._sampled:
            return
        for entry in self._entries(group):
            if entry.partition == name:
                self._sampled[group, position] = entry
                return
        columns = self._files.groups[group].names
        raise NotReadyError(
            f"the split divides rows of table {self._files.name!r} by columns of {list(columns)}, "
            f"which are not built in partition {name}",
            f"run store.table({self._files.name!r}).build() first",
        )

    def _source(self, position: int, columns: Sequence[str]) -> PartitionSource:
        """Return where columns of a partition are, of those groups that have values there."""
        base = self._files.base[position]
        found: list[tuple[GroupEntry, PartitionEntry]] = [(self._files.groups[BASE_GROUP], base)]
        for group in self._files.groups_of(tuple(columns)):
            entry = self._sampled.get((group, position))
            if group != BASE_GROUP and entry is not None:
                found.append((self._files.groups[group], entry))
        return PartitionSource(base, tuple(found))

    def described(self, parts: SampledParts) -> tuple[TablePart, ...]:
        """Return the parts with the times of their sampled rows."""
        found = []
        for name, slices in zip(parts.names, parts.slices, strict=True):
            spans = [self._span(one) for one in slices if one.rows]
            low = min((one[0] for one in spans if one is not None), default=None)
            high = max((one[1] for one in spans if one is not None), default=None)
            rows = sum(one.rows for one in slices)
            found.append(TablePart(name, self._time(low), self._time(high), rows))
        return tuple(found)

    def _span(self, one: Slice) -> tuple[int, int] | None:
        """Return first and last time of a slice's rows; reads them only where it is no whole partition."""
        entry, schema, place = self._files.base[one.position], self._files.schema, self._place
        if schema.time is None or entry.time_min is None or entry.time_max is None:
            return None
        if one.rows == entry.rows:
            return entry.time_min, entry.time_max
        engine = get_engine(place.engine)
        part = self._source(one.position, [schema.time])
        need = needed([(part, one.start, one.stop)], schema, [schema.time], 2)
        with holding(need, place.memory_limit, place.engine, "report without values"):
            read = part.read(place.store, engine, [schema.time], schema, (one.start, one.stop))
            steps, _ = engine.values(read.frame[schema.time])
            times = np.asarray(engine.to_host(steps))
        times = times if one.kept is None else times[one.kept]
        return int(times.min()), int(times.max())

    # --- values --------------------------------------------------------------------------------

    def values(self, parts: SampledParts) -> tuple[dict[str, ColumnValues], dict[str, str]]:
        """Return how sampled values are distributed, and of which columns not, and why."""
        schema = self._files.schema
        unseen = {one.name: no_distribution(one) for one in schema}
        wanted = [name for name, why in unseen.items() if not why]
        found: dict[str, ColumnValues] = {}
        done = len(schema.names) - len(wanted)
        for columns in self._together(wanted):
            for some in self._read_or_halve(columns, parts, unseen):
                found |= some
            done += len(columns)
            self._progress(done, len(schema.names))
        return found, {name: why for name, why in unseen.items() if why}

    def _together(self, columns: Sequence[str]) -> Iterator[list[str]]:
        """Yield columns to be read at once; those of a file side by side, so that it is opened once."""
        owners = self._files.graph.owners
        waiting: list[str] = []
        for _, some in groupby(columns, key=owners.__getitem__):
            for name in some:
                waiting.append(name)
                if len(waiting) == _TOGETHER:
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

    def _read_or_halve(
        self, columns: Sequence[str], parts: SampledParts, unseen: dict[str, str]
    ) -> Iterator[dict[str, ColumnValues]]:
        """Yield the distributions of columns, read in so many portions as memory makes necessary."""
        need = self._need(columns, parts)
        if need.bytes > _SAMPLE_BYTES and len(columns) > 1:
            half = len(columns) // 2
            yield from self._read_or_halve(columns[:half], parts, unseen)
            yield from self._read_or_halve(columns[half:], parts, unseen)
            return
        place = self._place
        try:
            with holding(need, place.memory_limit, place.engine, "report without values"):
                yield self._distributions(columns, parts)
        except MemoryLimitError as error:
            # A report of everything else is worth more than none; the page says what is missing.
            unseen |= dict.fromkeys(columns, f"not read: {error.problem}")

    def _need(self, columns: Sequence[str], parts: SampledParts) -> Need:
        pieces = [
            (self._source(one.position, columns), one.start, one.stop)
            for part in parts.slices
            for one in part
        ]
        return needed(pieces, self._files.schema, columns, 2)

    def _distributions(
        self, columns: Sequence[str], parts: SampledParts
    ) -> dict[str, ColumnValues]:
        engine, schema = get_engine(self._place.engine), self._files.schema
        sample: dict[str, list[pa.Array]] = {name: [] for name in columns}
        for slices in parts.slices:
            pieces = [self._slice(one, columns, engine) for one in slices]
            for name in columns:
                some = [one[name] for one in pieces if name in one]
                empty = pa.array([], schema[name].type)
                sample[name].append(pa.concat_arrays(some) if some else empty)
        when = {schema.time} if schema.time is not None else set()
        return {
            name: distribution(schema[name].type, sample.pop(name), name not in when)
            for name in columns
        }

    def _slice(self, one: Slice, columns: Sequence[str], engine: Engine) -> dict[str, pa.Array]:
        part = self._source(one.position, columns)
        there = {name for group, _ in part.groups for name in group.names}
        wanted = [name for name in columns if name in there]
        if not wanted or not one.rows:
            return {}
        some = None if one.stop - one.start == part.rows else (one.start, one.stop)
        read = part.read(self._place.store, engine, wanted, self._files.schema, some)
        table = to_arrow(read, wanted, engine)
        if one.kept is not None:
            table = table.filter(pa.array(one.kept))
        # Cast where an engine has a type of its own for it.
        return {name: compact(table[name].cast(self._files.schema[name].type)) for name in wanted}


def _feature_facts(
    group: GroupEntry,
    feature: Feature | None,
    assessments: Sequence[Assessment],
    stored_bytes: int,
    rows: int,
    columns: tuple[ColumnFacts, ...],
) -> FeatureFacts:
    if feature is None:
        return FeatureFacts("ingested", (), "", "", (), (), False, (), rows, stored_bytes, columns)
    definition = feature.definition.to_json()
    return FeatureFacts(
        feature.kind,
        parameters(definition),
        source(definition),
        group.definition_fingerprint,
        feature.inputs,
        tuple((table, name) for table, names in group.reads.items() for name in names),
        group.looks_ahead,
        tuple(_runs(assessments)),
        rows,
        stored_bytes,
        columns,
    )


def _runs(assessments: Sequence[Assessment]) -> Iterator[Run]:
    """Yield neighbouring partitions that stand alike."""
    for (state, reason), some in groupby(
        assessments, key=lambda one: (str(one.freshness), one.reason)
    ):
        yield Run(state, sum(1 for _ in some), reason)
