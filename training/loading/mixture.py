"""Several loaders as one: rows of each, in fixed proportions, within every batch.

    Mixture([Loader(a.train, 4096, shuffle=True), Loader(b.train, 4096, shuffle=True)], weights=[3, 1])

Each loader's rows come in the loader's own order, epoch after its own epoch, wherever the mixture's epochs
end: every row of a loader comes once before any comes again. Whose row stands where is a fixed schedule, as of
Grain's ``MapDataset.mix``; TensorFlow's ``sample_from_datasets`` draws lots instead.

Always true: a batch is a pure function of the loaders' seeds, the weights, the epoch and the step; it has
each loader's share, to a row or two; the loaders themselves do not move.

The trade-off: all packs are whole before the first batch, and what a loader gives to a batch is copied once more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

import numpy as np

from featurestore.arguments import shown, whole_number
from featurestore.dataset.batch import Batch, DatasetSchema, HostArray, Role
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json, fingerprint
from training.loading.batches import Batches
from training.loading.buffers import Buffers
from training.loading.layout import arrays_of, batch_of
from training.loading.loader import Loader
from training.loading.memory import LoaderMemory
from training.loading.mixing import Rows
from training.loading.order import EpochOrder, Shuffle
from training.loading.padding import Last
from training.loading.schedule import CYCLE, Schedule
from training.loading.steps import Rank, Steps

MIXTURE_VERSION: Final = 1
_ROW_BYTES: Final = 6 * 8
"""Of each row of a batch: whose it is, and its number, and copies of them."""


class Mixture(Batches):
    """Batches of several loaders' rows, in proportion to weights.

    Parameters
    ----------
    loaders : sequence of Loader
        Of equal arrays, labels and weights. Their batch sizes and ``last`` do not matter here; their
        order (``shuffle``, ``seed``, ``sample``) and ``window`` do.
    weights : sequence of float, optional
        The share of each, positive; equal shares if not given.
    batch_size : int, optional
        Rows per batch, and per rank; that of the loaders if not given.
    stop : {"first", "longest"}
        When an epoch ends: before a loader would begin again, or once each has given all its rows, while
        the others begin again.
    rows : int, optional
        Rows of an epoch, instead of ``stop``.
    last : {"keep", "drop", "pad"}
        What becomes of the rows that do not fill a last batch; see :class:`training.Loader`.
    prefetch : int
        Batches that a thread makes ahead; those of the loaders do not count.

    Raises
    ------
    InvalidInputError
        If arrays differ, a loader has no rows, no pack or is a shard, or an argument is not acceptable.
    MemoryLimitError
        If an epoch is projected to exceed the smallest of the loaders' memory limits.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from featurestore.testing.datasets import numbered_part
    >>> cache = TemporaryDirectory()
    >>> few = Loader(numbered_part(30, name="few"), 8, cache=cache.name)
    >>> many = Loader(numbered_part(1000, name="many"), 8, cache=cache.name)
    >>> mixture = Mixture([few, many], weights=[1, 3])
    >>> mixture.rows, len(mixture)
    (121, 16)
    >>> mixture[0].inputs["numeric"][:, 0].astype(int).tolist()
    [0, 0, 1, 2, 3, 1, 4, 5]
    >>> cache.cleanup()
    """

    def __init__(
        self,
        loaders: Sequence[Loader],
        weights: Sequence[float] | None = None,
        *,
        batch_size: int | None = None,
        stop: str = "first",
        rows: int | None = None,
        last: str = "keep",
        prefetch: int = 0,
    ) -> None:
        self.loaders = _checked(loaders)
        shares = [1.0] * len(self.loaders) if weights is None else list(weights)
        if len(shares) != len(self.loaders):
            raise InvalidInputError(
                f"{len(shares)} weights for {len(self.loaders)} loaders", "give one for each"
            )
        self._schedule = schedule = Schedule.of(shares)
        streams = tuple(replace(one.steps, last=Last.KEEP) for one in self.loaders)
        copied = max(one.sample_bytes for one in self.loaders)
        sampler = MixtureSampler(streams, schedule, _rows(schedule, streams, stop, rows), copied)
        order = EpochOrder(sampler.rows, shuffle=Shuffle.GLOBAL)
        steps = Steps(
            order, _batch_size(self.loaders, batch_size), Last.parse(last), sampler=sampler
        )
        self._pack: MixedPack | None = None
        self._pack_lock = threading.Lock()
        limit = min(one.memory_limit for one in self.loaders)
        reserved = max(one.reserved_bytes for one in self.loaders)
        super().__init__(steps, limit, reserved, prefetch)

    @property
    def schema(self) -> DatasetSchema:
        """The columns of the first loader; those of the others are alike."""
        return self.loaders[0].schema

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each loader: of its weight, rounded to what a cycle of turns can give."""
        return tuple(one / self._schedule.cycle for one in self._schedule.turns)

    def array_specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return ``{array name: (dtype, shape of one sample)}`` of a batch's inputs."""
        return self.loaders[0].array_specs()

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes in a batch, label included."""
        return self.loaders[0].sample_bytes

    @property
    def pack(self) -> MixedPack:
        """The loaders' packs, whole; written one after the other or opened at the first access."""
        with self._pack_lock:
            if self._pack is None:
                self._pack = MixedPack([one.pack for one in self.loaders])
            return self._pack

    def begin(self, batches: int | None = None) -> MixedPack:
        """Return the packs, which are whole however many batches exist."""
        return self.pack

    @property
    def samples(self) -> MixedPack:
        """The packs."""
        return self.pack

    def memory(self) -> LoaderMemory:
        """Return what this mixture is projected to take: writing each pack, then an epoch of all.

        An epoch holds its batches, one more of what a loader gives, and the orders of all loaders.
        """
        writing = () if self._pack is not None else self.loaders
        return LoaderMemory((*(one.memory().activities[0] for one in writing), self.epoch_memory()))

    def in_table_order(self) -> Loader:
        """Refuse: a mixture has rows in other proportions than any table.

        Raises
        ------
        InvalidInputError
            Always.
        """
        raise InvalidInputError(
            f"a mixture of {len(self.loaders)} loaders has no table order, in which XGBoost takes "
            "each row as often as it is there",
            "ingest all rows into one table, and weigh them with weight= of the dataset",
        )

    def _identity(self) -> dict[str, Json]:
        each = [one._identity() for one in self.loaders]
        orders = fingerprint("mixture", self._steps.digest, [one["order"] for one in each])
        found: dict[str, Json] = {
            name: [one[name] for one in each] for name in ("seed", "snapshot", "part")
        }
        return {**found, "order": orders}


