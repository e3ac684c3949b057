"""A run as a value: what ``train.toml`` says, checked, with every default filled in.

    [data]      store table features label where snapshot memory_limit weight group base_margin
    [split]     kind = "time": valid test embargo     kind = "hash": valid test by seed; others and their
                keys: see ``training.split_config``
    [pipeline]  impute standardize categorify         true (all that fit), false, or column names
    [model]     kind = "tabular" | "xgboost" | "module:function"    task classes    [model.params]
    [loader]    sample pack hold dtype cache_limit block_rows window_blocks: see ``training.loader_config``
    [train]     epochs batch_size learning_rate seed shuffle drop_last early_stopping cache
                checkpoint_steps checkpoint_keep class_weight mixed_precision steps_per_execution
                tensorboard

Unknown keys are refused with the closest known one. ``where`` and a model of your own name a Python
object as ``module:name``; importing it runs that module, nothing else here runs code.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from featurestore.errors import FeatureStoreError, InvalidInputError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.units import parse_bytes
from training.config_checks import (
    CLASS_WEIGHT,
    COLUMNS,
    EXECUTION,
    FLAG,
    REFERENCE,
    SELECTION,
    TEXT,
    TEXT_OR_WHOLE,
    choice,
    is_number,
    key_of,
    optional,
    refuse_unknown,
    section_of,
    whole,
)
from training.loader_config import LoaderConfig, check_loader
from training.metrics import TASKS
from training.split_config import SplitConfig, check_split


@dataclass(frozen=True, slots=True)
class DataConfig:
    """``[data]``: what is learnt from."""

    store: str = key_of(TEXT)
    table: str = key_of(TEXT)
    features: tuple[str, ...] = key_of(COLUMNS)
    label: str = key_of(TEXT)
    where: str | None = key_of(optional(REFERENCE), default=None)
    drop_unlabelled: bool = key_of(FLAG, default=False)
    snapshot: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    memory_limit: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    weight: str | None = key_of(optional(TEXT), default=None)
    group: str | None = key_of(optional(TEXT), default=None)
    base_margin: str | None = key_of(optional(TEXT), default=None)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that predictions are made of: the features, and the base margin if any."""
        return self.features if self.base_margin is None else (*self.features, self.base_margin)


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """``[pipeline]``: what is learnt on the training part and applied to all."""

    impute: bool | tuple[str, ...] = key_of(SELECTION, default=True)
    standardize: bool | tuple[str, ...] = key_of(SELECTION, default=True)
    categorify: bool | tuple[str, ...] = key_of(SELECTION, default=True)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``[model]``: what is trained."""

    kind: str = key_of(
        (
            lambda value: value in ("tabular", "xgboost") or REFERENCE[0](value),
            "'tabular', 'xgboost' or a function as 'module:name'",
        ),
        default="tabular",
    )
    task: str | None = key_of(optional(choice(*TASKS)), default=None)
    classes: int | None = key_of(optional(whole(2)), default=None)
    params: Mapping[str, Any] = key_of(
        (lambda value: isinstance(value, Mapping), "a table"), default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """``[train]``: how. ``epochs`` are boosting rounds for XGBoost; ``early_stopping`` is how many
    epochs without a better validation loss are waited for, 0 for ever."""

    epochs: int = key_of(whole(1), default=5)
    batch_size: int = key_of(whole(1), default=4096)
    learning_rate: float | None = key_of(
        optional((lambda value: is_number(value) and value > 0, "a number above 0")), default=None
    )
    seed: int = key_of(whole(0), default=0)
    shuffle: bool | str = key_of(choice(True, False, "global", "stripes"), default=True)
    drop_last: bool = key_of(FLAG, default=False)
    early_stopping: int = key_of(whole(0), default=0)
    cache: str | None = key_of(optional(TEXT), default=None)
    checkpoint_steps: int = key_of(whole(0), default=0)
    checkpoint_keep: int = key_of(whole(1), default=2)
    class_weight: str | Mapping[str, float] | None = key_of(optional(CLASS_WEIGHT), default=None)
    mixed_precision: str | None = key_of(optional(choice("bfloat16", "float16")), default=None)
    steps_per_execution: int | str = key_of(EXECUTION, default=1)
    tensorboard: str | None = key_of(optional(TEXT), default=None)


_KERAS_ONLY: Final = (
    "class_weight", "drop_last", "mixed_precision", "shuffle", "steps_per_execution", "tensorboard",
)  # fmt: skip
"""XGBoost trains on all rows, in the order of the table."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run.

    Examples
    --------
    >>> config = RunConfig.from_mapping({
    ...     "data": {"store": "golden", "table": "t", "features": ["x"], "label": "y"},
    ...     "split": {"kind": "time", "valid": "2013-10-01"},
    ... })
    >>> config.train.batch_size
    4096
    """

    data: DataConfig
    split: SplitConfig
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Read ``train.toml``; a relative ``store``, ``cache`` or ``tensorboard`` is relative to the file.

        Raises
        ------
        NotFoundError
            If there is no such file.
        InvalidInputError
            Naming the file, the key, its value, what it may be, and the remedy.
        """
        path = Path(path)
        content = read_toml(path, "train.toml")
        return relative_to(path, cls.from_mapping(content, str(path)))

    @classmethod
    def from_mapping(
        cls, content: Mapping[str, Any], origin: str = "the configuration"
    ) -> RunConfig:
        """Return the run that nested tables describe; ``origin`` is named in errors."""
        refuse_unknown(content, _SECTIONS, origin, "section")
        read = {
            name: section_of(section, content.get(name, {}), origin, name)
            for name, section in _SECTIONS.items()
        }
        config = cls(**read)
        _check_together(config, origin)
        return config

    def to_json(self) -> dict[str, Json]:
        """Return the resolved configuration, defaults included; ``from_mapping`` reads it back."""
        out: dict[str, Json] = {}
        for name in (one.name for one in fields(self)):
            section = getattr(self, name)
            out[name] = _resolved({one.name: getattr(section, one.name) for one in fields(section)})
        return out

    @staticmethod
    def defaults() -> dict[str, dict[str, Json]]:
        """Return the keys that need not be given, per section, with their values as of :meth:`to_json`."""
        return {
            name: _resolved(
                {one.name: one.default for one in fields(section) if one.default is not MISSING}
            )
            for name, section in _SECTIONS.items()
        }


