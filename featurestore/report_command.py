"""The ``report`` command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from featurestore.profiling.command import ProfiledCommand


def report_command(opened: Callable[[str], Any]) -> click.Command:
    """Return the command; ``opened`` opens a store by its URL as all commands do."""

    @click.command("report", cls=ProfiledCommand)
    @click.argument("store", metavar="STORE")
    @click.option("-o", "--output", default="report.html", show_default=True, metavar="FILE")
    @click.option("--table", "tables", multiple=True, help="Only this one; repeat for several.")
    @click.option("--valid", help="Compare what is before this time with what is from it on.")
    @click.option("--test", help="With --valid: a third part, from this time on.")
    @click.option("--no-values", is_flag=True, help="Metadata only: reads no rows.")
    def report(
        store: str,
        output: str,
        tables: tuple[str, ...],
        valid: str | None,
        test: str | None,
        no_values: bool,
    ) -> None:
        """Write one HTML file about STORE: tables, features, freshness, drift, cost.

        Example: featurestore report golden -o golden.html --valid 2013-10-01
        """
        if test is not None and valid is None:
            raise click.UsageError("--test needs --valid as well")
        split = None
        if valid is not None:
            from featurestore.dataset.split import TimeSplit

            split = TimeSplit(_time(valid), None if test is None else _time(test))
        found = opened(store).report(
            output, tables=tables or None, split=split, values=not no_values
        )
        click.echo(found)

    return report


def _time(text: str) -> int | str:
    """Return a boundary as splits take it: whole numbers are those of integer time columns."""
    try:
        return int(text)
    except ValueError:
        return text
