"""A pack that is being written while its first rows are read already.

Once all stripes are there (``assembly`` says who writes them), the pack is made durable and published by
one rename.

Always true: nothing exists under the pack's name until all its files are durable; a partition that was
left half-way is written again, to the same places; the work that this class admits at a time fits what
was projected; what is not published is removed when nobody has it any more, and what a killed process
left by the next that writes in that cache. If another process published the same pack first, that one
stays, and who reads from this one goes on.

The trade-off: a pack that is left half-way lives as long as the process; the next one begins again.
"""

from __future__ import annotations

import errno
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featurestore.dataset.batch import DatasetPart
from featurestore.errors import FeatureStoreError
from featurestore.fingerprint import Json
from training.loading.arrangement import Arrangement, Stripe
from training.loading.assembly import Assembly
from training.loading.layout import (
    GROUP_JSON,
    MANIFEST,
    PACK_VERSION,
    encode_manifest,
    items_layout,
    pack_layout,
)
from training.loading.memory import Writing, items_bytes
from training.loading.pack_cache import disk_full, make_room
from training.loading.pack_files import PackFiles, array_checksum
from training.loading.pack_writer import PartitionWriter
from training.loading.scratch import scratch_directory


class Filling(Assembly):
    """The pack of a part on its way.

    Parameters
    ----------
    part : DatasetPart
    path : Path
        Where the pack will be.
    arrangement : Arrangement
    writing : Writing
        What it may hold, and how many partitions at a time.
    limit : int, optional
        Bytes that all packs of the cache may take together.

    Raises
    ------
    DiskFullError
        If there is not enough space; checked before the first byte, taken with the files' creation and
        honoured at any later one.
    MemoryLimitError
        Before anything is read, if a partition does not fit, nor a slice of it.
    """

    activity = "write pack (rows)"

    def __init__(
        self,
        part: DatasetPart,
        path: Path,
        arrangement: Arrangement,
        writing: Writing,
        limit: int | None = None,
    ) -> None:
        super().__init__(part, arrangement, writing)
        self.path = path
        self._layout = pack_layout(part.schema, part.rows)
        self._needed = sum(one.file_bytes for one in self._layout.values()) + items_bytes(part)
        with self._errors():
            self.build = scratch_directory(path.parent)
            # What a build that is given up leaves: removed when nobody refers to it, or at exit.
            self._remove = weakref.finalize(self, _remove, self.build, os.getpid())
            try:
                make_room(path.parent, self._needed, limit)
                self._files = PackFiles(self.build, self._layout, items_layout(part.schema, {}))
            except BaseException:
                self._remove()
                raise
        # With the last reference, which threads that write have: a number that is free again may be
        # another file's. At exit the system closes them.
        weakref.finalize(self, self._files.close).atexit = False
        self._writer = PartitionWriter(
            part, arrangement, self._layout, self._files, writing.within, self._files
        )
        self._digests: dict[int, dict[str, bytes]] = {}

    @property
    def published(self) -> bool:
        """Whether the pack is whole, durable and under its name."""
        return self._whole

    def give_up(self) -> None:
        """Remove what was written."""
        self._remove()

    def _place(
        self,
        stripe: Stripe,
        partition: int,
        wanted: Callable[[], bool],
        wrote: Callable[[int], None],
    ) -> bool:
        return self._writer.write(stripe, partition, wanted, wrote)

    def _settle(self, stripe: Stripe) -> None:
        """Note the checksums of a stripe that is there."""
        with self._errors():
            digests = self._files.digest(stripe.start, stripe.stop)
        with self._state:
            self._digests[stripe.number] = digests

    def _finish(self) -> None:
        for one in self.arrangement.stripes:
            if one.number not in self._digests:  # the first try failed
                self._settle(one)
        with self._errors():
            self._publish()

    def _publish(self) -> None:
        self._seal()
        try:
            self.build.rename(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._remove()  # another process published the same rows first
        else:
            self._remove.detach()
            _sync_directory(self.path.parent)

    def _seal(self) -> None:
        rest, lists = self._files.rest_digest(), self._files.end_lists()
        items = {key: one for key, (one, _) in lists.items()}
        stripes = self.arrangement.stripes
        content: dict[str, Json] = {
            "version": PACK_VERSION,
            "part": self.part.digest,
            "snapshot": self.part.snapshot_id,
            "rows": self.part.rows,
            "order": self.arrangement.name,
            "stripes": [one.rows for one in stripes],
            "schema": self.part.schema.to_json(),
            "checksums": {
                self._layout[key].path: array_checksum(
                    [*(self._digests[one.number][key] for one in stripes), last]
                )
                for key, last in rest.items()
            }
            | {one.path: checksum for one, checksum in lists.values()},
        }
        if items:
            content["items"] = {key: one.rows for key, one in items.items()}
        self._files.sync()
        arrays = (*self._layout.values(), *items.values())
        for one in arrays:
            _write_file(self.build / one.path / "zarr.json", one.zarr_json())
        for group in {
            self.build,
            *((self.build / one.path).parent for one in arrays),
        }:
            _write_file(group / "zarr.json", GROUP_JSON)
        _write_file(self.build / MANIFEST, encode_manifest(content))
        for directory, _, _ in os.walk(self.build):
            _sync_directory(Path(directory))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        root = self.path.parent
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(root, self._needed, shutil.disk_usage(root).free) from error
            raise FeatureStoreError(
                f"the pack cannot be written in {root}: {error}",
                "make the directory writable, or name another with cache= or $FEATURESTORE_CACHE",
            ) from error


def _remove(build: Path, process: int) -> None:
    """Remove a build, unless this is a fork of the process that it belongs to."""
    if os.getpid() == process:
        shutil.rmtree(build, ignore_errors=True)


def _write_file(path: Path, data: bytes) -> None:
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
