"""The history as people read it: one record per version, also of those that gc let go or that are
damaged, and which version was the newest at a time.

Times never run backwards within a history, because a commit takes the later of its clock and its
parent's time. So the version of a time is found by bisection, reading few files however many versions
there are. Stores written before that was so may hold times that do; there, a bisection may be off by
as much as the clocks were.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.errors import CorruptionError, FeatureStoreError, NotFoundError

if TYPE_CHECKING:
    from featurestore.storage.commit_log import CommitLog


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """A version without its entries.

    Parameters
    ----------
    version : int
    commit, created, operation : str
        As in a snapshot; of an unreadable version unknown, hence empty.
    kept : bool
        Whether it has its entries: False once gc let them go, and if its file cannot be read.
    fault : str
        Why its file cannot be read; empty if it can.
    """

    version: int
    commit: str
    created: str
    operation: str
    kept: bool = True
    fault: str = ""

    @property
    def id(self) -> str:
        return f"{self.version}-{self.commit}" if self.commit else str(self.version)


def read_history(log: CommitLog, versions: Iterable[int]) -> list[HistoryRecord]:
    """Return the records of some versions; reads one file for each."""
    return [_record(log, version) for version in versions]


def version_at(log: CommitLog, moment: dt.datetime) -> int:
    """Return the newest version that is not later than a time.

    Raises
    ------
    NotFoundError
        If the store is younger.
    CorruptionError
        If it depends on a version whose file cannot be read.
    """
    low, high = 0, log.newest_version() + 1  # low is not later, high is, or does not exist
    if dt.datetime.fromisoformat(log.created) > moment:
        raise NotFoundError(
            f"the store is younger than {moment.isoformat()}: it was made at {log.created}",
            "see history()",
        )
    faults: dict[int, str] = {}
    while True:
        middle = _between(low, high, faults)
        if middle is None:
            break
        record = _record(log, middle)
        if record.fault:
            faults[middle] = record.fault
        elif dt.datetime.fromisoformat(record.created) <= moment:
            low = middle
        else:
            high = middle
    unknown = [version for version in faults if low < version < high]
    if unknown:
        raise CorruptionError(
            f"which version was the newest at {moment.isoformat()} is unknown: {low} is not later, "
            f"and of those after it {unknown} cannot be read: {faults[unknown[0]]}",
            f"check out version {low} by its number, or restore the files from a backup",
        )
    return low


def _between(low: int, high: int, faults: dict[int, str]) -> int | None:
    """Return a version between two, near their middle, that was not found unreadable."""
    middle = (low + high) // 2
    down = next((one for one in range(middle, low, -1) if one not in faults), None)
    return down or next((one for one in range(middle + 1, high) if one not in faults), None)


def _record(log: CommitLog, version: int) -> HistoryRecord:
    if version == 0:
        return HistoryRecord(0, log.store_id, log.created, "create")
    try:
        found = log.read_file(version)
    except FeatureStoreError as error:  # damaged, gone, or refused by the system
        return HistoryRecord(version, "", "", "(unreadable)", kept=False, fault=error.problem)
    return HistoryRecord(
        version, found.commit, found.created, found.operation, found.entries is not None
    )
