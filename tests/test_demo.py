"""The demo on a sample of the real flights: it runs, touches nothing it need not, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from featurestore.errors import NameTakenError

# Saving a Keras model under NumPy 2.4 warns inside Keras.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")


def test_the_demo_runs_on_a_sample(tmp_path: Path) -> None:
    from training.demo import command

    folder = tmp_path / "out"
    arguments = ["--output", str(folder), "--rows", "20000", "--epochs", "1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Adding weather touched 0 of" in result.output
    steps = json.loads((folder / "demo.json").read_text())["steps"]
    assert [one["name"] for one in steps] == [
        "ingest weather",
        "ingest flights",
        "add history",
        "train without weather",
        "add weather",
        "train with weather",
    ]
    assert steps[0]["rows"] == 26_115
    assert steps[1]["rows"] >= 20_000
    assert steps[1]["partitions"] > 1 or steps[1]["rows"] < 40_000
    assert all(one["seconds"] > 0 and one["peak_bytes"] > 0 for one in steps)
    assert all(0.5 < one["auc"] < 1 for one in steps if one["auc"] is not None)
    for run in ("without-weather", "with-weather"):
        made = {one.name for one in (folder / "runs" / run).iterdir()}
        assert {"model.keras", "config.json", "metrics.json", "curves.png", "run.json"} <= made
    # Again in the same folder: the demo replaces what it made.
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert again.exit_code == 0


def test_the_demo_does_not_delete_what_it_did_not_make(tmp_path: Path) -> None:
    from training.demo import run_demo

    (tmp_path / "thesis.tex").write_text("five years of work")
    with pytest.raises(NameTakenError, match="was not made by the demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
