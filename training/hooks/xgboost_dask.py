"""XGBoost over the workers of a Dask cluster: each trains from its share of a pack, in external memory.

Shares are runs of rows in table order, equal to the row (a ranking's queries stay whole). A worker maps the
pack by its path and hands pages of its share to an ``ExtMemQuantileDMatrix``, as ``training.hooks.xgboost``
does in one process. Through the scheduler go paths, row numbers and the model, never rows. Workers agree on
cuts and trees through XGBoost's own collective, as ``xgboost.dask`` does; its ``DaskDMatrix`` is not
used because it holds every row in the workers' memory and has no weights in rankings.

Always true: a worker without its share's rows in sight, or without memory for a page, is said before
training begins. Trade-off: all workers train at once, so one that dies ends the training.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from featurestore.errors import FeatureStoreError, InvalidInputError, NotFoundError
from featurestore.limits import resident_bytes
from training.hooks.xgboost import PackPages, PagePlan, rows_of, xgboost
from training.loading.pack import Pack
from training.loading.queries import Queries, queries_of

if TYPE_CHECKING:
    from training.loading.loader import Loader

_LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Trained:
    """What training over a cluster gives.

    Parameters
    ----------
    booster : xgboost.Booster
    history : mapping
        ``{matrix: {metric: [value of each round]}}``.
    """

    booster: Any
    history: Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Share:
    """The rows of a pack that one worker learns from or judges on.

    Parameters
    ----------
    pack : Pack
        Pickles as its path.
    rows : (int, int)
        The first, and the one after the last.
    page_rows : int
    name : str
        What XGBoost calls them in the history.
    """

    pack: Pack
    rows: tuple[int, int]
    page_rows: int
    name: str

    def pages(self) -> PackPages:
        """Return the pages that XGBoost is handed."""
        start, stop = self.rows
        ids, group = self.pack.view(0, self.pack.rows).group, self.pack.schema.group
        queries = None
        if ids is not None and group is not None:
            found = queries_of(ids[start:stop], stop - start, group.name)
            queries = Queries(found.starts + start)
        return PackPages(self.pack, self.pack.path.parent, self.page_rows, self.rows, queries)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a worker says of itself."""

    process: tuple[str, int]
    held: int
    limit: int | None
    missing: tuple[str, ...]


def train(
    client: Any,
    params: Mapping[str, Any],
    loader: Loader,
    rounds: int = 10,
    *,
    evals: Sequence[tuple[Loader, str]] = (),
    max_bin: int = 256,
    early_stopping_rounds: int | None = None,
    page_bytes: int | str | None = None,
) -> Trained:
    """Train a model over all workers of a cluster.

    Parameters
    ----------
    client : distributed.Client
        Of a cluster whose workers see the packs under the same path (``cache=`` on storage they share)
        and can be reached from each other. Each worker is given one task, with all its threads.
    params : mapping
        XGBoost's own.
    loader : Loader
        Whose rows are learnt from, in table order.
    rounds : int
    evals : sequence of (Loader, str)
        What is judged after each round, with its name; ``loader`` itself may be among them.
    max_bin : int
    early_stopping_rounds : int, optional
        As of ``xgboost.train``: by the last of ``evals``.
    page_bytes : int or str, optional
        Size of a page: 128 MiB, or half of what the smallest worker's memory limit leaves if that is less.

    Returns
    -------
    Trained
        The same trees as in one process where the cuts are the same, up to the rounding of sums, as each
        worker adds up its rows first. Cuts are the same for columns of at most ``max_bin`` values; else
        they are quantiles within XGBoost's accuracy, merged from the shares, as they are of pages.

    Raises
    ------
    InvalidInputError
        If the cluster has no worker, a part has no rows, or XGBoost refuses the parameters or the data.
    NotFoundError
        If a worker does not see a pack.
    MemoryLimitError
        If a page does not fit beside what a worker holds.
    """
    given = [(loader, "train"), *evals]
    packs = [_pack_of(one) for one, _ in given]
    seen = _look(client, [str(one.path) for one in packs])
    limit, reserved = _smallest_room(seen, loader.memory_limit)
    plans = [PagePlan.of(one, page_bytes, limit, reserved) for one, _ in given]
    bounds = _shares(plans, len(seen))
    addresses = sorted(seen)[: len(bounds[0]) - 1]
    params = {**params, "max_bin": max_bin}
    tasks = [
        tuple(
            Share(pack, (ends[i], ends[i + 1]), plan.page_rows, name)
            for pack, plan, ends, (_, name) in zip(packs, plans, bounds, given, strict=True)
        )
        for i in range(len(addresses))
    ]
    return _run(client, addresses, tasks, params, rounds, early_stopping_rounds)


def _pack_of(loader: Loader) -> Pack:
    rows = rows_of(loader)
    if not isinstance(rows, Pack):
        raise InvalidInputError(
            "the workers of a cluster read the pack, and these rows are held in this process",
            "leave hold= out",
        )
    return rows


