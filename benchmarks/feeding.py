"""What the benchmarks of loaders share: a labelled table in a store, batches, and going through them.

A case says how its batches are had; :func:`fed` goes through whole epochs of them, reads every value
and sums the batches up in words that do not depend on their order, so that each case can be held
against the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from measuring import OURS, measured

Array: TypeAlias = "np.ndarray[Any, Any]"
Arrays: TypeAlias = "tuple[Array, Array]"
Epoch: TypeAlias = "Callable[[], Iterable[Arrays]]"

TRAINING = (*OURS, "featurestore.dataset.dataset", "training.loading.loader")


def ingest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Make the store of ``source``; measured, but no part of a comparison."""
    import featurestore as fs

    def work() -> None:
        store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
        store.ingest("data", arguments["source"], key="entity", time="time")

    return measured(work, OURS)


def names(arguments: dict[str, Any]) -> list[str]:
    """Return the columns a model is fed with: ``columns`` scalars, or the one tensor."""
    return ["e"] if arguments.get("tensor") else [f"x{i}" for i in range(arguments["columns"])]


def open_dataset(arguments: dict[str, Any], split: Any = None) -> Any:
    import featurestore as fs

    store = fs.FeatureStore.open(arguments["store"], memory_limit=arguments["memory_limit"])
    return store.table("data").dataset(names(arguments), label="y", split=split)


def fed(
    arguments: dict[str, Any],
    prepare: Callable[[], Epoch],
    imports: Sequence[str],
    touch: Callable[[Any, Any], int] | None = None,
) -> dict[str, Any]:
    """Return what feeding takes: memory in a first epoch, the seconds of the median of those after it.

    Who needs more than ``seconds`` for an epoch is stopped there, and its first epoch counts.

    Parameters
    ----------
    arguments : dict
        ``epochs`` after the first; ``seconds``.
    prepare : function
        Opens what there is to open, and returns what begins an epoch; not timed.
    imports : sequence of str
        Modules whose memory is none of the loader's.
    touch : function, optional
        Reads both parts of a batch, and returns what :func:`words` would.
    """
    found: list[dict[str, Any]] = []
    limit, reading = arguments["seconds"], touch or words

    def first() -> None:
        epoch = prepare()
        found.append({"epoch": epoch, **passed(epoch(), limit, reading)})

    memory = measured(first, imports)
    epoch = found[0].pop("epoch")
    if found[0]["complete"]:
        found += [passed(epoch(), limit, reading) for _ in range(arguments["epochs"])]
    later = found[1:] or found
    middle = statistics.median_low([one["seconds"] for one in later])
    chosen = next(one for one in later if one["seconds"] == middle)
    return {**memory, **chosen, "passes": [one["seconds"] for one in found]}


def passed(
    batches: Iterable[Any], limit: float, reading: Callable[[Any, Any], int]
) -> dict[str, Any]:
    """Go through batches, at most for so many seconds, and read them all."""
    rows = check = 0
    start, computed = time.perf_counter(), time.process_time()
    complete = True
    for inputs, label in batches:
        rows += len(label)
        check ^= reading(inputs, label)
        if time.perf_counter() - start > limit:
            complete = False
            break
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds, "cpu_seconds": time.process_time() - computed, "rows": rows,
        "check": f"{check:016x}", "complete": complete,
    }  # fmt: skip


def words(inputs: Array, label: Array) -> int:
    """Return the exclusive or of all pairs of values in their rows, and of the labels.

    It reads every byte, and no order of rows changes it.
    """
    pairs = np.bitwise_xor.reduce(inputs.reshape(-1).view(np.uint64))
    return int(pairs) ^ int(np.bitwise_xor.reduce(label.view(np.uint32)))


def column_words(columns: Sequence[Array], label: Array) -> int:
    """Return :func:`words` of a table given by its columns."""
    check = int(np.bitwise_xor.reduce(label.view(np.uint32)))
    for number, one in enumerate(columns):
        even = len(one) // 2 * 2
        word = int(np.bitwise_xor.reduce(one[:even].view(np.uint64)))
        last = int(np.bitwise_xor.reduce(one[even:].view(np.uint32)))
        check ^= (word ^ (word >> 32) ^ last) % 2**32 << 32 * (number % 2)
    return check


def side_by_side(columns: Sequence[Array]) -> Array:
    """Return columns as row-major batches, in blocks whose rows fit a processor's cache."""
    out = np.empty((len(columns[0]), len(columns)), dtype=np.float32)
    for start in range(0, len(out), 4096):
        for number, one in enumerate(columns):
            out[start : start + 4096, number] = one[start : start + 4096]
    return out
