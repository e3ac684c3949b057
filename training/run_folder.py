"""The folder of a run: made complete or not at all, with a checksum of each file."""

from __future__ import annotations

import csv
import datetime as dt
import errno
import importlib.util
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from featurestore.errors import CorruptionError, NameTakenError
from featurestore.fingerprint import Json, digest
from training.config import RunConfig
from training.durable import flush, read_json, write_json

RUN_VERSION: Final = 1
RUNS: Final = Path("runs")
"""Where runs go that are not told where."""
_TAKEN: Final = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def target_of(config: RunConfig, output: str | Path | None, *, resume: bool = False) -> Path:
    """Return the folder that a run is to become.

    Raises
    ------
    NameTakenError
        If there is one; with ``resume``, one that is no run.
    """
    if output is None:
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
        kind = config.model.kind.replace(":", "-")
        output = RUNS / f"{now}-{config.data.table}-{kind}-{uuid.uuid4().hex[:4]}"
    target = Path(output).expanduser()
    if target.exists() and not (resume and (target / "run.json").exists()):
        raise NameTakenError(f"{target} exists already", "name another output, or delete it")
    return target


def config_of(folder: Path) -> RunConfig:
    """Return the configuration of a finished run, with the snapshot that it was trained on.

    Raises
    ------
    CorruptionError
        If it is no run folder, or a file in it cannot be read.
    """
    remedy = "name a train.toml, or a folder that training.fit made"
    info = read_json(folder / "run.json", remedy)
    origin = folder / "config.json"
    config = RunConfig.from_mapping(read_json(origin, remedy), str(origin))
    if not isinstance(info.get("snapshot"), str):
        raise CorruptionError(f"{folder / 'run.json'} names no snapshot", remedy)
    return replace(config, data=replace(config.data, snapshot=info["snapshot"]))


@contextmanager
def folder_of(target: Path, within: Path) -> Iterator[Path]:
    """Yield a folder ``within`` another that becomes ``target`` if the block succeeds, else is removed."""
    building = within / "run"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        yield building
        try:
            building.rename(target)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise NameTakenError(
                f"{target} was made by another process meanwhile", "name another output"
            ) from error
        flush(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Json]) -> None:
    """Write ``run.json``, with a checksum of every other file, and flush all of them to the disk."""
    files = {one.name: digest(one.read_bytes()) for one in sorted(folder.iterdir())}
    content = {
        "version": RUN_VERSION,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **facts,
        "files": files,
    }
    write_json(folder / "run.json", content)
    for one in (*folder.iterdir(), folder):
        flush(one)


def finite(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write one line per epoch."""
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Draw training and validation loss over epochs, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    epochs = [int(one["epoch"]) + 1 for one in history]
    for name, label in (("loss", "training"), ("val_loss", "validation")):
        if name in history[0]:
            axes.plot(epochs, [one[name] for one in history], marker=".", label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