def _run(
    client: Any,
    addresses: Sequence[str],
    tasks: Sequence[tuple[Share, ...]],
    params: Mapping[str, Any],
    rounds: int,
    early_stopping_rounds: int | None,
) -> Trained:
    from distributed import MultiLock, wait

    scheduler = client.scheduler.address
    host = _LOOPBACK if scheduler.startswith("inproc") else urlsplit(scheduler).hostname
    # Two trainings that wait for each other's workers would wait for ever.
    with MultiLock(list(addresses), client=client):
        arguments = client.run_on_scheduler(_start_tracker, len(addresses), host)
        futures = [
            client.submit(
                _train_share, address, task, dict(params), rounds, early_stopping_rounds,
                {**arguments, "dmlc_task_id": f"{number:06}"},
                # Where the worker is gone, another says so; it would be waited for otherwise.
                workers=[address], allow_other_workers=True, pure=False, retries=0,
            )
            for number, (address, task) in enumerate(zip(addresses, tasks, strict=True))
        ]  # fmt: skip
        try:
            wait(futures)  # of all: where one fails, the others do for want of it
            _raise_cause([one.exception() for one in futures])
            raw, history = futures[0].result()
        finally:
            client.cancel(futures)
    booster = xgboost.Booster()
    booster.load_model(bytearray(raw))
    return Trained(booster, history)


def _raise_cause(errors: Sequence[BaseException | None]) -> None:
    """Raise what ended training, if anything did: not what workers say whose partner was lost."""
    found = [one for one in errors if one is not None]
    for one in found:
        if not isinstance(one, xgboost.core.XGBoostError):
            raise one
    if found:
        # A collective names the peer that is gone; what was refused names no socket.
        refused = [one for one in found if "rabit" not in str(one) and "socket" not in str(one)]
        cause = (refused or found)[0]
        raise InvalidInputError(
            f"XGBoost refused: {str(cause).splitlines()[0]}",
            "check the parameters and the label",
        ) from cause


def _train_share(
    address: str,
    shares: tuple[Share, ...],
    params: dict[str, Any],
    rounds: int,
    early_stopping_rounds: int | None,
    arguments: dict[str, Any],
) -> tuple[bytes, Mapping[str, Any]]:
    """Train with the other workers; return the model and its history. Runs on a worker."""
    from distributed import get_worker

    worker = get_worker()
    if worker.address != address:
        raise FeatureStoreError(
            f"worker {address} is gone, and training with it",
            "train again with the workers that are left",
        )
    threads = params.pop("nthread", None) or worker.state.nthreads
    history: dict[str, Any] = {}
    with xgboost.collective.CommunicatorContext(**arguments):
        matrices: list[Any] = []
        for one in shares:
            matrices.append(
                xgboost.ExtMemQuantileDMatrix(
                    one.pages(),
                    ref=matrices[0] if matrices else None,
                    max_bin=params["max_bin"],
                    enable_categorical=True,
                    nthread=threads,
                )
            )
        booster = xgboost.train(
            {**params, "nthread": threads},
            matrices[0],
            rounds,
            evals=[(one, share.name) for one, share in zip(matrices, shares, strict=True)][1:],
            evals_result=history,
            early_stopping_rounds=early_stopping_rounds,
            verbose_eval=False,
        )
        return bytes(booster.save_raw("ubj")), history


# --- the cluster -------------------------------------------------------------------------------------


def _look(client: Any, paths: Sequence[str]) -> dict[str, _Seen]:
    """Return what each worker says of itself, refusing a cluster that cannot train."""
    found: dict[str, _Seen] = client.run(_describe, list(paths))
    if not found:
        raise InvalidInputError("the cluster has no worker to train on", "start some first")
    for address, one in found.items():
        if one.missing:
            raise NotFoundError(
                f"worker {address} does not see the pack {one.missing[0]}",
                "give the loader a cache= on storage that all workers see under the same path",
            )
    return found


def _describe(paths: list[str], dask_worker: Any) -> _Seen:
    """Say what this worker is and holds. Runs on workers."""
    return _Seen(
        (os.uname().nodename, os.getpid()),
        resident_bytes(),
        dask_worker.memory_manager.memory_limit or None,
        tuple(one for one in paths if not Path(one).is_dir()),
    )


def _smallest_room(seen: Mapping[str, _Seen], limit: int) -> tuple[int, int]:
    """Return the memory limit and what is held of the worker that has least room.

    Several workers may live in one process: each holds its part of what that holds.
    """
    together = Counter(one.process for one in seen.values())
    workers = [
        (one.limit or limit // together[one.process], one.held // together[one.process])
        for one in seen.values()
    ]
    return min(workers, key=lambda one: one[0] - one[1])


def _shares(plans: Sequence[PagePlan], workers: int) -> list[list[int]]:
    """Return where the shares of each matrix end, beginning with 0: as many of each, none empty."""
    for count in range(workers, 0, -1):
        found = [_ends(plan, count) for plan in plans]
        if all(start < stop for ends in found for start, stop in pairwise(ends)):
            return found
    raise InvalidInputError("a dataset part without rows cannot train a model")


def _ends(plan: PagePlan, count: int) -> list[int]:
    ends = [plan.pack.rows * number // count for number in range(count + 1)]
    return ends if plan.queries is None else [plan.queries.end(one) for one in ends]


def _start_tracker(workers: int, host: str) -> dict[str, Any]:
    """Start what introduces workers to each other; return how they find it. Runs on the scheduler."""
    from xgboost.tracker import RabitTracker

    tracker = RabitTracker(n_workers=workers, host_ip=host, sortby="task")
    tracker.start()
    # It ends with the training; nobody waits for it here.
    threading.Thread(target=tracker.wait_for, name="xgboost tracker", daemon=True).start()
    return dict(tracker.worker_args())
