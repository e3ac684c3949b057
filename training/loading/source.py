"""Where a loader's rows come from: a pack, memory, or the table itself in every epoch.

Always true: what is begun was projected with the epoch that reads it, and is refused before anything is
read if it does not fit; a loader and its shards begin it once.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from featurestore.dataset.batch import DatasetPart
from featurestore.errors import InvalidInputError
from training.loading.arrangement import Arrangement
from training.loading.held import HeldRows
from training.loading.memory import (
    LoaderMemory,
    Projection,
    Term,
    Writing,
    held_epoch,
    holding_memory,
    streaming_memory,
    writing_memory,
)
from training.loading.pack import Pack
from training.loading.ragged_inputs import PaddedPack
from training.loading.sequences import SequenceIndex, SequencePack
from training.loading.steps import Samples
from training.loading.streaming import StreamedRows

Terms: TypeAlias = tuple[Term, ...]
AnyPack: TypeAlias = Pack | SequencePack | PaddedPack
DEVICE: Final = "device"


class Keeping(StrEnum):
    """Where rows are kept between epochs."""

    PACK = "pack"
    MEMORY = "memory"
    NOWHERE = "nowhere"

    @classmethod
    def parse(cls, pack: bool, hold: str | None) -> Keeping:
        """Return what a loader's ``pack=`` and ``hold=`` mean.

        Raises
        ------
        InvalidInputError
            If either is none of the values there are.
        """
        if not isinstance(pack, bool):
            raise InvalidInputError(
                f"pack={pack!r} does not say whether a pack is kept",
                "use True or False; where packs lie is cache=",
            )
        if hold not in (None, "memory", DEVICE):
            raise InvalidInputError(
                f"hold={hold!r} is no place to hold rows in",
                "use 'memory' or 'device', or leave it out",
            )
        if hold == DEVICE and not pack:
            raise InvalidInputError(
                "rows are put on a device from a pack, and this loader has none",
                "leave pack=False out, or use hold='memory'",
            )
        if hold == "memory":
            return cls.MEMORY
        return cls.PACK if pack else cls.NOWHERE

    def require(self, *, at_once: bool, sequences: bool) -> None:
        """Refuse what needs rows that are kept, if they are not.

        Raises
        ------
        InvalidInputError
            For batches of rows from all over the part (``at_once``), and for sequences.
        """
        if self is not Keeping.NOWHERE:
            return
        if at_once:
            raise InvalidInputError(
                "shuffle='global' and sample= have rows of the whole part in every batch, which a "
                "loader without a pack would read from the table each time",
                "use pack=True, hold='memory' if the part fits, or shuffle=True",
            )
        if sequences:
            raise InvalidInputError(
                "the rows before a sample lie anywhere in the table: sequences need rows that are "
                "kept",
                "use pack=True, or hold='memory' if the part fits",
            )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a loader's rows are, and what this process may hold.

    Parameters
    ----------
    part : DatasetPart
    arrangement : Arrangement
    index : SequenceIndex, optional
        If samples are sequences.
    limit, reserved : int
        Bytes: what may be held, and what is held already.
    at_once : bool
        Whether an epoch begins with rows from all over the part, so that all have to be there.
    cache : path, optional
    cache_limit : int, optional
    padded : bool
        Whether lists are padded.
    """

    part: DatasetPart
    arrangement: Arrangement
    index: SequenceIndex | None
    limit: int
    reserved: int
    at_once: bool
    cache: str | Path | None
    cache_limit: int | None
    padded: bool = False


