"""What verify looks at beside bytes: whether all that a store says fits together."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.plan.stored_definitions import accepted_fingerprints
from featurestore.storage import fileset, verification
from featurestore.storage.checksum import has_checksum
from featurestore.storage.fileset import read_fileset, with_partitions
from featurestore.storage.leases import LEASES
from featurestore.storage.maintenance import Fault, verify, verify_again, verify_store
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import PartitionEntry
from featurestore.storage.sealed_json import seal
from featurestore.storage.snapshot_file import snapshot_path
from featurestore.testing.tables import observations, two_wide


@pytest.fixture
def store() -> fs.FeatureStore:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    rows = observations(120).sort("t", "k")
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=2500)
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Function(two_wide, inputs="x", output="pair", shape=(2,)),
    )
    assert store.verify(all_versions=True).ok
    return store


def published(
    store: fs.FeatureStore, column: str, changes: Mapping[int, Mapping[str, Any]]
) -> None:
    """Publish a column group with some of its entries changed, as a faulty writer would."""
    session = store._session
    files = session.files("rows")
    group = files.groups[files.graph.owners[column]]
    entries = list(read_fileset(session.objects, group.fileset))
    for position, change in changes.items():
        entries[position] = replace(entries[position], **change)
    new = with_partitions(session.objects, group, entries)
    session.commit("a fault", lambda _: {new.key: new.to_json()})


def faults(store: fs.FeatureStore) -> list[tuple[tuple[str, ...], str, str]]:
    return [(one.columns, one.partition, one.problem) for one in store.verify().faults]


def entries(store: fs.FeatureStore, column: str) -> list[PartitionEntry]:
    files = store._session.files("rows")
    return list(files.entries[files.graph.owners[column]].values())


def test_times_rise_and_do_not_meet(store: fs.FeatureStore) -> None:
    first, second = entries(store, "k")
    published(store, "k", {1: {"time_min": first.time_max}})
    ((columns, partition, problem),) = faults(store)
    assert (columns[0], partition) == ("k", second.partition)
    assert f"not after {first.time_max}" in problem
    published(store, "k", {1: {"time_min": second.time_max, "time_max": second.time_min}})
    assert [one[1] for one in faults(store)] == [second.partition]


def test_a_partition_is_named_once(store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_fileset

    def twice(objects: Any, ref: Any) -> tuple[PartitionEntry, ...]:
        found = read(objects, ref)
        return (*found, found[0])

    monkeypatch.setattr(verification, "read_fileset", twice)
    assert any("named twice" in problem for _, _, problem in faults(store))


def test_rows_are_those_of_the_table(store: fs.FeatureStore) -> None:
    first, _ = entries(store, "double")
    published(store, "double", {0: {"rows": first.rows + 1}})
    ((columns, partition, problem),) = faults(store)
    assert (columns, partition) == (("double",), first.partition)
    assert f"says {first.rows + 1} rows, the table has {first.rows}" in problem
    published(store, "double", {0: {"rows": first.rows, "partition": "p9"}})
    assert "no such partition" in faults(store)[0][2]


def test_values_belong_to_the_definition(store: fs.FeatureStore) -> None:
    _, second = entries(store, "double")
    published(store, "double", {1: {"provenance": Provenance("of another", "i", "")}})
    ((columns, partition, problem),) = faults(store)
    assert (columns, partition) == (("double",), second.partition)
    assert "of another" in problem
    report = store.repair()
    assert report.ok, str(report)
    assert store.verify().ok


def test_definitions_can_be_read(store: fs.FeatureStore) -> None:
    for broken in ({"transformer": {"kind": "Expression"}}, {"fit_on": None}):
        redefined(store, broken)
        ((columns, _, problem),) = faults(store)
        assert columns == ("double",)
        assert "definition" in problem
        assert "no file of values" in store.repair().left[0].reason
    redefined(
        store, {"transformer": {"kind": "Elsewhere", "version": 1, "params": {}}, "fit_on": None}
    )
    assert faults(store) == []  # readable, if not rebuildable


def redefined(store: fs.FeatureStore, definition: dict[str, Any]) -> None:
    """Publish a feature under another definition, as a faulty writer would."""
    session = store._session
    files = session.files("rows")
    group = files.groups[files.graph.owners["double"]]
    entries = read_fileset(session.objects, group.fileset)
    new = with_partitions(session.objects, group, entries, definition)
    session.commit("a fault", lambda _: {new.key: new.to_json()})


def test_tensors_have_the_rows_of_their_partition(store: fs.FeatureStore) -> None:
    first, second = entries(store, "pair")
    assert first.rows != second.rows
    published(store, "pair", {0: {"tensors": second.tensors}})
    problems = [problem for _, partition, problem in faults(store) if partition == first.partition]
    assert any("do not fit shape" in one for one in problems)


def test_a_torn_lease_ended_with_its_holder_and_a_changed_one_is_a_fault(
    store: fs.FeatureStore,
) -> None:
    objects = store._session.objects
    path = f"{LEASES}/0123456789abcdef.json"
    whole = seal({"version": 1, "commit": "x"})
    for data, found in ((whole, 0), (whole[:-5], 0), (b"", 0), (whole.replace(b"1", b"2", 1), 1)):
        objects.replace(path, data)
        assert len(store.verify(all_versions=True).faults) == found, data


def test_files_that_go_while_they_are_looked_at_are_no_fault(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = store._session.objects
    objects.replace(f"{LEASES}/0123456789abcdef.json", seal({"version": 1}))
    listed = list(objects.list(LEASES))
    objects.delete([one.path for one in listed])
    inner = type(objects).list
    monkeypatch.setattr(
        type(objects),
        "list",
        lambda self, prefix: iter(listed) if prefix == LEASES else inner(self, prefix),
    )
    assert store.verify(all_versions=True).ok


def test_a_version_that_gc_takes_while_it_is_looked_at_is_no_fault(
    store: fs.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):  # versions that share no file with the newest
        store.table("rows").replace(observations(120).sort("t", "k"), (None, None))
    inner = verification._Check.snapshot
    waiting = [store]

    def collected_first(self: Any, snapshot: Any, only: Any = None) -> None:
        while waiting:
            assert waiting.pop().gc("0s", keep_versions=1).expired
        inner(self, snapshot, only)

    monkeypatch.setattr(verification._Check, "snapshot", collected_first)
    assert verify_store(store._session.log).faults == ()
    assert not waiting


def test_what_was_restored_since_a_report_is_no_fault_any_more(store: fs.FeatureStore) -> None:
    objects, version = store._session.objects, store.version
    (double, _), (pair, _), (rows, _) = (entries(store, one) for one in ("double", "pair", "x"))
    sound = {}
    for path in (double.files[0].path, pair.tensors["pair"][-1].path, rows.files[0].path):
        sound[path] = objects.read(path)
        objects.replace(path, sound[path][:-1] + bytes([sound[path][-1] ^ 1]))
    report = store.verify()
    assert {one.file for one in report.faults} == set(sound)
    lost = Fault(snapshot_path(99), "is lost", "restore it")  # of a version that is not looked at
    for path, data in list(sound.items())[1:]:
        objects.replace(path, data)
    again = verify_again(
        store._session.log,
        store._session.snapshot(),
        replace(report, faults=(*report.faults, lost)),
    )
    assert [one.file for one in again.faults] == [double.files[0].path, lost.file]
    objects.replace(double.files[0].path, sound[double.files[0].path])
    repaired = store.repair(report)
    assert (repaired.ok, repaired.mended, store.version) == (True, (), version)


def test_a_definition_that_is_nested_too_deep_is_a_fault(store: fs.FeatureStore) -> None:
    nested: Any = 1
    for _ in range(800):
        nested = [nested]
    definition = fs.Expression(double=nw.col("x") * 2).spec()
    definition["params"] = {"definitions": nested}
    redefined(store, {"transformer": definition, "fit_on": None})
    assert [one[0] for one in faults(store)] == [("double",)]


def test_reports_are_json_and_progress_reaches_the_end(store: fs.FeatureStore) -> None:
    told: list[tuple[int, int]] = []
    session = store._session
    report = verify_store(
        session.log, True, accepted_fingerprints, lambda done, total: told.append((done, total))
    )
    assert told[-1][0] == told[-1][1]
    assert [one[0] for one in told] == sorted(one[0] for one in told)
    assert json.loads(json.dumps(report.to_json()))["ok"]
    assert json.loads(json.dumps(report.to_json()))["files"] == report.files


def test_large_files_are_read_by_several_threads_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    numbers = np.random.default_rng(0).normal(size=(40_000, 6))
    table = pa.table({f"c{n}": numbers[:, n] for n in range(6)})
    store.ingest("t", table, partition_bytes="300kB")
    used: set[int] = set()
    second = threading.Event()

    def seen(objects: Any, file: Any) -> bool:
        used.add(threading.get_ident())
        if len(used) > 1:
            second.set()
        # The first thread waits, or it might be through before another begins.
        assert second.wait(timeout=60), "only one thread looked at files"
        return has_checksum(objects, file)

    monkeypatch.setattr(verification, "has_checksum", seen)
    session = store._session
    found = verify(session.objects, session.snapshot())
    assert found.ok
    assert len(used) > 1
    paths = sorted(one.path for one in session.objects.list("data"))
    for path in paths[1::2]:
        data = bytearray(session.objects.read(path))
        data[len(data) // 2] ^= 4
        session.objects.replace(path, bytes(data))
    fileset._cache.clear()
    damaged = verify(session.objects, session.snapshot())
    assert sorted(one.file for one in damaged.faults) == paths[1::2]
    assert (damaged.files, damaged.bytes) == (found.files, found.bytes)
