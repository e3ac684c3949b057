"""The loader in plain Python: the contract, random access, state, ranks, memory."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.dataset.batch import DatasetSchema, Input, Role
from featurestore.errors import InvalidInputError, MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import MODES, Batches, LoaderContract, row_numbers
from featurestore.units import parse_bytes
from training import Loader
from training.loading.memory import row_bytes
from training.loading.order import DEFAULT_WINDOW_BLOCKS
from training.loading.pack import mapped_bytes


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(
        part, options.pop("batch_size", 7), cache=cache, block_rows=16, window_blocks=3, **options
    )


class TestLoader(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]

    @pytest.mark.parametrize("shuffle", MODES)
    @pytest.mark.parametrize("rows", [1, 100])
    def test_stop_and_resume_at_every_step(self, rows: int, shuffle: Any, cache: Path) -> None:
        super().test_stop_and_resume_at_every_step(rows, shuffle, cache)


class TestRandomAccess(LoaderContract):
    """``[i]`` gives what iterating gives, in any order and from several threads."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        found = []
        for epoch in range(count):
            loader.set_epoch(epoch)
            steps = list(reversed(range(len(loader))))
            with ThreadPoolExecutor(4) as pool:
                batches = list(pool.map(loader.__getitem__, steps))
            found.append([row_numbers(one) for one in reversed(batches)])
        return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def test_batches_hold_the_rows_of_the_part(cache: Path) -> None:
    part = numbered_part(50, partitions=(20, 30), cardinalities=(3, 4), tensor=(2, 5))
    for batch in small(part, cache, shuffle=True):
        rows = row_numbers(batch)
        for name, values in part.inputs.items():
            np.testing.assert_array_equal(batch.inputs[name], values[rows])
            assert batch.inputs[name].flags.c_contiguous
            assert batch.inputs[name].ctypes.data % 64 == 0
        assert part.label is not None
        np.testing.assert_array_equal(batch.label, part.label[rows])


def test_an_empty_part_has_no_batches(cache: Path) -> None:
    loader = small(numbered_part(0), cache, shuffle=True)
    assert len(loader) == 0
    assert list(loader) == []
    with pytest.raises(IndexError):
        loader[0]


def test_an_epoch_left_early_begins_again(cache: Path) -> None:
    loader = small(numbered_part(100), cache, shuffle=True)
    first = row_numbers(next(iter(loader)))
    assert loader.epoch == 0
    assert row_numbers(next(iter(loader))) == first
    list(loader)
    assert loader.epoch == 1
    assert row_numbers(next(iter(loader))) != first


def test_an_abandoned_iterator_does_not_move_the_loader(cache: Path) -> None:
    loader = small(numbered_part(100), cache)
    abandoned = iter(loader)
    next(abandoned)
    current = iter(loader)
    next(current)
    list(abandoned)
    assert loader.epoch == 0
    assert loader.state_dict()["step"] == 1


def test_indices_count_from_the_end_too(cache: Path) -> None:
    loader = small(numbered_part(20), cache)
    assert row_numbers(loader[-1]) == row_numbers(loader[2]) == list(range(14, 20))
    for step in (3, -4):
        with pytest.raises(IndexError):
            loader[step]


def test_state_is_small_json_and_says_how_much_is_left(cache: Path) -> None:
    loader = small(numbered_part(100), cache, shuffle=True)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 500
    resumed = small(numbered_part(100), cache, shuffle=True)
    resumed.load_state_dict(state)
    assert resumed.steps_left == len(list(resumed)) == 11
    assert resumed.epoch == 1
    assert resumed.steps_left == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "other data"),
        ({"seed": 1}, "another seed"),
        ({"shuffle": False}, "another shuffle"),
        ({"batch_size": 8}, "another global batch size"),
        ({"last": "drop"}, "another treatment of the last"),
    ],
)
def test_a_state_of_something_else_is_refused(
    change: dict[str, Any], message: str, cache: Path
) -> None:
    options: dict[str, Any] = {"shuffle": True, **change}
    part = numbered_part(50, name=options.pop("name", "part"))
    state = small(numbered_part(50), cache, shuffle=True).state_dict()
    with pytest.raises(InvalidInputError, match=message):
        small(part, cache, **options).load_state_dict(state)


