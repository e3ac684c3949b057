"""A preview of a feature that a project's ``features.py`` defines, whatever of it is in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from featurestore.errors import InvalidInputError, NotFoundError
from featurestore.preview.preview import Request, preview
from featurestore.project.definitions import Stated
from featurestore.project.intent import intended_tables
from featurestore.project.proposal import waiting_tables
from featurestore.report.previews import Preview
from featurestore.session import Session


def preview_defined(
    session: Session,
    wanted: Mapping[str, Sequence[Stated]],
    name: str,
    request: Request,
) -> Preview:
    """Return what the definition that gives a column is on a few partitions.

    Parameters
    ----------
    session : Session
    wanted : mapping of str to sequence of Stated
        What ``features.py`` says, by table.
    name : str
        A column, or ``table.column`` where several tables have it.
    request : Request
        Its ``feature`` and ``beside`` are found here.

    Raises
    ------
    InvalidInputError
        If no definition gives it, or those of several tables do.
    NotFoundError
        If its table, or one that it reads, is not ingested.
    """
    with session.holding_newest() as (held, snapshot):
        waiting = waiting_tables(wanted, snapshot.tables())
        tables = intended_tables(held, snapshot, wanted, waiting)
    found = [
        (table, feature)
        for table, one in tables.items()
        for feature in (*one.new, *one.kept)
        for column in feature.names
        if name in (column, f"{table}.{column}")
    ]
    if not found:
        if waiting:
            table, missing = next(iter(waiting.items()))
            raise NotFoundError(
                f"no definition that can be computed gives {name!r}; those of table {table!r} wait "
                f"for table {missing!r}, which is not ingested",
                "ingest it",
            )
        columns = [
            column for one in tables.values() for f in (*one.new, *one.kept) for column in f.names
        ]
        raise InvalidInputError(
            f"no definition gives a column {name!r}", f"name one of {columns[:10]}"
        )
    if len({table for table, _ in found}) > 1:
        raise InvalidInputError(
            f"definitions of tables {sorted(table for table, _ in found)} give {name!r}",
            f"write {found[0][0]}.{name}",
        )
    table, feature = found[0]
    files = tables[table].files
    others = [
        one.definition
        for one in files.graph.needed([feature.group])
        if one.group != feature.group and one in tables[table].new
    ]
    asked = replace(request, feature=feature.definition, beside=tuple(others))
    return preview(session, table, asked)
