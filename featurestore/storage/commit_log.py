"""The commit log: one linear history of snapshots, each published by an exclusive create.

Always true: versions are contiguous from 1 and their names are never freed, so exactly one writer
gets each number; version 0 is the empty store. A commit returns only after its snapshot and the
filesets it names are durable. A change that lost the race is evaluated again on the newer head.

*Torn files.* A local snapshot is synced before it gets its name, and an object store shows an object
only when it is complete. A crash can therefore leave no torn file under a snapshot's name: one that
fails its checksum may have been acknowledged and was damaged afterwards. It is never skipped
silently; reading it raises ``CorruptionError``, and :meth:`CommitLog.give_up` is the explicit way on.

*Damage beside a writer.* An open log holds the newest content in memory, as it was acknowledged.
Before each commit it looks after the files which that content came from, and whether the store is
still the one it was, see ``acknowledged``.

The trade-off: finding the newest version takes a few existence checks (one, when this object has
seen the head before) rather than a mutable pointer, see ``head_search``.
"""

from __future__ import annotations

import datetime as dt
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from featurestore.errors import (
    ConflictError,
    CorruptionError,
    InvalidInputError,
    LimitError,
    NameTakenError,
    NotFoundError,
)
from featurestore.fingerprint import Json
from featurestore.storage.acknowledged import LOOK_AGAIN_SECONDS, STORE_FILE, Acknowledged
from featurestore.storage.format_version import check_format
from featurestore.storage.head import Head, load_head, next_head
from featurestore.storage.head_search import HINT_FILE, find_newest_version, leave_hint
from featurestore.storage.history import HistoryRecord, read_history, version_at
from featurestore.storage.leases import Leases
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import (
    FORMAT_VERSION,
    Snapshot,
    StoredFile,
)
from featurestore.storage.required_files import named_filesets, require_files
from featurestore.storage.sealed_json import MAX_BYTES, read_sealed, seal
from featurestore.storage.snapshot_file import (
    SnapshotFile,
    is_time,
    merge,
    read_snapshot_file,
    snapshot_path,
)
from featurestore.storage.tags import Tag, Tags

__all__ = ["HINT_FILE", "STORE_FILE", "Change", "CommitLog", "HistoryRecord"]

_ATTEMPTS: Final = 300
_FOLDERS: Final = (
    "data", "filesets", "gc", "journal", "leases", "snapshots", "states", "tags", "tmp",
)  # fmt: skip

Change = Callable[[Snapshot], Mapping[str, Mapping[str, Any] | None]]


