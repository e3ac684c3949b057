"""Which partitions a preview computes on, and which it reads besides so that values are what a build gives.

Features that look back or ahead are computed on consecutive partitions, after as much history and before
as many later rows as they reach; where that is more than a preview may read, or is not known beforehand,
the sample says so of the feature. What is stored and fresh is read, not computed.

Always true: only metadata is read here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from featurestore.arguments import as_whole
from featurestore.errors import InvalidInputError
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessor
from featurestore.plan.states import Learner, SourceSummaries, fit_range, source_need
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.transforms.base import Scope, SourceTransformer
from featurestore.units import format_bytes

HISTORY_BYTES: Final = 256 * 2**20
"""Decoded bytes of further partitions that are read, of each table, for what looks beyond the previewed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a preview is asked for.

    Parameters
    ----------
    files : TableFiles
        The table as it will be with the features.
    sources : mapping of str to TableFiles
    assessor : Assessor
        Of these tables.
    features : tuple of Feature
        Those that are previewed.
    partitions : int or sequence of int
        How many, or their positions in the table.
    columns : tuple of str
        Stored columns that are read as well.
    unsaid : frozenset of str
        Groups of fitted features that learn from the previewed rows, as nobody said from which.
    """

    files: TableFiles
    sources: Mapping[str, TableFiles]
    assessor: Assessor
    features: tuple[Feature, ...]
    partitions: int | Sequence[int]
    columns: tuple[str, ...] = ()
    unsaid: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sample:
    """What of some tables a preview reads and computes.

    Parameters
    ----------
    shown : tuple of int
        Positions of the partitions that are previewed.
    kept : tuple of int
        Those and the ones that are read for their sake, in table order.
    computed : tuple of Feature
        The features that are computed, each after those it needs.
    columns : tuple of str
        Stored columns that these read.
    sources : mapping of str to tuple of int
        Positions of other tables' partitions.
    differs : mapping of str to str
        Column, then why its values may differ from those of a build.
    """

    shown: tuple[int, ...]
    kept: tuple[int, ...]
    computed: tuple[Feature, ...]
    columns: tuple[str, ...]
    sources: Mapping[str, tuple[int, ...]]
    differs: Mapping[str, str]


def sample_of(asked: Asked) -> Sample:
    """Return what a preview reads and computes.

    Raises
    ------
    InvalidInputError
        If there are no such partitions.
    NotReadyError
        If columns of another table are not built where they are needed.
    """
    graph = asked.files.graph
    needed = graph.needed([one.group for one in asked.features])
    groups = {one.group for one in asked.features}
    while True:  # more is computed in each turn, so it ends
        computed = tuple(one for one in needed if one.group in groups)
        cut = _Cut.of(asked, computed)
        unready = {
            group for group in _stored(asked.files, computed, groups, asked.columns)
            if not _is_fresh(asked, group, cut.kept)
        }  # fmt: skip
        if not unready:
            return cut.sample()
        groups |= unready
        needed = graph.needed(groups)


def _stored(
    files: TableFiles, computed: Sequence[Feature], groups: set[str], columns: Iterable[str]
) -> set[str]:
    """Return the groups that are read as they are stored."""
    read = [*columns, *(name for one in computed for name in one.inputs)]
    return set(files.groups_of(tuple(read))) - groups - {BASE_GROUP}


def _is_fresh(asked: Asked, group: str, positions: Iterable[int]) -> bool:
    found = asked.assessor.group(asked.files.name, group)
    return all(found[one].is_fresh for one in positions)


@dataclass(slots=True)
class _Cut:
    """The partitions, while they are found."""

    asked: Asked
    computed: tuple[Feature, ...]
    columns: tuple[str, ...]
    reach: Mapping[str, tuple[float, float]]
    shown: tuple[int, ...]
    kept: set[int]

    @classmethod
    def of(cls, asked: Asked, computed: tuple[Feature, ...]) -> _Cut:
        columns = _read_columns(asked, computed)
        cut = cls(asked, computed, columns, _reaches(asked.files, computed), (), set())
        cut.shown = cut._chosen()
        cut.kept = set(cut.shown)
        cut._widen()
        return cut

    # --- which are previewed --------------------------------------------------------------------

    def _chosen(self) -> tuple[int, ...]:
        base = self.asked.files.base
        filled = [position for position, one in enumerate(base) if one.rows]
        wanted = self.asked.partitions
        if not isinstance(wanted, int):
            return _positions(wanted, len(base), self.asked.files.name)
        count = min(wanted, len(filled))
        if not count:
            return ()
        back = max((one for one, _ in self.reach.values()), default=0)
        ahead = max((one for _, one in self.reach.values()), default=0)
        if not back and not ahead:
            return self._spread(filled, count)
        start = (len(filled) - count) // 2
        while back == math.inf and start and self._bytes(filled[:start]) > HISTORY_BYTES:
            start -= 1  # from the beginning, values are those of a build
        return tuple(filled[start : start + count])

    def _spread(self, filled: Sequence[int], count: int) -> tuple[int, ...]:
        """Return partitions from all over the table, of each fit scope one at least."""
        found = set(_evenly(filled, count))
        for feature in self.computed:
            within = [] if feature.transformer.scope is not Scope.FIT else self._learnt(feature)
            if within and not found & set(within):
                found -= set(sorted(found)[:1])
                found |= set(_evenly(within, 1))
        return tuple(sorted(found))

    def _learnt(self, feature: Feature) -> list[int]:
        """Return the partitions with rows that a fitted feature learns from."""
        files = self.asked.files
        span = fit_range(feature, files.schema)
        return [
            position
            for position, one in enumerate(files.base)
            if one.rows and (span is None or _overlaps(one, span[0], span[1] - 1))
        ]

    # --- what is read for their sake ---------------------------------------------------------------

    def _widen(self) -> None:
        """Add the partitions that previewed ones look at, as far as a preview may read."""
        left = HISTORY_BYTES
        for position in [*self._own_source(), *self._wanted()]:
            size = self._bytes([position])
            if position in self.kept:
                continue
            if size > left:
                break
            left -= size
            self.kept.add(position)
        learnt = {position for one in self.computed for position in self._said(one)} - self.kept
        if self._bytes(learnt) <= left:  # all of them, or what is learnt is another thing anyway
            self.kept |= learnt

    def _said(self, feature: Feature) -> list[int]:
        """Return the partitions that a fitted feature was said to learn from."""
        fitted = feature.transformer.scope is Scope.FIT and feature.group not in self.asked.unsaid
        return self._learnt(feature) if fitted else []

    def _wanted(self) -> list[int]:
        """Return the partitions that are looked at, nearest first."""
        found = {
            one: min(abs(one - shown) for shown in self.shown)
            for reach in set(self.reach.values())
            for one in self._looked_at(*reach)
        }
        return sorted(found, key=lambda one: (found[one], one))

    def _looked_at(self, back: float, ahead: float) -> set[int]:
        """Return the partitions that rows of previewed ones look at."""
        base, found = self.asked.files.base, set()
        for shown in self.shown:
            first, last = base[shown].time_min or 0, base[shown].time_max or 0
            if back:
                found |= {one for one in range(shown) if (base[one].time_max or 0) >= first - back}
            if ahead:  # up to the one that says that windows are complete
                later = [one for one in range(shown + 1, len(base)) if base[one].rows]
                enough = [one for one in later if (base[one].time_max or 0) >= last + ahead]
                found |= {one for one in later if not enough or one <= enough[0]}
        return {one for one in found if base[one].rows}

    def _own_source(self) -> list[int]:
        """Return the partitions of the table itself that joins with it look up."""
        return sorted(set(self._sources().get(self.asked.files.name, ())) - self.kept)

    def _bytes(self, positions: Iterable[int]) -> int:
        return decoded_bytes(self.asked.files, self.columns, positions)

    # --- other tables -----------------------------------------------------------------------------------

    def _sources(self) -> dict[str, tuple[int, ...]]:
        """Return the partitions of other tables that previewed ones need, as a build would read them."""
        found: dict[str, set[int]] = {}
        for feature in self.computed:
            transformer = feature.transformer
            if isinstance(transformer, SourceTransformer):
                positions = self._source_positions(transformer)
                found.setdefault(transformer.source_table, set()).update(positions)
        return {name: tuple(sorted(one)) for name, one in found.items()}

    def _source_positions(self, transformer: SourceTransformer) -> set[int]:
        files, assessor = self.asked.files, self.asked.assessor
        source = self.asked.sources[transformer.source_table]
        columns = transformer.source_inputs(files.schema)
        summaries = SourceSummaries.of(
            Learner(transformer, source.schema, columns),
            source.base,
            assessor.prints(source.name, columns),
        )
        found: set[int] = set()
        for shown in self.shown:
            need = source_need(transformer, files.schema, files.base[shown], summaries)
            found |= {*need.rows, *(one.partition for one in need.members)}
        if source.name != files.name:
            assessor.require_built(source.name, columns, sorted(found))
        return found

    # --- what comes of it ---------------------------------------------------------------------------------

    def sample(self) -> Sample:
        sources, short = {}, set()
        for name, positions in self._sources().items():
            if name == self.asked.files.name:
                short |= {name} if set(positions) - self.kept else set()
                continue
            kept = self._affordable(name, positions)
            short |= {name} if len(kept) < len(positions) else set()
            sources[name] = kept
        return Sample(
            self.shown,
            tuple(sorted(self.kept)),
            self.computed,
            self.columns,
            sources,
            self._differing(short),
        )

    def _affordable(self, name: str, positions: Sequence[int]) -> tuple[int, ...]:
        """Return the newest of another table's partitions that a preview may read."""
        source, left = self.asked.sources[name], HISTORY_BYTES
        kept: list[int] = []
        columns = self._source_columns(name)
        for one in reversed(positions):
            left -= decoded_bytes(source, columns, [one])
            if left < 0 and kept:
                break
            kept.append(one)
        return tuple(reversed(kept))

    def _source_columns(self, name: str) -> tuple[str, ...]:
        return source_columns(self.computed, self.asked.files, name)

    def _differing(self, short: set[str]) -> dict[str, str]:
        """Return why values of columns may differ from those of a build; causes first."""
        found: dict[str, str] = {}
        for feature in self.computed:
            why = self._why(feature, short)
            for one in feature.inputs:
                why = why or (f"computed from {one}, which may differ" if one in found else "")
            if why:
                found |= dict.fromkeys(feature.names, why)
        return found

    def _why(self, feature: Feature, short: set[str]) -> str:
        transformer, total = feature.transformer, len(self.asked.files.base)
        if isinstance(transformer, SourceTransformer):
            if transformer.source_table in short:
                return (
                    f"only {format_bytes(HISTORY_BYTES)} of table {transformer.source_table!r} "
                    "were read"
                )
            return ""
        if transformer.scope is Scope.FIT:
            if set(self._learnt(feature)) <= self.kept:
                return ""
            return f"learnt on {len(self.kept)} of {total} partitions"
        back, ahead = self.reach.get(feature.group, (0, 0))
        if not self._looked_at(back, 0) <= self.kept:
            return "earlier rows were not read: values near the beginning may differ"
        if not self._looked_at(0, ahead) <= self.kept:
            return "later rows were not read: values near the end may differ or be null"
        return ""


