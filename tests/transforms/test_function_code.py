"""Code identity: what changes a function's fingerprint, what does not, and what is refused."""

# ruff: noqa: DTZ001 - naive timestamps are among the inputs
from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import importlib
import linecache
import logging
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import DefinitionError
from featurestore.transforms.code_identity import code_fingerprint

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the function ``feature`` of freshly written user modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written: set[str] = set()

    def loader(text: str, **others: str) -> Any:
        for name, source in {"user_code": text, **others}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
            written.add(name)
        for name in written:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        return importlib.import_module("user_code").feature

    yield loader
    for name in written:
        sys.modules.pop(name, None)


BASE = """
import math

LIMIT = 15
UNUSED = 1

def helper(x):
    return math.sqrt(x) + LIMIT

def feature(df):
    return helper(df["a"]) * 2
"""

SAME = {
    "comment": BASE.replace("def feature(df):", "# why\ndef feature(df):  # what"),
    "docstring": BASE.replace("def feature(df):", 'def feature(df):\n    """Doc."""'),
    "docstring of a helper": BASE.replace("def helper(x):", 'def helper(x):\n    "Doc."'),
    "annotations": BASE.replace("def feature(df):", "def feature(df: int) -> float:"),
    "formatting": BASE.replace('helper(df["a"]) * 2', "(helper(\n        df['a']\n    ) * 2)"),
    "unused global": BASE.replace("UNUSED = 1", "UNUSED = 2"),
    "order of definitions": BASE.replace("LIMIT = 15\nUNUSED = 1", "UNUSED = 1\nLIMIT = 15"),
    "decorator that returns the function": BASE.replace(
        "def feature", "def keep(f):\n    return f\n\n@keep\ndef feature"
    ),
}
DIFFERENT = {
    "body": BASE.replace("* 2", "* 3"),
    "operator": BASE.replace("* 2", "+ 2"),
    "string": BASE.replace('"a"', '"b"'),
    "type of a constant": BASE.replace("* 2", "* 2.0"),
    "constant of a helper": BASE.replace("LIMIT = 15", "LIMIT = 16"),
    "type of a global": BASE.replace("LIMIT = 15", "LIMIT = 15.0"),
    "body of a helper": BASE.replace("math.sqrt(x)", "math.sqrt(x + 1)"),
    "default": BASE.replace("def helper(x):", "def helper(x, y=1):"),
    "called module": BASE.replace("math.sqrt", "math.exp"),
    "argument": BASE.replace("def feature(df):", "def feature(df, x=None):"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_result_keeps_the_fingerprint(load: Load, name: str) -> None:
    before = code_fingerprint(load(BASE))
    assert SAME[name] != BASE
    assert code_fingerprint(load(SAME[name])) == before


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_may_change_the_result_changes_the_fingerprint(load: Load, name: str) -> None:
    before = code_fingerprint(load(BASE))
    assert DIFFERENT[name] != BASE
    assert code_fingerprint(load(DIFFERENT[name])) != before


def test_the_name_of_the_function_does_not_count(load: Load) -> None:
    renamed = BASE.replace("def feature", "def other") + "\nfeature = other\n"
    assert code_fingerprint(load(renamed)) == code_fingerprint(load(BASE))


def test_default_values_count_by_value(load: Load) -> None:
    text = "N = {n}\ndef feature(df, k=N, *, m={m}):\n    return k\n"
    found = {
        code_fingerprint(load(text.format(n=n, m=m))) for n, m in [(1, 2), (2, 2), (1, 3), (1, 2)]
    }
    assert len(found) == 3


def test_functions_of_other_user_modules_count(load: Load) -> None:
    direct = "from user_other import scale\ndef feature(df):\n    return scale(df)\n"
    through = "import user_other\ndef feature(df):\n    return user_other.scale(df)\n"
    for text in (direct, through):
        versions = [
            code_fingerprint(load(text, user_other=f"def scale(x):\n    return x * {k}{note}\n"))
            for k, note in [(1, ""), (2, ""), (1, "  # same")]
        ]
        assert versions[0] == versions[2]
        assert versions[0] != versions[1]


def test_classes_count_with_methods_bases_and_instances(load: Load) -> None:
    text = """
    import dataclasses
    FACTOR = {factor}
    class Base:
        def go(self, x):
            return x * FACTOR
    @dataclasses.dataclass
    class Scaler(Base):
        by: int
        def run(self, x):
            return self.go(x) + {added}
    SCALER = Scaler({by})
    def feature(df):
        return SCALER.run(df)
    """
    values = [(1, 2, 3), (9, 2, 3), (1, 9, 3), (1, 2, 9), (1, 2, 3)]
    found = [code_fingerprint(load(text.format(factor=f, added=a, by=b))) for f, a, b in values]
    assert found[0] == found[4]
    assert len(set(found)) == 4


def test_recursion(load: Load) -> None:
    text = """
    def even(n):
        return n == 0 or odd(n - {k})
    def odd(n):
        return n != 0 and even(n - 1)
    def feature(df):
        return feature(df) if even(df) else odd(df)
    """
    found = [code_fingerprint(load(text.format(k=k))) for k in (1, 2, 1)]
    assert found[0] == found[2] != found[1]


def test_a_local_function_that_calls_itself() -> None:
    def outer(k: int) -> Any:
        def inner(n: int) -> int:
            return n if n < k else inner(n - k)

        return inner

    assert code_fingerprint(outer(1)) == code_fingerprint(outer(1)) != code_fingerprint(outer(2))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True)
class Config:
    window: int


def closing_over(value: Any) -> Any:
    def feature(df: Any) -> Any:
        return value

    return feature


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2), (1, 1.0), (1, True), (0.0, -0.0), ("1", 1), (b"a", "a"), (None, False),
        ([1, 2], [2, 1]), ([1], (1,)), ({"a": 1}, {"a": 2}), ({1: 2}, {"1": 2}), ({1, 2}, {1, 3}),
        (dt.date(2020, 1, 1), dt.datetime(2020, 1, 1)), (dt.timedelta(1), dt.timedelta(2)),
        (Colour.RED, Colour.BLUE), (Config(1), Config(2)), (Path("a"), Path("b")), (len, sum),
        (functools.partial(pow, 2), functools.partial(pow, 3)), (10**30, 10**30 + 1),
        (logging.getLogger("a"), logging.getLogger("b")), (int, float), (dt, enum), (..., None),
    ],
)  # fmt: skip
def test_closed_over_values_count(one: Any, other: Any) -> None:
    assert code_fingerprint(closing_over(one)) == code_fingerprint(closing_over(one))
    assert code_fingerprint(closing_over(one)) != code_fingerprint(closing_over(other))


