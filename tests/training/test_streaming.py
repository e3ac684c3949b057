"""Loaders without a pack: the batches of one with a pack, from a few stripes in memory and no disk."""

from __future__ import annotations

import gc
import itertools
import pickle
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.dataset.batch import Batch
from featurestore.errors import (
    CorruptionError,
    InvalidInputError,
    MemoryLimitError,
    UnsupportedError,
)
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import LoaderContract, flat, row_numbers
from featurestore.testing.sliced_parts import in_slices, sliced
from featurestore.units import parse_bytes
from training import Balanced, Loader
from training.loading import arrangement as arrangement_module
from training.loading.layout import arrays_of
from training.loading.streaming import StreamedRows

pytestmark = pytest.mark.usefixtures("small_stripes", "no_thread_is_left")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Where packs would lie; nothing does at the end, unless a test keeps some on purpose."""
    path = tmp_path / "packs"
    yield path
    assert not path.exists()


def streamed(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, pack=False, **options)


def packed(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, **options)


def rows_of(loader: Loader) -> StreamedRows:
    found = loader.begin()
    assert isinstance(found, StreamedRows)
    return found


def equal(one: Batch, other: Batch, part: ArrayPart) -> None:
    ours, theirs = arrays_of(one, part.schema), arrays_of(other, part.schema)
    assert set(ours) == set(theirs)
    for key, values in ours.items():
        assert values.dtype == theirs[key].dtype
        np.testing.assert_array_equal(values, theirs[key])
    assert (one.weight is None) == (other.weight is None)
    if one.weight is not None and other.weight is not None:
        np.testing.assert_array_equal(one.weight, other.weight)


class TestStreamedLoader(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        if options.get("shuffle") == "global":  # refused; the name of the order there is instead
            options["shuffle"] = "stripes"
        return streamed(part, cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[list[list[int]]]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]

    def part(self, rows: int) -> ArrayPart:
        return sliced(rows, min(rows, 9))


@pytest.mark.parametrize("shuffle", [True, "stripes", False])
def test_batches_are_those_of_a_pack(shuffle: Any, cache: Path, tmp_path: Path) -> None:
    part = sliced(300, 9, tensor=(3,))
    without = streamed(part, cache, shuffle=shuffle, seed=3)
    with_pack = packed(part, tmp_path / "kept", shuffle=shuffle and "stripes", seed=3)
    first = packed(part, tmp_path / "kept", shuffle=bool(shuffle), seed=3)
    assert without.state_dict() == with_pack.state_dict()
    for epoch in range(3):
        for one, other in itertools.zip_longest(without, with_pack):
            equal(one, other, part)
        if epoch == 0:  # which is in the same order with any pack
            for step, other in enumerate(first):
                equal(without.batch(step, 0), other, part)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    batch=st.integers(1, 60),
    shuffle=st.sampled_from([True, False]),
    last=st.sampled_from(["keep", "drop", "pad"]),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
    stripes=st.integers(1, 3),
    data=st.data(),
)
def test_any_batch_of_any_loader_is_that_of_a_pack(
    sizes: list[int],
    batch: int,
    shuffle: bool,
    last: str,
    seed: int,
    epoch: int,
    stripes: int,
    data: st.DataObject,
) -> None:
    part = in_slices(numbered_part(sum(sizes), partitions=sizes, weight=True))
    world = data.draw(st.integers(1, 3).filter(lambda one: one <= sum(sizes)), "world")
    options: Any = {"seed": seed, "last": last, "block_rows": 5, "window_blocks": 3}
    with tempfile.TemporaryDirectory() as folder:
        kept = Loader(part, batch, shuffle and "stripes", cache=f"{folder}/packs", **options)
        loader = Loader(part, batch, shuffle, cache=f"{folder}/none", pack=False, **options)
        for rank in range(world):
            one, other = loader.shard(rank, world), kept.shard(rank, world)
            assert len(one) == len(other)
            if not len(one):
                continue
            rows_of(one)._stripes = stripes
            begin = data.draw(st.integers(0, len(one) - 1), "step")
            for step in data.draw(st.permutations(range(len(one))), "random access")[:5]:
                equal(one.batch(step, epoch), other.batch(step, epoch), part)
            state = {**one.state_dict(), "epoch": epoch, "step": begin}
            one.load_state_dict(state)
            found = list(one)
            assert len(found) == len(one) - begin
            for step, mine in enumerate(found, begin):
                equal(mine, other.batch(step, epoch), part)
        assert not Path(folder, "none").exists()


def test_no_more_stripes_than_said_are_in_memory(cache: Path) -> None:
    part = sliced(600, 30)
    loader = streamed(part, cache, shuffle=True)
    rows = rows_of(loader)
    assert len(rows.arrangement.stripes) == 15
    most = 0
    for _ in loader:
        most = max(most, len(rows.held))
        assert len(rows._held) + len(rows._free) <= 2
    assert most == 2
    assert rows.held == ()
    assert not rows._free
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: row_numbers(loader.batch(one, 2)), range(len(loader))))
    assert len(rows.held) == 2
    assert sorted(flat(found)) == list(range(600))


def test_an_epoch_reads_each_partition_once(cache: Path) -> None:
    part = sliced(600, 30)
    loader = streamed(part, cache, shuffle=True)
    for _ in range(2):
        list(loader)
        assert sorted(part.reads) == list(range(30))
        part.reads.clear()


def test_resuming_reads_only_what_is_left(cache: Path) -> None:
    part = sliced(600, 30)
    loader = streamed(part, cache, shuffle=True)
    whole = [row_numbers(one) for one in loader]
    part.reads.clear()
    resumed = streamed(part, cache, shuffle=True)
    resumed.load_state_dict({**resumed.state_dict(), "step": 60})
    assert [row_numbers(one) for one in resumed] == whole[60:]
    order = resumed.steps.order_of(0)
    left = order.stripes_from(60 * 7)  # type: ignore[union-attr]
    stripes = rows_of(resumed).arrangement.stripes
    assert sorted(part.reads) == sorted(
        one for number in left for one in stripes[number].partitions
    )
    assert len(part.reads) <= 12


def test_one_batch_reads_its_stripe_and_keeps_it(cache: Path) -> None:
    part = sliced(300, 10)
    loader = streamed(part, cache)
    assert row_numbers(loader[20]) == list(range(140, 147))
    assert part.reads == [4]
    assert row_numbers(loader[19]) == list(range(133, 140))
    assert part.reads == [4]
    assert row_numbers(loader[-1]) == list(range(294, 300))
    assert part.reads == [4, 9]


@pytest.mark.parametrize("stripes", [1, 2])
def test_the_next_stripe_is_read_while_one_is_visited(stripes: int, cache: Path) -> None:
    part = sliced(300, 10)
    loader = streamed(part, cache)
    rows_of(loader)._stripes = stripes
    batches = iter(loader)
    next(batches)
    for _ in range(500):
        if len(part.reads) == stripes and not any(
            one.name.startswith("pack") and one.is_alive() and rows_of(loader)._being_read(1)
            for one in threading.enumerate()
        ):
            break
        threading.Event().wait(0.01)
    assert sorted(part.reads) == list(range(stripes))
    del batches
    gc.collect()


def test_several_readers_share_the_stripes(cache: Path) -> None:
    part = sliced(600, 20)
    loader = streamed(part, cache, shuffle=True)
    found: dict[int, list[int]] = {}

    def read(number: int) -> None:
        steps = range(len(loader)) if number else reversed(range(len(loader)))
        found[number] = sorted(flat([row_numbers(loader.batch(one, 0)) for one in steps]))

    threads = [threading.Thread(target=read, args=(one,)) for one in range(3)]
    for one in threads:
        one.start()
    seen = flat([row_numbers(one) for one in loader])
    for one in threads:
        one.join()
    assert sorted(seen) == list(range(600))
    assert found == {one: list(range(600)) for one in range(3)}


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_error_in_the_background_reaches_the_reader(shuffle: Any, cache: Path) -> None:
    part = sliced(300, 10)
    loader = streamed(part, cache, shuffle=shuffle)
    part.fails = 4
    with pytest.raises(CorruptionError, match="a partition is damaged"):
        list(loader)
    with pytest.raises(CorruptionError, match="a partition is damaged"):
        [loader[one] for one in range(len(loader))]
    part.fails = None  # mended
    assert sorted(flat([row_numbers(one) for one in loader])) == list(range(300))


def test_an_epoch_left_early_leaves_nothing(cache: Path) -> None:
    part = sliced(300, 10)
    loader = streamed(part, cache, shuffle=True)
    seen = [row_numbers(one) for one in itertools.islice(loader, 2)]
    gc.collect()
    assert rows_of(loader).held == ()
    abandoned, current = iter(loader), iter(loader)
    next(abandoned)
    assert [row_numbers(one) for one in itertools.islice(current, 2)] == seen
    assert len(list(abandoned)) == len(loader) - 1
    assert loader.state_dict()["step"] == 2
    assert sorted(flat([*seen, *map(row_numbers, current)])) == list(range(300))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": "global"}, "rows of the whole part in every batch"),
        ({"sample": Balanced()}, "rows of the whole part in every batch"),
        ({"window": 3}, "sequences need rows that are kept"),
    ],
)
def test_what_needs_rows_that_are_kept_is_refused(
    options: dict[str, Any], message: str, cache: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        streamed(sliced(30, 3), cache, **options)
    assert "pack=True" in caught.value.remedy


def test_there_is_no_pack_and_nothing_to_share(cache: Path) -> None:
    loader = streamed(sliced(30, 3), cache)
    with pytest.raises(InvalidInputError, match="this loader has no pack"):
        loader.pack  # noqa: B018
    with pytest.raises(UnsupportedError, match="this process's own"):
        pickle.dumps(loader.samples)
    with pytest.raises(InvalidInputError, match=r"pack='no'"):
        Loader(sliced(30, 3), 7, pack="no", cache=cache)  # type: ignore[arg-type]


def test_a_stripe_that_does_not_fit_is_refused_before_anything_is_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrangement_module, "_CHUNK_ROWS", 1 << 20)
    part = numbered_part(
        20_000, numeric=2, cardinalities=(), tensor=(512,), partitions=(5000, 5000, 5000, 5000)
    )
    part.workers = 1
    options: Any = {"shuffle": True, "pack": False, "cache": cache, "window_blocks": 2}
    two = Loader(part, 16, **options, memory_limit="8GiB")
    assert rows_of(two)._stripes == 2
    (plan,) = two.memory().activities
    assert plan.terms[2].what == "2 stripes of 10000 rows"
    stripe = plan.terms[2].bytes // 2
    less = resident_bytes() + plan.added - stripe // 2
    one = Loader(part, 16, **options, memory_limit=less)
    assert rows_of(one)._stripes == 1
    assert sorted(flat([row_numbers(batch) for batch in one])) == list(range(20_000))
    part.reads.clear()
    with pytest.raises(MemoryLimitError, match="an epoch without a pack") as caught:
        Loader(part, 16, **options, memory_limit=resident_bytes() + stripe)
    assert "leave pack=False out" in caught.value.remedy
    assert part.reads == []
    enough = parse_bytes(caught.value.remedy.split("at least ")[1].split(",")[0])
    assert rows_of(Loader(part, 16, **options, memory_limit=enough + (4 << 20)))._stripes == 1


def test_xgboost_is_refused(cache: Path) -> None:
    pytest.importorskip("xgboost")
    with pytest.raises(InvalidInputError, match="XGBoost passes over the rows several times"):
        streamed(sliced(30, 3), cache).xgboost()


def test_workers_are_refused(cache: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="processes of their own"):
        streamed(sliced(30, 3), cache).torch().loader(2)


@pytest.mark.parametrize("hook", ["keras", "tf_data", "torch", "torch_map", "jax"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_hooks_give_the_batches_of_a_pack(
    hook: str, shuffle: bool, cache: Path, tmp_path: Path
) -> None:
    needed = {"tf_data": "tensorflow", "torch_map": "torch"}.get(hook, hook)
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    part = sliced(100, 7)
    loader = streamed(part, cache, shuffle=shuffle, seed=4)
    kept = packed(part, tmp_path / "kept", shuffle=shuffle and "stripes", seed=4)
    for epoch in range(2):
        found = list(elements(loader, hook, epoch))
        expected = list(elements(kept, hook, epoch))
        assert len(found) == len(expected) == 15
        for (inputs, label), (theirs, their_label) in zip(found, expected, strict=True):
            for name, values in theirs.items():
                np.testing.assert_array_equal(np.asarray(inputs[name]), np.asarray(values))
            np.testing.assert_array_equal(np.asarray(label), np.asarray(their_label))


def elements(loader: Loader, hook: str, epoch: int) -> Any:
    made = getattr(loader, hook)()
    if hook == "torch_map":
        made.set_epoch(epoch)
        return [made[one] for one in range(len(made))]
    return made.get_numpy_iterator() if hook == "keras" else made