def decoded_bytes(files: TableFiles, columns: Sequence[str], positions: Iterable[int]) -> int:
    """Return the bytes that stored columns of some partitions take in memory, as recorded."""
    owners = {name: files.graph.owners[name] for name in columns}
    total = 0
    for position in positions:
        partition = files.base[position].partition
        for name, group in owners.items():
            entry = files.entries[group].get(partition)
            total += 0 if entry is None else entry.column_bytes.get(name, 0)
    return total


def source_columns(computed: Sequence[Feature], files: TableFiles, source: str) -> tuple[str, ...]:
    """Return the columns that features read of another table (or of their own, as one)."""
    found: dict[str, None] = {}
    for one in computed:
        transformer = one.transformer
        if isinstance(transformer, SourceTransformer) and transformer.source_table == source:
            found |= dict.fromkeys(transformer.source_inputs(files.schema))
    return tuple(found)


def _read_columns(asked: Asked, computed: Sequence[Feature]) -> tuple[str, ...]:
    """Return the stored columns that are read of the table itself."""
    files = asked.files
    made = {name for one in computed for name in one.names}
    time = () if files.entry.time is None else (files.entry.time,)
    names = [*files.entry.key, *time, *asked.columns]
    names += [name for one in computed for name in one.inputs]
    names += source_columns(computed, files, files.name)
    return tuple(name for name in dict.fromkeys(names) if name not in made)


