"""Definitions as code: what plan shows, what apply does, and what neither does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import pytest
from click.testing import CliRunner, Result

import featurestore as fs
from featurestore.cli import main
from featurestore.features import FeatureSet
from featurestore.project import proposal
from featurestore.testing.tables import observations
from training import RunConfig

ROOT = Path(fs.__file__).parent.parent
ROWS = observations(120).sort("t", "k")
OTHER = observations(60, seed=3, column="y").sort("t", "k")
HEAD = "import featurestore as fs\nimport narwhals as nw\nrows = fs.Definitions('rows')\n"
BASIC = (
    HEAD
    + """
rows.add(fs.Rolling("x", by="k", window="7h", stats=["mean"], rename={"x_mean_7h": "mean"}))

LIMIT = 0


@rows.feature(inputs=["x"])
def high(df):
    return df["x"] > LIMIT


rows.add(fs.Expression(both=nw.col("high") & (nw.col("n") > 0)))
"""
)
JOINED = (
    HEAD
    + """
other = fs.Definitions("other")
rows.add(fs.AsOfJoin("other", columns=["twice"], lag="1h"))
other.add(fs.Expression(twice=nw.col("y") * 2))
"""
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project, as the working directory."""
    monkeypatch.chdir(tmp_path)
    paths = list(sys.path)
    assert run("init").exit_code == 0
    yield tmp_path
    sys.path[:] = paths
    sys.modules.pop("features", None)


def run(*arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], input=typed)


def ingested(folder: Path, *tables: str) -> fs.FeatureStore:
    store = fs.FeatureStore.create(folder / "golden")
    for name in tables or ("rows",):
        frame = OTHER if name == "other" else ROWS
        store.ingest(name, frame, key="k", time="t", partition_bytes=2500)
    return store


def define(text: str) -> None:
    Path("features.py").write_text(text)


