"""Building a pack: one pass over a dataset part, partition by partition, then one rename.

Always true: memory holds one partition, or one slice of it where it does not fit; nothing exists
under the pack's name until all its files are durable; a build that fails or loses against another process removes what it wrote, and what a killed
one left is removed by the next build in that cache.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from featurestore.allocators import release_freed
from featurestore.dataset.batch import Batch, DatasetPart, HostArray
from featurestore.errors import DiskFullError, FeatureStoreError, SchemaError
from featurestore.execution.budget import budget_of
from featurestore.execution.events import step
from featurestore.fingerprint import Json
from featurestore.units import format_bytes
from training.loading.layout import (
    GROUP_JSON,
    LABEL_KEY,
    MANIFEST,
    PACK_VERSION,
    ArrayLayout,
    encode_manifest,
    pack_layout,
)
from training.loading.memory import Projection, slice_bytes, writing_memory

_SCRATCH: Final = ".scratch-"
_FORGOTTEN_SECONDS: Final = 7 * 24 * 3600
_ZEROS: Final = 2**20
"""Bytes of padding written at once: the last block of wide rows may lack gigabytes."""


def write_pack(part: DatasetPart, path: Path, memory: Projection | None = None) -> None:
    """Build the pack of ``part`` and publish it as directory ``path``.

    If another process published the same pack meanwhile, that one stays.

    Parameters
    ----------
    part : DatasetPart
    path : Path
    memory : Projection, optional
        What it may hold; of the part's own limit if not given.

    Raises
    ------
    DiskFullError
        If there is not enough space; checked before the first byte and honoured at any later one.
    MemoryLimitError
        Before anything is read, if a partition does not fit, nor a slice of it.
    SchemaError
        If an array is not of the dtype or shape that the part's schema says.
    """
    memory = writing_memory(part) if memory is None else memory
    memory.require()
    layout = pack_layout(part.schema, part.rows)
    root = path.parent
    with _disk_errors(root, sum(one.file_bytes for one in layout.values())):
        build = scratch_directory(root)
        try:
            _check_space(root, layout)
            _fill(part, layout, build, memory)
            _publish(build, path)
        finally:
            shutil.rmtree(build, ignore_errors=True)


def _fill(
    part: DatasetPart, layout: dict[str, ArrayLayout], build: Path, memory: Projection
) -> None:
    with ExitStack() as stack:
        advance = stack.enter_context(
            step(
                "write pack (rows)",
                part.rows,
                projected_bytes=memory.peak,
                memory_limit=memory.limit,
            )
        )
        files = {
            key: stack.enter_context(_ArrayFile(build, one))
            for key, one in layout.items()
            if one.rows
        }
        done = 0
        for partition, rows in enumerate(part.partition_rows):
            before = done
            with budget_of().admit(memory.added, memory.limit):
                for batch in part.slices(partition, slice_bytes(memory)):
                    done += _write_rows(batch, layout, files)
                    advance(done)
                    # Each library's allocator keeps what it freed, which the others cannot use.
                    del batch
                    release_freed()
            if done - before != rows:
                raise SchemaError(
                    f"partition {partition} of a dataset part gave {done - before} rows instead of "
                    f"{rows}"
                )
        if done != part.rows:
            raise SchemaError(f"a dataset part of {part.rows} rows has {done} in its partitions")
        checksums = {file.layout.path: file.finish() for file in files.values()}
    content: dict[str, Json] = {
        "version": PACK_VERSION,
        "part": part.digest,
        "snapshot": part.snapshot_id,
        "rows": part.rows,
        "order": "table",
        "schema": part.schema.to_json(),
        "checksums": checksums,
    }
    for one in layout.values():
        _write(build / one.path / "zarr.json", one.zarr_json())
    for group in {build, *((build / one.path).parent for one in layout.values())}:
        _write(group / "zarr.json", GROUP_JSON)
    _write(build / MANIFEST, encode_manifest(content))
    for directory, _, _ in os.walk(build):
        _sync_directory(Path(directory))


def _write_rows(batch: Batch, layout: dict[str, ArrayLayout], files: dict[str, _ArrayFile]) -> int:
    """Append some rows to the files; return how many."""
    rows = batch.rows
    arrays = _arrays(batch, layout, rows)
    for key, file in files.items():
        file.write(arrays[key])
    return rows


class _ArrayFile:
    """The one data file of an array, being written from the first row to the last."""

    def __init__(self, build: Path, layout: ArrayLayout) -> None:
        self.layout = layout
        path = build / layout.file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("xb", buffering=0)
        self._hash = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: HostArray) -> None:
        if rows.size:
            self._append(rows.reshape(-1).view(np.uint8).data)

    def finish(self) -> str:
        """Write the rest of the last block and the index, make the file durable, return its checksum."""
        layout = self.layout
        missing = (layout.blocks * layout.block_rows - layout.rows) * layout.row_bytes
        zeros = memoryview(bytes(min(missing, _ZEROS)))
        for start in range(0, missing, _ZEROS):
            self._append(zeros[: missing - start])
        self._append(memoryview(layout.index()))
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def _append(self, data: memoryview) -> None:
        self._hash.update(data)
        while data:
            data = data[self._file.write(data) :]


def _arrays(batch: Batch, layout: dict[str, ArrayLayout], rows: int) -> dict[str, HostArray]:
    """Return a partition's arrays as the pack stores them, after checking what they are."""
    found: dict[str, Any] = dict(batch.inputs)
    if batch.label is not None:
        found[LABEL_KEY] = batch.label
    if set(found) != set(layout):
        raise SchemaError(
            f"a dataset part gave arrays {sorted(found)} where its schema says {sorted(layout)}"
        )
    arrays = {}
    for key, one in layout.items():
        value = found[key]
        if value.shape != (rows, *one.row_shape) or value.dtype.name != one.dtype:
            raise SchemaError(
                f"array {key or 'label'!r} of a dataset part is {value.dtype.name} "
                f"{list(value.shape)} where its schema says {one.dtype} {[rows, *one.row_shape]}"
            )
        arrays[key] = np.ascontiguousarray(value, dtype=one.element)
    return arrays


