"""The command line: ``python -m training fit train.toml`` and ``python -m training predict RUN ROWS``.

Errors are one paragraph with the remedy, on standard error; results are on standard output. Exit
codes: 0 done, 1 the data, arguments or environment are wrong, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from featurestore.enforcement import enforced
from featurestore.errors import EnforcementWarning, FeatureStoreError
from featurestore.profiling.command import ProfiledGroup
from featurestore.units import format_bytes

_CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


@click.group(cls=ProfiledGroup, context_settings=_CONTEXT)
@click.option("--traceback", is_flag=True, help="Show where an error was raised.")
@click.pass_context
def main(context: click.Context, traceback: bool) -> None:
    """Train models from a golden set, and predict with them.

    Example: python -m training fit train.toml --output runs/first
    """
    context.obj = traceback


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Run folder to make.")
@click.option(
    "--enforce", is_flag=True, help="Let the kernel keep the memory limit, for the framework too."
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped, if there is one.")
@click.pass_context
def fit(
    context: click.Context, config: Path, output: Path | None, enforce: bool, resume: bool
) -> None:
    """Train what CONFIG says and write a run folder: a train.toml, or a run to be trained again.

    Ctrl-C saves; the same command with --resume goes on.

    Example: python -m training fit train.toml --output runs/first --resume
    """
    with _Errors(context.obj), ExitStack() as during:
        from training.run import configured
        from training.run import fit as train

        run = configured(config)
        if enforce:
            during.enter_context(_enforced(run.data.memory_limit))
        said = partial(click.echo, err=True)
        click.echo(str(train(run, output, resume=resume, say=said)))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("rows", nargs=-1, required=True)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("predictions.parquet"),
    show_default=True,
    help="Parquet or CSV file to write.",
)
@click.option("--store", help="Where the store is now, if it moved.")
@click.pass_context
def predict(
    context: click.Context, run: Path, rows: tuple[str, ...], output: Path, store: str | None
) -> None:
    """Predict for new ROWS (Parquet, CSV or Arrow files) with the model of a RUN folder.

    Example: python -m training predict runs/first new.parquet --output predictions.csv
    """
    with _Errors(context.obj):
        from training.bundle import predict as run_predict

        source: Any = rows[0] if len(rows) == 1 else list(rows)
        result = run_predict(run, source, output, store=store)
        click.echo(f"{len(result)} predictions in {output}")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--resume", is_flag=True, help="Go on with the comparison that the folder holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def compare(
    context: click.Context, config: Path, output: Path | None, resume: bool, as_json: bool
) -> None:
    """Train the variants that CONFIG (a compare.toml) names, and say which features help.

    Example: python -m training compare compare.toml --output comparisons/news
    """
    with _Errors(context.obj, "the comparison is not finished"):
        from training.comparison.compare import run_comparison
        from training.comparison.config import CompareConfig

        said = partial(click.echo, err=True)
        found = run_comparison(CompareConfig.from_toml(config), output, resume=resume, say=said)
        click.echo(json.dumps(found.to_json()) if as_json else str(found))


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), default=Path("runs.html"), show_default=True
)
@click.option(
    "--timeline",
    "timelines",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Memory recorded with --profile; repeat for several.",
)
@click.pass_context
def report(
    context: click.Context, runs: tuple[Path, ...], output: Path, timelines: tuple[Path, ...]
) -> None:
    """Write one HTML file about RUN folders: metrics, learning curves, memory, configurations.

    Of the folder of one comparison: what differs, by how much, and when.

    Example: python -m training report runs/first runs/second -o compared.html
    """
    with _Errors(context.obj):
        if len(runs) == 1 and (runs[0] / "comparison.json").is_file():
            from training.comparison.page import report as write_comparison

            click.echo(str(write_comparison(runs[0], output)))
            return
        from training.run_report import report as write

        click.echo(str(write(runs, output, timelines)))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option(
    "--sort",
    default="created",
    show_default=True,
    metavar="BY",
    help="A metric, best first: auc, test.loss; or name, seconds, epochs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def runs(context: click.Context, folder: Path, sort: str, as_json: bool) -> None:
    """List the runs in FOLDER, finished or not; piped, as lines of values separated by tabs.

    Example: python -m training runs --sort auc
    """
    with _Errors(context.obj):
        from training.run_list import list_runs

        found = list_runs(folder, sort)
        if as_json:
            click.echo(json.dumps(found.to_json()))
        else:
            click.echo(str(found) if sys.stdout.isatty() else found.to_tsv())


@contextmanager
def _enforced(limit: int | str | None) -> Iterator[None]:
    """Keep a memory limit, and say what keeps it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnforcementWarning)  # the next lines say so
        kept = enforced(limit)
    with kept:
        click.echo(f"memory limit {format_bytes(kept.limit)}, kept by {kept.mechanism}", err=True)
        yield


class _Errors:
    """Turns the package's errors into a paragraph and an exit code."""

    def __init__(self, traceback: bool, interrupted: str = "no run folder was made") -> None:
        self._traceback = traceback
        self._interrupted = interrupted

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or self._traceback:
            return
        if isinstance(error, KeyboardInterrupt):
            notes = " ".join(getattr(error, "__notes__", []))
            click.echo(f"Interrupted; {self._interrupted}. {notes}".rstrip(), err=True)
            sys.exit(130)
        if isinstance(error, FeatureStoreError):
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
