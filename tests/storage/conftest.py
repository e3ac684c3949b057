"""Stores that the tests of storage begin with: empty, on disk or in memory."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from featurestore.storage.backends import open_object_store
from featurestore.storage.local import LocalStore
from featurestore.storage.object_store import ObjectStore


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return open_object_store(f"memory://{uuid.uuid4().hex}")
