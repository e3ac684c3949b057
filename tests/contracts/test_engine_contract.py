"""The engine contract for Polars, and for cuDF where there is a GPU, with parity between them."""

from __future__ import annotations

import importlib.util

import pytest

from featurestore.engines.polars import PolarsEngine
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine, gpu_problem
from featurestore.errors import InvalidInputError, MissingDependencyError
from featurestore.testing.engine_contract import EngineContract, EngineParity


class TestPolars(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return PolarsEngine()


class TestPolarsParity(EngineParity):
    """An engine equals itself: keeps the parity suite itself running without a GPU."""

    @pytest.fixture
    def engines(self) -> tuple[Engine, Engine]:
        return PolarsEngine(), PolarsEngine()


@pytest.mark.gpu
class TestCudf(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return get_engine("cudf")


@pytest.mark.gpu
class TestCudfParity(EngineParity):
    @pytest.fixture
    def engines(self) -> tuple[Engine, Engine]:
        return get_engine("cudf"), PolarsEngine()


def test_engines_are_chosen_by_name() -> None:
    assert get_engine("polars").name == "polars"
    with pytest.raises(InvalidInputError, match="no engine 'spark'"):
        get_engine("spark")


@pytest.mark.skipif(importlib.util.find_spec("cudf") is not None, reason="cuDF is installed")
def test_without_cudf_auto_is_polars_and_cudf_says_how_to_install_it() -> None:
    assert get_engine("auto").name == "polars"
    assert gpu_problem() == "the package cudf is not installed"
    with pytest.raises(MissingDependencyError, match=r"pip install 'featurestore\[gpu\]'"):
        get_engine("cudf")
