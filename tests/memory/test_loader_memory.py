"""What loaders and datasets take, measured beside what they say, each in a process of its own.

Measured is the kernel's high-water mark above what the process held, after the same work on a few
rows (modules, thread pools and pages of libraries are loaded then). During epochs all pages of the pack
are mapped and resident before the mark is reset, so that what is added is not pages of the pack.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20
SIZES = {"narrow": 900_000, "wide": 20_000, "tensor": 40_000, "strings": 300_000}

READING = """
import json, sys
from pathlib import Path
import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.execution.events import StepStarted, observed_by
from featurestore.watermark import watermark
from training import Loader

folder, kind, cache, what = sys.argv[1:]
store = fs.FeatureStore.open(folder, memory_limit="4GiB", workers=1)
STEPS = {
    "narrow": [fs.Impute(fs.numeric()), fs.Standardize(fs.numeric())],
    "wide": [fs.Standardize(fs.numeric())],
    "tensor": [],
    "strings": [fs.Categorify(fs.strings())],
}

def dataset(name):
    table = store.table(name)
    features = [one for one in table.schema.names if one not in ("t", "k", "y")]
    return table.dataset(
        features, "y", split=fs.HashSplit(valid=0.1, by=["k"]), pipeline=fs.Pipeline(*STEPS[kind])
    )

def measured(work):
    release_freed()
    with watermark() as mark:
        work()
    return mark.added_bytes, mark.start_bytes

dtype = "float16" if what == "half" else "float32"
warm = dataset("warm_" + kind)
Loader(warm.train, 64, what == "mixed", cache=cache, dtype=dtype).pack
data = dataset(kind)
data.train.rows
if what == "fit":
    steps = []
    with observed_by(lambda event: steps.append(event) if isinstance(event, StepStarted) else None):
        measured, start = measured(lambda: data.schema)
    found = [max(one.projected_bytes for one in steps) - start if steps else 0, measured]
else:
    loader = Loader(data.train, 4096, what == "mixed", cache=cache, dtype=dtype)
    said = loader.writing_memory()
    found = [said.added, measured(lambda: loader.pack)[0]]
print(json.dumps(found))
"""


def table(kind: str, rows: int) -> pa.Table:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "t": pa.array(np.arange(rows)).cast(pa.timestamp("us")),
        "k": np.arange(rows),
        "y": random.random(rows) < 0.5,
    }
    if kind == "narrow":
        for one in range(4):
            columns[f"x{one}"] = pa.array(random.random(rows), mask=random.random(rows) < 0.05)
    if kind == "wide":
        columns |= {f"x{one}": random.random(rows).astype("f4") for one in range(500)}
    if kind == "tensor":
        values = pa.array(random.random(rows * 384).astype("f4"))
        columns["v"] = pa.FixedSizeListArray.from_arrays(values, 384)
    if kind == "strings":
        numbers = random.integers(0, 10**6, rows)
        columns["s"] = [f"the value of {number:08d}" for number in numbers]
    return pa.table(columns)


def fresh(script: str, *arguments: object) -> Any:
    """Return what a script prints as JSON, run in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def holds(name: str, said: int, measured: int) -> None:
    """Check a projection: never less than what was measured, never more than twice as much."""
    text = f"{name}: projected {said / MIB:.1f} MiB, measured {measured / MIB:.1f} MiB"
    print(text)
    assert measured <= said, text
    assert said <= 2 * measured, text


@pytest.mark.parametrize("kind", sorted(SIZES))
def test_learning_and_packing_take_what_is_said(tmp_path: Path, kind: str) -> None:
    store = fs.FeatureStore.create(tmp_path / "golden")
    for name, rows in ((kind, SIZES[kind]), (f"warm_{kind}", 1000)):
        store.ingest(name, table(kind, rows), key="k", time="t", partition_bytes="48MiB")
    said, measured = fresh(READING, tmp_path / "golden", kind, tmp_path / "packs", "fit")
    if said:
        holds("learning", said, measured)
    # A process of its own: what learning freed would hide what packing takes.
    found = fresh(READING, tmp_path / "golden", kind, tmp_path / "packs", "pack")
    holds("packing", *found)
    found = fresh(READING, tmp_path / "golden", kind, tmp_path / "packs", "mixed")
    holds("packing mixed", *found)
    if kind in ("narrow", "tensor"):
        found = fresh(READING, tmp_path / "golden", kind, tmp_path / "packs", "half")
        holds("packing as float16", *found)


