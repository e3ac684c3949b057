"""Marks and fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os

import pytest

# TensorFlow reads these at import; a GPU-less machine should neither look for one nor log about it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long proofs")


def _has_gpu() -> bool:
    return importlib.util.find_spec("cudf") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="long proof: run with --slow")
    gpu = pytest.mark.skip(reason="needs an NVIDIA GPU with cuDF")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(gpu)
