"""The steps of an epoch: which rows each has, and reading them.

A value of a few numbers: what iterates, here or in another process, needs it and the pack alone.

Always true: step ``i`` of epoch ``e`` is computed without those before it; the steps of all ranks
together cover each row once (unless those that fill no step are dropped), and every rank has as many
of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Protocol

from featurestore.dataset.batch import Batch, DatasetSchema
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import fingerprint
from training.loading.mixing import Rows
from training.loading.order import EpochOrder, Shuffle
from training.loading.padding import Last, fill_up, weighted
from training.loading.position import Position, Turn
from training.loading.prefetching import prefetched
from training.loading.striped_order import StripedOrder, striped


class Samples(Protocol):
    """What batches are read from: a pack, or what makes samples of one."""

    schema: DatasetSchema

    @property
    def shared(self) -> bool:
        """Whether other processes can read them too."""

    def read(self, start: int, stop: int) -> Batch:
        """Return samples ``[start, stop)`` in table order."""

    def gather(self, rows: Rows) -> Batch:
        """Return some samples in the order given."""

    def prefetch(self, starts: Rows, count: int) -> None:
        """Ask for runs of ``count`` samples ahead."""

    def ahead(self, stripes: Iterable[int]) -> AbstractContextManager[None]:
        """Write in the background inside the block what is missing, these stripes first."""


class KeptSamples(Samples, Protocol):
    """Samples that are all kept, on a disk or in memory, once they have been read."""

    def complete(self) -> KeptSamples:
        """Return them when all are there."""


class Sampler(Protocol):
    """What says which samples an epoch has, where that is not each of them once."""

    @property
    def rows(self) -> int:
        """Samples of an epoch, repeated ones counted as often as they come."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints give equal samples for equal orders and steps."""

    def indices(self, order: EpochOrder, steps: Steps, start: int, stop: int) -> Rows:
        """Return the samples at positions ``[start, stop)`` of the order's epoch."""

    def memory(self, count: int) -> int:
        """Return the bytes that :meth:`indices` of ``count`` positions takes."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of several processes that train together.

    Each step takes ``world * batch_size`` consecutive rows of the epoch; rank ``r`` gets the
    ``r``-th ``batch_size`` of them. What is left at the end is divided evenly.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InvalidInputError(
                f"rank {self.rank} of {self.world} does not exist", "ranks count from 0"
            )


@dataclass(frozen=True, slots=True)
class Steps:
    """The batches of an epoch that one rank gets.

    Parameters
    ----------
    order : EpochOrder
        Of any epoch: its number is not looked at.
    batch_size : int
        Rows per step, and per rank.
    last : Last
        What becomes of the rows that do not fill a last step.
    ranks : Rank
    stripes : tuple of int
        Rows of each stripe of the pack (``arrangement``), as they lie in it. The first epoch goes from
        one to the next if it is shuffled by windows, all epochs if by stripes.
    sampler : Sampler, optional
        What chooses the samples of an epoch; each comes once if not given.

    Examples
    --------
    >>> steps = Steps(EpochOrder(10, shuffle=Shuffle.NONE), 4)
    >>> len(steps), steps.span(2)
    (3, (8, 10))
    """

    order: EpochOrder
    batch_size: int
    last: Last = Last.KEEP
    ranks: Rank = Rank()
    stripes: tuple[int, ...] = ()
    sampler: Sampler | None = None

    def __len__(self) -> int:
        """Number of steps per epoch, the same on every rank."""
        full, rest = divmod(self.order.rows, self.step_rows)
        if self.last is Last.DROP or not rest:
            return full
        if self.last is Last.PAD:
            return full + 1
        # Fewer rows than ranks make no step of their own: they join the step before.
        return full + (rest >= self.ranks.world or full == 0)

    @property
    def step_rows(self) -> int:
        """Rows of a full step over all ranks."""
        return self.batch_size * self.ranks.world

    def begins(self, step: int) -> int:
        """Return the first position that a step reads; a rank without rows in it reads the last one."""
        return min(self.span(step)[0], self.order.rows - 1)

    def order_of(self, epoch: int) -> EpochOrder | StripedOrder:
        """Return the order of an epoch."""
        order = replace(self.order, epoch=epoch)
        by_stripes = order.shuffle is Shuffle.STRIPES or (
            epoch == 0 and order.shuffle is Shuffle.WINDOW
        )
        return striped(order, self.stripes) if by_stripes and len(self.stripes) > 1 else order

    @property
    def digest(self) -> str:
        """Fingerprint of the order of all epochs."""
        if self.sampler is not None:
            return fingerprint("sampled steps", self.order.digest, self.sampler.fingerprint)
        return fingerprint("steps", self.order.digest, list(self.stripes))

    def indices(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the samples at positions ``[start, stop)`` of an epoch."""
        if self.sampler is None:
            return self.order_of(epoch).indices(start, stop)
        return self.sampler.indices(replace(self.order, epoch=epoch), self, start, stop)

    def memory(self, count: int) -> int:
        """Return the bytes that :meth:`indices` of ``count`` positions takes."""
        return (self.order if self.sampler is None else self.sampler).memory(count)

    def span(self, step: int, rank: int | None = None) -> tuple[int, int]:
        """Return the positions of the epoch that a batch covers, padding apart; of this rank by default."""
        rank, world = self.ranks.rank if rank is None else rank, self.ranks.world
        start = step * self.step_rows
        stop = start + self.step_rows
        if step == len(self) - 1 and self.last is not Last.DROP:
            stop = self.order.rows
        # Even shares: equal to batch_size each on full steps.
        share, rest = divmod(stop - start, world)
        first = start + rank * share + min(rank, rest)
        return first, first + share + (rank < rest)

    def read(self, pack: Samples, step: int, epoch: int) -> Batch:
        """Return batch ``step`` of an epoch; safe from several threads.

        Raises
        ------
        IndexError
            If there is no such batch.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        start, stop = self.span(step)
        if self.last is Last.PAD:
            return self._padded(pack, start, stop, epoch)
        if self.order.shuffle is Shuffle.NONE:
            return pack.read(start, stop)
        return pack.gather(self.indices(epoch, start, stop))

    def rows_of(self, step: int, epoch: int) -> tuple[Rows, int]:
        """Return the rows of batch ``step``, padding last, and how many are not padding."""
        (start, stop), end = self.span(step), self.order.rows
        rows = self.indices(epoch, start, stop)
        if self.last is Last.PAD:
            rows = fill_up(rows, self.indices(epoch, end - 1, end), self.batch_size)
        return rows, stop - start

    def _padded(self, pack: Samples, start: int, stop: int, epoch: int) -> Batch:
        """Return ``batch_size`` rows: those of a span, then the epoch's last row, weighing nothing."""
        if self.order.shuffle is Shuffle.NONE and stop - start == self.batch_size:
            return weighted(pack.read(start, stop), self.batch_size)
        end = self.order.rows
        filler = self.indices(epoch, end - 1, end)
        rows = fill_up(self.indices(epoch, start, stop), filler, self.batch_size)
        return weighted(pack.gather(rows), stop - start)

    def batches(
        self, pack: Samples, epoch: int, steps: Iterable[int]
    ) -> Generator[Batch, None, None]:
        """Yield some batches of an epoch, in ascending order; blocks are asked for ahead."""
        ahead = _ReadAhead(self, pack, epoch)
        numbers = iter(steps)
        for first in numbers:
            with pack.ahead(ahead.stripes_from(first)):
                for step in chain((first,), numbers):
                    ahead.advise(step)
                    yield self.read(pack, step, epoch)

    def follow(self, pack: Samples, position: Position, ahead: int = 0) -> Iterator[Batch]:
        """Yield what is left of the epoch that ``position`` is in, and move it batch by batch.

        A thread makes the next ``ahead`` batches meanwhile, if any.
        """
        for turn, batch in self.rest(pack, position, ahead):
            turn.hand_out()
            yield batch

    def rest(
        self, pack: Samples, position: Position, ahead: int = 0
    ) -> Iterator[tuple[Turn, Batch]]:
        """Yield what is left of the epoch that ``position`` is in, each batch with its turn.

        For hooks, which have batches on their way: who hands a batch out says so to its turn. The pass
        begins when the first one is asked for; ``ahead`` is as in :meth:`follow`.
        """
        one = position.begin()
        made = self.batches(pack, one.epoch, range(one.first, len(self)))
        batches = prefetched(made, ahead) if ahead else made
        yield from zip(one.turns(len(self)), batches, strict=True)


class _ReadAhead:
    """Knows what will be read next, and asks for a window's blocks shortly before it is gathered."""

    def __init__(self, steps: Steps, pack: Samples, epoch: int) -> None:
        self._steps = steps
        self._pack = pack
        self._order = steps.order_of(epoch)
        self._asked = -1

    def stripes_from(self, step: int) -> Iterable[int]:
        """Return the stripes of the pack that are read from a step on, in order."""
        start = self._steps.begins(step)
        if isinstance(self._order, StripedOrder):
            return self._order.stripes_from(start)
        if self._order.shuffle is not Shuffle.NONE:
            return ()
        before = bisect_right(list(accumulate(self._steps.stripes)), start)
        return range(before, len(self._steps.stripes))

    def advise(self, step: int) -> None:
        order = self._order
        if self._steps.order.shuffle in (Shuffle.NONE, Shuffle.GLOBAL):
            return  # table order is read ahead by the kernel; a global shuffle has no locality
        window = order.window_at(self._steps.begins(step))
        while self._asked < min(window + 1, order.windows - 1):
            self._asked = max(self._asked + 1, window)
            self._pack.prefetch(order.starts_of(self._asked), self._steps.order.block_rows)
