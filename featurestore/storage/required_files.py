"""What a commit looks at last: whether the files written for it are still there.

A gc whose safety age is shorter than the work took removes files that no version names yet. A commit
that looked at its files right before publishing does not publish a version that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable

from featurestore.errors import ConflictError, NotFoundError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import StoredFile


def require_files(store: ObjectStore, files: Iterable[StoredFile], operation: str) -> None:
    """Refuse to publish a version that names files which are not there with their sizes.

    Raises
    ------
    ConflictError
    """
    for file in files:
        try:
            size: int | None = store.size(file.path)
        except NotFoundError:
            size = None
        if size != file.bytes:
            found = "is gone" if size is None else f"has {size} bytes, not {file.bytes}"
            raise ConflictError(
                f"files written for {operation!r} were removed meanwhile: {file.path} {found}; "
                "a gc whose safety age is shorter than the work took removes them",
                "run it again (a build resumes from its journal), and give gc a longer safety age",
            )
