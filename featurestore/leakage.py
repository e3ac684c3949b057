"""The leak check: are values what they would have been at their time?

Rows are drawn, and all rows of their times recomputed from history that ends there: the table's rows up to
that time, other tables' rows that were known by then, statistics learnt of no later row
(:mod:`featurestore.execution.hindsight`). A feature whose stored value is another one looks into the future.

What it sees
    a window that is not only behind its row (a centred rolling mean, whatever function computes it); a
    statistic of the whole table (``fit_on="all"``); a function of all rows of a partition; a join that
    takes rows of another table before they were known, where something says when that was: a column
    ``available``, or ``known=``; a ``Lookup`` in a table whose rows have times.

What it cannot see
    what is wrong with ingested columns, and rows that were corrected later (``replace``); when rows of
    another table became known if nothing says so; whatever a function reads that is in no table; a leak
    that changes no value of the rows that were drawn. A feature that looks at *earlier* rows of one that
    leaks is only noted: mend the one that does. Of a feature with ``fit_on=(start, stop)`` and later rows,
    those before ``stop`` are not compared: they are what it learnt from, as the training part of a
    dataset is, and a model must be judged on later ones. Pipelines of datasets are learnt on the training
    part always and are no part of the table.
"""

from __future__ import annotations

import datetime as dt
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.arguments import column_names
from featurestore.dataset.columns import looks_ahead_through
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.errors import DefinitionError, InvalidInputError
from featurestore.execution.hindsight import KnownBy, compares, recomputed
from featurestore.execution.room import Need, holding
from featurestore.execution.states import Available
from featurestore.execution.task_costs import reading_cost
from featurestore.execution.tasks import select_rows, with_row_count
from featurestore.features import FeatureSet
from featurestore.plan.definition import Feature
from featurestore.plan.states import fit_range
from featurestore.plan.table_files import TableFiles
from featurestore.report.leakage import Leak, LeakedRow, LeakReport
from featurestore.schema import is_time_type
from featurestore.session import Session
from featurestore.storage.records import BASE_GROUP
from featurestore.times import from_steps
from featurestore.transforms.base import Partition, Scope
from featurestore.transforms.frames import to_arrow
from featurestore.transforms.independence import equal_rows
from featurestore.units import Duration

AVAILABLE: Final = "available"
"""The column that says when another table's rows became known, if nothing else does."""
_SHOWN: Final = 5
"""Rows that a report has of each feature that leaks."""


def check_leakage(
    session: Session,
    table: str,
    features: str | Sequence[str] | None,
    sample: int,
    seed: int,
    known: Mapping[str, Any],
) -> LeakReport:
    """Return which features have values that look into the future; see ``Table.check_leakage``.

    Raises
    ------
    DefinitionError
        If the table has no time, or a feature is a label by definition.
    InvalidInputError
        For a column that is no feature, or no sample; for a table that is not read, or a column or
        length of time that does not say when its rows became known.
    NotReadyError
        If values are missing or stale.
    MemoryLimitError
    """
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 1:
        raise InvalidInputError(f"sample={sample!r} draws no rows", "draw 1 or more")
    with session.holding_newest() as (held, snapshot):
        files = held.files(table, snapshot)
        sources = held.sources(files)
        check = _Check.of(held, files, sources, features, known)
        return check.run(sample, seed)


@dataclass(slots=True)
class _Found:
    """What was found of one column."""

    differing: int = 0
    rows: list[LeakedRow] = field(default_factory=list)


