"""Column names that a library might read as something else: positions, ways into a table, wildcards."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.errors import DefinitionError, SchemaError

PLAIN = ("k", "t", "v")
STRANGE = [("[1]", "[0]", ".v"), (".k", "..", "$float"), ("*x", "a.b", "x\"y'/z")]


def built(names: tuple[str, str, str]) -> list[list[Any]]:
    """Return the columns of a table, what was made of them, and what is served, without names."""
    key, time, value = names
    frame = pl.DataFrame(
        {
            key: ["b", "c", "a"] * 4,
            time: [dt.date(2024, 1, 1 + i // 3) for i in range(12)],
            value: [float(i * 7 % 5) for i in range(12)],
        }
    )
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    table = store.ingest("rows", frame[:9], key=key, time=time)
    table.add(
        fs.Lag(value, prefix="lag_"),
        fs.Rank(value),
        fs.Diff(value, prefix="diff_"),
        fs.GroupStats(value, by=key, prefix="mean_"),
        fs.TargetEncode(key, value, prefix="target_"),
        fit_on=("2024-01-01", "2024-01-04"),
    )
    made = [
        f"lag_{value}_lag_1",
        f"{value}_rank",
        f"diff_{value}_diff_1",
        f"mean_{value}_mean_by_{key}",
        f"target_{key}_{value}_mean",
    ]
    served = table.compute(frame[9:][::-1], made)
    table.append(frame[9:])
    table.build()
    found = table.read()
    whole = [found[one].to_list() for one in (*names, *made)]
    assert whole[0] == ["a", "b", "c"] * 4
    assert [served[one].to_list() for one in made] == [
        [one[i] for i in (9, 11, 10)]
        for one in whole[3:]  # a, c, b: as they were given
    ]
    return whole


@pytest.mark.parametrize("names", STRANGE)
def test_names_mean_nothing(names: tuple[str, str, str]) -> None:
    assert built(names) == built(PLAIN)


@pytest.mark.parametrize("name", ["*", "^v$", "^.*$"])
def test_names_that_polars_takes_for_patterns_are_refused(name: str) -> None:
    """Reading column ``^v$`` would give the values of ``v``."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(SchemaError, match="would be read as a pattern"):
        store.ingest("rows", pl.DataFrame({"v": [1.0], name: [2.0]}))
    table = store.ingest("rows", pl.DataFrame({"v": [1.0]}))
    with pytest.raises(SchemaError, match="would be read as a pattern"):
        table.add(fs.Log("v", rename={"v": name}))


def test_reserved_names_are_said_to_be_reserved() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(SchemaError, match="'__fs_row' begins with the reserved prefix"):
        store.ingest("rows", pl.DataFrame({"__fs_row": [1.0]}))


def test_lists_are_no_groups() -> None:
    """Of one partition they would do, and not of two."""
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    day = dt.date(2024, 1, 1)
    table = store.ingest("rows", pl.DataFrame({"t": [day], "l": [[1, 2]], "x": [1]}), time="t")
    for one in (
        fs.CumCount(by="l"), fs.TimeSince(by="l"), fs.Lag("t", by="l"), fs.Rank("x", by="l"),
    ):  # fmt: skip
        with pytest.raises(DefinitionError, match=r"cannot group by list.* column 'l'"):
            table.add(one)
    for join in (fs.AsOfJoin, fs.Lookup):
        with pytest.raises(DefinitionError, match=r"cannot compare tensors or lists: 'l'"):
            table.add(join("rows", "x", by="l", prefix="j_"))


def test_a_nul_in_a_name_is_refused() -> None:
    """Handing it over, Polars ends the process and Arrow cuts the name short."""
    store = fs.FeatureStore.create("memory://nul-in-a-name")
    for rows in (pl.DataFrame({"a\x00b": [1]}), pa.table({"a\x00b": [1]})):
        with pytest.raises(SchemaError, match=r"NUL|cannot name"):
            store.ingest("rows", rows)
