"""A version whose file the system refuses to read: named by the history, in nobody's way but gc's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import CorruptionError, FeatureStoreError
from featurestore.storage.local import LocalStore
from featurestore.storage.snapshot_file import snapshot_path

LOST = snapshot_path(2)


def is_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / LOST).unlink()
    (root / LOST).mkdir()


def is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = LocalStore.open_read

    def open_read(self: LocalStore, path: str) -> BinaryIO:
        if path == LOST:
            raise FeatureStoreError(f"cannot read {path}: Permission denied")
        return opened(self, path)

    monkeypatch.setattr(LocalStore, "open_read", open_read)


@pytest.mark.parametrize("lose", [is_directory, is_refused])
def test_work_goes_on_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[..., Any]
) -> None:
    store = fs.FeatureStore.create(tmp_path / "store", workers=1)
    for name in ("a", "b", "c", "d"):
        store.ingest(name, pl.DataFrame({"x": [1.0]}))
    created = {one.version: one.created for one in store.history()}
    lose(tmp_path / "store", monkeypatch)
    store = fs.FeatureStore.open(tmp_path / "store", workers=1)

    history = store.history()
    assert [one.version for one in history] == [0, 1, 2, 3, 4]
    assert [one.version for one in history if one.fault] == [2]
    assert (history[2].kept, history[2].operation) == (False, "(unreadable)")
    assert store.checkout(created[3]).version == 3
    assert store.checkout(created[4]).version == 4
    assert store.diff(3, 4)["d"] is not None
    with pytest.raises(CorruptionError, match="of those after it \\[2\\] cannot be read"):
        store.checkout(created[1])
    with pytest.raises(FeatureStoreError):
        store.checkout(2)
    for keep in (1, 3):  # it may be readable again tomorrow, and then its files must be there
        with pytest.raises(FeatureStoreError):
            store.gc(safety_age="0s", keep_versions=keep)
    store.ingest("e", pl.DataFrame({"x": [1.0]}))
    assert store.version == 5
