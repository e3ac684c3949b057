"""Samplers: which sample stands at a position of an epoch, where samples are drawn or stratified.

Always true: a position's sample is a function of the seed, the epoch and the position alone; for
stratified batches also of their size, and of the ranks that share a step. None of it depends on what was
drawn before.

The trade-off: samples come from all over the pack, as with a global shuffle, so that it is whole before the
first batch and reads are scattered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint
from training.loading.class_index import CLASS_BYTES, ClassIndex
from training.loading.mixing import Rows, below, bijections, key_of, permutation, words
from training.loading.order import EpochOrder
from training.loading.padding import Last
from training.loading.weight_index import WeightIndex

if TYPE_CHECKING:
    from training.loading.steps import Steps

SAMPLING_VERSION: Final = 1
_DRAWN_BYTES: Final = 16 * 8
_STRATIFIED_BYTES: Final = 24 * 8
"""Of each position that is looked up: random words, and numbers on the way to a sample."""
# What random words are for: numbers that no order of an epoch uses.
_CLASS, _MEMBER, _WEIGHT, _TAIL, _STEP, _WITHIN_CLASS, _WITHIN_BATCH = range(16, 23)


@dataclass(frozen=True, slots=True, eq=False)
class BalancedSampler:
    """Draws a class, each as likely, then a sample of it, each as likely; with replacement.

    Parameters
    ----------
    index : ClassIndex
    rows : int
        Draws of an epoch; 0 if there are no samples.
    """

    index: ClassIndex
    rows: int

    @property
    def fingerprint(self) -> str:
        return fingerprint("balanced", SAMPLING_VERSION, self.rows, self.index.digest)

    def memory(self, count: int) -> int:
        return _DRAWN_BYTES * count + CLASS_BYTES * len(self.index.counts)

    def indices(self, order: EpochOrder, steps: Steps, start: int, stop: int) -> Rows:
        index = self.index
        drawn = words(start, stop, key_of(order.seed, order.epoch, _CLASS))
        which = below(drawn, np.array([len(index.counts)], np.uint64)).view(np.int64)
        drawn = words(start, stop, key_of(order.seed, order.epoch, _MEMBER))
        member = below(drawn, index.counts[which].view(np.uint64)).view(np.int64)
        found: Rows = index.samples[index.begins[which] + member]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSampler:
    """Draws samples in proportion to their weights, with replacement.

    Parameters
    ----------
    index : WeightIndex
    rows : int
        Draws of an epoch; 0 if there are no samples.
    """

    index: WeightIndex
    rows: int

    @property
    def fingerprint(self) -> str:
        return fingerprint("weighted", SAMPLING_VERSION, self.rows, self.index.digest)

    def memory(self, count: int) -> int:
        return _DRAWN_BYTES * count

    def indices(self, order: EpochOrder, steps: Steps, start: int, stop: int) -> Rows:
        drawn = words(start, stop, key_of(order.seed, order.epoch, _WEIGHT))
        return self.index.find(below(drawn, np.array([self.index.total], np.uint64)).view(np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class StratifiedSampler:
    """Deals the samples over the batches, class after class, so that each gets its share of every class.

    All samples are laid out class after class, each class in an order of its own epoch. If the last step
    is smaller than the others, or its rows are dropped, every so-manieth sample is set aside for it, all
    over the line. The others are dealt like cards: with ``k`` full steps, every ``k``-th sample belongs
    to the same step, and of those every ``world``-th to the same rank. A class is a run of the line, so a
    batch has its size times the class's share of the part, rounded down or up [1]_.

    Parameters
    ----------
    index : ClassIndex

    .. [1] Systematic sampling: W. G. Cochran, "Sampling Techniques", 1977, chapter 8.
    """

    index: ClassIndex

    @property
    def rows(self) -> int:
        return self.index.rows

    @property
    def fingerprint(self) -> str:
        return fingerprint("stratified", SAMPLING_VERSION, self.index.digest)

    def memory(self, count: int) -> int:
        return _STRATIFIED_BYTES * count + CLASS_BYTES * len(self.index.counts)

    def indices(self, order: EpochOrder, steps: Steps, start: int, stop: int) -> Rows:
        places = [np.empty(0, dtype=np.int64)]
        while start < stop:
            step, rank = _share_at(steps, start)
            first, last = steps.span(step, rank)
            key = key_of(order.seed, order.epoch, _WITHIN_BATCH, step, rank)
            some = permutation(last - first, key)[start - first : stop - first]
            places.append(self._places(order, steps, step, rank + some * steps.ranks.world))
            start += len(some)
        return self._at(order, np.concatenate(places))

    def _places(self, order: EpochOrder, steps: Steps, step: int, numbers: Rows) -> Rows:
        """Return which places of the line the samples of a step have, given their numbers in it."""
        full, rest = full_steps(steps)
        if self.rows * (rest + 1) >= 1 << 62:
            raise InvalidInputError(
                f"{self.rows} rows in steps of {steps.step_rows} cannot be stratified exactly",
                "use a smaller batch_size",
            )
        # Every (rows/rest)-th place is set aside; where that begins differs from epoch to epoch.
        drawn = words(0, 1, key_of(order.seed, order.epoch, _TAIL))
        offset = int(below(drawn, np.array([self.rows], np.uint64))[0])
        if step >= full:
            return ((numbers + 1) * self.rows - offset + rest - 1) // rest - 1
        dealt = full * steps.step_rows
        key = key_of(order.seed, order.epoch, _STEP)
        one = np.array([step], np.uint64), np.array([full], np.uint64), np.zeros(1, np.uint64)
        number = int(bijections(*one, key)[0]) + full * numbers
        before = (number + 1) * rest - (
            self.rows - 1 - offset
        )  # over dealt: places set aside before
        return number - (-before // dealt)

    def _at(self, order: EpochOrder, places: Rows) -> Rows:
        """Return the samples at places of the line."""
        index = self.index
        which = np.searchsorted(index.begins, places, side="right") - 1
        begins = index.begins[which]
        members = bijections(
            (places - begins).view(np.uint64),
            index.counts[which].view(np.uint64),
            which.view(np.uint64),
            key_of(order.seed, order.epoch, _WITHIN_CLASS),
        )
        found: Rows = index.samples[begins + members.view(np.int64)]
        return found


def full_steps(steps: Steps) -> tuple[int, int]:
    """Return how many steps have all their rows, and how many rows are in none of those.

    What is left makes the last step, or joins it, or is dropped.

    Examples
    --------
    >>> from training.loading.steps import Steps
    >>> full_steps(Steps(EpochOrder(10), 4)), full_steps(Steps(EpochOrder(10), 4, Last.DROP))
    ((2, 2), (2, 2))
    """
    rest = steps.order.rows % steps.step_rows
    full = len(steps) if steps.last is Last.DROP or not rest else len(steps) - 1
    return full, steps.order.rows - full * steps.step_rows


def _share_at(steps: Steps, position: int) -> tuple[int, int]:
    """Return the step and the rank that get the sample at a position."""
    step = min(position // steps.step_rows, len(steps) - 1)
    begin, stop = steps.span(step, 0)[0], steps.span(step, steps.ranks.world - 1)[1]
    share, more = divmod(stop - begin, steps.ranks.world)
    at = position - begin
    if at < more * (share + 1):
        return step, at // (share + 1)
    return step, more + (at - more * (share + 1)) // share