def test_equal_values_give_equal_fingerprints() -> None:
    for one, other in (
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({"x", "y", "z"}, {"z", "y", "x"}),
        (float("nan"), float("nan")), (Config(1), Config(1)),
    ):  # fmt: skip
        assert code_fingerprint(closing_over(one)) == code_fingerprint(closing_over(other))


def test_numpy_and_engine_values() -> None:
    import re

    import narwhals as nw
    import numpy as np

    pairs = [
        (np.array([1.0, 2.0]), np.array([1.0, 3.0])), (np.array([1]), np.array([[1]])),
        (np.int64(1), np.int32(1)), (np.add, np.subtract), (re.compile("a"), re.compile("a", re.I)),
        (nw.col("a") + 1, nw.col("a") + 2), (np.dtype("i4"), np.dtype("i8")),
    ]  # fmt: skip
    for one, other in pairs:
        assert code_fingerprint(closing_over(one)) != code_fingerprint(closing_over(other))


@pytest.mark.parametrize(
    "value", [object(), threading.Lock(), iter([1]), sys.stdout, [object()], {"a": object()}]
)
def test_values_without_identity_are_refused(value: Any) -> None:
    with pytest.raises(DefinitionError, match="'value', closed over by function") as caught:
        code_fingerprint(closing_over(value))
    assert "params" in caught.value.remedy


def test_a_data_frame_is_refused() -> None:
    import polars as pl

    with pytest.raises(DefinitionError, match="polars"):
        code_fingerprint(closing_over(pl.DataFrame({"a": [1]})))


def test_names_defined_later_are_refused(load: Load) -> None:
    feature = load("def feature(df):\n    return later(df)\n")
    with pytest.raises(DefinitionError, match="'later', which is not defined yet"):
        code_fingerprint(feature)

    def early(df: Any) -> Any:
        return not_yet

    with pytest.raises(DefinitionError, match="no value yet"):
        code_fingerprint(early)
    not_yet = 1
    assert code_fingerprint(early)


def test_code_without_source_is_refused() -> None:
    space: dict[str, Any] = {}
    exec("def feature(df):\n    return df", space)  # noqa: S102
    for function in (space["feature"], lambda df: df):
        with pytest.raises(DefinitionError) as caught:
            code_fingerprint(function)
        assert "def" in caught.value.remedy


def test_identity_neither_calls_nor_imports(load: Load) -> None:
    feature = load(
        """
        def boom(*args):
            raise SystemExit
        def feature(df):
            import user_absent
            return boom(df)
        """
    )
    assert code_fingerprint(feature)
    assert "user_absent" not in sys.modules
