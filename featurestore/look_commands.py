"""Commands that say what is in a store: for people, and with ``--json`` for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

EXIT_FAULTS = 3

Opener = Callable[..., Any]


def add_look_commands(group: click.Group, open_store: Opener) -> None:
    """Give a group the commands of this module.

    Parameters
    ----------
    group : click.Group
    open_store : callable
        Opens a store by its URL.
    """
    as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

    @group.command()
    @click.argument("store")
    @click.argument("table", required=False)
    @as_json_option
    def show(store: str, table: str | None, as_json: bool) -> None:
        """Show the tables of STORE, or the columns of TABLE.

        Example: featurestore show golden flights
        """
        opened = open_store(store)
        if not as_json:
            click.echo(opened if table is None else opened.table(table))
        elif table is None:
            found = [_summary(opened.table(one).describe()) for one in opened.tables()]
            click.echo(json.dumps({"version": opened.version, "tables": found}))
        else:
            click.echo(json.dumps(_summary(opened.table(table).describe())))

    @group.command()
    @click.argument("store")
    @click.argument("table")
    @click.option("--check", is_flag=True, help="Exit with 3 if anything is stale or missing.")
    @as_json_option
    def status(store: str, table: str, check: bool, as_json: bool) -> None:
        """Show for each feature of TABLE how many partitions are fresh, stale or missing.

        Example: featurestore status golden flights --check
        """
        found = open_store(store).table(table).status()
        click.echo(json.dumps({**asdict(found), "is_fresh": found.is_fresh}) if as_json else found)
        if check and not found.is_fresh:
            sys.exit(EXIT_FAULTS)

    @group.command()
    @click.argument("store")
    @click.option("--last", default=20, show_default=True, help="How many versions.")
    @as_json_option
    def log(store: str, last: int, as_json: bool) -> None:
        """Show the newest versions of STORE.

        Example: featurestore log golden --last 5
        """
        found = open_store(store).history(last)
        click.echo(json.dumps([_version(one) for one in found]) if as_json else found)

    @group.command()
    @click.argument("store")
    @as_json_option
    def tags(store: str, as_json: bool) -> None:
        """Show the tags of STORE and their versions.

        Example: featurestore tags golden
        """
        from featurestore.report.tables import text_table

        found = dict(sorted(open_store(store).tags().items()))
        click.echo(
            json.dumps(found) if as_json else text_table(["tag", "version"], [*found.items()])
        )


def _version(record: Any) -> dict[str, Any]:
    """Return a version with its id; of one that cannot be read, ``fault`` says why."""
    return {**asdict(record), "id": record.id}


def _summary(table: Any) -> dict[str, Any]:
    """Return what a table holds, its columns by name."""
    columns = [dict(zip(("name", "type", "from"), one, strict=True)) for one in table.columns]
    return {**asdict(table), "columns": columns}
