"""Rows held on a device: the batches of hooks that hold none, bit for bit.

The devices here are CPUs; what a GPU holds is what these hold.
"""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError, MemoryLimitError, UnsupportedError
from featurestore.limits import resident_bytes
from featurestore.testing.datasets import ArrayPart, numbered_part
from featurestore.testing.loader_contract import HookContract
from training import Loader, Stratified

HOOKS = ["torch", "jax"]


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packs")


@pytest.fixture(params=HOOKS)
def hook(request: pytest.FixtureRequest) -> Any:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def small(part: ArrayPart, cache: Path, **options: Any) -> Loader:
    return Loader(
        part,
        options.pop("batch_size", 7),
        cache=cache,
        block_rows=16,
        window_blocks=3,
        **{"hold": "device", **options},
    )


class DeviceContract(HookContract):
    framework = ""

    def loader(self, part: ArrayPart, cache: Path, **options: Any) -> Loader:
        return small(part, cache, **options)

    def hook(self, loader: Loader) -> Any:
        made = getattr(loader, self.framework)()
        assert type(made).__name__.endswith("DeviceRows") or not loader.on_device
        return made

    def arrays(self, element: Any) -> list[Any]:
        return as_numpy(element)

    def test_elements_are_the_loaders_batches(self, cache: Path) -> None:
        """Of the loader without ``hold``: labels and all."""
        part = numbered_part(50, partitions=(20, 30), cardinalities=(3, 4), tensor=(2, 5))
        part.inputs["numeric"][7, 1:] = np.nan, -0.0
        plain = self.hook(small(part, cache, shuffle=True, seed=6, hold=None))
        made = self.hook(small(part, cache, shuffle=True, seed=6))
        for _ in range(2):
            for one, other in itertools.zip_longest(plain, made):
                same(one, other)


class TestJaxDevice(DeviceContract):
    framework = "jax"

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("jax")


class TestTorchDevice(DeviceContract):
    framework = "torch"

    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("torch")


def as_numpy(element: Any) -> list[Any]:
    return [
        {name: np.asarray(one) for name, one in part.items()}
        if isinstance(part, dict)
        else np.asarray(part)
        for part in element
    ]


def same(one: Any, other: Any) -> None:
    """Check that two elements are equal bit for bit."""
    ours, theirs = as_numpy(one), as_numpy(other)
    assert len(ours) == len(theirs)
    for mine, expected in zip(ours, theirs, strict=True):
        both = (mine, expected) if isinstance(mine, dict) else ({"": mine}, {"": expected})
        assert both[0].keys() == both[1].keys()
        for name, values in both[0].items():
            assert values.dtype == both[1][name].dtype
            assert values.tobytes() == both[1][name].tobytes()


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 60),
    batch=st.sampled_from([1, 8, 60]),
    shuffle=st.sampled_from([True, False, "global", "stripes", Stratified("late")]),
    last=st.sampled_from(["keep", "drop", "pad"]),
    labels=st.integers(1, 2),
    weight=st.booleans(),
    dtype=st.sampled_from(["float32", "float16"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_batches_are_those_of_the_hook_that_holds_none(
    hook: str,
    packs: Path,
    rows: int,
    batch: int,
    shuffle: Any,
    last: str,
    labels: int,
    weight: bool,
    dtype: str,
    seed: int,
) -> None:
    part = numbered_part(rows, labels=labels, weight=weight, tensor=(2,), name=f"{labels}{weight}")
    options: dict[str, Any] = {
        "batch_size": batch,
        "sample" if isinstance(shuffle, Stratified) else "shuffle": shuffle,
        "last": last,
        "dtype": dtype,
        "seed": seed,
    }
    plain, held = small(part, packs, hold=None, **options), small(part, packs, **options)
    expected, found = (getattr(one, hook)() for one in (plain, held))
    assert len(expected) == len(found)
    for _ in range(2):
        for one, other in itertools.zip_longest(found, expected):
            same(one, other)
        assert held.state_dict() == plain.state_dict()
    if rows > 3:
        expected, found = (getattr(one.shard(1, 2), hook)() for one in (plain, held))
        for one, other in itertools.zip_longest(found, expected):
            same(one, other)


def test_rows_that_do_not_fit_are_refused(hook: str, packs: Path) -> None:
    part = numbered_part(20_000, numeric=2, tensor=(512,), name="large")
    Loader(part, 16, cache=packs).pack.verify()
    limit = resident_bytes() + (24 << 20)
    loader = Loader(part, 16, cache=packs, hold="device", memory_limit=limit)
    with pytest.raises(MemoryLimitError, match="all 20000 rows, held in memory"):
        getattr(loader, hook)()


def test_rows_that_do_not_fit_a_device_are_refused(packs: Path) -> None:
    pytest.importorskip("jax")
    from training.hooks.jax import JaxDeviceRows, jax

    class Full:
        """A device with little memory left."""

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 5000, "bytes_in_use": 3000}

        def __str__(self) -> str:
            return "device 7"

    assert jax.devices()
    part = numbered_part(100)
    with pytest.raises(MemoryLimitError, match=r"on device 7, which has 2\.0 KiB left") as caught:
        JaxDeviceRows(small(part, packs), Full())
    assert "100 rows and a batch take 2.1 KiB" in caught.value.problem
    assert 107 * (3 * 4 + 4 + 4) == 2140


def test_integers_that_jax_would_cut_are_refused(packs: Path) -> None:
    pytest.importorskip("jax")
    part = numbered_part(9, name="wide")
    part.schema = type(part.schema)(
        (*part.schema.columns[:-1], type(part.schema.columns[0])("late", "label", "int64"))  # type: ignore[arg-type]
    )
    part.label = np.full(9, 2**40)
    with pytest.raises(InvalidInputError, match="'label' has integers from"):
        small(part, packs).jax()


def test_other_hooks_are_refused(packs: Path) -> None:
    loader = small(numbered_part(9), packs)
    for hook in ("keras", "tf_data", "xgboost", "torch_map"):
        needed = {"tf_data": "tensorflow", "torch_map": "torch"}.get(hook, hook)
        if find_spec(needed) is not None:
            with pytest.raises(UnsupportedError, match="held on a device"):
                getattr(loader, hook)()


def test_what_cannot_be_held_is_refused(packs: Path) -> None:
    part = numbered_part(9)
    with pytest.raises(InvalidInputError, match="put on a device from a pack"):
        small(part, packs, pack=False)
    if find_spec("jax") is not None:
        with pytest.raises(UnsupportedError, match="sequences cannot be held on a device"):
            small(part, packs, window=3).jax()
    if find_spec("torch") is not None:
        with pytest.raises(InvalidInputError, match=r"\.to\(device\)"):
            small(part, packs, hold=None).torch(device="cpu")
        made = small(part, packs).torch(device="cpu")
        assert made.loader(0) is made
        with pytest.raises(UnsupportedError, match="nothing is left for workers"):
            made.loader(2)


def test_iterating_over_the_loader_itself_reads_the_pack(packs: Path) -> None:
    part = numbered_part(30)
    for one, other in zip(
        small(part, packs, shuffle=True), small(part, packs, shuffle=True, hold=None), strict=True
    ):
        np.testing.assert_array_equal(one.inputs["numeric"], other.inputs["numeric"])