@pytest.mark.parametrize("bad", [{"step": 9}, {"step": -1}, {"step": "1"}, {"epoch": -1}])
def test_a_state_that_is_no_place_is_refused(bad: dict[str, Any], cache: Path) -> None:
    loader = small(numbered_part(50), cache)
    with pytest.raises(InvalidInputError):
        loader.load_state_dict({**loader.state_dict(), **bad})


def test_a_run_resumes_on_another_number_of_ranks(cache: Path) -> None:
    part = numbered_part(200)
    alone = small(part, cache, batch_size=12, shuffle=True)
    iterator = iter(alone)
    for _ in range(5):
        next(iterator)
    state = alone.state_dict()
    rest = [row for batch in iterator for row in row_numbers(batch)]
    seen = []
    for rank in range(3):
        shard = small(part, cache, batch_size=4, shuffle=True).shard(rank, 3)
        shard.load_state_dict(state)
        seen += [row for batch in shard for row in row_numbers(batch)]
    assert sorted(seen) == sorted(rest)


def test_steps_of_ranks_are_slices_of_the_same_rows(cache: Path) -> None:
    part = numbered_part(100)
    whole = [row_numbers(one) for one in small(part, cache, batch_size=12, shuffle=True)]
    shards = [small(part, cache, batch_size=4, shuffle=True).shard(rank, 3) for rank in range(3)]
    for step, rows in enumerate(whole[:-1]):
        assert [row for shard in shards for row in row_numbers(shard[step])] == rows


def test_what_others_left_in_the_cache_stays(cache: Path) -> None:
    for name in (".scratch-old", ".scratch-host-pid-x", ".scratch-"):
        (cache / name).mkdir(parents=True)
    assert sum(one.rows for one in Loader(numbered_part(20), 7, cache=cache)) == 20
    assert (cache / ".scratch-old").is_dir()


def test_a_share_is_not_shared_again(cache: Path) -> None:
    share = Loader(numbered_part(100), 10, cache=cache).shard(0, 2)
    with pytest.raises(InvalidInputError, match="rank 0 of 2 already"):
        share.shard(1, 2)


def test_numbers_of_numpy_are_numbers(cache: Path) -> None:
    eight = np.int64(8)
    one = Loader(
        numbered_part(100), eight, True, seed=eight, cache=cache, block_rows=eight, window_blocks=eight
    )  # fmt: skip
    other = Loader(numbered_part(100), 8, True, seed=8, cache=cache, block_rows=8, window_blocks=8)
    one.set_epoch(eight)
    other.set_epoch(8)
    assert json.dumps(one.state_dict()) == json.dumps(other.state_dict())
    for mine, plain in zip(one.shard(np.int64(1), np.int64(2)), other.shard(1, 2), strict=True):
        assert (mine.inputs["numeric"] == plain.inputs["numeric"]).all()
    assert one[np.int64(1)].rows == 8


@pytest.mark.parametrize(
    "wrong",
    [
        lambda cache: Loader(numbered_part(9), "4", cache=cache),
        lambda cache: Loader(numbered_part(9), 2.5, cache=cache),
        lambda cache: Loader(numbered_part(9), 4, True, seed=None, cache=cache),
        lambda cache: Loader(numbered_part(9), 4, True, block_rows=1.5, cache=cache),
        lambda cache: Loader(numbered_part(9), 4, cache=cache).set_epoch("a"),
        lambda cache: Loader(numbered_part(9), 4, cache=cache).shard("a", 2),
        lambda cache: Loader(numbered_part(9), 4, cache=cache)["a"],
    ],
)
def test_what_is_no_number_is_refused(wrong: Any, cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="must be a whole number"):
        wrong(cache)


