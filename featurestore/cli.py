"""The ``featurestore`` command: look at stores and care for them from a terminal.

Errors are one readable paragraph with the remedy; ``--traceback`` shows the rest. Further commands
come from the entry-point group ``featurestore.commands``, so that this package needs to import none
of them.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click

from featurestore.completion_command import completion
from featurestore.errors import EnforcementWarning, FeatureStoreError
from featurestore.inspection_commands import add_commands
from featurestore.look_commands import add_look_commands
from featurestore.profiling.command import ProfiledGroup, profile
from featurestore.report_command import report_command
from featurestore.units import format_bytes

PLUGINS: Final = "featurestore.commands"
EXIT_ERROR: Final = 1
EXIT_FAULTS: Final = 3
_WHOLE: Final = ("int8", "int16", "int32", "int64")


class Commands(ProfiledGroup):
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
@click.option(
    "--enforce",
    is_flag=True,
    envvar="FEATURESTORE_ENFORCE",
    help="Let the kernel keep the memory limit, and say how.  [env: FEATURESTORE_ENFORCE]",
)
@click.version_option(package_name="featurestore")
def main(traceback: bool, enforce: bool) -> None:
    """Golden sets larger than memory, features added on demand.

    Example: featurestore status golden flights
    """
    # A command's process is its own: with the C library's malloc, Arrow keeps less than with its own
    # (benchmarks/allocators.py). Once it is loaded the process is somebody else's, or it is too late.
    if "pyarrow" not in sys.modules:
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def _store_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("store", metavar="STORE")(command)


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def _time(table: Any, text: str | None) -> int | str | None:
    """Return a time as the table's column has it: whole numbers where that counts integers."""
    if (
        text is None
        or table.time is None
        or not str(table.schema[table.time].type).endswith(_WHOLE)
    ):
        return text
    try:
        return int(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not an integer, as {table.time!r} is") from error


def _open(store: str, memory_limit: str | None = None, create: bool = False) -> Any:
    """Open or create a store, its limit kept by the kernel if the command is to run so."""
    from featurestore.store import FeatureStore

    enforce = bool(click.get_current_context().find_root().params.get("enforce"))
    make = FeatureStore.create if create else FeatureStore.open
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnforcementWarning)  # the next lines say so
        opened = make(store, memory_limit=memory_limit, enforce=enforce)
    if enforce:
        limit = format_bytes(opened.memory_limit)
        click.echo(f"memory limit {limit}, kept by {opened.enforcement}", err=True)
    return opened


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
    from featurestore.ingest.sources import open_source
    from featurestore.schema import TableSchema, check_name
    from featurestore.storage.backends import open_object_store
    from featurestore.storage.commit_log import STORE_FILE
    from featurestore.units import parse_bytes

    limit = options.pop("memory_limit")
    exists = open_object_store(store).exists(STORE_FILE)
    # Before a store is made: a mistyped name or file must not leave an empty one behind.
    check_name(name, "table")
    with open_source(list(files)) as source:
        TableSchema(source.fields, options["key"], options["time"])
    parse_bytes(options["partition_bytes"])
    opened = _open(store, limit, create=not exists)
    click.echo(opened.ingest(name, list(files), **options))


@main.command()
@_store_argument
@click.argument("table")
@click.argument("files", nargs=-1, required=True)
def append(store: str, table: str, files: tuple[str, ...]) -> None:
    """Add the rows of FILES, newer than those of TABLE; build computes their features.

    Example: featurestore append golden flights flights_2014.parquet
    """
    rows = _open(store).table(table).append(list(files))
    click.echo(f"{rows:,} rows appended to {table}")


@main.command()
@_store_argument
@click.argument("table")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--from", "start", help="First time that is replaced; from the beginning if not given."
)
@click.option("--to", "stop", help="First time that is not; to the end if not given.")
def replace(
    store: str, table: str, files: tuple[str, ...], start: str | None, stop: str | None
) -> None:
    """Let rows of TABLE in a range of times give way to those of FILES.

    Rows that meet a condition are deleted in Python: Table.delete.

    Example: featurestore replace golden flights may.csv --from 2013-05-01 --to 2013-06-01
    """
    if start is None and stop is None:
        raise click.UsageError("give --from, --to or both")
    opened = _open(store).table(table)
    span = (_time(opened, start), _time(opened, stop))
    click.echo(opened.replace(list(files), span))


