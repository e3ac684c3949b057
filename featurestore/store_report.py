"""The report of a store: its tables surveyed one after the other, and written as one HTML file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from featurestore.arguments import column_names
from featurestore.dataset.split import Split
from featurestore.report.collecting import table_facts
from featurestore.report.facts import StoreFacts
from featurestore.report.page import Page, write_page
from featurestore.report.progress import counted_progress
from featurestore.session import Session

VERSIONS: Final = 500
"""Of the history that a report shows."""


def write_report(
    session: Session,
    path: str | Path,
    tables: str | Sequence[str] | None,
    split: Split | None,
    values: bool,
) -> Path:
    """Write what is to be said of a store into a file; see ``FeatureStore.report``."""
    facts = store_facts(session, tables, split, values)
    page = Page(f"{facts.url} at version {facts.version}", "store_report", facts.to_json())
    return write_page(page, path)


def store_facts(
    session: Session, tables: str | Sequence[str] | None, split: Split | None, values: bool
) -> StoreFacts:
    """Return what is to be said of a store at the version it is at."""
    with session.holding_newest() as (held, snapshot):
        names = snapshot.tables() if tables is None else column_names(tables)
        for name in names:
            snapshot.table(name)  # or refuse, before anything is read
        found = []
        for name in names:
            files = held.files(name, snapshot)
            judged = held.assessor(files).table(name)
            with counted_progress(f"report of {name}") as told:
                found.append(
                    table_facts(
                        files, judged, held.place, held.touching(told), values=values, split=split
                    )
                )
        records = [one for one in held.log.history(VERSIONS) if one.version <= snapshot.version]
        return StoreFacts(
            url=held.objects.url,
            version=snapshot.version,
            snapshot=snapshot.id,
            made=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            software=f"featurestore {version('featurestore')}",
            history=tuple(
                (one.version, one.created, one.operation, one.fault) for one in reversed(records)
            ),
            older=max(0, snapshot.version + 1 - len(records)),
            tags=held.log.tags(),
            tables=tuple(found),
        )