def _reaches(files: TableFiles, computed: Sequence[Feature]) -> dict[str, tuple[float, float]]:
    """Return how far features look back and ahead, through what is computed with them."""
    found: dict[str, tuple[float, float]] = {}
    owners = {name: one.group for one in computed for name in one.names}
    for feature in computed:
        through = [found[owners[name]] for name in feature.inputs if name in owners]
        back = max((one for one, _ in through), default=0.0)
        ahead = max((one for _, one in through), default=0.0)
        scope = feature.transformer.scope
        own_state = not isinstance(feature.transformer, SourceTransformer)
        if own_state and scope in (Scope.PREFIX, Scope.SUFFIX):
            reach = feature.transformer.reach(files.schema)
            steps = math.inf if reach is None else float(reach)
            back, ahead = (back + steps, ahead) if scope is Scope.PREFIX else (back, ahead + steps)
        found[feature.group] = (back, ahead)
    return found


def _positions(wanted: Sequence[int], count: int, table: str) -> tuple[int, ...]:
    found = []
    for one in wanted:
        whole = as_whole(one)
        if whole is None or not 0 <= whole < count:
            raise InvalidInputError(
                f"partitions={list(wanted)!r} names {one!r}; table {table!r} has {count} partitions",
                f"give whole numbers from 0 to {count - 1}, or how many partitions to take",
            )
        found.append(whole)
    return tuple(sorted(set(found)))


def _evenly(positions: Sequence[int], count: int) -> tuple[int, ...]:
    """Return some of the positions, evenly over all; one alone from the middle."""
    if count == 1:
        return (positions[len(positions) // 2],)
    places = np.linspace(0, len(positions) - 1, count).round().astype(int)
    return tuple(positions[one] for one in dict.fromkeys(places.tolist()))


def _overlaps(entry: PartitionEntry, first: int, last: int) -> bool:
    return (entry.time_min or 0) <= last and (entry.time_max or 0) >= first
