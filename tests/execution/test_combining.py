"""States combined by ranges of their values: the same bits as in memory, within what was said it takes."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, LimitError, MemoryLimitError
from featurestore.execution.budget import budget_of
from featurestore.execution.combining import learn
from featurestore.execution.events import Event, StepStarted, TaskStarted, observed_by
from featurestore.execution.merging import CombineWork
from featurestore.plan.combining import (
    Combining,
    combining,
    finishing_bytes,
    keeping_room,
    most_combining,
)
from featurestore.plan.costs import combine_bytes
from featurestore.plan.definition import FeatureDefinition
from featurestore.storage.backends import open_object_store
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateLostError, StateStore, encode_state
from featurestore.testing.partitions import cut_table
from featurestore.transforms.base import EMPTY_STATE, State, Transformer
from featurestore.transforms.categories import Categorify
from featurestore.transforms.frequency import FrequencyEncode
from featurestore.transforms.group_stats import GroupStats
from featurestore.transforms.impute import Impute
from featurestore.transforms.one_hot import OneHot
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.target_encoding import TargetEncode
from featurestore.transforms.tf_idf import TfIdf

ENGINE = get_engine("polars")
KIB, MIB = 2**10, 2**20
HELD = 2**30
LARGE = 2**40

TYPES = {
    "s": (
        pa.string(),
        st.one_of(
            st.none(),
            st.sampled_from(["", "a", "b", "ä", "日本", "🎈", "\U0010ffff", "\uffff", "a\x00"]),
            st.text(max_size=3),
        ),
    ),
    "i": (pa.int64(), st.one_of(st.none(), st.integers(-4, 4))),
    "u": (pa.uint64(), st.sampled_from([None, 0, 1, 2**63, 2**64 - 1])),
    "b": (pa.bool_(), st.sampled_from([None, False, True])),
}


@st.composite
def partitions(draw: st.DrawFn) -> tuple[list[pa.Table], list[str]]:
    """Return rows of several partitions, some of them empty, and the columns that are counted."""
    names = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=3, unique=True))
    tables = []
    for _ in range(draw(st.integers(1, 9))):
        rows = draw(st.integers(0, 14))
        tables.append(
            pa.table(
                {
                    name: pa.array(
                        draw(st.lists(TYPES[name][1], min_size=rows, max_size=rows)), TYPES[name][0]
                    )
                    for name in names
                }
            )
        )
    return tables, names


class Kept:
    """Summaries of some tables, kept in a store of their own."""

    def __init__(self, transformer: Transformer, tables: Sequence[pa.Table]) -> None:
        self.transformer = transformer
        self.states = StateStore(open_object_store(f"memory://{uuid.uuid4().hex}"))
        self.parts: list[State] = []
        for number, table in enumerate(tables):
            found = EMPTY_STATE
            if table.num_rows:
                found = transformer.summarize(cut_table(table)[0], ENGINE)
            self.parts.append(found)
            self.states.put(f"{number:08x}", found)
        self.keys = [f"{number:08x}" for number in range(len(tables))]
        self.sizes = self.states.sizes(self.keys)

    def expected(self) -> bytes:
        combined = reduce(self.transformer.combine, self.parts, EMPTY_STATE)
        return encode_state(self.transformer.finish(combined))

    def work(self, way: Combining) -> CombineWork:
        return CombineWork(self.transformer, self.keys, self.sizes, way)

    def found(self, way: Combining, scratch: Scratch, limit: int = LARGE) -> bytes:
        """Combine, and return what is kept."""
        key = uuid.uuid4().hex
        learn(self.work(way), key, self.states, limit, scratch)
        return encode_state(self.states.require(key))


def transformers(names: Sequence[str]) -> st.SearchStrategy[Transformer]:
    return st.one_of(
        st.builds(
            Categorify,
            st.just(tuple(names)),
            max_size=st.one_of(st.none(), st.integers(1, 6)),
            min_count=st.integers(1, 3),
        ),
        st.just(Impute(tuple(names), "most_frequent")),
    )


def has_a_value(table: pa.Table, name: str) -> bool:
    return bool(table[name].null_count < table.num_rows)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_by_ranges_is_as_in_memory_to_the_bit(data: st.DataObject) -> None:
    tables, names = data.draw(partitions())
    transformer = data.draw(transformers(names))
    if not all(any(has_a_value(table, name) for table in tables) for name in names):
        return  # Impute has nothing to fill in
    kept, scratch = Kept(transformer, tables), Scratch()
    expected = kept.expected()
    assert kept.found(Combining(0), scratch) == expected
    assert scratch.most == 0
    fan_in, segment = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 200))
    assert kept.found(Combining(0, 0, fan_in, segment), scratch) == expected
    assert scratch.used == 0 < scratch.most
    assert budget_of().in_flight == 0


def words(partitions: int, rows: int, shift: int) -> list[pa.Table]:
    """Return words of which each partition shares some with the next."""
    return [
        pa.table({"s": [f"word {number * shift + row:08d}" for row in range(rows)]})
        for number in range(partitions)
    ]


@pytest.mark.parametrize(
    "transformer",
    [
        TargetEncode(["s", "g"], "x", jointly=True, fold_by="x"),
        TargetEncode(["s", "g"], ["x", "g2"], folds=3, fold_by="x"),
        GroupStats(["x", "g2"], by=["g", "s"], stats=["mean", "std", "min", "count"]),
        FrequencyEncode("s", share=True, min_count=2),
        OneHot("s", size=7),
        TfIdf("s", 5),
    ],
    ids=lambda one: type(one).__name__,
)
def test_sums_and_counts_by_ranges_are_as_in_memory_to_the_bit(transformer: Transformer) -> None:
    random = np.random.default_rng(0)
    tables = [
        pa.table(
            {
                "s": pa.array([f"w{one}" for one in random.integers(0, 40, 30)], pa.string()),
                "g": random.integers(0, 3, 30),
                "g2": random.integers(-(2**62), 2**62, 30),
                "x": random.standard_normal(30) * 10.0 ** random.integers(-20, 20, 30),
            }
        )
        for _ in range(7)
    ]
    kept, scratch = Kept(transformer, tables), Scratch()
    for fan_in, segment in ((2, 50), (3, 300), (8, 5000)):
        assert kept.found(Combining(0, 0, fan_in, segment), scratch) == kept.expected()
    assert scratch.used == 0 < scratch.most


@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("fan_in", [2, 3, 16, 17])
def test_any_number_of_passes_gives_the_same(tmp_path: Path, count: int, fan_in: int) -> None:
    kept = Kept(Categorify("s", max_size=30, min_count=2), words(count, 200, 90))
    scratch = Scratch(tmp_path)
    assert kept.found(Combining(0, 0, fan_in, 500), scratch) == kept.expected()
    assert scratch.used == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [1, 50, 20_000])
@pytest.mark.parametrize("room", [3 * MIB, 40 * MIB])
def test_scratch_space_is_no_more_than_was_said(tmp_path: Path, rows: int, room: int) -> None:
    kept, scratch = Kept(Categorify("s", max_size=9), words(24, rows, rows // 2)), Scratch(tmp_path)
    sizes = [kept.sizes[key] for key in kept.keys]
    way = combining(sizes, room, by_ranges=True)
    if not way.by_ranges:  # so small that nobody would
        way = Combining(0, 2 * sum(sizes) * 17 // 16, fan_in=2, segment_bytes=64 * KIB)
    kept.found(way, scratch)
    assert 0 < scratch.most <= way.scratch_bytes


# --- which way, and what it takes --------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2**32), min_size=1, max_size=200), st.integers(0, 2**36), st.booleans()
)
def test_the_way_fits_wherever_one_does(sizes: list[int], room: int, by_ranges: bool) -> None:
    way = combining(sizes, room, by_ranges=by_ranges)
    if not by_ranges:
        assert not way.by_ranges
        return
    if combine_bytes(sum(sizes), 0) <= room:
        assert not way.by_ranges
        assert way.scratch_bytes == 0
    if way.by_ranges:
        assert 2 <= way.fan_in <= max(2, len(sizes))
        assert way.scratch_bytes >= sum(sizes)
        assert way.bytes <= max(room, 2 * max(sizes) + 9 * MIB)
    assert most_combining(sizes, room, by_ranges=by_ranges).bytes >= way.bytes


def test_without_a_limit_or_an_order_all_is_in_memory() -> None:
    sizes = [2**30] * 5
    assert not combining(sizes, None, by_ranges=True).by_ranges
    assert not combining(sizes, 1, by_ranges=False).by_ranges
    assert not combining([], 0, by_ranges=True).by_ranges


def test_what_learns_numbers_is_combined_in_memory() -> None:
    work = CombineWork.of(Standardize("x"), ["a", "b"], {"a": 2**30, "b": 2**30}, 1)
    assert not work.way.by_ranges
    work = CombineWork.of(Impute("x"), ["a", "b"], {"a": 2**30, "b": 2**30}, 1)
    assert not work.way.by_ranges
    work = CombineWork.of(Impute("x", "most_frequent"), ["a"], {"a": 2**30}, 1)
    assert work.way.by_ranges


# --- what is refused ---------------------------------------------------------------------------------

WAY = Combining(2 * MIB, 0, 4, 64 * KIB)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let this process hold exactly one gibibyte, as far as it knows."""
    monkeypatch.setattr("featurestore.execution.budget.resident_bytes", lambda: HELD)
    # What it really holds is something else, so its peaks cannot be judged.
    monkeypatch.setattr("featurestore.execution.dask.judged", lambda *_: nullcontext())
    return HELD


