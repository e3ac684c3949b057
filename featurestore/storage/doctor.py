"""The doctor: tries at a place whether it keeps the promises that a store there would rely on.

It works in a folder of its own, ``doctor-<random>/`` below the place, and removes it; other files are
neither read nor changed, and no store need be there. A promise that was kept in all trials is not
proved; one that was broken once is broken.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from featurestore.errors import ConflictError, FeatureStoreError, NotFoundError
from featurestore.storage.backends import open_object_store
from featurestore.storage.local import STAGING, LocalStore
from featurestore.storage.object_store import ObjectInfo, ObjectStore
from featurestore.units import format_bytes

_WRITERS: Final = 8
_ROUNDS: Final = 12
_PACKAGES: Final = (
    "featurestore", "pyarrow", "polars", "narwhals", "numpy", "dask", "distributed", "zarr", "obstore",
)  # fmt: skip
_OPTIONAL: Final = ("cudf", "tensorflow", "keras", "torch", "jax", "xgboost", "matplotlib")
_SKEW_WARNED, _SKEW_REFUSED = 60.0, 3600.0
_LITTLE_SPACE: Final = 2**30
_NETWORK: Final = ("nfs", "cifs", "smb", "9p", "fuse", "afs", "ceph", "lustre", "gpfs")
_PASSING: Final = ("tmpfs", "ramfs")


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Parameters
    ----------
    name : str
    outcome : Outcome
    seen : str
        What happened.
    meaning : str
        What that means for a store there; empty if all is well.
    """

    name: str
    outcome: Outcome
    seen: str
    meaning: str = ""

    def __str__(self) -> str:
        meaning = f"\n{'':10}{self.meaning}" if self.meaning else ""
        return f"{self.outcome:8}  {self.name}: {self.seen}{meaning}"


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What a place is like.

    Parameters
    ----------
    url : str
    checks : tuple of Check
    """

    url: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; there may be warnings."""
        return all(one.outcome is not Outcome.FAILED for one in self.checks)

    def __getitem__(self, name: str) -> Check:
        for one in self.checks:
            if one.name == name:
                return one
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        verdict = "fit for a store" if self.ok else "NOT fit for a store"
        return "\n".join([f"{self.url}: {verdict}", *map(str, self.checks)])


def examine(url: str | Path) -> DoctorReport:
    """Try a place, as :func:`~featurestore.storage.backends.open_object_store` takes it.

    Raises
    ------
    InvalidInputError
        If the URL names no place.
    """
    store = open_object_store(url)
    probe = _Probe(store, f"doctor-{secrets.token_hex(6)}")
    checks = []
    with _removed_afterwards(store, probe):
        checks.append(_tried("write and read", probe.write_and_read))
        if checks[0].outcome is not Outcome.FAILED:
            checks += [_tried(name, check) for name, check in probe.checks()]
        if isinstance(store, LocalStore):
            checks += [_tried(name, check) for name, check in _local_checks(store, url)]
    return DoctorReport(store.url, tuple(checks))


