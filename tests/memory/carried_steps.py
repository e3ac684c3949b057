"""A lag and an as-of join over more keys than fit memory, in a process of its own, under a memory limit.

    python carried_steps.py WORK FOLDER ROOM WAY

``FOLDER`` holds the store ``golden`` and the scratch directory ``scratch``. ``WORK`` is ``lag``, ``count`` or ``asof``;
``ROOM`` is what the limit leaves beside what the process holds; ``WAY`` is ``any``, ``memory`` (combining by
ranges is not offered) or ``wait`` (it waits to be killed as soon as it is combining by ranges). The last line
written is a JSON object: the peak, the scratch space, and why it was refused.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.errors import FeatureStoreError
from featurestore.execution import chaining
from featurestore.execution.sites import reserved_bytes
from featurestore.storage.scratch import Scratch
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.lag import Lag
from featurestore.transforms.running import Running
from featurestore.watermark import watermark

FEATURES: Final[dict[str, Callable[[], fs.Transformer]]] = {
    "lag": lambda: Lag("x", by="key"),
    "count": lambda: fs.CumCount(by="key"),
    "asof": lambda: AsOfJoin("other", "price", by="key"),
}


def wait_to_be_killed(*_: Any) -> Any:
    print("combining", flush=True)
    time.sleep(600)
    raise AssertionError("nobody killed it")


def main(work: str, folder: Path, room: int, way: str) -> dict[str, Any]:
    fs.FeatureStore.open(folder / "few", workers=1).table("rows").add(FEATURES[work]())
    if way == "memory":
        for kind in (Lag, Running, AsOfJoin):
            kind.is_keyed = property(lambda self: False)  # type: ignore[assignment, method-assign]
    if way == "wait":
        chaining.combined_ranges = wait_to_be_killed  # type: ignore[assignment, attr-defined]
    release_freed()
    limit = reserved_bytes("polars") + room
    scratch = folder / "scratch"
    store = fs.FeatureStore.open(folder / "golden", memory_limit=limit, workers=1, scratch=scratch)
    refused, most = "", [0]
    take = Scratch.take

    def counted(self: Scratch, size: int) -> None:
        take(self, size)
        most[0] = max(most[0], self.most)

    Scratch.take = counted  # type: ignore[method-assign]
    with watermark() as mark:
        try:
            store.table("rows").add(FEATURES[work]())
        except FeatureStoreError as error:
            refused = f"{type(error).__name__}: {error}"
    added = mark.peak_bytes - mark.start_bytes
    return {"added": added, "scratch": most[0], "refused": refused}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
