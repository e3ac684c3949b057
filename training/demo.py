"""The whole main job on real data: a golden set of flights, a Keras model, one more feature.

Question: two hours before a flight's scheduled departure, will it arrive more than 15 minutes late?
Everything the model sees is known by then. A flight's own delay is not; delays of earlier flights
are, as far as they had happened: ``waited`` is how long a flight had been waiting two hours after
its schedule, so it is known two hours after that schedule, hence the lag of four hours.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import narwhals as nw

import featurestore as fs
from featurestore.errors import NameTakenError
from featurestore.profiling.command import ProfiledCommand
from featurestore.report.tables import text_table
from featurestore.units import format_bytes
from training.flights import FLIGHT_KEY, FLIGHT_TIME, WEATHER_KEY, WEATHER_TIME, flights, weather

T = TypeVar("T")

MEMORY_LIMIT: Final = "2GiB"
MARKER: Final = "demo.json"
KNOWN_AFTER: Final = "4h"
ARRIVED_AFTER: Final = "2d"
"""The longest delay and flight of the year together take less."""
NEW_YORK: Final = "America/New_York"

WEATHER_COLUMNS: Final = (
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib",
)  # fmt: skip
RECENT: Final = (("origin", "3h"), ("carrier", "3h"), ("dest", "6h"))
WEEKLY: Final = ("carrier", "dest")
BASELINE: Final = (
    "sched_dep_hour", "sched_dep_weekday", "distance", "carrier", "origin", "dest",
    *(f"waited_mean_{by}" for by, _ in RECENT), *(f"arr_delay_mean_{by}" for by in WEEKLY),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the table at the end."""

    name: str
    rows: int
    partitions: int
    features: int
    bytes_written: int
    seconds: float
    peak_bytes: int
    auc: float | None = None
    test_auc: float | None = None


