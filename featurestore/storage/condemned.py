"""What collections leave in ``gc/``: the versions they are about to let go, and those that are gone.

*Condemned versions.* Before a gc lets versions go, it names them in ``gc/run-<id>.json``; then it
looks once more which of them somebody tagged or leased meanwhile, and spares these. Who tags or
leases a version writes first and looks here, and at the version, afterwards. So either the gc sees
the tag, or its owner sees that the version goes, whatever is killed in between. The file is removed
when the gc ends; that of a process that is provably gone, or a day old, is ignored and swept.

*Gone versions.* ``gc/gone.json`` spares the next gc reading every version ever made: it lists those
whose entries were found to be gone, as of the newest time of change among the version files seen
then. A version whose file changed since is read again. Nothing relies on it: without the file, or
with a damaged one, all are read.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.storage.holder import Holder
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.storage.sealed_json import read_sealed, seal

GC: Final = "gc"
GONE_FILE: Final = f"{GC}/gone.json"
RUN_SECONDS: Final = 86_400.0
_RUN: Final = re.compile(rf"{GC}/run-[0-9a-f]{{16}}\.json")
_REMEDY: Final = "delete the file"
# Those of this process. A file that names this process and is not among them was left behind.
_running: Final[set[str]] = set()

Ranges = tuple[tuple[int, int], ...]


def as_ranges(versions: Iterable[int]) -> Ranges:
    """Return versions as ranges with both ends included.

    Examples
    --------
    >>> as_ranges([5, 1, 2, 3])
    ((1, 3), (5, 5))
    """
    found: list[tuple[int, int]] = []
    for version in sorted(versions):
        if found and found[-1][1] == version - 1:
            found[-1] = (found[-1][0], version)
        else:
            found.append((version, version))
    return tuple(found)


class Condemned:
    """The versions that running collections are about to let go."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @contextmanager
    def announced(self, versions: Iterable[int]) -> Iterator[None]:
        """Say inside the block that these versions are about to go."""
        ranges = as_ranges(versions)
        path = f"{GC}/run-{secrets.token_hex(8)}.json"
        _running.add(path)
        try:
            if ranges:
                # Not synced: after a power loss neither this gc nor any lease is there any more.
                content = {"versions": [list(one) for one in ranges], **Holder.this().to_json()}
                self._store.write(path, seal(content))
            yield
        finally:
            _running.discard(path)
            if ranges:
                self._store.delete([path])

    def includes(self, version: int) -> bool:
        """Whether a running gc is about to let a version go."""
        return any(
            first <= version <= last
            for info in self._runs()
            for first, last in self._read(info) or ()
        )

    def dead(self) -> list[ObjectInfo]:
        """Return the files of collections that ended without removing theirs."""
        over = [info for info in self._runs() if self._read(info) is None]
        return [info for info in over if self._store.exists(info.path)]

    def _runs(self) -> list[ObjectInfo]:
        return [one for one in self._store.list(GC) if _RUN.fullmatch(one.path)]

    def _read(self, info: ObjectInfo) -> Ranges | None:
        """Return what a run names; None if it is over."""
        if info.modified < time.time() - RUN_SECONDS:
            return None
        try:
            content = read_sealed(self._store, info.path, _REMEDY)
            holder = Holder.from_json(content)
            ranges = _ranges(content, info.path)
        except NotFoundError:  # withdrawn since the listing: what it let go shows it
            return ()
        except CorruptionError:  # torn by the power loss that ended it
            return None
        gone = info.path not in _running if holder.is_this else holder.is_gone
        return None if gone else ranges


@dataclass(frozen=True, slots=True)
class GoneVersions:
    """Versions known to have no entries any more.

    Parameters
    ----------
    as_of : float
        What changed at this time or later was not seen.
    ranges : tuple of (int, int)
        First and last version, both included.
    """

    as_of: float = 0.0
    ranges: Ranges = ()

    def among(self, modified: Mapping[int, float]) -> set[int]:
        """Return those of some versions, given when their files changed, that are gone."""
        return {
            version
            for first, last in self.ranges
            for version in range(first, min(last, max(modified, default=0)) + 1)
            if modified.get(version, self.as_of) < self.as_of
        }

    def write(self, store: ObjectStore) -> None:
        """Leave it for the next gc."""
        gone = [list(one) for one in self.ranges]
        store.replace(GONE_FILE, seal({"as_of": self.as_of, "versions": gone}))

    @classmethod
    def read(cls, store: ObjectStore) -> GoneVersions:
        """Return what the last gc left; nothing if there is none or it is damaged."""
        try:
            content = read_sealed(store, GONE_FILE, _REMEDY)
            as_of = content.get("as_of")
            if isinstance(as_of, bool) or not isinstance(as_of, int | float):
                return cls()
            return cls(float(as_of), _ranges(content, GONE_FILE))
        except (NotFoundError, CorruptionError):  # only a shortcut
            return cls()


def _ranges(content: Mapping[str, Any], path: str) -> Ranges:
    """Return the ranges of versions that a file names."""
    found = content.get("versions")
    whole = isinstance(found, list) and all(
        isinstance(one, list)
        and len(one) == 2
        and all(isinstance(end, int) and not isinstance(end, bool) for end in one)
        and 1 <= one[0] <= one[1]
        for one in found
    )
    if not isinstance(found, list) or not whole:
        raise CorruptionError(f"{path} names no versions", _REMEDY)
    return tuple((one[0], one[1]) for one in found)
