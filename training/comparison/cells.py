"""One cell of a comparison: a variant, trained on one fold with one seed, and judged on that fold's valid part.

A cell is a run like any other (``training.run``), in a folder of its own, so that it can be looked at, predicted
with and gone on with; beside it, what it said of each row it is judged by.

    comparison/
      runs/0-fold0-seed0/                   the run: variant 0 is the base
      cells/0-fold0-seed0.json              metrics, rows, seconds, importance
      predictions/0-fold0-seed0.parquet     time (in steps), label, prediction (of classes: one column each)

Always true: a cell whose two files are there is complete, and is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.dataset.batch import NUMERIC, Batch, DatasetPart, DatasetSchema, HostArray
from featurestore.errors import CorruptionError
from featurestore.fingerprint import Json
from training.bundle import RunBundle
from training.comparison.config import CompareConfig
from training.comparison.scores import CHOICES, IC, Predictions, rises, score, scores
from training.config import RunConfig
from training.durable import building, flush, read_json, write_json
from training.fitting.kinds import Model
from training.loading.loader import Loader
from training.run import fit
from training.run_folder import finite
from training.run_loaders import each_row_once, loaders_of, once
from training.run_memory import JUDGED_BATCHES, judging
from training.source import open_dataset, open_table

_REMEDY = "delete it, and go on with the comparison: it is computed again"


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant on a fold with a seed."""

    variant: str
    place: int
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """How its files are called; a variant's name may be any text."""
        return f"{self.place}-fold{self.fold}-seed{self.seed}"

    def config(self, of: CompareConfig, snapshot: str | int | None) -> RunConfig:
        """Return the run that it is."""
        run, split = of.run, of.run.split
        return replace(
            run,
            data=replace(run.data, features=of.features(self.variant), snapshot=snapshot),
            split=replace(split, fold=self.fold) if split.folded else split,
            train=replace(run.train, seed=self.seed),
        )


@dataclass(frozen=True, slots=True)
class CellResult:
    """What came of a cell.

    Parameters
    ----------
    cell : Cell
    scores : mapping of str to float
        NaN where a metric is not defined.
    train_rows, valid_rows : int
    seconds : float
        Of training.
    importance : mapping of str to float
        For each feature that the base lacks, by how much the metric is worse if its values are shuffled.
    """

    cell: Cell
    scores: Mapping[str, float]
    train_rows: int
    valid_rows: int
    seconds: float
    importance: Mapping[str, float]

    def to_json(self) -> dict[str, Json]:
        found: dict[str, Json] = finite(
            {
                "variant": self.cell.variant,
                "fold": self.cell.fold,
                "seed": self.cell.seed,
                "scores": dict(self.scores),
                "train_rows": self.train_rows,
                "valid_rows": self.valid_rows,
                "training_seconds": self.seconds,
                "importance": dict(self.importance),
            }
        )
        return found

    @classmethod
    def from_json(cls, cell: Cell, content: Mapping[str, Any]) -> CellResult:
        """Return the result of a cell that :meth:`to_json` described.

        Raises
        ------
        KeyError, TypeError, ValueError, AttributeError
            If it is none, or that of another cell.
        """
        whose = tuple(content[key] for key in ("variant", "fold", "seed"))
        if whose != (cell.variant, cell.fold, cell.seed):
            raise ValueError(f"it is of {whose}")

        def numbers(values: Mapping[str, Any]) -> dict[str, float]:
            return {key: float("nan") if one is None else float(one) for key, one in values.items()}

        return cls(
            cell,
            numbers(content["scores"]),
            int(content["train_rows"]),
            int(content["valid_rows"]),
            float(content["training_seconds"]),
            numbers(content["importance"]),
        )


