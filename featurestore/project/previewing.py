"""Features that a project's ``features.py`` defines, on a few partitions: previewed, or timed for a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from featurestore.errors import (
    InvalidInputError,
    LimitError,
    MissingColumnError,
    NotFoundError,
    NotReadyError,
)
from featurestore.plan.definition import Feature
from featurestore.preview.preview import Request, expected_seconds, preview
from featurestore.project.definitions import Stated
from featurestore.project.intent import IntendedTable, intended_tables
from featurestore.project.plan import FeatureChange, ProjectPlan
from featurestore.project.proposal import Proposal, waiting_tables
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
    return preview(session, table, _asked(tables[table], feature, request))


def timed(session: Session, proposal: Proposal) -> ProjectPlan:
    """Return a proposal's plan with the seconds that each feature is expected to take.

    Each is computed on one partition, or a few where it looks at others, in scratch space. What reads
    what is not there yet, or does not fit memory, stays without.
    """
    changes = []
    for one in proposal.plan.changes:
        changes.append(replace(one, seconds=_seconds(session, proposal, one)))
    return replace(proposal.plan, changes=tuple(changes))


def _seconds(session: Session, proposal: Proposal, change: FeatureChange) -> float | None:
    if not change.partitions:
        return None
    table = proposal.tables[change.table]
    feature = next(one for one in (*table.new, *table.kept) if one.names == change.columns)
    request = _asked(table, feature, Request(None, partitions=1))
    try:
        seconds = expected_seconds(session, change.table, request)
    except (NotReadyError, MissingColumnError, LimitError):
        return None
    return seconds * change.partitions / len(table.files.base)


def _asked(table: IntendedTable, feature: Feature, request: Request) -> Request:
    """Return a request for one feature, with the new definitions that it needs beside it."""
    others = tuple(
        one.definition
        for one in table.files.graph.needed([feature.group])
        if one.group != feature.group and one in table.new
    )
    return replace(request, feature=feature.definition, beside=others)
