"""The loader: a dataset part as batches, in an order that can be stopped and continued anywhere.

    loader = Loader(data.train, batch_size=4096, shuffle=True, seed=0)
    for batch in loader: ...                 # one epoch; the next loop is the next epoch
    loader[3]                                # batch 3 of the current epoch
    state = loader.state_dict()              # small JSON; load_state_dict continues there

Always true: batch ``i`` of epoch ``e`` is a pure function of ``(seed, e, i)`` and the part; arrays
handed out are never written again; the first access builds the pack or opens it, and no thread runs
in the background. An epoch counts once its last batch was handed out; an iterator left before that
does not count, and the next one begins the same epoch again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json
from featurestore.units import parse_bytes
from training.loading.memory import (
    OWN_BATCHES,
    LoaderMemory,
    Projection,
    project_epoch,
    row_bytes,
    writing_memory,
)
from training.loading.order import (
    DEFAULT_BLOCK_ROWS,
    DEFAULT_WINDOW_BLOCKS,
    EpochOrder,
    Shuffle,
)
from training.loading.pack import Pack, mapped_bytes

if TYPE_CHECKING:
    from training.hooks.keras import KerasBatches
    from training.hooks.xgboost import XGBoostPages

STATE_VERSION: Final = 1


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


class Loader:
    """Batches of a dataset part.

    Parameters
    ----------
    part : DatasetPart
        ``data.train`` or a sibling.
    batch_size : int
        Rows per batch, and per rank.
    shuffle : bool or "global"
        True mixes the rows of ``window_blocks`` blocks at a time; ``"global"`` all rows; False keeps
        table order.
    seed : int
        Of the shuffle; with the epoch it alone decides the order.
    drop_last : bool
        Leave out the rows that do not fill a last batch.
    cache : path, optional
        Where packs lie; see ``training.loading.pack.cache_directory``.
    block_rows, window_blocks : int
        The grain of the shuffle. ``window_blocks`` defaults to 16, or to as many as fit a quarter of
        ``memory_limit`` if that is fewer.
    memory_limit : int or str, optional
        What this process may hold while the pack is written and rows are fed; that of the store the
        part is from if not given. See :meth:`memory`.

    Raises
    ------
    InvalidInputError
        If an argument is not acceptable.
    MemoryLimitError
        If an epoch is projected to exceed the memory limit.

    Notes
    -----
    Numeric features may hold NaN where the data does and no transformer imputed it.
    """

    def __init__(
        self,
        part: DatasetPart,
        batch_size: int,
        shuffle: bool | str = False,
        seed: int = 0,
        drop_last: bool = False,
        *,
        cache: str | Path | None = None,
        block_rows: int = DEFAULT_BLOCK_ROWS,
        window_blocks: int | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size!r} must be at least 1")
        self.part = part
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._cache = cache
        if window_blocks is None:
            window_blocks = _window_blocks(part.schema, block_rows, memory_limit)
        self._order = EpochOrder(
            part.rows, block_rows, window_blocks, seed, 0, Shuffle.parse(shuffle)
        )
        self._limit = part.memory_limit if memory_limit is None else parse_bytes(memory_limit)
        self._reserved = part.reserved_bytes - mapped_bytes()
        self.epoch_memory().require()
        self._ranks = Rank()
        self._pack: Pack | None = None
        self._pack_lock = threading.Lock()
        self._position_lock = threading.Lock()
        self._start = (0, 0)
        self._position = (0, 0)
        self._newest: object = None

    # --- what it holds -----------------------------------------------------------------------------

    @property
    def schema(self) -> DatasetSchema:
        return self.part.schema

    @property
    def rows(self) -> int:
        """Rows of the part, of which this rank sees its share."""
        return self.part.rows

    @property
    def memory_limit(self) -> int:
        """Bytes that this process may hold while it feeds."""
        return self._limit

    @property
    def reserved_bytes(self) -> int:
        """Bytes that this process held when the loader was made, mapped packs not counted."""
        return self._reserved

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator begins or continues, and that ``[i]`` means."""
        return self._start[0]

    @property
    def steps_left(self) -> int:
        """Batches that the next iterator gives: all of an epoch, or the rest of a resumed one."""
        return len(self) - self._start[1]

    def __len__(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        full, rest = divmod(self.rows, self._step_rows)
        if self.drop_last or not rest:
            return full
        # Fewer rows than ranks make no step of their own: they join the step before.
        return full + (rest >= self._ranks.world or full == 0)

    @property
    def pack(self) -> Pack:
        """The pack rows come from; built or opened at the first access."""
        with self._pack_lock:
            if self._pack is None:
                memory = writing_memory(self.part, self._limit, self._reserved)
                self._pack = Pack.for_part(self.part, self._cache, memory)
            return self._pack

    def memory(self) -> LoaderMemory:
        """Return what this loader is projected to take, said before anything runs.

        Writing the pack (unless it is open already) and an epoch of plain iteration; both are refused
        when they begin if they do not fit. What hooks hold beside that, as batches a framework
        prefetches, is in ``loader.keras().memory`` and its siblings.

        Returns
        -------
        LoaderMemory
            Prints as a table: what this process held when the loader was made, each term, their sum,
            and the limit.
        """
        epoch = self.epoch_memory()
        if self._pack is not None:
            return LoaderMemory((epoch,))
        return LoaderMemory((writing_memory(self.part, self._limit, self._reserved), epoch))

    def epoch_memory(self, batches: int = OWN_BATCHES) -> Projection:
        """Return what an epoch takes while so many batches exist at once, as in a framework's queue."""
        return project_epoch(
            self._order, self.schema, self.batch_size, self._limit, self._reserved, batches
        )

    # --- batches -------------------------------------------------------------------------------------

    def batch(self, step: int, epoch: int) -> Batch:
        """Return batch ``step`` of any epoch; safe from several threads.

        Raises
        ------
        IndexError
            If there is no such batch.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"batch {step} of {len(self)}")
        start, stop = self._span(step)
        if self._order.shuffle is Shuffle.NONE:
            return self.pack.read(start, stop)
        return self.pack.gather(self._order_of(epoch).indices(start, stop))

    def __getitem__(self, step: int) -> Batch:
        """Return batch ``step`` of the current epoch; negative counts from the end."""
        return self.batch(step + len(self) if step < 0 else step, self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch (the rest of it after ``load_state_dict``)."""
        token = object()
        steps = len(self)
        with self._position_lock:
            self._newest = token
            epoch, first = self._start
            self._position = (epoch, first)
        ahead = _ReadAhead(self, epoch)
        for step in range(first, steps):
            ahead.advise(step)
            batch = self.batch(step, epoch)
            with self._position_lock:
                # A framework's thread may still draw from an iterator it gave up; only the newest
                # iterator moves the loader.
                if self._newest is token:
                    self._position = (epoch, step + 1)
                    if step + 1 == steps:
                        self._start = self._position = (epoch + 1, 0)
            yield batch

    # --- position ------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Let the next iterator begin ``epoch`` from its first batch."""
        self._order_of(epoch)
        with self._position_lock:
            self._newest = None
            self._start = self._position = (epoch, 0)

    def state_dict(self) -> dict[str, Json]:
        """Return where the newest iterator is, as small JSON; the next batch is the one it names."""
        epoch, step = self._position
        return {
            "version": STATE_VERSION,
            "seed": self._order.seed,
            "epoch": epoch,
            "step": step,
            "global_batch_size": self._step_rows,
            "drop_last": self.drop_last,
            "snapshot": self.part.snapshot_id,
            "part": self.part.digest,
            "order": self._order.digest,
        }

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
            "order": "another shuffle (shuffle, seed, block_rows or window_blocks)",
            "global_batch_size": "another global batch size (batch_size times ranks)",
            "drop_last": "another drop_last",
        }
        for name, meaning in meanings.items():
            if state.get(name) != now[name]:
                raise InvalidInputError(
                    f"the loader's state is of {meaning}: {name} is {state.get(name)!r} there and "
                    f"{now[name]!r} here (snapshot {state.get('snapshot')!r} there, "
                    f"{now['snapshot']!r} here)",
                    "make the loader as it was when the state was taken, or start a new run",
                )
        epoch, step = state["epoch"], state["step"]
        if not (isinstance(epoch, int) and isinstance(step, int) and 0 <= step <= len(self)):
            raise InvalidInputError(f"step {step!r} of epoch {epoch!r} is no place in this loader")
        self.set_epoch(epoch)
        with self._position_lock:
            self._start = self._position = (epoch, step) if step < len(self) else (epoch + 1, 0)

    def shard(self, rank: int, world: int) -> Loader:
        """Return the loader of one of ``world`` ranks; together they see each row once.

        All ranks have the same number of steps. The rows left after the last full step (``world *
        batch_size`` rows) are divided evenly, to the row, into one more step; fewer of them than
        ranks join the last full step, whose first ranks then get one row more than ``batch_size``.
        With ``drop_last`` they are left out.

        Raises
        ------
        InvalidInputError
            If the part has fewer rows than there are ranks (and ``drop_last`` is off).
        """
        ranks = Rank(rank, world)
        if not self.drop_last and 0 < self.rows < world:
            raise InvalidInputError(
                f"a part of {self.rows} rows cannot feed {world} ranks",
                "use fewer ranks, or drop_last=True",
            )
        shard = Loader(
            self.part,
            self.batch_size,
            str(self._order.shuffle),
            self._order.seed,
            self.drop_last,
            cache=self._cache,
            block_rows=self._order.block_rows,
            window_blocks=self._order.window_blocks,
            memory_limit=self._limit,
        )
        shard._ranks = ranks
        shard._pack = self._pack
        shard._start = shard._position = (self.epoch, 0)
        return shard

    # --- hooks -----------------------------------------------------------------------------------------

    def keras(
        self, class_weight: Mapping[int, float] | None = None, inputs: str = "dict"
    ) -> KerasBatches:
        """Return what ``model.fit``, ``evaluate`` and ``predict`` accept directly.

        See :class:`training.hooks.keras.KerasBatches`.
        """
        from training.hooks.keras import KerasBatches

        return KerasBatches(self, class_weight, inputs)

    def xgboost(self, page_bytes: int | str | None = None) -> XGBoostPages:
        """Return an ``xgboost.DataIter`` over the rows in table order, for external memory."""
        from training.hooks.xgboost import XGBoostPages

        return XGBoostPages(self, page_bytes)

    def tf_data(self) -> Any:
        """Return a ``tf.data.Dataset`` of ``(inputs, label)`` with known cardinality."""
        from training.hooks.tf_data import dataset

        return dataset(self)

    # --- inside ------------------------------------------------------------------------------------------

    @property
    def _step_rows(self) -> int:
        return self.batch_size * self._ranks.world

    def _span(self, step: int) -> tuple[int, int]:
        """Return the positions of the epoch that this rank's batch ``step`` covers."""
        rank, world = self._ranks.rank, self._ranks.world
        start = step * self._step_rows
        stop = start + self._step_rows
        if step == len(self) - 1 and not self.drop_last:
            stop = self.rows
        # Even shares: equal to batch_size each on full steps.
        share, rest = divmod(stop - start, world)
        first = start + rank * share + min(rank, rest)
        return first, first + share + (rank < rest)

    def _order_of(self, epoch: int) -> EpochOrder:
        order = self._order
        return EpochOrder(
            order.rows, order.block_rows, order.window_blocks, order.seed, epoch, order.shuffle
        )


