"""A training run: from a configuration to a run folder that holds everything it led to.

    run/
      run.json          format, snapshot and dataset it was trained on, checksums of the files below
      config.json       the resolved configuration
      schema.json       the features as the table has them, and the inputs as the model sees them
      pipeline.json     the fitted pipeline's steps      states.arrow   what they learnt
      model.keras or model.ubj
      metrics.json      per part: rows, loss, AUC and accuracy, or RMSE and MAE; seconds, rows/s
      memory.json       the limit, what was projected, what was measured; the framework's part apart
      history.csv       per epoch         curves.png     the same as a picture
      environment.json  versions of Python and packages

Always true: a run folder appears complete or not at all, and never replaces another.
"""

from __future__ import annotations

import csv
import datetime as dt
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import InvalidInputError, MissingDependencyError, NameTakenError
from featurestore.execution.events import FRAMEWORK, step
from featurestore.fingerprint import Json, digest
from featurestore.report.progress import progress_bars
from training.config import RunConfig
from training.loading.loader import Loader
from training.metrics import evaluate, require_labels
from training.run_memory import JUDGED_BATCHES, RunMemory, judging
from training.source import open_dataset, open_table, task_of
from training.stored_pipeline import save_pipeline

RUN_VERSION: Final = 1
_CHECKED_ROWS: Final = 1 << 16
_PACKAGES: Final = (
    "featurestore", "numpy", "polars", "pyarrow", "narwhals", "zarr", "dask", "keras",
    "tensorflow", "tensorflow-cpu", "xgboost", "xgboost-cpu",
)  # fmt: skip


