"""Columns of several groups come side by side, aligned, or not at all."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from featurestore.engines.selection import get_engine
from featurestore.errors import CorruptionError, NotFoundError
from featurestore.execution.reading import PartitionSource
from featurestore.storage.backends import open_object_store
from featurestore.testing.views import table_view

ENGINE = get_engine("polars")
TABLE = pa.table(
    {
        "k": ["a", "b", None, "é"],
        "t": pa.array([1, 2, 2, 9], pa.int64()),
        "x": pa.array([1.0, None, float("nan"), 4.0]),
        "y": pa.array([True, False, None, True]),
    }
)
VECTORS = np.arange(24, dtype=np.float32).reshape(4, 2, 3)


def view(tmp_path: Path, cuts: tuple[int, ...] = ()):  # type: ignore[no-untyped-def]
    store = open_object_store(tmp_path / "store")
    return table_view(
        store, TABLE, cuts, key=["k"], time="t", features=["x", "y"], tensors={"v": VECTORS}
    )


@pytest.mark.parametrize("columns", [["k"], ["x", "t"], ["y", "k", "x"], ["t", "v"], ["v"]])
def test_columns_come_in_the_order_asked_for(tmp_path: Path, columns: list[str]) -> None:
    one = view(tmp_path)
    found = one.read(0, columns)
    scalars = [name for name in columns if name != "v"]
    assert list(found.frame.columns) == scalars
    expected = TABLE.select(scalars)
    got = ENGINE.to_arrow(found.frame)
    assert str(got.to_pydict()) == str(expected.to_pydict())
    assert found.schema is one.schema
    if "v" in columns:
        assert (found.tensors["v"] == VECTORS).all()
        assert found.rows == 4


def test_partitions_and_repeated_columns(tmp_path: Path) -> None:
    one = view(tmp_path, (1, 1, 3))
    assert [source.rows for source in one.partitions] == [1, 0, 2, 1]
    rows = [
        row
        for i in range(4)
        for row in ENGINE.to_arrow(one.read(i, ["t", "t"]).frame)["t"].to_pylist()
    ]
    assert rows == [1, 2, 2, 9]
    stacked = np.concatenate([one.read(i, ["v"]).tensors["v"] for i in range(4)])
    assert (stacked == VECTORS).all()


def test_unknown_column(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        view(tmp_path).read(0, ["k", "nobody"])


def test_entries_of_other_rows_or_partitions_are_corruption(tmp_path: Path) -> None:
    source = view(tmp_path, (2,)).partitions[0]
    (base_group, base), (group, entry) = source.groups
    fewer = dataclasses.replace(entry, rows=1)
    with pytest.raises(CorruptionError, match="has 1 rows"):
        PartitionSource(base, ((base_group, base), (group, fewer)))
    other = dataclasses.replace(entry, partition="p00000009-0")
    with pytest.raises(CorruptionError, match="p00000009-0"):
        PartitionSource(base, ((base_group, base), (group, other)))


def test_files_of_other_rows_are_corruption(tmp_path: Path) -> None:
    one = view(tmp_path, (1,))
    first, second = one.partitions
    (base_group, base), (group, entry) = first.groups
    swapped = dataclasses.replace(entry, files=second.groups[1][1].files)
    with pytest.raises(CorruptionError):
        PartitionSource(base, ((base_group, base), (group, swapped))).read(
            one.store, ENGINE, ["x"], one.schema
        )


def test_provenance_is_of_values_not_of_position(tmp_path: Path) -> None:
    source = view(tmp_path).partitions[0]
    assert source.provenance(["k", "x"]) == source.provenance(["x", "k", "x"])
    assert source.provenance(["k"]) != source.provenance(["t"])
    again = view(tmp_path / "other").partitions[0]
    assert source.provenance(["k", "v"]) == again.provenance(["v", "k"])
    assert source.decoded_bytes(["x"]) < source.decoded_bytes(["x", "k"])
    assert source.nulls("x") == 1
    assert source.nulls("v") == 0


def test_sizes_are_those_of_the_column_s_own_group(tmp_path: Path) -> None:
    source = view(tmp_path).partitions[0]
    sizes = {name: size for _, entry in source.groups for name, size in entry.column_bytes.items()}
    assert sizes.keys() == {"k", "t", "x", "y", "v"}
    assert source.column_bytes([*sizes, "k", "nobody"]) == {**sizes, "nobody": 0}
    assert source.column_bytes([]) == {}
    assert source.decoded_bytes(["v", "x", "x"]) == sizes["v"] + sizes["x"]
    with pytest.raises(NotFoundError, match="nobody"):
        source.provenance(["k", "nobody"])


def test_source_travels(tmp_path: Path) -> None:
    one = view(tmp_path)
    source = pickle.loads(pickle.dumps(one.partitions[0]))
    assert source == one.partitions[0]
    assert source.read(one.store, ENGINE, ["t"], one.schema).rows == 4
