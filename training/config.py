"""A run as a value: what ``train.toml`` says, checked, with every default filled in.

    [data]      store table features label where snapshot memory_limit
    [split]     kind = "time": valid test embargo     kind = "hash": valid test by seed
    [pipeline]  impute standardize categorify         true (all that fit), false, or column names
    [model]     kind = "tabular" | "xgboost" | "module:function"    task classes    [model.params]
    [train]     epochs batch_size learning_rate seed shuffle drop_last early_stopping cache

Unknown keys are refused with the closest known one. ``where`` and a model of your own name a Python
object as ``module:name``; importing it runs that module, nothing else here runs code.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from featurestore.errors import FeatureStoreError, InvalidInputError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.units import parse_bytes
from training.metrics import TASKS

Check = tuple[Callable[[Any], bool], str]
_S = TypeVar("_S")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(low: int) -> Check:
    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return check, f"an integer from {low} on"


def _choice(*values: Any) -> Check:
    return lambda value: value in values and type(value) in map(type, values), f"one of {values}"


def _optional(check: Check) -> Check:
    return lambda value: value is None or check[0](value), check[1]


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_text, value))


_TEXT: Final[Check] = (_is_text, "a non-empty string")
_TEXT_OR_WHOLE: Final[Check] = (
    lambda value: _is_text(value) or _whole(0)[0](value),
    "a string or an integer",
)
_FLAG: Final[Check] = (lambda value: isinstance(value, bool), "true or false")
_COLUMNS: Final[Check] = (_names, "a list of column names, at least one")
_SELECTION: Final[Check] = (
    lambda value: isinstance(value, bool) or _names(value),
    "true, false or a list of column names",
)
_REFERENCE: Final[Check] = (
    lambda value: _is_text(value) and value.count(":") == 1 and all(value.split(":")),
    "a Python object as 'module:name'",
)
_BOUNDARY: Final[Check] = (
    lambda value: _is_text(value) or _is_number(value) or hasattr(value, "isoformat"),
    "a date, an integer time, or for kind='hash' a share in [0, 1)",
)


def _key(check: Check, **default: Any) -> Any:
    """Return a dataclass field that carries its check."""
    return field(metadata={"check": check}, **default)


@dataclass(frozen=True, slots=True)
class DataConfig:
    """``[data]``: what is learnt from."""

    store: str = _key(_TEXT)
    table: str = _key(_TEXT)
    features: tuple[str, ...] = _key(_COLUMNS)
    label: str = _key(_TEXT)
    where: str | None = _key(_optional(_REFERENCE), default=None)
    drop_unlabelled: bool = _key(_FLAG, default=False)
    snapshot: str | int | None = _key(_optional(_TEXT_OR_WHOLE), default=None)
    memory_limit: str | int | None = _key(_optional(_TEXT_OR_WHOLE), default=None)


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """``[split]``: which rows train, validate and test."""

    kind: str = _key(_choice("time", "hash"))
    valid: Any = _key(_BOUNDARY)  # noqa: RUF009 - it returns a dataclass field
    test: Any = _key(_optional(_BOUNDARY), default=None)  # noqa: RUF009
    embargo: str | int | None = _key(_optional(_TEXT_OR_WHOLE), default=None)
    by: tuple[str, ...] | None = _key(_optional(_COLUMNS), default=None)
    seed: int = _key(_whole(0), default=0)


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """``[pipeline]``: what is learnt on the training part and applied to all."""

    impute: bool | tuple[str, ...] = _key(_SELECTION, default=True)
    standardize: bool | tuple[str, ...] = _key(_SELECTION, default=True)
    categorify: bool | tuple[str, ...] = _key(_SELECTION, default=True)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``[model]``: what is trained."""

    kind: str = _key(
        (
            lambda value: value in ("tabular", "xgboost") or _REFERENCE[0](value),
            "'tabular', 'xgboost' or a function as 'module:name'",
        ),
        default="tabular",
    )
    task: str | None = _key(_optional(_choice(*TASKS)), default=None)
    classes: int | None = _key(_optional(_whole(2)), default=None)
    params: Mapping[str, Any] = _key(
        (lambda value: isinstance(value, Mapping), "a table"), default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """``[train]``: how. ``epochs`` are boosting rounds for XGBoost; ``early_stopping`` is how many
    epochs without a better validation loss are waited for, 0 for ever."""

    epochs: int = _key(_whole(1), default=5)
    batch_size: int = _key(_whole(1), default=4096)
    learning_rate: float | None = _key(
        _optional((lambda value: _is_number(value) and value > 0, "a number above 0")), default=None
    )
    seed: int = _key(_whole(0), default=0)
    shuffle: bool | str = _key(_choice(True, False, "global"), default=True)
    drop_last: bool = _key(_FLAG, default=False)
    early_stopping: int = _key(_whole(0), default=0)
    cache: str | None = _key(_optional(_TEXT), default=None)


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
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Read ``train.toml``; a relative ``store`` or ``cache`` is relative to the file.

        Raises
        ------
        NotFoundError
            If there is no such file.
        InvalidInputError
            Naming the file, the key, its value, what it may be, and the remedy.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no file {path}", "give the path of a train.toml"
            ) from None
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path} is not TOML: {error}", "correct that line") from error
        config = cls.from_mapping(content, str(path))
        data, train = config.data, config.train
        data = replace(data, store=_beside(path, data.store))
        if train.cache is not None:
            train = replace(train, cache=_beside(path, train.cache))
        return replace(config, data=data, train=train)

    @classmethod
    def from_mapping(
        cls, content: Mapping[str, Any], origin: str = "the configuration"
    ) -> RunConfig:
        """Return the run that nested tables describe; ``origin`` is named in errors."""
        sections: dict[str, type[Any]] = {
            "data": DataConfig, "split": SplitConfig, "pipeline": PipelineConfig,
            "model": ModelConfig, "train": TrainConfig,
        }  # fmt: skip
        _refuse_unknown(content, sections, origin, "section")
        read = {
            name: _section(section, content.get(name, {}), origin, name)
            for name, section in sections.items()
        }
        config = cls(**read)
        _check_together(config, origin)
        return config

    def to_json(self) -> dict[str, Json]:
        """Return the resolved configuration, defaults included; ``from_mapping`` reads it back."""
        out: dict[str, Json] = {}
        for name in (one.name for one in fields(self)):
            section = getattr(self, name)
            values = {one.name: getattr(section, one.name) for one in fields(section)}
            out[name] = json.loads(
                json.dumps({k: v for k, v in values.items() if v is not None}, default=_plain)
            )
        return out