@main.command()
@_store_argument
@click.argument("table")
@click.option("--partition-bytes", help="Such as 128MiB; the table's own if not given.")
@click.option("--merge-groups", is_flag=True, help="Put all features of a partition in one file.")
def compact(store: str, table: str, partition_bytes: str | None, merge_groups: bool) -> None:
    """Merge small partitions of TABLE; values and their order stay.

    Example: featurestore compact golden flights
    """
    click.echo(_open(store).table(table).compact(partition_bytes, merge_groups))


@main.command()
@_store_argument
@click.argument("table")
@click.argument("columns", nargs=-1, required=True)
def drop(store: str, table: str, columns: tuple[str, ...]) -> None:
    """Remove features of TABLE by all their COLUMNS; older versions keep them.

    Example: featurestore drop golden flights speed
    """
    _open(store).table(table).drop(*columns)
    click.echo(f"{', '.join(columns)} dropped from {table}")


@main.command("drop-table")
@_store_argument
@click.argument("table")
def drop_table(store: str, table: str) -> None:
    """Remove TABLE and its features; older versions keep it.

    Example: featurestore drop-table golden weather
    """
    _open(store).drop(table)
    click.echo(f"table {table} dropped")


@main.command()
@click.argument("folder", default=".")
def init(folder: str) -> None:
    """Start a project in FOLDER: features.py says what a store is to hold.

    Example: featurestore init flights
    """
    from featurestore.project import commands

    commands.init(folder)


@main.command()
@click.argument("store", metavar="[STORE", required=False)
@click.argument("table", metavar="TABLE]", required=False)
@click.option("--time", is_flag=True, help="Estimate seconds, from a partition of each feature.")
@_json_option
def plan(store: str | None, table: str | None, time: bool, as_json: bool) -> None:
    """Show what building TABLE would do and cost; without it, what apply would do in this folder.

    Example: featurestore plan golden flights
    """
    from featurestore.project import commands

    if store is None:
        commands.plan(lambda url: _open(url).session, as_json, time)
    elif table is None or time:
        said = "--time is for a project: give no STORE" if time else "name a TABLE of the store"
        raise click.UsageError(f"{said}, or nothing in a project's folder")
    else:
        found = _open(store).table(table).plan()
        click.echo(json.dumps(asdict(found)) if as_json else found)


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--check", is_flag=True, help="Do nothing; exit with 3 if there is anything to do.")
@click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
def apply(yes: bool, check: bool, memory_limit: str | None) -> None:
    """Make the store as this folder's features.py says; resumes where it was interrupted.

    Example: featurestore apply --yes
    """
    from featurestore.project import commands

    sys.exit(commands.apply(lambda url: _open(url, memory_limit).session, yes, check))


@main.command()
@_store_argument
@click.argument("table")
@click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
def build(store: str, table: str, memory_limit: str | None) -> None:
    """Compute what is missing or stale in TABLE; resumes an interrupted build.

    Example: featurestore build golden flights --memory-limit 2GiB
    """
    click.echo(_open(store, memory_limit).table(table).build())


@main.command()
@_store_argument
@click.argument("table")
@click.argument("columns", nargs=-1)
@click.option("--sample", default=50, show_default=True, help="How many rows are drawn.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--known", multiple=True, metavar="TABLE=WHEN", help="Its time column, or a delay: 2h."
)
@_json_option
def leakage(
    store: str,
    table: str,
    columns: tuple[str, ...],
    sample: int,
    seed: int,
    known: tuple[str, ...],
    as_json: bool,
) -> None:
    """Recompute rows of TABLE from what was known at their time; exits with 3 if features differ.

    Example: featurestore leakage golden flights --known weather=2h
    """  # fmt: skip
    rules = {name: when for name, _, when in (one.partition("=") for one in known)}
    report = _open(store).table(table).check_leakage(columns or None, sample, seed, rules)
    click.echo(json.dumps(report.to_json()) if as_json else report)
    if not report.ok:
        sys.exit(EXIT_FAULTS)


