"""Which version a reference means: a number, a tag, a snapshot id or a time.

Always true: a text means one thing only. Names of tags begin with a letter or ``_``, ids have a dash
and a commit, ISO times are dates with or without a time of day, and other decimal text is a number.
The trade-off: eight digits that are a date (``"20261122"``) mean that day; the version of so high a
number is reached by giving it as an integer.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, TypeAlias

from featurestore.arguments import as_whole, shown, whole_number
from featurestore.errors import InvalidInputError, NotFoundError
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.records import Snapshot
from featurestore.times import is_time

VersionLike: TypeAlias = "int | str | dt.date | dt.datetime"

_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_LIKE_A_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}|\d{4}-?W\d")


def find_version(log: CommitLog, reference: VersionLike) -> Snapshot:
    """Return the snapshot that a reference means; see ``FeatureStore.checkout``.

    Raises
    ------
    NotFoundError
        If there is none, or gc let it go.
    InvalidInputError
        If it is of no such kind.
    """
    if isinstance(reference, str):
        return _find(log, reference)
    if isinstance(reference, dt.date) and is_time(reference):
        return log.at(_moment(reference))
    if as_whole(reference) is not None:
        return log.read(whole_number(reference, "version"))
    raise InvalidInputError(
        f"{shown(reference)} names no version",
        "give a number like 12, a tag, a snapshot id like '12-<commit>', or a time as ISO text or "
        "datetime; history() and tags() list them",
    )


def _find(log: CommitLog, reference: str) -> Snapshot:
    try:
        time = dt.datetime.fromisoformat(reference)
    except ValueError as error:
        if _LIKE_A_DATE.match(reference):
            raise NotFoundError(f"{reference!r} is no ISO time", "see history()") from error
    else:
        return log.at(_moment(time))
    if _NUMBER.fullmatch(reference):
        return log.read(int(reference))
    return log.resolve(reference)


def _moment(time: dt.date) -> dt.datetime:
    """Return a time with its zone; UTC if it has none."""
    if not isinstance(time, dt.datetime):
        time = dt.datetime.combine(time, dt.time())
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)
