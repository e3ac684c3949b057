"""The report in a real browser: it opens, is searched and sorted, asks nobody for anything, takes no harm."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.report.page import Page, write_page
from featurestore.store_report import store_facts

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"'`;--><svg onload=alert(3)>",
    "\u202eright to left\u202c شيء",
    "x" * 500,
    "a b " * 60,
    "🦔👩‍👩‍👧‍👦 \u2028",
    "{{constructor}} ${alert(4)}",
    "__proto__",
)


def named(frame: Any) -> Any:
    """</script><script>alert('source')</script> <!-- <img src=x onerror=alert(5)>"""
    return frame["x"] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    """Of two tables with lineage between them, and features that are fresh, stale and missing."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    random = np.random.default_rng(0)
    hours = pl.datetime_range(
        pl.datetime(2024, 1, 1), pl.datetime(2024, 4, 10), "1h", eager=True, closed="left"
    )
    count = len(hours)
    temperatures = pl.DataFrame({"t": hours, "temp": random.normal(size=count)})
    weather = store.ingest("weather", temperatures, time="t", partition_bytes=10_000)
    frame = pl.DataFrame(
        {
            "t": hours,
            "x": random.normal(size=count) + np.arange(count) / 500,
            "word": random.choice(["a", "b", "c"], count),
        }
    )
    table = store.ingest("rows", frame, time="t", partition_bytes=8000)
    table.add(
        fs.Expression(twice=nw.col("x") * 2, thrice=nw.col("x") * 3),
        fs.AsOfJoin(weather, columns=["temp"]),
    )
    table.add(fs.Expression(warm=nw.col("temp") + nw.col("twice")))
    table.append(frame.with_columns(pl.col("t") + pl.duration(days=120)))
    return store.report(folder / "report.html")


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    """Of a table of 2,000 features with distributions: one that was built, told of under other names."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    frame = pl.DataFrame({"t": range(300), "x": np.random.default_rng(0).normal(size=300)})
    store.ingest("rows", frame, time="t", partition_bytes=800).add(fs.Expression(f=nw.col("x") * 2))
    facts = store_facts(store.session, None, None, True).to_json()
    base, feature = facts["tables"][0]["features"]
    (column,) = feature["columns"]
    made = [
        {**feature, "columns": [{**column, "name": f"f{number:05d}"}],
         "parameters": [["definitions", f"f{number:05d} = x * {number}"]]}
        for number in range(2000)
    ]  # fmt: skip
    facts["tables"][0]["features"] = [base, *made]
    return write_page(Page("wide", "store_report", facts), folder / "wide.html")


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Path:
    """Of a table whose columns, values, function, versions and tags are written by somebody who means harm."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    columns: dict[str, Any] = {name: [float(at), 1.0] for at, name in enumerate(HOSTILE)}
    frame = pl.DataFrame({"x": [1.0, 2.0], **columns, "words": list(HOSTILE[:2])})
    table = store.ingest("rows", frame)
    outputs = [f"{name}." for name in HOSTILE]
    table.add(fs.Function(named, "x", output=HOSTILE[0] + "!", dtypes="float64", frame="polars"))
    table.add(
        *(
            fs.Expression(**{out: nw.col(name) + 1})
            for out, name in zip(outputs, HOSTILE, strict=True)
        )
    )
    facts = store_facts(store.session, None, None, True).to_json()
    # What a store of this package never has, and one that somebody else wrote might.
    facts["url"] = facts["software"] = HOSTILE[0]
    facts["tables"][0]["name"] = HOSTILE[1]
    facts["tags"] = [[one, 1] for one in (*HOSTILE, "\u0000", "\ud800")]
    for version in facts["history"]:
        version[2] = version[3] = HOSTILE[1]
    for feature in facts["tables"][0]["features"]:
        feature["runs"] = [[HOSTILE[2], 1, HOSTILE[0]], ["stale", 1, HOSTILE[1]]]
        feature["reads"] = [[HOSTILE[0], HOSTILE[1]]]
    return write_page(Page(HOSTILE[1], "store_report", facts), folder / "hostile.html")


