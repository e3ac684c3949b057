"""PyTorch: a loader as an iterable and as a map-style dataset of whole batches.

    batches = loader.torch()
    for inputs, label in batches.loader(num_workers=4): ...              # counts what was handed out
    for inputs, label in DataLoader(batches, batch_size=None): ...       # the same, in this process

``inputs`` is a dict of tensors: ``numeric`` float32 ``[batch, n]``, each categorical input int32
``[batch]``, each tensor ``[batch, ...]``; ``label`` is float32 or int64 ``[batch]``, as losses want
it, or a dict of several; a float32 weight ``[batch]`` follows where batches have one. Tensors share the memory of the batch's arrays, which nobody else writes or reads.

Always true: batches come in the loader's own order, with any number of workers; workers map the pack
that this process opened and build nothing, so they may be forked or spawned; an epoch counts once its
last batch was handed out by :class:`TorchLoader`, or in this process.

The trade-off: what several workers read in parallel is copied once more, into memory that they share
with this process. A batch is a copy out of a memory map already: workers pay where the disk is slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from featurestore.dataset.batch import Batch
from featurestore.errors import InvalidInputError, UnsupportedError
from training.hooks.elements import element
from training.loading.memory import OWN_BATCHES, Projection, project_epoch
from training.loading.order import Shuffle
from training.loading.position import Position

if TYPE_CHECKING:
    from training.loading.loader import Loader

__all__ = ["TorchBatches", "TorchLoader", "TorchMap", "torch"]

Element: TypeAlias = "tuple[Any, ...]"

DEFAULT_PREFETCH: Final = 2
"""Batches that a ``DataLoader`` has each worker read ahead."""
_GIVEN: Final = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "in_order")
"""Options of a ``DataLoader`` that would change which batches come, or their order."""


class _Feed:
    """What reads batches of a loader in this process or, as a copy, in a worker."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self._steps = loader.steps
        self._pack = loader.samples  # a pack is built here, if it is not yet; workers only map it
        self._sample_bytes = loader.sample_bytes
        self._limits = (loader.memory_limit, loader.reserved_bytes)
        self._alone = loader.epoch_memory()
        self._prefetch = loader.prefetch
        self._board = _Board(loader.epoch)

    def __len__(self) -> int:
        """Batches of an epoch; of the rest of a resumed one there are ``loader.steps_left``."""
        return len(self._steps)

    def memory(self, num_workers: int = 0, prefetch_factor: int = DEFAULT_PREFETCH) -> Projection:
        """Return what an epoch takes, in this process and in its workers together.

        Counted are the batches that wait, one that each worker makes, and the workers' orders;
        not what Python and PyTorch take in each worker, which depends on how it is started.
        """
        if not num_workers:
            return self._alone
        waiting = num_workers * (prefetch_factor + 1)
        return project_epoch(
            self._steps,
            self._sample_bytes,
            *self._limits,
            batches=OWN_BATCHES + waiting,
            workers=num_workers,
        )


class TorchBatches(_Feed, IterableDataset):  # type: ignore[misc]
    """A loader as ``torch.utils.data.IterableDataset`` whose items are whole batches.

    Iterate over :meth:`loader`, or over ``DataLoader(batches, batch_size=None, num_workers=n)``. In
    this process (``n=0``) both move the loader as iterating over it does. A plain ``DataLoader`` does
    not tell anyone what its workers' batches become: call :meth:`set_epoch` before each epoch then.
    An order that workers are asked for a second time without that is refused, not repeated.

    Parameters
    ----------
    loader : Loader
        Its pack is built or opened at once, so that workers find it.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(numbered_part(10), 4, cache=cache.name)
    >>> for inputs, label in DataLoader(loader.torch(), batch_size=None):
    ...     print(tuple(inputs["numeric"].shape), label.dtype)
    (4, 3) torch.float32
    (4, 3) torch.float32
    (2, 3) torch.float32
    >>> loader.epoch
    1
    >>> cache.cleanup()
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self._position = loader.position
        self._passes = 0  # of this worker

    def loader(self, num_workers: int = 0, **options: Any) -> TorchLoader:
        """Return a ``DataLoader`` that moves the loader by what it handed out; see :class:`TorchLoader`."""
        return TorchLoader(self, num_workers, **options)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin ``epoch`` from its first batch, in workers too."""
        self._steps.order_of(epoch)
        self._position.move(epoch)
        self._board.tell(epoch, 0)

    def __iter__(self) -> Iterator[Element]:
        worker = get_worker_info()
        if worker is None:
            return map(_tensors, self._steps.follow(self._pack, self._position, self._prefetch))
        # A worker begins where the process that made it was; a kept one asks anew for each epoch.
        # Both are looked up at once, before the consumer is answered: later they may have changed.
        start = self._board.told if self._passes else self._position.start
        self._passes += 1
        again = worker.id == 0 and self._board.begin(*start)
        return self._of_worker(*start, worker.id, worker.num_workers, again)

    def _of_worker(
        self, epoch: int, first: int, number: int, workers: int, again: bool
    ) -> Iterator[Element]:
        # A DataLoader asks its workers in turn.
        if again and (first or self._steps.order.shuffle is not Shuffle.NONE):
            raise InvalidInputError(
                f"workers are to begin with step {first} of epoch {epoch} a second time",
                "iterate over loader.torch().loader(num_workers=...), which moves on, or call "
                "set_epoch before each epoch",
            )
        steps = range(first + number, len(self), workers)
        yield from map(_tensors, self._steps.batches(self._pack, epoch, steps))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_position": self._position.start}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _position=Position(*state["_position"]))


