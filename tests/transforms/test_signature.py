"""Arguments of other types than a definition declares are refused when it is made."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurestore as fs
from featurestore.errors import FeatureStoreError
from featurestore.transforms.base import Transformer, transformer_from_spec

STRANGE: list[Any] = [
    None, True, 0, -1, 2**63, 10**400, 0.0, float("nan"), float("inf"), "", "1d", b"x", [], [None],
    [1], ["x", 1], [[]], {}, {1: 2}, {"v": ""}, np.int64(3), np.float32(0.5), np.array([1, 2]),
    np.array(1), np.bool_(True), dt.timedelta(days=1), dt.date(2024, 1, 1), Decimal("1.5"),
    complex(1, 2), {"a"}, "\ud800", ["\ud800"], range(3), object(), int, fs.numeric(),
]  # fmt: skip


def encoder(texts: list[str]) -> np.ndarray:
    return np.zeros((len(texts), 2), dtype="float32")


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("arrays") / "a.npy"
    np.save(path, np.zeros((2, 2), dtype="float32"))
    return path


MADE: dict[str, dict[str, Any]] = {
    "AsOfAggregate": {"table": "o", "columns": "v", "window": "1d"},
    "AsOfJoin": {"table": "o", "columns": "v"},
    "AsOfWindow": {"table": "o", "columns": "v", "n": 2},
    "Bucketize": {"columns": "v", "boundaries": [1]},
    "Calendar": {"column": "t"},
    "Cast": {},
    "Categorify": {},
    "Clip": {"columns": "v", "lower": 0},
    "CrossSection": {"columns": "v"},
    "CumCount": {},
    "Demean": {},
    "Diff": {"columns": "v"},
    "EWM": {"columns": "v", "half_life": 2.0},
    "Embed": {"column": "k", "encoder": encoder, "size": 2},
    "Expanding": {"columns": "v"},
    "ExpandingTarget": {"columns": "k", "label": "v"},
    "Forward": {"columns": "v", "ahead": 1},
    "FrequencyEncode": {},
    "FromArray": {"path": None, "index": "i"},
    "Function": {"fn": encoder, "inputs": ["v"]},
    "GroupStats": {"by": "k"},
    "Hash": {},
    "HashCross": {"columns": ["k", "v"]},
    "Impute": {"columns": "v"},
    "Lag": {"columns": "v"},
    "ListPad": {"column": "l", "length": 3},
    "Log": {},
    "Lookup": {"table": "o", "columns": "v"},
    "MinMax": {},
    "OneHot": {"columns": "k", "categories": ["a"]},
    "PCA": {},
    "PctChange": {"columns": "v"},
    "QuantileBin": {},
    "QuantileTransform": {},
    "Rank": {},
    "RobustScale": {},
    "Rolling": {"columns": "v", "window": 3},
    "Standardize": {},
    "TargetEncode": {"columns": "k", "targets": "v"},
    "TextHash": {"column": "k"},
    "TfIdf": {"column": "k"},
    "TimeSince": {},
    "Winsorize": {},
    "ZScore": {},
}


def test_every_transformer_is_tried() -> None:
    kinds = [getattr(fs, name) for name in fs.__all__]
    found = {
        one.__name__ for one in kinds if isinstance(one, type) and issubclass(one, Transformer)
    }
    assert found == {*MADE, "Expression"}


@pytest.mark.parametrize("name", sorted(MADE))
def test_an_argument_is_taken_whole_or_refused_with_its_name(name: str, array: Path) -> None:
    """Whatever stands in an argument: a definition that can be stored, or an error of the package."""
    kind = getattr(fs, name)
    given = {key: array if key == "path" else value for key, value in MADE[name].items()}
    made = kind(**given)
    assert transformer_from_spec(json.loads(json.dumps(made.spec()))) == made
    names = [one for one in kind.__init__.__annotations__ if one != "return"]
    remedies = list[str]()
    for parameter in names:
        for value in STRANGE:
            try:
                made = kind(**{**given, parameter: value})
            except FeatureStoreError as error:
                remedies.append(error.remedy)
            else:
                stored = transformer_from_spec(json.loads(json.dumps(made.spec())))
                assert stored.fingerprint() == made.fingerprint()
                assert isinstance(hash(made), int)
    assert remedies
    assert all(remedies)


def test_what_is_refused_says_what_was_given_and_what_to_give() -> None:
    with pytest.raises(FeatureStoreError, match="Lag has periods='3'") as refused:
        fs.Lag("v", "3")  # type: ignore[arg-type]
    assert "whole numbers" in refused.value.remedy
    with pytest.raises(FeatureStoreError, match=r"Rolling has min_count=np.int64\(2\)"):
        fs.Rolling("v", 3, min_count=np.int64(2))  # type: ignore[arg-type]
    with pytest.raises(FeatureStoreError, match="Hash has buckets=an integer of"):
        fs.Hash("v", 10**400)
    assert fs.Bucketize("v", np.array([0.5, 1.5])).boundaries == (0.5, 1.5)  # type: ignore[arg-type]


def test_one_argument_too_many_is_no_argument_of_another_name() -> None:
    with pytest.raises(TypeError, match="2 positional arguments but 3"):
        fs.MinMax("x", (0, 1))  # type: ignore[call-arg, arg-type]
