"""What a store's report says, against what its tables hold; and how it stands in a file."""

from __future__ import annotations

import datetime as dt
import html.parser
import json
import re
import uuid
from pathlib import Path
from typing import Any, ClassVar

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import main
from featurestore.errors import (
    DefinitionError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
)
from featurestore.report.page import Page, embedded
from featurestore.store_report import store_facts
from featurestore.testing.tables import observations


def new_store(**options: Any) -> fs.FeatureStore:
    return fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2, **options)


def vectors(frame: Any) -> Any:
    return np.ones((len(frame), 3), "float32")


def facts(store: fs.FeatureStore, **options: Any) -> dict[str, Any]:
    """Return what a report of a store says, as the page gets it."""
    wanted = {"tables": None, "split": None, "values": True, **options}
    found: dict[str, Any] = json.loads(json.dumps(store_facts(store.session, **wanted).to_json()))
    return found


def data_of(path: Path) -> dict[str, Any]:
    """Return the data in a report's file."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S
    )
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def columns(table: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each column of a table by name, with its feature."""
    return {
        column["name"]: (feature, column)
        for feature in table["features"]
        for column in feature["columns"]
    }


def rows_that_were_built(store: fs.FeatureStore) -> range:
    """Return the rows of the partitions that were there before rows were appended."""
    return range(sum(one.rows for one in store.checkout(3).table("rows")._files().base))


@pytest.fixture
def store() -> fs.FeatureStore:
    """A table in five partitions and more, some features stale or missing in the newest."""
    made = new_store()
    rows = observations(400).sort("t", "k")
    other = made.ingest("other", rows.select("k", "t", y="x"), key="k", time="t", duplicates="keep")
    table = made.ingest("rows", rows, key="k", time="t", partition_bytes=3000, duplicates="keep")
    table.add(
        fs.Expression(twice=nw.col("x") * 2),
        fs.Rolling("twice", by="k", window="6h", stats=["mean"]),
        fs.AsOfJoin(other, columns=["y"], by={"k": "k"}),
    )
    late = observations(60, seed=1, start=400).sort("t", "k")
    table.append(late.filter(pl.col("t") > rows["t"].max()))
    made.tag("first", 1)
    return made


def test_rows_partitions_versions_and_tags_are_those_of_the_store(store: fs.FeatureStore) -> None:
    found = facts(store)
    assert [one["name"] for one in found["tables"]] == ["other", "rows"]
    assert found["version"] == store.version
    assert [one[:3] for one in found["history"]] == [
        [one.version, one.created, one.operation] for one in reversed(store.history())
    ]
    assert (found["tags"], found["older"]) == ([["first", 1]], 0)
    table, said = store.table("rows"), found["tables"][1]
    assert said["rows"] == table.rows == sum(one[1] for one in said["partitions"])
    assert len(said["partitions"]) == table.partitions == sum(said["bins"])
    summary = table.describe()
    assert summary.time_range == (said["partitions"][0][2], said["partitions"][-1][3])
    assert said["stored"] == summary.stored_bytes
    assert set(columns(said)) == set(table.columns)


def test_freshness_nulls_and_coverage_are_exact(store: fs.FeatureStore) -> None:
    table = store.table("rows")
    said = columns(facts(store)["tables"][1])
    status = table.status()
    built = len(said["twice"][1]["coverage"])
    assert built == table.partitions  # a bin for each
    for name in ("twice", "twice_mean_6h", "y"):
        feature, column = said[name]
        count = {"fresh": 0, "stale": 0, "missing": 0}
        for state, partitions, _ in feature["runs"]:
            count[state] += partitions
        one = status[name]
        assert count == {"fresh": one.fresh, "stale": one.stale, "missing": one.missing}
        assert one.missing > 0
        assert feature["runs"][-1][0] == "missing"
        assert column["coverage"][-1] is None
    entries = table._files().base
    starts = np.concatenate([[0], np.cumsum([one.rows for one in entries])])
    values = table.read(["x"], as_="arrow")["x"]
    for bin_, known in enumerate(said["x"][1]["coverage"]):
        part = values.slice(starts[bin_], entries[bin_].rows)
        assert known == (len(part) - part.null_count) * 1000 // len(part)
    assert said["x"][1]["nulls"] == values.null_count > 0


