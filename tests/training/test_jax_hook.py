"""JAX: device arrays in the loader's order, one batch ahead and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

import jax

from featurestore.dataset.batch import DatasetSchema, Input, Role
from featurestore.errors import CorruptionError, InvalidInputError, MemoryLimitError
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import HookContract
from training import Loader
from training.hooks import jax as hook


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(
        part, options.pop("batch_size", 7), cache=cache, block_rows=16, window_blocks=3, **options
    )


class TestJax(HookContract):
    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def hook(self, loader: Loader) -> Any:
        return loader.jax()

    def arrays(self, element: Any) -> list[Any]:
        assert all(isinstance(one, jax.Array) for one in jax.tree.leaves(element))
        return list(jax.tree.map(np.asarray, element))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def counting(loader: Loader, monkeypatch: pytest.MonkeyPatch, fails: int = 10**9) -> list[int]:
    """Return a list that grows with each batch that is read; reading number ``fails`` fails."""
    read: list[int] = []
    plain = loader.pack.read

    def reading(start: int, stop: int) -> Any:
        if len(read) == fails:
            raise CorruptionError("the disk is gone")
        read.append(start)
        return plain(start, stop)

    monkeypatch.setattr(loader.pack, "read", reading)
    return read


def test_exactly_one_batch_is_ahead(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = small(numbered_part(50), cache)
    read = counting(loader, monkeypatch)
    iterator = iter(loader.jax())
    assert read == []
    for step in range(8):
        next(iterator)
        assert len(read) == min(step + 2, 8)
    assert next(iterator, None) is None


def test_an_error_surfaces_at_once_and_moves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(numbered_part(50), cache)
    counting(loader, monkeypatch, fails=3)
    seen: list[Any] = []
    with pytest.raises(CorruptionError, match="the disk is gone"):
        seen.extend(loader.jax())
    # Batch 3 failed when it was read ahead of batch 2, which nobody got.
    assert loader.state_dict()["step"] == len(seen) == 2


def test_an_abandoned_iterator_does_not_move_the_loader(cache: Path) -> None:
    loader = small(numbered_part(50), cache)
    abandoned = iter(loader.jax())
    next(abandoned)
    current = iter(loader.jax())
    next(current)
    list(abandoned)
    assert (loader.epoch, loader.state_dict()["step"]) == (0, 1)


def test_the_batch_ahead_is_counted(cache: Path) -> None:
    part = numbered_part(6000, numeric=2, cardinalities=(), tensor=(1024,))
    limit = resident_bytes() + (60 << 20)
    loader = Loader(part, 6000, cache=cache, memory_limit=limit)
    with pytest.raises(MemoryLimitError, match="4 batches of 6000 rows"):
        loader.jax()


def test_arrays_lie_where_they_are_asked_for_and_share_memory(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = small(numbered_part(20), cache)
    where = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    taken = []
    plain = hook.element
    monkeypatch.setattr(hook, "element", lambda batch: taken.append(batch) or plain(batch))
    for device in (None, jax.devices("cpu")[0], where):
        taken.clear()
        for step, (inputs, label) in enumerate(loader.jax(device)):
            values = taken[step].inputs["numeric"]
            assert inputs["numeric"].unsafe_buffer_pointer() == values.ctypes.data
            assert label.devices() == {jax.devices("cpu")[0]}


def wide_part(values: Any, role: Role = Role.LABEL) -> ArrayPart:
    columns = (Input("v", Role.NUMERIC, "float32"), Input("y", role, str(values.dtype)))
    inputs = {"numeric": np.zeros((len(values), 1), dtype=np.float32)}
    if role is not Role.LABEL:
        inputs["y"] = values
    label = values if role is Role.LABEL else None
    return ArrayPart(DatasetSchema(columns), inputs, label, (len(values),), f"{values}")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint8", "int32"), ("int64", "int32"), ("float64", "float32"), ("bool", "int32")],
)
def test_labels_are_float32_or_integers(dtype: str, expected: str, cache: Path) -> None:
    values = np.arange(4).astype(dtype)
    ((_, label),) = list(small(wide_part(values), cache).jax())
    assert label.dtype == np.dtype(expected)
    np.testing.assert_array_equal(label, values.astype(expected))


@pytest.fixture
def wide_integers() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("role", [Role.LABEL, Role.TENSOR])
@pytest.mark.parametrize("values", [np.array([1, 2**31]), np.array([-(2**31) - 1])])
def test_integers_that_jax_would_cut_are_refused(role: Role, values: Any, cache: Path) -> None:
    with pytest.raises(InvalidInputError, match="JAX would keep 32 bits"):
        list(small(wide_part(values, role), cache).jax())


@pytest.mark.usefixtures("wide_integers")
def test_wide_integers_stay_where_jax_is_told_so(cache: Path) -> None:
    values = np.array([1, 2**40])
    ((_, label),) = list(small(wide_part(values), cache).jax())
    np.testing.assert_array_equal(label, values)


def test_a_jitted_step_trains_on_it(cache: Path) -> None:
    part = numbered_part(2000, cardinalities=())
    part.inputs["numeric"][:, 0] = 1  # the row number is no feature
    loader = Loader(part, 100, shuffle=True, cache=cache)

    @jax.jit
    def step(weights: Any, inputs: Any, label: Any) -> tuple[Any, Any]:
        def loss(weights: Any) -> Any:
            margin = inputs["numeric"] @ weights
            return jax.numpy.mean(jax.nn.softplus(margin) - label * margin)

        value, slope = jax.value_and_grad(loss)(weights)
        return weights - 0.5 * slope, value

    weights, losses = jax.numpy.zeros(3), []
    for _ in range(3):
        for inputs, label in loader.jax():
            weights, value = step(weights, inputs, label)
            losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