@dataclass(frozen=True, slots=True)
class CellFolder:
    """Where the cells of a comparison are."""

    path: Path

    def result(self, cell: Cell, task: str) -> CellResult | None:
        """Return what came of a cell; None if it is not complete.

        Raises
        ------
        CorruptionError
            If its file cannot be read.
        """
        path = self.path / "cells" / f"{cell.name}.json"
        if not path.exists() or not self._told(cell).exists():
            return None
        try:
            found = CellResult.from_json(cell, read_json(path, _REMEDY))
            for metric in CHOICES[task]:
                if metric != IC:  # which tables without a time lack
                    found.scores[metric]
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"{path} is no result of a cell: {error}", _REMEDY) from error

    def predictions(self, cell: Cell) -> Predictions:
        """Return what a cell's model said of the rows it is judged by.

        Raises
        ------
        CorruptionError
        """
        path = self._told(cell)
        try:
            table = pq.read_table(path, use_threads=False)
            names = [name for name in table.column_names if name.startswith("prediction")]
            several = [table[name].to_numpy() for name in names]
            told = several[0] if len(several) == 1 else np.stack(several, axis=1)
            at = table["time"].to_numpy() if "time" in table.column_names else None
            return Predictions(table["label"].to_numpy(), told, at)
        except (OSError, ValueError, pa.ArrowException, KeyError, IndexError) as error:
            raise CorruptionError(f"{path} cannot be read: {error}", _REMEDY) from error

    def rows_of(self, cells: Sequence[Cell]) -> list[Predictions]:
        """Return what several cells' models said of the same rows.

        Raises
        ------
        CorruptionError
            If they did not judge the same rows, in the same order.
        """
        found = [self.predictions(one) for one in cells]
        for cell, one in zip(cells, found, strict=True):
            if not one.same_rows(found[0]):
                raise CorruptionError(
                    f"{self._told(cell)} and {self._told(cells[0])} are not of the same rows",
                    "delete both, and go on with the comparison: they are computed again",
                )
        return found

    def compute(
        self,
        cell: Cell,
        config: CompareConfig,
        snapshot: str,
        task: str,
        say: Callable[[str], None] | None,
    ) -> CellResult:
        """Train and judge a cell, or go on with one that was begun."""
        for name in ("runs", "cells", "predictions"):
            (self.path / name).mkdir(exist_ok=True)
        one = cell.config(config, snapshot)
        run = fit(one, self.path / "runs" / cell.name, resume=True, say=say)
        table = open_table(one)
        loaders = loaders_of(one, open_dataset(one, table))
        kept = one.loader.keeps_rows
        valid = once({"valid": loaders["valid"]}, kept=kept)["valid"]
        judging(valid, task, one.model.classes).require()
        model = RunBundle.load(run.path).model
        rows = predicted(model, valid, kept=kept, timed=table.time is not None)
        self._write(cell, rows)
        importance = {}
        if config.settings.importance and kept and cell.seed == config.settings.seeds[0]:
            metric = config.metric(task)
            importance = permutation_importance(
                model, valid, task, metric, rows, config.added(cell.variant), cell.fold
            )
        result = CellResult(
            cell,
            scores(task, rows),
            loaders["train"].part.rows,
            valid.part.rows,
            float(run.metrics["training_seconds"]),
            importance,
        )
        write_json(self.path / "cells" / f"{cell.name}.json", result.to_json())
        return result

    def _told(self, cell: Cell) -> Path:
        return self.path / "predictions" / f"{cell.name}.parquet"

    def _write(self, cell: Cell, rows: Predictions) -> None:
        told = rows.prediction
        columns = {"label": rows.label}
        if told.ndim == 1:
            columns["prediction"] = told
        else:
            columns |= {f"prediction_{i}": told[:, i] for i in range(told.shape[1])}
        if rows.time is not None:
            columns = {"time": rows.time, **columns}
        path = self._told(cell)
        unfinished = path.with_name(building(path.name))
        pq.write_table(pa.table(columns), unfinished)
        flush(unfinished)
        unfinished.replace(path)


def predicted(model: Model, loader: Loader, *, kept: bool, timed: bool) -> Predictions:
    """Return labels, predictions and times of all rows of a loader's part, in the order of the table."""
    labels: list[HostArray] = []

    def batches() -> Iterator[Batch]:
        for batch in each_row_once(loader, JUDGED_BATCHES * loader.batch_size, kept=kept):
            assert batch.label is not None
            labels.append(batch.label)
            yield batch

    told = model.predict(batches())
    return Predictions(np.concatenate(labels), told, _times(loader.part) if timed else None)


def _times(part: DatasetPart) -> HostArray:
    return np.concatenate([part.times(one) for one in range(len(part.partition_rows))])


def permutation_importance(
    model: Model,
    loader: Loader,
    task: str,
    metric: str,
    rows: Predictions,
    features: tuple[str, ...],
    fold: int,
) -> dict[str, float]:
    """Return by how much the metric is worse for each feature if its values go to other rows.

    The rows' order is a pure function of fold and feature; the batches of two places in it are in memory, not
    the rows (L. Breiman, "Random forests", 2001).
    """
    samples, count, found = loader.samples, loader.part.rows, {}
    together, whole = JUDGED_BATCHES * loader.batch_size, score(task, metric, rows)
    for place, name in enumerate(features):
        if not _is_input(name, loader.schema):
            continue
        order = np.random.Generator(np.random.PCG64([fold, place])).permutation(count)

        def batches(order: HostArray = order, name: str = name) -> Iterator[Batch]:
            for start in range(0, count, together):
                batch = samples.read(start, min(start + together, count))
                others = samples.gather(order[start : start + together])
                yield _replaced(batch, others, name, loader.schema)

        worse = score(task, metric, replace(rows, prediction=model.predict(batches())))
        found[name] = whole - worse if rises(metric) else worse - whole
    return found


def _is_input(name: str, schema: DatasetSchema) -> bool:
    return name in schema.numeric or name in schema.array_specs()


def _replaced(batch: Batch, others: Batch, name: str, schema: DatasetSchema) -> Batch:
    """Return a batch with one feature of other rows."""
    if name not in schema.numeric:
        return replace(batch, inputs={**batch.inputs, name: others.inputs[name]})
    numeric = batch.inputs[NUMERIC].copy()
    column = schema.numeric.index(name)
    numeric[:, column] = others.inputs[NUMERIC][:, column]
    return replace(batch, inputs={**batch.inputs, NUMERIC: numeric})
