"""A vocabulary learnt in a process of its own, under a memory limit.

    python vocabulary_steps.py WORK FOLDER ROOM WAY

``FOLDER`` holds the store ``golden`` and the scratch directory ``scratch``. ``WORK`` is ``table`` or
``pipeline``; ``ROOM`` is what the limit leaves beside what the process holds; ``WAY`` is ``any``, ``memory``
(combining by ranges is not offered) or ``wait`` (it waits to be killed as soon as it is combining). The
last line written is a JSON object: the peak, the scratch space, why it was refused, and what was learnt.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.errors import FeatureStoreError
from featurestore.execution.sites import reserved_bytes
from featurestore.storage.scratch import Scratch
from featurestore.transforms.base import State
from featurestore.transforms.categories import Categorify
from featurestore.watermark import watermark

MOST_WORDS: Final = 1000


def learn(work: str, table: fs.Table) -> list[str]:
    """Return the words that a pipeline learnt; of a table's feature they are in its values."""
    if work == "pipeline":
        code = fs.Categorify("word", max_size=MOST_WORDS)
        fitted = table.dataset(["word"], pipeline=fs.Pipeline(code)).pipeline
        assert fitted is not None
        assert fitted.states[0] is not None
        words: list[str] = fitted.states[0]["word"]["value"].to_pylist()
        return words
    table.add(fs.Categorify("word", max_size=MOST_WORDS, suffix="_code"), fit_on="all")
    return []


def wait_to_be_killed(self: Categorify, states: Any) -> State:
    print("combining", flush=True)
    time.sleep(600)
    raise AssertionError("nobody killed it")


def main(work: str, folder: Path, room: int, way: str) -> dict[str, Any]:
    learn(work, fs.FeatureStore.open(folder / "golden", workers=2).table("few"))
    if way == "memory":
        Categorify.state_order = lambda self: ()  # type: ignore[method-assign]
    if way == "wait":
        Categorify.combine_all = wait_to_be_killed  # type: ignore[method-assign]
    release_freed()
    limit = reserved_bytes("polars") + room
    scratch = folder / "scratch"
    store = fs.FeatureStore.open(folder / "golden", memory_limit=limit, workers=2, scratch=scratch)
    refused, words, most = "", list[str](), [0]
    take = Scratch.take

    def counted(self: Scratch, size: int) -> None:
        take(self, size)
        most[0] = max(most[0], self.most)

    Scratch.take = counted  # type: ignore[method-assign]
    with watermark() as mark:
        try:
            words = learn(work, store.table("rows"))
        except FeatureStoreError as error:
            refused = f"{type(error).__name__}: {error}"
    added = mark.peak_bytes - mark.start_bytes
    return {"added": added, "scratch": most[0], "refused": refused, "words": words}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