def test_definitions_and_lineage_are_told(store: fs.FeatureStore) -> None:
    said = columns(facts(store, values=False)["tables"][1])
    mean, joined = said["twice_mean_6h"][0], said["y"][0]
    assert mean["kind"] == "Rolling"
    assert "twice" in mean["inputs"]
    assert ["stats", "mean"] in mean["parameters"]
    assert ["other", "y"] in joined["reads"]
    assert said["x"][0]["kind"] == "ingested"
    assert said["x"][0]["runs"] == []
    assert mean["fingerprint"]


def test_a_small_table_is_sampled_whole(store: fs.FeatureStore) -> None:
    table, said = store.table("rows"), facts(store)["tables"][1]
    frame = table.read(["t", "x"])
    assert len(said["parts"]) == 2
    assert sum(one[3] for one in said["parts"]) == table.rows
    bounds = [len(frame) * one // 2 for one in range(3)]
    for number, part in enumerate(columns(said)["x"][1]["values"]["parts"]):
        piece = frame[bounds[number] : bounds[number + 1]]
        known = [one for one in piece["x"].to_list() if one is not None and np.isfinite(one)]
        assert (part["rows"], part["nulls"]) == (len(piece), piece["x"].null_count())
        assert part["mean"] == pytest.approx(np.mean(known), rel=1e-4)
        assert said["parts"][number][1] == piece["t"][0].isoformat()
        assert said["parts"][number][2] == piece["t"][-1].isoformat()
    time = columns(said)["t"][1]["values"]
    assert all("psi" not in one for one in time["parts"])
    # Of what is not built in the newest partitions, there are fewer values than rows.
    built = sum(one["rows"] for one in columns(said)["twice"][1]["values"]["parts"])
    assert built == len(rows_that_were_built(store))


@pytest.mark.parametrize("by", ["t", "twice"])
def test_parts_of_a_split_are_compared(store: fs.FeatureStore, by: str) -> None:
    store.table("rows").build()
    split = fs.HashSplit(valid=0.3, test=0.2, by=by)
    said = facts(store, tables="rows", split=split)["tables"][0]
    dataset = store.table("rows").dataset("x", split=split)
    assert [one[0] for one in said["parts"]] == ["train", "valid", "test"]
    assert said["divided"] == "HashSplit"
    assert sum(one[3] for one in said["parts"]) == store.table("rows").rows
    for name, _, _, rows in said["parts"]:
        assert rows == dataset.part(name).rows > 0


def test_walk_forward_shows_its_last_fold(store: fs.FeatureStore) -> None:
    times = store.table("rows").read("t")["t"]
    start = times[len(times) // 2]
    split = fs.WalkForward(start, n_splits=3, valid="6h")
    said = facts(store, tables="rows", split=split)["tables"][0]
    train, valid = said["parts"]
    last = start + 2 * dt.timedelta(hours=6)
    assert said["divided"] == "WalkForward, the last of 3 folds"
    assert train[2] < last.isoformat() <= valid[1]
    assert valid[2] < (last + dt.timedelta(hours=6)).isoformat()


def test_a_split_that_does_not_fit_is_refused_in_words(store: fs.FeatureStore) -> None:
    with pytest.raises(NotReadyError, match=r"twice.*not built"):
        facts(store, tables="rows", split=fs.HashSplit(by="twice"))
    store.ingest("timeless", pl.DataFrame({"a": [1]}))
    with pytest.raises(DefinitionError, match="needs a time column"):
        facts(store, split=fs.TimeSplit(valid="2024-01-01"))


def test_stale_values_and_shared_files_are_counted_once(store: fs.FeatureStore) -> None:
    table = store.table("rows")
    table.build()
    table.compact(merge_groups=True)
    said = facts(store, values=False)["tables"][1]
    assert abs(said["stored"] - table.describe().stored_bytes) <= len(said["features"]) * 100
    assert all(one["stored"] > 0 for one in said["features"])


def test_without_values_no_row_is_read(store: fs.FeatureStore, monkeypatch: Any) -> None:
    from featurestore.execution.reading import PartitionSource

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("rows were read")

    monkeypatch.setattr(PartitionSource, "read", refuse)
    said = facts(store, values=False)["tables"][1]
    assert said["parts"] == []
    assert all("values" not in one for _, one in columns(said).values())


def test_columns_without_distribution_and_odd_tables_are_no_error() -> None:
    store = new_store()
    store.ingest("empty", pl.DataFrame({"t": [1, 2], "x": [1.0, 2.0]}), time="t")
    store.table("empty").delete(nw.col("t") > 0)
    frame = pl.DataFrame({"a": [1, 2], "items": [[1, 2], []], "raw": [b"x", None]})
    store.ingest("odd", frame).add(
        fs.Function(vectors, "a", output="v", frame="polars", dtypes="float32", shape=(3,))
    )
    said = {one["name"]: one for one in facts(store)["tables"]}
    assert said["empty"]["parts"] == said["empty"]["bins"] == []
    odd = columns(said["odd"])
    assert "no distribution" in odd["items"][1]["unseen"]
    assert "no distribution" in odd["raw"][1]["unseen"]
    assert "no distribution" in odd["v"][1]["unseen"]
    assert "nulls" not in odd["v"][1]
    assert odd["a"][1]["values"]["labels"] == ["1", "2"]
    assert [one[1] for one in said["odd"]["parts"]] == ["", ""]
    assert facts(new_store())["tables"] == []


def test_a_column_that_does_not_fit_memory_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    store.ingest("rows", pl.DataFrame({"x": [1.0, 2.0], "long": ["a" * 24_000_000, "b"]}))
    small = store.with_limit(store.session.executor.reserved_bytes + 70 * 2**20)
    said = columns(facts(small)["tables"][0])
    assert "needs" in said["long"][1]["unseen"]
    assert said["x"][1]["values"]["labels"] == ["1", "2"]


def test_an_old_version_is_told_as_it_was(store: fs.FeatureStore) -> None:
    found = facts(store.checkout(2))
    assert (found["version"], found["history"][0][0]) == (2, 2)
    table = found["tables"][1]
    assert set(columns(table)) == {"k", "t", "x", "n", "word"}
    assert table["rows"] == 400


# --- the file ----------------------------------------------------------------------------------


def test_the_file_is_one_document_with_the_data_in_it(
    store: fs.FeatureStore, tmp_path: Path
) -> None:
    path = store.report(tmp_path / "report.html", tables=["rows"])
    assert path == tmp_path / "report.html"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    assert [one["name"] for one in data_of(path)["tables"]] == ["rows"]

    class Links(html.parser.HTMLParser):
        found: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]

    Links().feed(path.read_text("utf-8"))
    assert Links.found == []
    policy = re.search(r'content="(default-src[^"]*)"', path.read_text("utf-8"))
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]


