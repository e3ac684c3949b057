"""Mixtures: whose row stands where, held against counting; whose rows they are, against the loaders' own."""

from __future__ import annotations

import multiprocessing
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dataset.batch import DatasetSchema
from featurestore.errors import InvalidInputError, MemoryLimitError
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import (
    Batches,
    LoaderContract,
    SampledContract,
    flat,
    row_numbers,
)
from training import Balanced, Loader, Mixture, Stratified, Window
from training.loading.schedule import CYCLE, Schedule

FAR = 10_000
"""Added to row numbers of the second part, and twice to those of the third."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def part(rows: int, number: int = 0, **options: Any) -> ArrayPart:
    made = numbered_part(rows, seed=number, name=f"part {number}", **options)
    made.inputs["numeric"][:, 0] += FAR * number
    return made


def stream(loader: Loader, rows: int) -> list[int]:
    """Return the first rows of a loader, epoch after epoch."""
    found: list[int] = []
    epoch = 0
    while len(found) < rows:
        for step in range(len(loader)):
            found += row_numbers(loader.batch(step, epoch))
        epoch += 1
    return found


def taken(turns: list[int], loaders: list[Loader]) -> list[int]:
    """Return the rows of whoever's turn it is, one after the other."""
    streams = [iter(stream(one, turns.count(number))) for number, one in enumerate(loaders)]
    return [next(streams[one]) for one in turns]


class Mixed(LoaderContract):
    """The part of the contract, and another one half as often."""

    def loaders(self, part_: ArrayPart, cache: Path, seed: int) -> list[Loader]:
        options: dict[str, Any] = {"cache": cache, "block_rows": 16, "window_blocks": 3}
        return [
            Loader(part_, 7, True, seed, **options),
            Loader(part(23, 1), 7, "global", seed + 1, **options),
        ]

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Mixture:
        del options["sample"]
        loaders = self.loaders(part, cache, options.pop("seed", 0))
        return Mixture(loaders, [2, 1], rows=part.rows, **options)

    def epochs(self, loader: Mixture, count: int) -> list[Batches]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]


class TestMixture(SampledContract, Mixed):
    """The contract of loaders."""

    sample = None

    def oracle(self, part: ArrayPart, seed: int, epoch: int) -> list[int]:
        cache = Path(self._cache)
        turns = ([0, 1, 0] * part.rows * (epoch + 1))[: part.rows * (epoch + 1)]
        return taken(turns, self.loaders(part, cache, seed))[epoch * part.rows :]

    @pytest.fixture(autouse=True)
    def known_cache(self, cache: Path) -> None:
        self._cache = cache


# --- schedules ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 500), st.integers(0, 100)
)
def test_each_has_its_share_of_every_beginning(weights: list[int], start: int, more: int) -> None:
    schedule = Schedule.of(weights)
    assert [Fraction(one, schedule.cycle) for one in schedule.turns] == [
        Fraction(one, sum(weights)) for one in weights
    ]
    turns = schedule.at(0, start + more).tolist()
    assert schedule.at(start, start + more).tolist() == turns[start:]
    for position in {start, start + more}:
        had = [turns[:position].count(one) for one in range(len(weights))]
        assert schedule.before(position) == tuple(had)
        for count, weight in zip(had, weights, strict=True):
            share = Fraction(weight, sum(weights))
            assert abs(count - share * position) <= (1 + share * len(weights)) / 2
    for source in set(turns):
        places = [place for place, one in enumerate(turns) if one == source]
        assert [schedule.place(source, turn) for turn in range(len(places))] == places


@pytest.mark.parametrize(
    "weights", [[1e-9, 1.0], [1e300, 1e-300, 1], [3.1415926, 1], [1e-300, 2e-300, 0.1]]
)
def test_shares_that_are_no_small_fractions_are_rounded(weights: list[float]) -> None:
    schedule = Schedule.of(weights)
    assert schedule.cycle <= CYCLE + len(weights)
    for turns, weight in zip(schedule.turns, weights, strict=True):
        assert turns >= 1
        exact = weight / sum(weights)
        assert abs(turns / schedule.cycle - exact) <= 2 / CYCLE


