"""Snapshot files that a process wrote or read itself, looked after while it builds on them.

An open commit log holds the newest snapshot and the complete one it builds on in memory, as they were
acknowledged. Two things may happen to their files meanwhile.

*Damage.* A difference written against a file that was damaged would be acknowledged and yet unreadable
for everybody else. So before each commit the files are looked at: that the newest is still the same
commit, their sizes on a local disk (an object store shows complete objects only), and once a minute
their bytes. One that is unreadable or lost is written again, byte for byte as it was.

*Replacement.* The folder may have been removed and a store made anew in its place, or an older copy of
it been restored. Nothing of what is in memory belongs there. So a file is written again only if
``store.json`` has the same id, the version before has the commit that it followed, nothing comes after
it, and the filesets that a lost one names are there; a readable file is never replaced. Anything else
is a ``ConflictError``, also for readers, who look whether the newest file is still the same commit: always
on a local disk, where it takes some 50 microseconds, and once a minute elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from featurestore.errors import ConflictError, CorruptionError, NotFoundError
from featurestore.storage.head_search import find_newest_version
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.required_files import are_there, named_filesets
from featurestore.storage.sealed_json import read_sealed
from featurestore.storage.snapshot_file import (
    SnapshotFile,
    read_commit,
    read_snapshot_file,
    snapshot_path,
)

STORE_FILE: Final = "store.json"
LOOK_AGAIN_SECONDS: Final = 60.0

_log: Final = logging.getLogger(__name__)


class Acknowledged:
    """The files of one store that a process builds on.

    Parameters
    ----------
    store : ObjectStore
    store_id : str
        What ``store.json`` said when it was opened.
    """

    def __init__(self, store: ObjectStore, store_id: str) -> None:
        self._store = store
        self._store_id = store_id
        self._read = self._compared = time.monotonic()

    def is_there(self, file: SnapshotFile) -> bool:
        """Whether a file is as it was, as far as a reader looks."""
        now = time.monotonic()
        if not self._is_local(file) and now - self._read < LOOK_AGAIN_SECONDS:
            return True
        there = self._commit(file.version) == file.commit
        if there:
            self._read = now
        return there

    def are_sound(self, files: Sequence[SnapshotFile]) -> bool:
        """Whether files, the newest last, are as they were, as far as a writer looks after a reader."""
        now = time.monotonic()
        if now - self._compared < LOOK_AGAIN_SECONDS:
            if self._is_local(files[-1]):
                return all(self._has_its_size(one) for one in files)
            return self._commit(files[-1].version) == files[-1].commit
        sound = all(self._is_readable(one) for one in files)
        if sound:
            self._compared = now
        return sound

    def is_ours(self, version: int, commit: str) -> bool:
        """Whether a version that was read before is the same commit, or its file damaged or lost.

        Raises
        ------
        ConflictError
            If the file is not there, and the store is another one.
        """
        found = self._commit(version)
        if not found:
            self.require_same_store()
        return found in ("", commit)

    def require_same_store(self) -> None:
        """Refuse to go on in a store that was made anew at the same place.

        Raises
        ------
        ConflictError
        """
        try:
            found = read_sealed(self._store, STORE_FILE).get("id")
        except NotFoundError:
            found = None
        except CorruptionError:  # damage is no replacement
            return
        if found != self._store_id:
            said = "is gone" if found is None else f"was made anew as {found}"
            raise ConflictError(
                f"the store {self._store_id} at {self._store.url} {said} since it was opened",
                "open the store again; what this one had read is not there any more",
            )

    def settle(self, files: Sequence[SnapshotFile], *, restore: bool = False) -> bool:
        """Say whether what is in memory still counts, after its files were found changed.

        Parameters
        ----------
        files : sequence of SnapshotFile
            The newest last.
        restore : bool
            Write those again that are damaged or lost.

        Returns
        -------
        bool
            False if the newest version has to be read again: somebody gave one of these up.

        Raises
        ------
        ConflictError
            If the store was replaced, by a new one or by an older copy.
        """
        self.require_same_store()
        damaged = []
        for file in files:
            found = self._find(file.version)
            if found is not None and found.commit != file.commit:
                if found.parent != file.parent:
                    raise self._replaced(file, f"is commit {found.commit} now")
                return False
            if found is None:
                damaged.append(file)
        for file in damaged:
            self._require_place(file, newest=file is files[-1])
        if damaged and restore:
            if (
                find_newest_version(self._store, files[-1].version, listing=True)
                > files[-1].version
            ):
                return False  # published since, or hidden behind lost ones
            for file in damaged:
                self._restore(file)
        return True

    def _require_place(self, file: SnapshotFile, *, newest: bool) -> None:
        """Refuse to take a file for damaged or lost that this history may never have had."""
        before = self._store_id if file.version == 1 else self._commit(file.version - 1)
        if before and before != file.parent:
            raise self._replaced(file, f"does not follow {before}, which is before it now")
        if not newest or self._store.exists(snapshot_path(file.version)):
            return
        if not before:
            raise self._replaced(file, "is gone, and so is the one before it")
        if not are_there(self._store, named_filesets((file.entries or {}).values())):
            raise self._replaced(file, "is gone, and so are files that it names")

    def _restore(self, file: SnapshotFile) -> None:
        path = snapshot_path(file.version)
        _log.warning(
            "%s was damaged or lost; it is written again as it was acknowledged. Check the disk, "
            "and run verify",
            path,
        )
        self._store.replace(path, file.data)

    def _replaced(self, file: SnapshotFile, problem: str) -> ConflictError:
        return ConflictError(
            f"version {file.version} of {self._store.url} was {file.commit} and {problem}: an older "
            "copy of the store was restored, or versions were lost",
            "open the store again, and run verify; nothing was written",
        )

    def _is_local(self, file: SnapshotFile) -> bool:
        return self._store.local_path(snapshot_path(file.version)) is not None

    def _has_its_size(self, file: SnapshotFile) -> bool:
        try:
            return self._store.size(snapshot_path(file.version)) == file.size
        except NotFoundError:
            return False

    def _commit(self, version: int) -> str:
        """Return the commit of a version; empty if its file is damaged or lost."""
        try:
            return read_commit(self._store, version)
        except (CorruptionError, NotFoundError):
            return ""

    def _find(self, version: int) -> SnapshotFile | None:
        try:
            return read_snapshot_file(self._store, version)
        except (CorruptionError, NotFoundError):
            return None

    def _is_readable(self, file: SnapshotFile) -> bool:
        found = self._find(file.version)
        return found is not None and found.commit == file.commit
