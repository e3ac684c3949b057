"""What people see of a profile: pictures whose words do not overlap, text that fits, nothing unescaped."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from featurestore.errors import InvalidInputError
from featurestore.profiling.canvas import Point, clean, cut, shortened, width_of
from featurestore.profiling.drawing import as_svg
from featurestore.profiling.picture import WIDTH, Picture
from featurestore.profiling.profile import profile
from featurestore.profiling.records import Phase, Sample, Span
from featurestore.profiling.sampler import Measurement
from featurestore.profiling.scales import Scale, byte_ticks, time_ticks
from featurestore.profiling.text import as_text
from featurestore.profiling.timeline import Child, Timeline

MIB = 2**20
HOSTILE = "<script>alert(1)</script> & \"'$x_1^2$ \x00\x1b[31m \ud800 ]]> %s \u00e9\u4e2d"
KINDS = ("store", "framework", "between")


def drawn(seed: int) -> Timeline:
    """Return a timeline of any shape: short and long, few phases and many, with and without spans."""
    draw = random.Random(seed)
    seconds = 10 ** draw.uniform(-2, 5)
    height = 10 ** draw.uniform(5, 11)

    def size(share: float = 1.0) -> int:
        return int(draw.uniform(0, share * height))

    samples = []
    for i in range(draw.choice([0, 1, 30, 500])):
        mapped = size(0.5)
        samples.append(
            Sample(
                i * seconds / 500, size(), mapped + size(0.1), size(0.1), mapped, size(0.2), size()
            )
        )
    phases = []
    for number in range(draw.choice([0, 1, 5, 40, 300])):
        start = draw.uniform(0, seconds)
        stop = min(seconds, start + draw.expovariate(10) * seconds)
        projected = draw.choice([0, size()])
        limit = draw.choice([0, int(height), int(2 * height), int(50 * height)])
        label = draw.choice(["x", f"summarize {number}", "a rather long name of a feature " * 5])
        kind = draw.choice(KINDS)
        phases.append(Phase(label, start, stop, kind, size(), size(), True, projected, limit))
    phases.sort(key=lambda one: one.start)
    spans = []
    for _ in range(draw.choice([0, 3, 500]) if phases else 0):
        position = draw.randrange(len(phases))
        lane = draw.randrange(draw.choice([1, 2, 40]))
        where = phases[position]
        spans.append(Span(position, lane, "p", where.start, where.stop, size()))
    return Timeline(
        Measurement(seconds, size(), size(), size(), "high-water mark", tuple(samples)),
        tuple(phases),
        draw.choice(
            [{}, {"a line": size(), "another line of a long name": size(), "third": size()}]
        ),
        tuple(spans),
        (Child(5, "python", size()),),
        draw.choice([0, int(height), int(9 * height)]),
        gpu=draw.choice(["", "own", "device"]),
    )


class Words:
    """A canvas that remembers where text is."""

    def __init__(self) -> None:
        self.boxes: list[tuple[float, float, float, float, str]] = []
        self.points: list[Point] = []

    def area(
        self, points: Sequence[Point], fill: str, *, opacity: float = 1, title: str = ""
    ) -> None:
        self.points += points

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1, dash: Sequence[float] = ()
    ) -> None:
        assert len(points) >= 2
        self.points += points

    def text(
        self, at: Point, text: str, *, size: float = 11, colour: str = "#222222",
        anchor: str = "start", bold: bool = False,
    ) -> None:  # fmt: skip
        width = width_of(text, size, bold)
        left = at[0] - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        self.boxes.append((left, at[1] - 0.75 * size, left + width, at[1], text))


@pytest.mark.parametrize("seed", range(60))
def test_no_words_overlap_and_all_is_inside(seed: int) -> None:
    picture, words = Picture(drawn(seed)), Words()
    picture.paint(words)
    boxes = [one for one in words.boxes if one[4]]
    for one in boxes:
        assert one[0] >= 0, one
        assert one[2] <= WIDTH, one
        assert one[1] >= 0, one
        assert one[3] <= picture.height, one
    for a, b in combinations(boxes, 2):
        apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
        assert apart, (a, b)
    for x, y in words.points:
        assert -1 <= x <= WIDTH + 1
        assert -1 <= y <= picture.height + 1


@pytest.mark.parametrize("seed", range(0, 60, 6))
@pytest.mark.parametrize("width", [80, 100, 140])
def test_text_fits_its_width(seed: int, width: int) -> None:
    lines = as_text(drawn(seed), width).splitlines()
    assert max(len(one) for one in lines) <= width
    assert lines[0].startswith("peak ")


def hostile() -> Timeline:
    samples = tuple(Sample(float(i), MIB * i, MIB) for i in range(5))
    return Timeline(
        Measurement(4.0, MIB, 5 * MIB, 4 * MIB, HOSTILE, samples),
        (Phase(HOSTILE, 0.0, 4.0, "store", 1, 5 * MIB, True),),
        {HOSTILE: MIB},
        (Span(0, 0, HOSTILE, 0.0, 4.0),),
        (Child(1, HOSTILE, 5),),
        ended=HOSTILE,
    )


def test_pictures_are_well_formed_and_everything_is_escaped() -> None:
    for one in (hostile(), *(drawn(seed) for seed in range(5))):
        svg = as_svg(one)
        root = ElementTree.fromstring(svg.encode())
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= {"svg", "rect", "polygon", "polyline", "text", "title"}
        assert svg.count("http") == 1  # its own name space
        assert "href" not in svg
        assert "<script" not in one._repr_html_()
    words = [element.text for element in ElementTree.fromstring(as_svg(hostile()).encode()).iter()]
    assert any(word and "<script>alert(1)" in word for word in words)


def test_text_of_hostile_names_is_plain() -> None:
    text = as_text(hostile())
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "<script>" in text


def test_a_picture_says_what_was_projected_allowed_and_taken() -> None:
    samples = tuple(Sample(float(i), 40 * MIB, 10 * MIB, MIB, 5 * MIB, 2 * MIB) for i in range(11))
    phases = (
        Phase("fine", 0.0, 5.0, "store", MIB, 50 * MIB, True, 100 * MIB, 120 * MIB),
        Phase("over", 5.0, 10.0, "framework", MIB, 90 * MIB, True, 60 * MIB, 120 * MIB),
    )
    found = Timeline(Measurement(10.0, 1, 1, 1, "high-water mark", samples), phases)
    svg = as_svg(found)
    for word in (
        "peak 87.0 MiB in over", "limit 120.0 MiB", "projected", "1.45", "0.48", "anonymous",
        "shared", "code", "children", "mapped files (not held)", "over (framework)", "seconds", "MiB",
    ):  # fmt: skip
        assert word in svg, word
    text = str(found)
    for word in ("peak 87.0 MiB in over", "limit 120.0 MiB", "1.45", "0.48", "╌", "━", "█"):
        assert word in text, word


def test_gpu_memory_has_a_panel_of_its_own() -> None:
    samples = tuple(Sample(float(i), MIB, MIB, gpu=i * MIB) for i in range(5))
    one = Timeline(Measurement(4.0, 1, 1, 1, "sampled", samples), gpu="device")
    svg = as_svg(one)
    assert "GPU memory, all processes, since the start: up to 4.0 MiB" in svg
    assert Picture(one).height > Picture(replace(one, gpu="")).height


def test_many_samples_and_tasks_make_a_picture_of_bounded_size() -> None:
    samples = tuple(Sample(i / 1000, i, i) for i in range(4000))
    spans = tuple(Span(0, i % 20, "p", i / 2000, (i + 1) / 2000) for i in range(8000))
    one = Timeline(
        Measurement(4.0, 1, 1, 1, "sampled", samples), (Phase("x", 0.0, 4.0),), {}, spans
    )
    assert len(as_svg(one)) < 1_500_000


@pytest.mark.parametrize("suffix", ["svg", "html", "png", "pdf"])
def test_pictures_are_written_by_suffix(suffix: str, tmp_path: Path) -> None:
    if suffix in ("png", "pdf"):
        pytest.importorskip("matplotlib")
    begins = {"svg": b"<svg", "html": b"<!doctype html>", "png": b"\x89PNG", "pdf": b"%PDF"}
    path = tmp_path / f"run.{suffix}"
    for one in (hostile(), Timeline(Measurement(0.0, 0, 1, 0, "sampled"))):
        one.draw(path)
        assert path.read_bytes().startswith(begins[suffix])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["run", "run.jpg", "run.json"])
def test_other_suffixes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.svg"):
        drawn(1).draw(tmp_path / name)


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        drawn(1).draw(tmp_path / "no" / "run.svg")


def test_a_notebook_shows_the_profile_itself() -> None:
    with profile() as run:
        pass
    html = run._repr_html_()
    assert html is not None
    assert html.startswith("<div><svg")
    assert "outside all steps" in html
    assert str(run).startswith("peak ")
    pytest.importorskip("matplotlib")
    png = run._repr_png_()
    assert png is not None
    assert png.startswith(b"\x89PNG")


def test_svg_and_text_need_no_matplotlib(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["matplotlib"] = None
from featurestore.errors import MissingDependencyError
from featurestore.profiling.profile import profile
with profile() as run:
    pass
assert run._repr_html_().startswith("<div><svg") and run._repr_png_() is None and str(run)
try:
    run.timeline.draw("run.png")
except MissingDependencyError as error:
    print(error.remedy)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert "featurestore[plots]" in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_worst_projection_and_the_largest_growth_are_always_said() -> None:
    phases = tuple(
        Phase(f"step {i}", float(i), i + 1.0, "store", MIB, (i + 2) * MIB, True, 100 * MIB)
        for i in range(60)
    )
    low = Phase("low but wrong", 60.0, 61.0, "store", MIB, 2 * MIB, True, MIB)
    gap = Phase("after all", 61.0, 61.1, "between", 0, 90 * MIB, True)
    one = Timeline(Measurement(61.1, 1, 1, 1, "high-water mark"), (*phases, low, gap))
    for shown in (str(one), as_svg(one)):
        assert "low but wrong" in shown
        assert "2.00" in shown
        assert "grew most after all (+90.0 MiB)" in shown
        assert "lower ones" in shown
        assert "step 59" in shown
        assert "step 3 " not in shown


def test_words_are_cut_in_the_middle() -> None:
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcdef…ijk"
    assert cut("abcdefghijk", 3) == ""
    assert clean("a\x00b\n c\ud800") == "ab c\ufffd"
    for room in range(4, 30):
        assert len(cut("x" * 100, room)) == room
        assert width_of(shortened("x" * 100, 11, 7 * room), 11) <= 7 * room


@pytest.mark.parametrize("top", [1e-3, 0.9, 1.0, 11.0, 125.0, 4e4, 1e6, 5e9, 3e13, 1e15])
@pytest.mark.parametrize("count", [2, 5, 10])
def test_ticks_are_few_round_and_inside(top: float, count: int) -> None:
    for ticks in (time_ticks(top, count), byte_ticks(top, count)):
        assert ticks.values[0] == 0
        assert all(a < b for a, b in zip(ticks.values, ticks.values[1:], strict=False))
        assert ticks.values[-1] <= top * 1.001
        assert count / 2.6 <= len(ticks.values) <= count + 2
        assert len(set(ticks.labels)) == len(ticks.labels) == len(ticks.values)


def test_a_scale_clips() -> None:
    scale = Scale(10.0, 100.0, 0.0)
    assert [scale(one) for one in (-5, 0, 5, 10, 50)] == [100, 100, 50, 0, 0]
    assert Scale(0.0, 3.0, 9.0)(5) == 3.0
