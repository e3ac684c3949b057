"""What the tests of ingest share: a store, a call with the usual arguments, and its rows read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.ingest.partitioner import write_partitions
from featurestore.ingest.sources import open_source
from featurestore.storage.backends import open_object_store
from featurestore.storage.column_group import read_columns
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, TableEntry
from featurestore.storage.tensor_group import read_tensor


@dataclass
class Ingest:
    """Calls ``write_partitions`` with defaults and remembers nothing."""

    store: ObjectStore
    scratch: Path | None = None
    defaults: dict[str, Any] = field(
        default_factory=lambda: {
            "schema": None,
            "after": None,
            "first_sequence": 0,
            "memory_limit": 64 << 20,
        }
    )

    def __call__(
        self,
        source: Any,
        key: tuple[str, ...] = (),
        time: str | None = None,
        partition_bytes: int = 1 << 20,
        duplicates: str = "error",
        types: Any = None,
        **options: Any,
    ) -> list[PartitionEntry]:
        entry = TableEntry("t", key, time, partition_bytes, duplicates)
        with open_source(source, types=types, scratch=self.scratch) as opened:
            return write_partitions(
                self.store, opened, entry, scratch=self.scratch, **{**self.defaults, **options}
            )

    def read(self, entries: list[PartitionEntry]) -> list[pa.Table]:
        """Return each partition's scalar columns."""
        return [read_columns(self.store, one, list(one.nulls)) for one in entries]

    def rows(self, entries: list[PartitionEntry]) -> list[dict[str, Any]]:
        """Return all rows, in table order."""
        return [row for table in self.read(entries) for row in table.to_pylist()]

    def tensor(self, entries: list[PartitionEntry], name: str) -> np.ndarray:
        return np.concatenate([read_tensor(self.store, one, name) for one in entries])

    def listing(self) -> list[str]:
        return [one.path for one in self.store.list("data")]


@pytest.fixture(autouse=True)
def _only_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let limits of a few megabytes be shared out among rows: memory itself is measured elsewhere."""
    monkeypatch.setattr("featurestore.ingest.partitioner.kept_bytes", lambda size: 0)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Ingest(open_object_store(tmp_path / "store"), scratch)


@pytest.fixture
def make_ingest() -> Callable[[], Ingest]:
    """A new in-memory store at each call, for property tests."""
    counter = iter(range(10**9))
    return lambda: Ingest(open_object_store(f"memory://ingest-{next(counter)}"))
