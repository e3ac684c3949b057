"""What the system says when it refuses something, as errors of the package's tree, with a remedy.

Always: the system's own words are kept, and the file of the store is named. An error that is not
known here stays what it is, a ``FeatureStoreError`` without advice.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from featurestore.errors import (
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    InvalidInputError,
    NotFoundError,
    UnsupportedError,
)


@contextmanager
def translated(path: str, action: str) -> Iterator[None]:
    """Raise what the system refuses inside as an error of the package's tree.

    Parameters
    ----------
    path : str
        The file of the store that it is about.
    action : str
        What was to be done with it, in words.
    """
    try:
        yield
    except OSError as error:
        raise system_error(error, path, action) from error


def system_error(error: OSError, path: str, action: str) -> FeatureStoreError:
    """Return the error of the package's tree that an ``OSError`` stands for."""
    problem = f"cannot {action} {path}: {error.strerror or error}"
    code = error.errno
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFullError(
            problem, "free space, or raise the quota or file-size limit; gc removes unused files"
        )
    if code == errno.ENOTDIR and action not in ("read", "look at"):
        return InvalidInputError(
            f"{problem}: something above it is a file", "name a directory for the store"
        )
    if code == errno.ENOENT and action == "write":
        return InvalidInputError(
            f"{problem}: a directory above it cannot be made", "name another place for the store"
        )
    if code in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(f"there is no file {path}", "run verify if the store names it")
    if code == errno.ELOOP:
        return CorruptionError(
            f"{path} is a symbolic link", "links inside a store are refused; copy the file"
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return FeatureStoreError(problem, "raise the limit of open files (ulimit -n)")
    if code == errno.EROFS:
        return FeatureStoreError(problem, "the file system is mounted read-only")
    if code in (errno.EACCES, errno.EPERM):
        if action == "publish" and code == errno.EPERM:
            return UnsupportedError(
                f"{problem}: hard links may not be supported here", "use another file system"
            )
        return FeatureStoreError(problem, "check owner and permissions of the store's directory")
    if code in (errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
        return UnsupportedError(problem, "put the whole store on one file system with hard links")
    if code == errno.EIO:
        return CorruptionError(problem, "check the disk, then run verify")
    return FeatureStoreError(problem, "see the system's message")
