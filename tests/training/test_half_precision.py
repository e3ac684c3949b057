"""Inputs as float16: in packs, in batches, in hooks; what float16 cannot hold is refused."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from featurestore.dataset.batch import DatasetSchema, Input, Role
from featurestore.errors import InvalidInputError
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import Batches, LoaderContract, row_numbers
from training import Loader
from training.loading.half_precision import HalfPart, to_half
from training.loading.pack import Pack


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def half(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(part, 7, cache=cache, block_rows=16, window_blocks=3, dtype="float16", **options)


@pytest.mark.slow
class TestHalfLoader(LoaderContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return half(part, cache, **options)

    def epochs(self, loader: Loader, count: int) -> list[Batches]:
        return [[row_numbers(batch) for batch in loader] for _ in range(count)]


@settings(deadline=None)
@given(
    arrays(
        st.sampled_from([np.float32, np.float64]),
        array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=6),
        elements=st.floats(width=32),
    )
)
@example(np.array([65504, 65519, -65519, 6e-8, 1e-9, -0.0, np.nan, np.inf, -np.inf], np.float32))
@example(np.array([1, 65520], np.float32))
@example(np.array([[1, 2], [3, -1e300]], np.float64))
def test_values_are_rounded_or_refused(values: Any) -> None:
    names = [f"x{one}" for one in range(values.shape[1] if values.ndim == 2 else 1)]
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    lost = np.isinf(expected) & ~np.isinf(values)
    if not lost.any():
        found = to_half(values, names)
        np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
        return
    with pytest.raises(InvalidInputError, match="nothing beyond 65504") as caught:
        to_half(values, names)
    first = tuple(np.argwhere(lost)[0])
    name = names[first[1]] if values.ndim == 2 else names[0]
    assert f"column {name!r} holds {float(values[first]):g}" in str(caught.value)


@settings(deadline=None, max_examples=10)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    shuffle=st.sampled_from([True, False, "global", "stripes"]),
    where=st.sampled_from([{}, {"pack": False}, {"hold": "memory"}, {"window": 3}]),
)
def test_batches_are_those_of_a_plain_loader_rounded(
    sizes: list[int], shuffle: Any, where: dict[str, Any]
) -> None:
    if where == {"pack": False} and shuffle == "global":
        shuffle = "stripes"
    part = numbered_part(sum(sizes), partitions=sizes, tensor=(2, 3), weight=True)
    part.inputs["numeric"][0, 1:] = np.nan, np.inf
    with tempfile.TemporaryDirectory() as folder:
        plain = Loader(part, 7, {True: "stripes"}.get(shuffle, shuffle), cache=folder)
        if "window" in where:
            plain = Loader(part, 7, shuffle, cache=folder, window=3)
        elif not where:
            plain = Loader(part, 7, shuffle, cache=folder)
        one = Loader(part, 7, shuffle, cache=folder, dtype="float16", **where)
        assert one.array_specs()["numeric"][0] == one.array_specs()["vector"][0] == "float16"
        for step in range(len(plain)):
            for epoch in range(2):
                found, expected = one.batch(step, epoch), plain.batch(step, epoch)
                for name, values in expected.inputs.items():
                    kept = values.astype(np.float16) if values.dtype == np.float32 else values
                    assert found.inputs[name].dtype == kept.dtype
                    np.testing.assert_array_equal(found.inputs[name], kept)
                assert found.label is not None
                assert found.label.dtype == np.float32
                np.testing.assert_array_equal(found.label, expected.label)  # type: ignore[arg-type]
                np.testing.assert_array_equal(found.weight, expected.weight)  # type: ignore[arg-type]


def test_packs_of_both_types_lie_side_by_side(cache: Path) -> None:
    part = numbered_part(100, cardinalities=(), numeric=4)
    one, other = half(part, cache), Loader(part, 7, cache=cache)
    assert isinstance(one.pack, Pack)
    assert isinstance(other.pack, Pack)
    assert one.pack.path != other.pack.path
    assert (one.pack.row_bytes, other.pack.row_bytes) == (4 * 2 + 4, 4 * 4 + 4)
    one.pack.verify()
    reads = len(part.reads)
    assert half(part, cache).in_table_order().pack.path == one.pack.path
    assert len(part.reads) == reads
    with pytest.raises(InvalidInputError, match="other data"):
        one.load_state_dict(other.state_dict())


def test_a_column_beyond_float16_is_named(cache: Path) -> None:
    part = numbered_part(100, partitions=(60, 40), tensor=(2,))
    part.inputs["numeric"][77, 2] = 1e6
    for options in ({}, {"pack": False}, {"hold": "memory"}):
        with pytest.raises(InvalidInputError, match="column 'x2' holds 1e\\+06") as caught:
            list(half(part, cache, **options))
        assert "dtype='float32'" in caught.value.remedy
    part.inputs["numeric"][77, 2] = 0
    part.inputs["vector"][3, 1] = -7e4
    with pytest.raises(InvalidInputError, match="column 'vector' holds -70000"):
        half(part, cache).pack  # noqa: B018


def test_integers_labels_and_float16_stay(cache: Path) -> None:
    schema = DatasetSchema(
        (
            Input("tokens", Role.TENSOR, "int64", (2,)),
            Input("small", Role.TENSOR, "float16", (2,)),
            Input("large", Role.TENSOR, "float64", (2,)),
            Input("y", Role.LABEL, "float64"),
        )
    )
    values = np.arange(20).reshape(10, 2)
    inputs = {
        "tokens": values + 2**40,
        "small": values.astype("f2"),
        "large": values.astype("f8"),
    }
    part = ArrayPart(schema, inputs, np.full(10, 1e300), (4, 6), "types")
    (batch,) = Loader(part, 10, cache=cache, dtype="float16")
    kinds = {name: one.dtype.name for name, one in batch.inputs.items()}
    assert kinds == {"tokens": "int64", "small": "float16", "large": "float16"}
    assert batch.label is not None
    assert batch.label.tolist() == [1e300] * 10
    assert batch.inputs["tokens"].tolist() == (values + 2**40).tolist()


def test_another_type_is_refused(cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="use 'float32' or 'float16'"):
        Loader(numbered_part(3), 7, cache=cache, dtype="bfloat16")


def test_a_copy_is_in_the_projection() -> None:
    part = numbered_part(1000, partitions=(400, 600), numeric=8, cardinalities=())
    one = HalfPart(part)
    for partition, rows in enumerate((400, 600)):
        plain = part.memory(partition, 1 << 40)
        assert one.memory(partition, 1 << 40) == plain + min(plain // 2, rows * 16)


@pytest.mark.parametrize("hook", ["keras", "tf_data", "torch", "jax"])
def test_hooks_pass_it_on(hook: str, cache: Path) -> None:
    needed = {"tf_data": "tensorflow"}.get(hook, hook)
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    part = numbered_part(30, tensor=(2,))
    loader = half(part, cache)
    made = getattr(loader, hook)()
    seen = 0
    for inputs, _ in made.get_tf_dataset() if hook == "keras" else made:
        for name in ("numeric", "vector"):
            values = np.asarray(inputs[name])
            assert values.dtype == np.float16
            expected = part.inputs[name][seen : seen + len(values)].astype(np.float16)
            np.testing.assert_array_equal(values, expected)
        seen += len(inputs["numeric"])
    assert seen == 30


def test_a_keras_model_trains_on_it(cache: Path) -> None:
    pytest.importorskip("keras")
    from training.models import tabular

    part = numbered_part(60)
    part.inputs["numeric"][:, 0] /= 60
    losses = []
    for loader in (Loader(part, 20, cache=cache), Loader(part, 20, cache=cache, dtype="float16")):
        import keras

        keras.utils.set_random_seed(1)
        model = tabular(part.schema, "binary", hidden=[4])
        model.compile(optimizer="adam", loss="binary_crossentropy")
        losses.append(model.fit(loader.keras(), epochs=1, verbose=0).history["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_xgboost_gets_the_rounded_values_as_float32(cache: Path) -> None:
    pytest.importorskip("xgboost")
    part = numbered_part(50, partitions=(20, 30), tensor=(2,))
    pages: list[Any] = []
    taken = half(part, cache).xgboost()
    while taken.next(lambda **given: pages.append(given["data"])):
        pass
    found = np.concatenate(pages)
    assert found.dtype == np.float32
    expected = part.inputs["numeric"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found[:, :3], expected)
