"""What a table holds, told from metadata alone."""

from __future__ import annotations

from featurestore.plan.table_files import TableFiles
from featurestore.report.tables import TableSummary
from featurestore.schema import Field
from featurestore.storage.records import BASE_GROUP
from featurestore.times import from_steps


def summary_of(files: TableFiles) -> TableSummary:
    """Return rows, partitions, columns, time range and size on disk."""
    kinds = {BASE_GROUP: "ingested"}
    kinds |= {one.group: one.kind for one in files.graph.features()}
    columns = tuple(
        (one.name, _type_text(one), kinds[files.graph.owners[one.name]]) for one in files.schema
    )
    # By path, as features may share a file.
    stored = {
        file.path: file.bytes
        for entries in files.entries.values()
        for entry in entries.values()
        for file in entry.all_files()
    }
    return TableSummary(
        files.name,
        files.rows,
        len(files.base),
        columns,
        files.entry.key,
        files.entry.time,
        _time_range(files),
        sum(stored.values()),
        {
            one.name: sum(
                entry.column_bytes.get(one.name, 0)
                for entry in files.entries[files.graph.owners[one.name]].values()
            )
            for one in files.schema
        },
    )


def _type_text(field: Field) -> str:
    return f"{field.type} {list(field.shape)}" if field.shape is not None else str(field.type)


def _time_range(files: TableFiles) -> tuple[str, str] | None:
    times = [
        (one.time_min, one.time_max)
        for one in files.base
        if one.time_min is not None and one.time_max is not None
    ]
    if not times or files.schema.time is None:
        return None
    type_ = files.schema[files.schema.time].type
    return from_steps(times[0][0], type_), from_steps(times[-1][1], type_)
