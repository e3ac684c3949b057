"""A training run: from a configuration to a run folder that holds everything it led to.

    run/
      run.json          format, snapshot and dataset it was trained on, seeds, the command that trains it
                        again, checksums of the files below
      config.json       the resolved configuration
      schema.json       the features as the table has them, and the inputs as the model sees them
      definitions.json  the features that inputs, label and weights are computed from, by table
      pipeline.json     the fitted pipeline's steps      states.arrow   what they learnt
      model.keras or model.ubj
      metrics.json      per part: rows, loss, AUC and accuracy, RMSE and MAE, or NDCG; seconds, rows/s
      memory.json       the limit, what was projected, what was measured; the framework's part apart
      memory_series.csv resident and anonymous bytes over seconds, 240 lines at most
      history.csv       per epoch         curves.png     the same as a picture
      environment.json  versions of Python and all packages, system, processor, memory

Always true: a run folder appears complete or not at all, and never replaces another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from featurestore.dataset.batch import HostArray
from featurestore.errors import CorruptionError, InvalidInputError, NameTakenError
from featurestore.execution.events import FRAMEWORK, step
from featurestore.fingerprint import Json
from featurestore.report.progress import progress_bars
from training.config import RunConfig
from training.durable import read_json, write_json
from training.environment import command, environment
from training.fitting.kinds import Model, model_class
from training.loading.loader import Loader
from training.memory_series import MemorySeries
from training.metrics import evaluate, require_labels
from training.run_folder import (
    RUNS,
    config_of,
    draw_curves,
    finite,
    folder_of,
    seal,
    target_of,
    write_history,
)
from training.run_loaders import TRAIN, each_row_once, held_rows, held_together, loaders_of, once
from training.run_memory import JUDGED_BATCHES, RunMemory, judging
from training.source import open_dataset, open_table, task_of
from training.stored_pipeline import save_pipeline
from training.unfinished import Unfinished, different_keys

_FACTS: Final = ("run", "config", "metrics")


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
    config: RunConfig | Mapping[str, Any] | str | Path,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
) -> Run:
    """Train what a configuration says and write a run folder.

    While it trains, checkpoints lie beside the folder to be: see ``training.unfinished``.

    Parameters
    ----------
    config : RunConfig, mapping or path
        A path is read as ``train.toml``; that of a run folder trains it again, on the same snapshot.
    output : path, optional
        The folder to make; ``runs/<time>-<table>-<model>`` if not given.
    resume : bool
        Go on with a run that was stopped: that of ``output``, or the newest of this configuration in
        ``runs``. One that ended already is returned; if there is none, a new one begins.
    say : function, optional
        Gets a line of progress now and then.

    Returns
    -------
    Run

    Raises
    ------
    InvalidInputError, NotReadyError, MissingDependencyError
        Before anything is written. On any error no run folder is left.
    NameTakenError
        If the folder is there, or was begun and ``resume`` is not asked for.
    KeyboardInterrupt
        After saving a checkpoint; a note says how to go on.
    """
    config = configured(config)
    work = Unfinished.newest(config, RUNS) if resume and output is None else None
    if work is None:
        work = Unfinished.of(target_of(config, output, resume=resume))
    if resume and (work.target / "run.json").exists():  # killed when all was done but the tidying
        run = finished(config, work.target)
        work.discard()
        return run
    work.check(config, resume=resume)
    with progress_bars(), work.open(config), folder_of(work.target, work.path) as folder:
        try:
            snapshot, metrics = _make(config, folder, work, say)
        except KeyboardInterrupt as error:
            if work.has_checkpoints:
                error.add_note(f"It is saved; go on with --resume --output {work.target}")
            raise
    return Run(work.target, config, snapshot, metrics)


def configured(given: RunConfig | Mapping[str, Any] | str | Path) -> RunConfig:
    """Return the configuration that :func:`fit` is given, in whatever form."""
    if isinstance(given, RunConfig):
        return given
    if not isinstance(given, str | Path):
        return RunConfig.from_mapping(given)
    path = Path(given).expanduser()
    return config_of(path) if path.is_dir() else RunConfig.from_toml(path)


def finished(config: RunConfig, path: Path) -> Run:
    """Return a run that ended, if it is of this configuration.

    Raises
    ------
    NameTakenError
        If it is of another.
    CorruptionError
        If its files cannot be read.
    """
    remedy = f"delete {path}, or name another output"
    done = {name: read_json(path / f"{name}.json", remedy) for name in _FACTS}
    different = different_keys(done["config"], config.to_json())
    if different:
        raise NameTakenError(
            f"{path} is of another configuration: {different} differ", "name another output"
        )
    snapshot = done["run"].get("snapshot")
    if not isinstance(snapshot, str):
        raise CorruptionError(f"{path / 'run.json'} names no snapshot", remedy)
    return Run(path, config, snapshot, done["metrics"])


def _make(
    config: RunConfig, folder: Path, work: Unfinished, say: Callable[[str], None] | None
) -> tuple[str, dict[str, Any]]:
    """Train and fill the run's folder; return snapshot and metrics."""
    started = time.perf_counter()
    # A run goes on with the rows that it began with, whatever was appended since.
    begun = work.begun()
    known = begun.get("snapshot", config.data.snapshot)
    table = open_table(replace(config, data=replace(config.data, snapshot=known)))
    dataset = open_dataset(config, table)
    task = task_of(config, dataset.schema)
    # The grain of the shuffle follows the memory limit, which may be another one now.
    loaders = loaders_of(config, dataset, begun.get("window_blocks"))
    train = loaders[TRAIN].part
    defined = _definitions(config, train.snapshot_id)
    blocks = loaders[TRAIN].steps.order.window_blocks
    work.note(snapshot=train.snapshot_id, window_blocks=blocks)
    kept, held = config.loader.keeps_rows, config.loader.hold is not None
    judged = once(loaders, kept=kept)
    projected = []
    for one in judged.values():
        beside = held_rows(loaders) if held else () if kept else one.epoch_memory().terms
        projected.append(judging(one, task, config.model.classes, beside))
        projected[-1].require()  # hours of training would be lost with what cannot be judged
    if held:
        projected += held_together(loaders)
    memory = RunMemory(loaders.values(), projected)
    resumed = work.has_checkpoints
    with MemorySeries() as series:
        model, training_seconds = _train(config, task, loaders, memory, work, say)
        with step("judge model", 0, kind=FRAMEWORK):
            parts = {name: _judge(model, task, one, kept=kept) for name, one in judged.items()}
    _require_numbers(parts)
    metrics = {
        "task": task,
        "parts": parts,
        "epochs": len(model.history),
        "training_seconds": training_seconds,
        "seconds": time.perf_counter() - started,
    }
    if not resumed:  # how long what came before a restart took is not known
        rows = loaders[TRAIN].rows * len(model.history)
        metrics["training_rows_per_second"] = rows / training_seconds
    model.save(folder)
    save_pipeline(folder, dataset.pipeline, table.schema, config.data.inputs, dataset.schema)
    write_json(folder / "config.json", config.to_json())
    write_json(folder / "metrics.json", finite(metrics))
    write_json(folder / "definitions.json", defined)
    write_json(folder / "memory.json", memory.to_json())
    write_json(folder / "environment.json", environment())
    series.write(folder / "memory_series.csv")
    write_history(folder, model.history)
    draw_curves(folder / "curves.png", model.history)
    facts: dict[str, Json] = {
        "snapshot": train.snapshot_id,
        "dataset": train.digest,
        "model": model.file,
        "seeds": {"train": config.train.seed, "split": config.split.seed},
        "command": command(work.target),
        "lineage": {name: dataset.lineage[name] for name in config.data.inputs},
    }
    seal(folder, facts)
    return train.snapshot_id, metrics


