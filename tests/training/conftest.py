"""What tests of packs and of rows in memory begin with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from training.loading import arrangement as arrangement_module
from training.loading import buffers


@pytest.fixture(autouse=True)
def memory_of_small_batches_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of large ones always is."""
    monkeypatch.setattr(buffers, "_WORTH", 1)


@pytest.fixture
def small_stripes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stripes of two partitions, chunks of five rows, beds of eight."""
    monkeypatch.setattr(arrangement_module, "STRIPE_PARTITIONS", 2)
    monkeypatch.setattr(arrangement_module, "STRIPE_ROWS", 1)
    monkeypatch.setattr(arrangement_module, "_CHUNK_ROWS", 5)
    monkeypatch.setattr(arrangement_module, "_BED_ROWS", 8)
    arrangement_module._deal.cache_clear()
    yield
    arrangement_module._deal.cache_clear()


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for _ in range(100):
        if set(threading.enumerate()) > before:
            time.sleep(0.01)
    assert set(threading.enumerate()) <= before
