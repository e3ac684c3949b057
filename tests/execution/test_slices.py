"""A partition processed in slices gives what it gives as a whole, whatever the transformer and the cuts."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import (
    CorruptionError,
    InvalidInputError,
    MemoryLimitError,
    NotPartitionIndependentError,
)
from featurestore.execution import runner, states
from featurestore.execution.cutting import CutTask, cut_partition
from featurestore.execution.tasks import (
    ApplyTask,
    SummarizeTask,
    apply_partition,
    summarize_partition,
)
from featurestore.plan.slicing import SliceLimits
from featurestore.plan.table_files import load_table_files
from featurestore.storage import group_writer, row_ranges
from featurestore.storage.backends import open_object_store
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.storage.row_width import row_widths
from featurestore.testing.tables import (
    assert_same_rows,
    fitted_of_each,
    labels_of_each,
    names_of_keys,
    observations,
    one_of_each,
)
from featurestore.testing.views import table_view
from featurestore.transforms.base import Slicing

ENGINE = get_engine("polars")


@dataclass
class Slicer:
    """Runs the tasks of builds in random slices, and counts these."""

    seed: int
    slices: int = 0

    def apply(self, task: ApplyTask) -> dict[str, PartitionEntry]:
        return apply_partition(self._in_slices(task))

    def summarize(self, task: SummarizeTask) -> None:
        summarize_partition(self._in_slices(task))

    def _in_slices(self, task: Any) -> Any:
        draw = random.Random(f"{self.seed} {task.source.partition}")
        times = times_of(task)
        works = []
        for work in task.work:
            whose = work.feature if isinstance(task, ApplyTask) else work
            cuts = drawn_slices(task.source.rows, times, whose.transformer.slicing, draw)
            self.slices += len(cuts)
            works.append(replace(work, slices=cuts))
        return replace(task, work=tuple(works))


def times_of(task: Any) -> list[int]:
    if task.schema.time is None:
        return list(range(task.source.rows))
    store = open_object_store(task.url)
    part = task.source.read(store, ENGINE, [task.schema.time], task.schema)
    found: list[int] = ENGINE.values(part.frame[task.schema.time])[0].tolist()
    return found


def drawn_slices(
    rows: int, times: list[int], slicing: Slicing, draw: random.Random
) -> tuple[tuple[int, int], ...]:
    """Return random slices that a transformer allows, single rows among them."""
    share = 1.0 if rows < 25 else draw.choice([0.02, 0.1])
    places = [
        row
        for row in range(1, rows)
        if (slicing is Slicing.ROWS or times[row] != times[row - 1]) and draw.random() < share
    ]
    return tuple(pairwise([0, *places, rows]))


def new_table(rows: int, seed: int) -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
    store.ingest("static", names_of_keys(), key="k")
    store.ingest("other", observations(200, seed + 1, column="y"), key="k", time="t")
    size = random.Random(seed).choice(["3KiB", "64MiB"])
    return store.ingest("t", observations(rows, seed), key="k", time="t", partition_bytes=size)


def records(table: fs.Table) -> dict[str, list[PartitionEntry]]:
    """Return what is recorded of each column's partitions, but for Parquet's names and bytes."""
    session = table._session
    files = load_table_files(session.objects, session.snapshot(), table.name)
    base = {one.partition: number for number, one in enumerate(files.base)}
    found = {}
    for group, definition in files.groups.items():
        entries = sorted(files.entries[group].values(), key=lambda one: base[one.partition])
        found[",".join(definition.names)] = [
            replace(
                one,
                partition=f"p{base[one.partition]}",
                files=(),
                tensors={name: nameless(made) for name, made in one.tensors.items()},
                provenance=replace(one.provenance, inputs=""),
            )
            for one in entries
        ]
    return found


def states_kept(table: fs.Table) -> int:
    return sum(1 for _ in table._session.objects.list("states"))


def nameless(files: tuple[StoredFile, ...]) -> tuple[StoredFile, ...]:
    return tuple(replace(one, path=f"f{number}") for number, one in enumerate(files))


class TestEveryTransformer:
    def test_all_of_them_say_where_they_may_be_cut(self) -> None:
        found = {type(one).__name__: one.slicing for one in (*one_of_each(), *fitted_of_each())}
        assert Slicing.NONE not in found.values()
        assert found["CrossSection"] is Slicing.TIMES
        assert fs.Rolling("x", "1d").slicing is Slicing.TIMES
        assert fs.Rolling("x", 3).slicing is Slicing.ROWS
        assert fs.Function(looks_at_all_rows, "x").slicing is Slicing.ROWS
        assert fs.Function(looks_at_all_rows, "x", lookback="1d").slicing is Slicing.TIMES

    @pytest.mark.parametrize("seed", range(5))
    def test_values_and_entries_are_those_of_the_whole(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [1, 2, 20, 150, 300][seed]
        whole, parts = new_table(rows, seed), new_table(rows, seed)
        whole.add(*one_of_each(), *labels_of_each())
        slicer = Slicer(seed)
        monkeypatch.setattr(runner, "apply_partition", slicer.apply)
        monkeypatch.setattr(group_writer, "ROW_GROUP_ROWS", 1 + 37 * seed)
        parts.add(*one_of_each(), *labels_of_each())
        assert slicer.slices >= len(one_of_each()) * parts.partitions
        assert states_kept(parts) == states_kept(whole), "those behind slices are gone again"
        assert_same_rows(parts.read(), whole.read())
        assert records(parts) == records(whole)

    @pytest.mark.parametrize("seed", range(3))
    def test_what_is_learnt_in_slices_is_what_is_learnt(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = [7, 100, 200][seed]
        whole, parts = new_table(rows, seed), new_table(rows, seed)
        whole.add(*one_of_each(), *labels_of_each())
        whole.add(*fitted_of_each(), fit_on=("1970-01-01", "1970-01-04"))
        slicer = Slicer(seed)
        monkeypatch.setattr(states, "summarize_partition", slicer.summarize)
        parts.add(*one_of_each(), *labels_of_each())
        parts.add(*fitted_of_each(), fit_on=("1970-01-01", "1970-01-04"))
        assert slicer.slices >= len(fitted_of_each())
        assert_same_rows(parts.read(), whole.read())

    def test_a_function_is_tried_again_before_it_is_cut(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rows it was tried on when it was defined did not show what it does."""
        store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}")
        rows = pa.table({"t": range(40), "x": [1.0] * 20 + [1000.0] * 20})
        table = store.ingest("t", rows.slice(0, 20), time="t")
        table.add(fs.Function(looks_at_all_rows, "x", output="share"))
        table.append(rows.slice(20))
        monkeypatch.setattr(runner, "apply_partition", Slicer(3).apply)
        with pytest.raises(NotPartitionIndependentError, match="share"):
            table.build()


