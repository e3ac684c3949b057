"""Sampling: what is drawn and dealt, held against loops over Python's own integers and lists."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import (
    DefinitionError,
    InvalidInputError,
    MemoryLimitError,
    NotFoundError,
)
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import (
    Batches,
    LoaderContract,
    SampledContract,
    row_numbers,
)
from training import Balanced, Loader, Stratified, Weighted, Window
from training.loading import class_index
from training.loading.class_index import ClassIndex
from training.loading.mixing import MASK, below, bijections, key_of, permutation, words
from training.loading.order import EpochOrder
from training.loading.pack import mapped_bytes
from training.loading.padding import Last
from training.loading.samplers import StratifiedSampler
from training.loading.steps import Steps
from training.loading.weight_index import WeightIndex

# --- the slow way ------------------------------------------------------------------------------------


def word(number: int, key: int) -> int:
    """Return one word of a stream: SplitMix64 as published."""
    value = (key + (number + 1) * 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def drawn(number: int, limit: int, seed: int, epoch: int, purpose: int) -> int:
    return word(number, key_of(seed, epoch, purpose)) * limit >> 64


def by_class(values: Sequence[Any]) -> list[list[int]]:
    """Return the rows of each class, in the order of their first rows."""
    found: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        found.setdefault(value, []).append(row)
    return list(found.values())


def balanced(values: Sequence[Any], rows: int, seed: int, epoch: int) -> list[int]:
    classes = by_class(values)
    found = []
    for number in range(rows):
        members = classes[drawn(number, len(classes), seed, epoch, 16)]
        found.append(members[drawn(number, len(members), seed, epoch, 17)])
    return found


def weighted(values: Sequence[float], rows: int, seed: int, epoch: int) -> list[int]:
    """Of weights that are whole numbers or halves."""
    halves = [int(2 * one) for one in values]
    scale = 1
    while 2 * scale * sum(halves) < 2**61:  # as large as the index makes them
        scale *= 2
    found = []
    for number in range(rows):
        at = drawn(number, scale * sum(halves), seed, epoch, 18)
        row = 0
        while at >= scale * halves[row]:
            at -= scale * halves[row]
            row += 1
        found.append(row)
    return found


def stratified(values: Sequence[Any], batch: int, seed: int, epoch: int) -> list[int]:
    """Deal the rows, class after class, over the batches of one rank that keeps the last."""
    line: list[int] = []
    for number, members in enumerate(by_class(values)):
        count = len(members)
        places = bijections(
            np.arange(count, dtype=np.uint64),
            np.full(count, count, np.uint64),
            np.full(count, number, np.uint64),
            key_of(seed, epoch, 21),
        )
        line += [members[one] for one in places.tolist()]
    rows, (full, rest) = len(line), divmod(len(line), batch)
    offset = drawn(0, rows, seed, epoch, 19)
    aside = [
        ((place + 1) * rest + offset) // rows > (place * rest + offset) // rows
        for place in range(rows)
    ]
    dealt = [row for row, last in zip(line, aside, strict=True) if not last]
    hands = [dealt[number::full] for number in range(full)]
    numbers = bijections(
        np.arange(full, dtype=np.uint64),
        np.full(full, full, np.uint64),
        np.zeros(full, np.uint64),
        key_of(seed, epoch, 20),
    )
    steps = [hands[one] for one in numbers.tolist()]
    if rest:
        steps.append([row for row, last in zip(line, aside, strict=True) if last])
    return [
        one[place]
        for step, one in enumerate(steps)
        for place in permutation(len(one), key_of(seed, epoch, 22, step, 0)).tolist()
    ]


# --- the contract ------------------------------------------------------------------------------------


class Plain(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return Loader(part, 7, cache=cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]


class TestBalanced(SampledContract, Plain):
    sample = Balanced("c0")

    def oracle(self, part: ArrayPart, seed: int, epoch: int) -> list[int]:
        return balanced(part.inputs["c0"].tolist(), part.rows, seed, epoch)


class TestWeighted(SampledContract, Plain):
    sample = Weighted("importance")

    def oracle(self, part: ArrayPart, seed: int, epoch: int) -> list[int]:
        return weighted(part.others["importance"].tolist(), part.rows, seed, epoch)


class TestStratified(SampledContract, Plain):
    sample = Stratified("c0")
    repeats = False

    def oracle(self, part: ArrayPart, seed: int, epoch: int) -> list[int]:
        return stratified(part.inputs["c0"].tolist(), self.batch_size, seed, epoch)


class TestBalancedSequences(TestBalanced):
    """Samples are known by the last rows of their sequences."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return super().loader(part, cache, window=Window(3, by="c0"), **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        return [[_last_rows(batch) for batch in loader] for _ in range(count)]

    def _take(self, loader: Any, count: int) -> Batches:
        found: Batches = []
        while len(found) < count:
            for batch in loader:
                found.append(_last_rows(batch))
                if len(found) == count:
                    break
        return found