@dataclass(slots=True)
class _Check:
    """One check of some features.

    Parameters
    ----------
    session : Session
    files : TableFiles
    sources : mapping of str to TableFiles
    features : sequence of Feature
        Those that are recomputed, each after those it needs.
    columns : sequence of str
        Those that are compared.
    known : mapping of str to KnownBy
    unchecked : mapping of str to str
    """

    session: Session
    files: TableFiles
    sources: Mapping[str, TableFiles]
    features: Sequence[Feature]
    columns: Sequence[str]
    known: Mapping[str, KnownBy]
    unchecked: dict[str, str]
    found: dict[str, _Found] = field(default_factory=lambda: defaultdict(_Found))
    rows: int = 0

    @classmethod
    def of(
        cls,
        session: Session,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        asked: str | Sequence[str] | None,
        known: Mapping[str, Any],
    ) -> _Check:
        if files.schema.time is None:
            raise DefinitionError(
                f"table {files.name!r} has no time column, so nothing in it is later than anything",
                "ingest the table with time=",
            )
        columns, unchecked = _columns(files, asked)
        FeatureSet(session, files.name).require_fresh(files, columns)
        groups = [one for one in files.groups_of(columns) if one != BASE_GROUP]
        features = files.graph.needed(groups)
        rules = {name: _rule(sources, files, name, value) for name, value in known.items()}
        for one in features:
            source = one.source_table
            if source is None:
                continue
            schema = sources[source].schema
            if AVAILABLE in schema and is_time_type(schema[AVAILABLE].type):
                rules.setdefault(source, KnownBy(AVAILABLE))
            own = files.schema[files.schema.time].type
            if source not in rules and not compares(own, schema):
                why = f"nothing says when rows of {source!r} became known"
                unchecked |= dict.fromkeys(set(one.names) & set(columns), why)
        return cls(session, files, sources, features, columns, rules, unchecked)

    def run(self, sample: int, seed: int) -> LeakReport:
        """Draw rows, recompute and compare them."""
        newest = max((one.time_max or 0 for one in self.files.base if one.rows), default=0)
        trusted = self._trusted(newest)
        times = 0
        for position, offsets in _drawn(self.files, sample, seed):
            times += self._compare(position, offsets, trusted)
        for name in trusted.keys() & set(self.columns):
            self.unchecked.setdefault(
                name, "rows that it learnt from (before the end of fit_on) left out"
            )
        leaks = tuple(self._leaks())
        return LeakReport(
            self.files.name, tuple(self.columns), times, self.rows, leaks, self.unchecked
        )

    def _trusted(self, newest: int) -> dict[str, int]:
        """Return before which time values of a column are not compared: see the module."""
        found: dict[str, int] = {}
        for one in self.features:
            stops = [found[name] for name in one.inputs if name in found]
            if one.transformer.scope is Scope.FIT:
                within = fit_range(one, self.files.schema)
                stops += [] if within is None or within[1] > newest else [within[1]]
            if stops:
                found |= dict.fromkeys(one.names, max(stops))
        return found

    def _compare(self, position: int, offsets: Sequence[int], trusted: Mapping[str, int]) -> int:
        """Compare the rows of the times of some rows of a partition; return how many times."""
        files, place = self.files, self.session.place
        engine = get_engine(place.engine)
        time = files.schema.time
        assert time is not None
        base = [name for one in self.features for name in one.inputs if self._is_base(name)]
        base = list(dict.fromkeys((*files.entry.key, time, *base)))
        wanted = with_row_count((*base, *self.columns), files.schema)
        source = Available(files, {}).at(position, wanted)
        need = Need(
            "checking for leaks", 2 * reading_cost(source, wanted, files.schema), source.partition
        )
        with holding(need, place.memory_limit, place.engine, "name fewer features"):
            part = source.read(place.store, engine, wanted, files.schema)
            steps, _ = engine.values(part.frame[time])
            drawn = sorted({int(steps[one]) for one in offsets})
            stored = [_rows_at(part, steps, one, engine) for one in drawn]
            del part
        ingested = [_only(one, base) for one in stored]
        again = recomputed(place, files, self.sources, self.features, ingested, self.known, engine)
        for moment, old, new in zip(drawn, stored, again, strict=True):
            self.rows += old.rows
            judged = [name for name in self.columns if moment >= trusted.get(name, moment)]
            self._judge(judged, moment, old, new, engine)
        return len(drawn)

    def _judge(
        self, columns: Sequence[str], moment: int, old: Partition, new: Partition, engine: Engine
    ) -> None:
        keys = to_arrow(old, self.files.entry.key, engine).to_pylist()
        keys = keys or [{}] * old.rows
        type_ = self.files.schema[self.files.schema.time or ""].type
        for name in columns:
            before, after = (_on_host(one, name, engine) for one in (old, new))
            wrong = np.flatnonzero(~equal_rows(before, after))
            found = self.found[name]
            found.differing += len(wrong)
            for at in wrong[: max(0, _SHOWN - len(found.rows))]:
                row = int(at)
                values = (_value(before, row), _value(after, row))
                found.rows.append(LeakedRow(keys[row], from_steps(moment, type_), *values))

    def _leaks(self) -> Iterator[Leak]:
        """Yield what leaks, and note what is computed from it and was not seen to."""
        leaking = {name for name, one in self.found.items() if one.differing}
        tainted = set(leaking)
        for feature in self.features:
            causes = [one for one in feature.inputs if one in tainted]
            for name in feature.names:
                if name in leaking:
                    found = self.found[name]
                    through = tuple(one for one in causes if one in leaking)
                    yield Leak(name, feature.kind, found.differing, tuple(found.rows), through)
                elif causes:
                    tainted.add(name)
                    if name in self.columns:
                        self.unchecked[name] = f"computed from {causes[0]}, which leaks"

    def _is_base(self, name: str) -> bool:
        return self.files.graph.owners[name] == BASE_GROUP


