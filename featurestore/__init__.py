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
    from featurestore.dataset.folds import HashKFold, PurgedKFold, WalkForward
    from featurestore.dataset.split import HashSplit, TimeSplit
    from featurestore.enforcement import enforced
    from featurestore.errors import FeatureStoreError
    from featurestore.expectations.drift import ExpectDrift
    from featurestore.expectations.expectation import (
        ExpectFresh,
        ExpectNulls,
        ExpectRange,
        ExpectUnique,
        ExpectValues,
    )
    from featurestore.profiling.profile import profile
    from featurestore.profiling.sampler import measure
    from featurestore.project.definitions import Definitions
    from featurestore.store import FeatureStore
    from featurestore.table import Table
    from featurestore.transforms.asof import AsOfJoin
    from featurestore.transforms.asof_aggregate import AsOfAggregate
    from featurestore.transforms.asof_window import AsOfWindow
    from featurestore.transforms.bucketize import Bucketize
    from featurestore.transforms.calendar import Calendar
    from featurestore.transforms.cast import Cast
    from featurestore.transforms.categories import Categorify
    from featurestore.transforms.changes import Diff, PctChange
    from featurestore.transforms.clip import Clip
    from featurestore.transforms.counters import CumCount, TimeSince
    from featurestore.transforms.cross_section import CrossSection
    from featurestore.transforms.embed import Embed
    from featurestore.transforms.ewm import EWM
    from featurestore.transforms.expanding import Expanding
    from featurestore.transforms.expanding_target import ExpandingTarget
    from featurestore.transforms.expression import Expression
    from featurestore.transforms.forward import Forward
    from featurestore.transforms.frequency import FrequencyEncode
    from featurestore.transforms.from_array import FromArray
    from featurestore.transforms.function import Function
    from featurestore.transforms.group_stats import GroupStats
    from featurestore.transforms.hash_buckets import Hash, HashCross
    from featurestore.transforms.impute import Impute
    from featurestore.transforms.lag import Lag
    from featurestore.transforms.list_pad import ListPad
    from featurestore.transforms.log import Log
    from featurestore.transforms.lookup import Lookup
    from featurestore.transforms.min_max import MinMax
    from featurestore.transforms.one_hot import OneHot
    from featurestore.transforms.pca import PCA
    from featurestore.transforms.pipeline import Pipeline
    from featurestore.transforms.quantile_bin import QuantileBin
    from featurestore.transforms.quantile_transform import QuantileTransform
    from featurestore.transforms.rank import Rank
    from featurestore.transforms.robust_scale import RobustScale
    from featurestore.transforms.selectors import (
        by_dtype,
        by_name,
        everything,
        matching,
        numeric,
        strings,
    )
    from featurestore.transforms.standardize import Standardize
    from featurestore.transforms.target_encoding import TargetEncode
    from featurestore.transforms.text_hash import TextHash
    from featurestore.transforms.tf_idf import TfIdf
    from featurestore.transforms.window import Rolling
    from featurestore.transforms.winsorize import Winsorize
    from featurestore.transforms.zscore import Demean, ZScore
    from featurestore.units import Duration

__version__ = "0.1.0"

_HOMES: Final = {
    "AsOfAggregate": "transforms.asof_aggregate",
    "AsOfJoin": "transforms.asof",
    "AsOfWindow": "transforms.asof_window",
    "Bucketize": "transforms.bucketize",
    "Calendar": "transforms.calendar",
    "Cast": "transforms.cast",
    "Categorify": "transforms.categories",
    "Clip": "transforms.clip",
    "CrossSection": "transforms.cross_section",
    "CumCount": "transforms.counters",
    "Dataset": "dataset.dataset",
    "Definitions": "project.definitions",
    "Demean": "transforms.zscore",
    "Diff": "transforms.changes",
    "Duration": "units",
    "EWM": "transforms.ewm",
    "Embed": "transforms.embed",
    "Expanding": "transforms.expanding",
    "ExpandingTarget": "transforms.expanding_target",
    "ExpectDrift": "expectations.drift",
    "ExpectFresh": "expectations.expectation",
    "ExpectNulls": "expectations.expectation",
    "ExpectRange": "expectations.expectation",
    "ExpectUnique": "expectations.expectation",
    "ExpectValues": "expectations.expectation",
    "Expression": "transforms.expression",
    "FeatureStore": "store",
    "FeatureStoreError": "errors",
    "Forward": "transforms.forward",
    "FrequencyEncode": "transforms.frequency",
    "FromArray": "transforms.from_array",
    "Function": "transforms.function",
    "Hash": "transforms.hash_buckets",
    "HashCross": "transforms.hash_buckets",
    "HashKFold": "dataset.folds",
    "HashSplit": "dataset.split",
    "GroupStats": "transforms.group_stats",
    "Impute": "transforms.impute",
    "Lag": "transforms.lag",
    "ListPad": "transforms.list_pad",
    "Log": "transforms.log",
    "Lookup": "transforms.lookup",
    "MinMax": "transforms.min_max",
    "OneHot": "transforms.one_hot",
    "PctChange": "transforms.changes",
    "PCA": "transforms.pca",
    "Pipeline": "transforms.pipeline",
    "PurgedKFold": "dataset.folds",
    "QuantileBin": "transforms.quantile_bin",
    "QuantileTransform": "transforms.quantile_transform",
    "Rank": "transforms.rank",
    "RobustScale": "transforms.robust_scale",
    "Rolling": "transforms.window",
    "Standardize": "transforms.standardize",
    "Table": "table",
    "TargetEncode": "transforms.target_encoding",
    "TextHash": "transforms.text_hash",
    "TfIdf": "transforms.tf_idf",
    "TimeSince": "transforms.counters",
    "TimeSplit": "dataset.split",
    "WalkForward": "dataset.folds",
    "Winsorize": "transforms.winsorize",
    "ZScore": "transforms.zscore",
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
    "EWM",
    "PCA",
    "AsOfAggregate",
    "AsOfJoin",
    "AsOfWindow",
    "Bucketize",
    "Calendar",
    "Cast",
    "Categorify",
    "Clip",
    "CrossSection",
    "CumCount",
    "Dataset",
    "Definitions",
    "Demean",
    "Diff",
    "Duration",
    "Embed",
    "Expanding",
    "ExpandingTarget",
    "ExpectDrift",
    "ExpectFresh",
    "ExpectNulls",
    "ExpectRange",
    "ExpectUnique",
    "ExpectValues",
    "Expression",
    "FeatureStore",
    "FeatureStoreError",
    "Forward",
    "FrequencyEncode",
    "FromArray",
    "Function",
    "GroupStats",
    "Hash",
    "HashCross",
    "HashKFold",
    "HashSplit",
    "Impute",
    "Lag",
    "ListPad",
    "Log",
    "Lookup",
    "MinMax",
    "OneHot",
    "PctChange",
    "Pipeline",
    "PurgedKFold",
    "QuantileBin",
    "QuantileTransform",
    "Rank",
    "RobustScale",
    "Rolling",
    "Standardize",
    "Table",
    "TargetEncode",
    "TextHash",
    "TfIdf",
    "TimeSince",
    "TimeSplit",
    "WalkForward",
    "Winsorize",
    "ZScore",
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
