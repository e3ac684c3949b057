"""What every loader and every hook must do, as a test class to inherit.

Subclasses say how row numbers come out of whatever they test: ``epochs(part, count, **options)``
returns, for ``count`` epochs, the batches of row numbers that a consumer sees.
"""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from featurestore.dataset.batch import Batch
from featurestore.testing.datasets import ArrayPart, numbered_part

Batches = list[list[int]]

SIZES: Final = [
    pytest.param(1, id="one-row"),
    pytest.param(5, id="smaller-than-a-batch"),
    pytest.param(16, id="one-block"),
    pytest.param(100, id="uneven"),
    pytest.param(256, id="even"),
    pytest.param(1000, id="many-windows"),
]
MODES: Final = [False, True, "global"]


def row_numbers(batch: Batch) -> list[int]:
    """Return the rows of a batch of a ``numbered_part``."""
    return [int(one) for one in batch.inputs["numeric"][:, 0]]


def flat(batches: Sequence[Sequence[int]]) -> list[int]:
    """Return all rows of some batches in order."""
    return list(itertools.chain.from_iterable(batches))


class LoaderContract(ABC):
    """Properties of the order in which rows reach a consumer."""

    batch_size = 7

    @abstractmethod
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Any:
        """Return a loader of ``part`` with small blocks and windows."""

    @abstractmethod
    def epochs(self, loader: Any, count: int) -> list[Batches]:
        """Return the batches of row numbers that a consumer of the loader sees in some epochs."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        return tmp_path / "packs"

    def part(self, rows: int) -> ArrayPart:
        cuts = [rows] if rows < 3 else [rows // 3, 1, rows - rows // 3 - 1]
        return numbered_part(rows, partitions=[one for one in cuts if one])

    @pytest.mark.parametrize("rows", SIZES)
    @pytest.mark.parametrize("shuffle", MODES)
    def test_every_row_once_per_epoch(self, rows: int, shuffle: Any, cache: Path) -> None:
        loader = self.loader(self.part(rows), cache, shuffle=shuffle, seed=3)
        for batches in self.epochs(loader, 3):
            assert sorted(flat(batches)) == list(range(rows))
            assert [len(one) for one in batches[:-1]] == [self.batch_size] * (len(batches) - 1)

    @pytest.mark.parametrize("shuffle", MODES)
    def test_same_seed_same_order(self, shuffle: Any, cache: Path) -> None:
        part = self.part(300)
        first = self.epochs(self.loader(part, cache, shuffle=shuffle, seed=5), 2)
        again = self.epochs(self.loader(part, cache, shuffle=shuffle, seed=5), 2)
        assert first == again

    def test_order_depends_on_seed_and_epoch(self, cache: Path) -> None:
        part = self.part(300)
        zero = self.epochs(self.loader(part, cache, shuffle=True, seed=0), 2)
        one = self.epochs(self.loader(part, cache, shuffle=True, seed=1), 2)
        orders = [tuple(flat(batches)) for batches in (*zero, *one)]
        assert len(set(orders)) == 4

    def test_table_order_without_shuffle(self, cache: Path) -> None:
        for batches in self.epochs(self.loader(self.part(100), cache, shuffle=False), 2):
            assert flat(batches) == list(range(100))

    @pytest.mark.parametrize("rows", [20, 21, 22])
    def test_drop_last_leaves_out_what_fills_no_batch(self, rows: int, cache: Path) -> None:
        loader = self.loader(self.part(rows), cache, shuffle=True, drop_last=True)
        for batches in self.epochs(loader, 2):
            assert [len(one) for one in batches] == [self.batch_size] * (rows // self.batch_size)
            assert len(set(flat(batches))) == rows // self.batch_size * self.batch_size

    @pytest.mark.parametrize("shuffle", MODES)
    @pytest.mark.parametrize("rows", [1, 40, 100])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        part = self.part(rows)
        whole = self.epochs(self.loader(part, cache, shuffle=shuffle, seed=2), 2)
        everything = [*whole[0], *whole[1]]
        for stop in range(len(everything) + 1):
            stopped = self.loader(part, cache, shuffle=shuffle, seed=2)
            seen = self._take(stopped, stop)
            state = json.loads(json.dumps(stopped.state_dict()))
            resumed = self.loader(part, cache, shuffle=shuffle, seed=2)
            resumed.load_state_dict(state)
            rest = self._take(resumed, len(everything) - stop)
            assert [*seen, *rest] == everything

    def _take(self, loader: Any, count: int) -> Batches:
        found: Batches = []
        while len(found) < count:
            for batch in loader:
                found.append(row_numbers(batch))
                if len(found) == count:
                    break
        return found

    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    @pytest.mark.parametrize("rows", [7, 30, 100, 256])
    @pytest.mark.parametrize("shuffle", MODES)
    def test_ranks_share_each_epoch(self, world: int, rows: int, shuffle: Any, cache: Path) -> None:
        loader = self.loader(self.part(rows), cache, shuffle=shuffle, seed=4)
        shards = [loader.shard(rank, world) for rank in range(world)]
        seen = [self.epochs(shard, 2) for shard in shards]
        for epoch in range(2):
            assert len({len(one[epoch]) for one in seen}) == 1, "ranks have equal numbers of steps"
            assert all(batch for one in seen for batch in one[epoch]), "no rank has an empty batch"
            rows_seen = [row for one in seen for batch in one[epoch] for row in batch]
            assert sorted(rows_seen) == list(range(rows))

    def test_batches_are_never_written_again(self, cache: Path) -> None:
        loader = self.loader(self.part(200), cache, shuffle=True)
        kept = list(loader)
        copies = [{name: one.copy() for name, one in batch.inputs.items()} for batch in kept]
        list(loader)
        for batch, copy in zip(kept, copies, strict=True):
            for name, values in copy.items():
                np.testing.assert_array_equal(batch.inputs[name], values)
