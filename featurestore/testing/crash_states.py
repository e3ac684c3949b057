"""Every crash state of an operation, derived from one undisturbed run, and what must hold in each.

An operation runs once on a :class:`~featurestore.testing.simulated_disk.SimulatedDisk`, on a copy of
its prepared store. Then, for every moment at which the power may have failed and for several ways to
lose what was not synced, the directory as found after the reboot is made and looked at:

* the store is exactly as before the operation or exactly as after it, by snapshot ids and by
  checksums of all bytes; after the operation was acknowledged, it is as after it;
* finished work in the journal was not lost once it was acknowledged;
* the operation can be run again and gives the new state, and does no acknowledged work twice;
* gc then removes everything that is left over, and the store verifies.

States with equal bytes are looked at once and counted each time. Reading all values and running
again are done for a share of the distinct states.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.report.tables import BuildReport
from featurestore.storage.journal import Journal
from featurestore.storage.records import PartitionEntry
from featurestore.storage.states import STATES
from featurestore.testing.simulated_disk import (
    Content,
    Materializer,
    SimulatedDisk,
    Survival,
    Survivor,
    attach,
)
from featurestore.testing.store_operations import (
    STAGES,
    Operation,
    Seen,
    journal_of,
    leftovers,
    observe,
    open_store,
)

Way = tuple[Survival, int]

TABLE: Final = "rows"


@dataclass(frozen=True, slots=True)
class Share:
    """How often the costly looks are taken: at every n-th distinct state of a survival.

    ``values``: all values are read and compared; ``again``: the operation is run again.
    """

    values: Mapping[Survival, int] = field(
        default_factory=lambda: {"lost": 1, "kept": 6, "mixed": 12}
    )
    again: Mapping[Survival, int] = field(
        default_factory=lambda: {"lost": 1, "kept": 12, "mixed": 24}
    )


@dataclass(slots=True)
class Count:
    """What was looked at."""

    operation: str
    steps: int = 0
    states: int = 0
    distinct: int = 0
    read: int = 0
    again: int = 0
    new: int = 0

    def __str__(self) -> str:
        return (
            f"{self.operation}: {self.states} crash states ({self.distinct} distinct, {self.new} of "
            f"them new; {self.read} read in full, {self.again} run again) of {self.steps} calls"
        )


class Prepared:
    """Prepared stores, each made once, in one folder.

    Parameters
    ----------
    folder : Path
        Best in memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}

    def copy(self, stage: str, target: Path) -> None:
        """Copy a prepared store; of the empty stage nothing is made."""
        if stage not in self._made:
            place = self.folder / f"stage-{stage}"
            STAGES[stage](str(place))
            self._made[stage] = place
        if self._made[stage].exists():
            shutil.copytree(self._made[stage], target)


