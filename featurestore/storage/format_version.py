"""Which formats of a store this package reads; ``docs/FORMAT.md`` says what they are."""

from __future__ import annotations

from featurestore.errors import FormatError
from featurestore.storage.records import FORMAT_VERSION


def check_format(version: object) -> None:
    """Refuse a store of a newer format.

    Raises
    ------
    FormatError
    """
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"format version {version!r} is not a number from 1 on", "check the path")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"the store has format version {version}, this package reads up to {FORMAT_VERSION}",
            "upgrade featurestore",
        )
