"""Make the golden store of the current format version: ``python tests/golden/make_store.py``.

Writes ``v<format>/`` and ``v<format>.json``, what reading it must give. It is run once per format
version and the result committed, so that every later version of the package has to read it; it
refuses to replace one that exists.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

import featurestore as fs
from featurestore.storage.records import FORMAT_VERSION

HERE = Path(__file__).resolve().parent
HOUR = 3_600_000
ROWS = 90
TAG = "before_append"
LIMIT = 300 * 2**10


def trades(start: int, count: int) -> pl.DataFrame:
    """Return rows of three shops, one an hour; all numbers are multiples of 1/4, so sums are exact."""
    hours = range(start, start + count)
    return pl.DataFrame(
        {
            "shop": ["north", "süd", "☃"] * (count // 3),
            "at": [hour * HOUR for hour in hours],
            "price": [(hour * 37 % 101) / 4 for hour in hours],
            "pieces": [None if hour % 11 == 0 else hour * 7 % 13 for hour in hours],
        },
        schema={
            "shop": pl.String,
            "at": pl.Datetime("ms"),
            "price": pl.Float64,
            "pieces": pl.Int64,
        },
    )


def quotes() -> pl.DataFrame:
    """Return a quote of each shop every four hours, some null."""
    times = [hour for hour in range(0, ROWS, 4) for _ in range(3)]
    return pl.DataFrame(
        {
            "shop": ["north", "süd", "☃"] * (len(times) // 3),
            "at": [hour * HOUR for hour in times],
            "quote": [None if index % 7 == 0 else index / 8 for index in range(len(times))],
        },
        schema={"shop": pl.String, "at": pl.Datetime("ms"), "quote": pl.Float64},
    )


def shops() -> pl.DataFrame:
    """Return one row per shop but one."""
    return pl.DataFrame({"shop": ["☃", "north"], "size": [3, 41]})


def make(place: Path) -> None:
    """Make the store: every kind of entry in its snapshots, a tag, and an append.

    Two tables of three partitions and one without time, features of each kind and scope, one that
    was defined by a selector, and one that was defined and never built.
    """
    import golden_functions

    store = fs.FeatureStore.create(place, workers=1)
    store.ingest("shops", shops(), key="shop").feature(
        golden_functions.double_size, inputs="size", output="double"
    )
    store.ingest("quotes", quotes(), key="shop", time="at", partition_bytes=650).add(
        fs.Standardize(fs.numeric(), prefix="z_"), fit_on="all"
    )
    table = store.ingest("trades", trades(0, ROWS), key="shop", time="at", partition_bytes=1100)
    table.add(
        fs.Expression(value=nw.col("price") * nw.col("pieces")),
        fs.Rolling("price", "12h", stats=["sum", "max", "count"]),
        fs.AsOfJoin("quotes", columns="quote", max_age="6h"),
        fs.Function(golden_functions.price_pair, inputs="price", output="pair", shape=(2,)),
        fs.Calendar("at", parts=("hour", "weekday")),
        fs.CrossSection("price", stats=["rank"]),
        fs.Lag("value"),
        fs.Lookup("shops", "size"),
    )
    table.add(fs.Standardize("price", prefix="std_"), fit_on=("1970-01-01", "1970-01-03"))
    table.add(fs.Impute("pieces", prefix="full_"), fit_on=("1970-01-01", "1970-01-03"))
    table.add(fs.Categorify("shop", prefix="code_"), fit_on=("1970-01-01", "1970-01-03"))
    store.tag(TAG)
    table.append(trades(ROWS, 12))
    assert store.table("quotes").partitions == 3, store.table("quotes").partitions
    assert store.checkout(TAG).table("trades").partitions == 3, table.partitions


def content(table: fs.Table, columns: tuple[str, ...] | None = None) -> dict[str, list[Any]]:
    """Return columns as JSON values: times as integers, tensors as nested lists."""
    frame = table.read(columns).with_columns(pl.col(pl.Datetime).to_physical())
    return {name: json.loads(json.dumps(frame[name].to_list())) for name in frame.columns}


def expected(place: Path) -> dict[str, Any]:
    """Return what reading the store gives, and what it gives once a copy of it is built."""
    store = fs.FeatureStore.open(place)
    base = ("shop", "at", "price", "pieces")
    found = {
        "history": [one.id for one in store.history()],
        "operations": [one.operation for one in store.history()],
        "quotes": content(store.table("quotes")),
        "shops": content(store.table("shops"), ("shop", "size")),
        "trades": content(store.table("trades"), base),
        "tagged": content(store.checkout(TAG).table("trades")),
        "missing": store.table("trades").status()["value"].missing,
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(place, Path(folder) / "s")
        store = fs.FeatureStore.open(Path(folder) / "s", workers=1)
        for name in store.tables():
            store.table(name).build()
        found["built"] = content(store.table("trades"))
        found["built_shops"] = content(store.table("shops"))
    return found


def main() -> None:
    sys.path.insert(0, str(HERE))
    place = HERE / f"v{FORMAT_VERSION}"
    if place.exists():
        raise SystemExit(f"{place} exists; a golden store is never made again")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "s"
        make(made)
        for leftover in ("tmp", "journal"):
            shutil.rmtree(made / leftover, ignore_errors=True)
        size = sum(one.stat().st_size for one in made.rglob("*") if one.is_file())
        assert size < LIMIT, size
        values = json.dumps(expected(made), ensure_ascii=False, separators=(",", ":"))
        shutil.copytree(made, place)
    place.with_suffix(".json").write_text(values + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
