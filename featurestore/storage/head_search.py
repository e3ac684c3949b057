"""Finding the newest version: a logarithmic number of existence checks, shortened by a hint file.

A mutable pointer could be lost, or lie; names of versions are never freed, so what exists cannot. The
hint says where to start looking. Nothing relies on it: missing, old or damaged, it only costs checks.

A version whose file was lost must not make the ones after it invisible: then an old version would be
read as the newest, and the next commit would publish a second history over the first. So the search
looks one further than the first version that is not there.
"""

from __future__ import annotations

import logging
from typing import Final

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.sealed_json import read_sealed, seal
from featurestore.storage.snapshot_file import snapshot_path

HINT_FILE: Final = "latest.json"
_HINT_EVERY: Final = 32

_log: Final = logging.getLogger(__name__)


def find_newest_version(store: ObjectStore, known: int = 0) -> int:
    """Return the number of the newest version, without reading it.

    Parameters
    ----------
    store : ObjectStore
    known : int
        A version that exists; 0 asks the hint.
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
    return known


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
    except (NotFoundError, CorruptionError):  # only a shortcut: search from the start
        return 0
    known = isinstance(version, int) and 0 < version < 10**18
    return version if isinstance(version, int) and known and _exists(store, version) else 0