@pytest.mark.parametrize(
    "text",
    ["</script><script>alert(1)</script>", "<!--", "<![CDATA[", "&amp;", "\u2028\u2029", "\ud800", "\x00\x1b", "🦔", "'\"`"],
)  # fmt: skip
def test_no_text_leaves_the_data(text: str) -> None:
    found = embedded({text: [text]})
    assert json.loads(found) == {text: [text]}
    assert not set(found) & set("<>&\u2028\u2029")
    assert found.isascii()
    page = Page(text, "store_report", {"tables": []}).to_html()
    page.encode("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2


def test_reports_that_cannot_be_written_are_refused(store: fs.FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be written"):
        store.report(tmp_path / "no" / "report.html", values=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        store.report(tmp_path / "folder", values=False)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(NotFoundError):
        store.report(tmp_path / "report.html", tables="nothing")


def test_the_command_writes_it(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path / "store")
    store.ingest("rows", pl.DataFrame({"t": range(10), "x": range(10)}), time="t")
    run = CliRunner().invoke
    folder, file = str(tmp_path / "store"), str(tmp_path / "out.html")
    done = run(main, ["report", folder, "-o", file, "--valid", "5", "--test", "8"])
    assert (done.exit_code, done.output) == (0, f"{file}\n")
    parts = data_of(Path(file))["tables"][0]["parts"]
    assert [[one[0], one[3]] for one in parts] == [["train", 5], ["valid", 3], ["test", 2]]
    done = run(main, ["report", folder, "-o", file, "--table", "rows", "--no-values"])
    assert done.exit_code == 0
    assert data_of(Path(file))["tables"][0]["parts"] == []
    assert run(main, ["report", folder, "--test", "8"]).exit_code == 2
    done = run(main, ["report", folder, "-o", file, "--table", "none"])
    assert done.exit_code == 1
    assert "there is no table 'none'" in done.output


def test_scripts_take_no_markup_and_name_no_address() -> None:
    from importlib.resources import files

    names = {one.name for one in files("featurestore.report").joinpath("assets").iterdir()}
    assert {"page.js", "page.css", "charts.js", "store_report.js"} <= names
    # The drawing knows no markup: what texts of the data say is never parsed.
    for name in names:
        text = files("featurestore.report").joinpath("assets", name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert "</script" not in text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
