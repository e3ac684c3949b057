"""Splits drawn over time: each character is the part most of its time belongs to, or nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any
from xml.etree import ElementTree

import narwhals as nw
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.picture import PartSpan, SplitPicture, split_picture
from featurestore.dataset.split import Split
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import InvalidInputError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Partition

SCHEMA = TableSchema((Field("k", pa.int64()), Field("t", pa.int64())), ("k",), "t")
SIGNS = {"train": "█", "valid": "▒", "test": "░"}


def picture(split: Split, first: int, last: int) -> SplitPicture:
    folds = [{part: fold.rows(part, SCHEMA) for part in fold.parts()} for fold in split.folds()]
    return split_picture("it", folds, SCHEMA, [(first, last)])


def lines(split: Split, first: int, last: int) -> list[str]:
    width = last + 1 - first
    drawn = picture(split, first, last).drawn(width).splitlines()
    return [one[8 : 8 + width] for one in drawn[1:-2]]


@given(
    st.integers(-5, 5), st.integers(30, 60), st.integers(0, 4), st.integers(0, 4),
    st.sampled_from(["time", "walk", "purged", "combined"]),
)  # fmt: skip
@settings(deadline=None)
def test_each_time_is_drawn_as_the_part_that_its_row_is_in(
    first: int, last: int, horizon: int, embargo: int, kind: str
) -> None:
    """At one character per time, the picture is what masks say of a row of each time."""
    splits = {
        "time": fs.TimeSplit(valid=12, test=20, embargo=embargo or None),
        "walk": fs.WalkForward(8, n_splits=3, valid=4, horizon=horizon or None),
        "purged": fs.PurgedKFold(0, 28, 4, horizon=horizon or None, embargo=embargo or None),
        "combined": fs.PurgedKFold(0, 28, 5, valid_splits=2, horizon=horizon or None),
    }
    split = splits[kind]
    times = list(range(first, last + 1))
    columns = pa.table({"k": pa.array(times), "t": pa.array(times)})
    rows, engine = Partition(PolarsEngine().from_arrow(columns), SCHEMA), PolarsEngine()
    for fold, line in zip(split.folds(), lines(split, first, last), strict=True):
        expected = ["·"] * len(times)
        for part in fold.parts():
            for place in fold.rows(part, SCHEMA).mask(rows, engine).nonzero()[0].tolist():
                expected[place] = SIGNS[part]
        assert line == "".join(expected)


def test_what_is_narrower_than_a_character_is_drawn() -> None:
    spans = (PartSpan("train", ((0.0, 0.5),), "a"), PartSpan("valid", ((0.501, 0.502),), "b"))
    line = SplitPicture("it", "", "", (spans,)).drawn(20).splitlines()[1]
    assert Counter(line[8:28]) == {"█": 10, "▒": 1, "·": 9}


def test_parts_that_share_times_have_a_line_each() -> None:
    drawn = str(picture(fs.HashSplit(by="k", valid=0.25, test=0), 0, 9))
    assert "train 0 to the end; 75% by hash of k" in drawn
    assert "valid 0 to the end; 25% by hash of k" in drawn
    assert len(drawn.splitlines()) == 5
    folds = str(picture(fs.HashKFold(2, by="k"), 0, 9)).splitlines()
    assert [one[:6] for one in folds[1:5]] == ["fold 0", "      ", "fold 1", "      "]


def test_a_part_may_have_no_time_of_the_table() -> None:
    drawn = str(picture(fs.TimeSplit(valid=100), 0, 9))
    assert "valid no times" in drawn
    assert "▒" not in drawn.splitlines()[1]


def test_many_folds_are_cut_short() -> None:
    drawn = picture(fs.PurgedKFold(0, 1000, 14, valid_splits=3), 0, 999)
    assert len(drawn.folds) == 364
    assert "and 304 more folds" in str(drawn)
    assert "and 304 more folds" in drawn._repr_html_()


@pytest.mark.parametrize("width", [9, 0, -1])
def test_a_picture_has_a_width(width: int) -> None:
    with pytest.raises(InvalidInputError, match="10 characters or more"):
        SplitPicture("it", "", "", ()).drawn(width)


def test_html_is_escaped_and_whole() -> None:
    spans = (PartSpan("<b>", ((0.0, 0.5),), '"&'), PartSpan("train", ((0.5, 1.0),), "x"))
    html = SplitPicture("<script>", "<i>", "&", (spans,))._repr_html_()
    root = ElementTree.fromstring(html)
    assert "<script>" not in html
    assert len(root.findall(".//{http://www.w3.org/2000/svg}rect")) == 4


def test_a_dataset_draws_its_split(tmp_path: object) -> None:
    store = fs.FeatureStore.create(f"{tmp_path}/store")
    rows = pa.table(
        {
            "k": [1, 2, 3],
            "t": pa.array([0, 86400, 2 * 86400], pa.timestamp("s")),
            "x": [1.0, 2.0, 3.0],
        }
    )
    table = store.ingest("rows", rows, key="k", time="t")
    split = fs.TimeSplit(valid="1970-01-03")
    found = table.dataset(["x"], split=split, where=nw.col("x") > 0).picture()
    assert found.title == "table 'rows', TimeSplit"
    assert (found.first, found.last) == ("1970-01-01", "1970-01-03")
    assert [one.text for one in found.folds[0]] == [
        "1970-01-01 to 1970-01-03",
        "1970-01-03 to the end",
    ]
    whole = table.dataset(["x"]).picture()
    assert [one.text for one in whole.folds[0]] == ["1970-01-01 to the end"]
    timeless = (
        store.ingest("plain", pa.table({"k": [1], "x": [1.0]}), key="k").dataset(["x"]).picture()
    )
    assert "all rows" in str(timeless)


@pytest.mark.parametrize("width", [9, True, "wide", 20.5])
def test_what_is_no_width_is_refused(width: Any) -> None:
    with pytest.raises(InvalidInputError, match="characters wide"):
        SplitPicture("it", "", "", ()).drawn(width)
