"""A comparison as a value: what ``compare.toml`` says, checked.

As ``train.toml``, of which it has all sections: ``[data] features`` are those of the base, ``[split]`` may have
several folds. Besides:

    [compare]    seeds = [0, 1]   metric   importance leakage leak_rows
    [variants]   "with news" = ["news_mean_7d", "news_count_7d"]      features beside those of the base
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json
from training.comparison.scores import CHOICES
from training.config import RunConfig, read_toml, relative_to
from training.config_checks import FLAG, TEXT, is_text, key_of, optional, section_of, whole

BASE: Final = "base"
_SEEDS: Final = (
    lambda value: (
        isinstance(value, tuple)
        and bool(value)
        and all(whole(0)[0](one) for one in value)
        and len(set(value)) == len(value)
    ),
    "a list of different whole numbers from 0 on, at least one",
)
_OWN: Final = ("compare", "variants")


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """``[compare]``: how often, and what is looked at besides the metric."""

    seeds: tuple[int, ...] = key_of(_SEEDS, default=(0,))
    metric: str | None = key_of(optional(TEXT), default=None)
    importance: bool = key_of(FLAG, default=True)
    leakage: bool = key_of(FLAG, default=True)
    leak_rows: int = key_of(whole(1), default=50)


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """One comparison.

    Parameters
    ----------
    run : RunConfig
        Of the base; a split of several folds names none.
    variants : mapping of str to tuple of str
        The features that each has beside the base's; none makes a variant that is equal to it.
    settings : CompareSettings

    Examples
    --------
    >>> config = CompareConfig.from_mapping({
    ...     "data": {"store": "golden", "table": "t", "features": ["x"], "label": "y"},
    ...     "split": {"kind": "walk_forward", "first": 100, "n_splits": 3, "valid": 20},
    ...     "variants": {"with z": ["z"]},
    ... })
    >>> config.names, config.features("with z")
    (('base', 'with z'), ('x', 'z'))
    """

    run: RunConfig
    variants: Mapping[str, tuple[str, ...]]
    settings: CompareSettings = field(default_factory=CompareSettings)

    @classmethod
    def from_toml(cls, path: str | Path) -> CompareConfig:
        """Read ``compare.toml``; relative paths in it are relative to the file.

        Raises
        ------
        NotFoundError
            If there is no such file.
        InvalidInputError
            Naming the file, the key, its value, what it may be, and the remedy.
        """
        path = Path(path)
        content = read_toml(path, "compare.toml")
        config = cls.from_mapping(content, str(path))
        return replace(config, run=relative_to(path, config.run))

    @classmethod
    def from_mapping(
        cls, content: Mapping[str, Any], origin: str = "the configuration"
    ) -> CompareConfig:
        """Return the comparison that nested tables describe; ``origin`` is named in errors."""
        own = {name: content[name] for name in _OWN if name in content}
        run = RunConfig.from_mapping(
            {name: one for name, one in content.items() if name not in _OWN}, origin
        )
        settings = section_of(CompareSettings, own.get("compare", {}), origin, "compare")
        variants = _variants(own.get("variants", {}), run, origin)
        config = cls(run, variants, settings)
        _check(config, origin)
        return config

    def to_json(self) -> dict[str, Json]:
        """Return the resolved configuration; ``from_mapping`` reads it back."""
        settings = self.settings
        compare: dict[str, Json] = {
            "seeds": list(settings.seeds),
            "importance": settings.importance,
            "leakage": settings.leakage,
            "leak_rows": settings.leak_rows,
        }
        if settings.metric is not None:
            compare["metric"] = settings.metric
        variants: dict[str, Json] = {name: list(one) for name, one in self.variants.items()}
        return {**self.run.to_json(), "compare": compare, "variants": variants}

    @property
    def names(self) -> tuple[str, ...]:
        """The base, then the variants."""
        return (BASE, *self.variants)

    @property
    def folds(self) -> int:
        return len(self.run.split.split().folds())

    def added(self, name: str) -> tuple[str, ...]:
        """Return the features of a variant that the base lacks."""
        return self.variants.get(name, ())

    def features(self, name: str) -> tuple[str, ...]:
        """Return all features of a variant."""
        return (*self.run.data.features, *self.added(name))

    def metric(self, task: str) -> str:
        """Return what is compared: as configured, or the first of the task.

        Raises
        ------
        InvalidInputError
            If the task has none of that name.
        """
        choices = CHOICES.get(task, ())
        if not choices:
            raise InvalidInputError(
                f"a {task} task cannot be compared", f"tasks that can are {list(CHOICES)}"
            )
        asked = self.settings.metric
        if asked is not None and asked not in choices:
            raise InvalidInputError(
                f"[compare]: metric = {asked!r} is none of a {task} task",
                f"give one of {list(choices)}",
            )
        return asked or choices[0]


def _variants(content: Any, run: RunConfig, origin: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, Mapping) or not content:
        raise InvalidInputError(
            f"{origin} [variants]: {content!r} are no variants",
            'give at least one, like "with news" = ["news_mean_7d"]',
        )
    found = {}
    for name, features in content.items():
        where = f"{origin} [variants]: {name!r}"
        if not is_text(name) or name == BASE or not name.strip() or not name.isprintable():
            raise InvalidInputError(
                f"{where} is no name of a variant", f"give a text other than {BASE!r}"
            )
        if isinstance(features, str | Mapping) or not isinstance(features, Iterable):
            raise InvalidInputError(f"{where} = {features!r}", "give a list of column names")
        listed = tuple(features)
        if not all(map(is_text, listed)):
            raise InvalidInputError(f"{where} = {features!r}", "give a list of column names")
        known = [*run.data.features, run.data.label]
        again = [one for one in listed if one in known or listed.count(one) > 1]
        if again:
            raise InvalidInputError(
                f"{where} names {sorted(set(again))}, which the base has, is the label, or comes twice",
                "name the features that are added, each once",
            )
        found[name] = listed
    return found


def _check(config: CompareConfig, origin: str) -> None:
    """Check what no key says alone."""
    run = config.run
    if run.split.fold is not None:
        raise InvalidInputError(
            f"{origin} [split]: fold = {run.split.fold} is one fold, and a comparison takes all",
            "leave it out",
        )
    if run.train.seed:
        raise InvalidInputError(
            f"{origin} [train]: seed = {run.train.seed} is of one training",
            "give [compare] seeds = [...]",
        )
    if run.train.early_stopping:
        raise InvalidInputError(
            f"{origin} [train]: early_stopping = {run.train.early_stopping} chooses how long to train by the "
            "part that variants are judged by",
            "leave it out: all variants train for epochs",
        )
    if run.train.tensorboard is not None:
        raise InvalidInputError(
            f"{origin} [train]: tensorboard = {run.train.tensorboard!r} is for one training",
            "leave it out",
        )
    if run.model.task is not None:
        config.metric(run.model.task)