def test_shares_that_floats_only_come_near_are_what_was_meant() -> None:
    assert Schedule.of([0.1, 0.2, 0.7]).turns == (1, 2, 7)
    assert Schedule.of([1 / 3, 2 / 3]).turns == (1, 2)
    assert Schedule.of([2.5, 7.5]).turns == (1, 3)


def test_a_place_far_away_is_computed() -> None:
    schedule = Schedule.of([1, 2])
    assert schedule.before(3 * 2**70 + 1) == (2**70, 2**71 + 1)
    assert schedule.at(3 * 2**70, 3 * 2**70 + 3).tolist() == [1, 0, 1]


# --- rows --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    batch=st.integers(1, 9),
    stop=st.sampled_from(["first", "longest"]),
    seed=st.integers(0, 3),
)
def test_rows_are_those_of_the_loaders_in_turn(
    sizes: list[int],
    weights: list[int],
    batch: int,
    stop: str,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    cache = tmp_path_factory.mktemp("packs")
    samples = [None, Balanced("c0"), Stratified("c0")]
    loaders = [
        Loader(part(rows, number), 5, seed=seed, cache=cache, sample=samples[number])
        for number, rows in enumerate(sizes)
    ]
    shares = weights[: len(sizes)]
    mixture = Mixture(loaders, shares, stop=stop, batch_size=batch)
    turns = Schedule.of(shares).at(0, 3 * mixture.rows).tolist()
    epoch = turns[: mixture.rows]
    counts = [epoch.count(one) for one in range(len(sizes))]
    if stop == "first":  # no more fit without beginning one again
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))
        following = turns[mixture.rows]
        assert counts[following] == sizes[following]
    else:  # no fewer do
        assert all(count >= size for count, size in zip(counts, sizes, strict=True))
        assert counts[epoch[-1]] == sizes[epoch[-1]]
    seen = [row for _ in range(3) for one in mixture for row in row_numbers(one)]
    assert seen == taken(turns, loaders)
    assert [one.epoch for one in loaders] == [0] * len(loaders)
    shard = mixture.shard(0, 1)
    assert [row_numbers(one) for one in shard] != [] or not mixture.rows


