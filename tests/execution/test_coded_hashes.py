"""Texts that are read as dictionaries are hashed once each, and have the codes that they always had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.storage import column_group, dictionary_pages


def rows(count: int) -> pa.Table:
    random = np.random.default_rng(0)
    few = random.integers(0, 5, count)
    return pa.table(
        {
            "t": pa.array(np.arange(count) * 1000, pa.timestamp("ms")),
            "few": [None if one == 4 else f"é{one}" for one in few],
            "none": pa.nulls(count, pa.string()),
            "many": [f"text {one}" for one in random.integers(0, 10**9, count)],
            "n": few,
        }
    )


def codes(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: list[str],
    time: str | None,
    *,
    coded: bool,
) -> tuple[pa.Table, set[str]]:
    """Return the codes of columns, and which of these were read as dictionaries."""
    seen, kept = set[str](), dictionary_pages.kept_as_dictionaries

    def watched(*arguments: Any) -> list[str]:
        found = kept(*arguments) if coded else []
        seen.update(found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(column_group, "kept_as_dictionaries", watched)
        store = fs.FeatureStore.create(folder)
        table = store.ingest("rows", rows(6000), time=time, partition_bytes="64KiB")
        assert table.partitions > 1
        table.add(fs.Hash(columns, 100, suffix="_code"))
        return table.read([f"{one}_code" for one in columns], as_="arrow"), seen


@pytest.mark.parametrize("time", ["t", None])
@pytest.mark.parametrize(
    ("columns", "coded"),
    [
        (["few"], {"few"}),
        (["few", "none"], {"few", "none"}),
        (["few", "many", "n"], {"few"}),
        (["many"], set()),
    ],
    ids=["few", "nothing", "mixed", "many"],
)
def test_codes_are_the_same(
    columns: list[str],
    coded: set[str],
    time: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, seen = codes(tmp_path / "coded", monkeypatch, columns, time, coded=True)
    assert seen >= coded  # also where no other column says how many rows there are
    plain, nothing = codes(tmp_path / "plain", monkeypatch, columns, time, coded=False)
    assert nothing == set()
    assert found.equals(plain)