FORKED = """
import os, warnings
from featurestore.engines.selection import get_engine
from featurestore.errors import UnsupportedError
warnings.simplefilter("ignore")
get_engine("polars")
if os.fork() == 0:
    try:
        get_engine("polars")
    except UnsupportedError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_forked_after_polars_was_used_is_told_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=60
    )
    assert "was forked from" in done.stdout
    assert "spawn" in done.stdout


def test_too_few_rows_for_the_ranks_are_refused(cache: Path) -> None:
    loader = small(numbered_part(5), cache)
    with pytest.raises(InvalidInputError, match="5 rows cannot feed 7 ranks"):
        loader.shard(0, 7)
    with pytest.raises(InvalidInputError, match="rank 2 of 2"):
        loader.shard(2, 2)
    assert len(small(numbered_part(5), cache, last="drop").shard(0, 7)) == 0


def test_a_limit_that_was_asked_for_bounds_the_window(cache: Path) -> None:
    part = numbered_part(8, numeric=2, cardinalities=(), tensor=(65_536,))
    options: Any = {"shuffle": True, "cache": cache, "block_rows": 1024}
    limit = resident_bytes() + (2 << 30)  # blocks are large beside what this process may hold
    held = min(DEFAULT_WINDOW_BLOCKS, limit // 4 // (1024 * row_bytes(part.schema)))
    assert 1 <= held < DEFAULT_WINDOW_BLOCKS
    assert Loader(part, 4, **options, memory_limit=limit).steps.order.window_blocks == held
    # The order of an epoch does not depend on a store's or a machine's limit.
    part.memory_limit = limit
    assert Loader(part, 4, **options).steps.order.window_blocks == DEFAULT_WINDOW_BLOCKS


def test_an_epoch_that_does_not_fit_is_refused(cache: Path) -> None:
    part = numbered_part(6000, numeric=2, cardinalities=(), tensor=(1024,))
    limit = resident_bytes() + (24 << 20)
    with pytest.raises(MemoryLimitError) as caught:
        Loader(part, 6000, cache=cache, memory_limit=limit)
    assert "2 batches of 6000 rows" in caught.value.problem
    largest = int(re.findall(r"batch_size=(\d+)", caught.value.remedy)[0])
    smallest = re.findall(r"at least (\S+),", caught.value.remedy)[0]
    assert 1000 < largest < 6000
    Loader(part, largest * 9 // 10, cache=cache, memory_limit=limit)
    roomy = parse_bytes(smallest)
    assert len(list(Loader(part, 6000, cache=cache, memory_limit=roomy))) == 1
    # Without a limit of its own, that of the part's store holds.
    part.memory_limit = limit
    with pytest.raises(MemoryLimitError):
        Loader(part, 6000, cache=cache)


def test_orders_of_workers_are_counted(cache: Path) -> None:
    loader = small(numbered_part(1000), cache, shuffle=True)
    alone, four = loader.epoch_memory(18), loader.epoch_memory(18, workers=4)
    assert [one.what for one in alone.terms][:2] == ["18 batches of 7 rows", "order"]
    assert [one.what for one in four.terms][:2] == ["18 batches of 7 rows", "4 orders"]
    assert four.terms[1].bytes == 4 * alone.terms[1].bytes
    assert loader.epoch_memory(18, workers=1) == alone


def test_a_window_that_does_not_fit_is_refused(cache: Path) -> None:
    part = numbered_part(2_000_000, numeric=2, cardinalities=())
    limit = resident_bytes() + (64 << 20)
    options: Any = {"shuffle": True, "cache": cache, "memory_limit": limit}
    with pytest.raises(MemoryLimitError, match=r"order.*\n.*or use window_blocks=1"):
        Loader(part, 16, **options, window_blocks=800)
    Loader(part, 16, **options, window_blocks=1)


def test_memory_prints_every_term(cache: Path) -> None:
    part = numbered_part(3000)
    part.memory_limit = 1 << 40
    loader = Loader(part, 100, True, cache=cache)
    plan = loader.memory()
    assert plan.limit == 1 << 40
    assert plan.fits
    assert plan.peak == max(one.reserved + one.added for one in plan.activities)
    lines = str(plan).splitlines()
    assert lines[0] == "a first epoch, while the pack is written"
    assert sum("projected peak" in one and "of 1.0 TiB" in one for one in lines) == 2
    assert any("order" in one for one in lines)
    assert list(loader)
    assert [one.activity for one in loader.memory().activities] == ["an epoch"]


def test_a_pack_that_does_not_fit_is_refused_before_anything_is_read(cache: Path) -> None:
    part = numbered_part(
        50_000, numeric=2, cardinalities=(), tensor=(128,), partitions=(40_000, 10_000)
    )
    loader = Loader(part, 16, cache=cache, memory_limit=resident_bytes() + (16 << 20))
    assert not loader.memory().fits
    with pytest.raises(MemoryLimitError, match="writing the pack"):
        loader[0]
    assert part.reads == []
    assert not list(cache.glob("*"))


def test_pages_of_a_mapped_pack_are_not_held(cache: Path) -> None:
    part = numbered_part(100_000, numeric=64, cardinalities=())
    loader = Loader(part, 1000, cache=cache)
    before = mapped_bytes()
    assert sum(batch.rows for batch in loader) == 100_000
    seen = mapped_bytes() - before
    assert 0 <= seen - 100_000 * row_bytes(part.schema) < 1 << 20
    loader.pack.delete()
    gc.collect()
    assert mapped_bytes() <= before


@pytest.mark.parametrize("size", [0, -1, True])
def test_bad_batch_sizes_are_refused(size: int) -> None:
    with pytest.raises(InvalidInputError):
        Loader(numbered_part(1), size)


def test_numeric_nan_stays(cache: Path) -> None:
    part = numbered_part(4)
    part.inputs["numeric"][2, 1] = np.nan
    (batch,) = small(part, cache)
    assert np.isnan(batch.inputs["numeric"]).sum() == 1


def test_labels_and_tensors_of_many_types(cache: Path) -> None:
    for number, dtype in enumerate(["bool", "uint8", "int64", "float64", "float16"]):
        schema = DatasetSchema(
            (Input("v", Role.TENSOR, dtype, (3,)), Input("y", Role.LABEL, dtype))
        )
        values = np.arange(30).reshape(10, 3).astype(dtype)
        part = ArrayPart(schema, {"v": values}, values[:, 0].copy(), (4, 6), f"t{number}")
        (batch,) = Loader(part, 10, cache=cache)
        assert batch.label is not None
        assert batch.inputs["v"].dtype == batch.label.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(batch.inputs["v"], values)


def test_a_part_without_label(cache: Path) -> None:
    part = numbered_part(5)
    unlabelled = ArrayPart(
        DatasetSchema(part.schema.columns[:-1]), part.inputs, None, (5,), "unlabelled"
    )
    (batch,) = Loader(unlabelled, 8, cache=cache)
    assert batch.label is None
    assert batch.rows == 5


def test_the_pipeline_runs_once_for_all_epochs_and_threads(cache: Path) -> None:
    part = numbered_part(60, partitions=(10, 20, 30))
    loader = small(part, cache, shuffle=True)
    threads = [threading.Thread(target=lambda: loader[0]) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    list(loader)
    list(small(part, cache, shuffle="global", seed=3))
    assert sorted(part.reads) == [0, 1, 2]
    part.reads.clear()
    list(small(part, cache))  # rows in table order lie in a pack of their own
    list(small(part, cache, shuffle=False))
    assert sorted(part.reads) == [0, 1, 2]


@pytest.mark.parametrize("shuffle", [False, True, "global"])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 7, 20, 43, 100])
def test_padded_ranks_have_equal_batches_and_share_each_row(
    rows: int, world: int, shuffle: Any, cache: Path
) -> None:
    loader = small(numbered_part(rows), cache, shuffle=shuffle, last="pad")
    seen: list[int] = []
    for rank in range(world):
        batches = list(loader.shard(rank, world))
        assert len(batches) == -(-rows // (7 * world))
        for batch in batches:
            weight = batch.weight
            assert weight is not None
            assert batch.rows == 7
            assert set(np.unique(weight)) <= {0.0, 1.0}
            seen += [
                row for row, one in zip(row_numbers(batch), weight.tolist(), strict=True) if one
            ]
    assert sorted(seen) == list(range(rows))


def test_padding_is_in_the_projection(cache: Path) -> None:
    kept, padded = (small(numbered_part(5), cache, last=one) for one in ("keep", "pad"))
    row = row_bytes(kept.schema)
    more = padded.epoch_memory().added - kept.epoch_memory().added
    # Two batches of 7 rows and their weights in place of 5; row numbers twice more.
    assert more >= 2 * (7 * (row + 4) - 5 * row) + 7 * 16
    batch = padded[0]
    arrays = [*batch.inputs.values(), batch.label, batch.weight]
    assert sum(one.nbytes for one in arrays if one is not None) == 7 * (row + 4)


def test_what_becomes_of_the_last_batch_is_one_of_three(cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="use 'keep', 'drop' or 'pad'"):
        small(numbered_part(5), cache, last="fill")
