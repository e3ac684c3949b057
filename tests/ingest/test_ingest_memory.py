"""Peak memory of an ingest, measured in a process of its own, against its limit.

With Arrow's default allocator, and with the system's, of which less is reserved for what it keeps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MEASURE = """
import sys
from pathlib import Path
import pyarrow as pa
from featurestore.ingest.partitioner import write_partitions
from featurestore.ingest.sources import open_source
from featurestore.storage.backends import open_object_store
from featurestore.storage.records import TableEntry

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def ingest(source, name, limit, size):
    entry = TableEntry(name, ("k",), "t", size)
    return write_partitions(
        open_object_store(sys.argv[1]), open_source(source), entry,
        schema=None, after=None, first_sequence=0, memory_limit=limit,
    )

# What any ingest costs: imports, thread pools, kernels.
ingest(sys.argv[5], "warm", 64 << 20, 10_000)
reserved = peak()
entries = ingest(sys.argv[2], "big", int(sys.argv[3]), int(sys.argv[4]))
live = pa.default_memory_pool().max_memory()
print(reserved, peak(), live, sum(one.rows for one in entries), len(entries))
"""


def peak_above_reserved(tmp_path, rows, order, limit, size, pool=None):
    path = tmp_path / "in.parquet"
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, measured_table(rng, 1, order, 0).schema) as writer:
        for start in range(0, rows, 100_000):
            writer.write_table(measured_table(rng, min(100_000, rows - start), order, start))
    environment = {**os.environ, **({"ARROW_DEFAULT_MEMORY_POOL": pool} if pool else {})}
    small = tmp_path / "small.parquet"
    pq.write_table(measured_table(rng, 3000, order, 0), small)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "store"), str(path)]
    done = subprocess.run(
        [*command, str(limit), str(size), str(small)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    reserved, peak, live, found, partitions = map(int, done.stdout.split())
    assert found == rows
    assert partitions > 3
    assert live <= limit
    return peak - reserved


def measured_table(rng, rows, order, start):
    times = rng.integers(0, 10**12, rows) if order == "mixed" else np.arange(start, start + rows)
    return pa.table(
        {
            "t": pa.array(times).cast(pa.timestamp("us")),
            "k": pa.array(rng.integers(0, 10**15, rows)).cast(pa.string()),
            **{f"f{i}": rng.random(rows) for i in range(6)},
        }
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("order", "pool", "mebibytes"),
    [("mixed", None, 80), ("sorted", None, 80), ("mixed", "system", 56), ("sorted", "system", 56)],
)
def test_small_ingest_stays_within_its_limit(tmp_path, order, pool, mebibytes):
    limit = mebibytes << 20
    assert peak_above_reserved(tmp_path, 800_000, order, limit, 4 << 20, pool) <= limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_that_allocators_alone_would_exceed_is_refused(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        peak_above_reserved(tmp_path, 800_000, "sorted", 32 << 20, 4 << 20)
    assert "MemoryLimitError" in caught.value.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("order", ["mixed", "sorted"])
def test_ingest_of_300_megabytes_stays_within_128(tmp_path, order):
    limit = 128 << 20
    assert peak_above_reserved(tmp_path, 4_000_000, order, limit, 8 << 20) <= limit


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from featurestore.ingest.partitioner import write_partitions
from featurestore.ingest.sources import open_source
from featurestore.storage.backends import open_object_store
from featurestore.storage.records import TableEntry

def die(done, total, phase, projected):
    if phase == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

folder = Path(sys.argv[1])
times = np.random.default_rng(0).permutation(300_000)
source = open_source(pa.table({"t": times}).to_reader(), scratch=folder / "scratch")
write_partitions(
    open_object_store(folder / "store"), source, TableEntry("x", (), "t", 200_000),
    schema=None, after=None, first_sequence=0, memory_limit=8 << 20, on_progress=die,
    scratch=folder / "scratch",
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="scratch files have a name elsewhere")
@pytest.mark.parametrize("phase", ["survey", "route", "write"])
def test_a_killed_ingest_leaves_no_scratch(tmp_path, phase):
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path), phase]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "scratch").iterdir()) == []