def packages() -> dict[str, str]:
    """Return versions of what this package stands on; of optional ones whether they are there."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    # Looked for, not imported: loading some of these takes seconds.
    for name in _OPTIONAL:
        found[name] = "installed" if find_spec(name) is not None else "not installed"
    return found


Found = tuple[Outcome, str, str]


def _tried(name: str, check: Callable[[], Found]) -> Check:
    try:
        return Check(name, *check())
    except (FeatureStoreError, OSError) as error:
        problem = error.problem if isinstance(error, FeatureStoreError) else str(error)
        return Check(name, Outcome.FAILED, problem, "what a store relies on does not work there")


@contextmanager
def _removed_afterwards(store: ObjectStore, probe: _Probe) -> Iterator[None]:
    """Remove what the doctor made: its files, and of a local directory the folders too."""
    root = store.root if isinstance(store, LocalStore) else None
    made = [one for one in ((root / STAGING, root) if root else ()) if not one.exists()]
    try:
        yield
    finally:
        with suppress(FeatureStoreError):  # a place that cannot be written to has nothing of ours
            store.delete(probe.paths)
        if root is not None:
            shutil.rmtree(root / probe.folder, ignore_errors=True)
        for one in made:
            with suppress(OSError):  # somebody else's files are in it by now
                one.rmdir()


@dataclass(slots=True)
class _Probe:
    """The trials that every kind of place goes through."""

    store: ObjectStore
    folder: str
    paths: list[str] = field(default_factory=list)

    def checks(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        yield "exclusive create", self.exclusive_create
        yield "racing creates", self.racing_creates
        yield "overwrite", self.overwrite
        yield "listing", self.listing
        yield "ranges", self.ranges
        yield "delete", self.delete
        yield "clock", self.clock

    def _path(self, name: str) -> str:
        """Return the path of a file of the doctor's, and remember to remove it."""
        self.paths.append(f"{self.folder}/{name}")
        return self.paths[-1]

    def write_and_read(self) -> Found:
        path, data = self._path("a"), secrets.token_bytes(1000)
        self.store.write(path, data)
        self.store.sync([path])
        if not (self.store.exists(path) and self.store.size(path) == len(data)):
            return Outcome.FAILED, "a file that was written is not there", _LOST
        if self.store.read(path) != data:
            return Outcome.FAILED, "a file that was written reads otherwise", _LOST
        return Outcome.OK, f"1,000 bytes written and read at {self.store.url}", ""

    def exclusive_create(self) -> Found:
        path = self._path("b")
        self.store.create(path, b"first")
        try:
            self.store.create(path, b"second")
        except ConflictError as error:
            answer = "" if error.__cause__ is None else f" ({type(error.__cause__).__name__})"
        else:
            return Outcome.FAILED, "a second create of one name was accepted", _NO_EXCLUSION
        if self.store.read(path) != b"first":
            return Outcome.FAILED, "a refused create replaced the file", _NO_EXCLUSION
        return Outcome.OK, f"a second create of one name is refused{answer}", ""

    def racing_creates(self) -> Found:
        """Let some threads create one name at once, several times."""
        start = threading.Barrier(_WRITERS)

        def create(path: str, number: int) -> bool:
            start.wait(timeout=60)
            try:
                self.store.create(path, b"%d" % number)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(_WRITERS) as threads:
            for turn in range(_ROUNDS):
                path = self._path(f"race-{turn}")
                tries = [threads.submit(create, path, number) for number in range(_WRITERS)]
                winners = [number for number, one in enumerate(tries) if one.result()]
                if len(winners) != 1:
                    seen = f"{len(winners)} of {_WRITERS} who created one name at once succeeded"
                    return Outcome.FAILED, seen, _NO_EXCLUSION
                if self.store.read(path) != b"%d" % winners[0]:
                    seen = "the file is not that of the one writer whose create succeeded"
                    return Outcome.FAILED, seen, _NO_EXCLUSION
        return Outcome.OK, f"one of {_WRITERS} threads won, {_ROUNDS} times of {_ROUNDS}", ""

    def overwrite(self) -> Found:
        path = self._path("c")
        for number in range(3):
            data = b"%d" % number * (number + 1)
            self.store.replace(path, data)
            if self.store.read(path) != data or self.store.size(path) != len(data):
                seen = "an overwritten file still reads as before"
                return Outcome.FAILED, seen, "tags and hints may be seen late, or half"
        return Outcome.OK, "an overwritten file is seen at once", ""

    def listing(self) -> Found:
        path = self._path("list/one")
        self.store.write(path, b"12345")
        found = self._listed("list")
        if [(one.path, one.bytes) for one in found] != [(path, 5)]:
            seen = f"a new file is not in the listing: {[one.path for one in found]}"
            return Outcome.FAILED, seen, _STALE_LIST
        self.store.delete([path])
        if self._listed("list"):
            return Outcome.FAILED, "a deleted file is still in the listing", _STALE_LIST
        return Outcome.OK, "new and deleted files are seen at once", ""

    def _listed(self, folder: str) -> list[ObjectInfo]:
        return list(self.store.list(f"{self.folder}/{folder}"))

    def ranges(self) -> Found:
        path, data = self._path("d"), bytes(range(256)) * 4
        self.store.write(path, data)
        for start, length in ((0, 1), (100, 300), (1023, 1), (0, 1024)):
            if self.store.read(path, start, length) != data[start : start + length]:
                seen = f"bytes {start} to {start + length} of a file read otherwise"
                return Outcome.FAILED, seen, "column reads would return wrong bytes"
        return Outcome.OK, "ranges of a file read as they were written", ""

    def delete(self) -> Found:
        path = self._path("e")
        self.store.write(path, b"gone")
        self.store.delete([path])
        self.store.delete([path, self._path("never-there")])
        if self.store.exists(path):
            return Outcome.FAILED, "a deleted file is still there", "gc would free no space"
        with suppress(NotFoundError):
            self.store.read(path)
            return Outcome.FAILED, "a deleted file can be read", "gc would free no space"
        return Outcome.OK, "a deleted file is gone, deleting it again is no error", ""

    def clock(self) -> Found:
        before = time.time()
        self.store.write(self._path("clock/one"), b"now")
        after = time.time()
        found = self._listed("clock")
        if not found:
            return Outcome.WARNING, "a new file is not in the listing", _CLOCK
        # Some services count whole seconds.
        modified = found[0].modified
        skew = max(before - 1.0 - modified, modified - after - 1.0, 0.0)
        seen = f"the storage's clock and this machine's differ by {skew:.0f} s"
        if skew > _SKEW_REFUSED:
            return Outcome.FAILED, seen, f"{_CLOCK}; set the clocks"
        if skew > _SKEW_WARNED:
            return Outcome.WARNING, seen, f"{_CLOCK}; keep its safety_age well above that"
        return Outcome.OK, seen if skew else "the storage's clock and this machine's agree", ""


