"""The loader: a dataset part as batches, in an order that can be stopped and continued anywhere.

    loader = Loader(data.train, batch_size=4096, shuffle=True, seed=0)
    for batch in loader: ...                 # one epoch; the next loop is the next epoch
    loader[3]                                # batch 3 of the current epoch
    state = loader.state_dict()              # small JSON; load_state_dict continues there

Always true: batch ``i`` of epoch ``e`` is a pure function of ``(seed, e, i)`` and the part; arrays
handed out are never written again. The first epoch begins while the pack is being written, and with
``prefetch`` batches are made ahead, in threads that end with the iteration; no thread runs otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestore.arguments import shown
from featurestore.dataset.batch import DatasetPart, DatasetSchema
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json, fingerprint
from featurestore.units import parse_bytes
from training.loading.batches import Batches, whole
from training.loading.half_precision import in_dtype
from training.loading.memory import (
    LoaderMemory,
    Projection,
    held_epoch,
    row_bytes,
)
from training.loading.order import (
    DEFAULT_BLOCK_ROWS,
    DEFAULT_WINDOW_BLOCKS,
    EpochOrder,
    Shuffle,
)
from training.loading.pack import arranged, mapped_bytes
from training.loading.pack_cache import cache_directory
from training.loading.pack_cache import cache_limit as parse_limit
from training.loading.padding import Last
from training.loading.ragged_inputs import RaggedInputs
from training.loading.sampling import Sampling, Source
from training.loading.sequences import FOLLOWING_BYTES, SequenceIndex, Window
from training.loading.source import DEVICE, AnyPack, Keeping, Setting, source_of
from training.loading.steps import Samples, Steps


class Loader(Batches):
    """Batches of a dataset part.

    Parameters
    ----------
    part : DatasetPart
        ``data.train`` or a sibling.
    batch_size : int
        Rows per batch, and per rank.
    shuffle : bool, "global" or "stripes"
        True mixes the rows of ``window_blocks`` blocks at a time; ``"global"`` all rows; False keeps
        table order. ``"stripes"`` is True with all epochs in the way of the first one, stripe by stripe. Left out with ``sample``, which is an order of its own.
    seed : int
        Of the shuffle; with the epoch it alone decides the order.
    last : {"keep", "drop", "pad"}
        What becomes of the rows that do not fill a last batch. ``"pad"`` fills it up with repetitions of
        the epoch's last row that weigh 0, and gives every batch weights.
    pack : bool
        False streams every epoch from the table and writes nothing: a few stripes are in memory at a
        time, and ``shuffle=True`` means ``"stripes"``. ``[i]`` reads the stripe that batch lies in.
    hold : {"memory", "device"}, optional
        Hold all rows in memory in place of a pack, read by the first epoch: same order, same batches.
        With ``"device"``, ``torch()`` and ``jax()`` put the pack's rows on a device once and gather
        batches there.
    dtype : {"float32", "float16"}
        Of ``numeric``, and with ``"float16"`` of tensors of floating-point numbers, in the pack and in
        batches. Values that float16 cannot hold are refused when they are read, not made infinite.
    cache : path, optional
        Where packs lie; ``$FEATURESTORE_CACHE`` or a directory under ``~/.cache`` if not given.
    cache_limit : int or str, optional
        Bytes that all packs there may take: those not in use go, not used for longest first, before
        another is written. ``$FEATURESTORE_CACHE_LIMIT`` if not given, else what the disk has.
    block_rows, window_blocks : int
        The grain of the shuffle. ``window_blocks`` defaults to 64, or to as many as fit a quarter of
        ``memory_limit`` if that is fewer.
    ragged : {"offsets", "padded"}, optional
        How batches have features that are lists of any length: as values and offsets, in ``batch.lists``,
        or padded to the longest of the batch; see :mod:`training.loading.ragged_inputs`. Needed where
        there are such features.
    window : int or Window, optional
        Give each row with the rows of its entity before it, as ``[batch, window, ...]``; see
        :class:`training.loading.sequences.Window`. What is needed to find them is read at once.
    prefetch : int
        Batches that a thread makes while the loop works with those before, for who iterates over this or over
        ``torch()`` without workers; the other hooks have queues of their own. The thread ends with the
        iteration.
    sample : Sampling, optional
        Draw rows in other proportions than they have, or make batches alike: ``Balanced()``,
        ``Weighted("column")`` or ``Stratified()`` of ``training``. What is needed is read at once.
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
        last: str = "keep",
        *,
        pack: bool = True,
        hold: str | None = None,
        dtype: str = "float32",
        cache: str | Path | None = None,
        cache_limit: int | str | None = None,
        block_rows: int = DEFAULT_BLOCK_ROWS,
        window_blocks: int | None = None,
        ragged: str | None = None,
        window: int | Window | None = None,
        sample: Sampling | None = None,
        prefetch: int = 0,
        memory_limit: int | str | None = None,
    ) -> None:
        batch_size, block_rows = (
            whole("batch_size", batch_size, 1),
            whole("block_rows", block_rows, 1),
        )
        seed = whole("seed", seed)
        if window_blocks is not None:
            window_blocks = whole("window_blocks", window_blocks, 1)
        mode = _mode(shuffle, sample)
        self.part = part = in_dtype(part, dtype)
        self.sample = sample
        self._cache = cache
        self._cache_limit = parse_limit(cache_limit)
        if window_blocks is None:
            window_blocks = _window_blocks(part.schema, block_rows, memory_limit)
        self._limit = part.memory_limit if memory_limit is None else parse_bytes(memory_limit)
        self._reserved = part.reserved_bytes - mapped_bytes()
        self._window = None if window is None else Window.of(window)
        self.array_specs()  # refuses what cannot be told apart
        self._hold, self._keeping = hold, Keeping.parse(pack, hold)
        self.ragged = RaggedInputs.of(part.schema, ragged)
        self.ragged.require(pack=not pack, hold=hold is not None, window=window is not None)
        self._list_bytes = self.ragged.sample_bytes(part)
        at_once = mode is Shuffle.GLOBAL
        self._keeping.require(at_once=at_once, sequences=window is not None)
        if self._keeping is Keeping.NOWHERE and mode is Shuffle.WINDOW:
            mode = Shuffle.STRIPES  # windows of all stripes would read the part again for each
        mixed = self._window is None and sample is None and mode is not Shuffle.NONE
        self._arrangement = arranged(part, mixed=mixed)
        self._index = self._indexed()
        sampler = None if sample is None else sample.sampler(self._source())
        samples = part.rows if self._index is None else self._index.samples
        rows = samples if sampler is None else sampler.rows
        order = EpochOrder(rows, block_rows, window_blocks, seed, 0, mode)
        in_stripes = mixed or (mode is Shuffle.NONE and samples == part.rows)
        stripes = tuple(one.rows for one in self._arrangement.stripes) if in_stripes else ()
        steps = Steps(order, batch_size, Last.parse(last), stripes=stripes, sampler=sampler)
        self._row_source = source_of(
            self._keeping,
            Setting(
                part,
                self._arrangement,
                self._index,
                self._limit,
                self._reserved,
                at_once,
                cache,
                self._cache_limit,
                self.ragged.padded,
            ),
        )
        super().__init__(steps, self._limit, self._reserved, prefetch)

    # --- what it holds -----------------------------------------------------------------------------

    @property
    def schema(self) -> DatasetSchema:
        """The columns of the part."""
        return self.part.schema

    @property
    def window(self) -> Window | None:
        """Which sequences it gives; None if samples are rows by themselves."""
        return self._window

    def array_specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return ``{array name: (dtype, shape of one sample)}`` of a batch's inputs."""
        return (
            self.schema.array_specs()
            if self._window is None
            else self._window.array_specs(self.schema)
        )

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes in a batch, label included."""
        if self._window is None:
            return row_bytes(self.schema) + self._list_bytes
        return self._window.rows * (row_bytes(self.schema) + FOLLOWING_BYTES)

    @property
    def cache_directory(self) -> Path:
        """Where packs lie, and what belongs to a process."""
        return cache_directory(self._cache)

    @property
    def on_device(self) -> bool:
        """Whether hooks that can hold rows on a device do."""
        return self._hold == DEVICE

    @property
    def keeps_pack(self) -> bool:
        """Whether its rows come from a pack."""
        return self._keeping is Keeping.PACK

    @property
    def pack(self) -> AnyPack:
        """The pack rows come from, whole; written or opened at the first access.

        Raises
        ------
        InvalidInputError
            If rows are kept elsewhere, or nowhere.
        """
        return self._row_source.pack

    @property
    def samples(self) -> Samples:
        """What batches are read from; all of it there, if rows are kept: the pack, or rows in memory."""
        return self._row_source.whole(super().epoch_memory().terms)

    def begin(self, batches: int | None = None) -> Samples:
        """Return what batches are read from, which may still be written while its rows are read.

        Where writing a pack and an epoch in which so many batches exist at once do not fit the memory
        limit together, it is whole.
        """
        return self._row_source.begin(super().epoch_memory(batches).terms)

    def _indexed(self) -> SequenceIndex | None:
        if self._window is None:
            return None
        return SequenceIndex(
            self.part, self._window, self.cache_directory, self._limit - self._reserved
        )

    def _source(self) -> Source:
        chosen = None if self._index is None else self._index.chosen
        return Source(self.part, chosen, self.cache_directory, self._limit, self._reserved)

    def memory(self) -> LoaderMemory:
        """Return what this loader is projected to take, said before anything runs.

        Writing the pack (unless it is open already) and an epoch of plain iteration, together if they
        fit, else one after the other; both are refused when they begin if they do not fit. What hooks
        hold beside that, as batches a framework prefetches, is in ``loader.keras().memory`` and its
        siblings.

        Returns
        -------
        LoaderMemory
            Prints as a table: what this process held when the loader was made, each term, their sum,
            and the limit.
        """
        return self._row_source.memory(super().epoch_memory())

    def writing_memory(self) -> Projection:
        """Return what writing the pack takes where no epoch reads it meanwhile."""
        return self._row_source.writing().projection

    def epoch_memory(self, batches: int | None = None, workers: int = 0) -> Projection:
        """Return what an epoch takes while so many batches exist at once, as in a framework's queue.

        As many as plain iteration holds if not given. With ``workers``, each of so many processes
        computes the order for itself. Without a pack, the rows that are in memory meanwhile are counted.
        """
        return self._row_source.epoch(super().epoch_memory(batches, workers))

    def held_memory(self) -> Projection:
        """Return what an epoch takes while all rows are held in this process."""
        return held_epoch(self.epoch_memory(), self._arrangement)

    def _identity(self) -> dict[str, Json]:
        order = self._steps.digest
        if self._window is not None:
            order = fingerprint("sequences", order, self._window.fingerprint)
        return {
            "seed": self._steps.order.seed,
            "snapshot": self.part.snapshot_id,
            "part": self.part.digest,
            "order": order,
        }

    def in_table_order(self) -> Loader:
        """Return a loader of the same rows that does not shuffle; this one, if it does not.

        Rows in table order lie in a pack of their own.

        Raises
        ------
        InvalidInputError
            If it samples.
        """
        if self.sample is not None:
            raise InvalidInputError(
                f"{self.sample} samples rows, and here each is wanted once, in table order",
                "leave sample= out; weigh rows with weight= of the dataset, or with scale_pos_weight "
                "of XGBoost",
            )
        if self._steps.order.shuffle is Shuffle.NONE:
            return self
        return Loader(
            self.part,
            self.batch_size,
            cache=self._cache,
            cache_limit=self._cache_limit,
            window=self._window,
            prefetch=self.prefetch,
            memory_limit=self._limit,
            **self._kept,
        )

    @property
    def _kept(self) -> dict[str, Any]:
        """The options that say where rows are kept, and in which form lists are."""
        return {
            "pack": self._keeping is not Keeping.NOWHERE,
            "hold": self._hold,
            "ragged": None if self.ragged.form is None else str(self.ragged.form),
        }


def _mode(shuffle: bool | str, sample: Sampling | None) -> Shuffle:
    """Return how the rows of an epoch are ordered; those that are sampled come from everywhere."""
    mode = Shuffle.parse(shuffle)
    if sample is None:
        return mode
    if not isinstance(sample, Sampling):
        raise InvalidInputError(
            f"sample={shown(sample)} does not say how to sample",
            "give training.Balanced(), Weighted('column') or Stratified()",
        )
    if mode is not Shuffle.NONE:
        raise InvalidInputError(
            f"shuffle={shuffle!r} and sample={sample} are two orders",
            "leave shuffle= out: what is sampled comes in random order",
        )
    return Shuffle.GLOBAL


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
