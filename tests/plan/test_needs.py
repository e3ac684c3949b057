"""Which summaries each partition needs, against the plain way to say it, and what saying it takes."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Sequence

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

import featurestore as fs
from featurestore.plan.ahead import suffix_needs
from featurestore.plan.needs import _prefix_needs
from featurestore.plan.states import Learner, SourceSummaries
from featurestore.plan.stretch import Stretch
from featurestore.schema import Field, TableSchema
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry
from featurestore.transforms.base import Transformer

SCHEMA = TableSchema(
    (Field("t", pa.timestamp("s")), Field("k", pa.int64()), Field("x", pa.float64())), ("k",), "t"
)


def entry(position: int, rows: int, begin: int, end: int) -> PartitionEntry:
    times = (begin, end) if rows else (None, None)
    provenance = Provenance("definition", f"print {position}")
    return PartitionEntry(
        f"p{position:07d}", rows, (), {}, provenance, 0, {}, 0, {}, times[0], times[1]
    )


@st.composite
def partitions(draw: st.DrawFn) -> list[PartitionEntry]:
    """Draw partitions in order of time, some of them empty."""
    base, now = [], 0
    for position in range(draw(st.integers(0, 12))):
        begin = now + draw(st.integers(0, 5))
        end = begin + draw(st.integers(0, 5))
        rows = draw(st.sampled_from([0, 1, 7]))
        base.append(entry(position, rows, begin, end))
        now = end + 1 if rows else now
    return base


def prints(base: Sequence[PartitionEntry]) -> list[str]:
    return [f"inputs {position}" for position in range(len(base))]


def learner(transformer: Transformer) -> Learner:
    return Learner(transformer, SCHEMA, ("x",))


def filled(base: Sequence[PartitionEntry]) -> list[int]:
    return [position for position, one in enumerate(base) if one.rows]


@given(partitions())
def test_prefixes(base: list[PartitionEntry]) -> None:
    for transformer in (fs.Lag("x", by="k"), fs.Rolling("x", by="k", window="4s")):
        one = learner(transformer)
        reach = transformer.reach(SCHEMA)
        assert (reach is None) == isinstance(transformer, fs.Lag)
        for position, need in enumerate(_prefix_needs(one, base, prints(base))):
            start = base[position].time_min
            if start is None:
                continue  # no row of it asks for anything
            expected = [
                before
                for before in filled(base[:position])
                if reach is None or (base[before].time_max or 0) >= start - reach
            ]
            assert [member.partition for member in need.members] == expected
            assert [member.key for member in need.members] == [
                one.summary_key(prints(base)[before]) for before in expected
            ]
            assert bool(need.key) == bool(expected)


@given(partitions())
def test_suffixes(base: list[PartitionEntry]) -> None:
    for position, need in enumerate(
        suffix_needs(learner(fs.Forward("x", 2, by="k")), base, prints(base))
    ):
        later = [after for after in filled(base) if after > position]
        there = bool(base[position].rows)
        assert [member.partition for member in need.members] == (later if there else [])
        if there and later:
            assert need.own is not None
            assert need.own.partition == position


@given(partitions(), st.none() | st.integers(-1, 70), st.none() | st.integers(-1, 70))
def test_sources(base: list[PartitionEntry], lower: int | None, upper: int | None) -> None:
    source = SourceSummaries.of(learner(fs.Lag("x", by="k")), base, prints(base))
    before = source.carried(lower)
    expected = [
        one for one in filled(base) if lower is not None and (base[one].time_max or 0) < lower
    ]
    assert [one.partition for one in before] == expected
    rows = [
        one
        for one in filled(base)[len(expected) :]
        if upper is None or (base[one].time_min or 0) <= upper
    ]
    assert list(source.rows(len(before), upper)) == rows


def test_what_needs_take_grows_with_the_partitions() -> None:
    base = [entry(position, 1, 2 * position, 2 * position + 1) for position in range(5_000)]
    names = prints(base)
    for transformer, needs in (
        (fs.Lag("x", by="k"), _prefix_needs),
        (fs.Forward("x", 2, by="k"), suffix_needs),
    ):
        tracemalloc.start()
        found = needs(learner(transformer), base, names)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == len(base)
        assert held < 2_000 * len(base)  # 5,000 names for each would be 20 times that


@given(st.lists(st.integers(), max_size=8), st.data())
def test_runs_are_sequences(elements: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(elements)))
    stop = data.draw(st.integers(start, len(elements)))
    run, plain = Stretch(elements, start, stop), tuple(elements[start:stop])
    assert tuple(run) == plain
    assert tuple(reversed(run)) == plain[::-1]
    assert len(run) == len(plain)
    cut = data.draw(st.slices(len(elements)))
    assert tuple(run[cut]) == plain[cut]
    for at in range(-len(plain), len(plain)):
        assert run[at] == plain[at]
    again = pickle.loads(pickle.dumps(run))
    assert again == run
    assert hash(again) == hash(run)
    assert len(again.of) == len(plain)
    assert (run == Stretch((*plain, 1), 0, len(plain) + 1)) is False
