"""Lists of any length: in packs, in batches, in hooks, against lists of Python; and who refuses them."""

from __future__ import annotations

import json
import pickle
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

import featurestore as fs
import training
from featurestore.dataset.batch import Batch, DatasetSchema, Input, Role
from featurestore.dataset.ragged import Ragged, ragged_of
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FeatureStoreError,
    InvalidInputError,
    MemoryLimitError,
    SchemaError,
    UnsupportedError,
)
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import Batches, LoaderContract, row_numbers
from training import Loader
from training.loading import list_values
from training.loading.list_values import gathered
from training.loading.pack import Pack
from training.models import tabular

Lists = list[list[Any]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def listed(part: ArrayPart, cache: Path, ragged: str = "offsets", **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=16, window_blocks=3, ragged=ragged, **options)


def ragged(lists: Lists, dtype: str) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Ragged(np.array([item for one in lists for item in one], dtype), offsets)


def list_part(lists: Lists, sizes: list[int], dtype: str = "int32") -> ArrayPart:
    """A part whose rows have these lists and their number, which is the label."""
    columns = (Input("tags", Role.RAGGED, dtype), Input("row", Role.LABEL, "int64"))
    return ArrayPart(
        DatasetSchema(columns),
        {},
        np.arange(len(lists)),
        tuple(sizes),
        json.dumps([lists, dtype]),
        lists={"tags": ragged(lists, dtype)},
    )


def as_lists(one: Ragged) -> Lists:
    return [items.tolist() for items in one]


def of_padded(rows: Any, mask: Any) -> Lists:
    """Return what padded lists hold, having checked how they are padded."""
    assert rows.shape == mask.shape
    assert mask.dtype == np.bool_
    lengths = mask.sum(axis=1)
    assert rows.shape[1] == max(1, lengths.max(initial=0))
    assert (mask == (np.arange(rows.shape[1]) < lengths[:, None])).all()
    assert not rows[~mask].any()
    return [row[one].tolist() for row, one in zip(rows, mask, strict=True)]


def found_in(batch: Batch) -> Lists:
    if batch.lists:
        assert not batch.inputs
        return as_lists(batch.lists["tags"])
    return of_padded(batch.inputs["tags"], batch.inputs["tags__mask"])


class _Listed(LoaderContract):
    form = "offsets"

    def part(self, rows: int) -> ArrayPart:
        cuts = [rows] if rows < 3 else [rows // 3, 1, rows - rows // 3 - 1]
        return numbered_part(rows, partitions=[one for one in cuts if one], lists=True)

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return listed(part, cache, self.form, **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        return [[self._rows(loader, batch) for batch in loader] for _ in range(count)]

    def _rows(self, loader: Loader, batch: Batch) -> list[int]:
        """Return the rows of a batch, whose lists must be theirs."""
        part, numbers = loader.part, row_numbers(batch)
        assert isinstance(part, ArrayPart)
        for name, lists in part.lists.items():
            expected = [lists[row].tolist() for row in numbers]
            if self.form == "offsets":
                assert as_lists(batch.lists[name]) == expected
            else:
                assert of_padded(batch.inputs[name], batch.inputs[f"{name}__mask"]) == expected
        return numbers


@pytest.mark.slow
class TestOffsets(_Listed):
    pass


@pytest.mark.slow
class TestPadded(_Listed):
    form = "padded"


# --- batches ------------------------------------------------------------------------------------------

LISTS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), min_size=1, max_size=60)


@settings(deadline=None, max_examples=25)
@given(
    lists=LISTS,
    cuts=st.lists(st.integers(1, 59), max_size=5),
    batch_size=st.integers(1, 40),
    shuffle=st.sampled_from([True, False, "global", "stripes"]),
    last=st.sampled_from(["keep", "drop", "pad"]),
    form=st.sampled_from(["offsets", "padded"]),
    world=st.integers(1, 3),
)
@example([[], [], []], [1], 2, True, "keep", "padded", 1)
@example([[1]] * 60, [], 7, False, "keep", "offsets", 3)
def test_batches_have_the_lists_of_their_rows(
    lists: Lists,
    cuts: list[int],
    batch_size: int,
    shuffle: Any,
    last: str,
    form: str,
    world: int,
) -> None:
    world = min(world, len(lists))
    bounds = sorted({0, len(lists), *(one for one in cuts if one < len(lists))})
    part = list_part(lists, np.diff(bounds).tolist())
    with tempfile.TemporaryDirectory() as folder:
        whole = Loader(part, batch_size, shuffle, 3, last, cache=folder, block_rows=8, ragged=form)
        for epoch in range(2):
            seen: list[int] = []
            for rank in range(world):
                one = whole.shard(rank, world)
                one.set_epoch(epoch)
                for step, batch in enumerate(one):
                    assert batch.label is not None
                    rows = batch.label.tolist()
                    assert found_in(batch) == [lists[row] for row in rows]
                    assert found_in(one.batch(step, epoch)) == found_in(batch)
                    real = len(rows) if batch.weight is None else int(batch.weight.sum())
                    seen += rows[:real]
            assert len(set(seen)) == len(seen)
            assert last == "drop" or sorted(seen) == list(range(len(lists)))
        pack = whole.pack
        kept = pack if isinstance(pack, Pack) else pack.pack
        assert isinstance(kept, Pack)
        kept.verify()
        again = Pack.open(kept.path, part)
        assert as_lists(again.read(0, len(lists)).lists["tags"]) == [
            lists[row]
            for row in again.read(0, len(lists)).label.tolist()  # type: ignore[union-attr]
        ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=30), st.booleans())