@dataclass(frozen=True, slots=True, eq=False)
class MixtureSampler:
    """Which rows of several streams an epoch has.

    Rows of stream ``k`` are numbered after those of the streams before it.

    Parameters
    ----------
    streams : tuple of Steps
        Whose positions are visited one after the other, epoch after epoch.
    schedule : Schedule
    rows : int
        Of an epoch of the mixture.
    copied : int
        Bytes of a sample, of which a loader's are held while they are put among the others.
    """

    streams: tuple[Steps, ...]
    schedule: Schedule
    rows: int
    copied: int

    @property
    def fingerprint(self) -> str:
        streams = [one.digest for one in self.streams]
        return fingerprint(
            "mixture", MIXTURE_VERSION, self.rows, list(self.schedule.turns), streams
        )

    def memory(self, count: int) -> int:
        own = (_ROW_BYTES + self.copied) * count + 8 * CYCLE
        return own + sum(one.memory(count) for one in self.streams)

    def indices(self, order: EpochOrder, steps: Steps, start: int, stop: int) -> Rows:
        # Numbers of turns since the first epoch are Python's: they have no largest one.
        first = order.epoch * self.rows + start
        last = first + stop - start
        turns, found = self.schedule.at(first, last), np.empty(stop - start, dtype=np.int64)
        had, have = self.schedule.before(first), self.schedule.before(last)
        bases = accumulate((one.order.rows for one in self.streams), initial=0)
        for number, (stream, base) in enumerate(zip(self.streams, bases, strict=False)):
            if have[number] > had[number]:
                found[turns == number] = _stream_rows(stream, had[number], have[number]) + base
        return found