def planned() -> dict[str, Any]:
    done = run("plan", "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.output)
    return found


def actions() -> dict[str, str]:
    """Return the action for each feature, by its first column."""
    return {one["columns"][0]: one["action"] for one in planned()["changes"]}


def apply() -> None:
    done = run("apply", "--yes")
    assert done.exit_code == 0, done.output


def test_init_writes_a_project_that_works_at_once(folder: Path) -> None:
    assert {one.name for one in folder.iterdir()} == {
        "featurestore.toml", "features.py", "train.toml", ".gitignore",
    }  # fmt: skip
    assert RunConfig.from_toml(folder / "train.toml").data.features
    done = run("plan")
    assert done.exit_code == 0
    assert "there is no store yet, and nothing is defined" in done.output
    again = run("init")
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_apply_makes_the_store_as_table_add_would(folder: Path) -> None:
    store = ingested(folder)
    define(BASIC)
    assert actions() == {"mean": "add", "high": "add", "both": "add"}
    before = store.version
    for one in planned()["changes"]:
        assert one["partitions"] == 2
        assert one["peak_bytes"] > 0
        assert one["output_bytes"] > 0
    assert store.version == before  # a plan publishes nothing
    apply()
    assert run("apply", "--check").exit_code == 0
    plain = fs.FeatureStore.create("memory://project-oracle")
    table = plain.ingest("rows", ROWS, key="k", time="t", partition_bytes=2500)
    table.add(
        fs.Rolling("x", by="k", window="7h", stats=["mean"], rename={"x_mean_7h": "mean"}),
        fs.Expression(high=nw.col("x") > 0),
        fs.Expression(both=nw.col("high") & (nw.col("n") > 0)),
    )
    names = ["mean", "high", "both"]
    assert store.table("rows").read(names).equals(table.read(names))


def test_a_plan_says_what_changed_what_is_stale_and_what_goes(folder: Path) -> None:
    store = ingested(folder)
    define(BASIC)
    apply()
    define(BASIC.replace('"7h", stats', '"9h", stats').replace("x_mean_7h", "x_mean_9h"))
    assert actions() == {"mean": "change"}
    assert 'window: "7h" -> "9h"' in planned()["changes"][0]["why"]
    define(BASIC.replace('df["x"] > LIMIT', 'df["x"] >= LIMIT'))
    changed, stale = planned()["changes"]
    assert [changed["action"], stale["action"]] == ["change", "build"]
    assert '-    return df["x"] > LIMIT' in changed["why"]
    assert '+    return df["x"] >= LIMIT' in changed["why"]
    assert stale["why"] == ["stale in 2 partitions (input; upstream: rows.high)"]
    define(BASIC.replace("LIMIT = 0", "LIMIT = 1"))
    why = planned()["changes"][0]["why"]
    assert why == ["function features:high: its lines are the same, what it uses is not"]
    apply()
    expected = [None if one is None else one > 1 for one in ROWS["x"].to_list()]
    assert store.table("rows").read("high")["high"].to_list() == expected
    define(HEAD)
    assert set(actions().values()) == {"drop"}
    apply()
    assert store.table("rows").columns == tuple(ROWS.columns)


def test_a_renamed_output_is_added_and_the_old_one_dropped(folder: Path) -> None:
    ingested(folder)
    text = BASIC.split("LIMIT")[0]
    define(text)
    apply()
    define(text.replace('"mean"}', '"average"}'))
    assert actions() == {"average": "add", "mean": "drop"}


def test_a_column_of_another_type_is_refused_while_a_feature_that_stays_reads_it(
    folder: Path,
) -> None:
    ingested(folder)
    text = (
        HEAD
        + "rows.add(fs.Expression(a=nw.col('n')))\nrows.add(fs.Expression(b=nw.col('a') * 2))\n"
    )
    define(text)
    apply()
    define(text.replace("a=nw.col('n')", "a=nw.col('x')"))
    done = run("plan")
    assert done.exit_code == 1
    assert "feature 'b' of table 'rows' reads 'a' of table 'rows', which has another type" in (
        done.output
    )
    define(text.replace("a=nw.col('n')", "a=nw.col('n') + 1"))
    assert actions() == {"a": "change", "b": "build"}


def test_features_of_one_table_read_those_of_another(folder: Path) -> None:
    store = ingested(folder, "rows", "other")
    define(JOINED)
    own, joined = planned()["changes"]
    assert [own["table"], joined["table"]] == ["other", "rows"]
    assert [own["at_least"], joined["at_least"]] == [False, True]
    apply()
    define(JOINED.replace("* 2", "* 3"))
    own, joined = planned()["changes"]
    assert own["action"] == "change"
    assert joined["why"] == ["stale in 2 partitions (other table; upstream: other.twice)"]
    apply()
    assert store.table("rows").status().is_fresh
    # Both at once: the reader is read by nobody, what it read goes with it.
    define("import featurestore as fs\n")
    assert set(actions().values()) == {"drop"}
    apply()
    assert "twice" not in store.table("rows").columns
    assert "twice" not in store.table("other").columns


def test_dropping_what_another_table_still_reads_is_refused(folder: Path) -> None:
    ingested(folder, "rows", "other")
    define(JOINED)
    apply()
    define(JOINED.replace("twice=nw", "thrice=nw"))
    done = run("plan")
    assert done.exit_code == 1
    assert "twice" in done.output
    assert "Remedy" in done.output


def test_tables_that_are_not_ingested_are_waited_for(folder: Path) -> None:
    define(JOINED)
    done = run("plan")
    assert done.exit_code == 0
    assert "there is no store yet" in done.output
    assert "featurestore ingest" in done.output
    assert run("apply", "--check").exit_code == 3
    assert run("apply", "--yes").exit_code == 1
    store = ingested(folder, "rows")
    assert planned()["waiting"] == [
        {"table": "other", "for": "other"},
        {"table": "rows", "for": "other"},
    ]
    before = store.version
    done = run("apply", "--yes")
    assert done.exit_code == 1
    assert "wait for table 'other'" in done.output
    assert store.version == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import featurestore as fs\nrows = = 1\n", "features.py, line 2: invalid syntax: rows = = 1"),
        (HEAD + "1 / 0\n", "features.py, line 4: ZeroDivisionError"),
        (HEAD + "raise SystemExit(0)\n", "features.py, line 4: SystemExit"),
        (HEAD + "rows.add(3)\n", "features.py, line 4: 3 is no transformer"),
        (HEAD + "rows.add(fs.Impute('x'))\n", "features.py, line 4: Impute learns from rows"),
        (HEAD + "rows.add(fs.Clip('x', 0, 1))\n" * 2, "lines 4 and 5: the same Clip"),
        (
            HEAD + "rows.add(fs.Expression(a=nw.col('x')))\nrows.add(fs.Expression(a=nw.col('n')))\n",
            "two definitions give column 'a'",
        ),
        (HEAD + "rows.add(fs.Expression(a=nw.col('z')))\n", "the definitions of table 'rows': "),
        (HEAD + "rows.add(fs.Expression(x=nw.col('n')))\n", "column 'x' exists already"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_one_paragraph(folder: Path, text: str, said: str) -> None:
    ingested(folder)
    define(text)
    done = run("plan")
    assert done.exit_code == 1
    assert said in done.output
    assert "Traceback" not in done.output


def test_two_definitions_of_a_column_are_refused_whichever_is_stored(folder: Path) -> None:
    ingested(folder)
    first, second = (f"rows.add(fs.Expression(a=nw.col('{one}')))\n" for one in ("x", "n"))
    define(HEAD + first)
    apply()
    for text in (first + second, second + first):
        define(HEAD + text)
        done = run("plan")
        assert done.exit_code == 1
        assert "two definitions give column 'a'" in done.output


def test_what_the_file_prints_is_no_part_of_the_plan(folder: Path) -> None:
    ingested(folder)
    define(BASIC + "print('hello')\n")
    found = run("plan", "--json")
    assert json.loads(found.stdout)["changes"]
    assert found.stderr == "hello\n"


def test_nothing_is_applied_unasked(folder: Path) -> None:
    store = ingested(folder)
    define(BASIC)
    before = store.version
    check = run("apply", "--check")
    assert check.exit_code == 3
    assert "+ rows: mean" in check.output
    assert "\x1b[" not in check.output
    coloured = CliRunner().invoke(main, ["plan"], color=True)
    assert "\x1b[32m+ rows: mean" in coloured.output
    for typed in ("n\n", ""):
        assert run("apply", typed=typed).exit_code == 1
    assert store.version == before
    assert run("apply", typed="y\n").exit_code == 0
    assert store.version > before


def test_a_store_that_changed_since_the_plan_is_shown_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ingested(folder)
    define(BASIC)
    real = proposal.Proposal.apply

    def late(self: proposal.Proposal, report: Any) -> None:
        store.table("rows").add(fs.Expression(theirs=nw.col("n")))
        real(self, report)

    monkeypatch.setattr(proposal.Proposal, "apply", late)
    done = run("apply", "--yes")
    assert done.exit_code == 1
    assert "This is the plan now" in done.output
    assert "- rows: theirs" in done.output
    assert "high" not in store.table("rows").columns


def test_an_interrupted_apply_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ingested(folder, "rows", "other")
    define(JOINED)
    real = FeatureSet.build

    def stopped(self: FeatureSet) -> Any:
        if self.table == "rows":
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureSet, "build", stopped)
        done = run("apply", "--yes")
    assert done.exit_code == 130
    assert "goes on from there" in done.output
    assert planned()["changes"][0]["why"] == ["missing in 2 partitions"]
    apply()
    assert run("apply", "--check").exit_code == 0
    assert store.table("rows").status().is_fresh


def test_a_killed_apply_is_resumed_by_the_next(folder: Path) -> None:
    store = ingested(folder)
    define(
        "import os\nimport signal\n"
        + HEAD
        + """
@rows.feature(inputs=["t", "x"], output="more")
def more(df):
    # The sample is of the first partition, which does not have the newest row.
    if "DIE" in os.environ and str(df["t"].max()) == os.environ["DIE"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return df["x"] + 1
"""
    )
    command = [sys.executable, "-m", "featurestore.cli", "apply", "--yes"]
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "DIE": str(ROWS["t"].max())}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert store.table("rows").status().features[0].missing == 2
    assert actions() == {"more": "build"}
    apply()
    assert store.table("rows").read("more")["more"].equals((ROWS["x"] + 1).alias("more"))