def test_a_vocabulary_that_is_kept_whole_and_does_not_fit_names_the_limit_that_would_do(
    tmp_path: Path, still: int
) -> None:
    kept = Kept(Categorify("s"), words(8, 40_000, 40_000))
    scratch = Scratch(tmp_path)
    with pytest.raises(MemoryLimitError, match="Categorify learnt of 8 partitions") as caught:
        kept.found(WAY, scratch, still + 16 * MIB)
    assert "max_size=, min_count=" in caught.value.remedy
    # All 320,000 words of 13 letters, with an offset and a count each.
    whole = 320_000 * (13 + 4 + 8)
    assert f"needs {keeping_room(whole) / MIB:.1f} MiB" in caught.value.problem
    assert scratch.used == 0
    assert budget_of().in_flight == 0
    few = Kept(Categorify("s", max_size=1000), words(8, 40_000, 40_000))
    assert few.found(WAY, scratch, still + 16 * MIB) == few.expected()


@pytest.mark.parametrize("most", [None, 20_000])
@pytest.mark.parametrize("beside", [0, 16 * MIB])
def test_the_limit_that_is_named_does_in_one_round(
    tmp_path: Path, still: int, most: int | None, beside: int
) -> None:
    kept, scratch = (
        Kept(Categorify("s", max_size=most), words(8, 10_000, 10_000)),
        Scratch(tmp_path),
    )

    def combine(limit: int) -> bytes:
        work = CombineWork.of(
            kept.transformer, kept.keys, kept.sizes, limit - still - beside, beside
        )
        work.require(limit, still + beside, scratch)
        learn(work, "f" * 8, kept.states, limit, scratch)
        return encode_state(kept.states.require("f" * 8))

    with pytest.raises(MemoryLimitError) as caught:
        combine(still + beside + 10 * MIB)
    named = re.search(r"raise memory_limit to at least (\d+)MiB", caught.value.remedy)
    assert named is not None
    needed = keeping_room((most or 80_000) * (13 + 4 + 8))
    # Whole MiB, and the drift.
    assert still + beside + needed <= int(named[1]) * MIB <= still + beside + needed + 9 * MIB
    assert combine(int(named[1]) * MIB) == kept.expected()
    assert scratch.used == 0 < scratch.most