class MixedPack:
    """The samples of several packs, numbered one pack after the other.

    Parameters
    ----------
    packs : sequence of Samples
        Packs or what gives sequences of them, of equal arrays.
    """

    def __init__(self, packs: Sequence[Any]) -> None:
        self._packs = packs
        self._buffers = Buffers()
        self.schema: DatasetSchema = packs[0].schema
        self._stops = np.cumsum([one.rows for one in packs])
        self.rows = int(self._stops[-1])
        self.shared = True

    def gather(self, rows: Rows) -> Batch:
        """Return some samples in the order given; raises InvalidInputError if one is outside."""
        if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= self.rows):
            raise InvalidInputError(
                f"samples {rows.min()} to {rows.max()} lie outside {self.rows} of a mixture"
            )
        whose = np.searchsorted(self._stops, rows, side="right")
        arrays: dict[str, HostArray] = {}
        inputs: list[str] = []
        for number, (pack, stop) in enumerate(zip(self._packs, self._stops, strict=True)):
            places = np.flatnonzero(whose == number)
            if not len(places) and arrays:
                continue  # the first is asked for the types of its arrays
            part = pack.gather(rows[places] - (stop - pack.rows))
            inputs = list(part.inputs)  # of sequences with the mask, which no schema has
            for name, values in arrays_of(part, self.schema).items():
                if name not in arrays:
                    arrays[name] = self._buffers.empty((len(rows), *values.shape[1:]), values.dtype)
                arrays[name][places] = values
            del part
        made = batch_of(arrays, self.schema)
        return replace(made, inputs={name: arrays[name] for name in inputs})

    def read(self, start: int, stop: int) -> Batch:
        """Return samples ``[start, stop)``."""
        return self.gather(np.arange(start, stop, dtype=np.int64))

    def prefetch(self, starts: Rows, count: int) -> None:
        """Do nothing: rows come from all over."""

    def ahead(self, stripes: Iterable[int]) -> AbstractContextManager[None]:
        """Keep memory of batches; all rows are there."""
        return self._buffers.used()


def _stream_rows(stream: Steps, start: int, stop: int) -> Rows:
    """Return the rows at positions of a stream that goes on from epoch to epoch."""
    pieces, rows = [], stream.order.rows
    while start < stop:
        epoch, place = divmod(start, rows)
        end = min(rows, place + stop - start)
        pieces.append(stream.indices(epoch, place, end))
        start += end - place
    return np.concatenate(pieces)


def _checked(loaders: Sequence[Loader]) -> tuple[Loader, ...]:
    """Return the loaders, if they can be mixed."""
    found = tuple(loaders)
    if not found:
        raise InvalidInputError("a mixture of no loaders", "give at least one")
    for number, one in enumerate(found):
        if not isinstance(one, Loader):
            raise InvalidInputError(f"{shown(one)} is no loader", "give training.Loader objects")
        if one.steps.ranks != Rank():
            raise InvalidInputError(
                f"loader {number} is one rank's share", "mix whole loaders, and shard the mixture"
            )
        if not one.keeps_pack:
            raise InvalidInputError(
                f"loader {number} has no pack, and a mixture reads packs",
                "make it without pack=False and hold=",
            )
        one.ragged.refuse("a mixture", padded=True)
        if not one.rows:
            raise InvalidInputError(f"loader {number} has no rows", "leave it out")
        _require_alike(found[0], one, number)
    return found


def _require_alike(first: Loader, other: Loader, number: int) -> None:
    """Refuse a loader whose batches would be of other arrays, or would mean something else."""
    ours, theirs = _described(first), _described(other)
    for name in (*ours, *(one for one in theirs if one not in ours)):
        if ours.get(name) != theirs.get(name):
            raise InvalidInputError(
                f"{name} is {ours.get(name, 'not there')} in loader 0 and "
                f"{theirs.get(name, 'not there')} in loader {number}",
                "select the same features in the same order, with one pipeline and one vocabulary",
            )


def _described(loader: Loader) -> dict[str, str]:
    """Return what a batch has, in words."""
    schema = loader.schema
    found = {
        f"array {name!r}": f"{dtype} {[*shape]}"
        for name, (dtype, shape) in loader.array_specs().items()
    }
    found["the order of columns of 'numeric'"] = str(list(schema.numeric))
    for one in schema.of_role(Role.CATEGORICAL):
        found[f"the number of codes of {one.name!r}"] = str(one.cardinality)
    for one in schema.labels:
        name = "the label" if schema.label else f"label {one.name!r}"
        found[name] = f"{one.dtype} {[*one.shape]}"
    if schema.weight is not None:
        found["the weight of rows"] = "there"
    return found


def _batch_size(loaders: Sequence[Loader], asked: int | None) -> int:
    if asked is not None:
        return whole_number(asked, "batch_size", 1)
    sizes = sorted({one.batch_size for one in loaders})
    if len(sizes) > 1:
        raise InvalidInputError(
            f"the loaders have batches of {sizes} rows", "give batch_size= to the mixture"
        )
    return sizes[0]


def _rows(schedule: Schedule, streams: Sequence[Steps], stop: str, asked: int | None) -> int:
    """Return how many rows an epoch has."""
    if stop not in ("first", "longest"):
        raise InvalidInputError(f"stop={stop!r} ends no epoch", "use 'first' or 'longest'")
    if asked is not None:
        return whole_number(asked, "rows", 1)
    sizes = [one.order.rows for one in streams]
    if stop == "first":
        return min(schedule.place(number, rows) for number, rows in enumerate(sizes))
    return 1 + max(schedule.place(number, rows - 1) for number, rows in enumerate(sizes))
