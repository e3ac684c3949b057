"""A pack far larger than what the kernel allows: its pages come and go, the epoch finishes.

The process lies in a control group of its own, whose limit counts page cache as well. A pack of five
times the limit is written and fed inside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

GROUPS = Path("/sys/fs/cgroup/memory")
MIB = 2**20
LIMIT = 96 * MIB

EPOCHS = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from featurestore.dataset.batch import Batch, DatasetSchema, Input, Role
from featurestore.limits import resident_bytes
from training import Loader

class Generated:  # a part whose rows exist only while they are asked for
    schema = DatasetSchema((Input("v", Role.TENSOR, "float32", (64,)),))
    partition_rows = (10_000,) * (int(sys.argv[2]) // 2_560_000)
    rows = sum(partition_rows)
    digest, snapshot_id, memory_limit, workers = f"generated-{rows}", "1", 2**40, 2
    reserved_bytes = property(lambda self: resident_bytes())
    def arrays(self, i):
        values = np.arange(10_000, dtype=np.float32)[:, None] + np.float32(10_000 * i)
        return Batch({"v": np.repeat(values, 64, axis=1)}, None)
    def slices(self, i, within):
        yield self.arrays(i)
    def memory(self, i, within):
        return 2 * 2_560_000

if sys.argv[3]:
    (Path(sys.argv[3]) / "cgroup.procs").write_text(str(os.getpid()))
found = {}
part = Generated()
loader = Loader(part, 1024, cache=sys.argv[1])
loader.pack
for name, shuffle in (("plain", False), ("windows", True)):
    loader = Loader(part, 1024, shuffle, cache=sys.argv[1])
    began, total, rows = time.perf_counter(), 0.0, 0
    for batch in loader:
        total += float(batch.inputs["v"][:, 0].astype(np.float64).sum())
        rows += batch.rows
    assert rows == part.rows
    found[name] = [total, time.perf_counter() - began]
print(json.dumps(found))
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """Return a control group with a limit of its own, or skip where there is none to be had."""
    path = GROUPS / f"featurestore-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        why = "only a control group's limit takes cached pages away, and none can be made here"
        # Without a group the kernel takes no pages back, so nothing that could fail is left to test.
        pytest.skip(f"{why}: {error}")
    try:
        (path / "memory.limit_in_bytes").write_text(str(LIMIT))
        yield path
    finally:
        path.rmdir()


def fed(folder: Path, size: int, group: Path | None) -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", EPOCHS, str(folder), str(size), "" if group is None else str(group)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "times", [2, pytest.param(5, marks=pytest.mark.slow)], ids=["twice", "five-times"]
)
def test_a_pack_larger_than_the_kernel_allows_is_fed(
    tmp_path: Path, group: Path, times: int
) -> None:
    rows = times * LIMIT // 2_560_000 * 10_000
    found = fed(tmp_path / "inside", times * LIMIT, group)
    peak = int((group / "memory.max_usage_in_bytes").read_text())
    assert peak <= LIMIT
    for total, _ in found.values():
        assert total == pytest.approx(rows * (rows - 1) / 2)
    free = fed(tmp_path / "inside", times * LIMIT, None)
    # Told, not asserted: how much slower it is than with the whole pack in the page cache.
    print({name: f"{found[name][1] / free[name][1]:.1f} times the seconds" for name in found})
