"""A recording stays small however long it runs, and forgets no peak."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import featurestore
from featurestore.profiling import recording as module
from featurestore.profiling.analysis import figures_of, peak_of
from featurestore.profiling.recording import KILLED, MAX_CHILDREN, Recording
from featurestore.profiling.records import Sample
from featurestore.profiling.timeline import Timeline

MIB = 2**20
HEAD = {"seconds": 9.0, "start_bytes": 1, "peak_bytes": 2, "method": "sampled", "memory_limit": 0}


def row(seconds: float, anonymous: int, **more: int) -> Sample:
    fields = {"file_backed": 0, "shared": 0, "mapped": 0, "children": 0, "gpu": 0, **more}
    return Sample(seconds, anonymous, **fields)


def through_json(recording: Recording, seconds: float = 9.0) -> Timeline:
    return Timeline.from_json(json.loads(json.dumps(recording.to_json(seconds))))


def begin(recording: Recording, number: int, start: float, **more: Any) -> None:
    recording.tell(
        ["phase", number, {"label": f"phase {number}", "kind": "store", "start": start, **more}]
    )


def end(recording: Recording, number: int, stop: float, peak: int = 0) -> None:
    recording.tell(["phase ends", number, {"stop": stop, "peak_bytes": peak, "exact": True}])


@pytest.mark.parametrize("count", [0, 1, 7, 50, 51, 101, 999, 5000])
def test_thinning_keeps_the_highest_sample_and_the_peak_of_each_band(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SAMPLES", 50)
    print("seed", count)
    draw = random.Random(count)
    rows = [
        row(i, draw.randrange(10**6), children=draw.randrange(10**6), gpu=draw.randrange(10**6))
        for i in range(count)
    ]
    recording = Recording()
    for one in rows:
        recording.add_sample(one)
    found = recording.to_json(float(count))
    kept = [Sample(*one) for one in found["samples"]]
    assert len(kept) <= 50
    assert len(kept) >= min(count, 25)
    assert set(kept) <= set(rows)
    assert kept == sorted(kept)
    assert found["readings"] == count
    if rows:
        assert max(one.held for one in kept) == max(one.held for one in rows)
        for name in ("anonymous", "children", "gpu"):
            assert found["peaks"][name] == max(getattr(one, name) for one in rows)


def test_thinning_is_even_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SAMPLES", 64)
    recording = Recording()
    for i in range(10_000):
        recording.add_sample(row(i, i % 7))
    moments = [one[0] for one in recording.to_json(1e4)["samples"]]
    gaps = [b - a for a, b in pairwise(moments)]
    assert max(gaps) <= 2 * 10_000 / 32
    assert moments[-1] >= 10_000 - 2 * 10_000 / 32


def test_what_the_kernel_can_take_back_is_not_held() -> None:
    one = Sample(0.0, 10, 20, 3, 15, 4, 7)
    assert one.held == 10 + 20 + 3 - 15 + 4


def test_phases_are_joined_and_keep_the_highest_of_their_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PHASES", 8)
    recording = Recording()
    peaks = [random.Random(4).randrange(100, 1000) for _ in range(100)]
    for i, peak in enumerate(peaks):
        begin(recording, i, float(i), start_bytes=i)
        recording.tell(
            ["span", f"{i}", {"phase": i, "lane": 0, "label": f"p{i}", "start": i + 0.1}]
        )
        recording.tell(["span ends", f"{i}", i + 0.9])
        end(recording, i, i + 1.0, peak)
    found = through_json(recording, 100.0)
    assert len(found.phases) <= 8
    assert sum(one.count for one in found.phases) == 100
    assert max(one.peak_bytes for one in found.phases) == max(peaks)
    assert peak_of(found, figures_of(found)).held_bytes == max(peaks)
    assert (found.phases[0].start, found.phases[-1].stop) == (0.0, 100.0)
    for span in found.spans:
        phase = found.phases[span.phase]
        assert phase.start <= span.start <= span.stop <= phase.stop


def test_spans_are_joined_within_a_phase_and_a_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SPANS", 40)
    recording = Recording()
    begin(recording, 1, 0.0)
    for i in range(1000):
        fields = {
            "phase": 1,
            "lane": i % 3,
            "label": f"p{i}",
            "start": i // 3,
            "bytes": i * 7 % 500,
        }
        recording.tell(["span", f"{i}", fields])
        recording.tell(["span ends", f"{i}", i // 3 + 0.5])
    end(recording, 1, 400.0)
    found = through_json(recording, 400.0)
    assert len(found.spans) <= 40
    assert sum(one.count for one in found.spans) == 1000
    assert max(one.bytes for one in found.spans) == max(i * 7 % 500 for i in range(1000))
    for lane in range(3):
        spans = [one for one in found.spans if one.lane == lane]
        assert all(a.stop <= b.start for a, b in pairwise(spans))


def test_the_longest_spans_are_kept_where_no_two_can_be_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_SPANS", 20)
    recording = Recording()
    for i in range(100):
        begin(recording, i, float(i))
        recording.tell(["span", f"{i}", {"phase": i, "lane": 0, "label": "p", "start": float(i)}])
        recording.tell(["span ends", f"{i}", i + (0.9 if i == 50 else 0.1)])
        end(recording, i, i + 1.0)
    found = through_json(recording, 100.0)
    assert len(found.spans) <= 20
    assert max(one.stop - one.start for one in found.spans) == pytest.approx(0.9)


def test_the_largest_children_are_kept() -> None:
    recording = Recording()
    for pid in range(5 * MAX_CHILDREN):
        recording.add_child(pid, pid * 10, lambda: "python")
        recording.add_child(pid, 1, lambda: "other name")
    found = through_json(recording).children
    assert len(found) == MAX_CHILDREN
    assert (found[0].pid, found[0].name) == (5 * MAX_CHILDREN - 1, "python")
    assert found[0].peak_bytes == (5 * MAX_CHILDREN - 1) * 10


def test_what_is_open_when_the_process_is_gone_ends_with_it() -> None:
    recording = Recording()
    recording.tell(["head", {"memory_limit": 5 * MIB, "lines": {"a": 1}}])
    begin(recording, 1, 0.0, start_bytes=1)
    recording.tell(
        ["span", "1 0", {"phase": 1, "lane": 0, "label": "p0", "start": 0.5, "bytes": 3}]
    )
    recording.add_sample(row(1.0, 4 * MIB, file_backed=MIB))
    found = through_json(recording, 2.0)
    assert found.ended == KILLED
    assert (found.phases[0].stop, found.phases[0].peak_bytes) == (2.0, 5 * MIB)
    assert not found.phases[0].exact
    assert (found.spans[0].label, found.spans[0].stop) == ("p0", 2.0)
    assert found.measurement.peak_bytes == 5 * MIB
    assert found.memory_limit == 5 * MIB
    assert found.lines == {"a": 1}


def test_a_phase_that_is_dropped_leaves_nothing() -> None:
    recording = Recording()
    recording.tell(["head", HEAD])
    begin(recording, -1, 0.0)
    recording.tell(["phase drops", -1])
    begin(recording, 1, 0.0)
    end(recording, 1, 1.0)
    assert [one.label for one in through_json(recording).phases] == ["phase 1"]


def test_the_sampling_process_loads_no_library() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1]); import featurestore.profiling.probe; "
        "print(*sorted({one.partition('.')[0] for one in sys.modules}))"
    )
    root = str(Path(featurestore.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=True
    )
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert foreign == {"__main__", "featurestore"}
