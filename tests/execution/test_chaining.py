"""Rows carried by key: the same values whether they are combined in memory or in scratch space, whole or by keys."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, LimitError
from featurestore.execution import chaining, task_costs
from featurestore.execution.budget import budget_of
from featurestore.execution.chaining import Chain
from featurestore.execution.merging import CombineWork
from featurestore.plan import slicing
from featurestore.plan.combining import Combining, expected_chaining, joining_bytes
from featurestore.plan.combining import chaining as chaining_of
from featurestore.plan.packing import Load, loads
from featurestore.schema import Field, TableSchema
from featurestore.storage.backends import open_object_store
from featurestore.storage.scratch import Scratch
from featurestore.storage.states import StateLostError, StateStore, encode_state
from featurestore.transforms.asof import AsOfJoin
from featurestore.transforms.base import EMPTY_STATE, Partition, Slicing, State, Transformer
from featurestore.transforms.extent import Extent
from featurestore.transforms.keyed import Keys, in_order, rows_among, without_order
from featurestore.transforms.lag import Lag
from featurestore.transforms.window import Rolling

ENGINE = get_engine("polars")
KIB, MIB = 2**10, 2**20
LARGE = 2**40
NAN = float("nan")

KEYS = {
    "f": (pa.float64(), st.sampled_from([None, 0.0, -0.0, NAN, 1.5, float("inf")])),
    "s": (pa.string(), st.sampled_from([None, "", "a", "b", "日本"])),
    "i": (pa.int32(), st.sampled_from([None, -1, 0, 7, 2**31 - 1])),
    "b": (pa.bool_(), st.sampled_from([None, False, True])),
    "d": (pa.date32(), st.sampled_from([None, 0, 1])),
}


@st.composite
def keyed_tables(draw: st.DrawFn) -> tuple[pa.Table, list[str], list[int]]:
    """Return rows in order of time, their key columns, and where partitions end."""
    names = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True))
    rows = draw(st.integers(1, 40))
    columns = {
        name: pa.array(draw(st.lists(KEYS[name][1], min_size=rows, max_size=rows)), KEYS[name][0])
        for name in names
    }
    times = sorted(draw(st.lists(st.integers(0, 20), min_size=rows, max_size=rows)))
    table = pa.table({**columns, "t": times, "x": [f"row {row}" for row in range(rows)]})
    cuts = draw(st.lists(st.integers(0, rows), max_size=5))
    return table, names, sorted({0, rows, *cuts})


def schema_of(table: pa.Table) -> TableSchema:
    return TableSchema(tuple(Field(one.name, one.type) for one in table.schema), (), "t")


def partition_of(table: pa.Table) -> Partition:
    return Partition(ENGINE.from_arrow(table), schema_of(table))


class Chained:
    """Summaries of the partitions of a table, kept in a store of their own."""

    def __init__(self, transformer: Transformer, parts: Sequence[pa.Table]) -> None:
        self.transformer = transformer
        self.states = StateStore(open_object_store(f"memory://{uuid.uuid4().hex}"))
        self.keys = [f"{number:08x}" for number in range(len(parts))]
        for key, part in zip(self.keys, parts, strict=True):
            found = EMPTY_STATE
            if part.num_rows:
                found = transformer.summarize(partition_of(part), ENGINE)
            self.states.put(key, found)

    def chain(self, room: int, scratch: Scratch) -> Chain:
        sizes = self.states.sizes(self.keys)
        work = CombineWork(self.transformer, self.keys, sizes, Combining(0))
        return Chain(work, self.states, LARGE, room, scratch)

    def prefixes(self, steps: Sequence[int], room: int, scratch: Scratch) -> list[str]:
        """Make the prefix states that end at some summaries; return where they are kept."""
        chain, found, done = self.chain(room, scratch), [], 0
        try:
            for step in steps:
                found.append(uuid.uuid4().hex)
                chain.extend(self.keys[done:step], found[-1], last=step == steps[-1])
                done = step
        finally:
            chain.restart()
        return found


def ordered(state: State) -> bytes:
    """Return a state with its keys in one order, whatever theirs is."""
    found = {name: without_order(in_order(table)) for name, table in state.items()}
    return encode_state(found)


def transformers(names: list[str]) -> st.SearchStrategy[Transformer]:
    return st.sampled_from(
        [
            Lag("x", 1, by=names),
            Lag("x", 3, by=names),
            Rolling("t", 2, stats="sum", by=names),
            fs.Expanding("t", ["sum", "max", "std"], by=names, closed="left"),
            fs.Expanding("t", ["mean", "first"], by=names),
            fs.EWM("t", 2.5, by=names),
            fs.EWM("t", 2.5, stats=["mean", "std"], adjust=False, ignore_nulls=True, by=names),
            fs.CumCount(by=names),
            fs.TimeSince(by=names),
            fs.ExpandingTarget(["x", *(name for name in names if name in "sib")], "t"),
        ]
    )


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_by_ranges_holds_the_rows_that_combining_in_memory_gives(data: st.DataObject) -> None:
    table, names, cuts = data.draw(keyed_tables())
    transformer = data.draw(transformers(names))
    parts = [table.slice(start, stop - start) for start, stop in pairwise(cuts)]
    chained, scratch = Chained(transformer, parts), Scratch()
    steps = sorted({*data.draw(st.lists(st.integers(1, len(parts)), max_size=3)), len(parts)})
    inside = chained.prefixes(steps, LARGE, scratch)
    assert scratch.most == 0
    outside = chained.prefixes(steps, 0, scratch)
    assert scratch.used == 0
    assert budget_of().in_flight == 0
    again = data.draw(st.sampled_from(parts))
    at = again.column_names.index("t")
    later = partition_of(again.set_column(at, "t", pc.add(again["t"], 21)))
    sifted = Keys(transformer.keys(later, ENGINE))
    for one, other in zip(inside, outside, strict=True):
        whole = chained.states.require(one)
        assert ordered(chained.states.require(other)) == ordered(whole)
        # Values are the same however the state came, whole or by the keys of a partition.
        expected = ENGINE.to_arrow(shown(transformer, later, whole))
        for kept in (one, other):
            few = rows_among(chained.states.parts(kept), sifted)
            assert ENGINE.to_arrow(shown(transformer, later, few)).equals(expected)


def shown(transformer: Transformer, partition: Partition, state: State) -> Any:
    return transformer.apply(partition, state, ENGINE).frame


def rows(parts: int, count: int, shift: int) -> list[pa.Table]:
    """Return partitions each of which shares some of its keys with the next."""
    return [
        pa.table(
            {
                "s": [f"key {part * shift + row:07d}" for row in range(count)],
                "t": np.full(count, part),
                "x": np.arange(count) + part,
            }
        )
        for part in range(parts)
    ]


@pytest.mark.parametrize("room", [9 * MIB, 20 * MIB])
def test_a_state_that_outgrows_memory_goes_on_in_scratch_space(tmp_path: Path, room: int) -> None:
    parts = rows(30, 5000, 4000)
    chained, scratch = Chained(Lag("x", by="s"), parts), Scratch(tmp_path)
    steps = [1, 2, 10, 11, 30]
    expected = chained.prefixes(steps, LARGE, scratch)
    found = chained.prefixes(steps, room, scratch)
    assert scratch.used == 0 < scratch.most
    assert not list(tmp_path.iterdir())
    for one, other in zip(expected, found, strict=True):
        assert ordered(chained.states.require(one)) == ordered(chained.states.require(other))
    # All of a key is in one place: what is kept comes in parts that are small.
    parts_read = [part.nbytes for _, part in chained.states.parts(found[-1])]
    assert max(parts_read) <= 3 * MIB
    assert len(parts_read) > 1


def test_a_chain_that_begins_anew_forgets_what_was_before(tmp_path: Path) -> None:
    chained, scratch = Chained(Lag("x", by="s"), rows(4, 100, 70)), Scratch(tmp_path)
    chain = chained.chain(0, scratch)
    chain.extend(chained.keys[:2], "aaaaaaaa")
    chain.restart()
    assert scratch.used == 0
    chain.extend(chained.keys[2:], "bbbbbbbb", last=True)
    chain.restart()
    inside = Chained(Lag("x", by="s"), rows(4, 100, 70)[2:])
    (key,) = inside.prefixes([2], LARGE, scratch)
    found = chained.states.require("bbbbbbbb")
    assert ordered(found) == ordered(inside.states.require(key))


@pytest.mark.parametrize("room", [0, LARGE])
def test_no_rows_at_all_are_the_empty_state(room: int) -> None:
    empty = pa.table(
        {
            "s": pa.array([], pa.string()),
            "t": pa.array([], pa.int64()),
            "x": pa.array([], pa.int64()),
        }
    )
    chained = Chained(Lag("x", by="s"), [empty, empty])
    (key,) = chained.prefixes([2], room, Scratch())
    assert chained.states.require(key) == {}
    assert list(chained.states.parts(key)) == []


# --- faults ------------------------------------------------------------------------------------------


def test_whatever_fails_leaves_nothing_in_scratch_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chained, scratch = Chained(Lag("x", by="s"), rows(6, 300, 200)), Scratch(tmp_path)
    chained.keys[4] = "0000dead"
    with pytest.raises(StateLostError):
        chained.prefixes([3, 6], 0, scratch)
    assert scratch.used == 0 < scratch.most
    chained.keys.pop(4)

    def fail(*_: Any) -> State:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Lag, "combine_all", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        chained.prefixes([3, 5], 0, scratch)
    assert scratch.used == 0
    assert budget_of().in_flight == 0


def test_too_little_scratch_space_is_refused_with_numbers(tmp_path: Path) -> None:
    chained = Chained(Lag("x", by="s"), rows(6, 3000, 2000))
    scratch = Scratch(tmp_path, limit=64 * KIB)
    with pytest.raises(LimitError, match="what Lag learnt of 6 partitions needs") as caught:
        chained.prefixes([6], 0, scratch)
    assert "raise scratch_limit to at least" in caught.value.remedy
    assert scratch.used == 0


@pytest.mark.parametrize("at", [0, 200, -60, -30, -1])
def test_a_damaged_byte_is_found_when_the_parts_are_read(tmp_path: Path, at: int) -> None:
    states = StateStore(open_object_store(tmp_path))
    table = pa.table({"by_0": np.arange(1000), "column_0": np.arange(1000)})
    states.put_parts("0badcafe", "tail", [table.slice(0, 500), table.slice(500)])
    assert states.require("0badcafe")["tail"].equals(table)
    (path,) = (tmp_path / "states").iterdir()
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises((StateLostError, CorruptionError)):
        list(states.parts("0badcafe"))
    assert not states.has("0badcafe")


def test_rows_of_no_keys_hold_nothing_of_the_state() -> None:
    table = pa.table({"by_0": np.arange(100_000), "column_0": np.arange(100_000.0)})
    kept = Keys(table.slice(0, 0)).among(table)
    assert kept.schema == table.schema
    assert kept.get_total_buffer_size() == 0


@pytest.mark.parametrize("start", [0, 8, 100, 5000])
def test_zeros_in_the_place_of_parts_are_found(tmp_path: Path, start: int) -> None:
    states = StateStore(open_object_store(tmp_path))
    states.put_parts("0badcafe", "tail", [pa.table({"by_0": np.arange(1000)})])
    (path,) = (tmp_path / "states").iterdir()
    data = bytearray(path.read_bytes())
    data[start:-60] = bytes(len(data) - 60 - start)
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(StateLostError):
        list(states.parts("0badcafe"))


def test_parts_of_another_state_or_of_none_are_lost(tmp_path: Path) -> None:
    states = StateStore(open_object_store(tmp_path))
    states.put_parts("0badcafe", "tail", [pa.table({"by_0": [1]})])
    (path,) = (tmp_path / "states").iterdir()
    path.rename(path.with_name("feedbeef.arrow"))
    with pytest.raises(StateLostError):
        list(states.parts("feedbeef"))
    with pytest.raises(StateLostError):
        list(states.parts("0badcafe"))


def test_parts_are_the_bytes_of_a_state_that_was_written_whole(tmp_path: Path) -> None:
    table = pa.table({"by_0": ["a", None], "column_0": [1.0, NAN]})
    for key, store in (("0badcafe", tmp_path / "a"), ("0badcafe", tmp_path / "b")):
        states = StateStore(open_object_store(store))
        if store.name == "a":
            states.put(key, {"tail": table})
        else:
            states.put_parts(key, "tail", [table])
    whole, parts = ((tmp_path / one / "states" / "0badcafe.arrow").read_bytes() for one in "ab")
    assert whole == parts


# --- what it takes, and whole tables -----------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2**32), min_size=1, max_size=50),
    st.integers(0, 2**36),
    st.integers(0, 2**34),
)
def test_the_way_is_in_memory_where_that_fits(sizes: list[int], room: int, held: int) -> None:
    way = expected_chaining(sizes, room, held)
    if joining_bytes(held, max(sizes)) <= room:
        assert not way.by_ranges
        assert way.scratch_bytes == 0
        return
    assert way == chaining_of(sizes, room, held)
    assert 2 <= way.fan_in <= len(sizes) + 1
    assert way.bytes <= max(room, 6 * max(sizes) + 9 * MIB)
    assert way.scratch_bytes >= 2 * (held + sum(sizes))


def test_what_is_handed_is_no_more_than_the_rows_can_have() -> None:
    fields = (Field("k", pa.string()), Field("t", pa.int64()), Field("x", pa.float64()))
    schema = TableSchema(fields, ("k",), "t")
    extent = Extent(1000, {"k": 20_000, "x": 9000, "t": 8000}, 60, 10**9, source_widest_row=60)
    handed = Lag("x", 2).handed(schema, extent)
    assert handed.state_rows == 2000
    assert 2000 * 60 <= handed.state_bytes <= 2000 * 80
    assert Lag("x", by=[]).is_keyed is False
    unknown = Extent(1000, {"k": 20_000}, 60, 10**9)
    assert Lag("x").handed(schema, unknown) is unknown


@st.composite
def stores(draw: st.DrawFn) -> tuple[pa.Table, pa.Table, int, bool]:
    table, names, _ = draw(keyed_tables())
    table = table.rename_columns([f"k{i}" for i in range(len(names))] + ["t", "x"])
    other = table.take(pa.array(draw(st.permutations(range(table.num_rows)))))
    times = pa.array(np.arange(other.num_rows) // 2)
    other = other.set_column(other.column_names.index("t"), "t", times)
    return table, other, draw(st.integers(1, 6)), draw(st.booleans())


def sifts(work: slicing.Work, limits: slicing.SliceLimits | None) -> bool:
    carried = limits is not None and slicing.carries_state(work.transformer)
    return work.transformer.is_keyed and not carried


def in_slices(works: Sequence[slicing.Work], room: int | None, at_once: int = 1) -> list[Load]:
    """Return tasks that compute values three rows at a time where times may be cut, each verb by itself."""
    if works[0].summarizes:
        return loads(works, room, at_once)
    limits = [
        work.sliced(3).limits if work.transformer.slicing is Slicing.ROWS else None
        for work in works
    ]
    return [Load((verb,), 1, verb, limits=one) for verb, one in enumerate(limits)]


@settings(deadline=None, max_examples=10)
@given(stores())
def test_a_table_has_the_same_values_either_way(
    given_: tuple[pa.Table, pa.Table, int, bool],
) -> None:
    table, other, partitions, sliced = given_
    names = [name for name in table.column_names if name.startswith("k")]
    read = []
    for outside in (False, True):
        store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
        for name, one in (("rows", table), ("other", other)):
            store.ingest(name, one, time="t", partition_bytes=max(1, one.nbytes // partitions))
        with pytest.MonkeyPatch.context() as patch:
            if outside:
                patch.setattr(chaining, "joining_bytes", lambda *_: LARGE)
                patch.setattr(slicing.Work, "sifts", sifts)
            if outside and sliced:
                patch.setattr(task_costs, "loads", in_slices)
            store.table("rows").add(
                Lag("x", [1, 2], by=names),
                Rolling("t", 3, stats="mean", by=names),
                fs.Expanding("t", ["sum", "std"], by=names),
                fs.EWM("t", 2, by=names),
                fs.CumCount(by=names),
                AsOfJoin("other", ["x"], by=names, prefix="other_"),
            )
        new = ["x_lag_1", "x_lag_2", "t_mean_3r", "t_expanding_sum", "t_expanding_std"]
        new += ["t_ewm_mean_2r", "cum_count", "other_x"]
        read.append(store.table("rows").read(new, as_="arrow"))
    assert read[0].equals(read[1])
