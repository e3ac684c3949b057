"""What notebooks show: well formed, complete, and escaped whatever the names are."""

from __future__ import annotations

import uuid
from typing import Any
from xml.etree import ElementTree

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.markup import COLORS, Markup, beside, html_table, meter, strip
from featurestore.project.plan import Action, FeatureChange, ProjectPlan

HARM = "<img src=x onerror=alert(1)> & \"'</table>"


def parsed(markup: str) -> ElementTree.Element:
    """Return markup as XML, which refuses what is not well formed."""
    return ElementTree.fromstring(f"<all>{markup}</all>")


def texts(markup: str) -> str:
    return "".join(parsed(markup).itertext())


def widths(markup: str) -> list[tuple[str, int]]:
    return [(one.attrib["fill"], int(one.attrib["width"])) for one in parsed(markup).iter("rect")]


def test_a_strip_has_a_mark_for_each_run() -> None:
    found = strip([("fresh", 3), ("missing", 2)])
    assert widths(found) == [(COLORS["fresh"], 3), (COLORS["missing"], 2)]
    assert parsed(found)[0].attrib["viewBox"] == "0 0 5 1"
    assert parsed(found)[0].attrib["aria-label"] == "3 fresh, 2 missing"
    assert widths(strip([])) == []
    with pytest.raises(KeyError):
        strip([("odd", 1)])


def test_a_meter_is_full_where_it_is_more_than_the_limit() -> None:
    assert [one[1] for one in widths(meter(1, 4))] == [250, 750]
    assert [one[1] for one in widths(meter(4, 4))] == [1000, 0]
    assert [one[1] for one in widths(meter(0, 0))] == [0, 1000]
    assert widths(meter(5, 4)) == [(COLORS["over"], 1)]


def test_everything_is_escaped_but_markup() -> None:
    found = html_table(HARM, [HARM], [[HARM], [beside(HARM, strip([("bar", 1)], HARM))], [None]])
    assert isinstance(found, Markup)
    assert texts(found).count(HARM) == 4
    assert {one.tag for one in parsed(found).iter()} == {
        "all", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "rect", "title",
    }  # fmt: skip
    assert "overflow:auto" not in found
    assert "overflow:auto" in html_table("", ["n"], [[one] for one in range(100)])


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """Everything of a store with hostile columns that a notebook shows."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    frame = pl.DataFrame({"k": [0, 1] * 200, "t": range(400), HARM: [1.0] * 400, "y": [0, 1] * 200})
    table = store.ingest("rows", frame, key="k", time="t", partition_bytes=3200)
    table.add(fs.Expression(**{f"{HARM}!": nw.col(HARM) + 1}))
    table.append(frame.with_columns(pl.col("t") + 400))
    plan, status = table.plan(), table.status()
    table.build()
    change = FeatureChange(Action.CHANGE, "rows", (HARM,), "Rolling", (HARM,), 3, 10, 10)
    timed = fs.TimeSplit(valid=300, test=500)
    return {
        "store": store,
        "summary": store.summary(),
        "table": table,
        "plan": plan,
        "status": status,
        "nothing to do": table.plan(),
        "history": store.history(),
        "dataset": table.dataset([HARM, f"{HARM}!"], "y", split=timed),
        "dataset of all": table.dataset(HARM),
        "folds": table.dataset(HARM, split=fs.WalkForward(300, n_splits=2, valid=100)),
        "project": ProjectPlan(HARM, 3, (change,), (), 10, 100),
        "done": ProjectPlan(HARM, 3),
    }


def test_all_that_prints_shows_as_html_with_nothing_of_the_data_in_it_as_markup(
    shown: dict[str, Any],
) -> None:
    for name, one in shown.items():
        found = one._repr_html_()
        tags = {each.tag for each in parsed(found).iter()}
        assert "table" in tags, name
        assert tags <= {
            "all", "div", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "rect",
            "title",
        }, name  # fmt: skip
    for name in ("plan", "status", "table", "dataset", "project", "history"):
        assert HARM in texts(shown[name]._repr_html_()), name


def test_bars_tell_what_the_numbers_tell(shown: dict[str, Any]) -> None:
    status = shown["status"]
    (one,) = status.features
    assert one.fresh > 0
    assert one.missing > 0
    assert widths(status._repr_html_()) == [
        (COLORS["fresh"], one.fresh),
        (COLORS["missing"], one.missing),
    ]
    plan = shown["plan"]
    assert [width for _, width in widths(plan._repr_html_())][::2] == [
        round(1000 * step.peak_bytes / plan.memory_limit) for step in plan.steps
    ]


def test_parts_of_a_dataset_are_drawn_over_its_partitions(shown: dict[str, Any]) -> None:
    data = shown["dataset"]
    entries = [one.base for one in data._view.partitions]
    drawn = {
        row[0].text: [
            color
            for rect in row.iter("rect")
            for color in [rect.attrib["fill"]] * int(rect.attrib["width"])
        ]
        for row in parsed(data._repr_html_()).iter("tr")
        if row.find(".//rect") is not None
    }
    ranges = {"train": (None, 300), "valid": (300, 500), "test": (500, None)}
    for part, (low, high) in ranges.items():
        for entry, color in zip(entries, drawn[part], strict=True):
            times = range(entry.time_min or 0, (entry.time_max or 0) + 1)
            inside = [(low is None or one >= low) and (high is None or one < high) for one in times]
            state = "bar" if all(inside) else "part" if any(inside) else "none"
            assert color == COLORS[state]