@given(
    st.lists(st.integers(1, 2**26), min_size=1, max_size=100), st.integers(0, 2**32), st.integers(0)
)
def test_in_a_room_that_is_large_enough_values_can_be_kept(
    sizes: list[int], kept: int, more: int
) -> None:
    room = keeping_room(kept) + more
    way = combining(sizes, room, by_ranges=True)
    if way.by_ranges:
        assert max(way.keeping_bytes(kept), finishing_bytes(kept)) <= room


def test_a_row_that_is_wider_than_segments_is_counted(tmp_path: Path, still: int) -> None:
    wide = pa.table({"s": ["x" * 3 * MIB, "y" * 3 * MIB, "z"]})
    kept = Kept(Categorify("s", max_size=1), [wide, wide])
    assert kept.found(WAY, Scratch(tmp_path)) == kept.expected()
    with pytest.raises(MemoryLimitError, match="raise memory_limit to at least"):
        kept.found(WAY, Scratch(tmp_path), still + 20 * MIB)


def test_scratch_space_that_is_too_small_is_refused_with_numbers_before_it_begins(
    tmp_path: Path,
) -> None:
    kept = Kept(Categorify("s", max_size=10), words(4, 20_000, 20_000))
    scratch = Scratch(tmp_path, limit=MIB)
    work = CombineWork.of(kept.transformer, kept.keys, kept.sizes, 4 * MIB)
    with pytest.raises(
        LimitError, match=r"learnt of 4 partitions needs .* leaves 1.0 MiB"
    ) as caught:
        work.require(LARGE, 0, scratch)
    assert "raise scratch_limit to at least" in caught.value.remedy
    with pytest.raises(LimitError, match="the scratch limit is"):  # whoever did not ask
        kept.found(WAY, scratch)
    assert scratch.used == 0


def test_what_is_lost_or_of_other_columns_leaves_nothing_in_scratch_space(tmp_path: Path) -> None:
    kept, scratch = Kept(Categorify("s"), words(3, 20, 5)), Scratch(tmp_path)
    other = Categorify("t").summarize(cut_table(pa.table({"t": ["a"]}))[0], ENGINE)
    kept.states.put("00000bad", other)
    kept.keys.append("00000bad")
    with pytest.raises(CorruptionError, match="cannot be combined"):
        kept.found(WAY, scratch)
    kept.keys[-1] = "0000dead"
    with pytest.raises(StateLostError):
        kept.found(WAY, scratch)
    assert scratch.used == 0 < scratch.most


