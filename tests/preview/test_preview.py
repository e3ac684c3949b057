"""A preview: its values are those of a build, and nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

import featurestore as fs
from featurestore.cli import main
from featurestore.preview import sample
from featurestore.testing.tables import observations

ROWS = observations(300).sort("t", "k")
NEWS = observations(120, 3, column="y").sort("t", "k")
LATE = NEWS.with_columns(available=pl.col("t") + pl.duration(hours=3))


@pytest.fixture
def store(tmp_path: Path) -> fs.FeatureStore:
    (tmp_path / "scratch").mkdir()
    return fs.FeatureStore.create(tmp_path / "store", scratch=tmp_path / "scratch")


@pytest.fixture
def table(store: fs.FeatureStore) -> fs.Table:
    store.ingest("news", LATE, key="k", time="t", partition_bytes=2500)
    made = store.ingest("rows", ROWS, key="k", time="t", partition_bytes=1200)
    assert made.partitions >= 9, made.partitions
    return made


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path) -> Iterator[None]:
    yield
    assert list((tmp_path / "scratch").iterdir()) == []


def files(tmp_path: Path) -> list[tuple[str, int]]:
    return sorted(
        (str(one), one.stat().st_mtime_ns) for one in tmp_path.rglob("*") if one.is_file()
    )


def negative(df: pl.DataFrame) -> pl.Series:
    return df["x"] < 0


def pair(df: pl.DataFrame) -> np.ndarray[Any, Any]:
    return np.stack([df["n"].fill_null(0).to_numpy(), df["n"].is_null().to_numpy()], axis=1).astype(
        "float32"
    )


FEATURES: dict[str, tuple[list[Any], Any]] = {
    "row-wise": ([fs.Expression(double=nw.col("x") * 2)], None),
    "function": ([fs.Function(negative, inputs=["x"], output="negative", frame="polars")], None),
    "tensor": (
        [
            fs.Function(
                pair, inputs=["n"], output="pair", frame="polars", shape=(2,), dtypes="float32"
            )
        ],
        None,
    ),
    "text": ([fs.Expression(said=nw.col("k").cast(nw.String) + "!")], None),
    "window": ([fs.Rolling("x", by="k", window="7h", stats=["mean", "count"])], None),
    "long-window": ([fs.Rolling("x", by="k", window="90h", stats=["mean", "count"])], None),
    "lag": ([fs.Lag("x", by="k")], None),
    "expanding": ([fs.Expanding("x", by="k", stats=["mean"])], None),
    "ahead": ([fs.Forward("x", 2, by="k")], None),
    "hours-ahead": ([fs.Forward("x", "9h", stats=["count"], by="k")], None),
    "fitted": ([fs.Standardize("x", prefix="std_")], "all"),
    "joined": ([fs.AsOfJoin("news", ["y"], by="k")], None),
    "joined-itself": ([fs.AsOfJoin("rows", ["x"], by="k", prefix="was_", lag="1h")], None),
    "chained": (
        [
            fs.Rolling("double", by="k", window="7h", stats=["mean"], prefix="roll_"),
            fs.Expression(double=nw.col("x") * 2),
            fs.Lag("double", by="k", prefix="lag_"),
        ],
        None,
    ),
}


QUICK = ("row-wise", "tensor", "window", "lag", "ahead", "joined", "chained")


def frame_of(preview: Any) -> pl.DataFrame:
    return pl.DataFrame(list(preview.head), infer_schema_length=None)


@pytest.mark.parametrize(
    ("name", "partitions"),
    [
        *(
            pytest.param(name, 2, marks=[] if name in QUICK else pytest.mark.slow)
            for name in FEATURES
        ),
        ("hours-ahead", [2, 7]),
        ("fitted", 1),
    ],
    ids=str,
)
def test_values_are_those_of_a_build(
    tmp_path: Path, table: fs.Table, name: str, partitions: Any
) -> None:
    transformers, fit_on = FEATURES[name]
    before = files(tmp_path)
    found = table.preview(transformers, "x", partitions, fit_on=fit_on, rows=10_000)
    assert files(tmp_path) == before
    table.add(*transformers, fit_on=fit_on)
    bounds = np.cumsum([0, *(one.rows for one in table._files().base)])
    names = [one.name for one in found.columns]
    assert not any(one.differs for one in found.columns)  # all that is looked at fits
    built = pl.concat(
        [
            table.read(["k", "t", *names], slice(int(bounds[one]), int(bounds[one + 1])))
            for one in found.partitions
        ]
    )
    mine = frame_of(found).select(["k", "t", *names])
    assert mine.rows() == [
        tuple(list(one) if isinstance(one, pl.Series) else one for one in row)
        for row in built.rows()
    ]
    assert found.rows == built.height
    for one in found.columns:
        if isinstance(built.schema[one.name], pl.Array):
            continue
        assert one.distribution.rows == built.height
        assert one.distribution.nulls == built[one.name].null_count()
        assert one.distribution.distinct == built[one.name].drop_nulls().n_unique()


@pytest.mark.parametrize("name", ["long-window", "fitted", "joined"])
def test_what_cannot_be_read_is_said(
    table: fs.Table, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "HISTORY_BYTES", 600)
    transformers, fit_on = FEATURES[name]
    found = table.preview(transformers, partitions=[6, 7], fit_on=fit_on)
    assert any(one.differs for one in found.columns)
    assert "may differ" in str(found)
    assert found.read < table.partitions


def test_of_a_long_history_the_beginning_is_shown_as_it_will_be(
    table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "HISTORY_BYTES", 600)
    found = table.preview(fs.Lag("x", by="k"))
    assert found.partitions[0] < table.partitions // 2 - 2
    assert not found.columns[0].differs


def test_a_stored_feature_is_read_and_one_that_is_only_defined_is_computed(table: fs.Table) -> None:
    table.add(fs.Rolling("x", by="k", window="7h", stats=["mean"]))
    table.feature(inputs=["x"], output="late", frame="polars")(negative)
    found = table.preview(
        fs.Expression(both=nw.when(nw.col("late")).then(nw.col("x_mean_7h")).otherwise(0.0)),
        rows=999,
    )
    assert [one.name for one in found.columns] == ["both"]
    named = table.preview("late", rows=999)
    table.add(fs.Expression(both=nw.when(nw.col("late")).then(nw.col("x_mean_7h")).otherwise(0.0)))
    bounds = np.cumsum([0, *(one.rows for one in table._files().base)])
    for preview, name in ((found, "both"), (named, "late")):
        rows = [
            value
            for one in preview.partitions
            for value in table.read(name, slice(int(bounds[one]), int(bounds[one + 1])))[name]
        ]
        assert [row[name] for row in preview.head] == rows


def test_another_definition_of_a_name_is_compared_with_what_is_stored(table: fs.Table) -> None:
    table.add(fs.Expression(double=nw.col("x") * 2))
    found = table.preview(fs.Expression(double=nw.col("x") * 3))
    assert {"x", "double (stored)"} <= {one.column for one in found["double"].closest}


# --- leaks ---------------------------------------------------------------------------------------


def test_a_label_and_what_reads_one(table: fs.Table) -> None:
    ahead = fs.Forward("x", 1, by="k", rename={"x_value_ahead_1r": "next"})
    after = fs.Expression(twice=nw.col("next") * 2)
    last = fs.Lag("twice", by="k", prefix="was_")
    found = table.preview([last, after, ahead])
    verdicts = {one.name: one.verdict for one in found.columns}
    assert verdicts.pop("next") == "not checked: a label, it looks ahead by definition"
    assert all(one.startswith("leak: it reads 'next'") for one in verdicts.values())
    table.add(ahead)
    found = table.preview(after)
    assert found.leaky == ("twice",)
    assert found.leaks is None


def test_rows_are_computed_again_without_the_future(table: fs.Table) -> None:
    joined = table.preview([fs.AsOfJoin("news", ["y"], by="k", prefix="early_"),
                            fs.AsOfJoin("news", ["y"], by="k", prefix="late_", lag="3h")],
                           partitions=6, leak_rows=40)  # fmt: skip
    assert joined.leaky == ("early_y",)
    assert joined.leaks is not None
    assert joined.leaks["early_y"].rows
    fitted = table.preview(fs.Standardize("x", prefix="std_"), fit_on="all")
    assert fitted.leaky == ("std_x",)
    unsaid = table.preview(fs.Standardize("x", prefix="std_"))
    assert unsaid["std_x"].verdict == "not checked: no fit_on= says what it learns from"
    assert "no fit_on= was given" in unsaid.learnt_on["std_x"]
    assert table.preview(fs.Lag("x", by="k"), leak_rows=0).leaks is None


# --- corners ---------------------------------------------------------------------------------------


def test_a_table_without_time_and_one_without_rows(store: fs.FeatureStore) -> None:
    plain = store.ingest("plain", ROWS.select("x", "word"), partition_bytes=1200)
    found = plain.preview([fs.Expression(double=nw.col("x") * 2), fs.Standardize("x", prefix="s_")])
    assert found["double"].verdict.startswith("not checked: the table has no time")
    plain.delete(nw.col("x").is_null() | ~nw.col("x").is_null())
    empty = plain.preview(
        [fs.Expression(double=nw.col("x") * 2), fs.Standardize("x", prefix="s_")], "x"
    )
    assert (empty.rows, empty.head, empty.partitions) == (0, (), ())
    assert empty["double"].distribution.rows == 0
    assert "double" in str(empty)


def fails(df: pl.DataFrame) -> pl.Series:
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (
            fs.Function(fails, inputs=["x"], output="bad"),
            fs.errors.DefinitionError,
            "no such thing",
        ),
        (fs.Expression(y=nw.col("nowhere")), fs.errors.MissingColumnError, "nowhere"),
        (fs.Expression(x=nw.col("n")), fs.errors.NameTakenError, "exists already"),
        ("x", fs.errors.InvalidInputError, "was ingested"),
        ("nowhere", fs.errors.MissingColumnError, "nowhere"),
        (3, fs.errors.InvalidInputError, "no feature"),
        ([], fs.errors.InvalidInputError, "no feature"),
    ],
    ids=["raises", "missing", "taken", "ingested", "unknown", "number", "nothing"],
)
def test_what_is_no_feature_is_refused(
    tmp_path: Path, table: fs.Table, given: Any, error: type[Exception], said: str
) -> None:
    before = files(tmp_path)
    with pytest.raises(error, match=said):
        table.preview(given)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "partitions", [0, True, [99], [-1], [1.5], 1.5, None, np.int64(0)], ids=str
)
def test_partitions_that_are_not_there_are_refused(table: fs.Table, partitions: Any) -> None:
    with pytest.raises(fs.errors.InvalidInputError, match="partitions"):
        table.preview(fs.Expression(y=nw.col("x") * 2), partitions=partitions)


def test_memory_is_asked_for_first(table: fs.Table) -> None:
    with pytest.raises(fs.errors.MemoryLimitError, match="memory limit"):
        fs.FeatureStore.open(table._session.objects.url, memory_limit="20MiB").table(
            "rows"
        ).preview(fs.Expression(y=nw.col("x") * 2))


def test_a_checkout_can_be_looked_at(store: fs.FeatureStore, table: fs.Table) -> None:
    version = store.version
    table.add(fs.Expression(y=nw.col("x") * 2))
    old = store.checkout(version).table("rows")
    assert old.preview(fs.Expression(y=nw.col("x") * 2)).version == version


def test_it_prints_and_is_plain(table: fs.Table) -> None:
    found = table.preview(
        [fs.Lag("x", by="k"), fs.Expression(said=nw.col("k").cast(nw.String))], "x"
    )
    said = json.loads(json.dumps(found.to_dict()))
    assert said["cost"]["partitions"][0]["rows"] > 0
    assert said["cost"]["disk_bytes"] > 0
    assert said["columns"][0]["quantiles"]["0"] == pytest.approx(float(ROWS["x"].min()), abs=1e9)
    text = str(found)
    assert "with label x" in text
    assert "all " + str(table.partitions) in text
    assert "<table>" in found._repr_html_()
    assert found["said"].distribution.values
    assert found["said"].label is not None
    assert set(found["said"].label.measures) == {"correlation_ratio"}
    with pytest.raises(KeyError):
        found["x"]


# --- the command -----------------------------------------------------------------------------------


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_the_command_shows_a_defined_feature(table: fs.Table) -> None:
    table.feature(inputs=["x"], output="late", frame="polars")(negative)
    url = table._session.objects.url
    shown = run("preview", url, "rows", "late", "--label", "x")
    assert shown.exit_code == 0, shown.output
    assert "preview of late" in shown.output
    assert json.loads(run("preview", url, "rows", "late", "--json").output)["table"] == "rows"
    assert run("preview", url, "rows").exit_code == 2
    table.add(fs.AsOfJoin("news", ["y"], by="k"))
    leaks = run("preview", url, "rows", "y", "--partitions", 6)
    assert leaks.exit_code == 3, leaks.output


def test_the_command_shows_a_definition_of_a_project(
    tmp_path: Path, table: fs.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "featurestore.toml").write_text(
        '[project]\nstore = "../store"\nfeatures = "features.py"\n'
        f'[limits]\nscratch = "{tmp_path / "scratch"}"\n'
    )
    (folder / "features.py").write_text(
        "import featurestore as fs\nimport narwhals as nw\n"
        "rows = fs.Definitions('rows')\nnews = fs.Definitions('news')\n"
        "rows.add(fs.Lag('double', by='k'))\nrows.add(fs.Expression(double=nw.col('x') * 2))\n"
        "news.add(fs.Expression(double=nw.col('y') * 2))\n"
    )
    before = files(tmp_path / "store")
    shown = run("preview", "double_lag_1", "--label", "x")
    assert shown.exit_code == 0, shown.output
    assert "preview of double_lag_1 on table rows" in shown.output
    both = run("preview", "double")
    assert both.exit_code == 1
    assert "write " in both.output
    assert "on table news" in run("preview", "news.double").output
    assert "no definition gives" in run("preview", "nothing").output
    assert files(tmp_path / "store") == before
