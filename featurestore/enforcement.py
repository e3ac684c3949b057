"""A memory limit that the kernel keeps: beyond it the process is killed, and the machine is not.

The whole process moves into a control group of its own (:mod:`featurestore.limited_group`) for as long as
anybody here wants a limit, and back afterwards. There is one such group per process: several limits at
once, nested or not, from one thread or several, mean the least of them. Processes started meanwhile are
in the group too, and workers on this host can be taken in.

Always true: nothing is enforced that was not asked for, and what is asked for and cannot be had is a
warning, never silence. What processes hold when they enter stays charged where it was, so the group gets
the limit less that. Pages of files count in the group and are given back before anybody is killed.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable
from contextlib import suppress
from threading import RLock
from typing import Final

from featurestore.allocators import release_freed
from featurestore.errors import EnforcementWarning, MemoryLimitError, UnsupportedError
from featurestore.limited_group import GroupFiles, LimitedGroup, make_group
from featurestore.limits import memory_limit
from featurestore.units import format_bytes

_lock: Final = RLock()
_LEAST_ROOM: Final = 8 * 2**20
"""With less than that to its limit, a process would be killed before it could say anything."""


class Cage:
    """The limits in force in one process, and the group that enforces the least of them.

    Parameters
    ----------
    files : GroupFiles
    """

    def __init__(self, files: GroupFiles) -> None:
        self._files = files
        self._group: LimitedGroup | None = None
        self._limits: dict[int, int] = {}
        self._admitted: set[int] = set()
        # What the processes inside held when they entered: it counts, but is charged elsewhere.
        self._outside = 0

    def enter(self, ticket: int, limit: int, workers: Iterable[int]) -> str:
        """Put a limit in force; return by which mechanism.

        Raises
        ------
        MemoryLimitError
            If the processes hold more already.
        UnsupportedError
            If the system offers nothing.
        """
        with _lock:
            processes = [self._files.own_process, *workers]
            release_freed()  # what it does not hold any more is not to count against it
            self._require_room(limit, processes)
            group = self._group or make_group(self._files)
            new = [one for one in processes if one not in self._admitted]
            outside = self._outside + sum(self._files.held(one) for one in new)
            try:
                group.limit(max(1, min([limit, *self._limits.values()]) - outside))
                group.admit(new)
            except OSError as error:
                self._give_up(group)
                raise UnsupportedError(
                    f"{group.path} does not take the limit: {error}", "run without enforcement"
                ) from error
            self._group, self._outside = group, outside
            self._admitted |= set(new)
            self._limits[ticket] = limit
            swap = "" if group.limits_swap else " (swap is not limited)"
            return f"cgroup v{group.version}: {group.path}{swap}"

    def leave(self, ticket: int) -> None:
        """Take a limit out of force; the last one lets the processes go."""
        with _lock:
            if self._limits.pop(ticket, None) is None or self._group is None:
                return
            group = self._group
            if self._limits:
                group.limit(max(1, min(self._limits.values()) - self._outside))
                return
            self._group, self._outside, self._admitted = None, 0, set()
            try:
                group.dissolve()
            except OSError as error:
                # Such as when the group that the process came from is gone.
                with suppress(OSError):
                    group.lift()
                warnings.warn(
                    f"{group.path} is left behind: {error}", EnforcementWarning, stacklevel=3
                )

    def _give_up(self, group: LimitedGroup) -> None:
        """Let a group be as it was before a limit that it did not take."""
        with suppress(OSError):  # what is reported is why it did not
            if self._group is None:
                group.dissolve()
            else:
                group.limit(max(1, min(self._limits.values()) - self._outside))

    def _require_room(self, limit: int, processes: Iterable[int]) -> None:
        held = sum(self._files.held(one) for one in {*processes, *self._admitted})
        if held + _LEAST_ROOM > limit:
            raise MemoryLimitError(
                f"{format_bytes(held)} are held already, the memory limit is {format_bytes(limit)}",
                f"raise memory_limit to at least {held + _LEAST_ROOM} for anything to be done, or "
                "free what the process holds",
            )


class Enforcement:
    """A limit that the kernel keeps until it is released; a context manager. See :func:`enforced`."""

    __slots__ = ("__weakref__", "_cage", "_limit", "_mechanism", "_release", "_workers")

    def __init__(self, cage: Cage, limit: int, workers: Iterable[int]) -> None:
        self._cage, self._limit, self._workers = cage, limit, tuple(workers)
        self._release: weakref.finalize[[int, Cage, int], Enforcement] | None = None
        ticket = id(self)
        try:
            self._mechanism = cage.enter(ticket, limit, self._workers)
        except UnsupportedError as error:
            self._mechanism = f"none: {error.problem}"
            warnings.warn(
                f"the memory limit of {format_bytes(limit)} is not enforced: {error}",
                EnforcementWarning,
                stacklevel=3,
            )
        else:
            self._release = weakref.finalize(self, _leave, os.getpid(), cage, ticket)

    @property
    def limit(self) -> int:
        """Bytes that the processes may hold together."""
        return self._limit

    @property
    def mechanism(self) -> str:
        """What keeps the limit: ``"cgroup v1: /path"``, ``"cgroup v2: /path"`` or ``"none: why"``."""
        if self._release is not None and not self._release.alive:
            return "none: released"
        return self._mechanism

    @property
    def active(self) -> bool:
        """Whether the kernel keeps the limit now."""
        return self._release is not None and self._release.alive

    def lowered_to(self, limit: int) -> Enforcement:
        """Return one for a smaller limit, to hold beside this one; this one where none is kept.

        Raises
        ------
        MemoryLimitError
            If this one is smaller.
        """
        if limit > self._limit and self.active:
            raise MemoryLimitError(
                f"a memory limit of {format_bytes(limit)} is more than the "
                f"{format_bytes(self._limit)} that {self.mechanism} allows",
                "open the store with a larger memory_limit",
            )
        lower = self.active and limit < self._limit
        return Enforcement(self._cage, limit, self._workers) if lower else self

    def release(self) -> None:
        """Take the limit out of force; the last one lets the process go back. Once is enough."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> Enforcement:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __str__(self) -> str:
        return self.mechanism

    def __repr__(self) -> str:
        return f"Enforcement({format_bytes(self._limit)}, {self.mechanism!r})"


