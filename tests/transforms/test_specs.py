"""Specifications: round trips, fingerprints that must never change by accident, hostile values."""

from __future__ import annotations

import json
from typing import Any

import narwhals as nw
import pyarrow as pa
import pytest

from featurestore.errors import FeatureStoreError, FormatError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Transformer, transformer_from_spec
from featurestore.transforms.calendar import Calendar
from featurestore.transforms.categories import Categorify
from featurestore.transforms.expression import Expression
from featurestore.transforms.extent import Extent
from featurestore.transforms.function import Function
from featurestore.transforms.impute import Impute
from featurestore.transforms.min_max import MinMax
from featurestore.transforms.pca import PCA
from featurestore.transforms.pipeline import Pipeline
from featurestore.transforms.quantile_bin import QuantileBin
from featurestore.transforms.quantile_transform import QuantileTransform
from featurestore.transforms.robust_scale import RobustScale
from featurestore.transforms.selectors import by_dtype, matching, numeric, strings
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.winsorize import Winsorize

SCHEMA = TableSchema(
    (
        Field("x", pa.float64()), Field("n", pa.int32()), Field("s", pa.string()),
        Field("at", pa.timestamp("us")),
    ),
    time="at",
)  # fmt: skip


def golden(df: Any, limit: float = 0.5) -> Any:
    """Kept as it is: its fingerprint is written below."""
    return df["x"] > limit


# A change here makes every stored feature of that kind stale: raise ``version`` on purpose, or undo.
GOLDEN: dict[str, tuple[Transformer, str]] = {
    "expression": (
        Expression(speed=nw.col("x") / nw.col("n"), late=nw.col("s").is_in(["a", "b"])),
        "3cd17128b4b23d47e89acda5196a6b0a",
    ),
    "function": (
        Function(golden, "x", "late", dtypes="bool", params={"limit": 1.5}),
        "381b45a902ea24c58ae9cb6d2dae9b24",
    ),
    "function with history": (
        Function(golden, "x", "late", dtypes="bool", lookback="7d"),
        "feacd9c3a13deef115027f49b2ee97d5",
    ),
    "calendar": (
        Calendar(parts=("hour", "week"), cyclical=True, timezone="America/New_York"),
        "bb19c29f0832d6d7e57912d302323de0",
    ),
    "impute": (Impute(numeric(), indicator=True), "ece30456645ab871236eee9c254fa485"),
    "impute constant": (
        Impute("s", "constant", fill_value="?", rename={"s": "t"}),
        "ccb1467d8328ef44f3d9c0186d548fb6",
    ),
    "standardize": (
        Standardize(numeric() - matching("n.*"), suffix="_std"),
        "7e5b7037b92f16e3b3105ab2c5f196aa",
    ),
    "impute median": (Impute("x", "median"), "3647f2964389a5193381073c9479cca6"),
    "min max": (
        MinMax(numeric(), feature_range=(-1, 1), clip=True),
        "96b9aeff96e3e5567b50c14d8654941d",
    ),
    "robust scale": (
        RobustScale("x", quantile_range=(0.1, 0.9), median=False),
        "53931a09be541e14a533a1e4eac21388",
    ),
    "quantile transform": (
        QuantileTransform(numeric(), n_quantiles=50, distribution="normal"),
        "54fa2b8553400770035091ddaad30629",
    ),
    "quantile bin": (QuantileBin("x", 4), "c87f943392bcf23c215b234a4e0b772b"),
    "winsorize": (Winsorize("x", (0.05, 0.95)), "06566ca3bb11d147038e31f132fbadbd"),
    "pca": (PCA(["x", "n"], 1, tensor=True), "2047a7f36ed12043f3c12cbea94a4721"),
    "categorify": (
        Categorify(strings() | by_dtype("integer"), max_size=100, min_count=2),
        "bbb5d25d3d4a4d09f90d93188e81e87f",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_fingerprints_are_stable(name: str) -> None:
    transformer, expected = GOLDEN[name]
    assert transformer.fingerprint() == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_round_trip(name: str) -> None:
    transformer, _ = GOLDEN[name]
    again = transformer_from_spec(json.loads(json.dumps(transformer.spec())))
    assert again == transformer
    assert hash(again) == hash(transformer)
    assert again.spec() == transformer.spec()
    assert again.fingerprint() == transformer.fingerprint()
    assert again.inputs(SCHEMA) == transformer.inputs(SCHEMA)
    assert again.outputs(SCHEMA) == transformer.outputs(SCHEMA)
    assert again.scope == transformer.scope
    assert again.memory(SCHEMA, Extent(1000, {"": 8000})) >= 8000


def test_all_fingerprints_differ() -> None:
    found = [transformer.fingerprint() for transformer, _ in GOLDEN.values()]
    assert len(set(found)) == len(found)


def test_pipeline_fingerprint_is_stable() -> None:
    pipeline = Pipeline(Impute(numeric()), Standardize(numeric()), Categorify("s"))
    assert pipeline.fingerprint() == "4e724b14664601c1ff8907682784dfa2"


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "os.system", "version": 1, "params": {}},
        {"kind": None, "version": 1, "params": {}},
        {"kind": "Standardize", "version": 2, "params": {}},
        {},
    ],
)
def test_unknown_kinds_and_newer_versions_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        transformer_from_spec(spec)


@pytest.mark.parametrize("kind", ["Standardize", "Impute", "Categorify", "Calendar", "Function"])
@pytest.mark.parametrize(
    "value", [7, [7], {"$selector": ["exec"]}, {"$function": {"module": "os"}}]
)
def test_hostile_parameters_are_refused_at_the_latest_when_used(kind: str, value: Any) -> None:
    names = {"Calendar": "column"}
    spec = {"kind": kind, "version": 1, "params": {names.get(kind, "columns"): value}}
    with pytest.raises((FeatureStoreError, AttributeError, TypeError)):
        transformer_from_spec(spec).inputs(SCHEMA)