class TorchLoader(DataLoader):  # type: ignore[misc]
    """A ``DataLoader`` over a loader's batches that moves the loader by what it handed out.

    ``loader.state_dict()`` therefore names the next batch of the training loop, whatever workers
    have read ahead, and the next iteration is the next epoch, or the same once more if it was left.

    Parameters
    ----------
    batches : TorchBatches
    num_workers : int
    options
        Of ``DataLoader``: ``prefetch_factor``, ``pin_memory``, ``persistent_workers``, ... Not those
        that choose batches. ``multiprocessing_context`` is ``"spawn"`` if not given: this process
        has threads, which a fork does not survive. Starting workers takes seconds then; several
        epochs want ``persistent_workers=True``, whose workers end with this object.

    Raises
    ------
    InvalidInputError
        If an option would change which batches come.
    UnsupportedError
        If workers cannot read the loader's rows: only a pack is shared.
    MemoryLimitError
        If the batches in flight do not fit the loader's memory limit.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> loader = Loader(numbered_part(10), 4, cache=cache.name)
    >>> batches = loader.torch().loader(num_workers=0)
    >>> for inputs, label in batches:
    ...     print(loader.state_dict()["step"])
    1
    2
    0
    >>> cache.cleanup()
    """

    def __init__(self, batches: TorchBatches, num_workers: int = 0, **options: Any) -> None:
        refused = sorted(set(_GIVEN) & set(options))
        if refused:
            raise InvalidInputError(
                f"{refused[0]}={options[refused[0]]!r} is not for this DataLoader",
                "batch_size, shuffle and last are the loader's: give them to training.Loader",
            )
        if num_workers:
            options.setdefault("multiprocessing_context", "spawn")
        if num_workers and not batches._pack.shared:
            raise UnsupportedError(
                f"num_workers={num_workers} are processes of their own; rows that are held in memory, "
                "or streamed without a pack, are this one's",
                "use num_workers=0 (threads of this process read ahead), or keep a pack: leave "
                "pack=False and hold= out",
            )
        prefetch = options.get("prefetch_factor")
        batches.memory(num_workers, DEFAULT_PREFETCH if prefetch is None else prefetch).require()
        super().__init__(batches, batch_size=None, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[Element]:
        if self.num_workers == 0:  # the dataset itself counts
            yield from super().__iter__()
            return
        batches: TorchBatches = self.dataset
        one = batches._position.begin()
        batches._board.tell(one.epoch, one.first)
        elements, kept = super().__iter__(), self.persistent_workers
        try:
            for turn, found in zip(one.turns(len(batches)), elements, strict=True):
                turn.hand_out()
                yield found
        except Exception:  # in a worker, or of one: the next iteration begins with new ones
            kept, self._iterator = False, None
            raise
        finally:
            # At once, not when the last traceback that refers to them is let go of.
            if not kept:
                elements._shutdown_workers()


class TorchMap(_Feed, Dataset):  # type: ignore[misc]
    """A loader as map-style dataset: item ``i`` is batch ``i`` of an epoch, computed on its own.

    ``DataLoader(batches, batch_size=None, num_workers=n)`` gives the loader's order: no sampler, no
    ``shuffle``, both would permute whole batches. The loader does not move: call :meth:`set_epoch`
    before each epoch.

    Parameters
    ----------
    loader : Loader
        Its pack is built or opened at once; its epoch is the first.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> from training import Loader
    >>> cache = TemporaryDirectory()
    >>> batches = Loader(numbered_part(10), 4, shuffle=True, cache=cache.name).torch_map()
    >>> for epoch in range(2):
    ...     batches.set_epoch(epoch)
    ...     print([len(label) for inputs, label in DataLoader(batches, batch_size=None)])
    [4, 4, 2]
    [4, 4, 2]
    >>> cache.cleanup()
    """

    @property
    def epoch(self) -> int:
        """The epoch that items are of."""
        return self._board.told[0]

    def set_epoch(self, epoch: int) -> None:
        """Let items be batches of ``epoch``, in workers too."""
        self._steps.order_of(epoch)
        self._board.tell(epoch, 0)

    def __getitem__(self, step: int) -> Element:
        """Return batch ``step`` as tensors; negative counts from the end."""
        number = step + len(self) if step < 0 else step
        return _tensors(self._steps.read(self._pack, number, self.epoch))


class _Board:
    """Numbers that one process writes and its workers read, however these were started."""

    def __init__(self, epoch: int) -> None:
        # How often told, epoch, step; and which of that was begun.
        self._numbers = torch.tensor([1, epoch, 0, 0, 0, 0], dtype=torch.int64).share_memory_()

    @property
    def told(self) -> tuple[int, int]:
        """Epoch and step that workers are to begin with."""
        _, epoch, step, *_ = self._numbers.tolist()
        return epoch, step

    def tell(self, epoch: int, step: int) -> None:
        self._numbers[1:3] = torch.tensor([epoch, step])
        self._numbers[0] += 1

    def begin(self, epoch: int, step: int) -> bool:
        """Note that workers begin there; return whether they did before and were told nothing since."""
        now = torch.tensor([int(self._numbers[0]), epoch, step])
        again = bool((self._numbers[3:] == now).all())
        self._numbers[3:] = now
        return again


def _tensors(batch: Batch) -> Element:
    return tuple(
        {name: torch.from_numpy(one) for name, one in part.items()}
        if isinstance(part, dict)
        else torch.from_numpy(part)
        for part in element(batch, narrow=False)
    )
