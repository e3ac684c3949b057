"""Tables that are meant to break a memory limit: built, read and fed within it, or refused with what would do.

Each piece of work runs in a new process, in a limit that the kernel keeps where it can, and ends in one of two ways:
below the limit, with values that brute force over all rows gives in a sample; or refused before a task
began, the store as it was, with a limit that is then tried and does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.testing.hostile_tables import FAMILIES, SETS, TABLE, sampled
from featurestore.testing.hostile_values import Oracle

pytest.importorskip("xgboost")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STEPS = Path(__file__).parent / "hostile_steps.py"
LIMIT = "400MiB"
WORK = (*FAMILIES, "read", "epoch", "feed", "matrix")
MIB = 2**20


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(STEPS), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Sets:
    """The stores with the hostile tables, each made once, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._oracles: dict[str, Oracle] = {}

    def folder(self, name: str) -> Path:
        place = self._folder / name
        if not place.exists():
            place.mkdir()
            done = run("write", name, str(place), "-")
            assert done.returncode == 0, done.stderr
        return place

    def oracle(self, name: str) -> Oracle:
        if name not in self._oracles:
            self._oracles = {name: self._oracle(name)}  # one at a time: they hold all rows
        return self._oracles[name]

    def _oracle(self, name: str) -> Oracle:
        store = fs.FeatureStore.open(self.folder(name) / "store", memory_limit="12GiB")
        rows = store.table(TABLE).read(as_="arrow")
        assert isinstance(rows, pa.Table)
        return Oracle(name, rows, sampled(rows.num_rows))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return Sets(tmp_path_factory.mktemp("hostile"))


@dataclass(frozen=True)
class Place:
    """A copy of a set's store, in which one piece of work is done."""

    name: str
    work: str
    folder: Path

    @classmethod
    def of(cls, sets: Sets, name: str, work: str, folder: Path) -> Place:
        # Files of a store are written once, so that links will do.
        shutil.copytree(sets.folder(name), folder / "work", copy_function=os.link)
        return cls(name, work, folder / "work")

    def done(self, limit: str) -> dict[str, Any]:
        """Do the work and return what is told of it; it may be refused, but not killed."""
        ended = run(self.work, self.name, str(self.folder), limit)
        assert ended.returncode != -signal.SIGKILL, f"took more than {limit}\n{ended.stderr}"
        assert ended.returncode == 0, ended.stderr[-3000:]
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        refused = found["refused"].splitlines()
        print(f"{self.name} {self.work} in {limit}, kept by {found['mechanism'][:9]}:", *refused)
        assert found["warnings"] == []
        return found

    def files(self) -> list[tuple[str, int]]:
        """Return all files and their sizes, but what was learnt before a dataset was read."""
        paths = [one for one in self.folder.rglob("*") if one.is_file()]
        if self.work not in FAMILIES:
            paths = [one for one in paths if one.parent.name != "states"]
        return sorted((str(one), one.stat().st_size) for one in paths)

    def require_values(self, oracle: Oracle, told: Mapping[str, Any]) -> None:
        expected = oracle.expected(self.work)
        if self.work in FAMILIES:
            store = fs.FeatureStore.open(self.folder / "store", memory_limit="12GiB")
            rows = store.table(TABLE).read(list(expected), as_="arrow")
            assert isinstance(rows, pa.Table)
            sample = rows.take(pa.array(oracle.positions))
            told = {name: sample[name].to_pylist() for name in expected}
        seen = [name for name in expected if name in told]
        assert len(seen) >= min(2, len(expected))
        for name in seen:
            assert_same(told[name], expected[name], name)


def assert_same(found: Any, expected: Any, name: str) -> None:
    if any(isinstance(one, str) for one in expected):
        assert found == expected, name
        return
    actual, desired = (np.array(one, dtype=np.float64) for one in (found, expected))
    np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6, err_msg=name)


def require_refusal(place: Place, found: Mapping[str, Any], before: list[tuple[str, int]]) -> str:
    """Return the limit that a refusal names, after a look at the rest of it."""
    message = found["refused"]
    assert found["tasks"] == 0, "work had begun"
    assert place.files() == before
    assert re.search(r"\d+\.\d [MG]iB", message), message
    if place.work in FAMILIES:
        assert "made" in message or "t_minute" in message
        assert re.search(r"for partition p\d+", message), message
    named = re.search(r"memory_limit to at least (\d+)(MiB|)", message)
    assert named is not None, message
    return named[1] + named[2]


def checked(sets: Sets, folder: Path, name: str, work: str, limit: str) -> bool:
    """Do a piece of work; follow the remedy if it is refused. Return whether it was."""
    place = Place.of(sets, name, work, folder)
    before = place.files()
    found = place.done(limit)
    refused = bool(found["refused"])
    if refused:
        found = place.done(require_refusal(place, found, before))
        assert found["refused"] == "", "the limit that was named does not do"
    place.require_values(sets.oracle(name), found["values"])
    return refused


ALWAYS = [
    ("heavy_partition", "lag"),
    ("heavy_partition", "epoch"),
    ("heavy_key", "rolling"),
    ("long_text", "expression"),
]
FITTING = {
    ("heavy_partition", "lag"),
    ("heavy_partition", "epoch"),
    ("heavy_partition", "feed"),
    ("heavy_key", "rolling"),
}
"""Work that was seen to end below the limit, so that a refusal is one too many."""
CASES = [
    pytest.param(name, work, marks=() if (name, work) in ALWAYS else pytest.mark.slow)
    for name in SETS
    for work in WORK
]


@pytest.mark.parametrize(("name", "work"), CASES)
def test_hostile_tables_are_worked_on_below_the_limit_or_refused(
    sets: Sets, tmp_path: Path, name: str, work: str
) -> None:
    refused = checked(sets, tmp_path, name, work, LIMIT)
    assert not (refused and (name, work) in FITTING), "what fits was refused"


@pytest.mark.slow
@pytest.mark.parametrize("work", ["lag", "rolling"])
def test_partitions_of_the_size_that_a_refusal_names_do_in_one_round(
    sets: Sets, tmp_path: Path, work: str
) -> None:
    refused = Place.of(sets, "many_keys", work, tmp_path).done(LIMIT)["refused"]
    named = re.search(r"partition_bytes of at most (\d+[KM]iB)", refused)
    assert named is not None, refused
    folder = tmp_path / "smaller"
    folder.mkdir()
    done = run("write", "many_keys", str(folder), named[1])
    assert done.returncode == 0, done.stderr
    # Each partition is handed now what those before it left.
    place = Place("many_keys", work, folder)
    found = place.done(LIMIT)
    assert found["refused"] == "", "partitions of the size that was named do not do"
    place.require_values(sets.oracle("many_keys"), found["values"])
