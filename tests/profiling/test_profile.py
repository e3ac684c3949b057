"""Profiles: every phase has its exact peak, nothing is anonymous, and a file is there whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import narwhals as nw
import pytest

import featurestore as fs
from featurestore.errors import FormatError, InvalidInputError
from featurestore.execution.events import StepFinished, TaskFinished, TaskStarted, emit, step
from featurestore.profiling.analysis import figures_of, headline, peak_of, rows_of, segments_of
from featurestore.profiling.probe import children_of
from featurestore.profiling.profile import profile
from featurestore.profiling.records import Phase, Sample, Span
from featurestore.profiling.sampler import Measurement, measure
from featurestore.profiling.sampling_process import SamplingProcess
from featurestore.profiling.timeline import Timeline
from featurestore.testing.held_memory import MIB, touch
from featurestore.testing.tables import observations

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def phase(timeline: Timeline, label: str) -> Phase:
    [found] = [one for one in timeline.phases if one.label == label]
    return found


# --- phases ----------------------------------------------------------------------------------------


@linux
def test_phases_have_exact_peaks_and_those_between_steps_too() -> None:
    with profile(interval=60) as run:
        touch(64)
        with step("first", 1):
            touch(40)
        touch(96)
        with step("second", 1, projected_bytes=7, memory_limit=9 * MIB):
            touch(56)
        touch(72)
    found = run.timeline
    added = {one.label: (one.peak_bytes - one.start_bytes) / MIB for one in found.phases}
    expected = {
        "before first": 64, "first": 40, "between first and second": 96, "second": 56,
        "after second": 72,
    }  # fmt: skip
    assert list(added) == list(expected)
    for label, size in expected.items():
        assert size - 1 <= added[label] <= size + 12, label
    assert all(one.exact for one in found.phases)
    assert [one.kind for one in found.phases] == ["between", "store"] * 2 + ["between"]
    second = phase(found, "second")
    assert (second.projected_bytes, second.memory_limit) == (7, 9 * MIB)
    assert found.ended == "finished"
    most = peak_of(found, figures_of(found))
    assert most.phase is not None
    assert most.phase.phase.label == "between first and second"
    assert found.measurement.method == "high-water mark"
    # Of the whole and of the largest phase: one peak. What was held when it began is the process'.
    highest = max(one.peak_bytes for one in found.phases)
    assert highest <= found.measurement.peak_bytes <= highest + 4 * MIB
    assert found.measurement.added_bytes / MIB >= 95


@linux
def test_every_moment_is_in_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    run, passed = profile(), 0.0

    def clock() -> float:  # stands still while the recorder works, however long that takes
        assert run._process is not None
        return run._process.began + passed

    monkeypatch.setattr("featurestore.profiling.recorder.time", SimpleNamespace(monotonic=clock))
    with run:
        for number in range(3):
            with step(f"step {number}", 1):
                passed += 0.01
            passed += 0.005
    found = run.timeline
    segments = [(start, stop) for start, stop, _ in segments_of(figures_of(found))]
    whole = [0.0, 0.01, 0.015, 0.025, 0.03, 0.04, 0.045]
    assert segments == [pytest.approx(one, abs=1e-6) for one in pairwise(whole)]
    edges = [edge for one in found.phases for edge in (one.start, one.stop)]
    assert edges == sorted(edges)


def test_a_block_without_steps_is_one_phase() -> None:
    with profile() as run:
        pass
    assert [one.label for one in run.timeline.phases] == ["outside all steps"]


@linux
def test_overlapping_steps_of_threads_see_each_others_memory() -> None:
    begun, done = threading.Event(), threading.Event()

    def other() -> None:
        with step("long", 1):
            begun.set()
            done.wait(30)

    thread = threading.Thread(target=other)
    with profile() as run:
        thread.start()
        assert begun.wait(30)
        with step("short", 1):
            touch(64)
        with step("small", 1):
            touch(2)
        done.set()
        thread.join()
    peaks = {one.label: one.peak_bytes - one.start_bytes for one in run.timeline.phases}
    assert peaks["long"] >= 63 * MIB
    assert peaks["short"] >= 63 * MIB
    assert peaks["small"] <= 30 * MIB
    assert not any("between" in label for label in peaks)


def test_tasks_become_spans_of_lanes_that_do_not_overlap() -> None:
    with profile() as run, step("work", 6) as work:
        for first in range(0, 6, 2):
            emit(TaskStarted(work.number, first, f"p{first}", 100))
            emit(TaskStarted(work.number, first + 1, f"p{first + 1}", 200))
            emit(TaskFinished(work.number, first + 1))
            emit(TaskFinished(work.number, first))
        with work.task(6, "last"):
            pass
        emit(TaskStarted(work.number, 7, "left open"))
        emit(TaskFinished(10**9, 1))
        emit(StepFinished(10**9))
    spans = run.timeline.spans
    assert [one.label for one in spans] == [*(f"p{i}" for i in range(6)), "last", "left open"]
    assert {one.bytes for one in spans} == {0, 100, 200}
    assert {one.lane for one in spans} == {0, 1}
    for lane in (0, 1):
        of_lane = [one for one in spans if one.lane == lane]
        assert all(a.stop <= b.start for a, b in pairwise(of_lane))
    assert {run.timeline.phases[one.phase].label for one in spans} == {"work"}


@linux
def test_nested_profiles_do_not_blind_each_other() -> None:
    with profile() as outer:
        with step("before", 1):
            touch(80)
        with profile() as inner, step("inside", 1):
            touch(24)
    assert outer.timeline.measurement.added_bytes >= 79 * MIB
    assert inner.timeline.measurement.added_bytes <= 40 * MIB
    labels = [one.label for one in outer.timeline.phases if one.kind == "store"]
    assert labels == ["before", "inside"]
    assert [one.label for one in inner.timeline.phases if one.kind == "store"] == ["inside"]


def test_framework_phases_are_told_apart() -> None:
    with profile() as run, run.phase("train"), step("write pack", 1):
        pass
    kinds = {one.label: one.kind for one in run.timeline.phases}
    assert kinds["train"] == "framework"
    assert kinds["write pack"] == "store"
    with pytest.raises(InvalidInputError, match="kind='other'"), run.phase("x", "other"):
        pass
    with pytest.raises(InvalidInputError, match="cannot be called 5"), run.phase(5):  # type: ignore[arg-type]
        pass
    with pytest.raises(InvalidInputError, match="5 is no path"):
        profile(5)  # type: ignore[arg-type]


@linux
def test_a_real_build_has_steps_projections_and_partitions(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", memory_limit="2GiB", workers=2)
    path = tmp_path / "run.json"
    with fs.profile(path, memory_limit="3GiB") as run:
        table = store.ingest("rows", observations(300), key="k", time="t", partition_bytes=2500)
        table.add(fs.Expression(double=nw.col("x") * 2))
    found = Timeline.load(path)
    assert found == run.timeline
    assert found.memory_limit == 3 * 2**30
    double = phase(found, "double")
    assert double.memory_limit == 2 * 2**30
    assert double.projected_bytes > 0
    spans = [one for one in found.spans if found.phases[one.phase].label == "double"]
    assert sum(one.count for one in spans) == table.partitions > 2
    assert all(one.bytes > 0 for one in spans)
    ingested = [one for one in found.phases if one.label.startswith("ingest rows")]
    assert len(ingested) > 1
    assert all(one.projected_bytes > 0 for one in ingested)
    assert list(tmp_path.iterdir()) == [path]


# --- what the sampler sees ------------------------------------------------------------------------


@linux
def test_children_count_and_sampling_processes_do_not() -> None:
    code = "b = bytearray(80 * 2**20); import time; time.sleep(1.5)"
    others = set(children_of(os.getpid()))  # of tests before, as multiprocessing's
    with profile(interval=0.01) as run, measure(interval=0.01):
        subprocess.run([sys.executable, "-c", code], check=True)
    found = run.timeline
    (child,) = [one for one in found.children if one.pid not in others]
    assert 80 * MIB <= child.peak_bytes <= 160 * MIB
    most = max(one.children for one in found.measurement.samples)
    assert child.peak_bytes <= most <= sum(one.peak_bytes for one in found.children)
    figures = figures_of(found)
    assert peak_of(found, figures).held_bytes >= 80 * MIB + found.measurement.start_bytes // 2


@linux
def test_a_forked_child_counts_with_its_own_pages_only() -> None:
    code = """