def enforced(limit: int | str | None = None, workers: Iterable[int] = ()) -> Enforcement:
    """Let the kernel keep a memory limit for this process, until the block ends.

    A process that goes beyond it is killed (``SIGKILL``), as by a machine whose memory is full; the machine
    and other processes go on. Pages of files are given back first, swap is no way out.

    Parameters
    ----------
    limit : int or str, optional
        ``"2GiB"`` or bytes, this process and its children together; what it holds already counts. If
        not given, as :meth:`FeatureStore.open` finds one.
    workers : iterable of int
        Ids of other processes of this machine that the limit is to cover as well.

    Returns
    -------
    Enforcement
        A context manager, whose ``mechanism`` says what keeps the limit. Without a block it holds until
        ``release()``, or until it is forgotten.

    Warns
    -----
    EnforcementWarning
        If the system offers no way, or this process may not use it.

    Raises
    ------
    MemoryLimitError
        If the processes hold so much already that less than 8 MiB are left.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", EnforcementWarning)
    ...     with enforced("64GiB") as enforcement:
    ...         kept_by = enforcement.mechanism
    >>> kept_by.startswith(("cgroup", "none"))
    True
    """
    return Enforcement(_cage, memory_limit(limit), workers)


def _leave(owner: int, cage: Cage, ticket: int) -> None:
    # A forked child has inherited this, but the group is its parent's.
    if os.getpid() == owner:
        cage.leave(ticket)


_cage: Final = Cage(GroupFiles())
