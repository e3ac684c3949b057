"""Sorted runs gone through side by side, against a sort of everything in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.storage.scratch import Scratch
from featurestore.storage.sorted_runs import Run, RunWriter, key_ranges
from featurestore.storage.spill import SpillFile

KEYS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "text": (
        pa.string(),
        st.one_of(
            st.none(), st.sampled_from(["", "a", "ab", "ä", "日本", "🎈", "\U0010ffff", "\uffff"]),
            st.text(max_size=3),
        ),
    ),
    "integer": (pa.int64(), st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))),
    "unsigned": (pa.uint64(), st.one_of(st.none(), st.integers(0, 2**64 - 1))),
    "boolean": (pa.bool_(), st.sampled_from([None, False, True])),
}  # fmt: skip


@st.composite
def sorted_tables(draw: st.DrawFn) -> tuple[list[pa.Table], list[str]]:
    """Return tables in order of one or two key columns, in which a key may occur several times."""
    kinds = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=2))
    order = [f"key_{number}" for number in range(len(kinds))]
    tables = []
    for number in range(draw(st.integers(0, 7))):
        rows = draw(st.integers(0, 12))
        columns = {
            name: pa.array(
                draw(st.lists(KEYS[kind][1], min_size=rows, max_size=rows)), KEYS[kind][0]
            )
            for name, kind in zip(order, kinds, strict=True)
        }
        table = pa.table({**columns, "run": pa.array([number] * rows, pa.int64())})
        tables.append(table.sort_by([(name, "ascending") for name in order]))
    return tables, order


def written(spill: SpillFile, tables: Sequence[pa.Table], segment: int) -> list[Run]:
    runs = []
    for table in tables:
        writer = RunWriter(spill, segment)
        for start in range(0, table.num_rows, 5):
            writer.add(table.slice(start, 5))
        runs.append(writer.end())
    return runs


@settings(deadline=None, max_examples=100)
@given(sorted_tables(), st.integers(1, 200))
def test_ranges_are_all_rows_in_order_and_hold_every_row_of_their_keys(
    given_: tuple[list[pa.Table], list[str]], segment: int
) -> None:
    tables, order = given_
    with SpillFile() as spill:
        ranges = list(key_ranges(written(spill, tables, segment), order))
    seen: set[tuple[Any, ...]] = set()
    for parts in ranges:
        runs = [part["run"][0].as_py() for part in parts]
        assert runs == sorted(set(runs))
        keys = {
            key
            for part in parts
            for key in zip(*part.select(order).to_pydict().values(), strict=True)
        }
        assert not keys & seen
        seen |= keys
        for part in parts:
            assert len(set(part["run"].to_pylist())) == 1
    if not any(table.num_rows for table in tables):
        assert not ranges
        return
    by_key = [(name, "ascending") for name in order]
    found = pa.concat_tables([pa.concat_tables(parts).sort_by(by_key) for parts in ranges])
    assert found.equals(pa.concat_tables(tables).sort_by(by_key))


def test_as_few_rows_are_held_as_there_are_runs_and_segments(tmp_path: Path) -> None:
    tables = [pa.table({"key": pa.array(range(n, 8_000, 8), pa.int64())}) for n in range(8)]
    with SpillFile(Scratch(tmp_path)) as spill:
        runs = written(spill, tables, 1024)
        assert all(one.rows * 8 <= 1024 for run in runs for one in run.segments)
        sizes = [sum(part.num_rows for part in parts) for parts in key_ranges(runs, ["key"])]
    assert sum(sizes) == 8_000
    assert max(sizes) <= 8 * (1024 // 8 + 1)
    assert len(sizes) <= sum(len(run.segments) for run in runs)


def test_many_rows_of_one_key_come_together(tmp_path: Path) -> None:
    tables = [pa.table({"key": pa.array([1] * 1000 + [2] * 1000)}), pa.table({"key": [1, 3]})]
    with SpillFile(Scratch(tmp_path)) as spill:
        ranges = list(key_ranges(written(spill, tables, 1024), ["key"]))
    assert [[part.num_rows for part in parts] for parts in ranges] == [[1000, 1], [1000, 1]]


@pytest.mark.parametrize("width", [1, 1000, 1_000_000])
def test_a_row_is_never_divided_however_wide(tmp_path: Path, width: int) -> None:
    table = pa.table({"key": ["a" * width, "b", "c" * width]})
    with SpillFile(Scratch(tmp_path)) as spill:
        (run,) = written(spill, [table], 100)
        rows = [part for parts in key_ranges([run], ["key"]) for part in parts]
    assert pa.concat_tables(rows).equals(table)
