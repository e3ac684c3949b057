"""Where packs lie, which there are, and making room for another.

Always true: a pack that a process has open is not removed to make room, in whichever process; who opens
one that is being removed finds all of it or nothing. Packs go in the order of their last use.

The trade-off: without a limit of its own the cache takes what the disk has, and lets packs go only when
another does not fit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from featurestore.errors import DiskFullError, FeatureStoreError
from featurestore.storage.vector_cache import CACHE_VARIABLE
from featurestore.units import format_bytes, parse_bytes
from training.loading.layout import MANIFEST
from training.loading.scratch import scratch_name

LIMIT_VARIABLE: Final = "FEATURESTORE_CACHE_LIMIT"


def cache_directory(cache: str | Path | None = None) -> Path:
    """Return where packs lie: ``cache``, else ``$FEATURESTORE_CACHE``, else under ``~/.cache``."""
    if cache is not None:
        chosen = Path(cache)
    elif os.environ.get(CACHE_VARIABLE):
        chosen = Path(os.environ[CACHE_VARIABLE])
    else:
        chosen = Path("~/.cache/featurestore/packs")
    # Absolute, so that a process that changes its directory still finds what it wrote.
    return chosen.expanduser().absolute()


def cache_limit(limit: int | str | None = None) -> int | None:
    """Return how many bytes packs may take: ``limit``, else ``$FEATURESTORE_CACHE_LIMIT``, else None.

    Raises
    ------
    InvalidInputError
        If it is no size.
    """
    said = limit if limit is not None else os.environ.get(LIMIT_VARIABLE) or None
    return None if said is None else parse_bytes(said)


def list_packs(cache: str | Path | None = None) -> Iterator[tuple[Path, int, float]]:
    """Yield path, bytes and time of last use (seconds since 1970) of each pack in a cache."""
    root = cache_directory(cache)
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        with suppress(FileNotFoundError):  # another process removes it
            if not path.name.startswith(".") and (path / MANIFEST).is_file():
                size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
                yield path, size, (path / MANIFEST).stat().st_mtime


def hold(pack: Path) -> int:
    """Return a descriptor that keeps a pack from being removed to make room, until it is closed.

    Raises
    ------
    OSError
        If the pack is not there.
    """
    handle = os.open(pack / MANIFEST, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
    except BaseException:
        os.close(handle)
        raise
    return handle


def make_room(root: Path, needed: int, limit: int | None = None) -> None:
    """Remove packs that nobody has open, those not used for longest first, until another one fits.

    Parameters
    ----------
    root : Path
        The cache.
    needed : int
        Bytes of the pack that is to be written.
    limit : int, optional
        Bytes that all packs may take together; if not given, what the disk has.

    Raises
    ------
    DiskFullError
        If it does not fit when all of them are gone; then none is removed.
    """
    packs = sorted(list_packs(root), key=lambda one: one[2])
    free = shutil.disk_usage(root).free
    taken = sum(size for _, size, _ in packs)
    missing = max(needed - free, 0 if limit is None else taken + needed - limit)
    if missing <= 0:
        return
    unused = [(path, size) for path, size, _ in packs if _is_unused(path)]
    if missing > sum(size for _, size in unused):
        raise disk_full(root, needed, free, limit, taken)
    for path, size in unused:
        if missing <= 0:
            break
        if _is_unused(path):
            set_aside(path)
            missing -= size


def disk_full(
    root: Path, needed: int, free: int, limit: int | None = None, taken: int = 0
) -> DiskFullError:
    """Return the error of a cache that has no room for a pack."""
    if limit is not None and taken + needed > limit:
        return DiskFullError(
            f"the pack needs {format_bytes(needed)}; packs may take {format_bytes(limit)}, and those "
            f"that are in use or there take {format_bytes(taken)}",
            f"raise cache_limit= or ${LIMIT_VARIABLE}, or close the loaders that use other packs",
        )
    return DiskFullError(
        f"the pack needs {format_bytes(needed)} and {root} has {format_bytes(free)} left",
        "free space, delete old packs, or name another directory with cache= or "
        "$FEATURESTORE_CACHE",
    )


def set_aside(path: Path) -> None:
    """Take a pack out of the way in one step, then delete its files.

    Raises
    ------
    FeatureStoreError
        If it cannot be moved.
    """
    aside = path.with_name(scratch_name())
    try:
        path.rename(aside)
    except FileNotFoundError:
        return  # another process was faster
    except OSError as error:
        raise FeatureStoreError(
            f"pack {path} cannot be moved away: {error}", "delete that directory, or change cache="
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def _is_unused(pack: Path) -> bool:
    """Whether no process has a pack open."""
    try:
        handle = os.open(pack / MANIFEST, os.O_RDONLY)
    except OSError:
        return False  # it goes, or is not ours to remove
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
