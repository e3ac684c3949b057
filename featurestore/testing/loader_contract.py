"""What every loader and every hook must do, as test classes to inherit.

Subclasses of :class:`LoaderContract` say how row numbers come out of whatever they test:
``epochs(loader, count)`` returns, for ``count`` epochs, the batches of row numbers that a consumer
sees. Those of :class:`HookContract` say what a framework iterates over and how its arrays are read.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from featurestore.dataset.batch import Batch, DatasetSchema
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


def take(iterable: Iterable[Any], count: int) -> list[Any]:
    """Return the first ``count`` elements of as many iterations as they are in."""
    found: list[Any] = []
    while len(found) < count:
        for one in iterable:
            found.append(one)
            if len(found) == count:
                break
    return found


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
    def test_dropping_leaves_out_what_fills_no_batch(self, rows: int, cache: Path) -> None:
        loader = self.loader(self.part(rows), cache, shuffle=True, last="drop")
        for batches in self.epochs(loader, 2):
            assert [len(one) for one in batches] == [self.batch_size] * (rows // self.batch_size)
            assert len(set(flat(batches))) == rows // self.batch_size * self.batch_size

    @pytest.mark.parametrize("rows", [1, 20, 21])
    @pytest.mark.parametrize("shuffle", [False, True])
    def test_padding_changes_nothing_but_the_size(
        self, rows: int, shuffle: Any, cache: Path
    ) -> None:
        """Rows of weight 1 are those of a loader that keeps its last batch, in the same batches."""
        options: dict[str, Any] = {"shuffle": shuffle, "seed": 8}
        kept = self.epochs(self.loader(self.part(rows), cache, **options), 2)
        padded = self.epochs(self.loader(self.part(rows), cache, last="pad", **options), 2)
        for plain, filled in zip(kept, padded, strict=True):
            assert [len(one) for one in filled] == [self.batch_size] * len(plain)
            assert [one[: len(real)] for one, real in zip(filled, plain, strict=True)] == plain
            filler = filled[-1][len(plain[-1]) :]
            assert filler == [flat(plain)[-1]] * len(filler)

    @pytest.mark.parametrize("shuffle", MODES)
    @pytest.mark.parametrize("rows", [1, 40, pytest.param(100, marks=pytest.mark.slow)])
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
        """Return the first ``count`` batches that a consumer sees, who then stops."""
        return [row_numbers(batch) for batch in take(loader, count)]

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


class SampledContract(LoaderContract):
    """What changes of the contract where rows are sampled; inherit from it before another contract.

    ``oracle`` says which rows an epoch has; where ``repeats``, some may come several times and others not.
    """

    sample: Any
    repeats = True

    @abstractmethod
    def oracle(self, part: ArrayPart, seed: int, epoch: int) -> list[int]:
        """Return the rows of an epoch in the order in which one rank gets them, the slow way."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Any:
        options.pop("shuffle", None)  # what is sampled has an order of its own
        return super().loader(part, cache, sample=self.sample, **options)  # type: ignore[safe-super]

    @pytest.mark.parametrize("rows", SIZES)
    @pytest.mark.parametrize("shuffle", [True])
    def test_every_row_once_per_epoch(self, rows: int, shuffle: Any, cache: Path) -> None:
        part = self.part(rows)
        for epoch, batches in enumerate(self.epochs(self.loader(part, cache, seed=3), 3)):
            assert flat(batches) == self.oracle(part, 3, epoch)
            assert [len(one) for one in batches[:-1]] == [self.batch_size] * (len(batches) - 1)
            assert self.repeats or sorted(flat(batches)) == list(range(rows))

    @pytest.mark.parametrize("shuffle", [True])
    def test_same_seed_same_order(self, shuffle: Any, cache: Path) -> None:
        super().test_same_seed_same_order(shuffle, cache)

    @pytest.mark.parametrize("shuffle", [True])
    @pytest.mark.parametrize("rows", [1, 40])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_stop_and_resume_at_every_step(rows, shuffle, cache)

    @pytest.mark.parametrize("rows", [1, 20, 21])
    @pytest.mark.parametrize("shuffle", [True])
    def test_padding_changes_nothing_but_the_size(
        self, rows: int, shuffle: Any, cache: Path
    ) -> None:
        super().test_padding_changes_nothing_but_the_size(rows, shuffle, cache)

    def test_table_order_without_shuffle(self, cache: Path) -> None:
        """There is none: each epoch has an order of its own."""
        first, second = self.epochs(self.loader(self.part(100), cache), 2)
        assert flat(first) != flat(second)

    @pytest.mark.parametrize("rows", [20, 21, 22])
    def test_dropping_leaves_out_what_fills_no_batch(self, rows: int, cache: Path) -> None:
        loader = self.loader(self.part(rows), cache, last="drop")
        for batches in self.epochs(loader, 2):
            assert [len(one) for one in batches] == [self.batch_size] * (rows // self.batch_size)
            seen = flat(batches)
            assert self.repeats or len(set(seen)) == len(seen)

    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    @pytest.mark.parametrize("rows", [7, 30, 100, 256])
    @pytest.mark.parametrize("shuffle", [True])
    def test_ranks_share_each_epoch(self, world: int, rows: int, shuffle: Any, cache: Path) -> None:
        part = self.part(rows)
        loader = self.loader(part, cache, seed=4)
        seen = [self.epochs(loader.shard(rank, world), 2) for rank in range(world)]
        for epoch in range(2):
            assert len({len(one[epoch]) for one in seen}) == 1, "ranks have equal numbers of steps"
            assert all(batch for one in seen for batch in one[epoch]), "no rank has an empty batch"
            found = [row for one in seen for batch in one[epoch] for row in batch]
            assert sorted(found) == sorted(self.oracle(part, 4, epoch))


class HookContract(LoaderContract):
    """Properties of what a framework's training loop gets.

    Which rows a step has is the loader's own work; here a few cases of each are enough.
    """

    @abstractmethod
    def hook(self, loader: Any) -> Any:
        """Return what the framework iterates over, once per epoch."""

    @abstractmethod
    def arrays(self, element: Any) -> list[Any]:
        """Return an element as NumPy: the inputs by name, then the label if there is one."""

    def epochs(self, loader: Any, count: int) -> list[Batches]:
        made = self.hook(loader)
        return [[self._rows(one) for one in made] for _ in range(count)]

    def _take(self, loader: Any, count: int) -> Batches:
        return [self._rows(one) for one in take(self.hook(loader), count)] if count else []

    def _rows(self, element: Any) -> list[int]:
        return [int(one) for one in self.arrays(element)[0]["numeric"][:, 0]]

    @pytest.fixture(autouse=True)
    def nothing_is_left(self) -> Iterator[None]:
        """No thread and no process is there after a test that was not there before."""
        threads = set(threading.enumerate())
        processes = set(multiprocessing.active_children())
        yield
        gc.collect()
        for _ in range(100):
            left: list[Any] = [*(set(threading.enumerate()) - threads)]
            left += set(multiprocessing.active_children()) - processes
            if not left:
                return
            time.sleep(0.05)
        pytest.fail(f"left behind: {left}")

    @pytest.mark.parametrize("rows", [1, 5, 100])
    @pytest.mark.parametrize("shuffle", [True])
    def test_every_row_once_per_epoch(self, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_every_row_once_per_epoch(rows, shuffle, cache)

    @pytest.mark.parametrize("shuffle", ["global"])
    def test_same_seed_same_order(self, shuffle: Any, cache: Path) -> None:
        super().test_same_seed_same_order(shuffle, cache)

    @pytest.mark.parametrize("rows", [20])
    def test_dropping_leaves_out_what_fills_no_batch(self, rows: int, cache: Path) -> None:
        super().test_dropping_leaves_out_what_fills_no_batch(rows, cache)

    @pytest.mark.parametrize("world", [1, 2, 3, 7])
    @pytest.mark.parametrize("rows", [100])
    @pytest.mark.parametrize("shuffle", [True])
    def test_ranks_share_each_epoch(self, world: int, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_ranks_share_each_epoch(world, rows, shuffle, cache)

    @pytest.mark.parametrize("shuffle", [True])
    @pytest.mark.parametrize("rows", [1, 40])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_stop_and_resume_at_every_step(rows, shuffle, cache)

    @pytest.mark.parametrize("rows", [20])
    @pytest.mark.parametrize("shuffle", [True])
    def test_padding_changes_nothing_but_the_size(
        self, rows: int, shuffle: Any, cache: Path
    ) -> None:
        super().test_padding_changes_nothing_but_the_size(rows, shuffle, cache)

    def test_padding_weighs_nothing(self, cache: Path) -> None:
        made = list(self.hook(self.loader(self.part(16), cache, shuffle=True, last="pad")))
        found = [self.arrays(one) for one in made]
        weights = [weight.tolist() for _, _, weight in found]
        assert weights == [[1.0] * 7, [1.0] * 7, [1.0] * 2 + [0.0] * 5]
        assert all(weight.dtype == np.float32 for _, _, weight in found)

    @pytest.mark.parametrize("labels", [1, 2])
    @pytest.mark.parametrize("last", ["keep", "pad"])
    def test_labels_and_weights_go_with_their_rows(
        self, labels: int, last: str, cache: Path
    ) -> None:
        part = numbered_part(20, partitions=(9, 11), labels=labels, weight=True)
        expected = part.labels if part.label is None else {"late": part.label}
        seen: list[int] = []
        for one in self.hook(self.loader(part, cache, shuffle=True, last=last)):
            inputs, label, weight = self.arrays(one)
            numbers = inputs["numeric"][:, 0].astype(int)
            found = label if isinstance(label, dict) else {"late": label}
            assert set(found) == ({"late", "odd"} if labels == 2 else {"late"})
            for name, values in found.items():
                np.testing.assert_array_equal(values, expected[name][numbers])
            new = [number not in seen for number in numbers]
            assert part.weight is not None
            counted = np.where(new, part.weight[numbers], 0)
            if last == "pad":  # of a row that is repeated within its batch, the first counts
                first = np.isin(np.arange(len(numbers)), np.unique(numbers, return_index=True)[1])
                counted = counted * first
            np.testing.assert_array_equal(weight, counted)
            seen += numbers.tolist()
        assert set(seen) == set(range(20))

    def test_elements_are_the_loaders_batches(self, cache: Path) -> None:
        part = numbered_part(50, partitions=(20, 30), cardinalities=(3, 4), tensor=(2, 5))
        plain = self.loader(part, cache, shuffle=True, seed=6)
        made = self.hook(self.loader(part, cache, shuffle=True, seed=6))
        for _ in range(2):
            for batch, element in itertools.zip_longest(plain, made):
                inputs, label = self.arrays(element)
                assert set(inputs) == set(batch.inputs)
                for name, values in batch.inputs.items():
                    assert inputs[name].dtype == values.dtype
                    np.testing.assert_array_equal(inputs[name], values)
                np.testing.assert_array_equal(label, batch.label)

    def test_a_part_without_label_gives_inputs_alone(self, cache: Path) -> None:
        part = numbered_part(20)
        plain = ArrayPart(
            DatasetSchema(part.schema.columns[:-1]), part.inputs, None, (20,), "plain"
        )
        found = [self.arrays(one) for one in self.hook(self.loader(plain, cache))]
        assert [len(one) for one in found] == [1] * 3

    @pytest.mark.parametrize(("rows", "last"), [(0, "keep"), (0, "pad"), (5, "drop")])
    def test_no_batches_are_no_elements(self, rows: int, last: str, cache: Path) -> None:
        loader = self.loader(self.part(rows) if rows else numbered_part(0), cache, last=last)
        made = self.hook(loader)
        assert len(made) == 0
        assert list(made) == []

    def test_an_epoch_left_early_begins_again(self, cache: Path) -> None:
        loader = self.loader(self.part(100), cache, shuffle=True)
        made = self.hook(loader)
        first = [self._rows(one) for one in itertools.islice(made, 3)]
        assert (loader.epoch, loader.state_dict()["step"]) == (0, 3)
        whole = [self._rows(one) for one in made]
        assert whole[:3] == first
        assert loader.epoch == 1
        assert len(whole) == len(made) == len(loader)
        assert [self._rows(one) for one in itertools.islice(made, 3)] != first

    def test_the_position_is_after_what_was_handed_out(self, cache: Path) -> None:
        loader = self.loader(self.part(60), cache, shuffle=True)
        steps = len(loader)
        for step, _ in enumerate(self.hook(loader), 1):
            assert (loader.epoch, loader.state_dict()["step"]) == divmod(step, steps)

    def test_elements_are_never_written_again(self, cache: Path) -> None:
        made = self.hook(self.loader(self.part(100), cache, shuffle=True))
        kept = list(made)
        copies = [self.arrays(one)[0]["numeric"].copy() for one in kept]
        list(made)
        for one, copy in zip(kept, copies, strict=True):
            np.testing.assert_array_equal(self.arrays(one)[0]["numeric"], copy)

    @pytest.mark.parametrize("kind", ["Weighted", "Stratified"])
    def test_sampled_rows_are_the_loaders(self, kind: str, cache: Path) -> None:
        import training

        part = self.part(40)
        sample = getattr(training, kind)("importance")
        plain = self.loader(part, cache, sample=sample, seed=2)
        whole = [[row_numbers(batch) for batch in plain] for _ in range(2)]
        assert self.epochs(self.loader(part, cache, sample=sample, seed=2), 2) == whole
        stopped = self.loader(part, cache, sample=sample, seed=2)
        assert self._take(stopped, 2) == whole[0][:2]
        resumed = self.loader(part, cache, sample=sample, seed=2)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert self._take(resumed, 6) == [*whole[0][2:], *whole[1][:2]]
        for rank in range(2):
            shard, again = plain.shard(rank, 2), plain.shard(rank, 2)
            assert self.epochs(shard, 1) == [[row_numbers(batch) for batch in again]]

    def test_mixed_rows_are_the_loaders(self, cache: Path) -> None:
        import training

        few = numbered_part(12, name="few", seed=1)
        few.inputs["numeric"][:, 0] += 100

        def mixture() -> Any:
            loaders = [self.loader(self.part(40), cache, shuffle=True, seed=3)]
            return training.Mixture([*loaders, self.loader(few, cache, seed=4)], [2, 1])

        plain = mixture()
        whole = [[row_numbers(batch) for batch in plain] for _ in range(2)]
        assert self.epochs(mixture(), 2) == whole
        stopped, resumed = mixture(), mixture()
        assert self._take(stopped, 2) == whole[0][:2]
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert self._take(resumed, 5) == [*whole[0][2:], *whole[1]][:5]
        for rank in range(2):
            shard, again = plain.shard(rank, 2), plain.shard(rank, 2)
            assert self.epochs(shard, 1) == [[row_numbers(batch) for batch in again]]
