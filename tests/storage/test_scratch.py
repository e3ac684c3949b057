"""Scratch space: counted, limited, given back, and gone with its process."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pyarrow as pa
import pytest

from featurestore.errors import DiskFullError, FeatureStoreError, InvalidInputError, LimitError
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import Segment, Segments, SpillFile

ROWS = pa.table({"a": list(range(1000)), "s": [f"text {i}" for i in range(1000)]})


def test_what_is_written_is_read_back_in_any_order(tmp_path):
    with SpillFile(Scratch(tmp_path)) as spill:
        parts = [(ROWS.slice(start, 100), Segments()) for start in range(0, 1000, 100)]
        for rows, segments in parts:
            segments.append(spill.append(rows))
        for rows, segments in reversed(parts):
            (segment,) = segments
            assert spill.read(segment).equals(rows)
            assert spill.read(segment, ["s"]).equals(rows.select(["s"]))


def test_rows_of_several_chunks_and_of_none_are_read_back(tmp_path):
    with SpillFile(Scratch(tmp_path)) as spill:
        chunked = pa.concat_tables([ROWS.slice(0, 3), ROWS.slice(500, 4)])
        assert spill.read(spill.append(chunked)).equals(chunked.combine_chunks())
        assert spill.read(spill.append(ROWS.slice(0, 0))).num_rows == 0


def test_a_segment_that_the_file_does_not_have_is_an_error(tmp_path):
    with SpillFile(Scratch(tmp_path)) as spill:
        found = spill.append(ROWS)
        with pytest.raises(FeatureStoreError, match="the scratch file ends at byte"):
            spill.read(Segment(found.offset, found.length + 1, found.rows))


def test_files_share_a_limit_which_is_kept_before_it_is_passed(tmp_path):
    scratch = Scratch(tmp_path, limit=40_000)
    with SpillFile(scratch) as first, SpillFile(scratch) as second:
        size = first.append(ROWS).length
        assert scratch.used == size
        second.append(ROWS.slice(0, 100))
        before = scratch.used
        with pytest.raises(LimitError, match=r"the scratch limit is 39\.1 KiB") as caught:
            second.append(ROWS)
        assert "raise scratch_limit" in caught.value.remedy
        assert scratch.used == before == first.bytes + second.bytes
        assert scratch.left == 40_000 - before
    assert (scratch.used, scratch.most) == (0, before)


def test_a_file_that_is_forgotten_gives_its_space_back(tmp_path):
    scratch = Scratch(tmp_path)
    spill = SpillFile(scratch)
    spill.append(ROWS)
    assert scratch.used > 0
    del spill
    gc.collect()
    assert scratch.used == 0


def test_what_a_step_will_need_is_refused_with_numbers(tmp_path, monkeypatch):
    scratch = Scratch(tmp_path, limit=2**20)
    scratch.require(2**20, "sorting")
    scratch.take(2**19)
    with pytest.raises(LimitError) as caught:
        scratch.require(2**20, "sorting")
    assert "sorting needs 1.0 MiB" in caught.value.problem
    assert "leaves 512.0 KiB of 1.0 MiB" in caught.value.problem
    assert f"raise scratch_limit to at least {2**20 + 2**19}" in caught.value.remedy
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(2**30, 2**30 - 1000, 1000))
    with pytest.raises(DiskFullError, match=r"needs 4.0 KiB of scratch space, .* has 1000 B free"):
        scratch.require(4096, "sorting")


@pytest.mark.skipif(sys.platform != "linux", reason="scratch files have a name elsewhere")
def test_a_killed_process_leaves_no_file_and_no_space(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from featurestore.storage.scratch import Scratch
from featurestore.storage.spill import SpillFile
spill = SpillFile(Scratch(Path(sys.argv[1])))
spill.append(pa.table({"a": list(range(1000))}))
assert spill.bytes > 8000
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the names themselves


def test_a_directory_that_is_gone_is_an_error_with_a_remedy(tmp_path):
    scratch = Scratch(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match=r"gone cannot be used: No such file.*\n.*scratch="):
        scratch.require(1, "sorting")
    with pytest.raises(InvalidInputError, match="make it again"):
        SpillFile(scratch)
