"""The graph: levels are as few as the dependencies allow, whatever the order of definition."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DependencyCycleError, MissingColumnError
from featurestore.plan.definition import Feature, FeatureDefinition
from featurestore.plan.graph import build_graph
from featurestore.schema import Field
from featurestore.storage.records import BASE_GROUP
from featurestore.transforms.calendar import Calendar

BASE = (Field("a", pa.int64()), Field("b", pa.int64()))


def feature(name: str, *inputs: str) -> Feature:
    field = Field(name, pa.int64())
    return Feature(f"f_{name}", FeatureDefinition(Calendar()), inputs, (field,))


@st.composite
def acyclic(draw: st.DrawFn) -> list[Feature]:
    """Features that read base columns or features drawn before them, shuffled."""
    names = [f"n{i}" for i in range(draw(st.integers(0, 12)))]
    features = []
    for position, name in enumerate(names):
        readable = ["a", "b", *names[:position]]
        inputs = draw(st.lists(st.sampled_from(readable), max_size=3, unique=True))
        features.append(feature(name, *inputs))
    return draw(st.permutations(features))


@settings(deadline=None)
@given(acyclic())
def test_each_feature_is_one_level_above_the_highest_that_it_reads(features: list[Feature]) -> None:
    graph = build_graph(BASE, features)
    depth = {"a": 0, "b": 0}
    for number, level in enumerate(graph.levels, 1):
        for one in level:
            assert number == 1 + max((depth[name] for name in one.inputs), default=0)
        depth.update({one.names[0]: number for one in level})
    assert sorted(one.group for one in graph.features()) == sorted(one.group for one in features)
    assert graph.groups_of(("b", "a")) == (BASE_GROUP,)


@settings(deadline=None)
@given(acyclic(), st.data())
def test_a_cycle_is_named_in_order(features: list[Feature], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 4))
    ring = [feature(f"r{i}", "a", f"r{(i + 1) % length}") for i in range(length)]
    everything = data.draw(st.permutations([*features, *ring]))
    with pytest.raises(DependencyCycleError) as caught:
        build_graph(BASE, everything)
    chain = caught.value.problem.removeprefix("features need each other: ").split(" needs ")
    assert len(chain) == length + 1
    assert chain[0] == chain[-1]
    for one, following in pairwise(chain):
        assert int(following[1:]) == (int(one[1:]) + 1) % length


def test_a_column_that_is_nowhere() -> None:
    with pytest.raises(MissingColumnError, match=r"'speed2'\n.*did you mean \['speed'\]"):
        build_graph(BASE, [feature("speed", "a"), feature("m", "speed2")])
