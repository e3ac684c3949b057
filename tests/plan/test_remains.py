"""What can be computed again of what is damaged, from metadata alone: no file is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.plan.damage import Damage, GroupDamage
from featurestore.plan.remains import Remains, TableRound, Targets
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP

ROWS = pl.DataFrame({"t": range(300), "x": [float(i) for i in range(300)]})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TableFiles:
    place: Path = tmp_path_factory.mktemp("remains") / "store"
    store = fs.FeatureStore.create(place, workers=1)
    table = store.ingest("rows", ROWS, time="t", partition_bytes=1300)
    table.add(
        fs.Expression(double=nw.col("x") * 2), fs.Rolling("double", 10, stats=["mean"], by=[])
    )
    table.build()
    found = table._files()
    assert len(found.base) >= 3
    return found


def damaged(files: TableFiles, columns: Mapping[str, list[int]]) -> Damage:
    """Return the damage of some columns at some positions of partitions."""
    groups = []
    for column, positions in columns.items():
        group = files.graph.owners[column]
        ref, entry = files.groups[group].fileset, files.groups[group]
        assert ref is not None
        names = frozenset(files.base[at].partition for at in positions)
        entries = dict(files.entries[group])
        groups.append(GroupDamage("rows", group, entry.names, ref, False, names, entries))
    return Damage(tuple(groups), (), (), frozenset())


def round_of(
    files: TableFiles, columns: Mapping[str, list[int]], states: bool = False
) -> tuple[Remains, TableRound]:
    damage = damaged(files, columns)
    remains = Remains.of(damage, {"rows": damage.sound(files)}, {}, lambda key: states)
    targets = Targets.of(damage, remains, ())
    assert not targets.missing
    return remains, TableRound.of(remains, "rows", targets.computed)


def test_a_chain_is_computed_in_one_round(files: TableFiles) -> None:
    last = len(files.base) - 1
    remains, found = round_of(files, {"double": [0, last], "double_mean_10r": [last]})
    double, mean = files.graph.owners["double"], files.graph.owners["double_mean_10r"]
    assert found.positions == {double: {0, last}, mean: {last}}
    assert set(found.reasons.values()) == {""}
    left = found.assessments(remains, "rows")
    assert [at for at, one in enumerate(left[double]) if one.freshness != "fresh"] == [0, last]
    after = remains.with_values(
        {("rows", double): {name: files.entries[double][name] for name in files.entries[double]}}
    )
    assert all(after.is_sound(files, double, at) for at in range(last + 1))
    assert not all(remains.is_sound(files, double, at) for at in range(last + 1))


@pytest.mark.parametrize("states", [False, True])
def test_rows_that_are_lost_stop_what_needs_them(files: TableFiles, states: bool) -> None:
    second = files.base[1].partition
    mean = files.graph.owners["double_mean_10r"]
    remains, found = round_of(
        files, {"x": [1], "double": [1], "double_mean_10r": [1, 2]}, states=states
    )
    assert remains.lost_rows == {("rows", second)}
    # What comes after needs the lost rows only where no state stands for them.
    assert found.positions == ({mean: {2}} if states else {})
    stopped = [why for why in found.reasons.values() if why]
    assert len(stopped) == (2 if states else 3)
    assert all(f"partition {second}, which is damaged" in why for why in stopped)
    base = {one.partition: one for one in files.base}
    assert not remains.with_values({("rows", BASE_GROUP): base}).lost_rows


def test_each_state_is_asked_for_once(files: TableFiles) -> None:
    asked: list[str] = []

    def state_exists(key: str) -> bool:
        asked.append(key)
        return False

    damage = damaged(files, {"double_mean_10r": list(range(len(files.base)))})
    remains = Remains.of(damage, {"rows": damage.sound(files)}, {}, state_exists)
    targets = Targets.of(damage, remains, ())
    for _ in range(2):
        TableRound.of(remains, "rows", targets.computed)
    assert asked
    assert len(asked) == len(set(asked))


def test_copied_and_gone_values_are_no_targets(files: TableFiles) -> None:
    damage = damaged(files, {"double": [0, 1]})
    (one,) = damage.groups
    gone = GroupDamage(
        one.table, one.group, one.columns, one.fileset, False, one.partitions | {"p9-gone"},
        one.entries,
    )  # fmt: skip
    damage = Damage((gone,), (), (), frozenset())
    remains = Remains.of(damage, {"rows": damage.sound(files)}, {}, lambda key: False)
    first, second = (("rows", one.group, files.base[at].partition) for at in (0, 1))
    targets = Targets.of(damage, remains, {first})
    assert targets.computed == {second}
    assert targets.missing == {("rows", one.group, "p9-gone")}


def test_given_partitions_tell_the_provenance_of_stored_ones(files: TableFiles) -> None:
    given = files.with_entries(dict(files.entries))
    for group in files.groups:
        assert given.provenance(group) == files.provenance(group)
        assert given.entries[group] == files.entries[group]
    without = given.with_features((), frozenset([files.graph.owners["double_mean_10r"]]))
    assert set(without.entries) == set(files.groups) - {files.graph.owners["double_mean_10r"]}
    assert without.base == files.base
