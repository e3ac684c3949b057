"""States combined in a process of its own, and the memory that took beside what was held for it.

    python combining_steps.py FOLDER ROOM MOST

``FOLDER`` holds two stores of states made by ``test_combining_memory``; ``ROOM`` decides how they are
combined, ``MOST`` (0: all) how many values are kept. The last line written is a JSON object of bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from featurestore.allocators import release_freed
from featurestore.execution.budget import budget_of
from featurestore.execution.combining import learn
from featurestore.execution.merging import CombineWork
from featurestore.plan.combining import Combining
from featurestore.storage.backends import open_object_store
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateStore
from featurestore.transforms.categories import Categorify
from featurestore.watermark import watermark

LIMIT = 2**40


def combine(place: Path, room: int, most: int | None, scratch: Scratch) -> tuple[Combining, int]:
    """Combine all states of a store and keep the result; return the way, and the most that was held."""
    states = StateStore(open_object_store(place))
    keys = sorted(one.stem for one in (place / "states").iterdir())
    code = Categorify("any", max_size=most)
    work = CombineWork.of(code, keys, states.sizes(keys), room)
    with budget_of().admit(work.way.bytes, LIMIT), budget_of().recorded() as record:
        learn(work, "ffffffff", states, LIMIT, scratch)
    return work.way, record.most_bytes


def main(folder: Path, room: int, most: int | None) -> dict[str, int]:
    scratch = Scratch(folder)
    combine(folder / "few", 1, most, scratch)
    release_freed()
    with watermark() as mark:
        way, held = combine(folder / "many", room, most, scratch)
    return {
        "took": mark.peak_bytes - mark.start_bytes,
        "held": held,
        "scratch": scratch.most,
        "said": way.scratch_bytes,
        "fan_in": way.fan_in,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) or None)))
