"""Who reads a column: features of its own table, and of other tables by joining it.

Looked up in a snapshot's entries alone, so that it costs no file and can be asked again on the
newest snapshot while a commit is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from featurestore.plan.definition import parsed
from featurestore.plan.table_files import schema_of
from featurestore.schema import Field
from featurestore.storage.records import GroupEntry, Snapshot
from featurestore.transforms.base import SourceTransformer


@dataclass(frozen=True, slots=True)
class Reader:
    """A feature that reads a column.

    Parameters
    ----------
    table : str
        Of the feature.
    group : str
        Its column group.
    feature : str
        Its first column.
    column : str
        What it reads.
    """

    table: str
    group: str
    feature: str
    column: str

    def __str__(self) -> str:
        return f"feature {self.feature!r} of table {self.table!r} reads {self.column!r}"


def readers(snapshot: Snapshot, table: str, columns: Iterator[str] | set[str]) -> Iterator[Reader]:
    """Yield the features of all tables that read one of these columns of a table."""
    wanted = set(columns)
    for group in snapshot.groups(table) if wanted else ():
        for column in sorted(wanted.intersection(group.inputs)):
            yield Reader(table, group.group, group.names[0], column)
    for other in snapshot.tables() if wanted else ():
        for group in snapshot.groups(other) if other != table else ():
            for column in sorted(wanted.intersection(source_columns(snapshot, group, table))):
                yield Reader(other, group.group, group.names[0], column)


def source_columns(snapshot: Snapshot, group: GroupEntry, table: str) -> tuple[str, ...]:
    """Return the columns of ``table`` that a feature of another table reads."""
    if group.definition is None:
        return group.reads.get(table, ())
    transformer = parsed(group.definition).transformer  # of format 1
    if not isinstance(transformer, SourceTransformer) or transformer.source_table != table:
        return ()
    return transformer.source_inputs(schema_of(snapshot, group.table))


def changed_columns(before: Mapping[str, Field], after: Mapping[str, Field]) -> set[str]:
    """Return the columns that go, or become something else."""
    return {name for name, field in before.items() if after.get(name) != field}
