"""Features of rows that are not in the table: train equals serve.

The new rows are treated as one more partition that begins at their oldest time: the same
transformers, the same states, the same order of rows. So a value computed here equals the one the
table gets if these rows are appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, MemoryLimitError, NotReadyError, SchemaError
from featurestore.execution.collecting import convert, empty_table, to_arrow
from featurestore.execution.states import Available, StateRequest, Workplace, prepare_states
from featurestore.execution.tasks import SourceRows, gather_source, require_state, with_row_count
from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature
from featurestore.plan.projection import resident_bytes
from featurestore.plan.states import StateNeed, Summary, fit_needs, source_need, summary_key
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP, PartitionEntry, Provenance
from featurestore.storage.states import StateStore
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
)
from featurestore.units import format_bytes


class RowSource(Protocol):
    """Rows in bounded batches, as ``ingest.sources`` gives them."""

    @property
    def schema(self) -> pa.Schema:
        """Its columns; tensors are fixed-size lists."""

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in order."""


_COPIES: Final = 4
"""New rows as read, sorted, with features, and as returned."""
_SERVED: Final = "served"


def compute_features(
    place: Workplace,
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    rows: RowSource,
    columns: Sequence[str],
) -> Any:
    """Return features of new rows as a Polars frame: key, time and ``columns``, in their order.

    Raises
    ------
    SchemaError
        If the rows lack a column that is needed.
    MemoryLimitError
        If they do not fit the limit.
    """
    from featurestore.engines.selection import get_engine

    engine = get_engine(place.engine)
    features = _needed(files, columns)
    shown = tuple(dict.fromkeys((*files.entry.key, *_time(files), *columns)))
    wanted = [name for one in features for name in one.inputs if _is_base(files, name)]
    wanted += [name for name in shown if _is_base(files, name)]
    table = _load(rows, with_row_count(wanted, files.schema), files, place.memory_limit)
    if not table.num_rows:
        return convert(empty_table(files.schema, shown), "polars")
    order = _table_order(table, files)
    partition = _as_partition(table.take(pa.array(order)), files, engine)
    serving = Serving(place, files, sources, _span(partition, engine), partition.rows)
    for feature in features:
        state = serving.state(feature, engine)
        made = feature.transformer.apply(partition, state, engine)
        partition = partition.replace(made, files.schema)
    result = to_arrow(partition, shown, engine)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return convert(result.take(pa.array(back)), "polars")


def _needed(files: TableFiles, columns: Sequence[str]) -> list[Feature]:
    """Return the features behind columns, each after those it needs."""
    for name in columns:
        files.schema[name]
    needed = set(files.groups_of(tuple(columns)))
    for feature in reversed(files.graph.features()):
        if feature.group in needed:
            needed.update(files.groups_of(feature.inputs))
    return [one for one in files.graph.features() if one.group in needed]


def _is_base(files: TableFiles, column: str) -> bool:
    return files.graph.owners[column] == BASE_GROUP


def _time(files: TableFiles) -> tuple[str, ...]:
    return () if files.entry.time is None else (files.entry.time,)


def _load(rows: RowSource, columns: Sequence[str], files: TableFiles, limit: int) -> pa.Table:
    """Read the new rows' columns, in the table's types; further columns are passed over."""
    missing = [name for name in columns if name not in rows.schema.names]
    if missing:
        raise SchemaError(
            f"the new rows lack column {missing[0]!r}, which {files.name!r} needs for these features",
            f"give the columns {list(columns)}",
        )
    budget, size = max(limit - resident_bytes(), 0), 0
    batches = []
    for batch in rows.batches(columns=list(columns)):
        size += batch.nbytes
        if _COPIES * size > budget:
            raise MemoryLimitError(
                f"the new rows need more than {format_bytes(budget)}, what is left of the memory "
                f"limit of {format_bytes(limit)}",
                "give them in several files, oldest first, or raise memory_limit",
            )
        batches.append(batch)
    found = pa.schema([rows.schema.field(name) for name in rows.schema.names if name in columns])
    table = pa.Table.from_batches(batches, schema=found).select(list(columns))
    target = empty_table(files.schema, columns).schema
    try:
        return table.cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"the new rows do not fit the types of table {files.name!r}: {error}",
            f"give them as {', '.join(f'{one.name}: {one.type}' for one in target)}",
        ) from error


def _table_order(table: pa.Table, files: TableFiles) -> np.ndarray[Any, Any]:
    """Return the positions in table order: time, then key, equal rows as they came."""
    names = [*_time(files), *(name for name in files.entry.key if name in table.column_names)]
    if not files.entry.time:
        return np.arange(table.num_rows)
    nulls = [name for name in names if table.column(name).null_count]
    if nulls:
        raise SchemaError(
            f"column {nulls[0]!r} of the new rows has {table.column(nulls[0]).null_count} nulls",
            "key and time of every row must be known",
        )
    numbered = table.select(names).append_column("__fs_row", pa.array(np.arange(table.num_rows)))
    keys = [(name, "ascending") for name in [*names, "__fs_row"]]
    return np.asarray(numbered.sort_by(keys).column("__fs_row"))