@example([(0, 30), (0, 0), (5, 30), (1, 2)], True)
@example([(0, 8), (8, 8), (16, 0)], False)
def test_items_are_gathered_piece_by_piece(spans: list[tuple[int, int]], own: bool) -> None:
    items = np.arange(60) * 3
    starts, lengths = np.array(spans, np.int64).reshape(-1, 2).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_values, "_PIECE_ITEMS", 8)
        found = gathered(items, starts, lengths, own=own)
    assert as_lists(found) == [items[a : a + n].tolist() for a, n in spans]
    assert not (own and np.shares_memory(found.values, items))


def test_resume_goes_on_with_the_next_lists(cache: Path) -> None:
    part = numbered_part(50, partitions=(20, 30), lists=True)
    whole = [as_lists(one.lists["tags"]) for one in listed(part, cache, shuffle=True, seed=4)]
    for stop in range(len(whole)):
        first, second = (listed(part, cache, shuffle=True, seed=4) for _ in range(2))
        seen = [as_lists(first[step].lists["tags"]) for step in range(stop)]
        iterator = iter(first)
        for _ in range(stop):
            next(iterator)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        rest = [as_lists(one.lists["tags"]) for one in second]
        assert [*seen, *rest] == whole


@pytest.mark.parametrize("form", ["offsets", "padded"])
@pytest.mark.parametrize("kind", ["Weighted", "Stratified"])
def test_sampled_rows_have_their_lists(form: str, kind: str, cache: Path) -> None:
    part = numbered_part(40, partitions=(10, 30), lists=True)
    contract = _Listed()
    contract.form = form
    one = listed(part, cache, form, sample=getattr(training, kind)("importance"))
    assert len(contract.epochs(one, 2)[0]) == 6


def test_float16_leaves_lists_as_they_are(cache: Path) -> None:
    part = numbered_part(20, lists=True)
    batch = listed(part, cache, dtype="float16")[0]
    assert batch.inputs["numeric"].dtype == np.float16
    assert batch.lists["rates"].values.dtype == np.float32


def test_partitions_in_slices_have_the_same_lists(cache: Path) -> None:
    class Sliced(ArrayPart):
        def slices(self, partition: int, within: int) -> Any:
            batch = self.arrays(partition)
            assert batch.label is not None
            for start in range(0, batch.rows, 3):
                stop = min(start + 3, batch.rows)
                lists = {name: one.slice(start, stop) for name, one in batch.lists.items()}
                yield Batch({}, batch.label[start:stop], lists=lists)

    lists = [[row] * (row % 5) for row in range(40)]
    plain = list_part(lists, [15, 25])
    part = Sliced(plain.schema, {}, plain.label, (15, 25), "sliced", lists=plain.lists)
    for shuffle in (True, False):
        one = listed(part, cache, shuffle=shuffle)
        next(iter(one))  # leaves partitions half-way, which are written again
        for batch in one:
            assert batch.label is not None
            assert found_in(batch) == [lists[row] for row in batch.label]


# --- packs --------------------------------------------------------------------------------------------


