"""``[split]`` of a configuration: which rows train, validate and test.

Each kind is a split of ``featurestore`` and has that one's parameters as keys. Those of several folds are
for comparisons, or for a run of one of them (``fold``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from featurestore.errors import FeatureStoreError, InvalidInputError
from training.config_checks import (
    BOUNDARY,
    COLUMNS,
    TEXT_OR_WHOLE,
    choice,
    is_number,
    key_of,
    optional,
    whole,
)

if TYPE_CHECKING:
    from featurestore.dataset.split import Split

_KEYS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "time": ("TimeSplit", ("valid", "test", "embargo")),
    "hash": ("HashSplit", ("valid", "test", "by", "seed")),
    "walk_forward": (
        "WalkForward", ("first", "n_splits", "valid", "step", "train", "horizon", "embargo"),
    ),
    "purged": ("PurgedKFold", ("start", "stop", "n_splits", "valid_splits", "horizon", "embargo")),
    "hash_folds": ("HashKFold", ("n_splits", "by", "seed")),
}  # fmt: skip
"""The class of each kind, and its parameters."""
_PLAIN: Final = ("time", "hash")


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """``[split]``: which rows train, validate and test."""

    kind: str = key_of(choice(*_KEYS))
    valid: Any = key_of(optional(BOUNDARY), default=None)  # noqa: RUF009 - it returns a dataclass field
    test: Any = key_of(optional(BOUNDARY), default=None)  # noqa: RUF009
    embargo: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    by: tuple[str, ...] | None = key_of(optional(COLUMNS), default=None)
    seed: int = key_of(whole(0), default=0)
    first: Any = key_of(optional(BOUNDARY), default=None)  # noqa: RUF009
    start: Any = key_of(optional(BOUNDARY), default=None)  # noqa: RUF009
    stop: Any = key_of(optional(BOUNDARY), default=None)  # noqa: RUF009
    n_splits: int | None = key_of(optional(whole(1)), default=None)
    valid_splits: int | None = key_of(optional(whole(1)), default=None)
    step: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    train: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    horizon: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    fold: int | None = key_of(optional(whole(0)), default=None)

    @property
    def folded(self) -> bool:
        """Whether it has several folds, each with its own parts."""
        return self.kind not in _PLAIN

    @property
    def tested(self) -> bool:
        """Whether it has a part to test on."""
        return self.test is not None and not (self.kind == "hash" and self.test == 0)

    def split(self) -> Split:
        """Return the split, with all its folds.

        Raises
        ------
        FeatureStoreError
            If a value is not what it should be.
        """
        import featurestore.dataset.folds as folded
        import featurestore.dataset.split as plain

        name, keys = _KEYS[self.kind]
        given = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        if self.kind == "hash" and "test" not in given:
            given["test"] = 0.0
        made: Split = getattr(folded if self.folded else plain, name)(**given)
        return made


def check_split(config: SplitConfig, origin: str) -> None:
    """Refuse keys of another kind, and values that make no split.

    Raises
    ------
    InvalidInputError
    """
    name, keys = _KEYS[config.kind]
    set_ = {
        one.name
        for one in fields(config)
        if one.name != "kind" and getattr(config, one.name) != one.default
    }
    allowed = {*keys, "fold"} if config.folded else {*keys}
    wrong = sorted(set_ - allowed)
    if wrong:
        shown = ", ".join(f"{key} = {getattr(config, key)!r}" for key in wrong)
        raise InvalidInputError(
            f"{origin} [split]: {shown} is not for kind = {config.kind!r}",
            f"leave it out; this kind has {sorted(allowed)}",
        )
    if config.kind == "hash":
        shares = [config.valid, config.test]
        if config.valid is None or any(
            one is not None and (not is_number(one) or not 0 <= one < 1) for one in shares
        ):
            raise InvalidInputError(
                f"{origin} [split]: valid = {config.valid!r} and test = {config.test!r} are no shares",
                "with kind = 'hash' give numbers in [0, 1)",
            )
    try:
        count = len(config.split().folds())
    except TypeError as error:
        raise InvalidInputError(
            f"{origin} [split]: kind = {config.kind!r} needs more than is given: {error}",
            f"it has {sorted(allowed)}, as fs.{name} does",
        ) from error
    except FeatureStoreError as error:
        raise InvalidInputError(f"{origin} [split]: {error.problem}", error.remedy) from error
    if config.fold is not None and config.fold >= count:
        raise InvalidInputError(
            f"{origin} [split]: fold = {config.fold} of {count} folds", f"give 0 to {count - 1}"
        )


def split_config(split: Split) -> dict[str, Any]:
    """Return the ``[split]`` that describes a split.

    Raises
    ------
    InvalidInputError
        If it is of no kind that is known.

    Examples
    --------
    >>> from featurestore.dataset.split import TimeSplit
    >>> split_config(TimeSplit(valid="2024-01-01"))
    {'kind': 'time', 'valid': '2024-01-01T00:00:00'}
    """
    spec: Any = split.spec() if callable(getattr(split, "spec", None)) else {}
    kinds = {name: kind for kind, (name, _) in _KEYS.items()}
    if spec.get("kind") not in kinds:
        raise InvalidInputError(
            f"split={split!r} is no split that a configuration knows",
            f"give one of {[f'fs.{one}' for one in kinds]}",
        )
    given = {key: value for key, value in spec["params"].items() if value is not None}
    return {"kind": kinds[spec["kind"]], **given}
