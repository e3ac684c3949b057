"""What ``init``, ``plan`` and ``apply`` do in a project's folder; ``featurestore.cli`` gives them names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from featurestore.errors import ConflictError, NotFoundError
from featurestore.preview.preview import Request
from featurestore.project.definitions import Wanted
from featurestore.project.folder import make_folder, read_folder
from featurestore.project.plan import ProjectPlan
from featurestore.project.previewing import preview_defined, timed
from featurestore.project.proposal import Proposal, plan_without_store, propose
from featurestore.project.source import read_definitions
from featurestore.report.previews import Preview
from featurestore.report.tables import BuildReport
from featurestore.session import Session
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import STORE_FILE

EXIT_ERROR: Final = 1
EXIT_DRIFT: Final = 3
EXIT_INTERRUPTED: Final = 130
_COLOURS: Final = {"+": "green", "~": "yellow", "!": "yellow", "-": "red", "?": "cyan"}

Opener = Callable[[str], Session]


def init(folder: str) -> None:
    """Write a small project."""
    for path in make_folder(Path(folder)):
        click.echo(f"wrote {path}")
    click.echo("next: ingest a table, write features.py, featurestore plan, featurestore apply")


def plan(open_session: Opener, as_json: bool, time: bool = False) -> None:
    """Show what ``apply`` would do in the working directory's project, and how long if asked."""
    found, proposal, _ = _look(open_session)
    if time and proposal is not None:
        found = timed(proposal.session, proposal)
    _show(found, as_json)


def apply(open_session: Opener, yes: bool, check: bool) -> int:
    """Show the plan, and do it once it is confirmed; return the exit status."""
    shown, proposal, wanted = _look(open_session)
    _show(shown)
    if shown.is_empty:
        return 0
    if check:
        return EXIT_DRIFT
    if proposal is None:
        raise NotFoundError(
            f"there is no store at {shown.store!r}", "ingest a table first: that creates it"
        )
    # What cannot be done is not asked for either: apply says why.
    doable = not shown.waiting and not shown.remedies
    if doable and not yes:
        _confirm()
    try:
        proposal.apply(_report)
    except ConflictError as error:
        click.echo(f"Error: {error}", err=True)
        click.echo("This is the plan now:\n", err=True)
        _show(propose(proposal.session, wanted, shown.store).plan)
        return EXIT_ERROR
    except KeyboardInterrupt:
        click.echo(
            "interrupted; what is finished is kept, featurestore apply goes on from there", err=True
        )
        return EXIT_INTERRUPTED
    return 0


def _confirm() -> None:
    """Return if the user says yes."""
    try:
        click.confirm("Apply?", abort=True)
    except click.Abort:
        click.echo("nothing was changed; --yes applies without asking", err=True)
        raise


def preview(open_session: Opener, name: str, request: Request) -> Preview:
    """Return what a definition of the working directory's project gives on a few partitions."""
    folder = read_folder(Path())
    wanted = read_definitions(folder.features)
    return preview_defined(open_session(folder.store), wanted.features, name, request)


def _look(
    open_session: Opener,
) -> tuple[ProjectPlan, Proposal | None, Wanted]:
    folder = read_folder(Path())
    wanted = read_definitions(folder.features)
    if not open_object_store(folder.store).exists(STORE_FILE):
        return plan_without_store(folder.store, wanted), None, wanted
    proposal = propose(open_session(folder.store), wanted, folder.store)
    return proposal.plan, proposal, wanted


def _report(table: str, built: BuildReport) -> None:
    click.echo(f"{table}: {built}")


def _show(plan: ProjectPlan, as_json: bool = False) -> None:
    """Print a plan; colours are left out where it is piped."""
    if as_json:
        click.echo(json.dumps(plan.to_json()))
        return
    for line in str(plan).splitlines():
        sign = line.strip()[:1]
        click.echo(click.style(line, fg=_COLOURS[sign]) if sign in _COLOURS else line)