def test_a_pack_of_lists_is_zarr(cache: Path) -> None:
    lists = [[1, 2], [], [3]] * 5000
    pack = listed(list_part(lists, [15000]), cache).pack
    assert isinstance(pack, Pack)
    group: Any = zarr.open_group(pack.path, mode="r")
    items, spans = group["items/tags"][:], group["spans/tags"][:]
    assert [items[a : a + n].tolist() for a, n in spans] == lists
    assert items.dtype == np.int32
    copy = pickle.loads(pickle.dumps(pack))
    assert as_lists(copy.gather(np.array([2, 0])).lists["tags"]) == [[3], [1, 2]]
    view = pack.view(0, 3)
    assert as_lists(view.lists["tags"]) == lists[:3]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_items_are_found(damage: str, cache: Path) -> None:
    part = list_part([[1, 2], [3]] * 50, [100])
    pack = listed(part, cache).pack
    assert isinstance(pack, Pack)
    file = pack.path / "items/tags/c/0"
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        data[5] ^= 1
        file.write_bytes(data[:-1] if damage == "cut" else data)
    with pytest.raises(CorruptionError, match="items/tags"):
        Pack.open(pack.path, part).verify()


def test_spans_beyond_the_items_are_no_lists(cache: Path) -> None:
    pack = listed(list_part([[1, 2], [3]], [2]), cache).pack
    assert isinstance(pack, Pack)
    with pytest.raises(CorruptionError, match="names 1000 items"):
        pack._lists["tags"].take(np.array([[999, 1]]))


def test_lists_of_other_items_than_the_schema_says(cache: Path) -> None:
    part = list_part([[1]], [1])
    part.lists = {"tags": ragged([[1]], "int64")}
    with pytest.raises(SchemaError, match="int64 items"):
        listed(part, cache).pack  # noqa: B018


def test_items_lie_in_the_order_of_rows(cache: Path) -> None:
    """Those of rows that were dealt in one run lie together, so that a block is read in few pieces."""
    lists = [[row] * (row % 3) for row in range(40_000)]
    pack = listed(list_part(lists, [25_000, 15_000]), cache, shuffle=True).pack
    assert isinstance(pack, Pack)
    starts, lengths = pack._arrays["tags"].T
    assert (starts[1:] != starts[:-1] + lengths[:-1]).sum() < 40


# --- memory -------------------------------------------------------------------------------------------


def test_batches_are_projected_by_their_longest_list(cache: Path) -> None:
    part = list_part([[1] * 1000, *([[]] * 99)], [50, 50], "int64")
    offsets, padded = listed(part, cache), listed(part, cache, "padded")
    # The label, a span, an offset, and the items; padded, items and a mask, and the lists of one of two.
    assert offsets.sample_bytes == 8 + 16 + 8 + 8 * 1000
    assert padded.sample_bytes == 8 + 16 + 9 * 1000 + (8 + 8 * 1000) // 2
    assert padded.epoch_memory().added >= 7 * (2 * 9 + 8) * 1000
    limit = padded.reserved_bytes + offsets.epoch_memory().added
    with pytest.raises(MemoryLimitError, match="an epoch"):
        listed(part, cache, "padded", memory_limit=limit - 1)


# --- from a store -------------------------------------------------------------------------------------


def stored(folder: Path, lists: Any, cut: int | None = None) -> Any:
    rows = len(lists)
    frame = pa.table(
        {
            "t": np.arange(rows),
            "x": np.arange(rows, dtype="f8"),
            "y": np.arange(rows),
            "tags": lists,
        }
    )
    store = fs.FeatureStore.create(folder / "store", memory_limit="4GiB")
    options: Any = {} if cut is None else {"partition_bytes": cut}
    return store.ingest("rows", frame, time="t", **options)


ITEMS: Any = {
    "int8": st.integers(-128, 127),
    "uint32": st.integers(0, 2**32 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.none() | st.floats(width=32),
    "float64": st.none() | st.floats(),
}


@st.composite
def columns(draw: Any) -> pa.Array:
    name = draw(st.sampled_from(sorted(ITEMS)))
    lists = draw(st.lists(st.none() | st.lists(ITEMS[name], max_size=6), max_size=20))
    array = pa.array(lists, pa.list_(getattr(pa, name)()))
    start = draw(st.integers(0, len(lists)))
    return array[start:]


@settings(deadline=None)
@given(columns())
@example(pa.array([[1e300, None], None, [float("nan")]], pa.list_(pa.float64()))[1:])
def test_columns_of_lists_are_values_and_offsets(column: pa.ListArray) -> None:
    dtype = {"int8": "int32", "uint32": "int64", "int64": "int64"}
    kept = dtype.get(str(column.type.value_type), "float32")
    found = ragged_of(column, kept, "tags")
    assert found.values.dtype == kept
    expected = [one or [] for one in column.to_pylist()]
    assert found.offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    flat = [np.nan if item is None else item for one in expected for item in one]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found.values, np.array(flat, dtype=kept))


