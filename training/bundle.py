"""A finished run, loaded: the same features, pipeline and model, for rows it has not seen.

A bundle needs nothing but its folder; :func:`predict` also opens the store, whose table computes the
features of new rows from stored states. Loading checks every file against the run's checksums and
runs no code from them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import (
    CorruptionError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
    SchemaError,
    SourceError,
)
from featurestore.fingerprint import digest
from featurestore.report.progress import progress_bars
from training.config import RunConfig
from training.durable import read_json
from training.fitting.kinds import Model, model_class
from training.loading.half_precision import FLOAT16, half_batch, half_schema
from training.run_folder import RUN_VERSION
from training.source import open_table
from training.stored_pipeline import StoredPipeline, load_pipeline

_BATCH_ROWS: Final = 8192
_SUFFIXES: Final = (".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class RunBundle:
    """A run that can predict. Make one with :meth:`load`.

    Parameters
    ----------
    path : Path
    config : RunConfig
    info : mapping
        What ``run.json`` says: snapshot, dataset digest, time.
    metrics : mapping
    task : str
    """

    path: Path
    config: RunConfig
    info: Mapping[str, Any]
    metrics: Mapping[str, Any]
    task: str
    _pipeline: StoredPipeline
    _model: Model

    @classmethod
    def load(cls, path: str | Path) -> RunBundle:
        """Load a run folder.

        Raises
        ------
        NotFoundError
            If it is no run folder.
        FormatError
            If a newer version wrote it.
        CorruptionError
            If a file is missing or altered.
        MissingDependencyError
            If the model's framework is not installed.
        """
        path = Path(path).expanduser()
        info = _info(path)
        for name, expected in info["files"].items():
            _check_file(path, name, expected)
        config = RunConfig.from_mapping(read_json(path / "config.json"), str(path / "config.json"))
        metrics = read_json(path / "metrics.json")
        pipeline = load_pipeline(path)
        schema = pipeline.model_schema
        if config.loader.dtype == FLOAT16:
            schema = half_schema(schema)
        model = model_class(config.model.kind).load(path, schema)
        return cls(path, config, info, metrics, metrics["task"], pipeline, model)

    @property
    def model(self) -> Model:
        """The trained model."""
        return self._model

    @property
    def features(self) -> tuple[str, ...]:
        """The columns the model learnt from, as the table has them."""
        return self.config.data.features

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that :meth:`predict` needs: ``features``, the base margin if it was trained upon one,
        then key and time if a step of the pipeline reads them.
        """
        return tuple(one.name for one in self._pipeline.columns)

    def predict(self, frame: Any) -> HostArray:
        """Return predictions for rows of features.

        Parameters
        ----------
        frame : pyarrow.Table or object with ``__arrow_c_stream__``
            A frame of Polars, pandas, DuckDB or Narwhals has it. At least the columns ``columns``, before the pipeline, in any order.

        Returns
        -------
        float32 array [rows] or [rows, classes]
            Probability, value, or probabilities, in the order of the rows.

        Raises
        ------
        SchemaError
            If a column is missing or of a type that does not fit.
        SourceError
            If ``frame`` holds no rows that Arrow can take, as a lazy frame does not.
        """
        try:
            table = frame if isinstance(frame, pa.Table) else pa.table(frame)
        except TypeError as error:
            kind = type(frame)
            raise SourceError(
                f"the rows are a {kind.__module__}.{kind.__qualname__}, which Arrow cannot take",
                "give a frame with rows, of any library that has __arrow_c_stream__; collect() or "
                "compute() a lazy one first",
            ) from error
        return self._model.predict(self._batches(table))

    def _batches(self, table: pa.Table) -> Iterator[Batch]:
        self._pipeline.check(table.schema)
        for start in range(0, table.num_rows, _BATCH_ROWS):
            batch = self._pipeline.apply(table.slice(start, _BATCH_ROWS))
            # As in training: what float16 cannot hold is refused, not made infinite.
            half = self.config.loader.dtype == FLOAT16
            yield half_batch(batch, self._pipeline.model_schema) if half else batch