class CommitLog:
    """The history of one store; see :meth:`create` and :meth:`open`.

    May be used by several threads; other processes may commit at the same time.

    Examples
    --------
    >>> from featurestore.storage.backends import open_object_store
    >>> log = CommitLog.create(open_object_store("memory://commit-log-example"))
    >>> log.commit("say hello", lambda head: {"table:t": {"name": "t"}}).version
    1
    >>> [record.operation for record in log.history()]
    ['create', 'say hello']
    """

    def __init__(self, store: ObjectStore, store_id: str, created: str) -> None:
        self.store = store
        self.store_id = store_id
        self._created = created
        self._newest = Head(Snapshot(0, store_id, created, "create", {}), 0, {})
        self._acknowledged = Acknowledged(store, store_id)
        self._list_at = 0.0

    @property
    def created(self) -> str:
        """When the store was made."""
        return self._created

    def __reduce__(self) -> tuple[Any, ...]:
        return (CommitLog, (self.store, self.store_id, self._created))

    @classmethod
    def create(cls, store: ObjectStore) -> CommitLog:
        """Make an empty store.

        Raises
        ------
        NameTakenError
            If there is one already, or its folders are taken by other files.
        """
        _require_room(store)
        content: dict[str, Json] = {
            "format": FORMAT_VERSION,
            "id": secrets.token_hex(8),
            "created": _now(),
        }
        try:
            store.create(STORE_FILE, seal(content))
        except ConflictError as error:
            raise NameTakenError(
                f"there is a store at {store.url} already", "open it, or name another place"
            ) from error
        return cls(store, str(content["id"]), str(content["created"]))

    @classmethod
    def open(cls, store: ObjectStore) -> CommitLog:
        """Open an existing store.

        Raises
        ------
        NotFoundError
            If there is none.
        FormatError
            If a newer package wrote it.
        CorruptionError
            If ``store.json`` is damaged.
        """
        try:
            content = read_sealed(store, STORE_FILE)
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no store at {store.url}: {STORE_FILE} is missing",
                "check the path, or create a store there",
            ) from error
        check_format(content.get("format"))
        store_id, created = content.get("id"), content.get("created")
        if not (isinstance(store_id, str) and isinstance(created, str) and is_time(created)):
            raise CorruptionError(
                f"{STORE_FILE} holds id {store_id!r} and created {created!r}",
                "restore it from a backup",
            )
        return cls(store, store_id, created)

    # --- reading -------------------------------------------------------------------------------

    def head(self) -> Snapshot:
        """Return the newest snapshot.

        Raises
        ------
        CorruptionError
            If its file, or the complete one it refers to, is damaged.
        """
        return self._head().snapshot

    def newest_version(self) -> int:
        """Return the number of the newest version, without reading it."""
        return self._find_newest(self._newest.snapshot.version)

    def read(self, version: int) -> Snapshot:
        """Return a snapshot by its number.

        Raises
        ------
        NotFoundError
            If there is no such version, or gc let it go.
        CorruptionError
            If its file, or the complete one it refers to, is damaged.
        """
        return self._load(version).snapshot

    def resolve(self, reference: int | str) -> Snapshot:
        """Return the snapshot that a version, a snapshot id or a tag names.

        Raises
        ------
        NotFoundError
            If there is none, or the id's commit is not the one that this history has there.
        """
        if isinstance(reference, int):
            return self.read(reference)
        tag = Tags(self.store).find(reference)
        text = reference if tag is None else tag.id
        version, _, commit = text.partition("-")
        if not version.isdecimal() or not commit:
            raise NotFoundError(
                f"there is no tag {reference!r}, and it is no snapshot id like '42-0a1b2c3d'",
                f"tags are {Tags(self.store).names()}",
            )
        snapshot = self.read(int(version))
        if snapshot.commit != commit:
            raise NotFoundError(
                f"version {version} of this store is {snapshot.id}, not {text}",
                "the snapshot belongs to another store or to a copy that went its own way",
            )
        return snapshot

    def versions(self) -> list[int]:
        """Return all version numbers, from 0; gc may have let some of them go."""
        return list(range(self.newest_version() + 1))

    def history(self, last: int | None = None) -> list[HistoryRecord]:
        """Return the versions, oldest first, or the ``last`` ones only; reads one file for each.

        One that cannot be read is there all the same, with its ``fault``.
        """
        versions = self.versions()
        return read_history(self, versions if last is None else versions[-last:] if last else [])

    def at(self, moment: dt.datetime) -> Snapshot:
        """Return the newest snapshot that is not later than a time.

        Raises
        ------
        NotFoundError
            If the store is younger, or gc let that version go.
        CorruptionError
            If it depends on a version that cannot be read.
        """
        return self.read(version_at(self, moment))

    def read_file(self, version: int) -> SnapshotFile:
        """Return what a version's own file says, from 1 on."""
        try:
            return read_snapshot_file(self.store, version)
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no version {version}", f"the newest is {self.newest_version()}"
            ) from error

    # --- tags ----------------------------------------------------------------------------------

    def tag(self, name: str, version: int | None = None) -> Tag:
        """Name a version (the newest by default); gc keeps it. A tag of that name is moved.

        Raises
        ------
        InvalidInputError
            If ``name`` cannot be part of a path.
        NotFoundError
            If there is no such version, or gc lets it go at this moment; a tag that was there
            still names what it did.
        """
        leases = Leases(self.store)
        # The lease keeps the version from gc until the tag does: gc looks at leases, then at tags.
        if version is None:
            snapshot, lease = leases.take_newest(self.head)
        else:
            snapshot = self.read(version)
            lease = leases.take(snapshot)
        with lease:
            lease.require_held()
            if snapshot.version:  # its writer may be just about to make it durable
                self.store.sync([snapshot_path(snapshot.version)])
            return Tags(self.store).put(Tag(name, snapshot.version, snapshot.commit, _now()))

    def tags(self) -> dict[str, int]:
        """Return the version that each tag names; see ``Tags`` for the whole records."""
        return {name: tag.version for name, tag in Tags(self.store).all().items()}

    def untag(self, name: str) -> None:
        """Remove a tag; one that does not exist is no error."""
        Tags(self.store).delete(name)

    # --- writing -------------------------------------------------------------------------------

    def commit(
        self, operation: str, change: Change, requires: Iterable[StoredFile] = ()
    ) -> Snapshot:
        """Publish the next version.

        Parameters
        ----------
        operation : str
            What is done, in words.
        change : callable
            Gets the head and returns the entries to set, ``None`` to remove. It is called again
            on the newer head after a lost race, and raises ``ConflictError`` if it no longer
            applies. Data files must be durable before; the filesets that the entries name are
            made durable here.
        requires : iterable of StoredFile
            The files written for this commit. They, and the filesets that the entries name, are
            looked at right before each attempt to publish, as ``gc`` may have taken them for garbage.

        Returns
        -------
        Snapshot
            The published one, or the head if nothing would change.

        Raises
        ------
        ConflictError
            If ``change`` raised it, the race was lost too often, a required file is gone, or the
            store was replaced by another one since it was opened.
        LimitError
            If the snapshot would have more than 256 MiB.
        FeatureStoreError
            If the outcome is unknown after a failed request; nothing was deleted.
        """
        required = tuple(requires)
        commit = secrets.token_hex(8)
        for attempt in range(_ATTEMPTS):
            head = self._sound_head()
            changes = change(head.snapshot)
            entries = merge(head.snapshot.entries, changes)
            if entries == head.snapshot.entries:
                return head.snapshot
            new = next_head(head, entries, commit, operation, _now())
            self._require_durable(operation, named_filesets(changes.values()), required)
            if self._publish(new):
                self._newest = new
                leave_hint(self.store, new.snapshot.version)
                return new.snapshot
            time.sleep(random.uniform(0.0, min(0.002 * 2 ** min(attempt, 6), 0.1)))
        raise ConflictError(
            f"{operation!r} lost the race for the next version {_ATTEMPTS} times",
            "try again when fewer writers commit at once",
        )

    def give_up(self, version: int) -> Snapshot:
        """Replace the newest version, whose file is damaged, by a repetition of the one before it.

        The commit in it is lost; files that only it named are left to gc. Versions that can be
        read, and any but the newest, are refused.

        Raises
        ------
        InvalidInputError
            If the version is not the newest, or is sound.
        """
        if version < 1 or version != self.newest_version():
            raise InvalidInputError(
                f"version {version} is not the newest, {self.newest_version()}",
                "only a damaged newest version can be given up; restore others from a backup",
            )
        try:
            self.read_file(version)
        except CorruptionError:
            before = self._load(version - 1)
            operation = f"give up unreadable version {version}"
            commit = secrets.token_hex(8)
            new = next_head(before, before.snapshot.entries, commit, operation, _now())
            self.store.replace(snapshot_path(version), new.files[-1].data)
            self._newest = self._load(version)
            return self.head()
        raise InvalidInputError(f"version {version} can be read", "nothing has to be given up")

    # --- pieces --------------------------------------------------------------------------------

    def _head(self) -> Head:
        known = self._newest
        version = self._find_newest(known.snapshot.version)
        if version > known.snapshot.version:
            self._newest = self._load_after(version, known)
        elif (
            known.files
            and not self._acknowledged.is_there(known.files[-1])
            and not self._acknowledged.settle(known.files[-1:])
        ):
            self._newest = self._load(version)
        return self._newest

    def _find_newest(self, known: int) -> int:
        """Return the newest version; now and then lost ones are looked past, whatever their number."""
        now = time.monotonic()
        listing = now >= self._list_at
        version = find_newest_version(self.store, known, listing)
        if listing:
            self._list_at = now + LOOK_AGAIN_SECONDS
        return version

    def _load_after(self, version: int, known: Head) -> Head:
        """Return a head that somebody published after a known one."""
        file = self.read_file(version)
        before = known.snapshot
        if version == before.version + 1:
            follows = file.parent == before.commit
        else:
            follows = not known.files or self._acknowledged.is_ours(before.version, before.commit)
        if not follows:  # somebody gave the known one up, or this is another history
            self._acknowledged.settle(known.files)
        return load_head(file, self.read_file, known if follows else None)

    def _load(self, version: int) -> Head:
        if version == 0:
            return Head(Snapshot(0, self.store_id, self._created, "create", {}), 0, {})
        if version < 0:
            raise NotFoundError(f"there is no version {version}", "versions count from 0")
        return load_head(self.read_file(version), self.read_file)

    def _sound_head(self) -> Head:
        """Return the head to build on, after looking whether its files are what they were."""
        head = self._head()
        if not head.files:
            self._acknowledged.require_same_store()
        elif not (
            self._acknowledged.are_sound(head.files)
            or self._acknowledged.settle(head.files, restore=True)
        ):
            self._list_at = 0.0
            head = self._newest = self._load(self._find_newest(head.snapshot.version))
        return head

    def _require_durable(
        self, operation: str, filesets: Sequence[StoredFile], written: Sequence[StoredFile]
    ) -> None:
        """Make filesets durable, and refuse to publish them if they or other files are gone."""
        named = list({one.path: one for one in (*written, *filesets)}.values())
        try:
            self.store.sync(one.path for one in filesets)
        except NotFoundError:
            require_files(self.store, named, operation)
            raise
        require_files(self.store, named, operation)

    def _publish(self, new: Head) -> bool:
        """Return whether this head became its version."""
        version, data = new.snapshot.version, new.files[-1].data
        if len(data) > MAX_BYTES:  # nobody could read it
            raise LimitError(
                f"the snapshot of {new.snapshot.operation!r} would have {len(data)} bytes, more "
                f"than {MAX_BYTES}",
                "drop tables or features, or keep some of them in a store of their own",
            )
        try:
            self.store.create(snapshot_path(version), data)
        except ConflictError:
            # A repeated request may have met its own first attempt.
            return self.read_file(version).commit == new.snapshot.commit
        return True


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")


_STAGED: Final = re.compile(r"tmp/\d+-[0-9a-f]{16}")


def _require_room(store: ObjectStore) -> None:
    """Refuse a place whose files could be taken for a store's own, and be removed as such."""
    for folder in _FOLDERS:
        # A creation that was cut short leaves its staged file; gc sweeps it.
        foreign = (one for one in store.list(folder) if not _STAGED.fullmatch(one.path))
        found = next(foreign, None)
        # A store that somebody makes at this moment is reported as such.
        if found is not None and not store.exists(STORE_FILE):
            raise NameTakenError(
                f"{store.url} is no store and holds {found.path} already",
                "create the store in a directory that is empty or does not exist",
            )