class Demo:
    """Runs the steps in a folder and remembers what each cost."""

    def __init__(self, folder: Path, rows: int | None, epochs: int) -> None:
        self._folder = folder
        self._rows = rows
        self._epochs = epochs
        self._steps: list[Step] = []

    def run(self) -> Sequence[Step]:
        """Build, train, add weather, train again."""
        store = fs.FeatureStore.create(self._folder / "golden", memory_limit=MEMORY_LIMIT)
        sky = self._measured("ingest weather", lambda: self._ingest_weather(store))
        table = self._measured("ingest flights", lambda: self._ingest_flights(store))
        self._measured("add history", lambda: self._add_history(table))
        self._train("train without weather", "without-weather", BASELINE)
        before = self._files()
        self._measured("add weather", lambda: self._add_weather(table, sky))
        changed = sum(self._files().get(path) != stamp for path, stamp in before.items())
        click.echo(f"Adding weather touched {changed} of the {len(before)} files written before.")
        self._train("train with weather", "with-weather", (*BASELINE, *WEATHER_COLUMNS))
        return self._steps

    # --- the steps -----------------------------------------------------------------------------

    def _ingest_weather(self, store: fs.FeatureStore) -> fs.Table:
        return store.ingest("weather", weather(), key=WEATHER_KEY, time=WEATHER_TIME)

    def _ingest_flights(self, store: fs.FeatureStore) -> fs.Table:
        rows = flights()
        if self._rows is not None:
            # Every n-th flight, so that a small demo still covers the year.
            rows = rows.take(list(range(0, rows.num_rows, max(1, rows.num_rows // self._rows))))
        return store.ingest(
            "flights", rows, key=FLIGHT_KEY, time=FLIGHT_TIME, partition_bytes="2MiB"
        )

    def _add_history(self, table: fs.Table) -> fs.Table:
        table.add(
            fs.Calendar(parts=("hour", "weekday"), timezone=NEW_YORK),
            fs.Expression(late=nw.col("arr_delay") > 15),
            # Not departed within two hours counts as two hours, cancelled or not.
            fs.Expression(waited=nw.col("dep_delay").fill_null(120.0).clip(upper_bound=120.0)),
            *(_mean("waited", by, window, KNOWN_AFTER) for by, window in RECENT),
            *(_mean("arr_delay", by, "7d", ARRIVED_AFTER) for by in WEEKLY),
        )
        return table

    def _add_weather(self, table: fs.Table, sky: fs.Table) -> fs.Table:
        table.add(
            fs.AsOfJoin(sky, columns=list(WEATHER_COLUMNS), by="origin", lag="2h", max_age="6h")
        )
        return table

    def _train(self, name: str, run: str, features: Sequence[str]) -> None:
        from training.run import fit

        config = {
            "data": {
                "store": str(self._folder / "golden"),
                "table": "flights",
                "features": list(features),
                "label": "late",
                "drop_unlabelled": True,  # cancelled flights never arrive
                "memory_limit": MEMORY_LIMIT,
            },
            "split": {
                "kind": "time",
                "valid": "2013-10-01T00:00:00+00:00",
                "test": "2013-11-15T00:00:00+00:00",
                "embargo": "1d",
            },
            "pipeline": {"categorify": ["carrier", "origin", "dest"]},
            "model": {"params": {"hidden": [128, 64], "dropout": 0.3}},
            "train": {
                "epochs": self._epochs,
                "batch_size": 1024,
                "seed": 0,
                "cache": str(self._folder / "cache"),
            },
        }
        found = self._measured(name, lambda: fit(config, self._folder / "runs" / run))
        parts = found.metrics["parts"]
        self._steps[-1] = replace(
            self._steps[-1],
            features=len(features),
            auc=parts["valid"]["auc"],
            test_auc=parts["test"]["auc"],
        )

    # --- measuring -----------------------------------------------------------------------------

    def _measured(self, name: str, work: Callable[[], T]) -> T:
        click.echo(f"{name} ...")
        before = self._size()
        with fs.measure() as meter:
            result = work()
        table = result if isinstance(result, fs.Table) else self._flights()
        self._steps.append(
            Step(
                name,
                table.rows,
                table.partitions,
                len(table.columns),
                self._size() - before,
                meter.result.seconds,
                meter.result.peak_bytes,
            )
        )
        return result

    def _flights(self) -> fs.Table:
        return fs.FeatureStore.open(self._folder / "golden").table("flights")

    def _files(self) -> dict[Path, tuple[int, int]]:
        """Return size and time of change of every data file."""
        found = (self._folder / "golden" / "data").rglob("*")
        return {one: (one.stat().st_size, one.stat().st_mtime_ns) for one in found if one.is_file()}

    def _size(self) -> int:
        return sum(one.stat().st_size for one in self._folder.rglob("*") if one.is_file())


def _mean(column: str, by: str, window: str, lag: str) -> fs.Rolling:
    """Return a trailing mean per group of what was known, named after the group."""
    name = {f"{column}_mean_{window}": f"{column}_mean_{by}"}
    return fs.Rolling(column, by=by, window=window, lag=lag, stats=["mean"], rename=name)


def show(steps: Sequence[Step]) -> str:
    """Return the steps as a table."""
    head = (
        "step", "rows", "partitions", "features", "written", "seconds", "peak memory", "valid AUC", "test AUC",
    )  # fmt: skip
    rows = [
        (
            one.name, f"{one.rows:,}", one.partitions, one.features,
            format_bytes(one.bytes_written), f"{one.seconds:.1f}", format_bytes(one.peak_bytes),
            "" if one.auc is None else f"{one.auc:.4f}",
            "" if one.test_auc is None else f"{one.test_auc:.4f}",
        )
        for one in steps
    ]  # fmt: skip
    return text_table(head, rows)


def run_demo(output: str | Path, rows: int | None = None, epochs: int = 4) -> Sequence[Step]:
    """Run the demo in a folder of its own.

    Parameters
    ----------
    output : str or Path
        Emptied first if an earlier demo made it; anything else there is refused.
    rows : int, optional
        About how many flights; all 336,776 if not given.
    epochs : int

    Raises
    ------
    NameTakenError
        If the folder holds something else.
    """
    folder = Path(output)
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise NameTakenError(
                f"{folder} exists and was not made by the demo", "name another --output"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text(json.dumps({"steps": []}))
    steps = Demo(folder, rows, epochs).run()
    content: list[dict[str, Any]] = [
        {name: getattr(one, name) for name in Step.__slots__} for one in steps
    ]
    (folder / MARKER).write_text(json.dumps({"steps": content}, indent=2))
    return steps


@click.command("demo", cls=ProfiledCommand)
@click.option("--output", default="demo-output", show_default=True, help="Folder to work in.")
@click.option("--rows", type=int, help="About how many flights; all if not given.")
@click.option("--epochs", default=4, show_default=True)
def command(output: str, rows: int | None, epochs: int) -> None:
    """Build a golden set of 336,776 real flights, train with and without weather.

    Example: featurestore demo --output demo-output
    """
    # TensorFlow announces these kernels on every start; a demo of this size does not need them.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    steps = run_demo(output, rows, epochs)
    click.echo(f"\n{show(steps)}\n")
    before, after = (one.auc for one in steps if one.auc is not None)
    # As `make demo` calls it, the command is in a virtual environment that is not activated.
    tool = "featurestore" if shutil.which("featurestore") else os.path.relpath(sys.argv[0])
    click.echo(
        "Will a flight arrive more than 15 minutes late, judged two hours before departure?\n"
        "Trained on January to September 2013; validated on October to mid-November, tested on the\n"
        f"rest of the year. Validation AUC {before:.4f} without weather, {after:.4f} with it.\n\n"
        f"Look at: {output}/runs/with-weather/curves.png, metrics.json\n"
        f"Try:     {tool} show {output}/golden flights\n"
        f"         {tool} status {output}/golden flights"
    )