_SECTIONS: Final[dict[str, type[Any]]] = {
    "data": DataConfig, "split": SplitConfig, "pipeline": PipelineConfig,
    "model": ModelConfig, "loader": LoaderConfig, "train": TrainConfig,
}  # fmt: skip


def _resolved(values: Mapping[str, Any]) -> dict[str, Json]:
    """Return what a section says as plain JSON; what it does not say is left out."""
    said = {key: value for key, value in values.items() if value is not None}
    found: dict[str, Json] = json.loads(json.dumps(said, default=_plain))
    return found


def _plain(value: Any) -> Any:
    return value.isoformat()


def _check_together(config: RunConfig, origin: str) -> None:
    """Check what no key says alone."""
    data = config.data
    check_split(config.split, origin)
    if data.label in data.features:
        raise InvalidInputError(
            f"{origin} [data]: label = {data.label!r} is also among the features",
            "a model that sees its label learns nothing else; remove it from features",
        )
    _check_targets(config, origin)
    check_loader(config, origin)
    if config.model.task == "multiclass" and config.model.classes is None:
        raise InvalidInputError(
            f"{origin} [model]: task = 'multiclass' does not say how many classes there are",
            "set classes",
        )
    changed = [
        one for one in _KERAS_ONLY if getattr(config.train, one) != getattr(TrainConfig(), one)
    ]
    if config.model.kind == "xgboost" and changed:
        raise InvalidInputError(
            f"{origin} [train]: {changed} are of Keras models, and the model's kind is 'xgboost'",
            "leave them out; XGBoost's own parameters are [model.params], as scale_pos_weight",
        )
    if data.memory_limit is not None:
        try:
            parse_bytes(data.memory_limit)
        except FeatureStoreError as error:
            raise InvalidInputError(
                f"{origin} [data]: memory_limit: {error.problem}", error.remedy
            ) from error


def _check_targets(config: RunConfig, origin: str) -> None:
    """Check what only some models are told."""
    data, model = config.data, config.model
    for name in ("group", "base_margin"):
        value = getattr(data, name)
        if value is not None and model.kind != "xgboost":
            raise InvalidInputError(
                f"{origin} [data]: {name} = {value!r} is for XGBoost, and the model's kind is "
                f"{model.kind!r}",
                "leave it out, or set kind = 'xgboost'",
            )
    if (data.group is not None) != (model.task == "ranking") and not (
        data.group is not None and model.task is None
    ):
        raise InvalidInputError(
            f"{origin}: [data] group = {data.group!r} and [model] task = {model.task!r} do not fit",
            "a ranking has both: the column of queries, and task = 'ranking' (or no task)",
        )


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Return what a configuration file says; ``kind`` is what it is usually called.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", f"give the path of a {kind}") from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not TOML: {error}", "correct that line") from error


def relative_to(path: Path, config: RunConfig) -> RunConfig:
    """Return a configuration whose paths are relative to the file it was read from."""
    data, train = config.data, config.train
    data = replace(data, store=_beside(path, data.store))
    if train.cache is not None:
        train = replace(train, cache=_beside(path, train.cache))
    if train.tensorboard is not None:
        train = replace(train, tensorboard=_beside(path, train.tensorboard))
    return replace(config, data=data, train=train)


def _beside(file: Path, value: str) -> str:
    if "://" in value:
        return value
    return str((file.parent / Path(value).expanduser()).resolve())
