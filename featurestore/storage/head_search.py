"""Finding the newest version: a logarithmic number of existence checks, shortened by a hint file.

A mutable pointer could be lost, or lie; names of versions are never freed, so what exists cannot. The
hint says where to start looking. Nothing relies on it: missing, old or damaged, it only costs checks.

A version whose file was lost must not make the ones after it invisible: then an old version would be
read as the newest, and the next commit would publish a second history over the first. So the search
looks one further than the first version that is not there. On a local disk, where names are listed
fast (10,000 in about 3 ms), it also lists them when asked to: then no number of lost files hides one.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.sealed_json import read_sealed, seal
from featurestore.storage.snapshot_file import snapshot_path

HINT_FILE: Final = "latest.json"
_HINT_EVERY: Final = 32
# Far beyond what anybody commits; a number beyond it is no version of ours.
_NAME: Final = re.compile(r"0{5}[0-9]{15}\.json")

_log: Final = logging.getLogger(__name__)


def find_newest_version(store: ObjectStore, known: int = 0, listing: bool = False) -> int:
    """Return the number of the newest version, without reading it.

    Parameters
    ----------
    store : ObjectStore
    known : int
        A version that exists; 0 asks the hint.
    listing : bool
        Also list the names, where that is cheap.
    """
    known = _search(store, known or _hint(store))
    while _exists(store, known + 2):
        if _exists(store, known + 1):  # both were published since
            known = _search(store, known + 1)
            continue
        _log.warning(
            "%s is lost, and later versions are there: restore it from a backup, and run verify",
            snapshot_path(known + 1),
        )
        known = _search(store, known + 2)
    last = _last_local(store) if listing else 0
    if last > known and not _exists(store, known + 1):  # else it was published since
        _log.warning(
            "%s and the ones after it, up to version %d, are lost: restore them from a backup, and "
            "run verify",
            snapshot_path(known + 1),
            last - 1,
        )
    return max(known, last)


def _last_local(store: ObjectStore) -> int:
    """Return the last version there is a file of on a local disk; 0 elsewhere."""
    path = store.local_path(snapshot_path(1))
    if path is None:
        return 0
    try:
        names = os.listdir(path.parent)  # noqa: PTH208 - without looking at each file
    except OSError:  # there is none yet; what is wrong with it shows when it is read
        return 0
    return last_version(names)


def last_version(names: Iterable[str]) -> int:
    """Return the highest version among names of files; others are somebody else's."""
    last = ""
    for name in names:  # numbers have leading zeros, so their order is that of the names
        if name > last and _NAME.fullmatch(name):
            last = name
    return int(last[:20] or 0)


def _search(store: ObjectStore, known: int) -> int:
    """Return the version before the first one that is not there, as far as doubling steps see."""
    step = 1
    while _exists(store, known + step):
        known += step
        step *= 2
    while step > 1:  # known exists, known + step does not
        step //= 2
        if _exists(store, known + step):
            known += step
    return known


def leave_hint(store: ObjectStore, version: int) -> None:
    """Leave the hint now and then; the version is published already, so this never fails."""
    if version % _HINT_EVERY:
        return
    try:
        store.replace(HINT_FILE, seal({"version": version}))
    except FeatureStoreError as error:
        _log.warning("%s was not written: %s", HINT_FILE, error.problem)


def _exists(store: ObjectStore, version: int) -> bool:
    return store.exists(snapshot_path(version))


def _hint(store: ObjectStore) -> int:
    try:
        version = read_sealed(store, HINT_FILE).get("version")
    except FeatureStoreError:  # only a shortcut: search from the start
        return 0
    known = isinstance(version, int) and 0 < version < 10**18
    return version if isinstance(version, int) and known and _exists(store, version) else 0
