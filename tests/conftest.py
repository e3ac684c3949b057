"""Marks and fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from featurestore.testing.interleaving import Meanwhile

# TensorFlow reads these at import; a GPU-less machine should neither look for one nor log about it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the long proofs")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # One seed for all random tables of a run, told where something failed; processes of xdist get it too.
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if terminalreporter.stats.get("failed"):
        seed = config.getoption("--hypothesis-seed")
        terminalreporter.write_line(f"random tables: --hypothesis-seed={seed}")


def _has_gpu() -> bool:
    return importlib.util.find_spec("cudf") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="long proof: run with --slow")
    gpu = pytest.mark.skip(reason="needs an NVIDIA GPU with cuDF")
    for item in items:
        # Not of item.keywords: these hold names of folders, too.
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(slow)
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(gpu)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meanwhile]:
    """Let something else happen right before the next commit, when its work is done."""
    from featurestore.storage.commit_log import CommitLog

    waiting: list[Callable[[], Any]] = []
    commit = CommitLog.commit

    def later(log: CommitLog, *given: Any, **named: Any) -> Any:
        while waiting:
            waiting.pop()()
        return commit(log, *given, **named)

    monkeypatch.setattr(CommitLog, "commit", later)
    yield waiting.append
    assert not waiting
