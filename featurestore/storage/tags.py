"""Tags: names for versions, one sealed file each. gc keeps what they point to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from featurestore.errors import CorruptionError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.schema import check_name
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.sealed_json import seal, unseal

TAGS: Final = "tags"


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
        return read_tag(path, self._store.read(path))

    def all(self) -> dict[str, Tag]:
        """Return all tags by name."""
        found = {}
        for info in self._store.list(TAGS):
            name = info.path.removeprefix(f"{TAGS}/").removesuffix(".json")
            try:
                found[name] = self.get(name)
            except NotFoundError:  # removed since the listing
                continue
        return found

    def delete(self, name: str) -> None:
        """Remove a tag; one that does not exist is no error."""
        self._store.delete([_path(name)])


def read_tag(path: str, data: bytes) -> Tag:
    """Return the tag that a file holds.

    Raises
    ------
    CorruptionError
        If the file is torn or damaged.
    """
    remedy = "set the tag again, or delete the file"
    content = unseal(data, path, remedy)
    name = path.removeprefix(f"{TAGS}/").removesuffix(".json")
    try:
        return Tag(name, content["version"], content["commit"], content["created"])
    except KeyError as error:
        raise CorruptionError(f"{path} lacks {error}", remedy) from error


def _path(name: str) -> str:
    return f"{TAGS}/{check_name(name, 'tag')}.json"