import os, time
from featurestore.profiling.profile import profile
block = bytearray(96 * 2**20)
with profile(interval=0.01) as run:
    for size in (1, 48):
        child = os.fork()
        if not child:
            own = bytearray(size * 2**20)
            time.sleep(1)
            os._exit(0)
        os.waitpid(child, 0)
peaks = sorted(one.peak_bytes // 2**20 for one in run.timeline.children)
assert len(peaks) == 2 and peaks[0] <= 20 and 45 <= peaks[1] <= 70, peaks
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@linux
def test_mapped_data_is_told_from_code_and_does_not_count(tmp_path: Path) -> None:
    code = """
import mmap, sys, time
from featurestore.profiling.profile import profile
with profile(interval=0.01) as run:
    with open(sys.argv[1], "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    total = sum(data[::4096])
    time.sleep(1.5)
last = run.timeline.measurement.samples[-1]
assert last.mapped >= 60 * 2**20, last
assert last.code >= 2**20, last
assert last.held <= last.resident - last.mapped, last
"""
    (tmp_path / "data").write_bytes(bytes(64 * MIB))
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


@linux
@pytest.mark.parametrize("own", [True, False])
def test_gpu_memory_is_read_where_nvml_is(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getpid() if own else 1
    (tmp_path / "pynvml.py").write_text(
        f"""
import types
reads = [0]
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(i): return i
def nvmlDeviceGetComputeRunningProcesses(d):
    return [types.SimpleNamespace(pid={pid}, usedGpuMemory=1000 + d),
            types.SimpleNamespace(pid={pid}, usedGpuMemory=None)]
def nvmlDeviceGetMemoryInfo(d):
    reads[0] += 1
    return types.SimpleNamespace(used=500 if reads[0] <= 2 else 800)
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with profile() as run:
        time.sleep(0.2)
    assert run.timeline.gpu == ("own" if own else "device")
    assert max(one.gpu for one in run.timeline.measurement.samples) == (2001 if own else 600)


@linux
@pytest.mark.parametrize("body", ["raise OSError('no driver')", "nvmlInit = 3", "1 +"])
def test_a_broken_nvml_is_no_gpu(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    with profile() as run:
        time.sleep(0.1)
    assert run.timeline.gpu == ""
    assert len(run.timeline.measurement.samples) >= 1


# --- whatever happens -------------------------------------------------------------------------------


def test_a_block_that_raises_is_recorded(tmp_path: Path) -> None:
    def fails() -> None:
        with step("work", 3):
            raise KeyError("no")

    with pytest.raises(KeyError), profile(tmp_path / "run.json"):
        fails()
    found = Timeline.load(tmp_path / "run.json")
    assert found.ended == "raised KeyError"
    assert phase(found, "work").stop <= found.measurement.seconds + 0.1


@pytest.mark.parametrize(("code", "ended"), [(0, "finished"), (3, "exited with 3")])
def test_an_exit_says_how(code: int, ended: str) -> None:
    run = profile()
    with pytest.raises(SystemExit), run:
        sys.exit(code)
    assert run.timeline.ended == ended


@linux
def test_a_killed_process_leaves_its_profile(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from featurestore.execution.events import step
from featurestore.profiling.profile import profile
with profile(sys.argv[1], interval=0.01), step("deadly", 1) as work, work.task(0, "p00007", 5):
    block = b"x" * (64 * 2**20)
    time.sleep(1.5)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "run.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    found = Timeline.load(path)
    assert found.ended == "killed"
    assert headline(found, peak_of(found, figures_of(found))).endswith(
        "in deadly, while p00007 ran"
    )
    assert phase(found, "deadly").peak_bytes >= 64 * MIB
    assert list(tmp_path.iterdir()) == [path]


@linux
def test_an_interrupt_of_the_group_leaves_the_sampling_process_to_its_work(tmp_path: Path) -> None:
    code = """
import os, signal, sys, time
from featurestore.profiling.profile import profile
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts with &
try:
    with profile(sys.argv[1]):
        time.sleep(0.2)
        os.killpg(0, signal.SIGINT)
        time.sleep(5)
except KeyboardInterrupt:
    pass
"""
    path = tmp_path / "run.json"
    subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[2], check=True, start_new_session=True,
    )  # fmt: skip
    assert Timeline.load(path).ended == "raised KeyboardInterrupt"


@linux
def test_a_sampling_process_that_dies_does_not_stop_the_work(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("old")
    run = profile(tmp_path / "run.json")

    def works_on() -> None:
        with run:
            assert run._process is not None
            run._process._process.kill()
            run._process._process.wait()
            for number in range(1000):  # more than a pipe holds
                with step(f"step {number}", 1):
                    pass

    with pytest.warns(RuntimeWarning, match="did not end well"):
        works_on()
    assert (tmp_path / "run.json").read_text() == "old"
    with pytest.raises(InvalidInputError, match="no timeline"):
        _ = run.timeline


@linux
def test_a_meter_without_its_sampling_process_has_the_exact_peak() -> None:
    with measure() as meter:
        assert meter._process is not None
        meter._process._process.kill()
        touch(64)
    assert meter.result.method == "high-water mark"
    assert meter.result.added_bytes >= 63 * MIB
    assert meter.result.samples == ()


def test_events_of_threads_that_go_on_after_the_block_are_let_go() -> None:
    run, stop = profile(), threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                with step("work", 1) as advance, advance.task(0, "p"):
                    advance(1)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test reports it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    with run:
        for one in threads:
            one.start()
        time.sleep(0.1)
    stop.set()
    for one in threads:
        one.join()
    assert not failures
    assert any(one.label == "work" for one in run.timeline.phases)


@pytest.mark.parametrize("place", ["", "no folder/run.json"])
def test_a_file_that_cannot_be_written_is_refused_before_the_block(
    place: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        profile(tmp_path / place)
    assert not list(tmp_path.iterdir())


def test_only_files_are_written_anew(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link.json", tmp_path / "target.json"
    os.mkfifo(pipe)
    with pytest.raises(InvalidInputError, match="no file but a device"):
        profile(pipe)
    link.symlink_to(target)
    with profile(link) as run:
        pass
    with pytest.raises(InvalidInputError, match="pipe is no file"):
        run.timeline.save(pipe)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert Timeline.load(target).phases == run.timeline.phases
    assert sorted(tmp_path.iterdir()) == [link, pipe, target]


def test_a_profile_is_used_once_and_in_order() -> None:
    run = profile()
    with pytest.raises(InvalidInputError, match="no timeline"):
        _ = run.timeline
    assert str(run) == "a profile in progress"
    assert run._repr_html_() is None
    with run:
        pass
    with pytest.raises(InvalidInputError, match="used before"), run:
        pass
    with pytest.raises(InvalidInputError, match="interval"):
        profile(interval=0)
    with pytest.raises(InvalidInputError, match="number of bytes"):
        profile(memory_limit="lots")


def test_labels_of_any_length_and_kind_survive() -> None:
    label = "\u00e9\u4e2d\n\x00<b>&" * 100
    with profile() as run, step(label, 1) as work, work.task(0, label):
        pass
    assert label[:200] in {one.label for one in run.timeline.phases}
    [span] = run.timeline.spans
    assert span.label == label[:200]


def test_telling_after_the_end_does_nothing() -> None:
    process = SamplingProcess(0.02, children=False)
    assert process.end()
    process.tell("head", {})


# --- files ---------------------------------------------------------------------------------------


def timeline() -> Timeline:
    samples = tuple(Sample(i / 10, i * MIB, 3 * MIB, MIB, MIB, 2 * MIB, 5) for i in range(10))
    return Timeline(
        Measurement(1.0, MIB, 20 * MIB, 9 * MIB, "sampled", samples),
        (
            Phase("read \u00e9", 0.1, 0.5, "store", 1, 2, True, 3, 4, 5),
            Phase("train", 0.3, 0.4, "framework"),
        ),
        {"other": 30 * MIB},
        (Span(1, 0, "p0", 0.3, 0.35, 9, 2),),
        memory_limit=40 * MIB,
        ended="raised ValueError",
        gpu="own",
    )


def test_a_timeline_survives_saving(tmp_path: Path) -> None:
    one = timeline()
    one.save(tmp_path / "run.json")
    assert Timeline.load(tmp_path / "run.json") == one
    assert list(tmp_path.iterdir()) == [tmp_path / "run.json"]


def test_files_of_the_first_format_load() -> None:
    found = Timeline.from_json(
        {
            "format": 1, "seconds": 1.5, "start_bytes": 1, "peak_bytes": 9, "peak_anonymous": 5,
            "method": "sampled", "samples": [[0.5, 4, 2, 1]], "phases": [["read", 0.1, 0.5]],
            "lines": {"limit": 30},
        }
    )  # fmt: skip
    assert found.measurement.samples == (Sample(0.5, 4, 2, 1),)
    assert found.phases == (Phase("read", 0.1, 0.5),)
    assert found.lines == {"limit": 30}
    assert peak_of(found, figures_of(found)).held_bytes == 7
    assert "read" in str(found)


def test_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        Timeline.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 99}', "[" * 100_000, "\x00"]
)
def test_other_files_are_no_timelines(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FormatError):
        Timeline.load(tmp_path / "x.json")


BROKEN: list[tuple[str, object]] = [
    ("seconds", -1), ("seconds", "1"), ("seconds", float("nan")), ("seconds", True),
    ("start_bytes", 1.5), ("peaks", []), ("samples", [[1]]), ("samples", [[1.0, "x", 2]]),
    ("samples", [[2.0, 1, 1], [1.0, 1, 1]]), ("samples", [[1.0, 1, 1, 1, 5]]),
    ("samples", [[1.0, 1, 1, 1, 0, 1, 1, 1]]), ("samples", [[float("inf"), 1, 1]]),
    ("samples", 5), ("phases", [{}]), ("phases", [["a", 1, 2]]), ("spans", [{"phase": 7}]),
    ("lines", {"a": -1}), ("lines", []), ("children", [3]), ("memory_limit", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("member", "value"), BROKEN, ids=[f"{i}-{one[0]}" for i, one in enumerate(BROKEN)]
)
def test_a_broken_member_is_refused(member: str, value: object) -> None:
    whole = json.loads(json.dumps(timeline().to_json()))
    assert Timeline.from_json(whole) == timeline()
    with pytest.raises(FormatError):
        Timeline.from_json({**whole, member: value})


@pytest.mark.parametrize(
    "member",
    sorted(timeline().to_json()),
    ids=lambda one: f"without-{one}",  # "gpu" alone would be a mark
)
def test_a_missing_member_is_refused(member: str) -> None:
    whole = timeline().to_json()
    del whole[member]
    with pytest.raises(FormatError):
        Timeline.from_json(whole)


def test_phases_and_spans_are_checked() -> None:
    whole = json.loads(json.dumps(timeline().to_json()))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("phases", {"stop": 0.0}), ("phases", {"peak_bytes": -5}), ("phases", {"count": "2"}),
        ("spans", {"phase": 2}), ("spans", {"start": 9.0}),
    ]  # fmt: skip
    for member, changed in cases:
        first, *rest = whole[member]
        broken = {**whole, member: [{**first, **changed}, *rest]}
        with pytest.raises(FormatError):
            Timeline.from_json(broken)


# --- analysis --------------------------------------------------------------------------------------


def flat(held: int, phases: tuple[Phase, ...], **more: int) -> Timeline:
    samples = tuple(Sample(i / 10, held, 0, **more) for i in range(101))
    return Timeline(Measurement(10.0, held, held, held, "sampled", samples), phases)


def test_a_spike_between_samples_shows_in_its_phase() -> None:
    spiky = Phase("spiky", 5.01, 5.02, peak_bytes=99, exact=True)
    found = flat(10, (Phase("calm", 0.0, 5.0, peak_bytes=12), spiky))
    peak = peak_of(found, figures_of(found))
    assert peak.held_bytes == 99
    assert peak.phase is not None
    assert peak.phase.phase is spiky
    assert 5.01 <= peak.seconds <= 5.02


def test_mapped_memory_is_taken_off_exact_peaks_but_children_are_added() -> None:
    phases = (Phase("load", 0.0, 10.0, peak_bytes=100, exact=True),)
    samples = tuple(Sample(float(i), 20, 60, 0, 50, 7) for i in range(11))
    found = Timeline(Measurement(10.0, 1, 100, 20, "sampled", samples), phases)
    [figures] = figures_of(found)
    assert figures.held_bytes == 100 - 50 + 7


def test_the_innermost_phase_and_the_largest_task_are_named() -> None:
    phases = (
        Phase("train", 0.0, 10.0, "framework", peak_bytes=10),
        Phase("write pack", 2.0, 9.0, peak_bytes=10),
    )
    samples = tuple(Sample(float(i), 10 if i == 4 else 5, 0) for i in range(11))
    spans = (
        Span(1, 0, "p1", 3.0, 5.0, 5),
        Span(1, 1, "p2", 3.0, 6.0, 50),
        Span(1, 0, "p3", 6.0, 7.0),
    )
    found = Timeline(Measurement(10.0, 1, 10, 10, "sampled", samples), phases, {}, spans)
    peak = peak_of(found, figures_of(found))
    assert headline(found, peak) == "peak 10 B in write pack, while p2 and 1 more ran"
    assert [(start, stop, one.phase.label) for start, stop, one in segments_of(figures_of(found))] == [
        (0.0, 2.0, "train"), (2.0, 9.0, "write pack"), (9.0, 10.0, "train"),
    ]  # fmt: skip


def test_rows_join_equal_names_and_short_gaps() -> None:
    phases = (
        Phase("before a", 0.0, 0.1, "between", peak_bytes=5),
        Phase("a", 0.1, 1.0, peak_bytes=10, projected_bytes=20),
        Phase("between a and a", 1.0, 1.1, "between", peak_bytes=6),
        Phase("a", 1.1, 3.0, peak_bytes=30, projected_bytes=40, count=2),
        Phase("between a and b", 3.0, 9.0, "between", peak_bytes=7),
        Phase("b", 9.0, 9.9, peak_bytes=8),
        Phase("after b", 9.9, 10.0, "between", peak_bytes=31),
    )
    found = rows_of(flat(0, phases), figures_of(flat(0, phases)))
    assert [(one.label, one.count, one.held_bytes) for one in found] == [
        ("between steps", 2, 6), ("a", 3, 30), ("between a and b", 1, 7), ("b", 1, 8),
        ("after b", 1, 31),
    ]  # fmt: skip
    assert found[1].ratio == 0.75
    assert found[1].seconds == pytest.approx(2.8)