_LOST: Final = "a store there would lose data"
_NO_EXCLUSION: Final = (
    "two writers who commit at once would both be told that they succeeded, and one commit would be "
    "LOST: use this place with a single writer at most"
)
_STALE_LIST: Final = (
    "tags, leases and finished work may be overlooked, and gc may remove what somebody uses: run gc "
    "only while nobody else works, with a safety_age of a day or more"
)
_NETWORKED: Final = (
    "over a network, hard links and syncs are as good as its server: check what it promises about "
    "power loss, and run the doctor from every machine that will write"
)
_CLOCK: Final = "gc goes by the age of files"


# --- a directory of this machine ---------------------------------------------------------------


def _local_checks(store: LocalStore, url: str | Path) -> Iterator[tuple[str, Callable[[], Found]]]:
    yield "durable writes", lambda: _durable(store)
    yield "file system", lambda: _file_system(store.root)
    yield "free space", lambda: _free_space(store.root)
    yield "symbolic links", lambda: _links(store.root, url)


def _durable(store: LocalStore) -> Found:
    """Time what a commit waits for: the sync of a file and of its directory."""
    started = time.perf_counter()
    with _scratch(store.root) as folder:
        path = folder / "one"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(descriptor, b"x" * 4096)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(path, folder / "two")
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    milliseconds = (time.perf_counter() - started) * 1000
    return Outcome.OK, f"hard link, sync of a file and of its directory: {milliseconds:.1f} ms", ""


@contextmanager
def _scratch(root: Path) -> Iterator[Path]:
    folder = root / f"doctor-{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _file_system(root: Path) -> Found:
    kind = _file_system_type(root)
    if kind is None:
        return Outcome.OK, "its type is not known here", ""
    if kind in _PASSING:
        return Outcome.WARNING, kind, "it is memory: everything is lost when the machine restarts"
    if kind.startswith(_NETWORK):
        return Outcome.WARNING, kind, _NETWORKED
    if kind == "overlay":
        return Outcome.WARNING, kind, "a container's own layer: it is lost with the container"
    return Outcome.OK, kind, ""


def _file_system_type(root: Path) -> str | None:
    """Return the type of the file system below a directory, where Linux says it."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return None
    place, best, kind = root.resolve(), -1, None
    for line in mounts.read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split()[0]
    return kind


def _free_space(root: Path) -> Found:
    place = next(one for one in (root, *root.parents) if one.exists())
    free = shutil.disk_usage(place).free
    seen = f"{format_bytes(free)} free"
    if free < _LITTLE_SPACE:
        return Outcome.WARNING, seen, "builds and compactions write before anything can be removed"
    return Outcome.OK, seen, ""


def _links(root: Path, url: str | Path) -> Found:
    inside = sorted(one.name for one in root.iterdir() if one.is_symlink()) if root.exists() else []
    if inside:
        return (
            Outcome.WARNING,
            f"links in the directory: {', '.join(inside[:5])}",
            "files behind links inside a store are refused",
        )
    text = str(url)
    path = unquote(urlsplit(text).path) if text.startswith("file://") else text
    given = Path(path).expanduser()
    if given.absolute() != root:
        return Outcome.OK, f"reached through links, it lies at {root}", ""
    return Outcome.OK, "none", ""
