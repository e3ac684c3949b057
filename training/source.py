"""From a run's configuration to the dataset it trains on."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.dataset.batch import DatasetSchema
from featurestore.errors import DefinitionError, InvalidInputError, MissingColumnError, SchemaError
from featurestore.schema import TableSchema
from training.config import PipelineConfig, RunConfig

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset
    from featurestore.table import Table
    from featurestore.transforms.pipeline import Pipeline


def open_table(config: RunConfig, store: str | None = None) -> Table:
    """Return the table a run trains on, at its snapshot if it names one."""
    from featurestore.store import FeatureStore

    opened = FeatureStore.open(store or config.data.store, memory_limit=config.data.memory_limit)
    if config.data.snapshot is not None:
        opened = opened.checkout(config.data.snapshot)
    return opened.table(config.data.table)


def open_dataset(config: RunConfig, table: Table) -> Dataset:
    """Return the dataset a run trains on; nothing is read yet.

    Raises
    ------
    SchemaError
        If the table lacks a feature, the label, or a column that rows are sampled by.
    NotReadyError
        If values are missing or stale.
    """
    schema: TableSchema = table.schema
    _check_sampled(config, schema)
    dataset = table.dataset(
        features=list(config.data.features),
        label=config.data.label,
        weight=config.data.weight,
        group=config.data.group,
        base_margin=config.data.base_margin,
        where=_rows(config),
        split=config.split.split(),
        pipeline=pipeline_of(
            config.pipeline,
            schema,
            config.data.features,
            stored=table.cardinalities(*config.data.features),
        ),
    )
    if not config.split.folded:
        return dataset
    if config.split.fold is None:
        raise InvalidInputError(
            f"[split] kind = {config.split.kind!r} has {len(dataset.folds)} folds, and a run trains on one",
            "set fold = 0 or another, or train on all with python -m training compare",
        )
    return dataset.folds[config.split.fold]


def _check_sampled(config: RunConfig, schema: TableSchema) -> None:
    """Refuse to sample by a column that there is not."""
    sample = config.loader.sampled()
    by = () if sample is None or sample.by is None else sample.by
    for name in (by,) if isinstance(by, str) else by:
        try:
            schema[name]
        except MissingColumnError as error:
            raise SchemaError(
                f"[loader] sample = {config.loader.sample}: {error.problem}", error.remedy
            ) from error


def _rows(config: RunConfig) -> Any:
    """Return the condition that rows must meet: ``where``, and a label if unlabelled ones go."""
    import narwhals as nw

    chosen = None if config.data.where is None else import_object(config.data.where)
    if not config.data.drop_unlabelled:
        return chosen
    labelled = ~nw.col(config.data.label).is_null()
    return labelled if chosen is None else chosen & labelled


def pipeline_of(
    config: PipelineConfig,
    schema: TableSchema,
    features: Sequence[str],
    stored: Collection[str] = (),
) -> Pipeline:
    """Return the pipeline that ``[pipeline]`` describes: categories, then imputing, then scaling.

    ``true`` means every feature that fits: strings are categorified; numbers are imputed and
    standardized. Features that are stored as codes of a vocabulary (``stored``) are left alone.

    Raises
    ------
    DefinitionError
        If a step names a column that is not a feature, or a column is to be both a category and a
        number.
    """
    from featurestore.transforms.categories import Categorify
    from featurestore.transforms.impute import Impute
    from featurestore.transforms.pipeline import Pipeline
    from featurestore.transforms.standardize import Standardize

    columns = [schema[name] for name in features]
    strings = tuple(one.name for one in columns if one.is_string)
    categories = _chosen("categorify", config.categorify, strings, features)
    codes = {*categories, *stored}
    numbers = tuple(one.name for one in columns if one.is_numeric and one.name not in codes)
    imputed = _chosen("impute", config.impute, numbers, features)
    scaled = _chosen("standardize", config.standardize, numbers, features)
    both = sorted(codes & {*imputed, *scaled})
    if both:
        raise DefinitionError(
            f"[pipeline] makes {both} both categories and numbers",
            "name each column in one of them",
        )
    steps: list[Any] = []
    if categories:
        steps.append(Categorify(categories))
    if imputed:
        steps.append(Impute(imputed))
    if scaled:
        steps.append(Standardize(scaled))
    return Pipeline(*steps)


def _chosen(
    step: str, wanted: bool | tuple[str, ...], fitting: tuple[str, ...], features: Sequence[str]
) -> tuple[str, ...]:
    if isinstance(wanted, bool):
        return fitting if wanted else ()
    unknown = [name for name in wanted if name not in features]
    if unknown:
        raise DefinitionError(
            f"[pipeline] {step} names {unknown}, which are not among the features",
            f"features are {list(features)}",
        )
    return wanted


def task_of(config: RunConfig, schema: DatasetSchema) -> str:
    """Return the task: as configured, else by the label's type.

    With a group it is a ranking; else a boolean is binary, a float regression; an integer could be
    either and must be said.

    Raises
    ------
    InvalidInputError
    """
    if config.model.task is not None:
        return config.model.task
    if config.data.group is not None:
        return "ranking"
    dtype = schema.label.dtype if schema.label is not None else "none"
    if dtype in ("bool", "uint8"):
        return "binary"
    if dtype.startswith("float"):
        return "regression"
    raise InvalidInputError(
        f"label {config.data.label!r} is of type {dtype}: it could be a class or a number",
        "set task = 'binary', 'regression' or 'multiclass' under [model]",
    )


def import_object(reference: str) -> Any:
    """Return the Python object that ``module:name`` names.

    Raises
    ------
    InvalidInputError
        If there is no such module or name.
    """
    module, name = reference.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"{reference!r} cannot be imported: {error}",
            "write it as 'module:name' and start in the directory that holds the module",
        ) from error