def test_what_does_not_fit_is_refused_before_anything_is_published(folder: Path) -> None:
    store = ingested(folder)
    define(BASIC)
    before = store.version
    done = run("apply", "--yes", "--memory-limit", "1MiB")
    assert done.exit_code == 1
    assert "does not fit" in done.output
    assert store.version == before


def test_appended_rows_are_to_compute(folder: Path) -> None:
    store = fs.FeatureStore.create(folder / "golden")
    table = store.ingest("rows", ROWS.head(80), key="k", time="t")
    define(BASIC)
    apply()
    later = ROWS.filter(ROWS["t"] > ROWS["t"][79])
    table.append(later)
    assert set(actions().values()) == {"build"}
    apply()
    assert run("apply", "--check").exit_code == 0


def test_a_table_s_own_plan_keeps_working(folder: Path) -> None:
    ingested(folder)
    assert "nothing to build" in run("plan", "golden", "rows").output
    assert json.loads(run("plan", "golden", "rows", "--json").output)["steps"] == []
    assert run("plan", "golden").exit_code == 2


def test_a_folder_without_project_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("plan")
    assert done.exit_code == 1
    assert "featurestore init" in done.output
    for text, said in [
        ("[project]\nstore = 3\nfeatures = 'features.py'\n", "store is 3"),
        ("[project]\nstore = 'golden'\n", "features is None"),
        ("[project]\nstor = 'golden'\n", "did you mean 'store'"),
    ]:
        Path("featurestore.toml").write_text(text)
        done = run("plan")
        assert done.exit_code == 1
        assert said in done.output


def test_selectors_stand_for_what_they_selected_when_they_were_applied(folder: Path) -> None:
    ingested(folder)
    define(HEAD + "rows.add(fs.Impute(fs.numeric(), prefix='full_'), fit_on='all')\n")
    assert planned()["changes"][0]["columns"] == ["full_x", "full_n"]
    apply()
    assert actions() == {}
    define(
        HEAD
        + "rows.add(fs.Impute(fs.numeric(), prefix='full_'), fit_on=('1970-01-01', '1970-01-02'))\n"
    )
    assert planned()["changes"][0]["why"] == ['fit_on: "all" -> ["1970-01-01", "1970-01-02"]']


def test_new_definitions_see_columns_as_they_will_be_whatever_the_order(folder: Path) -> None:
    store = ingested(folder)
    read, made = (
        "rows.add(fs.Expression(b=nw.col('a') * 2))\n",
        "rows.add(fs.Expression(a=nw.col('n')))\n",
    )
    define(HEAD + read + made)
    apply()
    # Both change, and the column between them its type.
    define(HEAD + read.replace("* 2", "* 3") + made.replace("'n'", "'x'"))
    assert actions() == {"a": "change", "b": "change"}
    apply()
    assert store.table("rows").read("b")["b"].equals((ROWS["x"] * 3).alias("b"))
