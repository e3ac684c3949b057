"""PyTorch: the loader's order with any number of workers, and its position whatever they read ahead.

Workers come from a fork server that has PyTorch loaded: each takes milliseconds.
"""

from __future__ import annotations

import copy
import gc
import itertools
import multiprocessing
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.utils.data import DataLoader

from featurestore.dataset.batch import DatasetSchema, Input, Role
from featurestore.errors import CorruptionError, InvalidInputError, MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import Batches, HookContract, row_numbers
from training import Loader

# Said on machines with fewer cores than workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SERVED: dict[str, Any] = {"multiprocessing_context": "forkserver"}


@pytest.fixture(scope="module", autouse=True)
def served() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["training.hooks.torch"])


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(
        part, options.pop("batch_size", 7), cache=cache, block_rows=16, window_blocks=3, **options
    )


def rows_of(elements: Any) -> Batches:
    return [inputs["numeric"][:, 0].int().tolist() for inputs, *_ in elements]


def plainly(dataset: Any, workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset, batch_size=None, num_workers=workers, **(SERVED if workers else {}), **options
    )


class TestTorch(HookContract):
    """In this process, through the ``DataLoader`` of the hook."""

    workers = 0

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def hook(self, loader: Loader) -> Any:
        return loader.torch().loader(0)

    def arrays(self, element: Any) -> list[Any]:
        return [
            {name: one.numpy() for name, one in part.items()}
            if isinstance(part, dict)
            else part.numpy()
            for part in element
        ]


class TestTorchFourWorkers(TestTorch):
    workers = 4

    def hook(self, loader: Loader) -> Any:
        return loader.torch().loader(self.workers, persistent_workers=True, **SERVED)

    @pytest.mark.parametrize("rows", [40])
    @pytest.mark.parametrize("shuffle", [True])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        """One set of workers is stopped at every step, another goes on from there."""
        part = self.part(rows)
        plain = small(part, cache, shuffle=shuffle, seed=2)
        whole = [row_numbers(one) for _ in range(2) for one in plain]
        first, second = (small(part, cache, shuffle=shuffle, seed=2) for _ in range(2))
        one, other = self.hook(first), self.hook(second)
        for stop in range(len(plain) + 1):
            first.set_epoch(0)
            seen = rows_of(itertools.islice(one, stop))
            second.load_state_dict(first.state_dict())
            assert (second.epoch, second.steps_left) == next_place(stop, len(plain))
            rest = rows_of(other) + (rows_of(other) if stop < len(plain) else [])
            assert [*seen, *rest] == whole


def next_place(stop: int, steps: int) -> tuple[int, int]:
    return (0, steps - stop) if stop < steps else (1, steps)


