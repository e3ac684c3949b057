"""An out-of-core dataframe feature store.

    import featurestore as fs

    store = fs.FeatureStore.create("golden", memory_limit="2GiB")
    flights = store.ingest("flights", "flights/*.parquet", key=["carrier", "flight"], time="time")
    flights.add(fs.Rolling("dep_delay", by="carrier", window="7d", stats=["mean"], closed="left"))

Names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from featurestore.dataset.dataset import Dataset
    from featurestore.dataset.split import HashSplit, TimeSplit
    from featurestore.enforcement import enforced
    from featurestore.errors import FeatureStoreError
    from featurestore.profiling.profile import profile
    from featurestore.profiling.sampler import measure
    from featurestore.store import FeatureStore
    from featurestore.table import Table
    from featurestore.transforms.asof import AsOfJoin
    from featurestore.transforms.calendar import Calendar
    from featurestore.transforms.categories import Categorify
    from featurestore.transforms.cross_section import CrossSection
    from featurestore.transforms.embed import Embed
    from featurestore.transforms.expression import Expression
    from featurestore.transforms.forward import Forward
    from featurestore.transforms.from_array import FromArray
    from featurestore.transforms.function import Function
    from featurestore.transforms.lookup import Lookup
    from featurestore.transforms.pipeline import Pipeline
    from featurestore.transforms.scaling import Impute, Standardize
    from featurestore.transforms.selectors import (
        by_dtype,
        by_name,
        everything,
        matching,
        numeric,
        strings,
    )
    from featurestore.transforms.window import Lag, Rolling
    from featurestore.units import Duration

__version__ = "0.1.0"

_HOMES: Final = {
    "AsOfJoin": "transforms.asof",
    "Calendar": "transforms.calendar",
    "Categorify": "transforms.categories",
    "CrossSection": "transforms.cross_section",
    "Dataset": "dataset.dataset",
    "Duration": "units",
    "Embed": "transforms.embed",
    "Expression": "transforms.expression",
    "FeatureStore": "store",
    "FeatureStoreError": "errors",
    "Forward": "transforms.forward",
    "FromArray": "transforms.from_array",
    "Function": "transforms.function",
    "HashSplit": "dataset.split",
    "Impute": "transforms.scaling",
    "Lag": "transforms.window",
    "Lookup": "transforms.lookup",
    "Pipeline": "transforms.pipeline",
    "Rolling": "transforms.window",
    "Standardize": "transforms.scaling",
    "Table": "table",
    "TimeSplit": "dataset.split",
    "by_dtype": "transforms.selectors",
    "by_name": "transforms.selectors",
    "enforced": "enforcement",
    "everything": "transforms.selectors",
    "matching": "transforms.selectors",
    "measure": "profiling.sampler",
    "numeric": "transforms.selectors",
    "profile": "profiling.profile",
    "strings": "transforms.selectors",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "AsOfJoin",
    "Calendar",
    "Categorify",
    "CrossSection",
    "Dataset",
    "Duration",
    "Embed",
    "Expression",
    "FeatureStore",
    "FeatureStoreError",
    "Forward",
    "FromArray",
    "Function",
    "HashSplit",
    "Impute",
    "Lag",
    "Lookup",
    "Pipeline",
    "Rolling",
    "Standardize",
    "Table",
    "TimeSplit",
    "by_dtype",
    "by_name",
    "enforced",
    "everything",
    "matching",
    "measure",
    "numeric",
    "profile",
    "strings",
]
