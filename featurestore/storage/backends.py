"""Which object store a URL names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from featurestore.arguments import shown
from featurestore.errors import InvalidInputError
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectStore

_PLACES: Final = "use a directory, file:///a/path, memory://name or s3://bucket/prefix"
_registered: Final[dict[str, Callable[[str], ObjectStore]]] = {}


def register_backend(scheme: str, opener: Callable[[str], ObjectStore]) -> None:
    """Let ``scheme://...`` name stores of another kind, in this process.

    Parameters
    ----------
    scheme : str
        Not one of this package's own.
    opener : callable
        Gets the whole URL. Workers open a store again by its URL, so what it returns must have that
        URL, and each opening must see the same files.

    Raises
    ------
    InvalidInputError
        For ``file``, ``memory`` and ``s3``.
    """
    if scheme in ("file", "memory", "s3"):
        raise InvalidInputError(f"the scheme {scheme!r} is this package's own", "choose another")
    _registered[scheme] = opener


def open_object_store(url: str | Path) -> ObjectStore:
    """Open a place for files; nothing is written, and it need not exist yet.

    Parameters
    ----------
    url : str or path
        A directory (a plain path or ``file://``), ``memory://name`` (this process only, one per
        name), or ``s3://bucket/prefix`` (configured by the ``AWS_*`` environment variables).

    Raises
    ------
    InvalidInputError
        For any other scheme, without a name, and for what cannot be the path of a directory.

    Examples
    --------
    >>> open_object_store("memory://docs").url
    'memory://docs'
    """
    if not isinstance(url, str | Path):
        raise InvalidInputError(f"{shown(url)} names no store", _PLACES)
    text = str(url)
    if isinstance(url, Path) or "://" not in text:
        if not text:
            raise InvalidInputError("a store needs a place, not an empty path", "name a directory")
        return _directory(url)
    parts = _parts(text)
    if parts.scheme in _registered:
        return _registered[parts.scheme](text)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise InvalidInputError(f"{text!r} names no local directory", "write file:///a/path")
        return _directory(unquote(parts.path))
    name = text.removeprefix(f"{parts.scheme}://").rstrip("/")
    if parts.scheme in ("memory", "s3") and name:
        from featurestore.storage.remote import RemoteStore

        return RemoteStore.memory(name) if parts.scheme == "memory" else RemoteStore.s3(text)
    raise InvalidInputError(f"{shown(text)} names no store", _PLACES)


def _parts(text: str) -> SplitResult:
    try:
        if "\0" not in text:
            return urlsplit(text)
    except ValueError:
        pass  # brackets that are no address; the message below says what was expected
    raise InvalidInputError(f"{shown(text)} names no store", _PLACES)


def _directory(path: str | Path) -> LocalStore:
    """Return the store below a directory, which need not exist but must be able to."""
    try:
        store = LocalStore(path)
        os.lstat(store.root)
    except (RuntimeError, ValueError) as error:  # no such user, or characters no name may have
        raise InvalidInputError(
            f"{shown(str(path))} is no path: {error}", "name a directory"
        ) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidInputError(
                f"a path of {len(str(path))} characters, {shown(str(path))}, is too long for this "
                "system",
                "name a directory with shorter names",
            ) from error
        # It does not exist yet, or what is wrong with it shows when it is used.
    return store
