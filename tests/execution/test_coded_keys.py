"""Keys read as dictionaries, and rows of the other table left unread, change no value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore as fs
from featurestore.engines.polars import PolarsEngine
from featurestore.schema import Field, TableSchema
from featurestore.storage import column_group, group_writer, row_ranges
from featurestore.storage.dictionary_pages import kept_as_dictionaries
from featurestore.transforms import matched_rows
from featurestore.transforms.base import Partition, Transformer
from featurestore.transforms.matching import Matching

ENGINE = PolarsEngine()
STARTED = dict[str, Any](time="t", key=["k"], duplicates="keep")
BOTH: dict[str, Any] = {"by": {"k": "k", "g": "g"}}
JOINS: dict[str, Transformer] = {
    "newest": fs.AsOfJoin("other", ["x", "s"], by="k", prefix="o_"),
    "young": fs.AsOfJoin("other", ["x"], max_age="40s", lag="2s", exact=False, prefix="o_", **BOTH),
    "late": fs.AsOfJoin("other", ["x"], by={"g": "k"}, available="a", prefix="o_"),
    "whole key": fs.AsOfJoin("other", ["k"], by="g", prefix="o_"),
    "numbers too": fs.AsOfJoin("other", ["x"], by=["g", "n"], prefix="o_"),
    "sums": fs.AsOfAggregate("other", "x", "30s", stats=["sum", "count"], by="g", available="a"),
    "last": fs.AsOfWindow("other", "x", 3, fill_value=9.0, length=True, **BOTH),
    "ever": fs.Lookup("other", ["x"], by=["k", "n"], prefix="o_"),
    "by then": fs.Lookup("other", ["s"], by="k", lag="1s", prefix="o_"),
}


def made(rows: int, seed: int, keys: int) -> pa.Table:
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 400, rows)) * 1000
    groups = random.integers(0, 4, rows)
    return pa.table(
        {
            "t": pa.array(times, pa.timestamp("ms")),
            "k": [f"key{one}é" for one in random.integers(0, keys, rows)],
            "g": [None if one == 3 else f"key{one}é" for one in groups],
            "n": random.integers(0, 3, rows),
            "x": random.standard_normal(rows),
            "s": [None if one < 2 else "s" * one for one in random.integers(0, 9, rows)],
            "a": pa.array(times + random.integers(0, 30, rows) * 1000, pa.timestamp("ms")),
        }
    )


def values(folder: Path, join: Transformer, *, coded: bool) -> tuple[pa.Table, list[Any]]:
    """Return what a join gives, and which columns were read as dictionaries."""
    found, as_arrow = list[Any](), kept_as_dictionaries

    def seen(metadata: Any, names: Any) -> list[str]:
        found.append(as_arrow(metadata, names) if coded else [])
        return list(found[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_writer, "ROW_GROUP_ROWS", 16)
        patch.setattr(column_group, "kept_as_dictionaries", seen)
        if not coded:
            patch.setattr(row_ranges, "row_groups_until", lambda *_: None)
        store = fs.FeatureStore.create(folder / str(coded), workers=1)
        store.ingest("other", made(170, 1, 9), partition_bytes=3000, **STARTED)
        rows = store.ingest("rows", made(130, 2, 12), partition_bytes=2500, **STARTED)
        assert rows.partitions > 2
        rows.add(join)
    new = [name for name in rows.columns if name not in made(1, 0, 1).column_names]
    return rows.read(new, as_="arrow"), found


@pytest.mark.parametrize("name", sorted(JOINS))
def test_keys_that_are_dictionaries_match_what_they_match_as_texts(
    tmp_path: Path, name: str
) -> None:
    (texts, _), (coded, read) = (values(tmp_path, JOINS[name], coded=one) for one in (False, True))
    assert any(read)
    assert texts.equals(coded)


SCHEMA = TableSchema(tuple(Field(one, pa.string()) for one in "kg"), ("k", "g"))
LEFT = {"k": ["b", None, "c", "b"], "g": ["x", "x", None, "y"]}
RIGHT = {"by_0": ["c", "b", "b"], "by_1": ["y", "y", "x"]}


@pytest.mark.parametrize("own", [(), ("k",), ("g",), ("k", "g")])
@pytest.mark.parametrize("theirs", [(), ("by_0",), ("by_1",), ("by_0", "by_1")])
@pytest.mark.parametrize("count", [1, 2])
def test_rows_match_however_keys_are_held(
    own: tuple[str, ...], theirs: tuple[str, ...], count: int
) -> None:
    keys = {one: one for one in "kg"[:count]}
    schema = TableSchema((*SCHEMA, Field("n", pa.int64())), sources={"o": SCHEMA})
    matching = Matching.of("o", "g", keys, schema, "AsOfJoin")
    numbers = {"n": [0] * 4}
    columns = {one: pa.array(LEFT[one]) for one in "kg"}
    plain = {one: held for one, held in columns.items() if one not in own}
    coded = {one: columns[one].dictionary_encode() for one in own}
    left = Partition(ENGINE.from_arrow(pa.table({**plain, **numbers})), schema, coded=coded)
    others = {one: pa.array(held) for one, held in list(RIGHT.items())[:count]}
    rest = {one: held for one, held in others.items() if one not in theirs}
    there = {one: held.dictionary_encode() for one, held in others.items() if one in theirs}
    right = ENGINE.from_arrow(pa.table({**rest, "column_0": [1, 2, 3]}))
    mine, yours, valid = matched_rows.matched_codes(ENGINE, left, right, there, matching)
    used = list(LEFT)[:count]
    wanted = [
        [
            all(LEFT[one][i] == others[f"by_{at}"][j].as_py() for at, one in enumerate(used))
            for j in range(3)
        ]
        for i in range(4)
    ]
    assert (np.asarray(mine)[:, None] == np.asarray(yours)[None, :]).tolist() == wanted
    assert valid.tolist() == [all(LEFT[one][i] is not None for one in used) for i in range(4)]


def test_texts_of_many_values_are_read_as_texts(tmp_path: Path) -> None:
    store = fs.FeatureStore.create(tmp_path, workers=1)
    names = [f"{one:064d}" for one in range(3000)]
    many = pa.table({"t": pa.array(range(3000), pa.timestamp("ms")), "k": names})
    store.ingest("rows", many, time="t", key="k")
    (path,) = tmp_path.glob("data/rows/base/*.parquet")
    metadata = pq.read_metadata(path)
    assert kept_as_dictionaries(metadata, ["k", "t"]) == []
