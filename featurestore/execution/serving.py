"""Features of rows that are not in the table: train equals serve.

The new rows are treated as one more partition that begins at their oldest time: the same
transformers, the same states, the same order of rows. So a value computed here equals the one the
table gets if these rows are appended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, MemoryLimitError, SchemaError
from featurestore.execution.applying import apply_feature
from featurestore.execution.collecting import convert, empty_table
from featurestore.execution.states import Available, StateRequest, Workplace, prepared_state
from featurestore.execution.tasks import SourceRows, source_parts, with_row_count
from featurestore.fingerprint import fingerprint
from featurestore.limits import resident_bytes
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessor
from featurestore.plan.states import (
    Learner,
    SourceSummaries,
    StateNeed,
    Summary,
    fit_needs,
    require_fit_rows,
    source_need,
)
from featurestore.plan.table_files import TableFiles
from featurestore.schema import Field
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
    Transformer,
)
from featurestore.transforms.frames import to_arrow
from featurestore.units import format_bytes


class RowSource(Protocol):
    """Rows in bounded batches, as ``ingest.sources`` gives them."""

    @property
    def schema(self) -> pa.Schema:
        """Its columns; tensors are flat fixed-size lists."""

    def selecting(self, target: tuple[Field, ...]) -> RowSource:
        """Return these columns of the same rows, as these types; all others are passed over."""

    def batches(self) -> Iterator[pa.RecordBatch]:
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
    _refuse_labels(features)
    shown = tuple(dict.fromkeys((*files.entry.key, *_time(files), *columns)))
    # What a feature only learns from, a label say, new rows need not have.
    read = [name for one in features for name in one.transformer.inputs(files.schema)]
    wanted = [name for name in read if _is_base(files, name)]
    wanted += [name for name in shown if _is_base(files, name)]
    wanted += [name for one in features for name in _own_source_columns(one, files)]
    table = _load(rows, with_row_count(wanted, files.schema), files, place.memory_limit)
    if not table.num_rows:
        return convert(empty_table(files.schema, shown), "polars")
    order = _table_order(table, files)
    partition = _as_partition(table.take(pa.array(order)), files, engine)
    serving = Serving(place, files, sources, partition, engine)
    for feature in features:
        state = serving.state(feature)
        made = apply_feature(feature, partition, state, engine)
        partition = partition.replace(made, files.schema)
    result = to_arrow(partition, shown, engine)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return convert(result.take(pa.array(back)), "polars")


def _needed(files: TableFiles, columns: Sequence[str]) -> list[Feature]:
    """Return the features behind columns, each after those it needs."""
    for name in columns:
        files.schema[name]
    return list(files.graph.needed(files.graph.groups_of(columns)))


def _refuse_labels(features: Sequence[Feature]) -> None:
    """Refuse columns that look at later rows.

    Raises
    ------
    DefinitionError
    """
    for one in features:
        if one.transformer.scope is Scope.SUFFIX:
            raise DefinitionError(
                f"{list(one.names)} look into the future ({one.definition.kind}): nobody knows what "
                "comes after new rows",
                "ask for features only; labels are computed when later rows were appended",
            )


def _own_source_columns(feature: Feature, files: TableFiles) -> tuple[str, ...]:
    """Return what a feature that joins its own table reads there of the new rows."""
    transformer = feature.transformer
    if isinstance(transformer, SourceTransformer) and transformer.source_table == files.name:
        return transformer.source_inputs(files.schema)
    return ()


def _is_base(files: TableFiles, column: str) -> bool:
    return files.graph.owners[column] == BASE_GROUP


def _time(files: TableFiles) -> tuple[str, ...]:
    return () if files.entry.time is None else (files.entry.time,)


def _load(rows: RowSource, columns: Sequence[str], files: TableFiles, limit: int) -> pa.Table:
    """Read the new rows' columns, in the table's types; further columns are passed over."""
    chosen = rows.selecting(tuple(files.schema[name] for name in columns))
    budget, size = max(limit - resident_bytes(), 0), 0
    batches = []
    for batch in chosen.batches():
        size += batch.nbytes
        if _COPIES * size > budget:
            raise MemoryLimitError(
                f"the new rows need more than {format_bytes(budget)}, what is left of the memory "
                f"limit of {format_bytes(limit)}",
                "give them in several files, oldest first, or raise memory_limit",
            )
        batches.append(batch)
    return pa.Table.from_batches(batches, schema=chosen.schema)


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
    ways = [(pc.field(name), "ascending") for name in names]  # "[0]" as text would be a position
    return np.asarray(pc.sort_indices(table, sort_keys=ways), np.int64)  # equal ones stay in order


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
    """Finds the states for a virtual partition of new rows, which begins at their oldest time."""

    def __init__(
        self,
        place: Workplace,
        files: TableFiles,
        sources: Mapping[str, TableFiles],
        partition: Partition,
        engine: Engine,
    ) -> None:
        self._place = place
        self._files = files
        self._sources = sources
        self._partition = partition
        self._engine = engine
        self._span = _span(partition, engine)
        # Stored definitions are served as they were stored, whatever the code is in this process.
        self._assessor = Assessor({**sources, files.name: files}, check_code=False)

    def state(self, feature: Feature) -> State:
        """Return the state a feature's ``apply`` gets for the new rows.

        Raises
        ------
        NotReadyError
            If values that it is made of are missing or stale.
        """
        transformer = feature.transformer
        if isinstance(transformer, SourceTransformer):
            return self._source_state(feature, transformer)
        return self._prepared(self.need(feature), transformer, self._files, feature.inputs)

    def need(self, feature: Feature) -> StateNeed:
        """Return the state that a feature's ``apply`` gets, if it is of its own table."""
        scope = feature.transformer.scope
        if scope is Scope.NONE:
            return StateNeed()
        inputs = self._assessor.prints(self._files.name, feature.inputs)
        if scope is Scope.FIT:
            need = self._fit_need(feature, inputs)
            require_fit_rows(feature, need)
            return need
        return self._prefix_need(feature, inputs)

    def _fit_need(self, feature: Feature, inputs: Sequence[str]) -> StateNeed:
        return fit_needs(feature, self._files, inputs)

    def _prefix_need(self, feature: Feature, inputs: Sequence[str]) -> StateNeed:
        """Return the summaries of all rows older than the new ones, as far back as matters."""
        assert self._span is not None  # a feature that looks back is refused without a time column
        start = self._span[0]
        reach = feature.transformer.reach(self._files.schema)
        learner = Learner(feature.transformer, self._files.schema, feature.inputs)
        members = []
        for position, one in enumerate(self._files.base):
            if one.time_min is None or one.time_max is None or one.time_min >= start:
                continue
            if reach is not None and one.time_max < start - reach:
                continue
            cut = None if one.time_max < start else (one.time_min, start)
            members.append(Summary(learner.summary_key(inputs[position], cut), position, cut))
        if not members:
            return StateNeed()
        key = fingerprint(_SERVED, [one.key for one in members])
        return StateNeed(key, key, tuple(members))

    def _source_state(self, feature: Feature, transformer: SourceTransformer) -> State:
        source = self._sources[transformer.source_table]
        columns = transformer.source_inputs(self._files.schema)
        prints = self._assessor.prints(source.name, columns)
        need = source_need(
            transformer,
            self._files.schema,
            virtual_entry(self._partition.rows, self._span),
            SourceSummaries.of(Learner(transformer, source.schema, columns), source.base, prints),
        )
        self._assessor.require_built(source.name, columns, need.rows)
        carry = self._prepared(need, transformer, source, columns)
        rows = SourceRows(
            tuple(Available(source, {}).at(one, columns) for one in need.rows),
            columns,
            source.schema,
        )
        parts = source_parts(transformer, rows, self._place.store, self._engine)
        if source.name == self._files.name:
            self._require_later(feature)
            parts.append(transformer.rows(self._partition, self._engine))
        return transformer.gather(carry, parts)

    def _require_later(self, feature: Feature) -> None:
        newest = max(
            (one.time_max for one in self._files.base if one.time_max is not None), default=None
        )
        if self._span is None or (newest is not None and self._span[0] <= newest):
            raise DefinitionError(
                f"{feature.names[0]!r} joins its own table, and the new rows do not come after it",
                f"give rows newer than those of table {self._files.name!r}",
            )

    def _prepared(
        self,
        need: StateNeed,
        transformer: Transformer,
        files: TableFiles,
        columns: tuple[str, ...],
    ) -> State:
        if not need.key:
            return EMPTY_STATE
        members = [one.partition for one in need.members]
        self._assessor.require_built(files.name, columns, members)
        request = StateRequest(
            transformer, self._files.schema, Available(files, {}), columns, [need]
        )
        return prepared_state(request, self._place, self._keys(transformer))

    def _keys(self, transformer: Transformer) -> pa.Table | None:
        """Return the keys of the new rows, which are all that a keyed state is needed of."""
        known = set(transformer.inputs(self._files.schema)) <= set(self._partition.frame.columns)
        if not transformer.is_keyed or not known:  # by a feature that is computed meanwhile
            return None
        return transformer.keys(self._partition, self._engine)


def virtual_entry(rows: int, span: tuple[int, int] | None) -> PartitionEntry:
    """Return new rows as the entry of a partition that has no files, for what is planned from entries."""
    start, stop = span if span is not None else (None, None)
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