def test_batches_have_each_share_to_a_row_or_two(cache: Path) -> None:
    sizes = (500, 300, 200)
    loaders = [Loader(part(rows, n), 64, True, cache=cache) for n, rows in enumerate(sizes)]
    mixture = Mixture(loaders, [0.5, 0.3, 0.2])
    assert mixture.shares == (0.5, 0.3, 0.2)
    assert mixture.rows == 1000
    for batch in list(mixture)[:-1]:
        counts = np.bincount(np.array(row_numbers(batch)) // FAR, minlength=3)
        assert (abs(counts - 64 * np.array(mixture.shares)) < 2).all()


def test_labels_weights_categories_and_tensors_go_with_their_rows(cache: Path) -> None:
    options: Any = {"tensor": (2, 3), "weight": True, "labels": 2, "cardinalities": (3, 4)}
    parts = [part(60, 0, **options), part(40, 1, **options)]
    mixture = Mixture([Loader(one, 16, True, cache=cache) for one in parts], last="pad")
    assert mixture.weighted
    for batch in mixture:
        assert {name: (one.dtype.name, one.shape[1:]) for name, one in batch.inputs.items()} == (
            mixture.array_specs()
        )
        for place, number in enumerate(row_numbers(batch)):
            source, row = parts[number // FAR], number % FAR
            assert source.weight is not None
            assert batch.weight is not None
            for name, values in source.inputs.items():
                np.testing.assert_array_equal(batch.inputs[name][place], values[row])
                assert batch.inputs[name].ctypes.data % 64 == 0
            for name, values in source.labels.items():
                assert batch.labels[name][place] == values[row]
            assert batch.weight[place] in (source.weight[row], 0)


def test_sequences_are_mixed_with_their_masks(cache: Path) -> None:
    window = Window(4, by="c0", mask=True)
    loaders = [Loader(part(50, n), 8, True, cache=cache, window=window) for n in range(2)]
    mixture = Mixture(loaders)
    assert mixture.array_specs() == loaders[0].array_specs()
    plain = {}
    for one in loaders:
        for batch in one:
            for place, row in enumerate(batch.inputs["numeric"][:, -1, 0].astype(int).tolist()):
                plain[row] = {name: values[place] for name, values in batch.inputs.items()}
    for batch in mixture:
        assert set(batch.inputs) == {"numeric", "c0", "mask"}
        for place, row in enumerate(batch.inputs["numeric"][:, -1, 0].astype(int).tolist()):
            for name, values in plain[row].items():
                np.testing.assert_array_equal(batch.inputs[name][place], values)


def test_a_run_resumes_on_another_number_of_ranks(cache: Path) -> None:
    def mixture(batch: int) -> Mixture:
        loaders = [Loader(part(80, n), 7, True, cache=cache) for n in range(2)]
        return Mixture(loaders, [3, 1], batch_size=batch)

    alone = mixture(12)
    iterator = iter(alone)
    for _ in range(3):
        next(iterator)
    state = alone.state_dict()
    rest = flat([row_numbers(batch) for batch in iterator])
    seen = []
    for rank in range(3):
        shard = mixture(4).shard(rank, 3)
        shard.load_state_dict(state)
        seen += flat([row_numbers(batch) for batch in shard])
    assert sorted(seen) == sorted(rest)


def test_a_state_is_of_its_loaders_and_shares(cache: Path) -> None:
    def mixture(weights: Any = (2, 1), seed: int = 0, rows: int = 50, **options: Any) -> Mixture:
        loaders = [Loader(part(rows, 0), 7, True, seed, cache=cache)]
        return Mixture([*loaders, Loader(part(40, 1), 7, cache=cache)], weights, **options)

    state = mixture().state_dict()
    for other, match in (
        (mixture((1, 1)), "another shuffle or mixture"),
        (mixture(stop="longest"), "another shuffle or mixture"),
        (mixture(seed=1), "another seed"),
        (mixture(rows=51), "other data"),
        (mixture(batch_size=8), "another global batch size"),
        (mixture(last="drop"), "another treatment"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            other.load_state_dict(state)
    mixture().load_state_dict(state)
    with pytest.raises(InvalidInputError):
        Loader(part(50, 0), 7, True, cache=cache).load_state_dict(state)


def test_steps_and_packs_can_be_handed_to_a_process(cache: Path) -> None:
    mixture = Mixture([Loader(part(50, n), 7, True, cache=cache) for n in range(2)])
    held = pickle.dumps((mixture.steps, mixture.pack))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_second_batch, (held,)) == row_numbers(mixture[2])


def _second_batch(held: bytes) -> list[int]:
    steps, pack = pickle.loads(held)
    return row_numbers(steps.read(pack, 2, 0))


# --- memory and refusals -----------------------------------------------------------------------------


def test_memory_is_that_of_all_loaders(cache: Path) -> None:
    loaders = [
        Loader(part(30_000, n), 1000, True, cache=cache, block_rows=100 * (n + 1)) for n in range(2)
    ]
    mixture = Mixture(loaders)
    terms = {one.what: one.bytes for one in mixture.epoch_memory().terms}
    orders = [one.steps.memory(1000) for one in loaders]
    assert terms["order"] >= sum(orders) + 1000 * mixture.sample_bytes
    assert terms["2 batches of 1000 rows"] == 2000 * mixture.sample_bytes
    assert len(mixture.memory().activities) == 3
    list(mixture)
    assert [one.activity for one in mixture.memory().activities] == ["an epoch"]


def test_an_epoch_that_does_not_fit_is_refused(cache: Path) -> None:
    wide = part(10, 2, tensor=(1 << 20,))
    # Far from both: a batch of one row takes 17 MiB, one of ten 124 MiB.
    wide.memory_limit = Loader(wide, 1, cache=cache).reserved_bytes + (70 << 20)
    loader = Loader(wide, 1, cache=cache)
    with pytest.raises(MemoryLimitError, match=r"(?s)an epoch is projected.*use batch_size="):
        Mixture([loader, loader], batch_size=10)


def test_arrays_that_differ_are_named(cache: Path) -> None:
    first = Loader(part(20), 7, cache=cache)
    renamed = part(20, 1)
    columns: Any = renamed.schema.to_json()
    columns[1]["name"] = "other"
    renamed.schema = DatasetSchema.from_json(columns)
    whole = part(20, 1)
    columns = whole.schema.to_json()
    columns[-1]["dtype"] = "int64"
    whole.schema = DatasetSchema.from_json(columns)
    assert whole.label is not None
    whole.label = whole.label.astype(np.int64)
    bare = ArrayPart(DatasetSchema(whole.schema.columns[:-1]), whole.inputs, None, (20,), "bare")
    for other, match in (
        (
            part(20, 1, numeric=4),
            r"array 'numeric' is float32 \[3\] in loader 0 and float32 \[4\] in loader 1",
        ),
        (part(20, 1, tensor=(2,)), r"array 'vector' is not there in loader 0"),
        (part(20, 1, cardinalities=(6,)), "number of codes of 'c0' is 5 .* 6 in loader 1"),
        (part(20, 1, weight=True), "weight of rows is not there"),
        (part(20, 1, labels=2), "the label is float32"),
        (renamed, "order of columns of 'numeric'"),
        (whole, r"the label is float32 \[\] in loader 0 and int64"),
        (bare, "the label is float32 .* not there in loader 1"),
    ):
        with pytest.raises(InvalidInputError, match=match) as caught:
            Mixture([first, Loader(other, 7, cache=cache)])
        assert caught.value.remedy
    with pytest.raises(InvalidInputError, match=r"array 'numeric' .*\[2, 3\] in loader 1"):
        Mixture([first, Loader(part(20, 1), 7, cache=cache, window=2)])


def test_what_is_no_mixture_is_refused(cache: Path) -> None:
    one, other = (Loader(part(20, n), 7, cache=cache) for n in range(2))
    eight = Loader(part(20, 1), 8, cache=cache)
    wrong: list[tuple[Any, str]] = [
        (lambda: Mixture([]), "no loaders"),
        (lambda: Mixture([one, "other"]), "'other' is no loader"),  # type: ignore[list-item]
        (lambda: Mixture([one, Mixture([other])]), "is no loader"),  # type: ignore[list-item]
        (lambda: Mixture([one, other], [1]), "1 weights for 2 loaders"),
        (lambda: Mixture([one, other], [1, 0]), r"weights=\[1, 0\] are no shares"),
        (lambda: Mixture([one, other], [1, float("nan")]), "are no shares"),
        (lambda: Mixture([one, other], [1, -1]), "are no shares"),
        (lambda: Mixture([one, other], stop="last"), "stop='last'"),
        (lambda: Mixture([one, other], rows=0), "rows is 0"),
        (lambda: Mixture([one, eight]), r"batches of \[7, 8\] rows"),
        (lambda: Mixture([one, other], batch_size=0), "batch_size is 0"),
        (lambda: Mixture([one, other.shard(0, 2)]), "loader 1 is one rank's share"),
        (lambda: Mixture([one, Loader(part(0, 1), 7, cache=cache)]), "loader 1 has no rows"),
        (lambda: Mixture([one, other]).shard(0, 50), "40 rows cannot feed 50 ranks"),
    ]
    for call, match in wrong:
        with pytest.raises(InvalidInputError, match=match) as caught:
            call()
        assert caught.value.remedy
    pytest.importorskip("xgboost")
    with pytest.raises(InvalidInputError, match=r"(?s)XGBoost.*one table"):
        Mixture([one, other]).xgboost()
