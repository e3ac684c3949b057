"""What lists of any length take in packs and batches, measured beside what is said, in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20

LISTS = """
import json, sys
import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.watermark import watermark
from training import Loader

folder, cache, form, shuffle = *sys.argv[1:4], json.loads(sys.argv[4])
store = fs.FeatureStore.open(folder, memory_limit="4GiB", workers=1)

def loader(name, rows):
    split = fs.HashSplit(valid=0.1, by=["k"])
    data = store.table(name).dataset(["tags", "rates"], "y", split=split)
    return Loader(data.train, rows, shuffle, cache=cache, ragged=form)

def measured(work):
    release_freed()
    with watermark() as mark:
        work()
    return mark.added_bytes

def epochs(one):
    for _ in range(2):
        assert sum(batch.rows for batch in one) == one.rows

warm = loader("warm", 64)
warm.pack
epochs(warm)
one = loader("rows", 20_000)
packing = one.writing_memory().added
packed = measured(lambda: one.pack)
kept = getattr(one.pack, "pack", one.pack)
for source in kept._arrays.values():  # all pages of the pack mapped and resident
    source.reshape(-1).view("u1")[::4096].sum()
for name, items in kept._lists.items():
    items._of(kept._manifest["items"][name]).view("u1")[::4096].sum()
said = one.memory().activities[-1].added
print(json.dumps([packing, packed, said, measured(lambda: epochs(one))]))
"""


def table(rows: int) -> pa.Table:
    random = np.random.default_rng(0)

    def lists(items: Any) -> pa.ListArray:
        lengths = random.integers(20, 40, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("i4")
        return pa.ListArray.from_arrays(offsets, items(int(offsets[-1])))

    return pa.table(
        {
            "t": np.arange(rows),
            "k": np.arange(rows),
            "y": random.random(rows) < 0.5,
            "tags": lists(lambda count: pa.array(random.integers(0, 1000, count))),
            "rates": lists(lambda count: pa.array(random.random(count), mask=None)),
        }
    )


@pytest.mark.parametrize(
    ("form", "shuffle"),
    [("offsets", True), pytest.param("padded", False, marks=pytest.mark.slow)],
)
def test_lists_take_what_is_said(form: str, shuffle: bool, tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "golden")
    for name, rows in (("rows", 200_000), ("warm", 1000)):
        store.ingest(name, table(rows), key="k", time="t", partition_bytes="24MiB")
    done = subprocess.run(
        [sys.executable, "-c", LISTS, tmp_path / "golden", tmp_path / "packs", form,
         json.dumps(shuffle)],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    packing, packed, said, measured = json.loads(done.stdout.splitlines()[-1])
    for what, projected, seen in (("packing", packing, packed), ("an epoch", said, measured)):
        text = f"{what}: projected {projected / MIB:.1f} MiB, measured {seen / MIB:.1f} MiB"
        print(text)
        assert seen <= projected, text
        # Every list of a batch is counted as the longest there may be, and that by the widest row of all
        # columns that were written together: here of two.
        assert projected <= 4 * seen, text
