"""Epochs leave nothing behind: what a process holds after many is what it held after the third.

Held is anonymous memory (``RssAnon``) after what was freed is given back: pages of mapped packs are the
kernel's to take back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 2**20

HELD = """
import json, os, sys, threading
from featurestore.testing.datasets import numbered_part
from featurestore.testing.held_memory import kept_bytes
from training import Loader

def things():
    maps = sum("/packs/" in line for line in open("/proc/self/maps"))
    return [len(os.listdir("/proc/self/fd")), threading.active_count(), maps]
"""

LOADER = (
    HELD
    + """
part = numbered_part(60_000, numeric=8, tensor=(4,))
found = []
for epoch in range(int(sys.argv[2])):
    # Three loaders as a run makes them, one of them abandoned half-way.
    train = Loader(part, 512, True, seed=epoch, cache=sys.argv[1])
    rows = sum(batch.rows for batch in train)
    for batch in train:
        break
    rows += sum(batch.rows for batch in Loader(part, 512, "global", cache=sys.argv[1]))
    assert rows == 2 * part.rows
    del train, batch
    found.append([kept_bytes(), *things()])
print(json.dumps(found))
"""
)

KERAS = (
    HELD
    + """
import keras
from training.models import tabular
part = numbered_part(20_000, numeric=8)
loader = Loader(part, 512, True, cache=sys.argv[1])
model = tabular(part.schema, "binary", hidden=[8])
model.compile("sgd", "binary_crossentropy")
found = []
for epoch in range(int(sys.argv[2])):
    model.fit(loader.keras(), validation_data=loader.keras(), verbose=0)
    found.append([kept_bytes(), *things()])
print(json.dumps(found))
"""
)


def held_after(script: str, folder: Path, epochs: int) -> list[list[int]]:
    """Return, after each epoch, anonymous bytes, open files, threads and mapped packs."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "packs"), str(epochs)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_hundred_epochs_leave_nothing_behind(tmp_path: Path) -> None:
    found = held_after(LOADER, tmp_path, 100)
    assert found[-1][0] <= 1.05 * found[2][0], [one[0] // MIB for one in found]
    assert found[-1][1:] == found[2][1:]


@pytest.mark.slow
def test_epochs_of_keras_leave_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    found = held_after(KERAS, tmp_path, 30)
    assert found[-1][0] <= 1.05 * found[2][0], [one[0] // MIB for one in found]
    assert found[-1][1:] == found[2][1:]
