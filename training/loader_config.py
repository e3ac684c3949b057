"""``[loader]`` of a run: the arguments of ``training.Loader`` that say which rows come, and from where.

    [loader]    sample = { kind = "balanced" | "weighted" | "stratified", by, rows }
                pack hold dtype cache_limit block_rows window_blocks

Always true: what a key may not be, alone or beside the others, is refused before anything is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from featurestore.errors import FeatureStoreError, InvalidInputError
from featurestore.units import parse_bytes
from training.config_checks import (
    COLUMNS,
    FLAG,
    TEXT_OR_WHOLE,
    choice,
    is_text,
    key_of,
    optional,
    section_of,
    whole,
)

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.loading.sampling import Sampling

_SHUFFLES: Final = ("block_rows", "window_blocks")
"""Keys of an order, which XGBoost has not: it learns in that of the table."""


@dataclass(frozen=True, slots=True)
class SampleConfig:
    """``[loader] sample``: how often rows come, or what every batch has of each class."""

    kind: str = key_of(choice("balanced", "weighted", "stratified"))
    by: str | tuple[str, ...] | None = key_of(
        optional(
            (lambda value: is_text(value) or COLUMNS[0](value), "a column, or a list of them")
        ),
        default=None,
    )
    rows: int | None = key_of(optional(whole(1)), default=None)

    def sampling(self) -> Sampling:
        """Return what a loader is given."""
        from training.loading.sampling import Balanced, Stratified, Weighted

        if self.kind == "balanced":
            return Balanced(self.by, self.rows)
        if self.kind == "stratified":
            return Stratified(self.by)
        assert isinstance(self.by, str)
        return Weighted(self.by, self.rows)


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """``[loader]``: how rows are fed, beside ``batch_size``, ``shuffle`` and the like of ``[train]``."""

    sample: Mapping[str, Any] | None = key_of(
        optional(
            (
                lambda value: isinstance(value, Mapping),
                "a table such as { kind = 'balanced', by = 'sector' }",
            )
        ),
        default=None,
    )
    pack: bool = key_of(FLAG, default=True)
    hold: str | None = key_of(
        optional(
            (
                lambda value: value == "memory",
                "'memory', or leave it out ('device' is for loops of PyTorch and JAX)",
            )
        ),
        default=None,
    )
    dtype: str = key_of(choice("float32", "float16"), default="float32")
    cache_limit: str | int | None = key_of(optional(TEXT_OR_WHOLE), default=None)
    block_rows: int | None = key_of(optional(whole(1)), default=None)
    window_blocks: int | None = key_of(optional(whole(1)), default=None)

    @property
    def keeps_rows(self) -> bool:
        """Whether rows are read from the table once, and not in every epoch."""
        return self.pack or self.hold is not None

    def sampled(self, origin: str = "the configuration") -> SampleConfig | None:
        """Return how rows are sampled; None if each comes once.

        Raises
        ------
        InvalidInputError
        """
        if self.sample is None:
            return None
        found = section_of(SampleConfig, self.sample, origin, "loader.sample")
        where = f"{origin} [loader.sample]: kind = {found.kind!r}"
        if found.kind == "weighted" and not isinstance(found.by, str):
            raise InvalidInputError(
                f"{where} with by = {found.by!r} does not say how often rows come",
                "set by to one numeric column, 0 or more in every row",
            )
        if found.kind == "stratified" and found.rows is not None:
            raise InvalidInputError(
                f"{where} with rows = {found.rows}: each row comes once in an epoch",
                "leave rows out, or use kind = 'balanced'",
            )
        return found


def check_loader(config: RunConfig, origin: str) -> None:
    """Check what ``[loader]`` says beside the other sections.

    Raises
    ------
    InvalidInputError
    """
    loader, shuffle = config.loader, config.train.shuffle
    sample = loader.sampled(origin)
    where = f"{origin} [loader]"
    if loader.cache_limit is not None:
        try:
            parse_bytes(loader.cache_limit)
        except FeatureStoreError as error:
            raise InvalidInputError(
                f"{where}: cache_limit: {error.problem}", error.remedy
            ) from error
    if config.model.kind == "xgboost":
        _check_xgboost(loader, where)
    if sample is not None and shuffle is not True:
        raise InvalidInputError(
            f"{where}: sample = {loader.sample} and [train] shuffle = {shuffle!r} are two orders",
            "leave shuffle out: what is sampled comes in random order",
        )
    if not loader.keeps_rows and (sample is not None or shuffle == "global"):
        several = "shuffle = 'global'" if sample is None else f"sample = {loader.sample}"
        raise InvalidInputError(
            f"{where}: pack = false reads the table in every epoch, and {several} has rows of all of it "
            "in every batch",
            "leave pack out, or set hold = 'memory' if all rows fit the memory limit",
        )
    if sample is not None and sample.kind == "balanced" and config.train.class_weight == "balanced":
        by = (config.data.label,) if sample.by is None else sample.by
        if by in (config.data.label, (config.data.label,)):
            raise InvalidInputError(
                f"{where}: sample = {loader.sample} and [train] class_weight = 'balanced' both make up "
                "for rare classes, which would count twice",
                "leave one of them out",
            )


def _check_xgboost(loader: LoaderConfig, where: str) -> None:
    if loader.sample is not None:
        raise InvalidInputError(
            f"{where}: sample = {loader.sample}: XGBoost takes each row as often as it is there, and the "
            "model's kind is 'xgboost'",
            "leave it out; use weight in [data], or scale_pos_weight in [model.params]",
        )
    if not loader.keeps_rows:
        raise InvalidInputError(
            f"{where}: pack = false reads the table each time, and XGBoost passes over the rows several "
            "times",
            "leave pack out, or set hold = 'memory' if all rows fit the memory limit",
        )
    changed = [one for one in _SHUFFLES if getattr(loader, one) is not None]
    if changed:
        raise InvalidInputError(
            f"{where}: {changed} are of an order, and XGBoost learns in that of the table",
            "leave them out",
        )