EPOCHS = """
import json, sys, time
from featurestore.allocators import release_freed
from featurestore.testing.datasets import numbered_part
from featurestore.watermark import watermark
from training import Loader

cache, shuffle = sys.argv[1], json.loads(sys.argv[2])
rows, batch, window, ahead = map(int, sys.argv[3:])
pause = 0.2 * (ahead > 0)  # a model that takes its time: all that may wait does
for _ in Loader(numbered_part(2000, numeric=16), 64, shuffle, cache=cache):
    pass
part = numbered_part(rows, numeric=16)
loader = Loader(part, batch, shuffle, cache=cache, window_blocks=window, prefetch=ahead)
for source in loader.pack._arrays.values():  # all pages of the pack mapped and resident
    source.reshape(-1).view("u1")[::4096].sum()
said = loader.memory().activities[-1]
release_freed()
with watermark() as mark:
    for epoch in range(2):
        total = sum(one.rows for one in loader if not time.sleep(pause))
assert total == rows
print(json.dumps([said.added, mark.added_bytes]))
"""
HOOKED = """
import json, sys
from featurestore.allocators import release_freed
from featurestore.testing.datasets import numbered_part
from featurestore.watermark import watermark
from training import Loader

cache, hook, rows, batch = *sys.argv[1:3], *map(int, sys.argv[3:])
for _ in getattr(Loader(numbered_part(2000, numeric=16), 64, True, cache=cache), hook)():
    pass
loader = Loader(numbered_part(rows, numeric=16), batch, True, cache=cache)
for source in loader.pack._arrays.values():  # all pages of the pack mapped and resident
    source.reshape(-1).view("u1")[::4096].sum()
batches = getattr(loader, hook)()
said = batches.memory() if hook == "torch" else batches.memory
release_freed()
with watermark() as mark:
    for epoch in range(2):
        total = sum(len(label) for _, label in batches)
assert total == rows
print(json.dumps([said.added, mark.added_bytes]))
"""
MODES = {"plain": False, "windows": True, "global": "global"}


@pytest.mark.parametrize("mode", sorted(MODES))
def test_an_epoch_takes_what_is_said(tmp_path: Path, mode: str) -> None:
    said, measured = fresh(EPOCHS, tmp_path, json.dumps(MODES[mode]), 900_000, 300_000, 30, 0)
    holds(mode, said, measured)


def test_batches_made_ahead_take_what_is_said(tmp_path: Path) -> None:
    said, measured = fresh(EPOCHS, tmp_path, "true", 1_200_000, 150_000, 30, 3)
    holds("3 ahead", said, measured)


@pytest.mark.parametrize("hook", ["torch", "jax"])
def test_an_epoch_through_a_hook_takes_what_is_said(tmp_path: Path, hook: str) -> None:
    if find_spec(hook) is None:
        pytest.skip(f"{hook} is not installed")
    holds(hook, *fresh(HOOKED, tmp_path, hook, 900_000, 300_000))


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(MODES))
def test_an_epoch_of_ten_times_the_rows_takes_the_same(tmp_path: Path, mode: str) -> None:
    args = tmp_path, json.dumps(MODES[mode])
    _, one = fresh(EPOCHS, *args, 150_000, 50_000, 4, 0)
    _, ten = fresh(EPOCHS, *args, 1_500_000, 50_000, 4, 0)
    # Of what an epoch adds, not of the process: the far stricter comparison, so what the heap keeps
    # of a few arrays more or less is allowed for.
    assert ten <= 1.05 * one + 4 * MIB


UNPACKED = """
import json, sys
import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.watermark import watermark
from training import Loader
from training.loading import arrangement

folder, shuffle, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
arrangement.STRIPE_BYTES = 2**24
store = fs.FeatureStore.open(folder, memory_limit="4GiB", workers=1)

def loader(name):
    table = store.table(name)
    features = [one for one in table.schema.names if one not in ("t", "k", "y")]
    split = fs.HashSplit(valid=0.1, by=["k"])
    data = table.dataset(features, "y", split=split, pipeline=fs.Pipeline(fs.Impute(fs.numeric())))
    return Loader(data.train, 4096, shuffle, **options)

def epochs(one):
    for _ in range(2):
        assert sum(batch.rows for batch in one) == one.rows

epochs(loader("warm"))
one = loader("rows")
said = one.memory()
release_freed()
with watermark() as mark:
    epochs(one)
print(json.dumps([max(each.added for each in said.activities), mark.added_bytes]))
"""


