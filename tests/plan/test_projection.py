"""What a build is projected to cost, against what its tasks say when they run, and how tasks are packed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import narwhals as nw
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.execution.events import Event, StepStarted, TaskStarted, observed_by
from featurestore.plan.costs import COLUMN_BYTES
from featurestore.plan.definition import FeatureDefinition
from featurestore.plan.learner_sizes import LearnerSizes, members_of
from featurestore.plan.packing import loads
from featurestore.plan.projection import TaskCost
from featurestore.plan.slicing import Work
from featurestore.plan.states import StateNeed, Summary
from featurestore.report.plans import PlanStep
from featurestore.schema import Field, TableSchema
from featurestore.storage.states import StateStore
from featurestore.testing.tables import (
    FIT_ON,
    fitted_of_each,
    names_of_keys,
    observations,
    one_of_each,
)
from featurestore.transforms.base import Scope, Transformer
from featurestore.transforms.extent import Extent

ROWS = observations(300)
MIB = 2**20


@pytest.fixture
def table() -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    store.ingest("other", observations(150, 1, column="y"), key="k", time="t", partition_bytes=2000)
    store.ingest("static", names_of_keys(), key="k")
    return store.ingest("rows", ROWS, key="k", time="t", partition_bytes=3000)


def tasks_of_build(table: fs.Table) -> list[tuple[str, list[tuple[str, int]]]]:
    """Build; return each step with what its tasks were about and needed."""
    seen: list[Event] = []
    with observed_by(seen.append):
        table.build()
    return [
        (
            step.label,
            [
                (one.label, one.bytes)
                for one in seen
                if isinstance(one, TaskStarted) and one.step == step.step
            ],
        )
        for step in seen
        if isinstance(step, StepStarted)
    ]


def planned(table: fs.Table) -> tuple[PlanStep, ...]:
    plan = table.plan()
    assert plan.fits
    return plan.steps


def forget_values(table: fs.Table) -> None:
    """Append rows, so that all features have something to do."""
    table.append(observations(60, 5, start=150))


def test_no_task_needs_more_than_its_plan_said(table: fs.Table) -> None:
    table.add(*one_of_each())
    table.add(*fitted_of_each(), fit_on=FIT_ON)
    forget_values(table)
    steps = planned(table)
    assert {one.work for one in steps} == {"summarize", "combine", "apply"}
    assert [one.level for one in steps] == sorted(one.level for one in steps)
    found = tasks_of_build(table)
    assert len(found) == len(steps)
    for step, (label, tasks) in zip(steps, found, strict=True):
        assert (label.startswith(step.work)) or step.work == "apply"
        assert len(tasks) == step.partitions
        assert 0 < max(size for _, size in tasks) <= step.task_bytes
        if step.work != "combine":
            assert step.largest in {name for name, _ in tasks}


def test_where_sizes_are_recorded_the_plan_is_what_runs(table: fs.Table) -> None:
    table.add(fs.Lag("x", 1))
    forget_values(table)
    steps = planned(table)
    for step, (_, tasks) in zip(steps, tasks_of_build(table), strict=True):
        if step.work == "summarize":
            assert max(size for _, size in tasks) == step.task_bytes


def test_columns_that_the_build_makes_first_are_counted_as_their_maker_says(
    table: fs.Table,
) -> None:
    table.add(
        fs.Expression(louder=nw.col("word") + "!!"),
        fs.Expression(twice=nw.concat_str("louder", "louder")),
    )
    forget_values(table)
    first, second = planned(table)
    assert (first.level, second.level) == (1, 2)
    # The text that is made may be as wide as what it is made of allows.
    (_, one), (_, two) = tasks_of_build(table)
    assert max(size for _, size in one) == first.task_bytes
    assert max(size for _, size in two) <= second.task_bytes


def test_states_that_are_kept_are_neither_planned_nor_guessed(table: fs.Table) -> None:
    table.add(fs.Lag("x", 1))
    states = StateStore(table._session.objects)
    files = table._files()
    [feature] = files.graph.features()
    found = table._session.assessor(files).group("rows", feature.group)
    keys = {one.need.key for one in found if one.need.key}
    assert len(keys) > 2
    sizes = states.sizes(keys)
    assert sizes.keys() == keys
    for key, size in sizes.items():
        tables = states.require(key).values()
        assert sum(one.nbytes for one in tables) <= size
    assert states.sizes({"0badcafe"}) == {}
    table.drop("x_lag_1")
    table._features.define([FeatureDefinition(fs.Lag("x", 1))], replace=False)
    [step] = planned(table)
    assert step.work == "apply"


LAGGED = TableSchema(
    (
        Field("k", pa.int64()),
        Field("t", pa.int64()),
        Field("x", pa.float64()),
        Field("s", pa.string()),
    ),
    ("k",),
    "t",
)


# --- how large a partition may be ----------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 10**7),
    width=st.integers(0, 400),
    state=st.sampled_from([0, MIB, 50 * MIB]),
    room=st.integers(0, 2**31),
    transformer=st.sampled_from([fs.Lag("s", by="k"), fs.Lag("x", by=[]), fs.Rank("x")]),
)
def test_partitions_of_the_size_that_is_named_fit(
    rows: int, width: int, state: int, room: int, transformer: Transformer
) -> None:
    names = {"k": 8, "t": 8, "x": 8, "s": width + 4}
    extent = Extent(
        rows,
        {one: rows * names[one] for one in transformer.inputs(LAGGED)},
        sum(names.values()),
        state,
        source_widest_row=sum(names.values()),
    )
    one = Work(transformer, LAGGED, LAGGED, extent, 8 * rows)
    size = TaskCost("p", one.whole_bytes, (), 100 * rows, (one,)).largest_partition(room)
    assert 0 <= size <= 100 * rows
    if size:
        share = size / (100 * rows)
        part = one.of_a_part(share)
        assert part.least.bytes <= room
        assert part.extent.rows >= share * rows
        # It may be handed what the rest of the partition left.
        own = transformer.state_bytes(LAGGED, extent)
        carries = transformer.scope is Scope.PREFIX
        assert part.extent.state_bytes == state + (own if carries else 0)
    least = one.of_a_part(1e-9)
    assert least.extent.rows == 1
    assert size or least.least.bytes > room or rows == 1


# --- packing -------------------------------------------------------------------------------------

SCHEMA = TableSchema(tuple(Field(f"x{n}", pa.float64()) for n in range(12)), (), None)
KEYED = TableSchema((Field("k", pa.int64()), Field("x", pa.float64())), ("k",), None)


def work(column: int, rows: int, state: int) -> Work:
    transformer = fs.Expression(**{f"y{column}": nw.col(f"x{column}") * 2})
    extent = Extent(rows, {f"x{column}": 8 * rows}, 8, state)
    return Work(transformer, SCHEMA, SCHEMA, extent)


@settings(deadline=None, max_examples=40)
@given(
    columns=st.lists(st.integers(0, 11), min_size=1, max_size=12, unique=True),
    states=st.lists(st.sampled_from([0, 0, 0, 5 * MIB, 50 * MIB]), min_size=12, max_size=12),
    rows=st.sampled_from([1, 1000, 100_000]),
    room=st.integers(0, 60 * MIB),
    at_once=st.integers(1, 4),
)
def test_every_verb_is_in_one_task_and_tasks_fit_if_they_can(
    columns: list[int], states: Sequence[int], rows: int, room: int, at_once: int
) -> None:
    works = [work(one, rows, states[one]) for one in columns]
    found = loads(works, room, at_once)
    assert sorted(verb for one in found for verb in one.verbs) == list(range(len(works)))
    assert found == loads(works, room, at_once)
    for one in found:
        assert one.most in one.verbs
        alone = [works[verb] for verb in one.verbs]
        if one.bytes > room:
            assert one.bytes == alone[0].least.bytes
            assert len(alone) == 1
        if one.limits is not None:
            assert len(alone) == 1
            assert alone[0].whole_bytes > room
    # One pass where everything fits.
    together = loads(works, None)
    assert len(together) == 1
    assert (len(found) == 1) >= (together[0].bytes <= room)
    assert together[0].verbs == tuple(range(len(works)))


def test_verbs_share_what_they_read() -> None:
    one, two = work(0, 1000, 0), work(1, 1000, 0)
    same = loads([one, one], None)[0].bytes
    other = loads([one, two], None)[0].bytes
    assert other - same == 8 * 1000 + max(8 * 1000, COLUMN_BYTES)


# --- what is learnt ------------------------------------------------------------------------------


def summary(position: int) -> Summary:
    return Summary(f"{position:08x}", position)


def sizes(needs: Sequence[StateNeed], kept: dict[str, int]) -> LearnerSizes:
    def extent(position: int) -> Extent:
        return Extent(100, {"k": 800, "x": 800 * (position + 1)}, 16)

    return LearnerSizes(fs.Lag("x", 1), KEYED, extent, needs, kept)


def test_a_state_that_is_not_known_is_expected_to_be_as_large_as_a_summary_may_be() -> None:
    members = [summary(one) for one in range(5)]
    needs = [StateNeed("f", f"{n:08x}ff", tuple(members[:n])) for n in range(1, 6)]
    assert members_of(needs) == members
    kept = {one.key: 10 * (one.partition + 1) for one in members}
    found = sizes(needs, kept)
    assert found.largest_summary == 50
    assert [found.state_bytes(one) for one in needs] == [50] * 5
    assert found.state_bytes(StateNeed()) == 0
    # A window that moves on leaves the first ones behind.
    later = StateNeed("f", "abcdef00", (*members[2:], summary(5)))
    assert members_of([*needs, later]) == [*members, summary(5)]
    # One that is kept is as large as its file.
    assert sizes(needs, {**kept, needs[3].key: 7}).state_bytes(needs[3]) == 7
    # Of one that is still to be computed, the transformer says how large it may be.
    bound = fs.Lag("x", 1).state_bytes(KEYED, Extent(100, {"k": 800, "x": 4000}, 16))
    assert sizes(needs, {}).largest_summary == bound > 50
