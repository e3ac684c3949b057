"""The written form of a snapshot: a sealed JSON file, complete or a difference to an earlier one.

A file holds either all entries (``base`` is null) or those that differ from the complete snapshot
``base`` (removed ones are null): reading any version takes at most two files. A complete one is
written when the differences written since the last would together outweigh it; this keeps the
average commit near the square root of the size of all entries, instead of growing with it.

A version that gc let go keeps its file, without entries, so that its number stays taken for ever
and the history stays readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from featurestore.errors import CorruptionError
from featurestore.fingerprint import Json, canonical_json
from featurestore.storage.records import FORMAT_VERSION, Snapshot, check_format
from featurestore.storage.sealed_json import seal, unseal

SNAPSHOTS: Final = "snapshots"
SMALL_DIFFERENCE: Final = 32 * 2**10

Entries = Mapping[str, Mapping[str, Any]]


def snapshot_path(version: int) -> str:
    """Return the file of a version.

    Examples
    --------
    >>> snapshot_path(42)
    'snapshots/00000000000000000042.json'
    """
    return f"{SNAPSHOTS}/{version:020d}.json"


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """What one snapshot file says.

    Parameters
    ----------
    version : int
        From 1 on.
    commit, parent : str
        Ids of this commit and of the one before it.
    created, operation : str
        As in :class:`~featurestore.storage.records.Snapshot`.
    base : int, optional
        The complete version that ``entries`` differ from; ``None`` if they are complete.
    entries : mapping, optional
        ``None`` once the version was let go by gc.
    """

    version: int
    commit: str
    parent: str
    created: str
    operation: str
    base: int | None
    entries: Mapping[str, Mapping[str, Any] | None] | None

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        content: dict[str, Json] = {
            "format": FORMAT_VERSION,
            "version": self.version,
            "commit": self.commit,
            "parent": self.parent,
            "created": self.created,
            "operation": self.operation,
            "base": self.base,
            "entries": None if self.entries is None else dict(self.entries),
        }
        return seal(content)

    @classmethod
    def decode(cls, data: bytes, version: int) -> SnapshotFile:
        """Read the bytes of a version's file.

        Raises
        ------
        CorruptionError
            If they are torn, damaged, or those of another version.
        FormatError
            If a newer package wrote them.
        """
        path = snapshot_path(version)
        content = unseal(data, path, _TORN)
        check_format(content.get("format"))
        try:
            found = cls(
                content["version"],
                content["commit"],
                content["parent"],
                content["created"],
                content["operation"],
                content["base"],
                content["entries"],
            )
        except KeyError as error:
            raise CorruptionError(f"{path} lacks {error}", _TORN) from error
        if found.version != version or (found.base is not None and found.base >= version):
            raise CorruptionError(f"{path} holds version {found.version}", _TORN)
        return found

    def expire(self) -> SnapshotFile:
        """Return the same version without its entries."""
        return SnapshotFile(
            self.version, self.commit, self.parent, self.created, self.operation, None, None
        )

    def complete(self, entries: Entries) -> Snapshot:
        return Snapshot(self.version, self.commit, self.created, self.operation, entries)


_TORN: Final = (
    "restore the file from a backup; or read an earlier version, and if this is the newest one and "
    "cannot be restored, give it up with CommitLog.give_up (an acknowledged file is synced before "
    "it gets its name, so it cannot be torn by a crash: suspect the disk or a partial copy)"
)


def difference(base: Entries, new: Entries) -> dict[str, Mapping[str, Any] | None]:
    """Return the entries of ``new`` that differ from ``base``; removed ones are ``None``."""
    changed: dict[str, Mapping[str, Any] | None] = {
        key: value for key, value in new.items() if base.get(key) != value
    }
    changed.update({key: None for key in base if key not in new})
    return changed


def merge(base: Entries, changes: Mapping[str, Mapping[str, Any] | None]) -> Entries:
    """Return ``base`` with changes applied; ``None`` removes."""
    merged = {**base, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def outweighs(changes: Mapping[str, Any], commits: int, base: Entries) -> bool:
    """Whether the differences written since the base would together outweigh a complete one.

    Parameters
    ----------
    changes : mapping
        The difference about to be written.
    commits : int
        How many commits there were since the base; their differences grew to this one, so
        together they weigh about half of ``commits`` times its size.
    base : mapping
        The entries of the base.
    """
    size = len(canonical_json(dict(changes)))
    if size <= SMALL_DIFFERENCE:
        return False
    return commits * size > 2 * len(canonical_json(dict(base)))
