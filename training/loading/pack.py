"""A pack: a dataset part in training-ready form, row-major and uncompressed, in a local cache.

Every epoch, run and model only copies rows from a memory map of it. Nulls were replaced or refused
by the dataset; a numeric NaN is a value and stays NaN.

Always true: a pack that :meth:`Pack.open` returns was completely written, made durable and published
by one rename, and its files have the sizes its manifest says. A torn or damaged one is set aside and
built again (``pack_writer``). A pack is never the only copy: deleting it costs time, not data.

The trade-off: disk space of the decoded arrays, for feeding at the speed of a memory copy. Mapped
pages are page cache, which the kernel takes back under pressure; they count as file memory, not as
this process's own.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import numpy as np

from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema, HostArray
from featurestore.errors import CorruptionError, FeatureStoreError, InvalidInputError
from featurestore.storage.vector_cache import CACHE_VARIABLE
from training.loading.buffers import aligned_empty
from training.loading.layout import (
    LABEL_KEY,
    MANIFEST,
    ArrayLayout,
    decode_manifest,
    pack_key,
    pack_layout,
)
from training.loading.memory import Projection
from training.loading.order import Rows
from training.loading.pack_writer import scratch_name, write_pack


def cache_directory(cache: str | Path | None = None) -> Path:
    """Return where packs lie: ``cache``, else ``$FEATURESTORE_CACHE``, else under ``~/.cache``."""
    if cache is not None:
        chosen = Path(cache)
    elif os.environ.get(CACHE_VARIABLE):
        chosen = Path(os.environ[CACHE_VARIABLE])
    else:
        chosen = Path("~/.cache/featurestore/packs")
    # Absolute, so that a process that changes its directory still finds what it wrote.
    return chosen.expanduser().absolute()


_trusted: Final[set[Path]] = set()
"""Packs that this process wrote or has compared with their checksums."""
_SMAPS: Final = Path("/proc/self/smaps")


class Pack:
    """The rows of one dataset part, random access.

    Use :meth:`for_part`. Safe to use from several threads; holds one memory map per array.
    """

    def __init__(self, path: Path, schema: DatasetSchema, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.schema = schema
        self.rows: int = manifest["rows"]
        self._manifest = manifest
        self._layout = pack_layout(schema, self.rows)
        self._arrays = {key: _map(path, one) for key, one in self._layout.items()}
        _open.add(self)

    @classmethod
    def for_part(
        cls,
        part: DatasetPart,
        cache: str | Path | None = None,
        memory: Projection | None = None,
    ) -> Pack:
        """Open the pack of a part, building it first if there is none or it is damaged.

        Parameters
        ----------
        part : DatasetPart
        cache : path, optional
            See :func:`cache_directory`.
        memory : Projection, optional
            What building may hold; of the part's own limit if not given.

        Raises
        ------
        DiskFullError
            If the cache's disk cannot hold it; nothing is left behind.
        MemoryLimitError
            Before anything is read, if building it does not fit the memory limit.
        SchemaError
            If the part's arrays are not what its schema says.
        """
        path = cache_directory(cache) / pack_key(part.digest)
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
                _set_aside(path)
        write_pack(part, path, memory)
        _trusted.add(path)
        return cls.open(path, part)

    @classmethod
    def open(cls, path: Path, part: DatasetPart) -> Pack:
        """Open a pack and check that it is complete and of this part.

        Raises
        ------
        CorruptionError
            If the manifest is torn, of another part or schema, or a file is missing or of the wrong
            size.
        """
        try:
            manifest = decode_manifest((path / MANIFEST).read_bytes())
        except OSError as error:
            raise CorruptionError(f"pack {path} has no readable manifest: {error}") from error
        if manifest["part"] != part.digest or manifest["rows"] != part.rows:
            raise CorruptionError(f"pack {path} is of another dataset part")
        if manifest["schema"] != part.schema.to_json():
            raise CorruptionError(f"pack {path} holds other columns than its part has")
        for one in pack_layout(part.schema, part.rows).values():
            seen = _size(path / one.file)
            if seen != one.file_bytes:
                raise CorruptionError(
                    f"file {one.file} of pack {path} has {seen} bytes instead of {one.file_bytes}"
                )
        pack = cls(path, part.schema, manifest)
        with suppress(OSError):  # a read-only cache is usable; only its age stays unknown
            os.utime(path / MANIFEST)
        return pack

    # --- reading ---------------------------------------------------------------------------------

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all arrays, label included."""
        return sum(one.row_bytes for one in self._layout.values())

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` in table order, as arrays of their own.

        The rows that follow are asked for, as they are likely to be next.
        """
        self._check_range(start, stop)
        self._ask_for(start, 2 * stop - start)
        arrays = {}
        for key, source in self._arrays.items():
            arrays[key] = _new(stop - start, source)
            np.copyto(arrays[key], source[start:stop])
        return _batch(arrays)

    def view(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` in table order as the mapped arrays themselves, not copied.

        They are read-only, and each keeps the pack's files mapped as long as it is used.
        """
        self._check_range(start, stop)
        self._ask_for(start, stop)
        return _batch({key: source[start:stop] for key, source in self._arrays.items()})

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
        if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= self.rows):
            raise InvalidInputError(
                f"rows {rows.min()} to {rows.max()} lie outside a pack of {self.rows} rows"
            )
        arrays = {}
        for key, source in self._arrays.items():
            arrays[key] = _new(rows.size, source)
            # The numbers were checked above; with "raise" NumPy would fill a second buffer first.
            np.take(source, rows, axis=0, out=arrays[key], mode="clip")
        return _batch(arrays)

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
        for one in self._layout.values():
            if one.rows == 0:
                continue
            with (self.path / one.file).open("rb") as file:
                seen = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            expected = self._manifest["checksums"][one.path]
            if seen.hexdigest() != expected:
                raise CorruptionError(
                    f"file {one.file} of pack {self.path} has checksum {seen.hexdigest()} instead "
                    f"of {expected}",
                    "delete the pack; it is built again from the store",
                )

    def _ask_for(self, start: int, stop: int) -> None:
        """Let the kernel read rows in one go, those beyond the last left out."""
        self.prefetch(np.array([start], dtype=np.int64), min(stop, self.rows) - start)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.rows:
            raise InvalidInputError(f"rows {start} to {stop} lie outside a pack of {self.rows}")

    def _files(self) -> list[Path]:
        return [self.path / one.file for one in self._layout.values()]

    def delete(self) -> None:
        """Remove the pack from the disk. Loaders that have it open go on; new ones build it again."""
        self._arrays = {}
        _set_aside(self.path)


def mapped_bytes() -> int:
    """Return how many bytes of packs are resident in this process because they are mapped.

    The kernel takes them back when memory is short, so they are not what the process holds.
    """
    if not _open or not _SMAPS.exists():
        return 0
    files = {str(one).encode() for pack in _open for one in pack._files()}
    resident, mapped = 0, False
    for line in _SMAPS.read_bytes().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(b":"):  # the head of a mapping: addresses, mode, ..., path
            mapped = line.split(maxsplit=5)[-1] in files
        elif mapped and first == b"Rss:":
            resident += int(line.split()[1]) * 1024
    return resident


def list_packs(cache: str | Path | None = None) -> Iterator[tuple[Path, int, float]]:
    """Yield path, bytes and time of last use (seconds since 1970) of each pack in a cache."""
    root = cache_directory(cache)
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        manifest = path / MANIFEST
        if not path.name.startswith(".") and manifest.is_file():
            size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
            yield path, size, manifest.stat().st_mtime


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


def _new(rows: int, like: HostArray) -> HostArray:
    return aligned_empty((rows, *like.shape[1:]), like.dtype)


def _batch(arrays: dict[str, HostArray]) -> Batch:
    label = arrays.pop(LABEL_KEY, None)
    return Batch(arrays, label)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _set_aside(path: Path) -> None:
    """Take a pack out of the way in one step, then delete its files."""
    aside = path.with_name(scratch_name())
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another process was faster
    except OSError as error:
        raise FeatureStoreError(
            f"pack {path} cannot be moved away: {error}", "delete that directory, or change cache="
        ) from error
    shutil.rmtree(aside, ignore_errors=True)
