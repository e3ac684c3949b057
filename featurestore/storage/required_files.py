"""What a commit looks at last: whether the files written for it are still there.

A gc whose safety age is shorter than the work took removes files that no version names yet. A commit
that looked at its files right before publishing does not publish a version that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from featurestore.errors import ConflictError, CorruptionError, NotFoundError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import FilesetRef, StoredFile

_MANY: Final = 32  # fewer are not worth the threads
_LOOKS_AT_ONCE: Final = 16


def named_filesets(entries: Iterable[Mapping[str, Any] | None]) -> list[StoredFile]:
    """Return the filesets that entries of a snapshot name."""
    named = [entry.get("fileset") for entry in entries if entry is not None]
    return [FilesetRef.from_json(fileset).file for fileset in named if fileset is not None]


def are_there(store: ObjectStore, files: Sequence[StoredFile]) -> bool:
    """Whether files are there with their sizes."""
    return all(size == file.bytes for file, size in zip(files, _sizes(store, files), strict=True))


def require_files(store: ObjectStore, files: Sequence[StoredFile], operation: str) -> None:
    """Refuse to publish a version that names files which are not there with their sizes.

    Raises
    ------
    ConflictError
        If one is gone.
    CorruptionError
        If one has another size than was written.
    """
    for file, size in zip(files, _sizes(store, files), strict=True):
        if size is None:
            raise ConflictError(
                f"files written for {operation!r} were removed meanwhile: {file.path} is gone; "
                "a gc whose safety age is shorter than the work took removes them",
                "run it again (a build resumes from its journal), and give gc a longer safety age",
            )
        if size != file.bytes:
            raise CorruptionError(
                f"{file.path}, written for {operation!r}, has {size} bytes, not {file.bytes}: "
                "something else wrote to it",
                "check the disk and who else writes to the store, then run it again",
            )


def _sizes(store: ObjectStore, files: Sequence[StoredFile]) -> list[int | None]:
    def size(file: StoredFile) -> int | None:
        try:
            return store.size(file.path)
        except NotFoundError:
            return None

    if len(files) < _MANY or (files and store.local_path(files[0].path) is not None):
        return [size(one) for one in files]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE, "featurestore-look") as pool:
        return list(pool.map(size, files))
