"""Values near the largest float64: refused or right, and without warnings."""

from __future__ import annotations

import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.errors import DefinitionError

HUGE = pa.table({"x": [1.7e308, -1.7e308, 1.7e308, 0.0], "c": ["a", "a", "b", "b"]})


@pytest.mark.parametrize(
    "step",
    [fs.Impute("x"), fs.Standardize("x"), fs.Winsorize("x", deviations=2.0), fs.PCA("x", 1)],
    ids=lambda one: type(one).__name__,
)
def test_a_statistic_that_overflows_is_refused(step: fs.Impute) -> None:
    with pytest.raises(DefinitionError, match=r"of columns \['x'\] exceeds float64"):
        fs.Pipeline(step).fit(HUGE)


def test_extremes_need_no_sum() -> None:
    scaled = fs.Pipeline(fs.MinMax("x")).fit(HUGE).transform(HUGE)
    assert scaled["x"].to_pylist() == [1.0, 0.0, 1.0, 0.5]


def test_target_means_that_are_finite_are_found() -> None:
    table = pa.table({"x": [1.7e308, 1.7e308, 1.7e308, 1.7e308], "c": ["a", "a", "a", "b"]})
    encode = fs.TargetEncode("c", "x", smoothing=1.0, fold_by="x")
    out = fs.Pipeline(encode).fit(table).transform(table)
    assert out["c_x_mean"].to_pylist() == pytest.approx([1.7e308] * 4)