def test_an_error_in_the_middle_leaves_nothing_in_scratch_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, scratch = Kept(Categorify("s"), words(9, 200, 90)), Scratch(tmp_path)

    def fail(*_: Any) -> State:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Categorify, "combine_all", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        kept.found(WAY, scratch)
    assert scratch.used == 0 < scratch.most
    assert budget_of().in_flight == 0


# --- builds and pipelines ----------------------------------------------------------------------------

CODE = Categorify("word", max_size=50, suffix="_code")


def store_of_words(memory_limit: int, scratch: Path, **options: Any) -> fs.FeatureStore:
    store = fs.FeatureStore.create(
        f"memory://{uuid.uuid4().hex}", memory_limit=memory_limit, workers=2, scratch=scratch,
        **options,
    )  # fmt: skip
    rows = np.arange(60_000)
    # All words differ but for a hundred, which occur once in each of many partitions.
    numbers = np.where(rows % 397 == 0, rows // 397, 1000 + rows)
    text = np.char.add(f"{'a long word ':-<90}", numbers.astype(str)).astype(object)
    text[rows % 397 == 0] = [f"often {number % 60}" for number in rows[rows % 397 == 0] // 397]
    table = pa.table({"t": rows, "word": pa.array(text, pa.string())})
    made = store.ingest("rows", table, time="t", partition_bytes=table.nbytes // 20)
    assert made.partitions >= 15
    return store


@pytest.mark.usefixtures("still")
def test_a_plan_shows_what_combining_by_ranges_takes_and_a_build_keeps_to_it(
    tmp_path: Path,
) -> None:
    free = store_of_words(2**34, tmp_path)
    free.table("rows").add(CODE, fit_on="all")
    expected = free.table("rows").read("word_code")
    room = 64 * MIB
    store = store_of_words(HELD + room, tmp_path)
    table = store.table("rows")
    table._features.define([FeatureDefinition(CODE, fit_on="all")], replace=False)
    plan = table.plan()
    (step,) = [one for one in plan.steps if one.work == "combine"]
    assert plan.fits
    assert step.task_bytes <= room
    assert 0 < step.scratch_bytes == plan.scratch_bytes
    assert "of scratch space" in str(plan)
    seen: list[Event] = []
    with observed_by(seen.append):
        table.build()
    steps = {one.step: one.label for one in seen if isinstance(one, StepStarted)}
    (task,) = [
        one for one in seen if isinstance(one, TaskStarted) and steps[one.step] == "combine states"
    ]
    assert 0 < task.bytes <= step.task_bytes
    scratch = store._session.place.scratch
    assert 0 < scratch.most <= step.scratch_bytes
    assert scratch.used == 0
    assert table.read("word_code").equals(expected)


@pytest.mark.usefixtures("still")
def test_too_little_scratch_space_refuses_a_build_and_a_pipeline_with_numbers(
    tmp_path: Path,
) -> None:
    store = store_of_words(HELD + 64 * MIB, tmp_path, scratch_limit="64KiB")
    table = store.table("rows")
    with pytest.raises(LimitError, match=r"needs .* of scratch space, .* leaves 64.0 KiB"):
        table.add(CODE, fit_on="all")
    assert "word_code" not in table.schema
    table._features.define([FeatureDefinition(CODE, fit_on="all")], replace=False)
    plan, begun = table.plan(), list[Event]()
    assert not plan.fits
    assert plan.remedy in str(plan)
    with (
        observed_by(begun.append),
        pytest.raises(LimitError, match=r"the scratch limit leaves 64\.0 KiB") as caught,
    ):
        table.build()
    assert caught.value.remedy == plan.remedy
    assert not any(isinstance(one, TaskStarted) for one in begun)
    named = re.search(r"raise scratch_limit to at least (\d+)", plan.remedy)
    assert named is not None
    enough = replace(store._session.place, scratch=Scratch(tmp_path, int(named[1])))
    there = fs.FeatureStore(replace(store._session, place=enough)).table("rows")
    assert there.plan().fits
    there.build()
    assert "word_code" in there.schema
    data = table.dataset(["word"], pipeline=fs.Pipeline(Categorify("word", max_size=50)))
    with pytest.raises(LimitError, match=r"needs .* of scratch space, .* leaves 64.0 KiB"):
        _ = data.pipeline
    more = fs.FeatureStore(
        replace(store._session, place=replace(store._session.place, scratch=Scratch(tmp_path)))
    )
    assert (
        more.table("rows")
        .dataset(["word"], pipeline=fs.Pipeline(Categorify("word", max_size=50)))
        .pipeline
        is not None
    )
