"""A Dask cluster of processes on this machine that nobody else can reach, and a task to try it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def loopback_client(workers: int = 2, threads: int = 1) -> Iterator[Any]:
    """Yield a ``distributed.Client`` of worker processes, which end with the block.

    All of it, the dashboard too, is bound to the loopback address at ports that are free.
    """
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def busy(folder: Path, _: object = None) -> int:
    """Return how many of these run at this moment, on all workers that share the folder."""
    mine = folder / uuid.uuid4().hex
    mine.touch()
    time.sleep(0.05)
    running = len(list(folder.iterdir()))
    mine.unlink()
    return running