def names(seen: Any) -> list[str]:
    """Return the columns that are drawn, in their order."""
    found: list[str] = seen.page.locator("tr.opens td:first-child").all_inner_texts()
    return [one.strip() for one in found]


def search(seen: Any, words: str) -> None:
    seen.page.get_by_label("Search columns").fill(words)


def press(seen: Any, name: str) -> None:
    """Press a column of the list."""
    seen.page.locator("tr.opens button").get_by_text(name, exact=True).first.click()


def test_it_opens_with_what_the_store_holds(look: Callable[..., Any], report: Path) -> None:
    with look(report) as seen:
        assert seen.text("h1") == "Feature store"
        assert names(seen)[:3] == ["t", "x", "word"]
        assert set(names(seen)[3:]) == {"temp", "thrice", "twice", "warm"}
        assert "append to rows" in seen.page.locator("section").last.inner_text()
        assert seen.count("tr.opens svg.strip rect.missing") > 0
        assert seen.page.title() != ""


def test_columns_are_found_by_name_kind_and_state(look: Callable[..., Any], report: Path) -> None:
    with look(report) as seen:
        search(seen, "twice")
        assert names(seen) == ["twice"]
        search(seen, "asofjoin")
        assert names(seen) == ["temp"]
        search(seen, "missing expression")
        assert set(names(seen)) == {"twice", "thrice", "warm"}
        search(seen, "no such column")
        assert names(seen) == []
        search(seen, "")
        assert len(names(seen)) == 7


def test_columns_are_sorted_by_any_head_both_ways(look: Callable[..., Any], report: Path) -> None:
    with look(report) as seen:
        head = seen.page.locator("section:has(tr.opens) th")
        head.get_by_text("column", exact=True).click()
        first = names(seen)
        assert first == sorted(first)
        head.get_by_text("column", exact=True).click()
        assert names(seen) == first[::-1]
        head.get_by_text("covered").click()
        shares = seen.page.locator("tr.opens td:nth-child(5)").all_inner_texts()
        assert shares == ["100%"] * 3 + [shares[-1]] * 4
        assert seen.count("th[aria-sort=descending]") == 1


def test_a_column_tells_its_definition_lineage_and_drift(
    look: Callable[..., Any], report: Path
) -> None:
    with look(report) as seen:
        press(seen, "warm")
        detail = seen.page.locator("tr.detail")
        text = detail.inner_text()
        assert "temp + twice" in text
        assert "missing" in text
        assert "PSI" in text
        assert "KS" in text
        graph = detail.locator("g.node")
        labels = [one.split("\n")[0] for one in graph.locator("text").all_text_contents()]
        assert {"warm", "temp", "twice", "x", "weather.temp"} <= set(labels)
        assert detail.locator(".parts svg").count() == 8
        press(seen, "warm")
        assert seen.count("tr.detail") == 0


def test_lineage_leads_to_other_columns_and_tables(look: Callable[..., Any], report: Path) -> None:
    with look(report) as seen:
        press(seen, "warm")
        seen.page.locator("g.node", has_text="twice").first.click()
        assert "thrice" in seen.text("tr.detail dl")
        press(seen, "temp")
        seen.page.locator("g.node", has_text="weather.temp").first.press("Enter")
        assert "weather" in seen.text("section:has(tr.opens) h2")
        assert names(seen) == ["t", "temp"]
        assert seen.count("tr.detail") == 1


def test_tables_of_a_store_are_chosen(look: Callable[..., Any], report: Path) -> None:
    with look(report) as seen:
        seen.page.locator("section").first.locator("tbody button", has_text="weather").click()
        assert names(seen) == ["t", "temp"]


