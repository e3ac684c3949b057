"""Tags: names for versions, one sealed file each. gc keeps what they point to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.schema import check_name
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.sealed_json import SMALL_BYTES, read_bounded, seal, unseal

TAGS: Final = "tags"
_FILE: Final = re.compile(rf"{TAGS}/[A-Za-z_][A-Za-z0-9_.-]*\.json")
_REMEDY: Final = "set the tag again, or delete the file"


@dataclass(frozen=True, slots=True)
class Tag:
    """A name for a version; ``commit`` says which history it belongs to."""

    name: str
    version: int
    commit: str
    created: str

    def __post_init__(self) -> None:
        check_name(self.name, "tag")

    @property
    def id(self) -> str:
        """The id of the snapshot it names."""
        return f"{self.version}-{self.commit}"


class Tags:
    """The tags of one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def put(self, tag: Tag) -> Tag:
        """Write a tag, durably, over any of that name."""
        content: dict[str, Json] = {
            "name": tag.name,
            "version": tag.version,
            "commit": tag.commit,
            "created": tag.created,
        }
        self._store.replace(_path(tag.name), seal(content))
        return tag

    def get(self, name: str) -> Tag:
        """Return one tag.

        Raises
        ------
        NotFoundError
            If there is none of that name.
        CorruptionError
            If its file is damaged.
        """
        path = _path(name)
        return read_tag(path, read_bounded(self._store, path, _REMEDY, SMALL_BYTES))

    def find(self, name: str) -> Tag | None:
        """Return one tag, None if there is none of that name, or the name can be no tag's.

        Raises
        ------
        CorruptionError
            If its file is damaged.
        """
        try:
            return self.get(name)
        except InvalidInputError:
            return None

    def names(self) -> list[str]:
        """Return the names of all tags; reads none of them."""
        return [
            info.path.removeprefix(f"{TAGS}/").removesuffix(".json")
            for info in self._store.list(TAGS)
            if _FILE.fullmatch(info.path)
        ]

    def all(self) -> dict[str, Tag]:
        """Return all tags by name; files that are named like no tag are somebody else's."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.get(name)
            except NotFoundError:  # removed since the listing
                continue
        return found

    def delete(self, name: str) -> None:
        """Remove a tag, durably; one that does not exist is no error."""
        # A tag that came back after gc let its version go would name nothing.
        self._store.delete([_path(name)], durable=True)


def read_tag(path: str, data: bytes) -> Tag:
    """Return the tag that a file holds.

    Raises
    ------
    CorruptionError
        If the file is torn or damaged, or holds something else.
    """
    content = unseal(data, path, _REMEDY)
    name = path.removeprefix(f"{TAGS}/").removesuffix(".json")
    version, commit, created = (content.get(one) for one in ("version", "commit", "created"))
    whole = isinstance(version, int) and not isinstance(version, bool) and version >= 0
    if not (whole and isinstance(commit, str) and isinstance(created, str)):
        raise CorruptionError(
            f"{path} holds version {version!r}, commit {commit!r} and time {created!r}", _REMEDY
        )
    if content.get("name", name) != name:  # files of earlier versions do not say
        raise CorruptionError(f"{path} holds the tag {content['name']!r}", _REMEDY)
    assert isinstance(version, int)
    return Tag(name, version, commit, created)


def _path(name: str) -> str:
    return f"{TAGS}/{check_name(name, 'tag')}.json"
