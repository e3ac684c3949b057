"""Commands that look at data before anybody trusts it: what a feature would be, are values as expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

EXIT_FAULTS = 3

Opener = Callable[..., Any]


def add_commands(group: click.Group, open_store: Opener) -> None:
    """Give a group the commands of this module.

    Parameters
    ----------
    group : click.Group
    open_store : callable
        Opens a store by its URL and memory limit.
    """

    @group.command()
    @click.argument("names", metavar="[STORE TABLE] NAME", nargs=-1, required=True)
    @click.option("--label", help="A column that it is correlated with.")
    @click.option("--partitions", default=3, show_default=True, help="How many are computed.")
    @click.option("--rows", default=5, show_default=True, help="How many rows are shown.")
    @click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def preview(
        names: tuple[str, ...],
        label: str | None,
        partitions: int,
        rows: int,
        memory_limit: str | None,
        as_json: bool,
    ) -> None:
        """Compute the feature that gives column NAME on a few partitions, and show what it is like.

        In a project's folder, NAME is of its features.py, built or not; with STORE and TABLE, of what
        is defined there. Nothing is written to the store. Exits with 3 if the feature leaks.

        Example: featurestore preview dep_delay_mean_7d --label late
        """
        if len(names) not in (1, 3):
            raise click.UsageError("give NAME in a project's folder, or STORE TABLE NAME")
        from featurestore.preview.preview import Request
        from featurestore.project import commands

        if len(names) == 1:
            request = Request(None, label, partitions, rows=rows)
            found = commands.preview(
                lambda url: open_store(url, memory_limit).session, names[0], request
            )
        else:
            table = open_store(names[0], memory_limit).table(names[1])
            found = table.preview(names[2], label, partitions, rows=rows)
        click.echo(json.dumps(found.to_dict()) if as_json else found)
        if found.leaky:
            click.get_current_context().exit(EXIT_FAULTS)

    @group.command()
    @click.argument("store", metavar="STORE")
    @click.argument("table")
    @click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def validate(store: str, table: str, memory_limit: str | None, as_json: bool) -> None:
        """Hold TABLE against what is expected of it (Table.expect); exits with 3 if something is not met.

        Example: featurestore validate golden flights
        """
        found = open_store(store, memory_limit).table(table).validate()
        click.echo(json.dumps(found.to_json()) if as_json else found)
        if not found.ok:
            click.get_current_context().exit(EXIT_FAULTS)