class Expected:
    """What an operation starts from and what it gives, as an undisturbed run showed; checks by it.

    Parameters
    ----------
    operation : Operation
    url : str or Path
        Where to run it.
    look : str or Path, optional
        Where to look at the same store without disturbing the run; ``url`` if not given.
    """

    def __init__(
        self, operation: Operation, url: str | Path, look: str | Path | None = None
    ) -> None:
        look = url if look is None else look
        self.operation = operation
        self.before = observe(look, values=operation.stage != "damaged")
        self._faults = faults(look) if self.before is not None else frozenset()
        self._report = operation.run(str(url))
        after = observe(look)
        assert after is not None
        self.after = after
        if self.before is not None and operation.name != "gc":
            assert self.before.difference(after) or self._faults, f"{operation} changed nothing"
        # Repair publishes a sound version; the damaged ones before it stay as they are.
        self._faults_after = faults(look)
        assert self._faults_after <= self._faults

    def check(self, url: str | Path, values: bool, same_ids: bool = True) -> bool:
        """Assert that a store is exactly as before or exactly as after; return whether as after.

        Not looked at: whether states verify. They are a cache that is not synced.

        Parameters
        ----------
        url : str or Path
        values : bool
            Whether all values are read and compared; checksums of all bytes always are.
        same_ids : bool
            Whether the versions are those of this very run.
        """
        found = observe(url, values=False)
        new = self._is_new(found)
        if found is None:
            return False
        expected = self.after if new else self.before
        assert expected is not None, "there is a store before it was created"
        damage = faults(url)
        assert damage == (self._faults_after if new else self._faults), f"verify: {sorted(damage)}"
        if values and (new or not self._faults):
            found = observe(url)
            assert found is not None
        difference = found.difference(expected)
        assert not difference, difference
        if same_ids:
            assert found.ids == expected.ids, f"versions are {found.ids}, not {expected.ids}"
        self._check_kept(found)
        return new

    def _is_new(self, found: Seen | None) -> bool:
        if self.before is None or found is None:
            assert found is None or self.before is None, "the store is gone"
            return found is not None
        assert found.operations in (self.before.operations, self.after.operations), (
            f"history is {found.operations}"
        )
        if self.operation.name == "gc":
            return found.kept == self.after.kept
        return not found.difference(self.after)

    def _check_kept(self, found: Seen) -> None:
        """Versions are let go by gc alone, and never those that are needed."""
        most = self.before.kept if self.before is not None else self.after.kept
        assert found.kept <= most | self.after.kept
        assert found.kept >= self.after.kept & most
        assert set(found.tags.values()) <= found.kept

    def check_again(self, url: str | Path, new: bool) -> None:
        """Run the operation again if it has not happened; then collect what is left over."""
        if not new:
            self.run_again(url)
        store = open_store(url)
        for _ in range(2):  # of a dead journal first the entries go, then the files they name
            store.gc(safety_age="0s", keep_versions=1000)
        left = leftovers(url)
        assert not left, f"gc left {sorted(left)}"
        found = observe(url, values=False)
        assert found is not None
        assert not found.difference(self.after), "gc changed what users see"
        damage = faults(url)
        assert damage == self._faults_after, f"verify finds {sorted(damage)} after gc"
        assert store.verify().ok

    def run_again(self, url: str | Path) -> None:
        """Run the operation on a store as before it; finished work is not done again."""
        finished = journal_of(url, TABLE) if self.before is not None else set()
        report = self.operation.run(str(url))
        if isinstance(report, BuildReport):
            total = self._report.computed + self._report.resumed
            assert report.resumed >= len(finished), "finished work was not found again"
            assert report.computed + report.resumed == total, "work was done twice"
        found = observe(url)
        assert found is not None
        difference = found.difference(self.after)
        assert not difference, f"run again: {difference}"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a state turned out to be, and the keys of finished work found in it."""

    new: bool
    finished: frozenset[str]


class Rehearsal:
    """One operation, run undisturbed on a recording disk.

    Parameters
    ----------
    operation : Operation
    prepared : Prepared
    folder : Path
        Does not exist; on the same file system as ``prepared``.
    kind : type of SimulatedDisk
        Careless ones show that the checks see something.
    """

    def __init__(
        self,
        operation: Operation,
        prepared: Prepared,
        folder: Path,
        kind: type[SimulatedDisk] = SimulatedDisk,
    ) -> None:
        self._folder = folder
        root = folder / "disk"
        root.mkdir(parents=True)
        prepared.copy(operation.stage, root / "store")
        self.disk = kind(root)
        self._finished: list[tuple[int, frozenset[str]]] = []
        with self._journal_watched():
            url = attach("rehearsal", root / "store", self.disk)
            self.expected = Expected(operation, url, look=root / "store")
        self.steps = len(self.disk.calls)

    @contextmanager
    def _journal_watched(self) -> Iterator[None]:
        """Note after which call finished work was acknowledged."""
        original = Journal.record_all

        def record_all(journal: Journal, entries: Iterable[tuple[str, PartitionEntry]]) -> None:
            entries = list(entries)
            original(journal, entries)
            keys = frozenset(key for key, _ in entries)
            self._finished.append((len(self.disk.calls), keys))

        Journal.record_all = record_all  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Journal.record_all = original  # type: ignore[method-assign]

    def check(self, ways: Sequence[Way], share: Share, seed: int) -> Count:
        """Look at every crash state, in each way to lose what was not synced.

        Parameters
        ----------
        ways : sequence of (survival, seed)
        share : Share
        seed : int
            For tears and tosses, with those of the ways.

        Raises
        ------
        AssertionError
            With the call, the survival and the seed.
        """
        count = Count(self.expected.operation.name, self.steps)
        pool = self._folder / "pool"
        pool.mkdir()
        maker = Materializer(self.disk.model, pool)
        seen: dict[frozenset[tuple[str, Content]], _Outcome] = {}
        tally: Counter[str] = Counter()
        for moment, (step, model) in enumerate(self.disk.power_failures()):
            for survival, number in ways:
                survivor = model.survivor(survival, seed + number + 1000 * moment)
                key = frozenset(survivor.items())
                count.states += 1
                try:
                    if key not in seen:
                        tally[survival] += 1
                        read = tally[survival] % share.values[survival] == 0
                        again = tally[survival] % share.again[survival] == 0
                        seen[key] = self._look(maker, survivor, read, again)
                        count.read += read
                        count.again += again
                    self._check_promises(seen[key], step)
                except (AssertionError, FeatureStoreError) as error:
                    where = f"call {step} of {self.steps}, {survival} {number}, seed {seed}"
                    raise AssertionError(f"{count.operation}, {where}: {error}") from error
        count.distinct = len(seen)
        count.new = sum(one.new for one in seen.values())
        shutil.rmtree(pool)
        return count

    def _check_promises(self, found: _Outcome, step: int) -> None:
        """What was acknowledged before the power failed is there."""
        assert found.new or step < self.steps, "the acknowledged operation is gone"
        if not found.new:
            promised = {key for done, keys in self._finished if done <= step for key in keys}
            lost = promised - found.finished
            assert not lost, f"{len(lost)} finished partitions are gone from the journal"

    def _look(self, maker: Materializer, survivor: Survivor, read: bool, again: bool) -> _Outcome:
        folder = self._folder / "found"
        maker.write(survivor, folder)
        try:
            place = folder / "store"
            new = self.expected.check(place, read)
            finished = frozenset(journal_of(place, TABLE) if place.exists() else ())
            if again:
                self.expected.check_again(place, new)
            return _Outcome(new, finished)
        finally:
            shutil.rmtree(folder)


def faults(url: str | Path) -> frozenset[str]:
    """Return what a full verification of a whole store finds wrong, damaged states apart."""
    report = open_store(url).verify(all_versions=True)
    return frozenset(str(one) for one in report.faults if not one.file.startswith(STATES + "/"))


def any_seed() -> int:
    """Return the seed of a test run: of ``FEATURESTORE_TEST_SEED``, or any."""
    given = os.environ.get("FEATURESTORE_TEST_SEED")
    return int(given) if given else random.SystemRandom().randrange(2**32)