class Model(Protocol):
    """A trained model: see ``hooks.keras_model`` and ``hooks.xgboost_model``."""

    history: list[dict[str, float]]
    file: str

    def predict(self, batches: Any) -> HostArray: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Parameters
    ----------
    path : Path
        Its folder.
    config : RunConfig
    snapshot : str
        Id of the snapshot of the store it was trained on.
    metrics : mapping
        As in ``metrics.json``.
    """

    path: Path
    config: RunConfig
    snapshot: str
    metrics: Mapping[str, Any]

    def __str__(self) -> str:
        parts = [
            f"{part}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in values.items() if name != "rows")
            for part, values in self.metrics["parts"].items()
        ]
        return "\n".join([f"{self.path} (snapshot {self.snapshot})", *parts])


def fit(
    config: RunConfig | Mapping[str, Any] | str | Path, output: str | Path | None = None
) -> Run:
    """Train what a configuration says and write a run folder.

    Parameters
    ----------
    config : RunConfig, mapping or path
        A path is read as ``train.toml``.
    output : path, optional
        The folder to make; ``runs/<time>-<table>-<model>`` if not given.

    Returns
    -------
    Run

    Raises
    ------
    InvalidInputError, NotReadyError, MissingDependencyError
        Before anything is written. On any error no run folder is left.
    """
    if isinstance(config, str | Path):
        config = RunConfig.from_toml(config)
    elif not isinstance(config, RunConfig):
        config = RunConfig.from_mapping(config)
    target = _target(config, output)
    with progress_bars(), _folder(target) as folder:
        started = time.perf_counter()
        table = open_table(config)
        dataset = open_dataset(config, table)
        task = task_of(config, dataset.schema)
        loaders = _loaders(config, dataset)
        judged = [judging(one, task, config.model.classes) for one in loaders.values()]
        for one in judged:
            one.require()  # hours of training would be lost with what cannot be judged
        memory = RunMemory(loaders.values(), judged)
        training_started = time.perf_counter()
        model = _train(config, task, loaders, memory)
        training_seconds = time.perf_counter() - training_started
        with step("judge model", 0, kind=FRAMEWORK):
            parts = {name: _judge(model, task, one) for name, one in loaders.items()}
        metrics = {
            "task": task,
            "parts": parts,
            "epochs": len(model.history),
            "training_seconds": training_seconds,
            "training_rows_per_second": loaders["train"].rows
            * len(model.history)
            / training_seconds,
            "seconds": time.perf_counter() - started,
        }
        model.save(folder)
        save_pipeline(folder, dataset.pipeline, table.schema, config.data.features, dataset.schema)
        _write_json(folder / "config.json", config.to_json())
        _write_json(folder / "metrics.json", _finite(metrics))
        _write_json(folder / "memory.json", memory.to_json())
        _write_json(folder / "environment.json", _environment())
        _write_history(folder, model.history)
        draw_curves(folder / "curves.png", model.history)
        train = loaders["train"].part
        _seal(
            folder,
            {
                "snapshot": train.snapshot_id,
                "dataset": train.digest,
                "model": model.file,
                "lineage": {name: dataset.lineage[name] for name in config.data.features},
            },
        )
    return Run(target, config, train.snapshot_id, metrics)


def _loaders(config: RunConfig, dataset: Any) -> dict[str, Loader]:
    """Return a loader per part; only training is shuffled."""
    settings = config.train
    parts = {"train": dataset.train, "valid": dataset.valid}
    split = config.split
    if split.test is not None and not (split.kind == "hash" and split.test == 0):
        parts["test"] = dataset.test
    for name, part in parts.items():
        if part.rows == 0:
            raise InvalidInputError(
                f"the {name} part has no rows (split {config.to_json()['split']})",
                "move the boundaries of [split] to where the table has rows",
            )
    if settings.drop_last and parts["train"].rows < settings.batch_size:
        raise InvalidInputError(
            f"{parts['train'].rows} training rows do not fill a batch of {settings.batch_size}",
            "use a smaller batch_size, or drop_last = false",
        )
    common: dict[str, Any] = {"cache": settings.cache, "memory_limit": config.data.memory_limit}
    loaders = {
        name: Loader(part, settings.batch_size, seed=settings.seed, **common)
        for name, part in parts.items()
    }
    loaders["train"] = Loader(
        parts["train"],
        settings.batch_size,
        settings.shuffle,
        settings.seed,
        settings.drop_last,
        **common,
    )
    return loaders


def _train(config: RunConfig, task: str, loaders: Mapping[str, Loader], memory: RunMemory) -> Model:
    for part, loader in loaders.items():
        for start in range(0, loader.rows, _CHECKED_ROWS):
            label = loader.pack.read(start, min(start + _CHECKED_ROWS, loader.rows)).label
            require_labels(task, label, config.model.classes, f"the {part} part")
    with memory.importing("xgboost" if config.model.kind == "xgboost" else "tensorflow"):
        chosen = model_class(config.model.kind)
    with memory.fitting():
        return chosen.fit(config, task, loaders["train"], loaders["valid"])  # type: ignore[no-any-return]


def model_class(kind: str) -> Any:
    """Return the class that trains and loads models of a kind.

    Raises
    ------
    MissingDependencyError
        If its framework is not installed.
    """
    needed, extra = ("xgboost", "xgboost") if kind == "xgboost" else ("tensorflow", "tensorflow")
    if importlib.util.find_spec(needed) is None:
        raise MissingDependencyError(
            f"a model of kind {kind!r} needs {needed}, which is not installed",
            f"pip install 'featurestore[{extra}]'",
        )
    if kind == "xgboost":
        from training.hooks.xgboost_model import XGBoostModel

        return XGBoostModel
    from training.hooks.keras_model import KerasModel

    return KerasModel


def _judge(model: Model, task: str, loader: Loader) -> dict[str, float]:
    """Return the metrics of a whole part, read in table order whatever its training order was."""
    batch_rows, rows = JUDGED_BATCHES * loader.batch_size, loader.rows
    pack = loader.pack
    labels: list[HostArray] = []

    def batches() -> Iterator[Any]:
        for start in range(0, rows, batch_rows):
            batch = pack.read(start, min(start + batch_rows, rows))
            if batch.label is not None:
                labels.append(batch.label)
            yield batch

    prediction = model.predict(batches())
    return {"rows": float(rows), **evaluate(task, np.concatenate(labels), prediction)}


# --- the folder --------------------------------------------------------------------------------------


def _target(config: RunConfig, output: str | Path | None) -> Path:
    if output is None:
        now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
        kind = config.model.kind.replace(":", "-")
        output = Path("runs") / f"{now}-{config.data.table}-{kind}-{uuid.uuid4().hex[:4]}"
    target = Path(output).expanduser()
    if target.exists():
        raise NameTakenError(f"{target} exists already", "name another output, or delete it")
    return target


@contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``target`` if the block succeeds, else is removed."""
    building = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        building.mkdir(parents=True)
        yield building
        try:
            building.rename(target)
        except OSError as error:
            raise NameTakenError(
                f"{target} was made by another process meanwhile", "name another output"
            ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _seal(folder: Path, facts: Mapping[str, Json]) -> None:
    files = {one.name: digest(one.read_bytes()) for one in sorted(folder.iterdir())}
    content = {
        "version": RUN_VERSION,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **facts,
        "files": files,
    }
    _write_json(folder / "run.json", content)
    for one in folder.iterdir():
        handle = os.open(one, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
    )


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it: NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> bool:
    """Draw training and validation loss over epochs; False if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
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
    return True


def _environment() -> dict[str, Json]:
    versions: dict[str, Json] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }
