"""Where work runs and what is held there without work: this process, and a client's workers by host.

Reserved memory is measured, not assumed: the modules, thread pools and library pages that an engine
needs are loaded first, what was freed is given back, then resident memory is read. Workers of this
host count together with this process, as one limit is for all of them; other hosts have their own.

On top of it comes what a thread that works takes beside its task (``THREAD_BYTES``): for one thread it
is reserved, each further task in flight brings its own.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.execution.budget import DRIFT, SETTLING_SECONDS, THIS_HOST, budget_of
from featurestore.plan.costs import THREAD_BYTES

_least: Final[dict[int, int]] = {}
"""By process: the least that it was found to hold."""
_ROWS: Final = 5000
_MODULES: Final = ("dask.threaded", "featurestore.execution.tasks")


@dataclass(frozen=True, slots=True)
class Site:
    """A host that work runs on.

    Parameters
    ----------
    host : str
        ``THIS_HOST`` for this one.
    threads : int
        Tasks it runs at once; 0 where only this process is, and its client's workers are elsewhere.
    reserved_bytes : int
        What all processes there hold without work, and what a thread takes beside its task.
    workers : tuple of str
        Addresses of a client's workers; empty if this process runs the tasks itself.
    own_bytes : int
        The part of ``reserved_bytes`` that this process holds now.
    """

    host: str
    threads: int
    reserved_bytes: int
    workers: tuple[str, ...] = ()
    own_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Process:
    """What a process says of itself."""

    host: str
    pid: int
    reserved_bytes: int


def own_site(engine: str, threads: int) -> Site:
    """Return this process as the place where tasks run."""
    held = reserved_bytes(engine)
    return Site(THIS_HOST, threads, held + THREAD_BYTES, (), held)


def client_sites(client: Any, engine: str) -> tuple[Site, ...]:
    """Return this host first, then the others that a client has workers on.

    Parameters
    ----------
    client : distributed.Client
    engine : str
    """
    mine = _describe(engine)
    threads: Mapping[str, int] = client.nthreads()
    found: Mapping[str, _Process] = client.run(_describe, engine, workers=list(threads))
    by_host: dict[str, list[str]] = defaultdict(list)
    for address, process in found.items():
        by_host[process.host].append(address)
    hosts = [mine.host, *sorted(by_host.keys() - {mine.host})]
    return tuple(
        Site(
            THIS_HOST if host == mine.host else host,
            sum(threads[one] for one in by_host[host]),
            # Several workers may live in one process, this one too.
            THREAD_BYTES
            + _together([found[one] for one in by_host[host]] + [mine] * (host == mine.host)),
            tuple(by_host[host]),
            mine.reserved_bytes if host == mine.host else 0,
        )
        for host in hosts
    )


def _together(processes: Sequence[_Process]) -> int:
    return sum({one.pid: one.reserved_bytes for one in processes}.values())


def _describe(engine: str) -> _Process:
    """Say what this process is and holds. Runs on workers too."""
    return _Process(socket.gethostname(), os.getpid(), reserved_bytes(engine))


def worker_processes(client: Any) -> tuple[int, ...]:
    """Return the ids of a client's worker processes on this host, without this process."""
    *here, me = _whereabouts()
    found: Mapping[str, tuple[str, int, int]] = client.run(_whereabouts)
    return tuple(sorted({pid for *place, pid in found.values() if place == here} - {me}))


def _whereabouts() -> tuple[str, int, int]:
    """Say on which host and in which numbering of processes this process is which one."""
    namespace = Path("/proc/self/ns/pid")
    return socket.gethostname(), namespace.stat().st_ino if namespace.exists() else 0, os.getpid()


def reserved_bytes(engine: str) -> int:
    """Return what this process holds without work, once all that an engine needs is loaded."""
    process, budget = os.getpid(), budget_of()
    warm(engine, process)
    if not budget.in_flight:
        release_freed()
    held = budget.reserved
    _least[process] = min(held, _least.get(process, held))
    return held


def settled_bytes(engine: str, wanted: int) -> int:
    """Return what this process holds without work, once what was freed has gone back to the system.

    One allocator gives pages back only a second or two after they were freed, and cannot be asked. So this waits
    a little while more than ``wanted`` is held, unless it never was so little, or work is in flight.

    Parameters
    ----------
    engine : str
    wanted : int
        Bytes.
    """
    held, began = reserved_bytes(engine), monotonic()
    wanted = max(wanted, _least[os.getpid()] + DRIFT)
    while held > wanted and not budget_of().in_flight and monotonic() - began < SETTLING_SECONDS:
        sleep(0.1)
        held = reserved_bytes(engine)
    return held


@cache
def warm(engine: str, process: int) -> None:
    """Load what work with an engine needs, by doing a little of it; once per process.

    Parameters
    ----------
    engine : str
    process : int
        A fork begins anew: it has no threads.
    """
    import narwhals as nw
    import pyarrow.parquet as pq

    from featurestore.engines.selection import get_engine

    for name in _MODULES:
        importlib.import_module(name)
    numbers = np.arange(_ROWS, dtype=np.float64)
    texts = pa.array([str(one % 97) for one in range(_ROWS)])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": numbers, "k": texts}), sink, compression="zstd")
    table = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read(use_threads=False)
    working = get_engine(engine)
    frame = working.from_arrow(table)
    order = working.xp.argsort(working.codes(frame, ["k"]), kind="stable")
    taken = working.take(frame, order).with_columns(y=nw.col("x") * 2)
    working.values(taken["y"])
    working.to_arrow(taken)
