"""A pack: a dataset part in training-ready form, row-major and uncompressed, in a local cache.

Every epoch, run and model only copies rows from a memory map of it; the first may do so while it is
being written (``filling``). Nulls were replaced or refused by the dataset; a numeric NaN is a value and
stays NaN.

Always true: a pack that :meth:`Pack.open` returns was completely written, made durable and published
by one rename, and its files have the sizes its manifest says. A torn or damaged one is set aside and
built again. A pack is never the only copy: deleting it costs time, not data.

The trade-off: disk space of the decoded arrays, for feeding at the speed of a memory copy. Mapped
pages are page cache, which the kernel takes back under pressure; they count as file memory, not as
this process's own.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import numpy as np

from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema, HostArray
from featurestore.errors import CorruptionError
from training.loading.arrangement import Arrangement
from training.loading.buffers import Buffers
from training.loading.filling import Filling
from training.loading.gathering import check_range, checked_bounds, copied, taken
from training.loading.layout import (
    MANIFEST,
    ArrayLayout,
    batch_of,
    decode_manifest,
    items_layout,
    pack_key,
    pack_layout,
)
from training.loading.list_values import ListItems
from training.loading.memory import Writing, row_bytes, writing_memory
from training.loading.mixing import Rows
from training.loading.pack_cache import cache_directory, hold, set_aside
from training.loading.pack_files import file_checksum
from training.loading.scratch import mapped_files

_trusted: Final[set[Path]] = set()
"""Packs that this process wrote or has compared with their checksums."""
_SMAPS: Final = Path("/proc/self/smaps")


class Pack:
    """The rows of one dataset part, random access.

    Use :meth:`for_part`, or :meth:`begin` for one that may still be written while its rows are read:
    who reads waits for the rows asked for. Safe to use from several threads; holds one memory map per
    array.
    """

    def __init__(
        self,
        path: Path,
        schema: DatasetSchema,
        manifest: Mapping[str, Any],
        filling: Filling | None = None,
    ) -> None:
        self.path = path
        self.schema = schema
        self.rows: int = manifest["rows"]
        self._manifest = manifest
        self._filling = filling
        self._buffers = Buffers()
        self._layout = pack_layout(schema, self.rows)
        folder = path if filling is None else filling.build
        if filling is None:
            self._keep()
        self._arrays = {key: _map(folder, one) for key, one in self._layout.items()}
        self._lists = {
            key: ListItems(folder / one.file, one)
            for key, one in items_layout(schema, manifest.get("items", {})).items()
        }
        _open.add(self)

    @classmethod
    def begin(
        cls,
        part: DatasetPart,
        arrangement: Arrangement,
        cache: str | Path | None = None,
        writing: Writing | None = None,
        limit: int | None = None,
    ) -> Pack:
        """Open the pack of a part, or begin to write it if there is none or it is damaged.

        Parameters
        ----------
        part : DatasetPart
        arrangement : Arrangement
            Of the part's rows; see :func:`arranged`.
        cache : path, optional
            See :func:`cache_directory`.
        writing : Writing, optional
            What writing may hold; of the part's own limit if not given.
        limit : int, optional
            Bytes that all packs of the cache may take; see ``pack_cache.make_room``.

        Raises
        ------
        DiskFullError
            If the cache's disk or the limit cannot hold it; nothing is left behind.
        MemoryLimitError
            Before anything is read, if writing it does not fit the memory limit.
        """
        path = cache_directory(cache) / pack_key(part.digest, arrangement)
        if path.exists():
            try:
                pack = cls.open(path, part)
                # Once per process, for a pack that an earlier one wrote: about the time of one
                # sequential read, which the first epoch then finds in memory.
                if path not in _trusted:
                    pack.verify()
                    _trusted.add(path)
                return pack
            except CorruptionError:
                # Never trusted, never repaired: moved away in one step, so that a process that
                # still has it mapped keeps its pages, and built again below.
                set_aside(path)
        writing = writing_memory(part, arrangement) if writing is None else writing
        filling = Filling(part, path, arrangement, writing, limit)
        return cls(path, part.schema, {"rows": part.rows}, filling)

    @classmethod
    def for_part(
        cls,
        part: DatasetPart,
        cache: str | Path | None = None,
        writing: Writing | None = None,
        arrangement: Arrangement | None = None,
        limit: int | None = None,
    ) -> Pack:
        """Open the whole pack of a part, writing it first if there is none or it is damaged.

        Parameters and errors are those of :meth:`begin`; rows lie in table order if no arrangement is
        given.

        Raises
        ------
        SchemaError
            If the part's arrays are not what its schema says.
        """
        pack = cls.begin(part, arrangement or arranged(part), cache, writing, limit)
        try:
            return pack.complete()
        except BaseException:
            pack._give_up()
            raise

    @classmethod
    def open(cls, path: Path, part: DatasetPart) -> Pack:
        """Open a pack and check that it is complete and of this part.

        Raises
        ------
        CorruptionError
            If the manifest is torn, of another part or schema, or a file is missing or of the wrong
            size.
        """
        manifest = _read_manifest(path)
        if manifest["part"] != part.digest or manifest["rows"] != part.rows:
            raise CorruptionError(f"pack {path} is of another dataset part")
        if manifest["schema"] != part.schema.to_json():
            raise CorruptionError(f"pack {path} holds other columns than its part has")
        _check_sizes(path, part.schema, manifest)
        pack = cls(path, part.schema, manifest)
        with suppress(OSError):  # a read-only cache is usable; only its age stays unknown
            os.utime(path / MANIFEST)
        return pack

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its path and manifest: another process maps the same files, and builds nothing."""
        self.complete()
        return _open_again, (self.path, self.schema, self._manifest)

    @property
    def shared(self) -> bool:
        """Whether other processes can read the rows too: once they are all there."""
        return True

    # --- being written -----------------------------------------------------------------------------

    @property
    def is_whole(self) -> bool:
        """Whether all rows are there and the pack is under its name."""
        return self._filling is None or self._filling.published

    def complete(self) -> Pack:
        """Return the pack when all its rows are written; raises what :meth:`for_part` does."""
        if self._filling is not None:
            self._filling.complete()
            self._written(self._filling)
        return self

    def ahead(self, stripes: Iterable[int]) -> AbstractContextManager[None]:
        """Write in the background inside the block what is missing, these stripes first."""
        if self._filling is None:
            return self._buffers.used()
        return self._write_ahead(self._filling, stripes)

    @contextmanager
    def _write_ahead(self, filling: Filling, stripes: Iterable[int]) -> Iterator[None]:
        with self._buffers.used(), filling.ahead(stripes):
            yield
        if filling.published:
            self._written(filling)

    def _written(self, filling: Filling) -> None:
        _trusted.add(self.path)
        with suppress(CorruptionError):  # removed already: what is mapped stays
            self._manifest = _read_manifest(self.path)
            self._keep()
        self._filling = None

    def _keep(self) -> None:
        """Say that it is in use, as long as this object is."""
        try:
            handle = hold(self.path)
        except OSError as error:
            raise CorruptionError(f"pack {self.path} has no readable manifest: {error}") from error
        weakref.finalize(self, os.close, handle)

    def _give_up(self) -> None:
        self._arrays = {}
        if self._filling is not None:
            self._filling.give_up()

    # --- reading ---------------------------------------------------------------------------------

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays, label included."""
        return sum(one.row_bytes for one in self._layout.values())

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` in table order, as arrays of their own.

        The rows that follow are asked for, as they are likely to be next.
        """
        check_range(start, stop, self.rows)
        self._require(start, stop - 1)
        self._ask_for(start, 2 * stop - start)
        return self._batch(copied(self._arrays, start, stop, self._buffers))

    def view(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` in table order as the mapped arrays themselves, not copied.

        They are read-only, and each keeps the pack's files mapped as long as it is used. Lists are
        copied.
        """
        check_range(start, stop, self.rows)
        self._require(start, stop - 1)
        self._ask_for(start, stop)
        arrays = {key: source[start:stop] for key, source in self._arrays.items()}
        return self._batch(arrays)

    def _batch(self, arrays: Mapping[str, HostArray]) -> Batch:
        """Return the batch that some rows of the arrays are, with their lists."""
        lists = {key: items.take(arrays[key]) for key, items in self._lists.items()}
        return batch_of(arrays, self.schema, lists)

    def gather(self, rows: Rows) -> Batch:
        """Return some rows in the order given, as arrays of their own.

        Parameters
        ----------
        rows : int64 array
            Row numbers in ``[0, rows)``, repeated ones allowed.

        Raises
        ------
        InvalidInputError
            If one is outside.
        """
        bounds = checked_bounds(rows, self.rows)
        if bounds is not None:
            self._require(*bounds)
        return self._batch(taken(self._arrays, rows, self._buffers))

    def prefetch(self, starts: Rows, count: int) -> None:
        """Ask the kernel to read runs of ``count`` rows ahead; returns at once.

        On a cold cache this turns scattered page faults into large reads.
        """
        for key, array in self._arrays.items():
            handle = getattr(array, "_mmap", None)
            if handle is None or not hasattr(mmap, "MADV_WILLNEED"):
                continue
            row_bytes, page = self._layout[key].row_bytes, mmap.ALLOCATIONGRANULARITY
            for start in starts.tolist():
                first = start * row_bytes // page * page
                length = min((start + count) * row_bytes, len(handle)) - first
                if length > 0:
                    handle.madvise(mmap.MADV_WILLNEED, first, length)

    # --- keeping ---------------------------------------------------------------------------------

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises
        ------
        CorruptionError
            Naming the file that was altered.
        """
        self.complete()
        for one, stripes in self._all_arrays():
            seen = file_checksum(self.path / one.file, one, stripes)
            expected = self._manifest["checksums"][one.path]
            if seen != expected:
                raise CorruptionError(
                    f"file {one.file} of pack {self.path} has checksum {seen} instead of {expected}",
                    "delete the pack; it is built again from the store",
                )

    def _all_arrays(self) -> list[tuple[ArrayLayout, Iterable[int]]]:
        """Return each array of the whole pack, and the rows of its stripes; items of lists have none."""
        items = items_layout(self.schema, self._manifest.get("items", {}))
        stripes = self._manifest["stripes"]
        rows: list[tuple[ArrayLayout, Iterable[int]]] = [
            (one, stripes) for one in self._layout.values() if one.rows
        ]
        return [*rows, *((one, ()) for one in items.values())]

    def _require(self, first: int, last: int) -> None:
        if self._filling is not None and first <= last:
            self._filling.require(first, last)

    def _ask_for(self, start: int, stop: int) -> None:
        """Let the kernel read rows in one go, those beyond the last left out."""
        self.prefetch(np.array([start], dtype=np.int64), min(stop, self.rows) - start)

    def _files(self) -> list[Path]:
        filling = self._filling
        folder = self.path if filling is None or filling.published else filling.build
        items = items_layout(self.schema, {})
        return [folder / one.file for one in (*self._layout.values(), *items.values())]

    def delete(self) -> None:
        """Remove the pack from the disk. Loaders that have it open go on; new ones build it again."""
        self._give_up()
        set_aside(self.path)


def arranged(part: DatasetPart, mixed: bool = False) -> Arrangement:
    """Return how a part's rows lie in its pack: in table order, or mixed."""
    return Arrangement(part.partition_rows, row_bytes(part.schema), mixed)


def mapped_bytes() -> int:
    """Return how many bytes of packs and indices are resident in this process as they are mapped.

    The kernel takes them back when memory is short, so they are not what the process holds.
    """
    paths = [*(one for pack in _open for one in pack._files()), *mapped_files()]
    if not paths or not _SMAPS.exists():
        return 0
    files = {str(one).encode() for one in paths}
    resident, mapped = 0, False
    for line in _SMAPS.read_bytes().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(b":"):  # the head of a mapping: addresses, mode, ..., path
            mapped = line.split(maxsplit=5)[-1] in files
        elif mapped and first == b"Rss:":
            resident += int(line.split()[1]) * 1024
    return resident


_open: Final[WeakSet[Pack]] = WeakSet()
"""Packs that may be mapped."""


def _map(path: Path, layout: ArrayLayout) -> HostArray:
    if layout.rows == 0:
        return np.empty((0, *layout.row_shape), dtype=layout.element)
    shape = (layout.rows, *layout.row_shape)
    try:
        mapped = np.memmap(path / layout.file, dtype=layout.element, mode="r", shape=shape)
    except (OSError, ValueError) as error:
        raise CorruptionError(f"pack {path} cannot be mapped: {error}") from error
    # Else each fault reads the pages around it too. Where memory is short, these push out pages that
    # the rows of a window still need, and an epoch reads its pack hundreds of times. What will be
    # needed is asked for by range instead.
    handle = getattr(mapped, "_mmap", None)
    if handle is not None and hasattr(mmap, "MADV_RANDOM"):
        handle.madvise(mmap.MADV_RANDOM)
    return mapped


def _open_again(path: Path, schema: DatasetSchema, manifest: Mapping[str, Any]) -> Pack:
    """Return a pack that another process has open; raises CorruptionError if it is not that any more."""
    if _read_manifest(path) != manifest:
        raise CorruptionError(f"pack {path} was built again since it was opened")
    _check_sizes(path, schema, manifest)
    return Pack(path, schema, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return decode_manifest((path / MANIFEST).read_bytes())
    except OSError as error:
        raise CorruptionError(f"pack {path} has no readable manifest: {error}") from error


def _check_sizes(path: Path, schema: DatasetSchema, manifest: Mapping[str, Any]) -> None:
    items = items_layout(schema, manifest.get("items", {}))
    for one in (*pack_layout(schema, manifest["rows"]).values(), *items.values()):
        seen = _size(path / one.file)
        if seen != one.file_bytes:
            raise CorruptionError(
                f"file {one.file} of pack {path} has {seen} bytes instead of {one.file_bytes}"
            )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
