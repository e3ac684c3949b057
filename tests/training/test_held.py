"""Loaders that hold their rows in memory: the batches of one with a pack, and no disk."""

from __future__ import annotations

import gc
import itertools
import pickle
import tempfile
from collections.abc import Iterator
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
from training import Balanced, Loader, Mixture, Stratified, Weighted, Window
from training.loading import arrangement as arrangement_module
from training.loading.held import HeldRows
from training.loading.layout import arrays_of

pytestmark = pytest.mark.usefixtures("small_stripes", "no_thread_is_left")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """Where packs would lie; nothing does at the end."""
    path = tmp_path / "packs"
    yield path
    assert not path.exists()


def held(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, hold="memory", **options)


def packed(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, **options)


def equal(one: Batch, other: Batch, part: ArrayPart) -> None:
    ours, theirs = arrays_of(one, part.schema), arrays_of(other, part.schema)
    assert set(ours) == set(theirs)
    for key, values in ours.items():
        assert values.dtype == theirs[key].dtype
        np.testing.assert_array_equal(values, theirs[key])


class TestHeldLoader(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return held(part, cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[list[list[int]]]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]

    def part(self, rows: int) -> ArrayPart:
        return sliced(rows, min(rows, 9))


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    batch=st.integers(1, 60),
    shuffle=st.sampled_from([True, False, "global", "stripes"]),
    last=st.sampled_from(["keep", "drop", "pad"]),
    seed=st.integers(0, 2**64 - 1),
    window=st.sampled_from([None, 3, Window(2, short="drop", mask=True, by="c0")]),
)
def test_batches_are_those_of_a_pack(
    sizes: list[int], batch: int, shuffle: Any, last: str, seed: int, window: Any
) -> None:
    part = in_slices(numbered_part(sum(sizes), partitions=sizes, weight=True))
    options: Any = {"seed": seed, "last": last, "block_rows": 5, "window_blocks": 3}
    with tempfile.TemporaryDirectory() as folder:
        kept = Loader(part, batch, shuffle, cache=f"{folder}/packs", window=window, **options)
        loader = Loader(
            part, batch, shuffle, cache=f"{folder}/none", hold="memory", window=window, **options
        )
        for _ in range(3):
            for one, other in itertools.zip_longest(loader, kept):
                equal(one, other, part)
        assert loader.state_dict() == kept.state_dict()
        assert not any(Path(folder).glob("none/[!.]*"))


@pytest.mark.parametrize(
    "sample", [Balanced(), Weighted("importance"), Stratified()], ids=lambda one: type(one).__name__
)
def test_samples_are_those_of_a_pack(sample: Any, tmp_path: Path) -> None:
    part = numbered_part(200, partitions=(90, 110))
    options: Any = {"cache": tmp_path, "seed": 5, "sample": sample}
    plain = Loader(part, 7, **options)
    for other in (
        Loader(part, 7, hold="memory", **options),
        Loader(part, 7, **options).shard(0, 1),
    ):
        for _ in range(2):
            for one, expected in itertools.zip_longest(other, plain):
                equal(one, expected, part)
        plain.set_epoch(0)
    rounded = Loader(part, 7, dtype="float16", **options)
    for one, expected in itertools.zip_longest(rounded, plain):
        assert row_numbers(one) == row_numbers(expected)


def test_rows_are_read_once_for_all_epochs_and_hooks(cache: Path) -> None:
    part = sliced(300, 9)
    loader = held(part, cache, shuffle=True)
    for _ in range(3):
        list(loader)
    shard = loader.shard(1, 2)
    list(shard)
    assert sorted(part.reads) == list(range(9))
    assert shard.samples is loader.samples


def test_the_first_batches_do_not_wait_for_the_last_partitions(cache: Path) -> None:
    part = sliced(300, 10)
    loader = held(part, cache)
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    rows = loader.begin()
    assert isinstance(rows, HeldRows)
    assert sorted(flat(map(row_numbers, batches))) == list(range(28, 300))
    assert row_numbers(loader[0]) == list(range(7))


def test_an_epoch_left_early_goes_on_later(cache: Path) -> None:
    part = sliced(300, 10)
    loader = held(part, cache, shuffle=True)
    seen = [row_numbers(one) for one in itertools.islice(loader, 2)]
    gc.collect()
    whole = [row_numbers(one) for one in loader]
    assert whole[:2] == seen
    assert set(part.reads) == set(range(10))
    assert sorted(flat(whole)) == list(range(300))


def test_an_error_in_the_background_reaches_the_reader(cache: Path) -> None:
    part = sliced(300, 10)
    part.fails = 4
    loader = held(part, cache, shuffle=True)
    with pytest.raises(CorruptionError, match="a partition is damaged"):
        list(loader)
    part.fails = None  # mended
    assert sorted(flat([row_numbers(one) for one in loader])) == list(range(300))