def _plain(value: Any) -> Any:
    return value.isoformat()


def _section(section: type[_S], values: Any, origin: str, name: str) -> _S:
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"{origin}: {name} is {values!r}", f"make it a table: [{name}]")
    known = {one.name: one for one in fields(section)}  # type: ignore[arg-type]
    _refuse_unknown(values, known, f"{origin} [{name}]", "key")
    found = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    for key, value in found.items():
        check, says = known[key].metadata["check"]
        if value is None or not check(value):
            raise InvalidInputError(
                f"{origin} [{name}]: {key} = {values[key]!r} is not allowed", f"give {says}"
            )
    try:
        return section(**found)
    except TypeError as error:
        missing = [key for key in _required(section) if key not in found]
        raise InvalidInputError(
            f"{origin} [{name}]: {missing} must be given and is not" if missing else str(error),
            "; ".join(f"{key} is {known[key].metadata['check'][1]}" for key in missing),
        ) from None


def _required(section: type[Any]) -> list[str]:
    from dataclasses import MISSING

    return [
        one.name
        for one in fields(section)
        if one.default is MISSING and one.default_factory is MISSING
    ]


def _refuse_unknown(
    values: Mapping[str, Any], known: Mapping[str, Any], where: str, what: str
) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            shown = f"did you mean {close[0]!r}? " if close else ""
            raise InvalidInputError(
                f"{where} has an unknown {what} {key!r} = {values[key]!r}",
                f"{shown}known ones are {list(known)}",
            )


def _check_together(config: RunConfig, origin: str) -> None:
    """Check what no key says alone."""
    split, data = config.split, config.data
    if split.kind == "hash":
        shares = [one for one in (split.valid, split.test) if one is not None]
        if any(not _is_number(one) or not 0 <= one < 1 for one in shares):
            raise InvalidInputError(
                f"{origin} [split]: valid = {split.valid!r} and test = {split.test!r} are no shares",
                "with kind = 'hash' give numbers in [0, 1)",
            )
        if split.embargo is not None:
            raise InvalidInputError(
                f"{origin} [split]: embargo = {split.embargo!r} needs times",
                "leave it out, or use kind = 'time'",
            )
    elif split.by is not None:
        raise InvalidInputError(
            f"{origin} [split]: by = {list(split.by)} deals entities by hash",
            "leave it out, or use kind = 'hash'",
        )
    if data.label in data.features:
        raise InvalidInputError(
            f"{origin} [data]: label = {data.label!r} is also among the features",
            "a model that sees its label learns nothing else; remove it from features",
        )
    if config.model.task == "multiclass" and config.model.classes is None:
        raise InvalidInputError(
            f"{origin} [model]: task = 'multiclass' does not say how many classes there are",
            "set classes",
        )
    if data.memory_limit is not None:
        try:
            parse_bytes(data.memory_limit)
        except FeatureStoreError as error:
            raise InvalidInputError(
                f"{origin} [data]: memory_limit: {error.problem}", error.remedy
            ) from error


def _beside(file: Path, value: str) -> str:
    if "://" in value:
        return value
    return str((file.parent / Path(value).expanduser()).resolve())
