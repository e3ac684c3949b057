"""What a build will cost in bytes, known before it starts.

A task holds the inputs of all features it computes in one partition, and for one feature after the
other the rows of another table, what the transformer needs on top, and its outputs. Sizes come from what was recorded when files were written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from featurestore.errors import MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import Assessment, Freshness
from featurestore.plan.table_files import TableFiles
from featurestore.schema import Field
from featurestore.transforms.base import SourceTransformer
from featurestore.transforms.extent import Extent
from featurestore.units import format_bytes

_STRING_BYTES = 24
"""What an output string is taken to need before any was written: offset and a short text."""


@dataclass(frozen=True, slots=True)
class Projection:
    """What computing one feature costs.

    Parameters
    ----------
    feature : Feature
    partitions : int
        How many are to be computed.
    rows : int
    output_bytes : int
        Decoded size of what will be written.
    peak_bytes : int
        Of the largest task, while it computes this feature.
    largest : str
        The partition that needs it; ``""`` if there is none.
    """

    feature: Feature
    partitions: int
    rows: int
    output_bytes: int
    peak_bytes: int
    largest: str


def project(
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    assessments: Mapping[str, tuple[Assessment, ...]],
) -> list[Projection]:
    """Return the cost of each feature that is not fresh everywhere, in order of building."""
    found = []
    for level in files.graph.levels:
        todo = {feature: _unfinished(assessments[feature.group]) for feature in level}
        # One task reads the inputs of all features of its level, and then computes one by one.
        read: dict[int, dict[str, int]] = defaultdict(dict)
        for feature, positions in todo.items():
            for position in positions:
                read[position].update(_input_bytes(feature, files, position))
        for feature, positions in todo.items():
            if not positions:
                continue
            costs = {
                position: sum(read[position].values())
                + _own_bytes(feature, files, sources, assessments, position)
                for position in positions
            }
            largest = max(costs, key=lambda position: costs[position])
            rows = sum(files.base[position].rows for position in positions)
            found.append(
                Projection(
                    feature,
                    len(positions),
                    rows,
                    rows * sum(_width(one) for one in feature.outputs),
                    costs[largest],
                    files.base[largest].partition,
                )
            )
    return found


def _unfinished(assessments: Sequence[Assessment]) -> list[int]:
    return [
        position for position, one in enumerate(assessments) if one.freshness is not Freshness.FRESH
    ]


def _input_bytes(feature: Feature, files: TableFiles, position: int) -> dict[str, int]:
    """Return the size of each input column in a partition; estimated where it is not built yet."""
    base = files.base[position]
    sizes = {}
    for name in feature.inputs:
        entry = files.entries[files.graph.owners[name]].get(base.partition)
        known = None if entry is None else entry.column_bytes.get(name)
        sizes[name] = base.rows * _width(files.schema[name]) if known is None else known
    return sizes


def _own_bytes(
    feature: Feature,
    files: TableFiles,
    sources: Mapping[str, TableFiles],
    assessments: Mapping[str, tuple[Assessment, ...]],
    position: int,
) -> int:
    """Return what a feature needs beside the inputs: another table's rows, its work, its outputs."""
    other = 0
    if isinstance(feature.transformer, SourceTransformer):
        source = sources[feature.transformer.source_table]
        columns = feature.transformer.source_inputs(files.schema)
        owners = [(name, source.entries[source.graph.owners[name]]) for name in columns]
        for one in assessments[feature.group][position].need.rows:
            partition = source.base[one].partition
            other += sum(entries[partition].column_bytes[name] for name, entries in owners)
    rows = files.base[position].rows
    outputs = rows * sum(_width(one) for one in feature.outputs)
    # Outputs exist twice for a moment: as the engine's columns and as Arrow being written.
    return (
        other
        + feature.transformer.memory(
            files.schema, Extent(rows, {**_input_bytes(feature, files, position), "": other})
        )
        + 2 * outputs
    )


def _width(field: Field) -> int:
    """Return the bytes of one row's value of a column that was not written yet."""
    if pa.types.is_boolean(field.type):
        return 1
    try:
        width = field.type.bit_width // 8
    except ValueError:
        return _STRING_BYTES
    for size in field.shape or ():
        width *= size
    return int(width)


def workers_within(projections: Sequence[Projection], memory_limit: int, workers: int) -> int:
    """Return how many tasks may run at once within the memory limit.

    Raises
    ------
    MemoryLimitError
        If not even one fits.
    """
    if not projections:
        return workers
    worst = max(projections, key=lambda one: one.peak_bytes)
    what = ", ".join(worst.feature.names)
    return tasks_within(worst.peak_bytes, what, worst.largest, memory_limit, workers)


def tasks_within(
    peak_bytes: int, what: str, partition: str, memory_limit: int, workers: int
) -> int:
    """Return how many tasks of which the largest needs ``peak_bytes`` may run at once.

    Raises
    ------
    MemoryLimitError
        If not even that one fits; the message says what it does and in which partition.
    """
    reserved = resident_bytes()
    fitting = (memory_limit - reserved) // max(peak_bytes, 1)
    if fitting < 1:
        raise MemoryLimitError(
            f"{what} needs {format_bytes(peak_bytes)} for partition {partition} beside "
            f"{format_bytes(reserved)} already in use, the memory limit is "
            f"{format_bytes(memory_limit)}",
            f"raise memory_limit to at least {reserved + peak_bytes} bytes, or ingest with a "
            "smaller partition_bytes",
        )
    return int(min(workers, fitting))
