"""The report of training runs: what run folders and recordings say, in a file and in a real browser."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("xgboost")

import featurestore as fs
from featurestore.errors import CorruptionError, FormatError
from featurestore.profiling.records import Phase, Sample
from featurestore.profiling.sampler import Measurement
from featurestore.profiling.timeline import Timeline
from training import fit
from training.cli import main
from training.run_report import POINTS, curves, memory_facts, report, run_facts, thinned

HARM = "</script><img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, ``shallow`` and ``deep``, of a table with a planted signal."""
    made = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    x = random.normal(size=600)
    frame = pl.DataFrame({"t": range(600), "x": x, "y": x + random.normal(size=600) > 0})
    fs.FeatureStore.create(made / "store", workers=1).ingest("rows", frame, time="t")
    for name, depth in (("shallow", 1), ("deep", 4)):
        config = {
            "data": {
                "store": str(made / "store"),
                "table": "rows",
                "features": ["x"],
                "label": "y",
            },
            "split": {"kind": "time", "valid": 400, "test": 500},
            "model": {"kind": "xgboost", "params": {"max_depth": depth, "nthread": 1}},
            "train": {"epochs": 6, "cache": str(made / "packs")},
        }
        fit(config, made / name)
    return made


@pytest.fixture(scope="module")
def recording(folder: Path) -> Path:
    samples = tuple(Sample(one / 10, (100 + one % 7) * 2**20, 0, mapped=0) for one in range(3000))
    measurement = Measurement(300.0, 100 * 2**20, 106 * 2**20, 0, "sampled", samples)
    phase = Phase(HARM, 1.0, 2.5, peak_bytes=106 * 2**20, projected_bytes=120 * 2**20)
    path = folder / "memory.json"
    Timeline(measurement, (phase,), memory_limit=2**30).save(path)
    return path


def test_a_run_is_told_as_its_folder_says(folder: Path) -> None:
    found = run_facts(folder / "deep")
    metrics = json.loads((folder / "deep" / "metrics.json").read_text())
    assert found.name == "deep"
    assert found.task == metrics["task"]
    assert found.parts["valid"]["auc"] == metrics["parts"]["valid"]["auc"]
    assert dict(found.figures)["epochs"] == 6
    assert dict(found.configuration)["model.params.max_depth"] == "4"
    assert dict(found.configuration)["data.features"] == "x"
    assert dict(found.environment)["packages.featurestore"]
    assert dict(found.memory)["fit_peak"] > 0
    with (folder / "deep" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_name = {one.name: one.points for one in found.curves}
    assert set(by_name) == set(rows[0]) - {"epoch"}
    for name, points in by_name.items():
        assert points == tuple((at + 1, float(row[name])) for at, row in enumerate(rows))


def test_what_is_no_number_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,loss\n0,1.5\n1,nan\n2,\n3,inf\n4,0.5\n")
    (found,) = curves(tmp_path / "history.csv")
    assert found.points == ((1, 1.5), (2, None), (3, None), (4, None), (5, 0.5))
    (tmp_path / "history.csv").write_text("epoch,loss\n")
    assert curves(tmp_path / "history.csv") == ()


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=300), st.integers(2, 60))
def test_thinned_curves_keep_order_and_extremes(values: list[float | None], most: int) -> None:
    points = [(float(at), value) for at, value in enumerate(values)]
    found = thinned(points, most)
    assert len(found) <= most
    assert list(found) == sorted(found, key=lambda one: one[0])
    assert set(found) <= set(points)
    known = [one for one in values if one is not None]
    kept = [one for _, one in found if one is not None]
    assert not known or (min(kept), max(kept)) == (min(known), max(known))
    assert len(points) > most or list(found) == points


def test_recorded_memory_is_told(recording: Path) -> None:
    found = memory_facts(recording)
    assert (found.name, found.ended, found.limit) == ("memory.json", "finished", 2**30)
    (held,) = found.curves
    assert len(held.points) <= POINTS
    assert max(value or 0 for _, value in held.points) == 106 * 2**20
    assert found.phases == ((HARM, 1.0, 2.5, 106 * 2**20, 120 * 2**20),)


