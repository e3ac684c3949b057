"""Whether work fits its memory limit at all, and what is said when it does not.

The one rule: reserved memory and the largest piece of work together stay within the limit. It is
asked before anything runs; several pieces at once are the budget's affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from featurestore.allocators import release_freed
from featurestore.errors import MemoryLimitError
from featurestore.execution.budget import DRIFT, budget_of, resident_bytes_now
from featurestore.execution.dask import Executor
from featurestore.execution.sites import reserved_bytes, settled_bytes
from featurestore.units import format_bytes

_KIB: Final = 2**10
_MIB: Final = 2**20
TURNS: Final = "turns"
"""Name of the budget of those that take turns: one thing at a time, whatever it needs."""


@dataclass(frozen=True, slots=True)
class Need:
    """The most that one piece of some work needs.

    Parameters
    ----------
    what : str
        The subject of "... needs 3 GiB".
    bytes : int
    partition : str
        ``""`` if it is about no single one.
    """

    what: str
    bytes: int
    partition: str = ""

    def __str__(self) -> str:
        where = f" for partition {self.partition}" if self.partition else ""
        return f"{self.what} needs {format_bytes(self.bytes)}{where}"


def readable_bytes(count: int) -> str:
    """Return a number of bytes rounded down, as one would write it.

    Examples
    --------
    >>> readable_bytes(50 * 2**20 + 5), readable_bytes(2500)
    ('50MiB', '2KiB')
    """
    return f"{count // _MIB}MiB" if count >= 10 * _MIB else f"{count // _KIB}KiB"


def smallest_limit(need: int, reserved: int) -> str:
    """Return the smallest memory limit that will do, in whole MiB, as one would write it.

    Examples
    --------
    >>> smallest_limit(100 * 2**20, reserved=150 * 2**20)
    '258MiB'
    """
    return f"{-(-(need + reserved + DRIFT) // _MIB)}MiB"


def require_room(need: Need, limit: int, reserved: int, instead: str, then: int = 0) -> None:
    """Refuse work of which the largest piece does not fit the limit.

    Parameters
    ----------
    need : Need
    limit, reserved : int
        Bytes.
    instead : str
        What the caller can do other than raising the limit: ``"name fewer columns"``.
    then : int
        Bytes that what is done next takes, so that the limit which is named does for that too.

    Raises
    ------
    MemoryLimitError
    """
    what_to_do = remedy(need, limit, reserved, instead, then)
    if what_to_do:
        raise MemoryLimitError(
            f"{need} beside {format_bytes(reserved)} in use or reserved, the memory limit is "
            f"{format_bytes(limit)}",
            what_to_do,
        )


def remedy(need: Need, limit: int, reserved: int, instead: str, then: int = 0) -> str:
    """Return what the caller can do about work that does not fit; ``""`` if it does."""
    if reserved + need.bytes <= limit:
        return ""
    raised = f"raise memory_limit to at least {smallest_limit(max(need.bytes, then), reserved)}"
    return f"{raised}, or {instead}" if instead else raised


def require_each(
    what: str, costs: Sequence[int], names: Sequence[str], executor: Executor, instead: str
) -> None:
    """Refuse tasks of which the largest does not fit; ``names`` are their partitions.

    Raises
    ------
    MemoryLimitError
    """
    limit = executor.memory_limit
    if limit is None or not costs:
        return
    at = max(range(len(costs)), key=costs.__getitem__)
    require_room(Need(what, costs[at], names[at]), limit, executor.reserved_bytes, instead)


@contextmanager
def holding(need: Need, limit: int, engine: str, instead: str) -> Iterator[None]:
    """Refuse work in this thread that does not fit; wait for room; hold it inside the block.

    Raises
    ------
    MemoryLimitError
        Before anything is done.
    """
    # What earlier work freed may be on its way back to the system.
    require_room(need, limit, settled_bytes(engine, limit - need.bytes), instead)
    with budget_of().admit(need.bytes, limit):
        yield


@contextmanager
def all_room(limit: int, engine: str) -> Iterator[int]:
    """Wait until no other work holds anything; yield what is in use without work.

    For work that makes use of whatever a limit leaves, as sorting does: one at a time. It is not held
    in the budget while the block runs: rows may come from a thread that reads the store, and would
    then wait for who waits for it. Work that begins meanwhile sees what is resident by then.

    Raises
    ------
    MemoryLimitError
        If nothing is left.
    """
    any_work, instead = Need("any work", 1), "free what the process holds"
    reserved = reserved_bytes(engine)
    require_room(any_work, limit, reserved, instead)
    with budget_of(TURNS, _nothing).admit(1, limit=1):
        with budget_of().admit(limit - reserved, limit):
            release_freed()
            # While it waited, others may have come to hold more for good.
            reserved = max(reserved, resident_bytes_now())
        require_room(any_work, limit, reserved, instead)
        yield reserved


def _nothing() -> int:
    return 0