class TestTorchOneWorker(TestTorchFourWorkers):
    workers = 1

    @pytest.mark.parametrize("world", [3])
    @pytest.mark.parametrize("rows", [100])
    @pytest.mark.parametrize("shuffle", [True])
    def test_ranks_share_each_epoch(self, world: int, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_ranks_share_each_epoch(world, rows, shuffle, cache)


class TestTorchNewWorkers(TestTorchOneWorker):
    """Four workers, made anew for each epoch."""

    workers = 4

    def hook(self, loader: Loader) -> Any:
        return loader.torch().loader(self.workers, **SERVED)

    @pytest.mark.parametrize("rows", [14])
    @pytest.mark.parametrize("shuffle", [True])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_stop_and_resume_at_every_step(rows, shuffle, cache)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


@pytest.fixture
def order(cache: Path) -> list[Batches]:
    """Three epochs of :func:`shuffled`."""
    loader = shuffled(cache)
    return [[row_numbers(batch) for batch in loader] for _ in range(3)]


def shuffled(cache: Path, rows: int = 100) -> Loader:
    return small(numbered_part(rows), cache, shuffle=True, seed=8)


# --- plain DataLoaders -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("kept", [False, True])
def test_a_plain_data_loader_follows_set_epoch(
    workers: int, kept: bool, cache: Path, order: list[Batches]
) -> None:
    if kept and not workers:
        return
    dataset = shuffled(cache).torch()
    made = plainly(dataset, workers, persistent_workers=kept)
    for epoch in (0, 2, 1, 1):
        dataset.set_epoch(epoch)
        assert rows_of(made) == order[epoch]
        assert len(made) == len(order[epoch])


@pytest.mark.parametrize("kept", [False, True])
def test_workers_that_are_told_no_epoch_do_not_repeat_one(
    kept: bool, cache: Path, order: list[Batches]
) -> None:
    made = plainly(shuffled(cache).torch(), 2, persistent_workers=kept)
    assert rows_of(made) == order[0]
    refuses(made, "step 0 of epoch 0 a second time")


def refuses(made: DataLoader, message: str) -> None:
    iterator = iter(made)
    with pytest.raises(InvalidInputError, match=message):
        next(iterator)
    iterator._shutdown_workers()  # which the traceback would delay


def test_table_order_may_be_repeated(cache: Path) -> None:
    loader = small(numbered_part(30), cache)
    made = plainly(loader.torch(), 2)
    assert rows_of(made) == rows_of(made) == [row_numbers(batch) for batch in loader]
    resumed = small(numbered_part(30), cache)
    resumed.load_state_dict({**resumed.state_dict(), "step": 2})
    made = plainly(resumed.torch(), 2)
    assert [len(one) for one in rows_of(made)] == [7, 7, 2]
    refuses(made, "step 2 of epoch 0 a second time")


def test_a_plain_data_loader_in_this_process_moves_the_loader(
    cache: Path, order: list[Batches]
) -> None:
    loader = shuffled(cache)
    made = plainly(loader.torch(), 0)
    assert [rows_of(made) for _ in range(3)] == order
    next(iter(made))
    assert (loader.epoch, loader.state_dict()["step"]) == (3, 1)


@pytest.mark.parametrize("workers", [0, 4])
def test_a_map_gives_batches_of_the_epoch_in_any_order(
    workers: int, cache: Path, order: list[Batches]
) -> None:
    loader = shuffled(cache)
    loader.set_epoch(1)
    dataset = loader.torch_map()
    assert dataset.epoch == 1
    made = plainly(dataset, workers, persistent_workers=workers > 0)
    assert rows_of(made) == order[1]
    for epoch in (2, 0):
        dataset.set_epoch(epoch)
        assert rows_of(made) == order[epoch]
    assert rows_of([dataset[-1], dataset[3]]) == [order[0][-1], order[0][3]]
    for step in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[step]
    mixed = rows_of(plainly(dataset, 0, shuffle=True))
    assert sorted(mixed) == sorted(order[0])
    assert loader.epoch == 1


# --- how workers are started -------------------------------------------------------------------------


def test_spawned_workers_are_the_default(cache: Path, order: list[Batches]) -> None:
    loader = shuffled(cache)
    made = loader.torch().loader(1, prefetch_factor=1)
    assert made.multiprocessing_context.get_start_method() == "spawn"
    assert rows_of(made) == order[0]
    assert (loader.epoch, loader.state_dict()["step"]) == (1, 0)


FORKING = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
from featurestore.testing.datasets import numbered_part
from training import Loader

def rows(elements):
    return [inputs["numeric"][:, 0].int().tolist() for inputs, *_ in elements]

part = numbered_part(100)
loader = Loader(part, 7, True, cache=Path(sys.argv[1]))
expected = [rows(loader.torch()) for _ in range(3)]
dataset = Loader(part, 7, True, cache=Path(sys.argv[1])).torch()
for epoch, kept in [(0, False), (2, True), (1, False)]:
    dataset.set_epoch(epoch)
    options = {"multiprocessing_context": "fork", "persistent_workers": kept}
    assert rows(DataLoader(dataset, batch_size=None, num_workers=3, **options)) == expected[epoch]
counted = Loader(part, 7, True, cache=Path(sys.argv[1]))
made = counted.torch().loader(2, multiprocessing_context="fork")
assert [rows(made) for _ in range(3)] == expected
assert counted.epoch == 3
print("equal")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_forked_workers_see_the_epoch_they_were_forked_in(cache: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(cache)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "equal\n", done.stderr


def test_a_pickle_is_small_and_maps_the_same_pack(cache: Path, order: list[Batches]) -> None:
    part = numbered_part(5000, tensor=(64,))
    for made in (small(part, cache).torch(), small(part, cache).torch_map()):
        assert len(pickle.dumps(made)) < 5000
    loader = shuffled(cache)
    copied = pickle.loads(pickle.dumps(loader.torch()))
    assert [rows_of(copied) for _ in range(2)] == order[:2]
    assert loader.epoch == 0, "a copy has a position of its own"
    assert rows_of(copy.deepcopy(loader.torch())) == order[0]
    assert rows_of(copied.loader(2, **SERVED)) == order[2]


def test_workers_never_build_a_pack(cache: Path) -> None:
    loader = shuffled(cache)
    made = pickle.dumps(loader.torch())
    (cache / loader.pack.path.name / "manifest.json").write_text("{}")
    with pytest.raises(CorruptionError, match="manifest"):
        pickle.loads(made)
    shuffled(cache).pack  # noqa: B018 - builds it again
    assert len(pickle.loads(made)) == len(loader)
    loader.pack.delete()
    with pytest.raises(CorruptionError, match="no readable manifest"):
        pickle.loads(made)
    assert not list(cache.iterdir())


# --- ends ----------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def left() -> tuple[set[Any], ...]:
    return set(threading.enumerate()), set(multiprocessing.active_children())


@pytest.fixture
def clean() -> Iterator[None]:
    """Check that a test leaves no thread, process or shared memory, without a garbage collection."""
    threads, processes = left()
    yield
    for _ in range(100):
        after = left()
        if after[0] <= threads and after[1] <= processes:
            break
        threading.Event().wait(0.05)
    assert after[0] <= threads
    assert after[1] <= processes


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("kept", [False, True])
def test_nothing_is_left_of_an_epoch_left_early(kept: bool, cache: Path) -> None:
    stop_early(cache, kept)  # starts what processes need once
    before = open_files()
    stop_early(cache, kept)
    assert not multiprocessing.active_children()
    gc.collect()
    assert open_files() <= before


def stop_early(cache: Path, kept: bool) -> None:
    made = shuffled(cache).torch().loader(2, persistent_workers=kept, **SERVED)
    for _ in made:
        break
    assert len(multiprocessing.active_children()) == (2 if kept else 0)


class BrokenModelError(Exception):
    pass


def train_badly(batches: Any) -> None:
    for _ in batches:
        raise BrokenModelError


@pytest.mark.usefixtures("clean")
def test_nothing_is_left_of_an_exception_in_the_model(cache: Path) -> None:
    loader = shuffled(cache)
    made = loader.torch().loader(2, **SERVED)
    with pytest.raises(BrokenModelError):
        train_badly(made)
    assert not multiprocessing.active_children()
    assert loader.state_dict()["step"] == 1


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("kept", [False, True])
def test_an_error_in_a_worker_surfaces_with_its_cause(
    kept: bool, cache: Path, order: list[Batches]
) -> None:
    loader = shuffled(cache)
    dataset = loader.torch()
    made = dataset.loader(2, persistent_workers=kept, **SERVED)
    places = loader.steps.order_of(0).indices(*loader.steps.span(4))
    dataset._pack = BrokenPack(dataset._pack, places.tolist())
    seen = []
    with pytest.raises(CorruptionError, match="block 3 cannot be read") as caught:
        seen.extend(rows_of(one for one in made))
    assert "DataLoader worker process 0" in str(caught.value)
    assert "gather" in str(caught.value), "with the worker's own traceback"
    assert loader.state_dict()["step"] == 4
    assert not multiprocessing.active_children()
    dataset._pack = loader.pack
    assert rows_of(made) == order[0], "with new workers"
    assert rows_of(made) == order[1]
    if kept:  # the error's traceback holds what would end them
        made._iterator._shutdown_workers()


class BrokenPack:
    """A pack that cannot read some rows."""

    def __init__(self, pack: Any, rows: list[int]) -> None:
        self.pack, self.rows, self.schema = pack, rows, pack.schema

    def prefetch(self, *_: Any) -> None:
        pass

    def ahead(self, _: Any) -> Any:
        return nullcontext()

    def gather(self, rows: Any) -> Any:
        if rows.tolist() == self.rows:
            raise CorruptionError("block 3 cannot be read", "look at the disk")
        return self.pack.gather(rows)


@pytest.mark.usefixtures("clean")
def test_a_killed_worker_is_an_error(cache: Path, order: list[Batches]) -> None:
    loader = shuffled(cache)
    made = loader.torch().loader(1, persistent_workers=True, prefetch_factor=1, **SERVED)
    iterator = iter(made)
    next(iterator)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    # What is not there any more depends on the moment: the process, or what it had shared.
    with pytest.raises((RuntimeError, OSError)):
        list(iterator)
    assert not multiprocessing.active_children()
    assert rows_of(made) == order[0]


def test_an_abandoned_iterator_does_not_move_the_loader(cache: Path) -> None:
    loader = shuffled(cache)
    made = loader.torch().loader(1, **SERVED)
    abandoned = iter(made)
    next(abandoned)
    current = iter(made)
    next(current)
    list(abandoned)
    assert (loader.epoch, loader.state_dict()["step"]) == (0, 1)
    current.close()


# --- tensors -------------------------------------------------------------------------------------------


def test_tensors_share_the_memory_of_the_batch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(numbered_part(20, tensor=(3, 2)), cache)
    taken: list[Any] = []
    plain = loader.pack.read

    def reading(start: int, stop: int) -> Any:
        taken.append(plain(start, stop))
        return taken[-1]

    monkeypatch.setattr(loader.pack, "read", reading)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, (inputs, label) in enumerate(loader.torch()):
            for name, values in taken[step].inputs.items():
                assert inputs[name].data_ptr() == values.ctypes.data
                assert values.ctypes.data % 64 == 0
            assert label.data_ptr() == taken[step].label.ctypes.data
            inputs["numeric"] += 1  # the consumer's own: nobody else reads it


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("uint8", torch.int64),
        ("int32", torch.int64),
        ("bool", torch.int64),
        ("float64", torch.float32),
        ("float16", torch.float32),
    ],
)
def test_labels_are_what_losses_take(dtype: str, expected: Any, cache: Path) -> None:
    schema = DatasetSchema((Input("v", Role.NUMERIC, "float32"), Input("y", Role.LABEL, dtype)))
    inputs = {"numeric": np.zeros((4, 1), dtype=np.float32)}
    values = np.array([0, 1, 1, 0]).astype(dtype)
    ((_, label),) = list(small(ArrayPart(schema, inputs, values, (4,)), cache).torch())
    assert label.dtype == expected
    assert label.tolist() == values.tolist()
    if expected is torch.int64:
        torch.nn.functional.cross_entropy(torch.zeros(4, 2), label)