def _publish(build: Path, path: Path) -> None:
    try:
        build.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return  # another process published the same rows first; ours is removed by the caller
    _sync_directory(path.parent)


def scratch_directory(root: Path) -> Path:
    """Return a new directory in a cache for files that end with this process.

    What dead processes left in the same cache is removed first.
    """
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob(f"{_SCRATCH}*"):
        if _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
    path = root / scratch_name()
    path.mkdir()
    return path


def scratch_name() -> str:
    """Return a new name that says which process a directory ends with."""
    return f"{_SCRATCH}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def _abandoned(path: Path) -> bool:
    """Whether its process is gone; on another host's, whether it was not touched for a week."""
    host, pid, _ = path.name.removeprefix(_SCRATCH).rsplit("-", 2)
    if host == socket.gethostname():
        return not _runs(int(pid))
    try:
        return time.time() - path.stat().st_mtime > _FORGOTTEN_SECONDS
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_space(root: Path, layout: dict[str, ArrayLayout]) -> None:
    needed, free = sum(one.file_bytes for one in layout.values()), shutil.disk_usage(root).free
    if needed > free:
        raise _disk_full(root, needed, free)


@contextmanager
def _disk_errors(root: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(root, needed, shutil.disk_usage(root).free) from error
        raise FeatureStoreError(
            f"the pack cannot be written in {root}: {error}",
            "make the directory writable, or name another with cache= or $FEATURESTORE_CACHE",
        ) from error


def _disk_full(root: Path, needed: int, free: int) -> DiskFullError:
    return DiskFullError(
        f"the pack needs {format_bytes(needed)} and {root} has {format_bytes(free)} left",
        "free space, delete old packs, or name another directory with cache= or "
        "$FEATURESTORE_CACHE",
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