def _definitions(config: RunConfig, snapshot: str) -> dict[str, Json]:
    """Return the definitions of all features that a run reads, as its snapshot has them."""
    data = config.data
    read = [*data.inputs, data.label, data.weight, data.group]
    fixed = open_table(replace(config, data=replace(data, snapshot=snapshot)))
    return fixed.definitions(*dict.fromkeys(one for one in read if one is not None))


def _train(
    config: RunConfig,
    task: str,
    loaders: Mapping[str, Loader],
    memory: RunMemory,
    work: Unfinished,
    say: Callable[[str], None] | None,
) -> tuple[Model, float]:
    """Return the trained model and the seconds that training took."""
    for name, loader in loaders.items():
        # Of the label alone: the pack is written while the first epoch reads it.
        for partition in range(len(loader.part.partition_rows)):
            label = loader.part.numbers(partition, config.data.label)
            if loader.schema.label is not None and not np.isnan(label).any():
                label = label.astype(loader.schema.label.dtype)
            require_labels(task, label, config.model.classes, f"the {name} part")
    with memory.importing("xgboost" if config.model.kind == "xgboost" else "tensorflow"):
        chosen = model_class(config.model.kind)
    started = time.perf_counter()
    with memory.fitting():
        model = chosen.fit(config, task, loaders[TRAIN], loaders["valid"], work, say)
    return model, time.perf_counter() - started


def _require_numbers(parts: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse a model whose losses are no numbers: its last steps blew up."""
    for name, values in parts.items():
        loss = values.get("loss", values.get("rmse", 0.0))
        if not np.isfinite(loss):
            raise InvalidInputError(
                f"the trained model's loss over the {name} part is {loss}",
                "lower learning_rate, scale the label, or clip or impute the features",
            )


def _judge(model: Model, task: str, loader: Loader, *, kept: bool) -> dict[str, float]:
    """Return the metrics of a whole part; see ``each_row_once``."""
    labels: list[HostArray] = []
    groups: list[HostArray] = []

    def batches() -> Iterator[Any]:
        for batch in each_row_once(loader, JUDGED_BATCHES * loader.batch_size, kept=kept):
            if batch.label is not None:
                labels.append(batch.label)
            if batch.group is not None:
                groups.append(batch.group)
            yield batch

    prediction = model.predict(batches())
    group = np.concatenate(groups) if groups else None
    return {
        "rows": float(loader.part.rows),
        **evaluate(task, np.concatenate(labels), prediction, group),
    }