def test_tensors_of_many_types_reach_the_consumer(cache: Path) -> None:
    for dtype in ("bool", "uint8", "uint16", "int64", "float64", "float16"):
        schema = DatasetSchema((Input("v", Role.TENSOR, dtype, (3,)),))
        values = np.arange(30).reshape(10, 3).astype(dtype)
        part = ArrayPart(schema, {"v": values}, None, (4, 6), f"t-{dtype}")
        ((inputs,),) = list(small(part, cache, batch_size=10).torch().loader(1, **SERVED))
        assert inputs["v"].numpy().dtype == np.dtype(dtype)
        np.testing.assert_array_equal(inputs["v"].numpy(), values)


def test_a_model_trains_on_it(cache: Path) -> None:
    part = numbered_part(2000, cardinalities=(5,))
    part.inputs["numeric"][:, 0] = 1  # the row number is no feature
    loader = Loader(part, 100, shuffle=True, cache=cache)
    torch.manual_seed(0)
    embedding, dense = torch.nn.Embedding(5, 2), torch.nn.Linear(5, 1)
    weights, losses = [*embedding.parameters(), *dense.parameters()], []
    for _ in range(3):
        for inputs, label in loader.torch():
            joined = torch.cat([inputs["numeric"], embedding(inputs["c0"])], dim=1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(dense(joined)[:, 0], label)
            with torch.no_grad():
                for one, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    one.sub_(0.5 * slope)
            losses.append(float(loss.detach()))
    assert np.mean(losses[-10:]) < 0.6 * losses[0]


# --- limits --------------------------------------------------------------------------------------------


def test_batches_in_flight_are_counted(cache: Path) -> None:
    loader = small(numbered_part(1000), cache, shuffle=True)
    terms = [one.what for one in loader.torch().memory(4, 3).terms]
    assert terms == ["18 batches of 7 rows", "4 orders", "objects and buffers"]
    assert loader.torch_map().memory() == loader.torch().memory() == loader.epoch_memory()
    part = numbered_part(6000, numeric=2, cardinalities=(), tensor=(1024,))
    limit = resident_bytes() + (80 << 20)
    batches = Loader(part, 6000, cache=cache, memory_limit=limit).torch()
    assert len(batches.loader()) == 1
    with pytest.raises(MemoryLimitError, match="8 batches of 6000 rows"):
        batches.loader(2)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4},
        {"shuffle": True},
        {"sampler": [1]},
        {"drop_last": True},
        {"in_order": False},
    ],
)
def test_options_that_choose_batches_are_refused(options: dict[str, Any], cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="is not for this DataLoader"):
        shuffled(cache).torch().loader(2, **options)


@pytest.mark.parametrize("epoch", [-1, 2**64, True])
def test_what_is_no_epoch_is_refused(epoch: Any, cache: Path) -> None:
    for made in (shuffled(cache).torch(), shuffled(cache).torch_map()):
        with pytest.raises(InvalidInputError, match="epoch="):
            made.set_epoch(epoch)
