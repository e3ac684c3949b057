"""Marks tell the exact peak between start and stop, whatever other marks do meanwhile."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from featurestore import watermark as module
from featurestore.errors import InvalidInputError
from featurestore.testing.held_memory import MIB, touch
from featurestore.watermark import Watermark, watermark

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@linux
def test_the_peak_of_a_block_that_is_gone_at_once() -> None:
    with watermark() as mark:
        touch(96)
    assert mark.exact
    assert 95 * MIB <= mark.added_bytes <= 110 * MIB
    assert mark.start_bytes + mark.added_bytes == mark.peak_bytes


@linux
def test_an_earlier_and_a_later_peak_do_not_count() -> None:
    touch(128)
    mark = watermark().start()
    touch(40)
    peak = mark.stop()
    touch(128)
    assert peak == mark.peak_bytes == mark.stop()
    assert 39 * MIB <= mark.added_bytes <= 60 * MIB


@linux
def test_what_is_held_at_the_start_counts() -> None:
    block = touch(64)
    with watermark() as mark:
        del block
    assert mark.peak_bytes >= mark.start_bytes >= 64 * MIB


@linux
def test_nested_marks_do_not_blind_each_other() -> None:
    with watermark() as outer:
        touch(96)
        with watermark() as middle:
            with watermark() as inner:
                touch(8)
            touch(48)
            with watermark():
                touch(2)
    assert 95 * MIB <= outer.added_bytes <= 120 * MIB
    assert 47 * MIB <= middle.added_bytes <= 70 * MIB
    assert inner.added_bytes <= 30 * MIB


@linux
def test_an_inner_peak_counts_for_the_outer_mark() -> None:
    with watermark() as outer:
        with watermark() as inner:
            touch(96)
        with watermark():
            touch(2)
    assert outer.peak_bytes >= inner.peak_bytes >= 95 * MIB


@linux
def test_marks_that_overlap_without_nesting() -> None:
    first, second = watermark(), watermark()
    first.start()
    touch(32)
    second.start()
    touch(64)
    first.stop()
    touch(128)
    second.stop()
    assert 63 * MIB <= first.added_bytes <= 90 * MIB
    assert 127 * MIB <= second.added_bytes <= 150 * MIB


@linux
def test_the_peak_so_far() -> None:
    with watermark() as mark:
        before = mark.peak_bytes
        block = touch(48)
        assert mark.peak_bytes - before >= 40 * MIB
        assert len(block) == 48 * MIB


@linux
def test_marks_of_several_threads_see_one_process() -> None:
    held, measured = threading.Event(), threading.Event()

    def resets_again_and_again() -> None:
        held.wait(30)
        for _ in range(200):
            with watermark():
                pass
        measured.set()

    thread = threading.Thread(target=resets_again_and_again)
    with watermark() as mark:
        thread.start()
        block = touch(96)
        held.set()
        assert measured.wait(30)
        del block
        thread.join()
        with watermark():
            pass
    assert mark.added_bytes >= 90 * MIB
    assert not module._open


def test_a_mark_is_closed_when_the_block_raises() -> None:
    mark = watermark()
    with pytest.raises(ZeroDivisionError), mark:
        _ = 1 // 0
    assert not module._open
    assert mark.peak_bytes >= mark.start_bytes > 0


def test_a_mark_that_cannot_be_reset_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CLEAR_REFS", tmp_path / "no folder" / "clear_refs")
    with watermark() as mark:
        pass
    assert not mark.exact
    assert mark.peak_bytes >= mark.start_bytes > 0


def test_without_proc_there_is_still_a_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
    with watermark() as mark:
        pass
    assert mark.peak_bytes >= mark.start_bytes > 0


def test_a_mark_is_used_once_and_in_order() -> None:
    mark = Watermark()
    assert (mark.start_bytes, mark.peak_bytes, mark.exact) == (0, 0, False)
    with pytest.raises(InvalidInputError, match="not started"):
        mark.stop()
    mark.start()
    with pytest.raises(InvalidInputError, match="started before"):
        mark.start()
    mark.stop()
    with pytest.raises(InvalidInputError, match="started before"):
        mark.start()
