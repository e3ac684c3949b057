"""The ``featurestore`` command: look at stores and care for them from a terminal.

Errors are one readable paragraph with the remedy; ``--traceback`` shows the rest. Further commands
come from the entry-point group ``featurestore.commands``, so that this package needs to import none
of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click

from featurestore.errors import FeatureStoreError

PLUGINS: Final = "featurestore.commands"
EXIT_ERROR: Final = 1
EXIT_FAULTS: Final = 3


class Commands(click.Group):
    """A group that also finds commands of other packages, and prints errors for people."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_plugins()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _plugins():
            command: click.Command = _plugins()[cmd_name].load()
            return command
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FeatureStoreError as error:
            if ctx.params.get("traceback"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(EXIT_ERROR)


def _plugins() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=PLUGINS)}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--traceback", is_flag=True, help="Show where an error came from.")
@click.version_option(package_name="featurestore")
def main(traceback: bool) -> None:
    """Golden sets larger than memory, features added on demand.

    Example: featurestore status golden flights
    """


def _store_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("store", metavar="STORE")(command)


def _open(store: str) -> Any:
    from featurestore.store import FeatureStore

    return FeatureStore.open(store)


@main.command()
@_store_argument
@click.argument("name")
@click.argument("files", nargs=-1, required=True)
@click.option("--key", multiple=True, help="Key column; repeat for several.")
@click.option("--time", help="Event time column.")
@click.option("--partition-bytes", default="128MiB", show_default=True)
@click.option(
    "--duplicates", type=click.Choice(["error", "keep", "last"]), default="error", show_default=True
)
@click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
def ingest(store: str, name: str, files: tuple[str, ...], **options: Any) -> None:
    """Make a table NAME of FILES (Parquet, CSV, Arrow); creates STORE if there is none.

    Example: featurestore ingest golden flights 'data/*.parquet' --key carrier --time sched_dep
    """
    from featurestore.storage.backends import open_object_store
    from featurestore.storage.commit_log import STORE_FILE
    from featurestore.store import FeatureStore

    limit = options.pop("memory_limit")
    exists = open_object_store(store).exists(STORE_FILE)
    opened = (FeatureStore.open if exists else FeatureStore.create)(store, memory_limit=limit)
    click.echo(opened.ingest(name, list(files), **options))


@main.command()
@_store_argument
@click.argument("table", required=False)
def show(store: str, table: str | None) -> None:
    """Show the tables of STORE, or the columns of TABLE.

    Example: featurestore show golden flights
    """
    opened = _open(store)
    click.echo(opened if table is None else opened.table(table))


@main.command()
@_store_argument
@click.argument("table")
@click.option("--check", is_flag=True, help="Exit with 3 if anything is stale or missing.")
def status(store: str, table: str, check: bool) -> None:
    """Show for each feature of TABLE how many partitions are fresh, stale or missing.

    Example: featurestore status golden flights --check
    """
    found = _open(store).table(table).status()
    click.echo(found)
    if check and not found.is_fresh:
        sys.exit(EXIT_FAULTS)


@main.command()
@_store_argument
@click.argument("table")
def plan(store: str, table: str) -> None:
    """Show what building TABLE would do and cost.

    Example: featurestore plan golden flights
    """
    click.echo(_open(store).table(table).plan())


@main.command()
@_store_argument
@click.argument("table")
@click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
def build(store: str, table: str, memory_limit: str | None) -> None:
    """Compute what is missing or stale in TABLE; resumes an interrupted build.

    Example: featurestore build golden flights --memory-limit 2GiB
    """
    from featurestore.store import FeatureStore

    click.echo(FeatureStore.open(store, memory_limit=memory_limit).table(table).build())


@main.command()
@_store_argument
@click.option("--last", default=20, show_default=True, help="How many versions.")
def log(store: str, last: int) -> None:
    """Show the newest versions of STORE.

    Example: featurestore log golden --last 5
    """
    click.echo(_open(store).history(last))


@main.command()
@_store_argument
@click.argument("name")
@click.option("--version", "version", type=int, help="The newest if not given.")
def tag(store: str, name: str, version: int | None) -> None:
    """Name a version of STORE, so that it is kept.

    Example: featurestore tag golden before-weather
    """
    _open(store).tag(name, version)


@main.command()
@_store_argument
@click.option("--quick", is_flag=True, help="Sizes and existence only, no bytes.")
def verify(store: str, quick: bool) -> None:
    """Check the files of STORE against their checksums; exits with 3 on faults.

    Example: featurestore verify golden
    """
    report = _open(store).verify(full=not quick)
    click.echo(report)
    if not report.ok:
        sys.exit(EXIT_FAULTS)


@main.command()
@_store_argument
@click.option("--safety-age", default="1d", show_default=True, help="Keep what is younger.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(store: str, safety_age: str, dry_run: bool) -> None:
    """Remove files of STORE that no kept version names.

    Example: featurestore gc golden --dry-run
    """
    click.echo(_open(store).gc(safety_age=safety_age, dry_run=dry_run))


if __name__ == "__main__":
    main()