def looks_at_all_rows(frame: Any) -> Any:
    x = frame["x"]
    return x / x.sum() if x.max() > 100 else x


TABLE_ROWS = 40


def mixed(rows: int) -> pa.Table:
    return pa.table(
        {
            "t": pa.array([n // 3 for n in range(rows)], pa.int64()),
            "s": pa.array([None if n % 5 == 3 else "x" * (n % 7) for n in range(rows)], "string"),
            "l": pa.array([[n] * (n % 3) for n in range(rows)], pa.list_(pa.int64())),
            "x": pa.array([None if n % 4 == 1 else n / 3 for n in range(rows)], pa.float64()),
        }
    )


def view_of(table: pa.Table, sizes: tuple[int, int], **options: Any) -> Any:
    """Return a view of one partition whose two files have row groups of these sizes."""
    waiting = iter(sizes)
    real = group_writer.begin_partition
    with pytest.MonkeyPatch.context() as patch:

        def begin(*arguments: Any, **given: Any) -> Any:
            patch.setattr(group_writer, "ROW_GROUP_ROWS", next(waiting))
            return real(*arguments, **given)

        patch.setattr("featurestore.storage.column_group.begin_partition", begin)
        store = open_object_store(f"memory://{uuid.uuid4().hex}")
        return table_view(store, table, time="t", features=["l", "x"], **options)


class TestRangedReads:
    @given(st.data())
    @settings(max_examples=30, deadline=None)
    def test_rows_of_groups_whose_row_groups_are_not_aligned(self, data: st.DataObject) -> None:
        rows = data.draw(st.integers(0, TABLE_ROWS))
        table = mixed(rows)
        vectors = np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3)
        sizes = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
        view = view_of(table, sizes, tensors={"v": vectors})
        one = view.partitions[0]
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        names = data.draw(st.permutations(["t", "s", "l", "x"]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_ranges, "_MOST_ROWS", data.draw(st.integers(1, 50)))
            patch.setattr(row_ranges, "_LEAST_ROWS", 1)
            found = one.read(view.store, ENGINE, [*names, "v"], view.schema, (start, stop))
            blocks = list(one.blocks(view.store, names))
        expected = table.select(names).slice(start, stop - start)
        assert ENGINE.to_arrow(found.frame).to_pydict() == expected.to_pydict()
        assert np.array_equal(found.tensors["v"], vectors[start:stop])
        together = pa.concat_tables([table.select(names).slice(0, 0), *blocks])
        assert together.to_pydict() == table.select(names).to_pydict()

    def test_rows_that_are_not_there(self) -> None:
        view = view_of(mixed(10), (4, 4))
        for rows in ((-1, 3), (3, 11), (5, 4)):
            with pytest.raises(InvalidInputError, match="not within partition"):
                view.partitions[0].read(view.store, ENGINE, ["x"], view.schema, rows)

    def test_a_damaged_page_is_found_by_whoever_reads_it(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(5)
        table = pa.table({"t": np.arange(200_000), "x": rng.random(200_000)})
        store = open_object_store(tmp_path / "s")
        view = table_view(store, table, time="t")
        one = view.partitions[0]
        file = tmp_path / "s" / one.base.files[0].path
        content = bytearray(file.read_bytes())
        content[-40_000] ^= 1  # within the last row group
        file.write_bytes(content)
        assert one.read(store, ENGINE, ["x"], view.schema, (0, 65_536)).rows == 65_536
        with pytest.raises(CorruptionError):
            one.read(store, ENGINE, ["x"], view.schema, (196_000, 200_000))
        with pytest.raises(CorruptionError):
            list(one.blocks(store, ["x"]))


class TestCutting:
    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_slices_cover_all_rows_within_their_limits(self, data: st.DataObject) -> None:
        rows = data.draw(st.integers(0, TABLE_ROWS))
        table = mixed(rows)
        view = view_of(table, data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
        whole = data.draw(st.booleans())
        least = 3 if whole else 1
        names = data.draw(st.lists(st.sampled_from(["s", "l"]), unique=True))
        widths = {name: widths_of(table[name]) for name in names}
        limits = SliceLimits(
            data.draw(st.integers(least, 12)),
            {
                name: data.draw(st.integers(least * max(one, default=1), 60))
                for name, one in widths.items()
            },
            whole_times=whole,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_ranges, "_MOST_ROWS", data.draw(st.integers(1, 50)))
            patch.setattr(row_ranges, "_LEAST_ROWS", 1)
            found = cut_partition(
                CutTask(view.store.url, view.partitions[0], view.schema, limits, "x")
            )
        assert [row for start, stop in found for row in range(start, stop)] == list(range(rows))
        times = table["t"].to_pylist()
        for start, stop in found:
            assert 0 < stop - start <= limits.rows
            for name, most in limits.column_bytes.items():
                assert sum(widths[name][start:stop]) <= most
            assert not whole or stop == rows or times[stop] != times[stop - 1]
        for (start, stop), (_, following) in pairwise(found):
            # As few as fit: the next place where it might have ended would have been too much.
            longer = stop + 1
            while whole and longer < rows and times[longer] == times[longer - 1]:
                longer += 1
            assert longer <= following or longer > rows
            assert longer - start > limits.rows or any(
                sum(widths[name][start:longer]) > most for name, most in limits.column_bytes.items()
            )

    def test_one_time_that_is_larger_than_a_slice(self) -> None:
        table = pa.table({"t": [1, 2, 2, 2, 3], "l": [[1]] * 5, "x": [1.0] * 5})
        view = view_of(table, (2, 2))
        task = CutTask(
            view.store.url,
            view.partitions[0],
            view.schema,
            SliceLimits(2, {}, whole_times=True),
            "x_rank",
        )
        with pytest.raises(MemoryLimitError, match=r"x_rank .* the 3 rows of one time from row 1"):
            cut_partition(task)
        known = replace(task, bytes=10 * 2**20, memory_limit=100 * 2**20)
        with pytest.raises(MemoryLimitError, match="raise memory_limit to at least 105MiB"):
            cut_partition(known)
        with pytest.raises(MemoryLimitError, match="raise memory_limit to at least 110MiB"):
            cut_partition(replace(known, at_once=2))
        # Of each list 12 bytes, so that three take half as much again.
        wide = replace(known, limits=SliceLimits(9, {"l": 24}, whole_times=True))
        with pytest.raises(MemoryLimitError, match="raise memory_limit to at least 105MiB"):
            cut_partition(wide)
        assert cut_partition(replace(task, limits=SliceLimits(3, {}, whole_times=True))) == (
            (0, 1),
            (1, 4),
            (4, 5),
        )

    def test_a_slice_needs_a_row(self) -> None:
        with pytest.raises(InvalidInputError, match="0 rows"):
            SliceLimits(0)


def widths_of(column: pa.ChunkedArray) -> list[int]:
    widths = row_widths(column.combine_chunks())
    assert not isinstance(widths, int)
    return [int(one) for one in widths]
