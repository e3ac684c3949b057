"""A build that is killed: run again it gives the same values, and does nothing twice.

Fewer kills than in ``test_killed_operations``, whose stream of operations has builds as well: here is
one build of many partitions, so that a kill leaves finished ones.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.storage.backends import open_object_store
from featurestore.testing.journals import journal_keys

KILLS = 8
ROWS = 60_000
PARTITIONS = 30
COLUMNS = ["k", "t", "x", "double", "x_mean_3d", "x_std_3d", "x_lag_2", "y"]

SCRIPT = """
import sys
import featurestore as fs
from tests_killed_features import transformers
table = fs.FeatureStore.open(sys.argv[1], workers=2).table("rows")
print("go", flush=True)
table.add(*transformers())
print("done", flush=True)
"""
FEATURES = """
import narwhals as nw
import featurestore as fs

def transformers():
    return (
        fs.Expression(double=nw.col("x") * 2),
        fs.Rolling("x", window="3d", stats=["mean", "std"], by="k"),
        fs.Lag("x", periods=2, by="k"),
        fs.AsOfJoin("other", columns=["y"], by="k", max_age="2d"),
        fs.Rolling("double", window="1d", stats=["sum"], by="k"),
    )
"""


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A module that both this process and the killed ones import."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "tests_killed_features.py").write_text(FEATURES)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "store"
    rng = np.random.default_rng(1)
    times = np.sort(rng.integers(0, 100 * 86_400_000, ROWS))
    rows = pl.DataFrame(
        {"k": rng.integers(0, 50, ROWS), "t": times, "x": rng.normal(size=ROWS)}
    ).with_columns(pl.col("t").cast(pl.Datetime("ms")))
    store = fs.FeatureStore.create(path)
    other = rows.sample(5000, seed=1).rename({"x": "y"})
    store.ingest("other", other, key="k", time="t", duplicates="last", partition_bytes="20KiB")
    table = store.ingest(
        "rows", rows, key="k", time="t", duplicates="keep", partition_bytes=24 * ROWS // PARTITIONS
    )
    assert table.partitions >= PARTITIONS * 0.8
    return path


@contextmanager
def building(path: Path, features: Path) -> Iterator[subprocess.Popen[str]]:
    """Build in a process of its own; the block starts when the build does."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{features}:{Path(__file__).parents[2]}", "PATH": ""},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        yield process


def killed_after(path: Path, features: Path, seconds: float) -> bool:
    """Kill a build after some seconds; return whether it was still running."""
    with building(path, features) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        return process.stdout.read() == ""


def duration(path: Path, features: Path) -> float:
    """Return the seconds that an undisturbed build takes in a process of its own."""
    started = 0.0
    with building(path, features) as process:
        started = time.perf_counter()
        assert process.stdout is not None
        assert process.stdout.read() == "done\n"
    return time.perf_counter() - started


def test_a_killed_build_resumes_without_repeating_anything(
    prepared: Path, features: Path, tmp_path: Path
) -> None:
    from tests_killed_features import transformers  # type: ignore[import-not-found]

    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared, undisturbed)
    table = fs.FeatureStore.open(undisturbed, workers=2).table("rows")
    report = table.add(*transformers())
    assert report.resumed == 0
    total = report.computed
    expected = table.read()
    shutil.copytree(prepared, tmp_path / "timed")
    seconds = duration(tmp_path / "timed", features)

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    interrupted = 0
    resumed = 0
    for n in range(3 * KILLS):  # a kill may come too late when the machine is fast just then
        if interrupted == KILLS:
            break
        path = tmp_path / f"killed-{n}"
        shutil.copytree(prepared, path)
        killed = killed_after(path, features, rng.uniform(0, 1.1 * seconds))
        interrupted += killed
        objects = open_object_store(path)
        finished = len(journal_keys(objects, "rows"))
        table = fs.FeatureStore.open(path, workers=2).table("rows")
        published = table.version == 3  # killed after the commit, or not at all
        assert published or "double" not in table.columns, "an unfinished build is invisible"
        report = table.add(*transformers())
        assert report.resumed == (0 if published else finished)
        assert report.computed == (0 if published else total - finished)
        resumed += report.resumed
        assert table.read().equals(expected), f"seed {seed}, kill {n}"
        assert table.status().is_fresh
        check_tidy(path)
        shutil.rmtree(path)
    assert interrupted == KILLS, "too few kills hit a running build to prove anything"
    assert resumed, "no kill left anything to resume"


def check_tidy(path: Path) -> None:
    """gc finds every file that nothing names, and nothing else."""
    store = fs.FeatureStore.open(path)
    assert store.verify().ok
    store.gc(safety_age="0s")
    assert store.verify().ok
    assert store.table("rows").status().is_fresh
    named = {
        file.path
        for table in store.tables()
        for entries in store._session.files(table).entries.values()
        for entry in entries.values()
        for file in entry.all_files()
    }
    present = {
        one.path for one in open_object_store(path).list("data") if not one.path.endswith("/")
    }
    assert present == named
    leftovers = [one for one in path.rglob("*") if one.is_file() and one.name.startswith(".")]
    assert leftovers == []
