"""What hands out batches by steps: where it is, its state, its share among ranks, what an epoch takes.

Always true: batch ``i`` of epoch ``e`` is what :class:`~training.loading.steps.Steps` and the samples say,
whoever asks; an epoch counts once its last batch was handed out; an iterator left before that does not
count, and the next one begins the same epoch again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import Any, Final, Self

from featurestore.arguments import as_whole, shown
from featurestore.dataset.batch import Batch, DatasetSchema
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json
from training.loading.framework_hooks import FrameworkHooks
from training.loading.memory import OWN_BATCHES, Projection, project_epoch
from training.loading.padding import Last
from training.loading.position import Position
from training.loading.ragged_inputs import ListSpecs, RaggedInputs
from training.loading.steps import Rank, Samples, Steps

STATE_VERSION: Final = 1


class Batches(FrameworkHooks, ABC):
    """Batches of samples, epoch after epoch; a :class:`~training.loading.loader.Loader`, or several mixed.

    Parameters
    ----------
    steps : Steps
    limit, reserved : int
        Bytes: what this process may hold, and what it held when this was made.
    prefetch : int
        Batches that a thread makes ahead of who iterates.

    Raises
    ------
    MemoryLimitError
        If an epoch is projected to exceed the limit.
    """

    ragged = RaggedInputs()
    """Which inputs are lists of any length, and how batches have them."""

    def __init__(self, steps: Steps, limit: int, reserved: int, prefetch: int = 0) -> None:
        self._steps = steps
        self._limit = limit
        self._reserved = reserved
        self._prefetch = whole("prefetch", prefetch, 0)
        self._position = Position()
        self.epoch_memory().require()

    # --- what it gives -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def schema(self) -> DatasetSchema:
        """The columns of a batch."""

    @abstractmethod
    def array_specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return ``{array name: (dtype, shape of one sample)}`` of a batch's inputs."""

    def list_specs(self) -> ListSpecs:
        """Return ``{array name: (dtype, shape)}`` of the inputs that lists are; None is any number."""
        return self.ragged.specs()

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Bytes that a sample takes in a batch, label included."""

    @abstractmethod
    def begin(self, batches: int | None = None) -> Samples:
        """Return what samples are read from, for an epoch in which so many batches exist at once."""

    @property
    @abstractmethod
    def samples(self) -> Samples:
        """What samples are read from; all of it there, if they are kept."""

    @property
    def on_device(self) -> bool:
        """Whether hooks that can hold rows on a device do."""
        return False

    @property
    def rows(self) -> int:
        """Samples of an epoch, of which this rank sees its share: the rows of the part, unless some are
        left out, or they are drawn or mixed."""
        return self._steps.order.rows

    @property
    def batch_size(self) -> int:
        """Rows per batch, and per rank."""
        return self._steps.batch_size

    @property
    def prefetch(self) -> int:
        """Batches that a thread makes ahead of who iterates."""
        return self._prefetch

    @property
    def last(self) -> Last:
        """What becomes of the rows that do not fill a last batch."""
        return self._steps.last

    @property
    def steps(self) -> Steps:
        """Which rows each batch of an epoch has: all that another process needs beside the pack."""
        return self._steps

    @property
    def weighted(self) -> bool:
        """Whether batches have weights."""
        return self.last is Last.PAD or self.schema.weight is not None

    @property
    def memory_limit(self) -> int:
        """Bytes that this process may hold while it feeds."""
        return self._limit

    @property
    def reserved_bytes(self) -> int:
        """Bytes that this process held when this was made, mapped packs not counted."""
        return self._reserved

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator begins or continues, and that ``[i]`` means."""
        return self._position.start[0]

    @property
    def steps_left(self) -> int:
        """Batches that the next iterator gives: all of an epoch, or the rest of a resumed one."""
        return len(self) - self._position.start[1]

    def __len__(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        return len(self._steps)

    def epoch_memory(self, batches: int | None = None, workers: int = 0) -> Projection:
        """Return what an epoch takes while so many batches exist at once, as in a framework's queue.

        As many as plain iteration holds if not given, those made ahead included. With ``workers``, each of so many processes computes the order for itself.
        """
        return project_epoch(
            self._steps,
            self.sample_bytes,
            self._limit,
            self._reserved,
            OWN_BATCHES + self._prefetch if batches is None else batches,
            workers,
        )

    # --- batches -------------------------------------------------------------------------------------

    def batch(self, step: int, epoch: int) -> Batch:
        """Return batch ``step`` of any epoch; safe from several threads.

        Raises
        ------
        IndexError
            If there is no such batch.
        """
        return self._steps.read(self.begin(), step, epoch)

    def __getitem__(self, step: int) -> Batch:
        """Return batch ``step`` of the current epoch; negative counts from the end."""
        step = whole("step", step)
        return self.batch(step + len(self) if step < 0 else step, self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch (the rest of it after ``load_state_dict``)."""
        yield from self._steps.follow(self.begin(), self._position, self._prefetch)

    # --- position ------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where it is, for hooks that hand out batches themselves."""
        return self._position

    def set_epoch(self, epoch: int) -> None:
        """Let the next iterator begin ``epoch`` from its first batch."""
        epoch = whole("epoch", epoch)
        self._steps.order_of(epoch)  # refuses what is no epoch
        self._position.move(epoch)

    def state_dict(self) -> dict[str, Json]:
        """Return where the newest iterator is, as small JSON; the next batch is the one it names."""
        epoch, step = self._position.next
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "step": step,
            "global_batch_size": self._steps.step_rows,
            "last": str(self.last),
            **self._identity(),
        }

    @abstractmethod
    def _identity(self) -> dict[str, Json]:
        """Return what tells its batches from others': seed, snapshot, part and order."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the batch after the last one that was handed out when the state was taken.

        The number of ranks may differ if ``world * batch_size`` is the same.

        Raises
        ------
        InvalidInputError
            If the state is of other data, another order or another batch size.
        """
        now = self.state_dict()
        meanings = {
            "version": "a state format",
            "part": "other data",
            "seed": "another seed",
            "order": "another shuffle or mixture (shuffle, sample, window, seed, block_rows, window_blocks, weights)",
            "global_batch_size": "another global batch size (batch_size times ranks)",
            "last": "another treatment of the last batch",
        }
        for name, meaning in meanings.items():
            if state.get(name) != now[name]:
                raise InvalidInputError(
                    f"the loader's state is of {meaning}: {name} is {state.get(name)!r} there and "
                    f"{now[name]!r} here (snapshot {state.get('snapshot')!r} there, "
                    f"{now['snapshot']!r} here)",
                    "make the loader as it was when the state was taken, or start a new run",
                )
        epoch, step = as_whole(state.get("epoch")), as_whole(state.get("step"))
        if epoch is None or step is None or not 0 <= step <= len(self):
            raise InvalidInputError(f"step {step!r} of epoch {epoch!r} is no place in this loader")
        self._steps.order_of(epoch)
        self._position.move(*((epoch, step) if step < len(self) else (epoch + 1, 0)))

    def shard(self, rank: int, world: int) -> Self:
        """Return what one of ``world`` ranks gets; together they see each sample of an epoch once.

        All ranks have the same number of steps. The rows left after the last full step (``world *
        batch_size`` rows) are divided evenly, to the row, into one more step; fewer of them than
        ranks join the last full step, whose first ranks then get one row more than ``batch_size``.
        ``last="drop"`` leaves them out; ``last="pad"`` fills up each rank's share, even one of no rows.

        Raises
        ------
        InvalidInputError
            If an epoch has fewer rows than there are ranks and ``last="keep"``.
        """
        if self._steps.ranks.world > 1:
            raise InvalidInputError(
                f"this is rank {self._steps.ranks.rank} of {self._steps.ranks.world} already",
                "call shard() of the loader that it is a share of",
            )
        ranks = Rank(whole("rank", rank), whole("world", world))
        if self.last is Last.KEEP and 0 < self.rows < world:
            raise InvalidInputError(
                f"an epoch of {self.rows} rows cannot feed {world} ranks",
                "use fewer ranks, or last='pad' or 'drop'",
            )
        shard = copy(self)
        shard._steps = replace(self._steps, ranks=ranks)
        shard._position = Position(self.epoch)
        return shard


def whole(name: str, value: object, least: int | None = None) -> int:
    """Return an argument that is a whole number, of Python or NumPy, as Python's.

    Raises
    ------
    InvalidInputError
    """
    number = as_whole(value)
    if number is None:
        raise InvalidInputError(f"{name}={shown(value)} must be a whole number")
    if least is not None and number < least:
        raise InvalidInputError(f"{name}={number} must be at least {least}")
    return number
