"""Slices are planned so that what they cost is a bound, for any rows that fit what is recorded."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import InvalidInputError
from featurestore.plan.slicing import (
    MOST_SLICES,
    SliceLimits,
    Work,
    carries_state,
    least_rows,
    row_group_rows,
    slice_extent,
    slice_limits,
)
from featurestore.schema import Field, TableSchema
from featurestore.storage.row_width import row_widths, widest_row
from featurestore.transforms.base import Transformer
from featurestore.transforms.extent import Extent

NUMBERS = fs.Expression(sum=nw.col("x") + nw.col("y"))
TEXTS = fs.Expression(length=nw.col("s").str.len_chars())


def schema_of(table: pa.Table, time: str | None = None) -> TableSchema:
    return TableSchema(tuple(Field(one.name, one.type) for one in table.schema), (), time)


def extent_of(table: pa.Table) -> Extent:
    sizes = {name: table[name].nbytes for name in table.column_names}
    return Extent(table.num_rows, sizes, widest_row(table))


def work(transformer: Transformer, rows: int, **options: Any) -> Work:
    schema = TableSchema(
        (Field("x", pa.float64()), Field("y", pa.float64()), Field("t", pa.int64()))
    )
    timed = TableSchema(schema.fields, (), "t")
    names = transformer.inputs(timed)
    extent = Extent(rows, dict.fromkeys(names, 8 * rows), 8 * len(names))
    return Work(transformer, timed, timed, extent, 8 * rows, **options)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_slice_within_the_limits_is_larger_than_what_is_said_of_it(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 60))
    text = st.none() | st.text(max_size=3) | st.just("w" * 90)
    table = pa.table(
        {
            "s": pa.array(data.draw(st.lists(text, min_size=count, max_size=count)), pa.string()),
            "l": pa.array(
                data.draw(
                    st.lists(
                        st.none() | st.lists(st.booleans() | st.none(), max_size=9),
                        min_size=count,
                        max_size=count,
                    )
                ),
                pa.list_(pa.bool_()),
            ),
            "x": pa.array(np.arange(count) / 7),
            "b": pa.array([None, True] * (count // 2) + [False] * (count % 2), pa.bool_()),
        }
    )
    schema, extent = schema_of(table), extent_of(table)
    limits = slice_limits(TEXTS, schema, extent, data.draw(st.integers(1, count)))
    largest = slice_extent(schema, extent, limits)
    widths = {name: _each(table[name]) for name in limits.column_bytes}
    start = data.draw(st.integers(0, count - 1))
    stop = start + 1
    while (
        stop < count
        and stop + 1 - start <= limits.rows
        and all(sum(widths[name][start : stop + 1]) <= limits.column_bytes[name] for name in widths)
    ):
        stop += 1
    part = pa.concat_tables([table.slice(start, stop - start)]).take(list(range(stop - start)))
    for name, most in largest.column_bytes.items():
        assert part[name].combine_chunks().nbytes <= most, name
        # One row always fits, however wide it is.
        assert name not in widths or max(widths[name]) <= limits.column_bytes[name]


def _each(column: pa.ChunkedArray) -> list[int]:
    found = row_widths(column.combine_chunks())
    return [found] * len(column) if isinstance(found, int) else [int(one) for one in found]


class TestPortions:
    def test_what_fits_is_not_cut(self) -> None:
        one = work(NUMBERS, 1_000_000)
        found = one.portions(one.whole_bytes)
        assert (found.bytes, found.limits) == (one.whole_bytes, None)

    @pytest.mark.parametrize("room", [60, 100, 200])
    def test_what_does_not_fit_is_cut_into_slices_that_do(self, room: int) -> None:
        one = work(NUMBERS, 20_000_000)
        found = one.portions(room * 2**20)
        assert found.limits is not None
        assert found.limits.column_bytes == {}
        assert room * 2**20 / 2 <= found.bytes <= room * 2**20
        assert found.limits.rows % row_group_rows(one.extent) == 0
        assert found == one.sliced(found.limits.rows)

    def test_more_room_gives_larger_slices(self) -> None:
        one = work(NUMBERS, 20_000_000)
        rows = [one.portions(room * 2**20).limits.rows for room in (40, 80, 160, 320)]  # type: ignore[union-attr]
        assert rows == sorted(rows)
        assert rows[-1] > 4 * rows[0]

    def test_what_cannot_be_cut_small_enough_says_what_it_takes(self) -> None:
        one = work(NUMBERS, 20_000_000)
        assert one.portions(2**14).bytes == one.whole_bytes
        least = one.least
        assert least.bytes < one.whole_bytes
        assert one.portions(least.bytes).bytes <= least.bytes

    def test_rows_of_one_time_stay_together(self) -> None:
        ranks = fs.CrossSection("x")
        found = work(ranks, 20_000_000).portions(200 * 2**20)
        assert found.limits is not None
        assert found.limits.whole_times
        alone = work(ranks, 20_000_000, one_time=True)
        assert alone.portions(200 * 2**20) == alone.least == type(found)(alone.whole_bytes)
        assert work(NUMBERS, 20_000_000, one_time=True).portions(200 * 2**20).limits is not None

    def test_a_summary_costs_its_states_as_well(self) -> None:
        learner = fs.Standardize("x")
        found = work(learner, 20_000_000, summarizes=True).portions(100 * 2**20)
        assert found.limits is not None
        assert found.bytes <= 100 * 2**20

    def test_a_tensor_that_is_written_keeps_a_chunk(self) -> None:
        def vector(frame: Any) -> Any:
            return np.zeros((len(frame), 4))

        made = fs.Function(vector, "x", dtypes="float64", shape=(4,))
        flat = fs.Function(vector, "x", "y2", dtypes="float64")
        most = [work(one, 10_000_000).sliced(8192).bytes for one in (made, flat)]
        assert most[0] - most[1] > 16 * 2**20


class TestSmallest:
    def test_partitions_are_not_cut_into_crumbs(self) -> None:
        assert least_rows(NUMBERS, Extent(25)) == 1
        assert least_rows(NUMBERS, Extent(MOST_SLICES * 3 + 1)) == 4
        assert least_rows(NUMBERS, Extent(0)) is None

    def test_one_wide_row_has_room_in_every_slice(self) -> None:
        schema = TableSchema((Field("s", pa.string()),))
        extent = Extent(1000, {"s": 2**20 + 8000}, 2**20 + 4)
        assert slice_limits(TEXTS, schema, extent, 1).column_bytes["s"] >= 2**20 + 4
        assert slice_limits(TEXTS, schema, extent, 1000) == SliceLimits(1000)

    def test_a_slice_needs_a_row(self) -> None:
        with pytest.raises(InvalidInputError, match="0 rows"):
            SliceLimits(0)

    def test_only_a_prefix_of_the_own_table_is_carried(self) -> None:
        assert carries_state(fs.Lag("x"))
        assert not carries_state(fs.AsOfJoin("other", "y"))
        assert not carries_state(fs.Standardize("x"))
        assert not carries_state(NUMBERS)
