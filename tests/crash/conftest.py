"""Folders in memory where the system has them: thousands of directories come and go."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.testing.crash_states import Prepared


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    shared = Path("/dev/shm")
    place = shared if os.access(shared, os.W_OK) else tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def prepared(memory: Path) -> Prepared:
    """Stores that operations start from, made once for each module of tests."""
    folder = memory / "prepared"
    folder.mkdir()
    return Prepared(folder)