class _ReadAhead:
    """Asks for the blocks of a window shortly before its rows are gathered."""

    def __init__(self, loader: Loader, epoch: int) -> None:
        self._loader = loader
        self._order = loader._order_of(epoch)
        self._asked = -1

    def advise(self, step: int) -> None:
        order = self._order
        if order.shuffle is not Shuffle.WINDOW:
            return  # table order is read ahead by the kernel; a global shuffle has no locality
        window = order.window_at(self._loader._span(step)[0])
        while self._asked < min(window + 1, order.windows - 1):
            self._asked = max(self._asked + 1, window)
            starts = order.blocks_of(self._asked) * order.block_rows
            self._loader.pack.prefetch(starts, order.block_rows)


def _window_blocks(schema: DatasetSchema, block_rows: int, limit: int | str | None) -> int:
    """Return how many blocks a window has: fewer than usual if a limit was asked for.

    A window's pages are the kernel's to take back, but rows gathered from more pages than memory
    holds are read from the disk again and again. A limit that comes from the store or the machine
    does not count here: the order of an epoch would differ from one machine to the next.
    """
    if limit is None:
        return DEFAULT_WINDOW_BLOCKS
    block_bytes = max(1, block_rows * row_bytes(schema))
    return max(1, min(DEFAULT_WINDOW_BLOCKS, parse_bytes(limit) // 4 // block_bytes))
