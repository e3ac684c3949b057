"""Vocabularies that do not fit memory are learnt in scratch space: within the limit, with the same codes.

Each is learnt in a process of its own, after a small one, and its peak is the kernel's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.execution.sites import reserved_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SCRIPT: Final = Path(__file__).parent / "vocabulary_steps.py"
MIB: Final = 2**20
PARTITIONS: Final = 24
FREQUENT: Final = 1500
LEARNT: Final = 1000


def word_numbers(rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the word of each row: each occurs once, but for a few that occur in many partitions.

    Which of these are the most frequent no single partition tells.
    """
    found = np.random.default_rng(0).permutation(rows)
    for number in range(FREQUENT):
        occurrences = 2 + number % 7
        found[(np.arange(occurrences) * (rows // 8) + 13 * number) % rows] = number
    return found


def rows_of(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
    words = pa.array(
        np.char.add("the word number ", numbers.astype("U9")).astype(object), pa.string()
    )
    return pa.table({"t": np.arange(len(numbers)), "word": words})


def expected_words(numbers: np.ndarray[Any, np.dtype[np.int64]], least: int = 1) -> list[str]:
    """Return the most frequent words; ``least`` leaves out at once what occurs less often."""
    values, counts = np.unique(numbers, return_counts=True)
    values, counts = values[counts >= least], counts[counts >= least]
    words = np.char.add("the word number ", values.astype("U9"))
    return [str(one) for one in words[np.lexsort((words, -counts))][:LEARNT]]


def make_store(folder: Path, rows: int) -> None:
    store = fs.FeatureStore.create(folder / "golden", workers=2)
    for name, count in (("few", 500), ("rows", rows)):
        table = rows_of(word_numbers(rows)[:count])
        made = store.ingest(name, table, time="t", partition_bytes=table.nbytes // PARTITIONS)
        assert made.partitions >= 20
    (folder / "scratch").mkdir()


def started(work: str, folder: Path, room: int, way: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), work, str(folder), str(room), way]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def learnt(work: str, folder: Path, room: int, way: str = "any") -> dict[str, Any]:
    with started(work, folder, room, way) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(lines[-1])
    added, scratch = found["added"] / MIB, found["scratch"] / MIB
    print(f"{work}: {added:.1f} of {room / MIB:.0f} MiB, {scratch:.1f} MiB of scratch space")
    assert list((folder / "scratch").iterdir()) == []
    return found


def codes_by_word(folder: Path) -> dict[int, str]:
    """Return the words that have a code of their own in the table."""
    read = fs.FeatureStore.open(folder / "golden").table("rows").read(["word", "word_code"])
    known = read.filter(read["word_code"] >= 2).unique()
    assert known.height == known["word_code"].n_unique()
    return dict(zip(known["word_code"].to_list(), known["word"].to_list(), strict=True))


def check(folder: Path, rows: int, room: int) -> None:
    make_store(folder, rows)
    expected = expected_words(word_numbers(rows))
    refused = learnt("pipeline", folder, room, "memory")
    assert refused["refused"].startswith("MemoryLimitError: combining what Categorify learnt")
    assert refused["scratch"] == 0
    for work in ("pipeline", "table"):
        found = learnt(work, folder, room)
        assert found["refused"] == ""
        assert found["scratch"] > 0
        assert found["added"] <= room
        if work == "pipeline":
            assert found["words"] == expected
    assert codes_by_word(folder) == dict(enumerate(expected, start=2))


def test_a_vocabulary_that_does_not_fit_memory_is_learnt(tmp_path: Path) -> None:
    check(tmp_path, 400_000, 100 * MIB)


@pytest.mark.slow
def test_a_vocabulary_of_four_million_words_is_learnt(tmp_path: Path) -> None:
    check(tmp_path, 4_000_000, 300 * MIB)


@pytest.mark.slow
def test_a_vocabulary_of_twenty_million_words_is_learnt_within_a_gibibyte(tmp_path: Path) -> None:
    rows, piece = 20_000_000, 1_000_000
    numbers = word_numbers(rows)
    # Nearly all are different: what is learnt of them is larger than the limit several times over.
    assert len(np.unique(numbers)) > 0.999 * rows
    store = fs.FeatureStore.create(tmp_path / "golden", workers=2)
    store.ingest("few", rows_of(numbers[:500]), time="t", partition_bytes=1000)
    table = store.ingest("rows", rows_of(numbers[:piece]), time="t")
    for start in range(piece, rows, piece):
        words = rows_of(numbers[start : start + piece])
        at = pa.array(np.arange(start, start + words.num_rows))
        table.append(words.set_column(0, "t", at))
    (tmp_path / "scratch").mkdir()
    reserved = reserved_bytes("polars")
    found = learnt("pipeline", tmp_path, 1024 * MIB - reserved)
    assert found["refused"] == ""
    assert found["scratch"] > 0
    assert reserved + found["added"] <= 1024 * MIB
    assert found["words"] == expected_words(numbers, least=2)


def test_killed_while_combining_it_leaves_nothing_and_runs_again(tmp_path: Path) -> None:
    rows, scratch = 240_000, tmp_path / "scratch"
    make_store(tmp_path, rows)
    with started("table", tmp_path, 64 * MIB, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "combining\n"
        held = [os.readlink(one) for one in Path(f"/proc/{process.pid}/fd").iterdir()]  # noqa: PTH115 - no path
        assert any(one.startswith(str(scratch)) for one in held)
        process.send_signal(signal.SIGKILL)
    assert list(scratch.iterdir()) == []
    found = learnt("table", tmp_path, 64 * MIB)
    assert found["refused"] == ""
    assert codes_by_word(tmp_path) == dict(enumerate(expected_words(word_numbers(rows)), start=2))