def _as_partition(table: pa.Table, files: TableFiles, engine: Engine) -> Partition:
    scalars = [name for name in table.column_names if not files.schema[name].is_tensor]
    tensors = {}
    for field in files.schema:
        if field.is_tensor and field.name in table.column_names:
            flat = table.column(field.name).combine_chunks()
            while pa.types.is_fixed_size_list(flat.type):
                flat = flat.flatten()
            values = flat.to_numpy(zero_copy_only=False)
            tensors[field.name] = engine.from_host(
                values.reshape(table.num_rows, *(field.shape or ()))
            )
    return Partition(engine.from_arrow(table.select(scalars)), files.schema, tensors)


def _span(partition: Partition, engine: Engine) -> tuple[int, int] | None:
    time = partition.schema.time
    if time is None:
        return None
    times, _ = engine.values(partition.frame[time])
    return int(times[0]), int(times[-1])


class Serving:
    """Finds the states for a virtual partition that begins at a time."""

    def __init__(
        self,
        place: Workplace,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        span: tuple[int, int] | None,
        rows: int,
    ) -> None:
        self._place = place
        self._files = files
        self._sources = sources
        self._span = span
        self._rows = rows
        self._states = StateStore(place.store)

    def state(self, feature: Feature, engine: Engine) -> State:
        """Return the state a feature's ``apply`` gets for the new rows."""
        transformer = feature.transformer
        if isinstance(transformer, SourceTransformer):
            return self._source_state(transformer, engine)
        if transformer.scope is Scope.NONE:
            return EMPTY_STATE
        inputs = self._input_fingerprints(feature)
        if transformer.scope is Scope.FIT:
            need = fit_needs(feature, self._files, inputs)
        else:
            need = self._prefix_need(feature, inputs)
        return self._prepared(need, feature, Available(self._files, {}), feature.inputs)

    def _input_fingerprints(self, feature: Feature) -> list[str]:
        found = []
        for one in self._files.base:
            stored = self._files.stored_fingerprint(feature.inputs, one.partition)
            if stored is None:
                raise NotReadyError(
                    f"{feature.names[0]!r} learns from {list(feature.inputs)}, which are not built "
                    f"in partition {one.partition}",
                    f"run store.table({self._files.name!r}).build()",
                )
            found.append(stored)
        return found

    def _prefix_need(self, feature: Feature, inputs: Sequence[str]) -> StateNeed:
        """Return the summaries of all rows older than the new ones, as far back as matters."""
        if self._span is None:
            raise DefinitionError(
                f"{feature.names[0]!r} looks at earlier rows, and these have no time",
                "only tables with a time column can serve it",
            )
        start = self._span[0]
        reach = feature.transformer.reach(self._files.schema)
        members = []
        for position, one in enumerate(self._files.base):
            if one.time_min is None or one.time_max is None or one.time_min >= start:
                continue
            if reach is not None and one.time_max < start - reach:
                continue
            cut = None if one.time_max < start else (one.time_min, start)
            key = summary_key(feature.transformer, inputs[position], cut)
            members.append(Summary(key, position, cut))
        if not members:
            return StateNeed()
        key = fingerprint(_SERVED, [one.key for one in members])
        return StateNeed(key, key, tuple(members))

    def _source_state(self, transformer: SourceTransformer, engine: Engine) -> State:
        source = self._sources[transformer.source_table]
        columns = transformer.source_inputs(self._files.schema)
        start, stop = self._span if self._span is not None else (None, None)
        virtual = _virtual_entry(self._rows, start, stop)
        need = source_need(transformer, self._files.schema, virtual, source)
        carry = self._prepared(
            replace(need, fingerprint=""), transformer, Available(source, {}), columns
        )
        rows = SourceRows(
            tuple(Available(source, {}).at(one, columns) for one in need.rows),
            columns,
            source.schema,
        )
        return gather_source(transformer, carry, rows, self._place.store, engine)

    def _prepared(
        self,
        need: StateNeed,
        owner: Feature | SourceTransformer,
        table: Available,
        columns: tuple[str, ...],
    ) -> State:
        if not need.key:
            return EMPTY_STATE
        transformer = owner.transformer if isinstance(owner, Feature) else owner
        request = StateRequest(transformer, table, columns, [need])
        prepare_states([request], self._place, self._place.executor)
        return require_state(self._states, need.key)


def _virtual_entry(rows: int, start: int | None, stop: int | None) -> PartitionEntry:
    return PartitionEntry(
        partition=_SERVED,
        rows=rows,
        files=(),
        tensors={},
        provenance=Provenance(_SERVED, _SERVED),
        decoded_bytes=0,
        column_bytes={},
        widest_row=0,
        nulls={},
        time_min=start,
        time_max=stop,
    )