def test_what_does_not_fit_is_refused_before_anything_is_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrangement_module, "_CHUNK_ROWS", 1 << 20)
    part = numbered_part(20_000, numeric=2, tensor=(512,), partitions=(5000,) * 4)
    part.workers = 1
    options: Any = {"hold": "memory", "cache": cache, "window_blocks": 2}
    loader = Loader(part, 16, True, **options)
    reading, epoch = loader.memory().activities
    assert reading.activity == "a first epoch, while rows are read into memory"
    assert epoch.terms[0].what == "all 20000 rows, held in memory"
    with pytest.raises(MemoryLimitError, match="all 20000 rows, held in memory") as caught:
        Loader(part, 16, True, **options, memory_limit=resident_bytes() + (20 << 20))
    assert "a pack lies on a disk" in caught.value.remedy
    # What does not fit while rows are read is refused when they are asked for.
    between = (reading.added + epoch.added) // 2
    tight = Loader(part, 16, True, **options, memory_limit=resident_bytes() + between)
    assert not tight.memory().fits
    with pytest.raises(MemoryLimitError, match="while rows are read into memory"):
        tight[0]
    assert part.reads == []


def test_what_is_held_counts_once_for_a_loader_and_its_shards(cache: Path) -> None:
    part = sliced(300, 9)
    loader = held(part, cache, shuffle=True)
    before = loader.epoch_memory()
    list(loader)
    assert loader.epoch_memory() == loader.shard(0, 2).epoch_memory() == before
    assert loader.memory().activities == (before,)


def test_views_cannot_be_written(cache: Path) -> None:
    rows = held(sliced(300, 9), cache).samples
    assert isinstance(rows, HeldRows)
    view = rows.view(10, 20)
    assert row_numbers(view) == list(range(10, 20))
    assert not view.inputs["numeric"].flags.writeable
    for bad in ((-1, 3), (4, 301), (5, 4)):
        with pytest.raises(InvalidInputError, match="lie outside"):
            rows.view(*bad)
    with pytest.raises(InvalidInputError, match="rows 0 to 300 lie outside"):
        rows.gather(np.array([0, 300]))


def test_there_is_no_pack_and_nothing_to_share(cache: Path) -> None:
    loader = held(sliced(30, 3), cache)
    with pytest.raises(InvalidInputError, match="this loader has no pack"):
        loader.pack  # noqa: B018
    with pytest.raises(UnsupportedError, match="this process's own"):
        pickle.dumps(loader.samples)
    with pytest.raises(InvalidInputError, match="no place to hold rows in"):
        Loader(sliced(30, 3), 7, hold="disk", cache=cache)
    if find_spec("torch") is not None:
        with pytest.raises(UnsupportedError, match="processes of their own"):
            loader.torch().loader(2)


@pytest.mark.parametrize("options", [{"pack": False}, {"hold": "memory"}])
def test_a_mixture_wants_packs(options: dict[str, Any], tmp_path: Path) -> None:
    kept = packed(sliced(30, 3), tmp_path)
    other = Loader(sliced(30, 3, name="other"), 7, cache=tmp_path, **options)
    with pytest.raises(InvalidInputError, match="loader 1 has no pack"):
        Mixture([kept, other])


def test_xgboost_gets_the_pages_of_a_pack(tmp_path: Path) -> None:
    pytest.importorskip("xgboost")
    part = sliced(300, 9)
    found: list[list[Any]] = []
    for loader in (held(part, tmp_path, shuffle=True), packed(part, tmp_path, shuffle=True)):
        pages, kept = loader.xgboost("1kB"), []
        while pages.next(lambda kept=kept, **given: kept.append((given["data"], given["label"]))):
            pass
        found.append(kept)
    assert len(found[0]) == len(found[1]) > 3
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("hook", ["keras", "tf_data", "torch", "jax"])
def test_hooks_give_the_batches_of_a_pack(hook: str, cache: Path, tmp_path: Path) -> None:
    needed = {"tf_data": "tensorflow"}.get(hook, hook)
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    part = sliced(100, 7)
    loader = held(part, cache, shuffle=True, seed=4)
    kept = packed(part, tmp_path / "kept", shuffle=True, seed=4)
    for _ in range(2):
        both = [getattr(one, hook)() for one in (loader, kept)]
        ours, theirs = (list(one.get_numpy_iterator() if hook == "keras" else one) for one in both)
        assert len(ours) == len(theirs) == 15
        for (inputs, label), (expected, their_label) in zip(ours, theirs, strict=True):
            for name, values in expected.items():
                np.testing.assert_array_equal(np.asarray(inputs[name]), np.asarray(values))
            np.testing.assert_array_equal(np.asarray(label), np.asarray(their_label))