def test_null_items_of_integers_are_refused() -> None:
    column = pa.array([[1, None], None], pa.list_(pa.int64()))
    with pytest.raises(DefinitionError, match="1 null items") as caught:
        ragged_of(column, "int64", "tags")
    assert "ListPad" in caught.value.remedy


@pytest.mark.parametrize("shuffle", [True, False])
def test_lists_of_a_table_reach_a_batch(shuffle: bool, tmp_path: Path, cache: Path) -> None:
    random = np.random.default_rng(1)
    lists: list[Any] = [
        None if one == 0 else random.integers(0, 9, one - 1).tolist()
        for one in random.integers(0, 30, 3000)
    ]
    table = stored(tmp_path, pa.array(lists, pa.list_(pa.int64())), 2**15)
    split = fs.HashSplit(valid=0.3, test=0.0, by=["t"])
    data = table.dataset(["tags", "x"], "y", split=split, pipeline=fs.Pipeline(fs.Standardize("x")))
    assert len(data.train.partition_rows) > 3
    assert data.schema.ragged == (Input("tags", Role.RAGGED, "int64"),)
    seen = []
    for part in (data.train, data.valid):
        for number in range(len(part.partition_rows)):
            most, total = part.list_items(number, "tags")
            lengths = part.arrays(number).lists["tags"].lengths
            assert lengths.max() <= most <= 28
            assert lengths.sum() <= total
        for batch in Loader(part, 64, shuffle, cache=cache, ragged="offsets"):
            assert batch.label is not None
            seen += batch.label.tolist()
            assert as_lists(batch.lists["tags"]) == [lists[row] or [] for row in batch.label]
    assert sorted(seen) == list(range(3000))
    assert data.valid.read("arrow")["tags"].to_pylist() == [
        lists[row] for row in data.valid.read("arrow")["y"].to_pylist()
    ]


# --- who refuses --------------------------------------------------------------------------------------


def refused(work: Any, *words: str) -> None:
    with pytest.raises(FeatureStoreError) as caught:
        work()
    said = f"{caught.value} {caught.value.remedy}"
    assert all(word in said for word in (*words, "ListPad")), said


def test_lists_without_a_form_are_refused(cache: Path) -> None:
    part = numbered_part(20, lists=True)
    refused(lambda: Loader(part, 7, cache=cache), "'tags'", "ragged='offsets'", "ragged='padded'")
    for form in ("nested", 3, True):
        with pytest.raises(InvalidInputError, match="no form of lists"):
            listed(part, cache, form)  # type: ignore[arg-type]
    assert not part.reads
    assert not cache.exists()
    assert listed(numbered_part(20), cache)[0].lists == {}


@pytest.mark.parametrize("form", ["offsets", "padded"])
def test_what_has_rows_of_one_width_refuses_lists(form: str, cache: Path) -> None:
    part = numbered_part(20, lists=True)
    options: list[dict[str, Any]] = [
        {"pack": False},
        {"hold": "memory"},
        {"hold": "device"},
        {"window": 3},
    ]
    for one in options:
        with pytest.raises(UnsupportedError):
            listed(part, cache, form, **one)
        refused(lambda one=one: listed(part, cache, form, **one), *one, "'tags'")
    one = listed(part, cache, form)
    refused(lambda: training.Mixture([one, one]), "mixture")
    if find_spec("xgboost"):
        from training.hooks.xgboost import dmatrix

        refused(lambda: dmatrix(one), "XGBoost")
        refused(one.xgboost, "XGBoost")
    assert not part.reads
    assert not cache.exists()


def test_inputs_of_one_name_are_refused(cache: Path) -> None:
    for name, form in (("tags__mask", "padded"), ("tags__values", "offsets")):
        part = numbered_part(5, lists=True)
        columns = (*part.schema.columns[:-1], Input(name, Role.CATEGORICAL, "int32", (), 3))
        part.schema = DatasetSchema((*columns, part.schema.columns[-1]))
        with pytest.raises(DefinitionError, match=f"called '{name}'"):
            listed(part, cache, form)


@pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras")
def test_the_network_for_tables_refuses_lists() -> None:
    schema = numbered_part(5, lists=True).schema
    refused(lambda: tabular(schema, "binary"), "'tags'")


# --- hooks --------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
@pytest.mark.parametrize("form", ["offsets", "padded"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_torch_gets_the_lists_of_batches(form: str, workers: int, cache: Path) -> None:
    import torch

    part = numbered_part(40, partitions=(15, 25), lists=True)
    plain, given_ = (listed(part, cache, form, shuffle=True) for _ in range(2))
    for batch, (inputs, _) in zip(plain, given_.torch().loader(num_workers=workers), strict=True):
        if form == "padded":
            assert set(inputs) == set(batch.inputs)
            np.testing.assert_array_equal(inputs["tags"].numpy(), batch.inputs["tags"])
            np.testing.assert_array_equal(inputs["tags__mask"].numpy(), batch.inputs["tags__mask"])
            continue
        assert {"tags__values", "tags__offsets", "numeric"} <= set(inputs)
        values, offsets = inputs["tags__values"], inputs["tags__offsets"]
        lists = as_lists(batch.lists["tags"])
        assert [one.tolist() for one in values.tensor_split(offsets[1:-1])] == lists
        table = torch.eye(50)
        bags = torch.nn.functional.embedding_bag(
            values, table, offsets, mode="sum", include_last_offset=True
        )
        assert bags.sum(dim=1).tolist() == [len(one) for one in lists]


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow")
@pytest.mark.parametrize("form", ["offsets", "padded"])
def test_tf_data_gets_the_lists_of_batches(form: str, cache: Path) -> None:
    import tensorflow as tf

    part = numbered_part(40, partitions=(15, 25), lists=True)
    plain, given_ = (listed(part, cache, form, shuffle=True) for _ in range(2))
    for batch, (inputs, _) in zip(plain, given_.tf_data(), strict=True):
        if form == "padded":
            np.testing.assert_array_equal(inputs["rates"].numpy(), batch.inputs["rates"])
            np.testing.assert_array_equal(inputs["tags__mask"].numpy(), batch.inputs["tags__mask"])
            continue
        found = tf.RaggedTensor.from_row_splits(inputs["tags__values"], inputs["tags__offsets"])
        assert found.to_list() == as_lists(batch.lists["tags"])


@pytest.mark.skipif(find_spec("keras") is None, reason="needs Keras")
def test_keras_learns_from_padded_lists(cache: Path) -> None:
    import keras

    random = np.random.default_rng(0)
    lists = [random.integers(1, 9, random.integers(0, 6)).tolist() for _ in range(200)]
    part = list_part(lists, [80, 120])
    refused(listed(part, cache).keras, "Keras", "ragged='padded'")
    tags = keras.Input((None,), dtype="int32", name="tags")
    mask = keras.Input((None,), dtype="bool", name="tags__mask")
    codes = keras.layers.Embedding(9, 2)(tags)
    # A sum: the mean of an empty list, as of GlobalAveragePooling1D, is NaN.
    there = keras.ops.cast(keras.ops.expand_dims(mask, -1), "float32")
    pooled = keras.ops.sum(codes * there, axis=1)
    model = keras.Model({"tags": tags, "tags__mask": mask}, keras.layers.Dense(1)(pooled))
    model.compile("adam", "mse")
    loader = listed(part, cache, "padded", shuffle=True)
    history = model.fit(loader.keras(), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    ordered = listed(part, cache, "padded")
    found = model.predict(ordered.keras(), verbose=0)
    batch = ordered[1]
    expected = model.predict_on_batch(dict(batch.inputs))
    np.testing.assert_allclose(found[7:14], expected, rtol=1e-5, atol=1e-6)
    (inputs, _) = next(iter(ordered.keras(inputs="tuple").get_tf_dataset()))
    assert [one.dtype.name for one in inputs] == ["int32", "bool"]


@pytest.mark.skipif(find_spec("jax") is None, reason="needs JAX")
def test_jax_gets_padded_lists_and_refuses_offsets(cache: Path) -> None:
    part = numbered_part(20, lists=True)
    refused(listed(part, cache).jax, "JAX", "ragged='padded'")
    plain = listed(part, cache, "padded")
    for batch, (inputs, _) in zip(plain, listed(part, cache, "padded").jax(), strict=True):
        np.testing.assert_array_equal(inputs["rates"], batch.inputs["rates"])
        np.testing.assert_array_equal(inputs["tags__mask"], batch.inputs["tags__mask"])
