"""Scratch space: where large steps put what does not fit in memory, and how much they may put there.

Always true: what is there at once, of all files that share one ``Scratch``, is at most the limit; it
is asked for before it is written. What a step will need is compared with the limit and with the free
space before the step begins (``require``), so that no work is lost to a disk that was too small from
the start. Files there are nameless (``spill``): they end with their process, however it ends.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from featurestore.errors import DiskFullError, FeatureStoreError, InvalidInputError, LimitError
from featurestore.units import format_bytes

_PLACES = "another directory (scratch=, FEATURESTORE_SCRATCH, or the variable TMPDIR)"


class Scratch:
    """A directory for scratch files, and the bytes they may have together.

    Parameters
    ----------
    folder : Path, optional
        By default the system's temporary directory.
    limit : int, optional
        Bytes; by default as many as are free.

    Examples
    --------
    >>> scratch = Scratch(limit=1000)
    >>> scratch.take(400)
    >>> scratch.used, scratch.left
    (400, 600)
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = Path(tempfile.gettempdir()) if folder is None else folder
        self.limit = limit
        self._used = self._most = 0
        self._lock = Lock()

    @classmethod
    def of(cls, place: Path | Scratch | None) -> Scratch:
        """Return scratch space in a folder, or the one that is given."""
        return place if isinstance(place, Scratch) else cls(place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process has files of its own there."""
        return Scratch, (self.folder, self.limit)

    @property
    def used(self) -> int:
        """Bytes of all files now."""
        return self._used

    @property
    def most(self) -> int:
        """The most bytes there were at once."""
        return self._most

    @property
    def left(self) -> int | None:
        """Bytes that may still be taken; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self._used)

    def require(self, needed: int, what: str) -> None:
        """Refuse a step that will need more than there is.

        Parameters
        ----------
        needed : int
            Bytes, beside those that are taken already.
        what : str
            The step, as messages call it.

        Raises
        ------
        LimitError
            If the limit is too small; it says by how much.
        DiskFullError
            If the disk is.
        """
        left = self.left
        if left is not None and needed > left:
            raise LimitError(
                f"{what} needs {format_bytes(needed)} of scratch space, the scratch limit "
                f"leaves {format_bytes(left)} of {format_bytes(self.limit or 0)}",
                f"raise scratch_limit to at least {needed + self._used}, or raise memory_limit, "
                "so that less is put there",
            )
        with self.faults_as_errors():
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DiskFullError(
                f"{what} needs {format_bytes(needed)} of scratch space, {self.folder} has "
                f"{format_bytes(free)} free",
                f"free space there, or give {_PLACES}",
            )

    def take(self, size: int) -> None:
        """Count bytes that are about to be written.

        Raises
        ------
        LimitError
        """
        with self._lock:
            if self.limit is not None and self._used + size > self.limit:
                raise LimitError(
                    f"the scratch files in {self.folder} have {format_bytes(self._used)} and would "
                    f"grow by {format_bytes(size)}; the scratch limit is "
                    f"{format_bytes(self.limit)}",
                    "raise scratch_limit, or raise memory_limit, so that less is put there",
                )
            self._used += size
            self._most = max(self._most, self._used)

    def give_back(self, size: int) -> None:
        """Count bytes that are gone."""
        with self._lock:
            self._used -= size

    @contextmanager
    def faults_as_errors(self) -> Iterator[None]:
        """Turn what the system says of a full or unusable directory into an error of this package.

        Raises
        ------
        DiskFullError
        InvalidInputError
            If the directory is gone, or is not to be written.
        FeatureStoreError
            If the disk fails.
        """
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise InvalidInputError(
                f"the scratch directory {self.folder} cannot be used: {error.strerror}",
                f"make it again or let it be written, or give {_PLACES}",
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise FeatureStoreError(
                    f"a scratch file in {self.folder} cannot be used: {error.strerror or error}",
                    f"check the disk, or give {_PLACES}",
                ) from error
            raise DiskFullError(
                f"the scratch directory {self.folder} is full after {format_bytes(self._used)} "
                "of rows",
                f"free space there, or give {_PLACES}",
            ) from error
