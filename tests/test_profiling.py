"""Peaks are seen, also short ones; nested measurements do not blind each other."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from featurestore.errors import InvalidInputError
from featurestore.limits import resident_bytes
from featurestore.profiling.sampler import measure
from featurestore.testing.held_memory import MIB, touch

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@linux
def test_exact_peak_of_a_block_that_is_gone_at_once() -> None:
    with measure(interval=10) as meter:
        touch(96)
    result = meter.result
    assert result.method == "high-water mark"
    assert 90 * MIB <= result.added_bytes <= 130 * MIB
    assert meter.peak_bytes == result.peak_bytes
    assert meter.seconds > 0


@linux
def test_earlier_peak_is_forgotten() -> None:
    touch(128)
    with measure() as meter:
        touch(1)
    assert meter.result.added_bytes < 40 * MIB


@linux
def test_inner_measurement_does_not_blind_the_outer_one() -> None:
    with measure(interval=10) as outer:
        touch(96)
        with measure(interval=10) as inner:
            touch(8)
        touch(4)
    assert outer.result.added_bytes >= 90 * MIB
    assert inner.result.added_bytes < 40 * MIB


@linux
def test_inner_peak_counts_for_the_outer_one() -> None:
    with measure(interval=10) as outer:
        with measure(interval=10):
            touch(96)
        with measure(interval=10):
            touch(2)
    assert outer.result.added_bytes >= 90 * MIB


@linux
def test_samples_tell_anonymous_memory_over_time() -> None:
    with measure(interval=0.005) as meter:
        time.sleep(0.15)
        block = touch(64)
        time.sleep(0.15)
    assert len(block) == 64 * MIB
    samples = meter.result.samples
    assert len(samples) >= 5
    assert [one.seconds for one in samples] == sorted(one.seconds for one in samples)
    assert samples[-1].anonymous - samples[0].anonymous >= 55 * MIB
    assert meter.result.peak_anonymous == max(one.anonymous for one in samples)
    assert samples[0].resident == samples[0].anonymous + samples[0].file_backed + samples[0].shared


@linux
def test_children_are_added_on_request() -> None:
    code = "b = bytearray(80 * 2**20); import time; time.sleep(0.4)"
    with measure(interval=0.01, children=True) as meter:
        subprocess.run([sys.executable, "-c", code], check=True)
    assert meter.result.method == "sampled"
    assert meter.result.added_bytes >= 70 * MIB


def test_result_is_there_after_an_exception_and_not_before() -> None:
    meter = measure()
    with pytest.raises(InvalidInputError, match="not ended"):
        _ = meter.result
    with pytest.raises(ZeroDivisionError), meter:
        _ = 1 // 0
    assert meter.result.peak_bytes >= meter.result.start_bytes > 0


def test_interval_is_validated() -> None:
    with pytest.raises(InvalidInputError, match="interval"):
        measure(interval=0)


def test_resident_bytes_grow_with_a_block() -> None:
    before = resident_bytes()
    block = touch(32)
    assert resident_bytes() - before >= 25 * MIB
    assert len(block) == 32 * MIB
