"""Runs beside each other: sorted, and whatever is wrong with one is said in its line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError, NotFoundError
from training import cli
from training.config import RunConfig
from training.durable import write_json
from training.run_folder import seal
from training.run_list import RunList, list_runs
from training.unfinished import Unfinished

FILES = ("run.json", "config.json", "metrics.json")
CONFIG: dict[str, Any] = {
    "data": {"store": "golden", "table": "flights", "features": ["x"], "label": "late"},
    "split": {"kind": "time", "valid": 2000, "test": 2500},
    "model": {"kind": "xgboost"},
}


def made(folder: Path, name: str, *, created: str = "2026-01-01", **valid: float | None) -> Path:
    """Make a run folder with the metrics of a validation part."""
    path = folder / name
    path.mkdir(parents=True)
    write_json(path / "config.json", RunConfig.from_mapping(CONFIG).to_json())
    parts = {"train": {"rows": 9.0, "loss": 0.5}, "valid": {"rows": 3.0, **valid}}
    facts = {"task": "binary", "parts": parts, "epochs": 4, "seconds": 1.25}
    write_json(path / "metrics.json", facts)
    seal(path, {"snapshot": "3-abc"})
    info = json.loads((path / "run.json").read_text())
    write_json(path / "run.json", {**info, "created": created})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    made(runs, "b", created="2026-01-02T00:00:00+00:00", loss=0.3, auc=0.7)
    made(runs, "a", created="2026-01-03T00:00:00+00:00", loss=0.4, auc=0.9)
    made(runs, "c", created="2026-01-01T00:00:00+00:00", loss=0.2, auc=None)
    return runs


def names(found: RunList) -> list[str]:
    return [one.name for one in found.runs]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("created", "abc"), ("name", "abc"), ("auc", "abc"), ("loss", "cba"),
        ("valid.loss", "cba"), ("train.loss", "abc"), ("seconds", "abc"),
    ],
)  # fmt: skip
def test_runs_are_sorted_the_best_first_and_those_that_lack_it_last(
    folder: Path, sort: str, expected: str
) -> None:
    assert names(list_runs(folder, sort)) == list(expected)


def test_a_line_says_what_the_files_say(folder: Path) -> None:
    first = list_runs(folder).runs[0]
    assert (first.state, first.table, first.model, first.task) == (
        "complete", "flights", "xgboost", "binary",
    )  # fmt: skip
    assert first.metrics["valid.auc"] == 0.9
    assert (first.epochs, first.seconds, first.problem) == (4, 1.25, None)
    assert names(list_runs(folder / "b")) == ["b"]


def test_an_unknown_metric_names_those_that_there_are(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'aux'(.|\n)*valid\.auc"):
        list_runs(folder, "aux")
    with pytest.raises(NotFoundError, match="no folder"):
        list_runs(folder / "nothere")


def test_other_files_and_folders_are_no_runs(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "packs").mkdir()
    (folder / ".git").mkdir()
    (folder / "gone").symlink_to(folder / "nothere")
    assert names(list_runs(folder)) == ["a", "b", "c"]
    (folder / "empty").mkdir()
    assert str(list_runs(folder / "empty", "auc")) == f"{folder / 'empty'} holds no runs"


def test_unfinished_runs_are_listed_under_the_name_they_are_to_have(folder: Path) -> None:
    work = Unfinished.of(folder / "later")
    with work.open(RunConfig.from_mapping(CONFIG)):
        during = list_runs(folder)
    [one] = [one for one in during.runs if one.state == "unfinished"]
    assert (one.name, one.table, one.model) == ("later", "flights", "xgboost")
    work.path.mkdir()  # as a process that was killed at once leaves it
    assert [one.name for one in list_runs(folder).runs if one.state == "unfinished"] == ["later"]


def test_runs_of_comparisons_are_listed_with_the_others(folder: Path) -> None:
    news = folder / "news"
    made(news / "runs", "0-fold0-seed0", loss=0.1)
    made(news / "runs", "1-fold0-seed0", loss=0.5)
    (news / "runs" / "1-fold0-seed0" / "metrics.json").unlink()
    Unfinished.of(news / "runs" / "1-fold1-seed0").path.mkdir()
    assert names(list_runs(folder)) == ["a", "b", "c"], (
        "a folder with runs need not be a comparison"
    )
    write_json(news / "compare.json", {})
    found = list_runs(folder, "loss")
    assert names(found) == [
        "news/0-fold0-seed0",
        "c",
        "b",
        "a",
        "news/1-fold0-seed0",
        "news/1-fold1-seed0",
    ]
    assert [one.state for one in found.runs[-2:]] == ["broken", "unfinished"]
    assert found.runs[0].path == news / "runs" / "0-fold0-seed0"
    assert names(list_runs(news)) == ["0-fold0-seed0", "1-fold0-seed0", "1-fold1-seed0"]
    shutil.rmtree(news / "runs")
    assert names(list_runs(folder)) == ["a", "b", "c"]
    assert names(list_runs(news)) == []


def test_a_notebook_shows_a_table_with_everything_escaped(folder: Path) -> None:
    (folder / "a").rename(folder / "<b>bold")
    (folder / "b" / "metrics.json").unlink()
    shown = list_runs(folder, "loss")._repr_html_()
    assert "<td>&lt;b&gt;bold</td>" in shown
    assert "<td>flights</td>" in shown
    assert "<td>files are missing: metrics.json</td>" in shown
    assert shown.count("<tr>") == 4


HARMS: dict[str, Any] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_run_is_said_to_be_and_hides_no_other(folder: Path, file: str, harm: str) -> None:
    HARMS[harm](folder / "b" / file)
    found = list_runs(folder, "loss")
    assert names(found) == ["c", "a", "b"]
    assert [one.state for one in found.runs] == ["complete", "complete", "broken"]
    assert found.runs[-1].problem
    assert f"b: {found.runs[-1].problem}" in str(found)


def test_files_that_are_missing_or_of_a_later_version_are_named(folder: Path) -> None:
    (folder / "a" / "metrics.json").unlink()
    later = json.loads((folder / "b" / "run.json").read_text())
    write_json(folder / "b" / "run.json", {**later, "version": 99})
    problems = {one.name: one.problem for one in list_runs(folder).runs}
    assert problems["a"] == "files are missing: metrics.json"
    assert "99" in str(problems["b"])
    assert problems["c"] is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["parts", "valid", "loss", "version", "files", "data", "model", "epochs"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FILES), st.dictionaries(st.text(max_size=8), JSON), st.data())
def test_whatever_a_file_holds_runs_are_listed(
    tmp_path_factory: pytest.TempPathFactory, file: str, more: dict[str, Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    made(folder, "good", loss=0.1)
    other = made(folder, "other", loss=0.2) / file
    known = json.loads(other.read_text())
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(known)), JSON))
    other.write_text(json.dumps({**known, **more, **changed}))
    found = list_runs(folder, "loss")
    assert sorted(names(found)) == ["good", "other"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))
    lines = found.to_tsv().split("\n")
    assert len(lines) == 3
    assert len({line.count("\t") for line in lines}) == 1
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix", reason="names of other systems are text")
def test_names_change_neither_lines_nor_terminals(folder: Path) -> None:
    for name in ("two\nlines\t", "\x1b[31mred", os.fsdecode(b"\xff")):
        (folder / "a").rename(folder / name)
        found = list_runs(folder)
        for text in (str(found), found.to_tsv()):
            assert len(text.splitlines()) == 4
            assert "\x1b" not in text
            text.encode("utf-8")
        assert name in [one["name"] for one in json.loads(json.dumps(found.to_json()))]
        (folder / name).rename(folder / "a")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


def test_the_command_is_for_people_and_for_programs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = run("runs", folder, "--sort", "loss")
    assert (piped.exit_code, piped.stderr) == (0, "")
    head, *lines = [one.split("\t") for one in piped.stdout.splitlines()]
    assert [dict(zip(head, one, strict=True))["valid.loss"] for one in lines] == [
        "0.2", "0.3", "0.4",
    ]  # fmt: skip
    found = json.loads(run("runs", folder, "--json", "--sort", "auc").stdout)
    assert [one["name"] for one in found] == ["a", "b", "c"]
    assert found[2]["metrics"]["valid.auc"] is None
    (folder.parent / "empty").mkdir()
    assert json.loads(run("runs", folder.parent / "empty", "--json").stdout) == []
    wrong = run("runs", folder, "--sort", "aux")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "Remedy: sort by one of" in wrong.stderr
    monkeypatch.chdir(folder.parent)
    assert run("runs").stdout.count("\n") == 4
    assert str(list_runs(folder, "auc")).splitlines()[0].split() == [
        "run", "state", "created", "table", "model", "epochs", "seconds", "valid.loss", "valid.auc",
    ]  # fmt: skip
