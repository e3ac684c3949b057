"""The written form of a snapshot: a sealed JSON file, complete or a difference to an earlier one.

A file holds either all entries (``base`` is null) or those that differ from the complete snapshot
``base`` (removed ones are null): reading any version takes at most two files. A complete one is
written when the differences written since the last would together outweigh it; this keeps the
average commit near the square root of the size of all entries, instead of growing with it.

A version that gc let go keeps its file, without entries, so that its number stays taken for ever
and the history stays readable.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from featurestore.errors import CorruptionError
from featurestore.fingerprint import Json, canonical_json
from featurestore.storage.format_version import check_format
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import FORMAT_VERSION, Snapshot
from featurestore.storage.sealed_json import MAX_BYTES, read_bounded, seal, unseal

SNAPSHOTS: Final = "snapshots"
SMALL_DIFFERENCE: Final = 4 * 2**10

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
    base_commit : str, optional
        The commit of ``base``; files of earlier versions do not say.
    data : bytes
        The file itself, as it was read or written; empty if it was not. Another version of this
        package may have written it, with members that are unknown here.
    """

    version: int
    commit: str
    parent: str
    created: str
    operation: str
    base: int | None
    entries: Mapping[str, Mapping[str, Any] | None] | None
    base_commit: str | None = None
    data: bytes = field(default=b"", compare=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of the file; 0 if it was neither read nor written."""
        return len(self.data)

    def encode(self) -> bytes:
        """Return the bytes that this package writes for it."""
        named: dict[str, Json] = {"base_commit": self.base_commit} if self.base_commit else {}
        content: dict[str, Json] = {
            **named,
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
                content.get("base_commit"),
                data,
            )
        except KeyError as error:
            raise CorruptionError(f"{path} lacks {error}", _TORN) from error
        found._check(path)
        if found.version != version or (found.base is not None and found.base >= version):
            raise CorruptionError(f"{path} holds version {found.version}", _TORN)
        return found

    def _check(self, path: str) -> None:
        """Refuse members of other types than those that are written."""
        texts = (self.commit, self.parent, self.created, self.operation)
        entries = {} if self.entries is None else self.entries
        sound = (
            all(isinstance(one, str) for one in texts)
            and _is_number(self.version)
            and (self.base is None or _is_number(self.base))
            and (self.base_commit is None or isinstance(self.base_commit, str))
            and isinstance(entries, dict)
            and all(one is None or isinstance(one, dict) for one in entries.values())
            and is_time(self.created)
        )
        if not sound:
            raise CorruptionError(f"{path} is no snapshot: members have other types", _TORN)

    def expire(self) -> SnapshotFile:
        """Return the same version without its entries."""
        return SnapshotFile(
            self.version, self.commit, self.parent, self.created, self.operation, None, None
        )

    def complete(self, entries: Entries) -> Snapshot:
        return Snapshot(self.version, self.commit, self.created, self.operation, entries)


def read_snapshot_file(store: ObjectStore, version: int) -> SnapshotFile:
    """Return what a version's own file says.

    Raises
    ------
    NotFoundError
        If there is no such version.
    CorruptionError
        If the file is damaged, or has more bytes than a snapshot may have.
    """
    path = snapshot_path(version)
    return SnapshotFile.decode(read_bounded(store, path, _TORN, MAX_BYTES), version)


def read_commit(store: ObjectStore, version: int) -> str:
    """Return the commit of a version; its first bytes tell.

    Raises
    ------
    NotFoundError
        If there is no such version.
    CorruptionError
        If the file is damaged, as far as that shows.
    """
    found = _COMMIT.search(store.read(snapshot_path(version), 0, _NAMES))
    return found[1].decode() if found else read_snapshot_file(store, version).commit


def is_let_go(store: ObjectStore, version: int) -> bool:
    """Whether gc let a version go; its first bytes tell, as members are in order of their names.

    Raises
    ------
    NotFoundError
        If there is no such version.
    """
    path = snapshot_path(version)
    with store.open_read(path) as stream:
        start = stream.read(_START)
    _, found, rest = start.partition(b',"created":')
    if found and b',"entries":' in rest:
        return b',"entries":null,' in rest
    try:
        return read_snapshot_file(store, version).entries is None
    except CorruptionError:  # then its entries are damaged, not gone
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_time(text: str) -> bool:
    """Whether a text is an ISO time with an offset."""
    try:
        return dt.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


_START: Final = 256
_NAMES: Final = 160  # no snapshot is shorter, and none says its commit later
_COMMIT: Final = re.compile(rb',"commit":"([0-9a-f]{16})","created":')
_TORN: Final = (
    "restore the file from a backup; or read an earlier version, and if this is the newest one and "
    "cannot be restored, give it up with FeatureStore.give_up, or featurestore repair STORE "
    "--give-up VERSION (an acknowledged file is synced before "
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
        The entries of the base. Entries are of about equal size, so they are counted, not written.
    """
    if len(canonical_json(dict(changes))) <= SMALL_DIFFERENCE:
        return False
    return commits * len(changes) > 2 * len(base)
