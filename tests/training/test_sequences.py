"""Sequences: each row with the rows of its entity before it, whatever the partitions and the order."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.dataset.batch import Batch
from featurestore.errors import DefinitionError, InvalidInputError, MemoryLimitError
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import LoaderContract
from training import Loader, Window


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def last_rows(batch: Batch) -> list[int]:
    return [int(one) for one in batch.inputs["numeric"][:, -1, 0]]


def history(entities: np.ndarray[Any, Any], row: int, rows: int) -> list[int]:
    """Return the rows of one sequence the slow way; -1 before it begins."""
    found = [one for one in range(row + 1) if entities[one] == entities[row]][-rows:]
    return [-1] * (rows - len(found)) + found


class TestSequences(LoaderContract):
    """The contract of loaders; samples are known by the last rows of their sequences."""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        window = Window(4, by="c0")
        return Loader(part, 7, cache=cache, block_rows=8, window_blocks=2, window=window, **options)

    def epochs(self, loader: Loader, count: int) -> list[list[list[int]]]:
        return [[last_rows(batch) for batch in loader] for _ in range(count)]

    def _take(self, loader: Loader, count: int) -> list[list[int]]:
        from featurestore.testing.loader_contract import take

        return [last_rows(batch) for batch in take(loader, count)]


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    entities=st.integers(1, 12),
    rows=st.integers(1, 9),
    short=st.sampled_from(["pad", "drop"]),
    shuffle=st.sampled_from([False, True, "global"]),
    seed=st.integers(0, 5),
)
def test_every_sequence_is_the_entitys_rows_before(
    cuts: list[int],
    entities: int,
    rows: int,
    short: str,
    shuffle: Any,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    part = numbered_part(
        sum(cuts), partitions=cuts, cardinalities=(entities,), tensor=(2,), seed=seed
    )
    window = Window(rows, short=short, mask=True, by=["c0"])
    cache = tmp_path_factory.mktemp("packs")
    loader = Loader(part, 5, shuffle, seed, cache=cache, block_rows=8, window=window)
    names = part.inputs["c0"]
    every = [history(names, row, rows) for row in range(part.rows)]
    expected = {one[-1]: one for one in every if short == "pad" or one[0] >= 0}
    seen: list[int] = []
    for batch in loader:
        for place, row in enumerate(last_rows(batch)):
            whole = np.array(expected[row])
            there = whole >= 0
            np.testing.assert_array_equal(batch.inputs["mask"][place], there)
            for name, values in part.inputs.items():
                wanted = np.where(
                    there.reshape(-1, *[1] * (values.ndim - 1)), values[np.maximum(whole, 0)], 0
                )
                np.testing.assert_array_equal(batch.inputs[name][place], wanted)
            assert batch.label is not None
            assert part.label is not None
            assert batch.label[place] == part.label[row]
        assert {name: (one.dtype.name, one.shape[1:]) for name, one in batch.inputs.items()} == (
            loader.array_specs()
        )
        seen += last_rows(batch)
    assert len(loader) == -(-len(expected) // 5)
    assert loader.rows == len(expected)
    assert sorted(seen) == sorted(expected)
    if shuffle is False:
        assert seen == sorted(expected)


def prices(days: int = 40, tickers: int = 5) -> pl.DataFrame:
    random = np.random.default_rng(0)
    rows = [
        {"ticker": f"T{ticker}", "day": day, "price": float(100 * ticker + day)}
        for day in range(days)
        for ticker in range(tickers)
        if random.random() < 0.8
    ]
    return pl.DataFrame(rows).with_columns(up=pl.col("price") % 2 > 0)


def test_sequences_of_a_stored_table_keep_to_their_entity_and_part(tmp_path: Path) -> None:
    frame = prices()
    store = fs.FeatureStore.create(tmp_path / "s")
    table = store.ingest("prices", frame, key="ticker", time="day", partition_bytes="1KiB")
    data = table.dataset(["price"], label="up", split=fs.TimeSplit(valid=25))
    stored = table.read()
    for part, days in ((data.train, range(25)), (data.valid, range(25, 40))):
        loader = Loader(part, 16, shuffle=True, cache=tmp_path / "packs", window=6)
        seen = 0
        for batch in loader:
            for values in batch.inputs["numeric"][:, :, 0]:
                ticker, day = divmod(int(values[-1]), 100)
                known = stored.filter(
                    (pl.col("ticker") == f"T{ticker}") & pl.col("day").is_in(list(days))
                )["price"].to_list()
                wanted = [one for one in known if one <= values[-1]][-6:]
                assert values.tolist() == [0.0] * (6 - len(wanted)) + wanted
                assert day in days
                seen += 1
        assert seen == part.rows
    by_day = Loader(data.train, 16, cache=tmp_path / "packs", window=Window(3, by="day"))
    sequence = by_day[1].inputs["numeric"][0, :, 0]
    assert len({int(one) % 100 for one in sequence if one}) == 1


def test_a_state_is_of_its_window(cache: Path) -> None:
    part = numbered_part(60)
    state = Loader(part, 7, cache=cache, window=3).state_dict()
    with pytest.raises(InvalidInputError, match="another shuffle"):
        Loader(part, 7, cache=cache, window=4).load_state_dict(state)
    Loader(part, 7, cache=cache, window=3).load_state_dict(state)


def test_the_index_goes_with_its_loader_and_can_be_handed_to_a_process(cache: Path) -> None:
    loader = Loader(numbered_part(100), 10, cache=cache, window=Window(5, short="drop"))
    assert loader.rows == 96
    expected = loader[2].inputs["numeric"]
    held = pickle.dumps((loader.steps, loader.pack))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_second_batch, (held,))
    np.testing.assert_array_equal(found, expected)
    assert sum(one.name.startswith(".scratch") for one in cache.iterdir()) == 1
    del loader
    gc.collect()
    assert not any(one.name.startswith(".scratch") for one in cache.iterdir())


def _second_batch(held: bytes) -> Any:
    steps, pack = pickle.loads(held)
    return steps.read(pack, 2, 0).inputs["numeric"]


def test_memory_counts_whole_sequences_and_refuses_too_many_entities(cache: Path) -> None:
    part = numbered_part(20_000, numeric=50)
    rows = Loader(part, 100, cache=cache)
    plain = rows.epoch_memory().added
    sequences = Loader(part, 100, cache=cache, window=60).epoch_memory().added
    assert sequences - plain > 2 * 100 * 59 * 50 * 4
    limit = rows.reserved_bytes + (1 << 20)
    with pytest.raises(MemoryLimitError, match=r"(?s)20000 entities.*raise memory_limit by"):
        Loader(part, 1, cache=cache, window=Window(2, by="c0"), memory_limit=limit)


@pytest.mark.parametrize(
    ("window", "error", "match"),
    [
        (0, InvalidInputError, "window of 0 rows"),
        (True, InvalidInputError, "window of True rows"),
        ("60", InvalidInputError, "window of '60' rows"),
    ],
)
def test_what_is_no_window_is_refused(window: Any, error: Any, match: str, cache: Path) -> None:
    with pytest.raises(error, match=match):
        Loader(numbered_part(5), 2, cache=cache, window=window)


def test_other_refusals(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="short='cut'"):
        Window(3, short="cut")
    part = numbered_part(5)
    columns = part.schema.to_json()
    columns[3]["name"] = "mask"  # type: ignore[index, call-overload]
    renamed = type(part.schema).from_json(columns)
    inputs = {"numeric": part.inputs["numeric"], "mask": part.inputs["c0"]}
    other = ArrayPart(renamed, inputs, part.label, (5,), "masked")
    with pytest.raises(DefinitionError, match="'mask'"):
        Loader(other, 2, cache=cache, window=Window(2, mask=True))
    pytest.importorskip("xgboost")
    sequences = Loader(part, 2, cache=cache, window=3)
    with pytest.raises(InvalidInputError, match="sequences of 3"):
        sequences.xgboost()


def test_labels_and_weight_are_the_last_rows_and_padding_weighs_nothing(cache: Path) -> None:
    part = numbered_part(30, partitions=(11, 19), labels=2, weight=True)
    window = Window(4, by="c0")
    seen: list[int] = []
    for batch in Loader(part, 7, True, cache=cache, window=window, last="pad"):
        rows = np.array(last_rows(batch))
        assert batch.weight is not None
        assert part.weight is not None
        real = 7 if len(seen) < 28 else 2
        np.testing.assert_array_equal(batch.weight[:real], part.weight[rows[:real]])
        assert not batch.weight[real:].any()
        for name, values in batch.labels.items():
            np.testing.assert_array_equal(values, part.labels[name][rows])
        seen += rows[:real].tolist()
    assert sorted(seen) == list(range(30))