def _last_rows(batch: Any) -> list[int]:
    return [int(one) for one in batch.inputs["numeric"][:, -1, 0]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


# --- words and permutations --------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, MASK), st.integers(1, 2**62)), min_size=1, max_size=20))
def test_a_word_below_a_limit_is_the_product_over_two_to_the_64(
    pairs: list[tuple[int, int]],
) -> None:
    found = below(
        np.array([one for one, _ in pairs], np.uint64),
        np.array([one for _, one in pairs], np.uint64),
    )
    assert found.tolist() == [value * limit >> 64 for value, limit in pairs]


def test_words_are_those_of_splitmix() -> None:
    assert words(3, 6, 11).tolist() == [word(number, 11) for number in (3, 4, 5)]
    # S. Vigna's splitmix64.c with state 1234567, as published beside it.
    assert words(0, 2, 1234567).tolist() == [6457827717110365317, 3203168211198807973]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=12), st.integers(0, MASK))
def test_bijections_permute_each_range(counts: list[int], key: int) -> None:
    positions = np.concatenate([np.arange(one, dtype=np.uint64) for one in counts])
    sizes = np.repeat(np.array(counts, np.uint64), counts)
    tweaks = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    found = bijections(positions, sizes, tweaks, key)
    bounds = np.cumsum([0, *counts])
    for first, last in pairwise(bounds.tolist()):
        assert sorted(found[first:last].tolist()) == list(range(last - first))


def test_permutations_of_a_few_are_about_equally_frequent() -> None:
    """Of three values in 6,000 classes: each of six orders a thousand times, within five deviations."""
    classes = np.repeat(np.arange(6000, dtype=np.uint64), 3)
    found = bijections(
        np.tile(np.arange(3, dtype=np.uint64), 6000), np.full(18000, 3, np.uint64), classes, 5
    ).reshape(-1, 3)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 5 * (6000 * 5 / 36) ** 0.5