def predict(
    run: RunBundle | str | Path,
    new_rows: Any,
    output: str | Path | None = None,
    *,
    store: str | None = None,
) -> Any:
    """Predict for rows that are not in the table: the same features, pipeline and model as trained.

    Parameters
    ----------
    run : RunBundle or path
    new_rows : path, glob, list of them, or object with ``__arrow_c_stream__``
        Key, time and the ingested columns that the features read.
    output : path, optional
        ``.parquet`` or ``.csv`` to write; appears complete or not at all.
    store : str, optional
        Where the store is now, if it moved since training.

    Returns
    -------
    polars.DataFrame
        Key, time and ``prediction`` (for multiclass the class, and ``probability_<class>`` each), one
        row per new row, in their order.

    Raises
    ------
    SourceError, SchemaError, NotFoundError
    NotReadyError
        If a feature was redefined since the model was trained.
    """
    import polars as pl

    bundle = run if isinstance(run, RunBundle) else RunBundle.load(run)
    target = None if output is None else _check_output(Path(output).expanduser())
    with progress_bars():
        table = open_table(bundle.config, store)
        _check_lineage(bundle, table)
        frame = table.compute(new_rows, columns=list(bundle.config.data.inputs))
        predicted = bundle.predict(frame)
    identity = [*table.key, *([table.time] if table.time is not None else [])]
    result = frame.select(list(dict.fromkeys(identity)))
    if bundle.task == "multiclass":
        columns = [pl.Series("prediction", predicted.argmax(axis=1).astype(np.int32))]
        columns += [
            pl.Series(f"probability_{number}", predicted[:, number])
            for number in range(predicted.shape[1])
        ]
    else:
        columns = [pl.Series("prediction", predicted)]
    taken = [one.name for one in columns if one.name in result.columns]
    if taken:
        raise SchemaError(
            f"the table's key or time is called {taken}, like the output", "rename it"
        )
    result = result.with_columns(columns) if result.columns else pl.DataFrame(columns)
    if target is not None:
        _write(result, target)
    return result


def _check_lineage(bundle: RunBundle, table: Any) -> None:
    """Refuse features that are computed otherwise now than when the model was trained."""
    trained = bundle.info["lineage"]
    inputs = bundle.config.data.inputs
    now = table.lineage(*inputs)
    changed = [name for name in inputs if now[name] != trained[name]]
    if changed:
        raise NotReadyError(
            f"{changed} of table {table.name!r} are defined otherwise than when this model was "
            f"trained, on snapshot {bundle.info['snapshot']}",
            "train again, or restore the definitions with add(..., replace=True)",
        )


def _info(path: Path) -> dict[str, Any]:
    if not (path / "run.json").is_file():
        raise NotFoundError(
            f"{path} is no run folder: it has no run.json",
            "give the folder that 'python -m training fit' made",
        )
    info = read_json(path / "run.json")
    version = info.get("version")
    if not isinstance(version, int) or version > RUN_VERSION:
        raise FormatError(
            f"run {path} has format version {version!r}, this package reads up to {RUN_VERSION}",
            "upgrade featurestore",
        )
    return info


def _check_file(path: Path, name: str, expected: str) -> None:
    if "/" in name or name.startswith("."):
        raise CorruptionError(f"run {path} names a file {name!r} outside its folder")
    try:
        seen = digest((path / name).read_bytes())
    except OSError as error:
        raise CorruptionError(f"file {name} of run {path} cannot be read: {error}") from error
    if seen != expected:
        raise CorruptionError(
            f"file {name} of run {path} has checksum {seen} instead of {expected}",
            "it was changed after the run; train again, or restore it",
        )


def _check_output(path: Path) -> Path:
    if path.suffix not in _SUFFIXES:
        raise InvalidInputError(
            f"predictions cannot be written as {path.name!r}",
            f"end the name with one of {list(_SUFFIXES)}",
        )
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no directory {path.parent}", "make it first")
    return path


def _write(result: Any, path: Path) -> None:
    building = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        if path.suffix == ".csv":
            result.write_csv(building)
        else:
            result.write_parquet(building)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
