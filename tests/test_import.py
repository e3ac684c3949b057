"""Importing the package is cheap and loads no framework."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "tensorflow", "keras", "torch", "jax", "xgboost", "cudf", "cupy", "dask", "distributed", "zarr",
    "pandas", "matplotlib",
)  # fmt: skip


@pytest.mark.parametrize("package", ["featurestore", "training", "featurestore.store"])
def test_import_loads_no_framework(package: str) -> None:
    code = f"import sys, {package}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"


def test_import_takes_under_a_second() -> None:
    # The best of three: a busy machine may delay one, not all.
    code = (
        "import time; start = time.perf_counter(); import featurestore; "
        "print(time.perf_counter() - start)"
    )
    seconds = [
        float(subprocess.check_output([sys.executable, "-c", code], timeout=60)) for _ in range(3)
    ]
    assert min(seconds) < 1.0


def test_every_public_name_exists() -> None:
    import featurestore
    import training

    for package in (featurestore, training):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