# --- indices -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    classes=st.lists(st.integers(0, 9), max_size=80),
    cuts=st.lists(st.integers(0, 80), max_size=4),
    piece=st.integers(1, 30),
)
def test_samples_come_class_after_class_however_they_are_cut(
    classes: list[int], cuts: list[int], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hashes = np.array([word(one, 0) for one in classes], dtype=np.uint64)
    bounds = sorted({0, len(classes), *(min(one, len(classes)) for one in cuts)})
    parts = [hashes[first:last] for first, last in pairwise(bounds)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(class_index, "PIECE_ROWS", piece)
        index = ClassIndex(parts, tmp_path_factory.mktemp("cache"), "c")
    expected = by_class(classes)
    assert index.samples.tolist() == [row for rows in expected for row in rows]
    assert index.counts.tolist() == [len(rows) for rows in expected]
    assert index.digest == ClassIndex([hashes], tmp_path_factory.mktemp("cache"), "c").digest


WEIGHTS = st.one_of(
    st.just(0.0), st.floats(0, 1e300), st.integers(0, 1000).map(float), st.floats(0, 1e-300)
)


@settings(deadline=None, max_examples=100)
@given(
    weights=st.lists(WEIGHTS, min_size=1, max_size=60).filter(lambda found: sum(found) > 0),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    shares=st.lists(st.fractions(0, 1), max_size=20),
)
def test_each_number_falls_on_the_sample_whose_share_it_is_in(
    weights: list[float],
    cuts: list[int],
    shares: list[Fraction],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    values = np.array(weights)
    bounds = sorted({0, len(weights), *(min(one, len(weights)) for one in cuts)})
    parts = [values[first:last] for first, last in pairwise(bounds)]
    index = WeightIndex(parts, tmp_path_factory.mktemp("cache"), "w")
    assert 2**59 < index.total < 2**62
    # The shares as they are stored: within half a unit of what they are.
    exact = [Fraction(one) / sum(map(Fraction, weights)) for one in weights]
    stored = np.diff(index._sums, prepend=0).tolist()
    for share, units in zip(exact, stored, strict=True):
        assert abs(Fraction(units, index.total) - share) < Fraction(len(weights) + 1, index.total)
    numbers = [min(int(one * index.total), index.total - 1) for one in shares]
    edges = np.cumsum(stored).tolist()
    numbers += [max(0, one - 1) for one in edges] + [one for one in edges if one < index.total]
    found = index.find(np.array(numbers, dtype=np.int64)).tolist()
    for number, sample in zip(numbers, found, strict=True):
        before = 0 if sample == 0 else edges[sample - 1]
        assert before <= number < edges[sample]
        assert weights[sample] > 0
    again = WeightIndex([values], tmp_path_factory.mktemp("cache"), "w")
    assert (again.digest, again.total) == (index.digest, index.total)


@pytest.mark.parametrize(
    ("weights", "seen"),
    [
        ([1.0, np.nan], "null or NaN"),
        ([1.0, -0.5], "-0.5"),
        ([np.inf, 1.0], "inf"),
        ([0.0, 0.0], "sum of column 'w' over 2 rows is 0.0"),
        ([1e308, 1e308], "is inf"),
    ],
)
def test_what_is_no_weight_is_refused(weights: list[float], seen: str, cache: Path) -> None:
    part = numbered_part(2)
    part.others = {"w": np.array(weights)}
    with pytest.raises(InvalidInputError, match=seen) as caught:
        Loader(part, 2, cache=cache, sample=Weighted("w"))
    assert caught.value.remedy


def test_too_many_classes_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_index, "CLASS_LIMIT", 50)
    part = numbered_part(51, partitions=[30, 21])
    with pytest.raises(InvalidInputError, match=r"(?s)'x0' has more than 50 .*Bucketize"):
        Loader(part, 7, cache=cache, sample=Balanced("x0"))
    part = numbered_part(50, partitions=[30, 20])
    assert len(list(Loader(part, 7, cache=cache, sample=Stratified("x0")))) == 8


# --- statistics, of seeds that are fixed ---------------------------------------------------------------


def test_balanced_draws_have_equal_classes_and_equal_members(cache: Path) -> None:
    part = numbered_part(2000, cardinalities=(3,))
    part.inputs["c0"][:] = np.where(np.arange(2000) < 1900, 0, np.arange(2000) % 2 + 1)  # type: ignore[index]
    draws = 30_000
    loader = Loader(part, 1000, cache=cache, sample=Balanced("c0", rows=draws), seed=1)
    assert (loader.rows, len(loader)) == (draws, 30)
    rows = np.array([row for batch in loader for row in row_numbers(batch)])
    counts = np.bincount(part.inputs["c0"][rows], minlength=3)
    assert abs(counts - draws / 3).max() < 4 * (draws * 2 / 9) ** 0.5
    members = np.bincount(rows, minlength=2000)
    for one in range(3):
        found = members[part.inputs["c0"] == one]
        expected = draws / 3 / len(found)
        chi = ((found - expected) ** 2 / expected).sum()
        assert abs(chi - len(found)) < 5 * (2 * len(found)) ** 0.5


def test_weighted_draws_have_the_proportions_of_the_weights(cache: Path) -> None:
    part = numbered_part(500)
    weights = np.arange(500) % 7 * 1.5
    part.others = {"w": weights}
    draws = 50_000
    loader = Loader(part, 1000, cache=cache, sample=Weighted("w", rows=draws), seed=1)
    rows = np.array([row for batch in loader for row in row_numbers(batch)])
    counts = np.bincount(rows, minlength=500)
    assert not counts[weights == 0].any()
    expected = (weights / weights.sum() * draws)[weights > 0]
    chi = ((counts[weights > 0] - expected) ** 2 / expected).sum()
    assert abs(chi - len(expected)) < 5 * (2 * len(expected)) ** 0.5


def test_stratified_epochs_mix_rows_of_a_class_anew(cache: Path) -> None:
    """How often two rows of a class meet in a batch is what chance says: epochs are independent."""
    part = numbered_part(400, cardinalities=(2,))
    loader = Loader(part, 40, cache=cache, sample=Stratified("c0"))
    first, other = np.flatnonzero(part.inputs["c0"] == part.inputs["c0"][0])[:2].tolist()
    met = 0
    for _ in range(300):
        for batch in loader:
            rows = row_numbers(batch)
            met += first in rows and other in rows
    assert abs(met - 30) < 5 * 27**0.5


# --- batches -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    classes=st.lists(st.integers(0, 5), min_size=1, max_size=90),
    batch=st.integers(1, 12),
    last=st.sampled_from(list(Last)),
    world=st.sampled_from([1, 2, 3, 7]),
    seed=st.integers(0, 3),
)
def test_every_batch_has_its_share_of_every_class(
    classes: list[int],
    batch: int,
    last: Last,
    world: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = len(classes)
    if last is Last.KEEP and rows < world:
        return
    part = numbered_part(rows)
    part.inputs["c0"][:] = classes  # type: ignore[index]
    loader = Loader(
        part,
        batch,
        seed=seed,
        last=str(last),
        cache=tmp_path_factory.mktemp("p"),
        sample=Stratified("c0"),
    )
    seen: list[int] = []
    shards = [loader.shard(rank, world) for rank in range(world)]
    for batches in zip(*shards, strict=True):
        of_step = []
        for one in batches:
            real = one.rows if one.weight is None else int(one.weight.sum())
            of_rank = row_numbers(one)[:real]
            if real == batch:
                _require_shares(classes, of_rank)
            of_step += of_rank
        _require_shares(classes, of_step)
        seen += of_step
    assert len(set(seen)) == len(seen)
    assert len(seen) == (rows // (batch * world) * batch * world if last is Last.DROP else rows)


def _require_shares(classes: list[int], rows: list[int]) -> None:
    for one in set(classes):
        exact = Fraction(len(rows) * classes.count(one), len(classes))
        assert abs(sum(classes[row] == one for row in rows) - exact) < 1


def test_steps_of_ranks_have_the_rows_of_one_rank(cache: Path) -> None:
    part = numbered_part(100)
    for sample in (Balanced("c0"), Weighted("importance"), Stratified("c0")):
        whole = [row_numbers(one) for one in Loader(part, 12, cache=cache, sample=sample)]
        shards = [Loader(part, 4, cache=cache, sample=sample).shard(rank, 3) for rank in range(3)]
        for step, rows in enumerate(whole):
            found = [row for shard in shards for row in row_numbers(shard[step])]
            assert sorted(found) == sorted(rows)


def test_a_run_resumes_on_another_number_of_ranks(cache: Path) -> None:
    part = numbered_part(200)
    for sample in (Balanced("c0"), Stratified("c0")):
        alone = Loader(part, 12, cache=cache, sample=sample)
        iterator = iter(alone)
        for _ in range(5):
            next(iterator)
        state = alone.state_dict()
        rest = [row for batch in iterator for row in row_numbers(batch)]
        seen = []
        for rank in range(3):
            shard = Loader(part, 4, cache=cache, sample=sample).shard(rank, 3)
            shard.load_state_dict(state)
            seen += [row for batch in shard for row in row_numbers(batch)]
        assert sorted(seen) == sorted(rest)


def test_labels_weights_and_several_columns_of_classes(cache: Path) -> None:
    part = numbered_part(300, partitions=(100, 200), labels=2, weight=True, cardinalities=(2, 3))
    loader = Loader(part, 50, cache=cache, sample=Balanced(["c0", "c1"]), last="pad")
    assert part.weight is not None
    for batch in loader:
        rows = row_numbers(batch)
        np.testing.assert_array_equal(batch.weight, part.weight[rows])
        np.testing.assert_array_equal(batch.labels["late"], part.labels["late"][rows])
    with pytest.raises(InvalidInputError, match=r"(?s)2 labels \['late', 'odd'\].*by="):
        Loader(part, 50, cache=cache, sample=Balanced())


def test_sequences_that_are_too_short_are_never_drawn(cache: Path) -> None:
    part = numbered_part(120, partitions=(50, 70), cardinalities=(6,))
    names = part.inputs["c0"]
    window = Window(5, short="drop", by="c0")
    whole = [row for row in range(120) if (names[: row + 1] == names[row]).sum() >= 5]
    for sample in (Balanced("c0"), Weighted("importance"), Stratified("c0")):
        loader = Loader(part, 10, cache=cache, window=window, sample=sample)
        assert loader.rows == len(whole)
        seen = [row for batch in loader for row in _last_rows(batch)]
        assert set(seen) <= set(whole)
        if isinstance(sample, Stratified):
            assert sorted(seen) == whole


def test_an_empty_part_has_no_draws(cache: Path) -> None:
    for sample in (Balanced("c0", 10), Weighted("importance", 10), Stratified("c0")):
        loader = Loader(numbered_part(0), 7, cache=cache, sample=sample)
        assert (len(loader), list(loader)) == (0, [])


# --- of a stored table -----------------------------------------------------------------------------


def stored(tmp_path: Path) -> tuple[Any, pl.DataFrame]:
    number = np.arange(600)
    frame = pl.DataFrame(
        {
            "id": number % 7,
            "t": number,
            "x": number.astype(float),
            "sector": pl.Series(np.where(number % 20 == 0, "rare", "common")).set(
                pl.Series(number % 50 == 0), None
            ),
            "often": pl.Series(number % 3, dtype=pl.UInt8),
            "hole": pl.Series([None if one == 5 else 1.0 for one in number]),
            "y": number % 10 == 0,
            "v": pl.Series(np.zeros((600, 2)), dtype=pl.Array(pl.Float32, 2)),
        }
    )
    store = fs.FeatureStore.create(tmp_path / "store")
    table = store.ingest("rows", frame, key="id", time="t", partition_bytes="2KiB")
    return table.dataset(["x"], label="y", split=fs.TimeSplit(valid=400)), frame


def test_columns_of_the_table_that_are_no_features(tmp_path: Path) -> None:
    data, frame = stored(tmp_path)
    cache = tmp_path / "packs"
    rows = np.concatenate(
        [one.inputs["numeric"][:, 0] for one in Loader(data.train, 64, cache=cache)]
    ).astype(int)
    assert rows.tolist() == list(range(400))
    for sample, column in (
        (Balanced(), "y"),
        (Balanced("sector"), "sector"),
        (Stratified("sector"), "sector"),
        (Stratified(), "y"),
    ):
        made = Loader(data.train, 64, cache=cache, sample=sample, seed=4)
        found = [int(one) for batch in made for one in batch.inputs["numeric"][:, 0]]
        values = frame[column].to_list()[:400]
        way = stratified if isinstance(sample, Stratified) else balanced
        assert found == way(values, 64 if way is stratified else 400, 4, 0)
    made = Loader(data.train, 64, cache=cache, sample=Weighted("often"), seed=4)
    found = [int(one) for batch in made for one in batch.inputs["numeric"][:, 0]]
    assert found == weighted(frame["often"].to_list()[:400], 400, 4, 0)
    made = Loader(data.train, 64, cache=cache, sample=Weighted("y"))
    found = [int(one) for batch in made for one in batch.inputs["numeric"][:, 0]]
    assert len(found) == 400
    assert {one % 10 for one in found} == {0}
    with pytest.raises(InvalidInputError, match="'hole' is null or NaN"):
        Loader(data.train, 64, cache=cache, sample=Weighted("hole"))
    with pytest.raises(DefinitionError, match=r"'sector' is of type .*not a number"):
        Loader(data.train, 64, cache=cache, sample=Weighted("sector"))
    with pytest.raises(DefinitionError, match="'v' holds tensors"):
        Loader(data.train, 64, cache=cache, sample=Stratified("v"))
    for sample in (Balanced("none"), Weighted("none"), Stratified("none")):
        with pytest.raises((NotFoundError, InvalidInputError), match="none"):
            Loader(data.train, 64, cache=cache, sample=sample)


# --- state, processes, refusals ----------------------------------------------------------------------


def test_a_state_is_of_its_sampling_and_its_values(cache: Path) -> None:
    part = numbered_part(60)
    state = Loader(part, 7, cache=cache, sample=Balanced("c0")).state_dict()
    changed = numbered_part(60)
    changed.inputs["c0"][3] += 1  # type: ignore[index]
    others: list[tuple[ArrayPart, Any]] = [
        (part, None),
        (part, Balanced("c0", rows=61)),
        (part, Stratified("c0")),
        (part, Weighted("importance")),
        (changed, Balanced("c0")),
    ]
    for one, sample in others:
        with pytest.raises(InvalidInputError, match="another shuffle"):
            Loader(one, 7, cache=cache, sample=sample).load_state_dict(state)
    Loader(part, 7, cache=cache, sample=Balanced("c0")).load_state_dict(state)


def test_steps_can_be_handed_to_a_process_and_files_go_with_the_loader(cache: Path) -> None:
    part = numbered_part(100)
    for sample in (Balanced("c0"), Weighted("importance"), Stratified("c0")):
        loader = Loader(part, 10, cache=cache, sample=sample)
        expected = row_numbers(loader[2])
        held = pickle.dumps((loader.steps, loader.pack))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(_second_batch, (held,)) == expected
        assert sum(one.name.startswith(".scratch") for one in cache.iterdir()) == 1
        del loader
        gc.collect()
        assert not any(one.name.startswith(".scratch") for one in cache.iterdir())


def _second_batch(held: bytes) -> list[int]:
    steps, pack = pickle.loads(held)
    return row_numbers(steps.read(pack, 2, 0))


def test_mapped_indices_are_not_what_the_process_holds(cache: Path) -> None:
    loader = Loader(numbered_part(300_000, numeric=1), 10, cache=cache, sample=Balanced("c0"))
    before = mapped_bytes()
    sampler: Any = loader.steps.sampler
    sampler.index.samples.sum()
    assert mapped_bytes() - before > 8 * 100_000


def test_shards_share_what_was_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(numbered_part(100), 10, cache=cache, sample=Balanced("c0"))
    monkeypatch.setattr(ArrayPart, "entities", None)
    assert loader.shard(1, 2).steps.sampler is loader.steps.sampler


def test_more_rows_than_whole_numbers_reach_are_refused() -> None:
    index: Any = SimpleNamespace(rows=1 << 40)
    steps = Steps(EpochOrder((1 << 40) - 1), 1 << 23, sampler=StratifiedSampler(index))
    with pytest.raises(InvalidInputError, match=r"(?s)cannot be stratified.*smaller batch_size"):
        steps.indices(0, 0, 1)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: Balanced(rows=0), "rows is 0"),
        (lambda: Balanced(rows=True), "rows is True"),  # type: ignore[arg-type]
        (lambda: Balanced(5), "does not name columns"),  # type: ignore[arg-type]
        (lambda: Stratified(()), "names no column"),
        (lambda: Weighted(None), "no name"),  # type: ignore[arg-type]
        (lambda: Weighted("w", rows=1.5), "rows is 1.5"),  # type: ignore[arg-type]
        (lambda: Loader(numbered_part(5), 2, sample="balanced"), "does not say how"),  # type: ignore[arg-type]
        (lambda: Loader(numbered_part(5), 2, sample=Balanced), "does not say how"),  # type: ignore[arg-type]
        (lambda: Loader(numbered_part(5), 2, True, sample=Balanced()), "two orders"),
        (lambda: Loader(numbered_part(5), 2, "global", sample=Balanced()), "two orders"),
    ],
)
def test_what_is_no_sampling_is_refused(wrong: Any, match: str) -> None:
    with pytest.raises(InvalidInputError, match=match) as caught:
        wrong()
    assert caught.value.remedy


def test_xgboost_wants_each_row_once(cache: Path) -> None:
    pytest.importorskip("xgboost")
    with pytest.raises(InvalidInputError, match=r"(?s)samples rows.*scale_pos_weight"):
        Loader(numbered_part(50), 7, cache=cache, sample=Balanced("c0")).xgboost()


def test_indexing_that_does_not_fit_is_refused(cache: Path) -> None:
    part = numbered_part(2_000_000, numeric=1)
    roomy = Loader(part, 10, cache=cache)
    part.memory_limit = roomy.reserved_bytes + (1 << 20)
    with pytest.raises(MemoryLimitError, match=r"(?s)indexing rows.*partition_bytes"):
        Loader(part, 10, cache=cache, sample=Balanced("c0"))
