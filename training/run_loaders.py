"""From a run's configuration to its loaders: one per part, of which training alone shuffles or samples.

Always true: all loaders of a run keep their rows in one way. What is judged is each row of a part once,
whatever training makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from featurestore.dataset.batch import Batch, DatasetPart
from featurestore.errors import InvalidInputError
from training.config import RunConfig
from training.loading.loader import Loader
from training.loading.memory import Projection, Term, row_bytes

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset

TRAIN: Final = "train"


def loaders_of(
    config: RunConfig, dataset: Dataset, window_blocks: int | None = None
) -> dict[str, Loader]:
    """Return a loader per part.

    Parameters
    ----------
    config : RunConfig
    dataset : Dataset
    window_blocks : int, optional
        Of the order that a run began with; as configured if not given.

    Raises
    ------
    InvalidInputError
        If a part has no rows, or training no batch.
    MemoryLimitError
        If all rows are to be held in memory and do not fit.
    """
    settings, chosen = config.train, config.loader
    common: dict[str, Any] = {
        "cache": settings.cache,
        "memory_limit": config.data.memory_limit,
        "cache_limit": chosen.cache_limit,
        "pack": chosen.pack,
        "hold": chosen.hold,
        "dtype": chosen.dtype,
    }
    parts = parts_of(config, dataset)
    order: dict[str, Any] = {
        "seed": settings.seed,
        "last": "drop" if settings.drop_last else "keep",
    }
    sample = chosen.sampled()
    if sample is not None:
        order["sample"] = sample.sampling()
    elif config.model.kind != "xgboost":  # which learns in table order
        order["shuffle"] = settings.shuffle
    if chosen.block_rows is not None:
        order["block_rows"] = chosen.block_rows
    order["window_blocks"] = chosen.window_blocks if window_blocks is None else window_blocks
    loaders = {
        name: Loader(part, settings.batch_size, **common, **(order if name == TRAIN else {}))
        for name, part in parts.items()
    }
    train = loaders[TRAIN]
    if not len(train):
        raise InvalidInputError(
            f"{train.rows} training rows do not fill a batch of {settings.batch_size}",
            "use a smaller batch_size, or drop_last = false",
        )
    for one in held_together(loaders) if chosen.hold else ():
        one.require()
    return loaders


def parts_of(config: RunConfig, dataset: Dataset) -> dict[str, DatasetPart]:
    """Return the parts that a run trains on and is judged by.

    Raises
    ------
    InvalidInputError
        If one has no rows.
    """
    parts: dict[str, DatasetPart] = {TRAIN: dataset.train, "valid": dataset.valid}
    if config.split.tested:
        parts["test"] = dataset.test
    for name, part in parts.items():
        if part.rows == 0:
            raise InvalidInputError(
                f"the {name} part has no rows (split {config.to_json()['split']})",
                "move the boundaries of [split] to where the table has rows",
            )
    return parts


def held_together(loaders: Mapping[str, Loader]) -> list[Projection]:
    """Return what each loader is about to do, beside the rows that the others hold in memory."""
    found = []
    for name, loader in loaders.items():
        others = held_rows({key: one for key, one in loaders.items() if key != name})
        found += [
            replace(
                one,
                activity=f"{one.activity}, of the {name} part",
                terms=(*one.terms, *others),
                remedy="leave hold out of [loader]: packs lie on a disk",
            )
            for one in loader.memory().activities
        ]
    return found


def held_rows(loaders: Mapping[str, Loader]) -> tuple[Term, ...]:
    """Return what the rows of parts take in memory."""
    return tuple(
        Term(
            f"all {one.part.rows} rows of the {name} part, held in memory",
            one.part.rows * row_bytes(one.schema),
        )
        for name, one in loaders.items()
    )


def once(loaders: Mapping[str, Loader], *, kept: bool) -> dict[str, Loader]:
    """Return loaders that :func:`each_row_once` takes; without rows that are kept, others of the same parts.

    To be made before anything is trained: a new loader counts what the process holds by then.
    """
    return {name: one if kept else one.in_table_order() for name, one in loaders.items()}


def each_row_once(loader: Loader, batch_rows: int, *, kept: bool) -> Iterator[Batch]:
    """Yield the rows of a loader's part, each once, as they lie where they are kept, else in table order."""
    if not kept:
        loader.set_epoch(0)
        yield from loader
        return
    samples, rows = loader.samples, loader.part.rows
    for start in range(0, rows, batch_rows):
        yield samples.read(start, min(start + batch_rows, rows))
