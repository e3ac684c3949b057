"""What the parts of a dataset share: its columns, and what its pipeline learnt from the training part.

Parts hold this, not the dataset that holds them: without a cycle between them the view, and with it
the lease on its version, is given back at once when nobody uses them any more.
"""

from __future__ import annotations

from functools import cached_property
from threading import RLock

import pyarrow as pa

from featurestore.dataset.assembly import dataset_schema
from featurestore.dataset.batch import DatasetSchema
from featurestore.dataset.columns import DatasetColumns
from featurestore.dataset.fitting import fit_pipeline
from featurestore.dataset.memory import (
    PACKING_BYTES,
    StepCall,
    array_needs,
    kept_of,
    slice_limits,
    sliced_bytes,
)
from featurestore.dataset.selection import Selection
from featurestore.dataset.view import TableView
from featurestore.execution.task_costs import read_extent
from featurestore.execution.tasks import with_row_count
from featurestore.transforms.base import Partition, Scope
from featurestore.transforms.extent import Extent
from featurestore.transforms.pipeline import FittedPipeline


class LearnedColumns:
    """A dataset's columns, with the pipeline fitted when something first needs it.

    Parameters
    ----------
    columns : DatasetColumns
    view : TableView
    learnt_from : Selection
        The rows that the pipeline learns from.
    name : str
        Of the dataset, for people.
    """

    def __init__(
        self, columns: DatasetColumns, view: TableView, learnt_from: Selection, name: str
    ) -> None:
        self.columns = columns
        self.name = name
        self._view = view
        self._learnt_from = learnt_from
        self._lock = RLock()

    @property
    def pipeline(self) -> FittedPipeline:
        """The pipeline with what it learnt; fitted on first use.

        Raises
        ------
        DefinitionError
            If there are no rows to learn from.
        """
        with self._lock:
            return self._pipeline

    @property
    def schema(self) -> DatasetSchema:
        """The columns as a model sees them; fits the pipeline on first use."""
        with self._lock:
            return self._schema

    def calls(self) -> tuple[StepCall, ...]:
        """Return the steps of the fitted pipeline, to tell what applying them takes."""
        with self._lock:
            return self._calls

    @cached_property
    def _calls(self) -> tuple[StepCall, ...]:
        states, pipeline = self.pipeline.states, self.columns.pipeline
        befores = pipeline.schemas(self.columns.inputs)[:-1]
        return tuple(
            StepCall.of(step, before, state)
            for step, before, state in zip(pipeline.steps, befores, states, strict=True)
        )

    def transform(self, partition: Partition, part: Selection) -> Partition:
        """Return rows of a part after the fitted pipeline; other columns stay as they are.

        Parts are the one it was learnt from, and others that share no row with it.
        """
        learnt = part == self._learnt_from
        seen = Partition(partition.frame, self.columns.inputs, partition.tensors, learnt)
        after = self.pipeline.apply(seen, self._view.engine)
        return Partition(after.frame, self.columns.outputs, after.tensors)

    @cached_property
    def _pipeline(self) -> FittedPipeline:
        columns = self.columns
        return fit_pipeline(
            columns.pipeline, columns.inputs, self._view, self._learnt_from, self._reading_bytes
        )

    def _reading_bytes(self, within: int) -> int:
        """Return what reading the training part into a pack takes, where ``within`` bytes are there."""
        columns, view, steps = self.columns, self._view, self.columns.pipeline.steps
        befores = columns.pipeline.schemas(columns.inputs)[:-1]
        calls = [StepCall(step, before) for step, before in zip(steps, befores, strict=True)]
        schema = dataset_schema(columns.model, columns.targets, columns.outputs, {})
        largest = 0
        for position, selection in view.touching(self._learnt_from):
            source = view.partitions[position]
            wanted = with_row_count((*columns.reads, *selection.columns(view.schema)), view.schema)
            extent, kept = read_extent(source, wanted), kept_of(selection, source.rows)

            needs = array_needs(view.schema, kept, calls, columns.names, schema, source.rows)
            limits = slice_limits(view.schema, extent, steps, needs, within)
            # What is learnt is held by then; of as many values as one partition may have.
            learnt = sum(_state_bytes(one, extent) for one in calls)
            largest = max(largest, learnt + sliced_bytes(view.schema, extent, limits, needs))
        return largest + PACKING_BYTES

    @cached_property
    def _schema(self) -> DatasetSchema:
        columns = self.columns
        # Stored codes stay codes unless a step made something else of them.
        stored = {
            name: count
            for name, count in self._view.cardinalities.items()
            if name in columns.outputs and columns.outputs[name].type == pa.int32()
        }
        cardinalities = {**stored, **self._pipeline.cardinalities()}
        return dataset_schema(columns.model, columns.targets, columns.outputs, cardinalities)


def _state_bytes(call: StepCall, extent: Extent) -> int:
    """Return what a step learns of a partition, as far as its recorded sizes tell."""
    if call.transformer.scope is not Scope.FIT:
        return 0
    names = call.transformer.learns_from(call.before)
    sizes = {name: extent.column_bytes.get(name, 0) for name in names}
    return call.transformer.state_bytes(call.before, Extent(extent.rows, sizes, extent.widest_row))
