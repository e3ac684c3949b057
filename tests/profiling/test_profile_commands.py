"""Every command takes ``--profile``, whatever becomes of it, and ``profile show`` shows what it wrote."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from featurestore.cli import main
from featurestore.profiling.command import ProfiledCommand
from featurestore.profiling.timeline import Timeline
from featurestore.testing.tables import observations
from training.cli import main as training_main


@pytest.fixture
def files(tmp_path: Path) -> Path:
    observations(120).sort("t", "k").write_parquet(tmp_path / "a.parquet")
    return tmp_path


def run(*arguments: object, command: click.Group = main) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])


def ingest(files: Path, *more: object) -> Result:
    return run(
        "ingest", files / "store", "rows", files / "a.parquet", "--key", "k", "--time", "t", *more
    )


def test_every_command_can_be_profiled() -> None:
    seen = 0
    for group in (main, training_main):
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if name not in ("profile", "completion"):  # which prints a script
                assert isinstance(command, ProfiledCommand), name
                assert "--profile" in {word for one in command.params for word in one.opts}
                seen += 1
    assert seen > 20


def test_an_ingest_is_recorded_and_shown(files: Path) -> None:
    path = files / "run.json"
    done = ingest(files, "--memory-limit", "3GiB", "--profile", path)
    assert done.exit_code == 0, done.output
    assert "table rows: 120 rows" in done.stdout
    assert done.stderr == f"memory recorded: featurestore profile show {path}\n"
    found = Timeline.load(path)
    assert found.memory_limit == 3 * 2**30
    assert found.ended == "finished"
    assert any(one.label.startswith("ingest rows") for one in found.phases)

    shown = run("profile", "show", path)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("peak ")
    assert "ingest rows" in shown.output
    assert "\x1b" not in shown.output
    drawn = run("profile", "show", path, "--output", files / "run.svg")
    assert (drawn.exit_code, drawn.output) == (0, f"{files / 'run.svg'}\n")
    assert (files / "run.svg").read_text().startswith("<svg")


def test_commands_that_fail_or_find_faults_are_recorded(files: Path) -> None:
    path = files / "run.json"
    done = run("show", files / "nothing", "--profile", path)
    assert done.exit_code == 1
    assert "there is no store" in done.stderr
    assert Timeline.load(path).ended == "raised NotFoundError"

    assert ingest(files).exit_code == 0
    [data] = (files / "store").glob("data/rows/*/*.parquet")
    data.write_bytes(data.read_bytes()[:-1])
    assert run("verify", files / "store", "--profile", path).exit_code == 3
    assert Timeline.load(path).ended == "exited with 3"


def test_training_is_recorded_too(files: Path) -> None:
    path = files / "run.json"
    done = run("fit", files / "nothing.toml", "--profile", path, command=training_main)
    assert done.exit_code == 1
    assert Timeline.load(path).ended == "exited with 1"


@pytest.mark.parametrize("group", [main, training_main], ids=["featurestore", "training"])
def test_a_profile_that_cannot_be_written_is_refused_before_anything_runs(
    group: click.Group, files: Path
) -> None:
    words = ["show", files / "nothing"] if group is main else ["fit", files / "nothing.toml"]
    done = run(*words, "--profile", files / "no" / "run.json", command=group)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: the profile ")
    assert "Remedy: " in done.stderr
    assert "nothing" not in done.stderr


@pytest.mark.parametrize(
    ("name", "problem"),
    [("missing.json", "cannot be read"), ("a.parquet", "is not a memory timeline")],
)
def test_what_is_no_profile_is_refused(name: str, problem: str, files: Path) -> None:
    done = run("profile", "show", files / name)
    assert done.exit_code == 1
    assert problem in done.stderr
    assert "Remedy: " in done.stderr
    assert run("profile", "show", files / name, "--output", files / "x.svg").exit_code == 1
    assert not (files / "x.svg").exists()
