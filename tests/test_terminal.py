"""What all commands have in common: help that fits a screen with an example, completion, quiet pipes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore import cli as store_cli
from featurestore.testing.tables import plus_one
from training import cli as training_cli

ROOT = Path(__file__).parents[1]
LINES, COLUMNS = 24, 80
PROGRAMS = {"featurestore": store_cli.main, "python -m training": training_cli.main}
SHELLS = ("bash", "zsh", "fish")


def commands(program: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command of a program, groups and their commands too."""
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), PROGRAMS[program])]
    while waiting:
        path, command = waiting.pop()
        yield path, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = ((name, command.get_command(context, name)) for name in command.commands)
            waiting += [((*path, name), one) for name, one in found if one is not None]


EVERY = [
    pytest.param(program, path, command, id=" ".join((program, *path)))
    for program in PROGRAMS
    for path, command in commands(program)
]


@pytest.mark.parametrize(("program", "path", "command"), EVERY)
def test_help_fits_a_screen_and_has_an_example(
    program: str, path: tuple[str, ...], command: click.Command
) -> None:
    done = CliRunner().invoke(PROGRAMS[program], [*path, "--help"])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    # The list of commands is as long as it is: a line for each, and no more around it than elsewhere.
    listed, most = 0, LINES
    if isinstance(command, click.Group):
        listed, most = len(command.list_commands(click.Context(command))), 2 * LINES // 3
    assert len(lines) - listed <= most
    assert max(map(len, lines)) <= COLUMNS
    [example] = [one.split("Example: ")[1] for one in lines if "Example: " in one]
    assert example.startswith(" ".join((program, *path)))


@pytest.mark.parametrize(("program", "path", "command"), EVERY)
def test_examples_have_options_that_there_are(
    program: str, path: tuple[str, ...], command: click.Command
) -> None:
    example = shlex.split((command.help or "").split("Example: ")[1].splitlines()[0])
    words = example[len(program.split()) :]
    found: click.Command = PROGRAMS[program]
    while isinstance(found, click.Group):
        below = found.get_command(click.Context(found), words[0])
        assert below is not None, words
        found, words = below, words[1:]
    found.make_context(program, words, resilient_parsing=False)


def test_what_is_being_typed_is_completed() -> None:
    def completed(words: str, at: int) -> list[str]:
        environment = {
            "_FEATURESTORE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(at),
        }
        done = CliRunner().invoke(
            store_cli.main, [], prog_name="featurestore", env=environment, catch_exceptions=False
        )
        return [one.partition(",")[2] for one in done.output.splitlines()]

    assert completed("featurestore comp", 1) == ["compact", "completion"]
    assert completed("featurestore verify --qu", 2) == ["--quick"]
    assert completed("featurestore completion ", 2) == list(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_one_its_shell_reads(shell: str) -> None:
    found = CliRunner().invoke(store_cli.main, ["completion", shell])
    assert found.exit_code == 0, found.output
    assert f"_FEATURESTORE_COMPLETE={shell}_complete" in found.output
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    read = subprocess.run(
        [shell, "-n"], input=found.stdout, text=True, capture_output=True, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    program = tmp_path / "featurestore"
    code = "from featurestore.cli import main; main(prog_name='featurestore')"
    program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-c", code])} "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(featurestore completion bash)"; COMP_WORDS=(featurestore unt); COMP_CWORD=1; '
        '_featurestore_completion featurestore; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    paths["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    found = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, **paths},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (found.stdout.strip(), found.returncode) == ("untag", 0), found.stderr


def test_an_unknown_shell_is_wrong_usage() -> None:
    done = CliRunner().invoke(store_cli.main, ["completion", "dos"])
    assert done.exit_code == 2
    assert "bash" in done.stderr


def test_what_people_parse_is_printed_as_json(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "store")
    table = store.ingest("rows", pl.DataFrame({"t": [1, 2], "x": [1.0, 2.0]}), time="t")
    table.feature(plus_one, inputs=["x"], output="same")
    store.tag("first", 1)

    def said(*arguments: str) -> Any:
        name, *more = arguments
        done = CliRunner().invoke(
            store_cli.main, [name, str(tmp_path / "store"), *more, "--json"], catch_exceptions=False
        )
        assert done.stderr == ""
        return json.loads(done.stdout)

    shown = said("show")
    assert (shown["version"], [one["name"] for one in shown["tables"]]) == (store.version, ["rows"])
    assert said("show", "rows") == shown["tables"][0]
    assert (shown["tables"][0]["rows"], shown["tables"][0]["time"]) == (2, "t")
    origins = {one["name"]: one["from"] for one in shown["tables"][0]["columns"]}
    assert (origins["x"], origins["same"]) == ("ingested", "Function")
    status = said("status", "rows", "--check")
    assert status["is_fresh"] is False
    [feature] = status["features"]
    assert (feature["columns"], feature["fresh"], feature["missing"]) == (["same"], 0, 1)
    log = said("log", "--last", "2")
    assert [one["version"] for one in log] == [store.version - 1, store.version]
    assert all(one["id"] and not one["fault"] for one in log)
    assert said("tags") == {"first": 1}