def _columns(
    files: TableFiles, asked: str | Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the columns to compare, and why others of those asked for are not.

    Raises
    ------
    InvalidInputError
    """
    made = [name for one in files.graph.features() for name in one.names]
    names = tuple(made) if asked is None else column_names(asked)
    for name in names:
        files.schema[name]
        if name not in made:
            raise InvalidInputError(
                f"column {name!r} of table {files.name!r} was ingested: nothing computes it",
                f"name features, some of {made[:5]}",
            )
    through = {name: looks_ahead_through(name, files.snapshot, files.name) for name in names}
    labels = {
        name: f"a label, it looks ahead (through {one})" for name, one in through.items() if one
    }
    if asked is not None and labels:
        name = next(iter(labels))
        raise DefinitionError(
            f"{name!r} is {labels[name]}, and datasets refuse it as a feature",
            "leave it out",
        )
    return tuple(name for name in names if name not in labels), labels


def _rule(sources: Mapping[str, TableFiles], files: TableFiles, name: str, value: Any) -> KnownBy:
    """Return when the rows of a table became known, as a caller said.

    Raises
    ------
    InvalidInputError
    """
    read = sorted({one.source_table for one in files.graph.features() if one.source_table})
    if name not in read:
        raise InvalidInputError(
            f"known= names {name!r}, which no feature of table {files.name!r} reads",
            f"name some of {read}",
        )
    schema = sources[name].schema
    if isinstance(value, str) and value in schema:
        if is_time_type(schema[value].type):
            return KnownBy(value)
    elif isinstance(value, str | dt.timedelta | Duration):
        return KnownBy(lag=Duration.parse(value))
    elif isinstance(value, int) and not isinstance(value, bool):
        return KnownBy(lag=value)
    raise InvalidInputError(
        f"known={{{name!r}: {value!r}}} does not say when rows became known",
        f"name a time column of {name!r}, or how long after their time as '2h'",
    )


def _drawn(files: TableFiles, sample: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield the partitions of rows drawn in table order, however it is cut, and which rows they are."""
    total = files.rows
    rows = sorted(random.Random(seed).sample(range(total), min(sample, total)))
    ends = list(accumulate(one.rows for one in files.base))
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        position = int(np.searchsorted(ends, row, side="right"))
        found[position].append(row - (ends[position - 1] if position else 0))
    yield from found.items()


def _rows_at(part: Partition, steps: Any, time: int, engine: Engine) -> Partition:
    return select_rows(part, engine.xp.flatnonzero(steps == time), engine)


def _only(part: Partition, columns: Sequence[str]) -> Partition:
    scalars = [name for name in columns if name in part.frame.columns]
    tensors = {name: part.tensors[name] for name in columns if name in part.tensors}
    return Partition(part.frame.select(scalars), part.schema, tensors)


def _on_host(part: Partition, name: str, engine: Engine) -> Any:
    if part.schema[name].is_tensor:
        return engine.to_host(part.tensors[name])
    return engine.to_arrow(part.frame.select(name))[name]


def _value(column: Any, row: int) -> Any:
    one = column[row]
    return one.as_py() if isinstance(one, pa.Scalar) else one.tolist()
