"""The whole chain in a limit that the kernel keeps: files, features, a model; and again, killed half-way.

Ingest of files whose times all overlap, five features (an expression, a rolling window, a lag, an as-of join
with a second table, a vocabulary), imputing, standardizing and a second vocabulary learnt by a
pipeline, a packed and shuffled epoch, and XGBoost from external memory; each step in a process of its
own. Beyond the limit the kernel kills the step. What the process and its children held (memory that is no
file's) is sampled and compared with the limit as well, which is all there is where the kernel keeps
none; the output says which of both it was.

Run always: 2 GB decoded (a million rows of 250 float64) in 600 MiB, about two minutes of one core; the
second time begins with the build, on the same ingested files. The 16 GB in 1.5 GiB (16 million rows of
250 float32) are slow: an hour of one core, 60 GB of disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from featurestore.testing.chain_data import SENSORS, write_quotes, write_readings
from featurestore.units import format_bytes, parse_bytes

pytest.importorskip("xgboost")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS: Final = Path(__file__).parent / "chain_steps.py"
FEATURES: Final = 5


@dataclass(frozen=True)
class Chain:
    """A chain in a folder: its steps, and what each took."""

    folder: Path
    limit: str
    tasks: dict[str, int] = field(default_factory=dict)

    def step(self, name: str) -> dict[str, Any]:
        """Run a step under the limit and return what it made.

        The kernel's mark counts pages of mapped files too: it says how much, not whether it was too much.
        """
        done = self._run(name)
        assert done.returncode != -signal.SIGKILL, (
            f"{name} was killed: it took more than {self.limit}\n{done.stderr}"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        held, mark = format_bytes(found["held"]), format_bytes(found["mark"])
        print(f"{name}: held {held} (mark {mark}) of {self.limit}, kept by {found['mechanism']}")
        assert found["held"] <= parse_bytes(self.limit), name
        assert found["warnings"] == [], name
        self.tasks[name] = found["tasks"]
        made: dict[str, Any] = found["made"]
        return made

    def killed(self, name: str, tasks: int) -> None:
        """Run a step that is killed when so many of its tasks are done."""
        done = self._run(name, "--kill-after", str(tasks))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not done.stdout

    def _run(self, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(STEPS), name, str(self.folder), self.limit, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def data(self, rows: int, columns: int, partition_bytes: str, wide: bool = False) -> None:
        write_readings(self.folder, rows, columns, wide=wide)
        write_quotes(self.folder / "quotes.parquet", rows // SENSORS)
        settings = {"partition_bytes": partition_bytes}
        (self.folder / "chain.json").write_text(json.dumps(settings))

    def drop_data(self) -> None:
        for path in self.folder.glob("*.parquet"):
            path.unlink()


def share(source: str, target: str) -> None:
    """Link a file that is never changed once it is written, copy any other."""
    if Path(source).suffix == ".parquet":
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def assert_scratch_is_empty(folder: Path) -> None:
    left = {one.name for one in folder.iterdir()} - {"store", "packs", "chain.json"}
    assert {one for one in left if not one.endswith(".parquet")} == set()


def assert_resumed(built: Mapping[str, int], resumed: Mapping[str, int]) -> None:
    assert resumed["computed"] + resumed["resumed"] == built["computed"]
    assert resumed["resumed"] > 0
    print(f"resumed {resumed['resumed']} of {built['computed']}")


@pytest.mark.timeout(1200)
def test_two_gigabytes_in_600_mebibytes(tmp_path: Path) -> None:
    first, second = Chain(tmp_path / "first", "600MiB"), Chain(tmp_path / "second", "600MiB")
    first.data(1_000_000, 250, "48MiB", wide=True)
    ingested = first.step("ingest")
    assert ingested["rows"] == 1_000_000
    assert ingested["bytes"] >= 2_000_000_000
    assert ingested["partitions"] > 10
    first.drop_data()
    shutil.copytree(first.folder, second.folder, copy_function=share)
    built = first.step("build")
    assert built["computed"] == FEATURES * ingested["partitions"]
    checked = first.step("check")
    assert checked["fresh"]
    assert first.step("epoch")["rows"] == 1_000_000
    losses = first.step("boost")["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6
    assert_scratch_is_empty(first.folder)
    shutil.rmtree(first.folder)

    # The last tasks, one for each partition, compute the features: half of them are done.
    second.killed("build", tasks=first.tasks["build"] - ingested["partitions"] // 2)
    assert_resumed(built, second.step("build"))
    assert second.step("check") == checked
    assert_scratch_is_empty(second.folder)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_sixteen_gigabytes_in_one_and_a_half_gibibytes(tmp_path: Path) -> None:
    rows, columns = 16_000_000, 250
    made, tasks = [], 0
    for number in (1, 2):
        chain = Chain(tmp_path / str(number), "1.5GiB")
        chain.data(rows, columns, "128MiB")
        ingested = chain.step("ingest")
        assert ingested["rows"] == rows
        chain.drop_data()
        computed = FEATURES * ingested["partitions"]
        if number == 1:
            assert chain.step("build") == {"computed": computed, "resumed": 0}
            tasks = chain.tasks["build"]
        else:
            chain.killed("build", tasks=tasks - ingested["partitions"] // 2)
            assert_resumed({"computed": computed}, chain.step("build"))
        made.append([ingested, *(chain.step(name) for name in ("check", "epoch", "boost"))])
        assert_scratch_is_empty(chain.folder)
        shutil.rmtree(chain.folder)
    assert made[0] == made[1]
    assert made[0][2]["rows"] == rows