@pytest.mark.parametrize(
    ("kind", "rows", "partitions", "shuffle"),
    [
        ("tensor", 100_000, 40, True),  # five stripes
        pytest.param("tensor", 60_000, 4, False, marks=pytest.mark.slow),
        pytest.param("narrow", 4_000_000, 24, True, marks=pytest.mark.slow),  # three
    ],
)
@pytest.mark.parametrize("options", [{"pack": False}, {"hold": "memory"}])
def test_an_epoch_without_a_pack_takes_what_is_said(
    tmp_path: Path, kind: str, rows: int, partitions: int, shuffle: bool, options: dict[str, Any]
) -> None:
    store = fs.FeatureStore.create(tmp_path / "golden")
    values = table(kind, rows)
    size = values.nbytes // partitions
    store.ingest("rows", values, key="k", time="t", partition_bytes=size)
    store.ingest("warm", values[:1000], key="k", time="t", partition_bytes=size)
    args = json.dumps(shuffle), json.dumps(options)
    holds(f"{kind} {options}", *fresh(UNPACKED, tmp_path / "golden", *args))


DRAINED = """
import json, sys
from featurestore.allocators import release_freed
from featurestore.testing.datasets import numbered_part
from featurestore.watermark import watermark
from training import Loader
from training.hooks.xgboost import XGBoostPages, dmatrix

def drained(loader, page_bytes):
    pages = XGBoostPages(loader, page_bytes)
    rows = 0
    def take(*, data, **_):
        nonlocal rows
        rows += len(data)
    while pages.next(take):
        pass
    assert rows == loader.rows
    return pages.memory

"""
PAGES = (
    DRAINED
    + """
cache, rows = sys.argv[1], int(sys.argv[2])
warm = Loader(numbered_part(2000, numeric=16), 64, cache=cache)
drained(warm, "64kB"); dmatrix(warm, page_bytes="64kB", nthread=1)
loader = Loader(numbered_part(rows, numeric=16, tensor=(8,)), 4096, cache=cache)
for source in loader.pack._arrays.values():
    source.reshape(-1).view("u1")[::4096].sum()
release_freed()
with watermark() as ours:
    said = drained(loader, "16MiB")
release_freed()
with watermark() as both:
    matrix = dmatrix(loader, page_bytes="16MiB", nthread=1)
print(json.dumps([said.added, ours.added_bytes, both.added_bytes]))
"""
)
TIMES = (
    DRAINED
    + """
cache, rows = sys.argv[1], int(sys.argv[2])
drained(Loader(numbered_part(2000, numeric=4), 64, cache=cache), "64kB")
loader = Loader(numbered_part(rows, numeric=4), 4096, cache=cache)
for source in loader.pack._arrays.values():
    source.reshape(-1).view("u1")[::4096].sum()
release_freed()
with watermark() as mark:
    drained(loader, "2MiB")
print(json.dumps([mark.added_bytes]))
"""
)


def test_feeding_xgboost_takes_what_is_said(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    said, ours, both = fresh(PAGES, tmp_path, 400_000)
    holds("pages", said, ours)
    # XGBoost's own part is measured, not projected: its sketches and quantised pages.
    print(f"XGBoost itself: {(both - ours) / MIB:.1f} MiB beside {ours / MIB:.1f} MiB of pages")


def test_feeding_xgboost_ten_times_the_rows_takes_the_same(tmp_path: Path) -> None:
    """Of what our feeding adds; what XGBoost makes of the pages is its own."""
    pytest.importorskip("xgboost")
    (one,) = fresh(TIMES, tmp_path, 250_000)
    (ten,) = fresh(TIMES, tmp_path, 2_500_000)
    print(f"pages: {one / MIB:.1f} and {ten / MIB:.1f} MiB")
    # Of what feeding adds, a few MiB: what the heap keeps is allowed for, as for epochs. All rows are
    # 50 MB, so holding even a tenth of them would be seen.
    assert ten <= 1.05 * one + 4 * MIB
