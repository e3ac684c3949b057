"""Scratch space of an ingest: projected from the survey, refused before it is used, then held to."""

from __future__ import annotations

import shutil
from collections import namedtuple
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import DiskFullError, LimitError
from featurestore.ingest.buckets import spilled_bytes
from featurestore.ingest.dropped_rows import DroppedRows
from featurestore.storage.scratch import Scratch

UNSORTED = {"time": "t", "memory_limit": 3 << 20, "partition_bytes": 200_000}
STATIC = {"key": ("k",), "memory_limit": 3 << 20, "partition_bytes": 200_000}


def rows(count: int = 200_000) -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "t": random.permutation(count),
            "k": [f"key {i}" for i in range(count)],
            "x": random.random(count),
        }
    )


@pytest.mark.parametrize("options", [UNSORTED, STATIC], ids=["unsorted", "static"])
def test_what_is_projected_is_enough_and_not_twice_too_much(ingest, monkeypatch, options):
    asked = []
    real = Scratch.require
    monkeypatch.setattr(
        Scratch, "require", lambda self, size, what: asked.append(size) or real(self, size, what)
    )
    ingest.scratch = Scratch(ingest.scratch)
    ingest(rows(), **options)
    (projected,) = asked
    assert 0 < ingest.scratch.most <= projected <= 2.5 * ingest.scratch.most
    assert ingest.scratch.used == 0


@pytest.mark.parametrize(
    ("options", "step"), [(UNSORTED, "sorting the rows"), (STATIC, "looking for repeated keys")]
)
def test_a_limit_that_is_too_small_is_refused_before_anything_is_written(ingest, options, step):
    ingest.scratch = Scratch(ingest.scratch, limit=1 << 20)
    with pytest.raises(LimitError, match=f"{step} needs .* MiB of scratch space") as caught:
        ingest(rows(), **options)
    assert "raise scratch_limit to at least" in caught.value.remedy
    assert ingest.scratch.most == 0
    assert ingest.listing() == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(ingest, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**30, 2**30 - 2**19, 2**19))
    ingest.scratch = Scratch(ingest.scratch)
    with pytest.raises(DiskFullError, match=r"has 512.0 KiB free"):
        ingest(rows(), **UNSORTED)
    assert ingest.scratch.most == 0
    assert ingest.listing() == []


def test_a_stream_is_held_to_the_limit_while_it_is_copied(ingest):
    ingest.scratch = Scratch(ingest.scratch, limit=1 << 20)
    with pytest.raises(LimitError, match=r"the scratch limit is 1\.0 MiB"):
        ingest(rows().to_reader(), **UNSORTED)
    assert ingest.scratch.used == 0
    assert ingest.listing() == []


def test_enough_scratch_is_enough(ingest):
    found = Scratch(ingest.scratch)
    ingest.scratch = found
    table = rows()
    expected = ingest.rows(ingest(table, **UNSORTED))
    ingest.scratch = Scratch(found.folder, limit=2 * found.most)
    assert ingest.rows(ingest(table, **UNSORTED)) == expected
    assert [row["t"] for row in expected] == list(range(table.num_rows))


def test_wide_rows_get_fewer_buckets_at_once():
    narrow = spilled_bytes(10**9, 10**9, 10**7, 10**7, 10)
    wide = spilled_bytes(10**9, 10**9, 10**7, 10**7, 5_000)
    assert 10**9 < narrow < 1.2 * 10**9
    # Several levels, each with about a third more than the rows.
    assert narrow < wide < 8 * 10**9


def test_dropped_rows_are_marked_across_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr("featurestore.ingest.dropped_rows._LEAST_SPAN", 7)
    monkeypatch.setattr("featurestore.ingest.dropped_rows._PENDING", 5)
    random = np.random.default_rng(3)
    goes = random.random(1000) < 0.3
    with DroppedRows(1000, Scratch(tmp_path)) as dropped:
        for part in np.array_split(random.permutation(np.flatnonzero(goes)), 40):
            dropped.add(part)
        cuts = [0, 3, 7, 8, 300, 301, 999, 1000]
        for start, stop in pairwise(cuts):
            assert (dropped.between(start, stop) == goes[start:stop]).all()
