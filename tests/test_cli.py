"""The command line: what it prints, how it exits, and that errors are a paragraph with a remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import narwhals as nw
import polars as pl
import pytest
from click.testing import CliRunner, Result

import featurestore as fs
from featurestore.cli import main
from featurestore.control_groups import own_group
from featurestore.testing.tables import observations, plus_one

ROWS = observations(120).sort("t", "k")
COMMANDS = (
    "ingest", "append", "replace", "compact", "show", "status", "plan", "build", "drop", "drop-table",
    "log", "tag", "untag", "tags", "diff", "verify", "repair", "doctor", "gc", "init", "apply",
)  # fmt: skip


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

    assert run("tag", store, "first", "--version", 1).output == "version 1 is tagged first\n"
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
        (["tag", "{store}", "first", "--version", "-1"], "version is -1"),
        (["log", "{store}", "--last", "-1"], "last is -1"),
        (["gc", "{store}", "--keep-versions", "0"], "keep_versions is 0"),
        (["compact", "{store}", "rows", "--partition-bytes", "0"], "must be positive, not '0'"),
        (["diff", "{store}", "9"], "no version 9"),
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


def test_rows_change_and_versions_are_compared(files: Path) -> None:
    store = files / "store"
    assert ingest(files, "--partition-bytes", "2500").exit_code == 0
    observations(20, 5, start=100).sort("t", "k").write_parquet(files / "c.parquet")
    done = run("append", store, "rows", files / "c.parquet")
    assert done.output == "20 rows appended to rows\n", done.output
    observations(5, 6, start=101).sort("t", "k").write_parquet(files / "d.parquet")
    span = ("--from", "1970-01-05T05:00:00", "--to", "1970-01-05T09:00:00")
    done = run("replace", store, "rows", files / "d.parquet", *span)
    assert done.exit_code == 0, done.output
    assert "5 written" in done.output
    assert run("replace", store, "rows", files / "d.parquet").exit_code == 2
    assert run("tag", store, "then").exit_code == 0
    done = run("compact", store, "rows", "--partition-bytes", "1MiB", "--merge-groups")
    assert done.exit_code == 0, done.output
    assert fs.FeatureStore.open(store).table("rows").partitions == 1

    found = run("diff", store, "then", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["is_empty"]
    assert "partitions" in run("diff", store, "then").output
    rows = json.loads(run("diff", store, "1", "2", "--json").output)["tables"][0]["rows"]
    assert (rows["added"], rows["removed"]) == (20, 0)
    assert "of whole partitions" in run("diff", store, "1", "--no-rows").output
    assert "no difference" in run("diff", store, "1", "1").output
    assert run("diff", store, "99").exit_code == 1

    assert run("tags", store).output.split() == ["tag", "version", "then", "3"]
    assert run("untag", store, "then").output == "tag then removed\n"
    assert run("tags", store).output.split() == ["tag", "version"]
    fs.FeatureStore.open(store).table("rows").add(fs.Expression(twice=nw.col("x") * 2))
    assert run("drop", store, "rows", "twice").output == "twice dropped from rows\n"
    assert "twice" not in run("show", store, "rows").output
    assert run("drop-table", store, "rows").output == "table rows dropped\n"
    assert "empty" in run("show", store).output


@pytest.mark.parametrize(
    "arguments",
    [
        ["rows", "nope.csv"], ["rows", "*.nothing"], ["../rows", "a.parquet"],
        ["rows", "a.parquet", "--time", "tt"], ["rows", "a.parquet", "--key", "kk"],
        ["rows", "a.parquet", "--partition-bytes", "0"],
    ],
)  # fmt: skip
def test_a_failed_ingest_leaves_no_store_behind(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(files)
    done = run("ingest", "store", *arguments)
    assert done.exit_code == 1, done.output
    assert not (files / "store").exists()


def test_times_of_an_integer_column_are_integers(files: Path) -> None:
    store = files / "store"
    frame = pl.DataFrame({"day": [1, 2, 3], "x": [1.0, 2.0, 3.0]})
    fs.FeatureStore.create(store).ingest("days", frame, time="day")
    frame.slice(1, 1).with_columns(x=9.0).write_parquet(files / "c.parquet")
    assert run("replace", store, "days", files / "c.parquet", "--from", 2, "--to", 3).exit_code == 0
    assert fs.FeatureStore.open(store).table("days").read("x")["x"].to_list() == [1.0, 9.0, 3.0]
    wrong = run("replace", store, "days", files / "c.parquet", "--from", "2020-01-01")
    assert wrong.exit_code == 2


def test_damage_is_found_and_mended(files: Path) -> None:
    store = files / "store"
    assert ingest(files).exit_code == 0
    fs.FeatureStore.open(store).table("rows").add(fs.Expression(double=nw.col("x") * 2))
    assert json.loads(run("verify", store, "--all-versions", "--json").output)["ok"]
    assert "nothing is damaged" in run("repair", store).output
    [path] = store.glob("data/rows/f_double*/*.parquet")
    path.write_bytes(path.read_bytes()[:-1])
    found = json.loads(run("verify", store, "--json").output)
    assert [one["columns"] for one in found["faults"]] == [["double"]]
    tried = run("repair", store, "--dry-run")
    assert (tried.exit_code, "would mend 1" in tried.output) == (0, True)
    mended = run("repair", store, "--json")
    assert json.loads(mended.output)["mended"][0]["how"] == "computed again"
    assert run("verify", store).exit_code == 0
    [base] = store.glob("data/rows/base/*.parquet")
    base.write_bytes(base.read_bytes()[:-1])
    left = run("repair", store)
    assert left.exit_code == 3
    assert "was ingested" in left.output


def test_a_damaged_newest_version_is_given_up_on_request(files: Path) -> None:
    store = files / "store"
    assert ingest(files).exit_code == 0
    fs.FeatureStore.open(store).table("rows").add(fs.Expression(twice=nw.col("x") * 2))
    newest = store / "snapshots" / f"{2:020d}.json"
    newest.write_bytes(newest.read_bytes()[:-9])
    refused = run("repair", store)
    assert refused.exit_code == 1
    assert "--give-up" in refused.stderr
    assert run("repair", store, "--give-up", 2, "--dry-run").exit_code == 2
    assert run("repair", store, "--give-up", 1).exit_code == 1
    done = run("repair", store, "--give-up", 2)
    assert done.exit_code == 0, done.output
    assert "version 2 was given up" in done.stderr
    assert run("verify", store, "--all-versions").exit_code == 0
    assert "twice" not in run("show", store, "rows").output


def test_the_doctor_says_whether_a_place_is_fit(files: Path) -> None:
    done = run("doctor", files / "store")
    assert done.exit_code == 0, done.output
    assert "fit for a store" in done.output
    assert "packages: python 3" in done.output
    assert not (files / "store").exists()
    assert json.loads(run("doctor", files / "store", "--json").output)["packages"]["dask"]
    assert run("doctor", files / "a.parquet").exit_code == 3


def test_traceback_on_request(files: Path) -> None:
    done = run("--traceback", "show", files / "nothere")
    assert isinstance(done.exception, fs.FeatureStoreError)


def test_wrong_usage_exits_with_2() -> None:
    assert run("show").exit_code == 2
    assert run("fly").exit_code == 2


def test_help_lists_all_commands() -> None:
    done = run("--help")
    assert done.exit_code == 0
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


@pytest.mark.parametrize("chosen", [None, "jemalloc"])
def test_a_command_chooses_an_allocator_for_its_own_process_unless_it_is_told(
    tmp_path: Path, chosen: str | None
) -> None:
    fs.FeatureStore.create(tmp_path / "store")
    code = (
        "import sys; from featurestore.cli import main; "
        f"main(['show', {str(tmp_path / 'store')!r}], standalone_mode=False); "
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": chosen or ""}
    if chosen is None:
        del environment["ARROW_DEFAULT_MEMORY_POOL"]
    found = subprocess.check_output(
        [sys.executable, "-c", code], env=environment, text=True, timeout=60
    )
    assert found.split()[-1] == (chosen or "system")


def test_a_command_inside_another_program_leaves_its_allocator_alone(files: Path) -> None:
    before = dict(os.environ)
    assert ingest(files).exit_code == 0
    assert dict(os.environ) == before


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_limit_is_kept_by_the_kernel_or_it_is_said_why_not(
    files: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest(files).exit_code == 0
    if how == "variable":
        monkeypatch.setenv("FEATURESTORE_ENFORCE", "1")
    options = ["--enforce"] if how == "option" else []
    before = own_group()
    done = run(*options, "build", files / "store", "rows", "--memory-limit", "1TiB")
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith(
        ("memory limit 1.0 TiB, kept by cgroup v", "memory limit 1.0 TiB, kept by none: ")
    )
    assert own_group() == before
