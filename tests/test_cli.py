"""The command line: what it prints, how it exits, and that errors are a paragraph with a remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import narwhals as nw
import pytest
from click.testing import CliRunner, Result

import featurestore as fs
from featurestore.cli import main
from featurestore.testing.tables import observations, plus_one

ROWS = observations(120).sort("t", "k")
COMMANDS = ("ingest", "show", "status", "plan", "build", "log", "tag", "verify", "gc")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    ROWS.head(80).write_parquet(tmp_path / "a.parquet")
    ROWS.tail(40).write_parquet(tmp_path / "b.parquet")
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def ingest(files: Path, *more: object) -> Result:
    pattern = files / "*.parquet"
    return run("ingest", files / "store", "rows", pattern, "--key", "k", "--time", "t", *more)


def test_from_files_to_a_tagged_version(files: Path) -> None:
    store = files / "store"
    done = ingest(files, "--partition-bytes", "2500")
    assert done.exit_code == 0, done.output
    assert "table rows: 120 rows in 2 partitions" in done.output
    assert done.stderr == ""
    table = fs.FeatureStore.open(store).table("rows")
    table.add(fs.Expression(double=nw.col("x") * 2))
    table.feature(plus_one, inputs=["x"], output="more")

    shown = run("show", store)
    assert shown.exit_code == 0
    assert "rows    120" in shown.output
    assert "double  double         Expression" in run("show", store, "rows").output

    status = run("status", store, "rows", "--check")
    assert status.exit_code == 3
    assert run("status", store, "rows").exit_code == 0
    assert "missing" in status.output

    plan = run("plan", store, "rows")
    assert plan.exit_code == 0
    assert "more" in plan.output
    assert "projected peak" in plan.output

    built = run("build", store, "rows", "--memory-limit", "6GiB")
    assert built.exit_code == 0, built.output
    assert "version 4: more; 2 partitions computed" in built.output
    assert run("status", store, "rows", "--check").exit_code == 0
    assert "nothing to build" in run("plan", store, "rows").output

    assert run("tag", store, "first", "--version", 1).exit_code == 0
    assert fs.FeatureStore.open(store).checkout("first").version == 1
    log = run("log", store, "--last", 2).output.splitlines()
    assert len(log) == 3
    assert log[-1].startswith("      4")
    assert "build rows" in log[-1]

    assert run("verify", store).exit_code == 0
    assert run("verify", store, "--quick").exit_code == 0
    assert run("gc", store, "--dry-run").exit_code == 0
    assert run("gc", store, "--safety-age", "0s").exit_code == 0
    [path] = store.glob("data/rows/f_double*/p00000000-*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    damaged = run("verify", store)
    assert damaged.exit_code == 3
    assert path.name in damaged.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["show", "{store}", "row"], "there is no table 'row'"),
        (["status", "{store}", "nothere"], "there is no table 'nothere'"),
        (["show", "{store}-not"], "there is no store"),
        (["tag", "{store}", "first", "--version", "99"], "there is no version 99"),
        (["tag", "{store}", "../first"], "cannot name a tag"),
        (["gc", "{store}", "--safety-age", "soon"], "'soon' is not a duration"),
        (["build", "{store}", "rows", "--memory-limit", "lots"], "is not a number of bytes"),
        (["ingest", "{store}", "rows", "{store}/../*.parquet"], "exists already"),
        (["ingest", "{store}", "more", "{store}/../*.nothing"], "nothing"),
        (["ingest", "{store}", "more", "{store}/../*.parquet", "--key", "kk"], "'kk'"),
    ],
)
def test_errors_are_one_paragraph_with_a_remedy(
    files: Path, arguments: list[str], problem: str
) -> None:
    assert ingest(files).exit_code == 0
    done = run(*(one.format(store=files / "store") for one in arguments))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert problem in done.stderr
    assert "Remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000


def test_traceback_on_request(files: Path) -> None:
    done = run("--traceback", "show", files / "nothere")
    assert isinstance(done.exception, fs.FeatureStoreError)


def test_wrong_usage_exits_with_2() -> None:
    assert run("show").exit_code == 2
    assert run("fly").exit_code == 2


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command: str) -> None:
    done = run(*([command] if command else []), "--help")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 90
    assert "Example:" in done.output
    if not command:
        assert set(COMMANDS) <= set(done.output.split())


def test_a_real_process_is_quiet_and_has_no_traceback(files: Path) -> None:
    def process(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "featurestore.cli", *map(str, arguments)],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    store = files / "store"
    done = process("ingest", store, "rows", files / "*.parquet", "--key", "k", "--time", "t")
    assert (done.returncode, done.stderr) == (0, "")
    assert "120 rows" in done.stdout
    failed = process("show", store, "row")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("Error: there is no table 'row'\n  Remedy: ")