@pytest.mark.parametrize(
    ("scheme", "device"), [("light", {}), ("dark", PHONE)], ids=["desk", "phone"]
)
def test_nothing_is_wider_than_the_window(
    look: Callable[..., Any], report: Path, hostile: Path, wide: Path, scheme: str, device: Any
) -> None:
    for path in (report, hostile, wide):
        with look(path, color_scheme=scheme, **device) as seen:
            for at in range(min(3, seen.count("tr.opens"))):
                seen.page.locator("tr.opens button").nth(at).click()
            assert seen.count("tr.detail") > 0
            assert seen.overflow() == 0
            # A row that is opened takes no room from the columns of the others.
            wide = seen.page.locator("section:has(tr.opens) table").bounding_box()["width"]
            assert seen.page.locator("tr.opens").first.bounding_box()["width"] == wide
            cells = seen.page.locator("tr.opens").first.locator("td:visible").all()
            taken = sum(one.bounding_box()["width"] for one in cells)
            assert abs(taken - wide) < 2


def test_dark_and_light_follow_the_system_until_the_button_is_pressed(
    look: Callable[..., Any], report: Path
) -> None:
    with look(report, color_scheme="light") as seen:
        light = seen.background()
        seen.page.emulate_media(color_scheme="dark")
        dark = seen.background()
        assert dark != light
        seen.page.click("#theme")
        assert seen.background() == light
        seen.page.click("#theme")
        assert seen.background() == dark


def test_2000_features_are_drawn_as_they_are_looked_at(
    look: Callable[..., Any], wide: Path
) -> None:
    with look(wide) as seen:
        drawn = seen.count("tr.opens")
        assert 0 < drawn <= 150
        assert seen.nodes() < 4000
        pieces = "[...document.getElementById('report').childNodes].map((one) => one.nodeName)"
        assert set(seen.page.evaluate(pieces)) == {"HEADER", "DIV", "SECTION"}
        assert "2,002 columns" in seen.text("section:has(tr.opens) .tools >> nth=-1")
        seen.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        seen.page.locator("tr.opens").nth(drawn).wait_for()
        search(seen, "f01234")
        assert names(seen) == ["f01234"]
        press(seen, "f01234")
        assert "x * 1234" in seen.text("tr.detail")
        search(seen, "")
        seen.page.locator("section:has(tr.opens) th button").first.click()
        seen.page.locator("section:has(tr.opens) th button").first.click()
        assert names(seen)[0] == "x"
        assert seen.count("tr.opens") <= 150
        # Half of them read x: a graph of a thousand nodes helps nobody.
        press(seen, "x")
        assert 5 < seen.count("tr.detail g.node") < 40
        assert "more are not drawn" in seen.text("tr.detail")


def test_names_that_mean_harm_do_none(look: Callable[..., Any], hostile: Path) -> None:
    with look(hostile) as seen:
        drawn = names(seen)
        assert len(drawn) == 2 + 2 * len(HOSTILE) + 1
        buttons = seen.page.locator("tr.opens button")
        for at in range(buttons.count()):
            buttons.nth(at).click()
        assert seen.count("tr.detail") == len(drawn)
        assert HOSTILE[0] in seen.page.locator("tr.opens").nth(1).inner_text()
        assert "alert('source')" in "".join(seen.page.locator("pre").all_text_contents())
        assert seen.count("img") == seen.count("iframe") == seen.count("svg[onload]") == 0
        assert seen.count("script") == 2
        search(seen, "__proto__")
        assert names(seen) == ["__proto__", "__proto__."]


def test_what_finds_its_way_into_the_document_is_not_run(
    look: Callable[..., Any], report: Path, folder: Path
) -> None:
    """The policy in the page's head, beside the escaping: neither a script nor a request."""
    text = report.read_text("utf-8")
    harmed = folder / "harmed.html"
    harm = "<script>document.title = 'harmed'</script><img src='https://example.com/x.png'>"
    harmed.write_text(text.replace("<body>", f"<body>{harm}"), "utf-8")
    found: dict[str, Any] = {}
    with pytest.raises(AssertionError), look(harmed) as seen:  # noqa: PT012 - it says what was blocked
        found["title"] = seen.page.title()
        found["messages"] = seen.messages
        found["blocked"] = seen.blocked
    assert found["title"] != "harmed"
    assert len([one for one in found["messages"] if "Content Security Policy" in one]) == 2
    assert found["blocked"] == ["https://example.com/x.png: csp"]