def test_what_is_no_run_or_recording_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptionError, match=r"run\.json cannot be read"):
        report([tmp_path], tmp_path / "out.html")
    broken = tmp_path / "broken"
    shutil.copytree(folder / "deep", broken)
    (broken / "history.csv").write_text("epoch,loss\n0,much\n")
    with pytest.raises(CorruptionError, match=r"history\.csv cannot be read"):
        report([broken], tmp_path / "out.html")
    with pytest.raises(FormatError):
        report([folder / "deep"], tmp_path / "out.html", [folder / "deep" / "config.json"])
    assert not (tmp_path / "out.html").exists()


def test_the_command_writes_it(folder: Path, recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs.html"
    named = [str(folder / "shallow"), str(folder / "deep"), "-o", str(out)]
    done = CliRunner().invoke(main, ["report", *named, "--timeline", str(recording)])
    assert (done.exit_code, done.output) == (0, f"{out}\n")
    found = re.search(r'id="data">(.*?)</script>', out.read_text("utf-8"), re.S)
    assert found is not None
    data = json.loads(found[1])
    assert [one["name"] for one in data["runs"]] == ["shallow", "deep"]
    assert [one["name"] for one in data["timelines"]] == ["memory.json"]
    done = CliRunner().invoke(main, ["report", str(tmp_path / "none"), "-o", str(out)])
    assert done.exit_code == 1
    assert "name folders that training.fit made" in done.output


@pytest.mark.parametrize("device", [{}, {**PHONE, "color_scheme": "dark"}], ids=["desk", "phone"])
def test_runs_are_compared_in_a_browser(
    look: Callable[..., Any], folder: Path, recording: Path, tmp_path: Path, device: Any
) -> None:
    odd = tmp_path / "<img src=x onerror=alert(2)>"
    shutil.copytree(folder / "deep", odd)
    path = report([folder / "shallow", folder / "deep", odd], tmp_path / "runs.html", [recording])
    with look(path, **device) as seen:
        assert seen.text("h1") == "Training runs"
        names = seen.page.locator("tr.opens td:first-child").all_inner_texts()
        assert [one.strip() for one in names] == ["shallow", "deep", odd.name]
        assert seen.count("svg.lines") >= 2
        measures = len({one.name.removeprefix("val_") for one in run_facts(odd).curves})
        assert seen.count("svg.lines") == measures + 1
        seen.page.get_by_label("Search runs").fill("shallow")
        assert seen.count("tr.opens") == 1
        seen.page.locator("tr.opens button").click()
        detail = seen.page.locator("tr.detail").inner_text()
        for words in ("model.params.max_depth", "packages.featurestore", "fit_peak", "auc"):
            assert words in detail
        assert HARM in seen.page.locator("section").last.inner_text()
        assert seen.count("img") == 0
        assert seen.overflow() == 0


def test_curves_are_drawn_where_their_numbers_are(
    look: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    shutil.copytree(folder / "deep", one)
    (one / "history.csv").write_text("epoch,loss\n0,4\n1,\n2,2\n3,0\n")
    path = report([one], tmp_path / "runs.html")
    with look(path) as seen:
        drawn = str(seen.page.locator("svg.lines path.curve").get_attribute("d"))
        marks = re.findall(r"([ML])([\d.]+) ([\d.]+)", drawn)
        found = [(kind, float(x), float(y)) for kind, x, y in marks]
        thirds = 1000 / 3
        expected = [("M", 0, 3), ("M", 2 * thirds, 100), ("L", 1000, 197)]
        for (kind, x, y), (kind2, x2, y2) in zip(found, expected, strict=True):
            assert kind == kind2
            assert math.isclose(x, x2, abs_tol=0.1)
            assert math.isclose(y, y2, abs_tol=0.1)
