"""Stored definitions as people read them."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import pytest

import featurestore as fs
from featurestore.plan.definition import FeatureDefinition
from featurestore.report.definitions import LONGEST, parameters, source


def scaled(frame: Any, factor: float = 2.0) -> Any:
    return frame["x"] * factor


def said(transformer: Any, fit_on: Any = None) -> dict[str, str]:
    return dict(parameters(FeatureDefinition(transformer, fit_on).to_json()))


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (nw.col("x") * 2 + 1, "(x * 2) + 1"),
        (2 - nw.col("x"), "2 - x"),
        ((nw.col("x") > 3) & (nw.col("y") == "a"), '(x > 3) & (y == "a")'),
        (nw.col("x").log(), "x.log"),
        (nw.col("x") / nw.col("y"), "x / y"),
    ],
)
def test_expressions_are_formulas(expression: nw.Expr, text: str) -> None:
    assert said(fs.Expression(z=expression))["definitions"].startswith(f"z = {text}")


def test_parameters_are_told_without_those_that_say_nothing() -> None:
    found = said(fs.Rolling("x", by="k", window="7d", stats=["mean", "std"]))
    assert found["columns"] == "x"
    assert found["stats"] == "mean, std"
    assert found["window"] == "7d"
    assert "prefix" not in found
    assert said(fs.Standardize("x"), ("2020-01-01", "2021-01-01"))["fit_on"] == (
        "2020-01-01, 2021-01-01"
    )


def test_functions_are_named_and_their_source_is_shown() -> None:
    definition = FeatureDefinition(fs.Function(scaled, "x", output="y", dtypes="float64")).to_json()
    assert dict(parameters(definition))["function"].endswith(":scaled")
    assert 'return frame["x"] * factor' in source(definition)
    assert source(FeatureDefinition(fs.Expression(y=nw.col("x"))).to_json()) == ""


def test_what_is_very_long_is_cut() -> None:
    values = {"transformer": {"kind": "Odd", "params": {"x": "y" * 10 * LONGEST}}}
    (found,) = parameters(values)
    assert found[0] == "x"
    assert len(found[1]) < 1.1 * LONGEST
    assert found[1].endswith(f"({10 * LONGEST:,} characters)")


def test_a_definition_that_nobody_knows_is_shown_as_it_is() -> None:
    odd = {"kind": "New", "params": {"a": {"$what": {"b": [1, None]}}, "c": "\ud800", "d": [[]]}}
    assert dict(parameters({"transformer": odd}))["a"] == '{"b": [1, null]}'
    assert source({"transformer": odd}) == ""
