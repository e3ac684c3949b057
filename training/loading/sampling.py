"""Sampling: how often rows come, where that is not each once per epoch; and what every batch has of each class.

    Loader(data.train, 4096, sample=Balanced())              # all values of the label as often
    Loader(data.train, 4096, sample=Weighted("importance"))  # rows in proportion to a column
    Loader(data.train, 4096, sample=Stratified("sector"))    # each row once, each batch a small part

Always true: what a batch has is a pure function of the seed, the epoch and the step, whatever was drawn
before, on every machine, thread and worker.

The trade-off: see :mod:`training.loading.samplers`, and the indices they draw from, which are made when the
loader is, by reading the column once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurestore.arguments import column_names, text, whole_number
from featurestore.dataset.batch import DatasetPart, HostArray
from featurestore.errors import InvalidInputError
from featurestore.execution.events import step
from training.loading.class_index import CLASS_LIMIT, ClassIndex
from training.loading.memory import Projection, index_terms
from training.loading.mixing import Rows
from training.loading.samplers import BalancedSampler, StratifiedSampler, WeightedSampler
from training.loading.steps import Sampler
from training.loading.weight_index import WeightIndex


@dataclass(frozen=True, slots=True)
class Source:
    """What samplers are made from.

    Parameters
    ----------
    part : DatasetPart
    chosen : int64 array, optional
        The rows of the part that are samples, ascending; all if not given.
    root : Path
        The cache.
    limit, reserved : int
        Bytes: what this process may hold, and what it holds.
    """

    part: DatasetPart
    chosen: Rows | None
    root: Path
    limit: int
    reserved: int

    @property
    def samples(self) -> int:
        return self.part.rows if self.chosen is None else len(self.chosen)

    def classes(self, columns: Sequence[str]) -> ClassIndex:
        """Return the samples by class; raises MemoryLimitError if that does not fit."""
        self._require(min(CLASS_LIMIT, self.samples))
        hashes = self._values(lambda partition: self.part.entities(partition, columns))
        return ClassIndex(hashes, self.root, _named(columns))

    def weights(self, column: str) -> WeightIndex:
        """Return the samples by weight; raises MemoryLimitError if that does not fit."""
        self._require(0)
        numbers = self._values(lambda partition: self.part.numbers(partition, column))
        return WeightIndex(numbers, self.root, _named([column]))

    def _require(self, classes: int) -> None:
        terms = index_terms(self.part.partition_rows, classes)
        remedy = "ingest with a smaller partition_bytes"
        Projection("indexing rows to sample", self.limit, self.reserved, terms, remedy).require()

    def _values(self, read: Callable[[int], HostArray]) -> Iterator[HostArray]:
        """Yield the values of the samples of each partition."""
        base = 0
        with step("index samples (rows)", self.part.rows) as advance:
            for partition, rows in enumerate(self.part.partition_rows):
                values = read(partition)
                if self.chosen is not None:
                    first, last = np.searchsorted(self.chosen, [base, base + rows])
                    values = values[self.chosen[first:last] - base]
                yield values
                del values  # before the next are read
                base += rows
                advance(base)


class Sampling(ABC):
    """How a loader samples; use :class:`Balanced`, :class:`Weighted` or :class:`Stratified`."""

    __slots__ = ()

    @abstractmethod
    def sampler(self, source: Source) -> Sampler:
        """Return what samples the rows of a part; reads the column that it depends on."""


@dataclass(frozen=True, slots=True)
class Balanced(Sampling):
    """Draw every class as often, with replacement: first a class, then one of its rows.

    As PyTorch's ``WeightedRandomSampler`` with one over the size of each row's class as weights, or
    TensorFlow's ``rejection_resample`` to a uniform target, without rejecting anything.

    Parameters
    ----------
    by : str or sequence of str, optional
        The columns of the table whose values are the classes, features or not, of any scalar type; null is
        a class too. The dataset's label if not given.
    rows : int, optional
        Draws of an epoch; as many as the part has rows if not given.

    Raises
    ------
    InvalidInputError

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> part = numbered_part(1000, cardinalities=(3,))
    >>> part.inputs["c0"][:] = np.arange(1000) > 990           # 1% are of class 1
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(part, 500, cache=cache.name, sample=Balanced("c0"))
    >>> [round(float(batch.inputs["c0"].mean()), 1) for batch in loader]
    [0.5, 0.5]
    >>> cache.cleanup()
    """

    by: str | Sequence[str] | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", _checked_columns(self.by))
        _check_rows(self.rows)

    def sampler(self, source: Source) -> Sampler:
        index = source.classes(_class_columns(self.by, source.part))
        return BalancedSampler(index, _draws(self.rows, index.rows))


@dataclass(frozen=True, slots=True)
class Weighted(Sampling):
    """Draw rows in proportion to a column, with replacement; as ``WeightedRandomSampler`` does.

    The column says how often a row comes, not what it counts for in the loss: that is the weight of the
    dataset, which stays what it is.

    Parameters
    ----------
    by : str
        A numeric column of the table, feature or not: finite, 0 or more, in every selected row. A row of 0
        is never drawn.
    rows : int, optional
        Draws of an epoch; as many as the part has rows if not given.

    Raises
    ------
    InvalidInputError

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(numbered_part(100), 500, cache=cache.name, sample=Weighted("x0", rows=500))
    >>> bool(60 < loader[0].inputs["numeric"][:, 0].mean() < 72)  # of row numbers as weights: 66
    True
    >>> cache.cleanup()
    """

    by: str
    rows: int | None = None

    def __post_init__(self) -> None:
        text(self.by, "by")
        _check_rows(self.rows)

    def sampler(self, source: Source) -> Sampler:
        index = source.weights(self.by)
        return WeightedSampler(index, _draws(self.rows, index.rows))


@dataclass(frozen=True, slots=True)
class Stratified(Sampling):
    """Give every batch each class in its proportion of the part; every row comes once per epoch.

    A batch has its size times the class's share of the part, rounded down or up. What scikit-learn's
    ``StratifiedKFold`` does for folds.

    Parameters
    ----------
    by : str or sequence of str, optional
        The columns of the table whose values are the classes, features or not, of any scalar type; null is
        a class too. The dataset's label if not given.

    Raises
    ------
    InvalidInputError

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> part = numbered_part(1000, cardinalities=(3,))
    >>> part.inputs["c0"][:] = np.arange(1000) >= 990           # 1% are of class 1
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(part, 100, cache=cache.name, sample=Stratified("c0"))
    >>> {int(batch.inputs["c0"].sum()) for batch in loader}
    {1}
    >>> cache.cleanup()
    """

    by: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "by", _checked_columns(self.by))

    def sampler(self, source: Source) -> Sampler:
        return StratifiedSampler(source.classes(_class_columns(self.by, source.part)))


def _checked_columns(by: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if by is None:
        return None
    names = column_names(by)
    if not names:
        raise InvalidInputError("by=() names no column", "name one, or leave it out for the label")
    return names


def _check_rows(rows: int | None) -> None:
    if rows is not None:
        whole_number(rows, "rows", 1)


def _draws(asked: int | None, samples: int) -> int:
    """Return the draws of an epoch: none if there is nothing to draw from."""
    return samples if asked is None or not samples else asked


def _class_columns(by: str | Sequence[str] | None, part: DatasetPart) -> tuple[str, ...]:
    if by is not None:
        return tuple(by)
    if part.schema.label is None:
        names = [one.name for one in part.schema.labels]
        raise InvalidInputError(
            f"the dataset has {len(names)} labels {names}, so classes are not known without by=",
            "name the column of the classes, as Balanced(by='sector')",
        )
    return (part.schema.label.name,)


def _named(columns: Sequence[str]) -> str:
    return f"column {columns[0]!r}" if len(columns) == 1 else f"columns {list(columns)}"
