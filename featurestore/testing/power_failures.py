"""Tests of power failures during operations, for several files to share out: test runs do so by file.

``FLOORS`` says which operation belongs to which file and how many crash states it must have in a
normal run: together at least ``STATES``. Those that make few calls are looked at in more ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

import pytest

from featurestore.testing.crash_states import (
    Count,
    Prepared,
    Rehearsal,
    Share,
    Way,
    any_seed,
)
from featurestore.testing.store_operations import OPERATIONS

STATES: Final = 10_000
FLOORS: Final[Mapping[str, Mapping[str, int]]] = {
    "rows": {"create": 230, "ingest": 680, "append": 410, "replace": 560, "delete": 810},
    "features": {
        "add": 1100,
        "build": 1350,
        "drop feature": 260,
        "drop table": 260,
        "repair": 450,
    },
    "care": {
        "expect": 270,
        "compact": 1320,
        "merge": 1740,
        "tag": 290,
        "move tag": 290,
        "untag": 80,
        "gc": 410,
    },
}
"""For each file and operation some fifteen in a hundred less than there are."""

FEW_CALLS: Final = frozenset(
    {"create", "drop feature", "drop table", "tag", "move tag", "untag", "expect"}
)


def ways(kept: int, mixed: int) -> tuple[Way, ...]:
    """Return so many ways to lose what was not synced, and the one in which all of it is lost."""
    return (
        ("lost", 0),
        *(("kept", number) for number in range(kept)),
        *(("mixed", number) for number in range(mixed)),
    )


WAYS: Final = ways(kept=2, mixed=4)
MORE_WAYS: Final = ways(kept=6, mixed=14)
MANY_WAYS: Final = ways(kept=20, mixed=60)


class PowerFailureTests:
    """Every operation of a file runs once; every crash state follows from the calls it made.

    A subclass names its file.
    """

    file: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        metafunc.parametrize("name", FLOORS[self.file])

    def test_at_every_call(
        self, name: str, memory: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = MORE_WAYS if name in FEW_CALLS else WAYS
        count = self._checked(name, given, memory, prepared, capsys)
        assert count.states >= FLOORS[self.file][name]
        assert 0 < count.new < count.distinct
        assert count.again

    @pytest.mark.slow
    @pytest.mark.timeout(3600)
    def test_in_many_more_ways(
        self, name: str, memory: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._checked(name, MANY_WAYS, memory, prepared, capsys)

    def _checked(
        self,
        name: str,
        given: tuple[Way, ...],
        memory: Path,
        prepared: Prepared,
        capsys: pytest.CaptureFixture[str],
    ) -> Count:
        seed = any_seed()
        rehearsal = Rehearsal(OPERATIONS[name], prepared, memory / f"{name} {len(given)}")
        count = rehearsal.check(given, Share(), seed)
        with capsys.disabled():
            print(f"\n{count}, seed {seed}", end=" ")
        return count