@main.command()
@_store_argument
@click.argument("name")
@click.option("--version", "version", type=int, help="The newest if not given.")
def tag(store: str, name: str, version: int | None) -> None:
    """Name a version of STORE, so that it is kept.

    Example: featurestore tag golden before-weather
    """
    opened = _open(store)
    opened.tag(name, version)
    click.echo(f"version {opened.tags()[name]} is tagged {name}")


@main.command()
@_store_argument
@click.argument("name")
def untag(store: str, name: str) -> None:
    """Remove a tag of STORE; its version may go with the next gc.

    Example: featurestore untag golden before-weather
    """
    _open(store).untag(name)
    click.echo(f"tag {name} removed")


@main.command()
@_store_argument
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@click.option("--no-rows", is_flag=True, help="Compare partitions, not rows: reads no data.")
@_json_option
def diff(store: str, before: str, after: str | None, no_rows: bool, as_json: bool) -> None:
    """Show what differs between versions A and B of STORE (numbers, tags, ids or times); B is the newest if not given.

    Example: featurestore diff golden before-weather
    """
    found = _open(store).diff(before, after, rows=not no_rows)
    click.echo(json.dumps(found.to_json()) if as_json else found)


# --- care --------------------------------------------------------------------------------------


@main.command()
@_store_argument
@click.option("--quick", is_flag=True, help="Sizes and existence only, no bytes.")
@click.option("--all-versions", is_flag=True, help="Also older versions, tags, states, journals.")
@_json_option
def verify(store: str, quick: bool, all_versions: bool, as_json: bool) -> None:
    """Check the files of STORE against their checksums; exits with 3 on faults.

    Example: featurestore verify golden
    """
    report = _open(store).verify(full=not quick, all_versions=all_versions)
    click.echo(json.dumps(report.to_json()) if as_json else report)
    if not report.ok:
        sys.exit(EXIT_FAULTS)


@main.command()
@_store_argument
@click.option("--dry-run", is_flag=True, help="Only say what would be mended.")
@click.option("--memory-limit", help="Such as 2GiB; 60% of the machine if not given.")
@click.option(
    "--give-up",
    type=int,
    metavar="VERSION",
    help="Give up the newest version, whose own file is damaged: its commit is lost, the store is as "
    "it was before. Only where no backup has the file.",
)
@_json_option
def repair(
    store: str, dry_run: bool, memory_limit: str | None, give_up: int | None, as_json: bool
) -> None:
    """Compute damaged features of STORE again; exits with 3 if damage is left.

    Ingested data is taken from intact copies only. What is left is listed with the remedy.

    Example: featurestore repair golden --dry-run
    """
    opened = _open(store, memory_limit)
    if give_up is not None:
        if dry_run:
            raise click.UsageError("--give-up cannot be tried: it replaces a damaged file")
        opened.give_up(give_up)
        click.echo(f"version {give_up} was given up: it is now as version {give_up - 1}", err=True)
    report = opened.repair(dry_run=dry_run)
    click.echo(json.dumps(report.to_json()) if as_json else report)
    if not report.ok:
        sys.exit(EXIT_FAULTS)


@main.command()
@click.argument("url")
@_json_option
def doctor(url: str, as_json: bool) -> None:
    """Try whether URL keeps what a store relies on; exits with 3 if it does not.

    Works in a folder of its own, which it removes; no store need be there.

    Example: featurestore doctor s3://bucket/golden
    """
    from featurestore.storage.doctor import examine, packages

    report = examine(url)
    if as_json:
        click.echo(json.dumps({**report.to_json(), "packages": packages()}))
    else:
        click.echo(report)
        click.echo("packages: " + ", ".join(f"{name} {one}" for name, one in packages().items()))
    if not report.ok:
        sys.exit(EXIT_FAULTS)


@main.command()
@_store_argument
@click.option("--safety-age", default="1d", show_default=True, help="Keep what is younger.")
@click.option("--keep-versions", default=10, show_default=True, help="Newest versions to keep.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def gc(store: str, safety_age: str, keep_versions: int, dry_run: bool) -> None:
    """Remove files of STORE that no kept version names.

    Example: featurestore gc golden --dry-run
    """
    click.echo(_open(store).gc(safety_age, keep_versions, dry_run))


add_commands(main, _open)
add_look_commands(main, _open)
for _command in (profile, report_command(_open), completion):
    main.add_command(_command)


if __name__ == "__main__":
    main()