class RowSource(ABC):
    """What gives a loader its samples."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._lock = threading.Lock()

    @abstractmethod
    def begin(self, epoch: Terms) -> Samples:
        """Return samples that may still be on their way, for an epoch that holds so much."""

    @abstractmethod
    def whole(self, epoch: Terms) -> Samples:
        """Return the samples, all of them there where they are kept."""

    @property
    def pack(self) -> AnyPack:
        """The pack, whole; raises InvalidInputError if there is none."""
        raise InvalidInputError(
            "this loader has no pack: it was made with pack=False or hold=",
            "leave these out where rows are passed over several times",
        )

    def epoch(self, epoch: Projection) -> Projection:
        """Return what an epoch takes with what is held for it, given what it takes by itself."""
        return epoch

    @abstractmethod
    def memory(self, epoch: Projection) -> LoaderMemory:
        """Return all that is about to be done, given an epoch by itself."""

    def writing(self, epoch: Terms = ()) -> Writing:
        """Return what reading the part takes, beside an epoch that holds so much."""
        one = self.setting
        return writing_memory(one.part, one.arrangement, one.limit, one.reserved, epoch)


def source_of(keeping: Keeping, setting: Setting) -> RowSource:
    """Return the source of rows that are kept so."""
    if keeping is Keeping.PACK:
        return PackedSource(setting)
    if keeping is Keeping.MEMORY:
        return HeldSource(setting)
    return StreamedSource(setting)


class PackedSource(RowSource):
    """Rows of a pack, which the first epoch writes."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._pack: AnyPack | None = None

    def begin(self, epoch: Terms) -> Samples:
        """Where writing it and the epoch do not fit the memory limit together, it is whole."""
        one = self.setting
        with self._lock:
            if self._pack is None and not one.at_once:
                writing = self.writing(epoch)
                if writing.projection.fits:
                    self._pack = self._given(
                        Pack.begin(one.part, one.arrangement, one.cache, writing, one.cache_limit)
                    )
            if self._pack is not None:
                return self._pack
        return self.pack

    def whole(self, epoch: Terms) -> Samples:
        return self.pack

    @property
    def pack(self) -> AnyPack:
        one = self.setting
        with self._lock:
            if self._pack is None:
                self._pack = self._given(
                    Pack.for_part(
                        one.part, one.cache, self.writing(), one.arrangement, one.cache_limit
                    )
                )
            self._pack.complete()
            return self._pack

    def _given(self, pack: Pack) -> AnyPack:
        """Return what gives the samples of a pack."""
        index = self.setting.index
        if self.setting.padded:
            return PaddedPack(pack)
        return pack if index is None else SequencePack(pack, index)

    def memory(self, epoch: Projection) -> LoaderMemory:
        if self._pack is not None:
            return LoaderMemory((epoch,))
        together = self.writing(epoch.terms).projection
        streams = together.fits and not self.setting.at_once
        return LoaderMemory((together if streams else self.writing().projection, epoch))


class HeldSource(RowSource):
    """Rows in memory, which the first epoch reads there."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._rows: HeldRows | SequencePack | None = None

    def begin(self, epoch: Terms) -> Samples:
        one = self.setting
        with self._lock:
            if self._rows is None:
                rows = HeldRows(one.part, one.arrangement, self.writing(epoch))
                self._rows = rows if one.index is None else SequencePack(rows, one.index)
            found = self._rows
        return found.complete() if one.at_once else found

    def whole(self, epoch: Terms) -> Samples:
        self.begin(epoch)
        assert self._rows is not None
        return self._rows.complete()

    def epoch(self, epoch: Projection) -> Projection:
        return held_epoch(epoch, self.setting.arrangement)

    def memory(self, epoch: Projection) -> LoaderMemory:
        if self._rows is not None:
            return LoaderMemory((self.epoch(epoch),))
        return LoaderMemory((self.writing(epoch.terms).projection, self.epoch(epoch)))

    def writing(self, epoch: Terms = ()) -> Writing:
        one = self.setting
        return holding_memory(one.part, one.arrangement, one.limit, one.reserved, epoch)


class StreamedSource(RowSource):
    """Rows that are read from the table in every epoch."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._rows: StreamedRows | None = None

    def begin(self, epoch: Terms) -> Samples:
        one = self.setting
        with self._lock:
            if self._rows is None:
                streaming = streaming_memory(
                    one.part, one.arrangement, one.limit, one.reserved, epoch
                )
                self._rows = StreamedRows(one.part, one.arrangement, streaming)
            return self._rows

    def whole(self, epoch: Terms) -> Samples:
        return self.begin(epoch)

    def epoch(self, epoch: Projection) -> Projection:
        return self.writing(epoch.terms).projection

    def memory(self, epoch: Projection) -> LoaderMemory:
        return LoaderMemory((self.epoch(epoch),))

    def writing(self, epoch: Terms = ()) -> Writing:
        one = self.setting
        return streaming_memory(one.part, one.arrangement, one.limit, one.reserved, epoch).writing
