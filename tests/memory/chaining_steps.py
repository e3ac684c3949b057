"""Rows by key combined by ranges in a process of its own, and the memory that took beside what was held for it.

    python chaining_steps.py FOLDER ROOM

``FOLDER`` holds two stores of states made by ``test_combining_memory``; ``ROOM`` is what one step may take, less
than combining in memory does. The last line written is a JSON object of bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from featurestore.allocators import release_freed
from featurestore.execution.budget import budget_of
from featurestore.execution.chaining import Chain
from featurestore.execution.merging import CombineWork
from featurestore.storage.backends import open_object_store
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateStore
from featurestore.transforms.lag import Lag
from featurestore.watermark import watermark

LIMIT = 2**40


def extend(place: Path, room: int, scratch: Scratch) -> int:
    """Combine all states of a store, some at a time; return the most that was held."""
    states = StateStore(open_object_store(place))
    keys = sorted(one.stem for one in (place / "states").iterdir())
    work = CombineWork.of(Lag("any", by="key"), keys, states.sizes(keys), room)
    chain = Chain(work, states, LIMIT, room, scratch)
    steps = [len(keys) // 2, *range(len(keys) // 2 + 1, len(keys) + 1)]
    with budget_of().recorded() as record:
        for done, step in zip([0, *steps], steps, strict=False):
            with budget_of().admit(work.way.bytes, LIMIT):
                chain.extend(keys[done:step], f"ffffff{step:02x}", last=step == len(keys))
    chain.restart()
    return record.most_bytes


def main(folder: Path, room: int) -> dict[str, int]:
    scratch = Scratch(folder)
    extend(folder / "few", 1, scratch)
    release_freed()
    with watermark() as mark:
        held = extend(folder / "many", room, scratch)
    return {
        "took": mark.peak_bytes - mark.start_bytes,
        "held": held,
        "scratch": scratch.most,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
