"""A partition far larger than the others and than the memory limit: built in slices, or refused first."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.engines.protocol import Engine
from featurestore.errors import MemoryLimitError
from featurestore.execution import sites
from featurestore.schema import Field, TableSchema
from featurestore.testing.sliced_features import rows
from featurestore.transforms.base import Columns, Partition, Scope, State, Transformer

SMALL = 12_000
LARGE = 50 * SMALL
ROOM = 32 * 2**20
RESERVED = 100 * 2**20
WIDE = 20 * 2**20
"""Bytes of one text among short ones."""

BUILD = """
import json, sys
import numpy as np
import pyarrow as pa
import featurestore as fs
from featurestore.execution.events import StepStarted, observed_by
from featurestore.limits import resident_bytes
from featurestore.profiling.sampler import measure
from featurestore.testing import sliced_features

def add(table, name):
    table.add(sliced_features.FEATURES[name](), **sliced_features.OPTIONS.get(name, {}))

folder, room, names = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
tiny = fs.FeatureStore.create("memory://warm-up").ingest(
    "t", sliced_features.rows([100, 200], 1000), time="t", partition_bytes="4KiB")
for name in names:
    add(tiny, name)
found = {}
for name in names:
    pa.default_memory_pool().release_unused()
    limit = resident_bytes() + room
    table = fs.FeatureStore.open(folder, memory_limit=limit).table("t")
    steps = []
    with observed_by(steps.append), measure() as meter:
        add(table, name)
    labels = [one.label for one in steps if isinstance(one, StepStarted)]
    found[name] = [meter.result.peak_bytes, limit, "look where to cut" in labels]
print(json.dumps(found))
"""


def store_at(folder: Path, wide: int = 100) -> fs.Table:
    counts = [SMALL] * 3 + [LARGE] + [SMALL] * 3
    store = fs.FeatureStore.create(folder)
    # All rows of one time are in one partition, however large it gets.
    return store.ingest("t", rows(counts, wide), time="t", partition_bytes="900KiB")


def built_in_fresh_process(folder: Path, room: int, names: str) -> dict[str, Any]:
    command = [sys.executable, "-c", BUILD, str(folder), str(room), names]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_partition_fifty_times_the_others_is_built_in_slices(tmp_path: Path) -> None:
    table = store_at(tmp_path / "s")
    assert table.partitions >= 5
    names = "numbers,tensor,learnt,lagged,rolled,ahead"
    found = built_in_fresh_process(tmp_path / "s", ROOM, names)
    for name, (peak, limit, cut) in found.items():
        print(f"{name}: {(limit - peak) / 2**20:.1f} MiB below the limit")
        assert cut, f"{name} was not built in slices"
        assert peak <= limit, f"{name}: {peak / 2**20:.1f} MiB of {limit / 2**20:.1f}"
    values = fs.FeatureStore.open(tmp_path / "s").table("t").read(as_="arrow")
    assert isinstance(values, pa.Table)
    x, y, z, w = (values[name].to_numpy() for name in "xyzw")
    assert np.array_equal(values["sum"].to_numpy(), x * y + z)
    assert np.array_equal(values["difference"].to_numpy(), w - x)
    vectors = values["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    assert np.array_equal(vectors, np.stack([x, y, z, w], axis=1).astype(np.float32))
    for name, lag in [("x_lag_1", 1), ("x_lag_3", 3)]:
        assert values[name].null_count == lag
        assert np.array_equal(values[name].to_numpy()[lag:], x[:-lag])
    earlier = np.stack([np.concatenate([np.zeros(lag), x[:-lag]]) for lag in (4, 3, 2, 1)])
    sums = values["x_sum_4r"].to_numpy()
    np.testing.assert_allclose(sums[1:], earlier.sum(axis=0)[1:], rtol=1e-12)
    assert values["x_sum_4r"].null_count == 1
    assert values["w_value_ahead_2r"].null_count == 2
    assert np.array_equal(values["w_value_ahead_2r"].to_numpy()[:-2], w[2:])
    assert np.array_equal(values["z_sum_ahead_2r"].to_numpy()[:-2], z[1:-1] + z[2:])
    np.testing.assert_allclose(values["s_x"].to_numpy(), (x - x.mean()) / x.std(), rtol=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_row_that_is_far_wider_than_the_others(tmp_path: Path) -> None:
    store_at(tmp_path / "s", WIDE)
    peak, limit, _ = built_in_fresh_process(tmp_path / "s", 12 * WIDE, "texts")["texts"]
    print(f"texts: {(limit - peak) / 2**20:.1f} MiB below the limit")
    assert peak <= limit
    values = fs.FeatureStore.open(tmp_path / "s").table("t").read(["length"], as_="arrow")
    assert isinstance(values, pa.Table)
    assert values["length"].to_numpy().max() == WIDE


@dataclass(frozen=True)
class Halved(Transformer):
    """Says nothing about where it may be cut."""

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        return ("x",)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        return (Field("halved", pa.float64()),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        return Columns(partition.frame.select(halved=nw.col("x") / 2))


@pytest.mark.parametrize(
    ("name", "transformer"), [("halved", Halved()), ("x_rank", fs.CrossSection("x"))]
)
def test_what_cannot_be_cut_is_refused_before_anything_runs(
    tmp_path: Path, name: str, transformer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one has not said that it may be; the other compares the rows of one time, all of them."""
    store_at(tmp_path / "s")
    monkeypatch.setattr(sites, "reserved_bytes", lambda _: RESERVED)
    table = fs.FeatureStore.open(tmp_path / "s", memory_limit=RESERVED + 2**23).table("t")
    files = sorted(path for path in (tmp_path / "s").rglob("*") if path.is_file())
    with pytest.raises(MemoryLimitError) as caught:
        table.add(transformer)
    large = max(table._session.files("t").base, key=lambda one: one.rows)
    assert large.rows == LARGE
    message = str(caught.value)
    assert name in message
    assert large.partition in message
    assert "MiB for partition" in message
    assert "raise memory_limit to at least" in message
    assert sorted(path for path in (tmp_path / "s").rglob("*") if path.is_file()) == files
