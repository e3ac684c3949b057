"""The transformers' contract for those whose own modules try them in other ways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.testing import oracles
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Transformer

Rows = Sequence[Row]
Columns = Mapping[str, Sequence[Any]]


class TestRolling(TransformerContract):
    examples = 6
    tables_driven = 1
    stats = ("mean", "std", "sum", "min", "max", "count", "first", "last", "median", "q0.9")

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.Rolling, st.sampled_from(["x", "n"]), st.sampled_from([3, "5us"]),
            stats=st.just(self.stats), closed=st.sampled_from(["right", "left", "both", "none"]),
            by=st.sampled_from([None, ["g"], []]),
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        (column,), window = transformer.columns, transformer.window
        by = ["k"] if transformer.by is None else list(transformer.by)
        of_time = not isinstance(window, int)
        width, name = (5, "5us") if of_time else (window, f"{window}r")
        options = {"time": "t" if of_time else None, "width": width, "closed": transformer.closed}
        return {
            f"{column}_{stat}_{name}": oracles.rolling(rows, column, stat, by, **options)
            for stat in self.stats
        }


class TestImpute(TransformerContract):
    examples = 10
    bitwise = False

    def transformers(self) -> st.SearchStrategy[Transformer]:
        frequent = st.builds(
            fs.Impute, st.sampled_from(["n", "s", "b"]), st.just("most_frequent"),
            indicator=st.booleans(), prefix=st.just("i_"),
        )  # fmt: skip
        return frequent | st.builds(fs.Impute, st.sampled_from(["x", "n"]), prefix=st.just("i_"))

    def learnable(self, transformer: Any, rows: Rows) -> bool:
        return any(_finite(row[transformer.columns[0]]) for row in rows)

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        (column,) = transformer.columns
        values = [row[column] for row in rows]
        known = [one for one in values if _finite(one)]
        if transformer.strategy == "mean":
            fill: Any = math.fsum(known) / len(known)
        else:
            order = {one: one.encode() if isinstance(one, str) else one for one in known}
            fill = min(order, key=lambda one: (-known.count(one), order[one]))
        absent = [one is None or str(one) == "nan" for one in values]
        filled = [fill if gone else one for one, gone in zip(values, absent, strict=True)]
        return {f"i_{column}": filled} | (
            {f"i_{column}_missing": absent} if transformer.indicator else {}
        )


class TestStandardize(TransformerContract):
    examples = 10
    bitwise = False

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(fs.Standardize, st.just("x"), suffix=st.just("_std"))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        values = [row["x"] for row in rows]
        known = [one for one in values if _finite(one)]
        if not known:
            return {"x_std": [None if one is None or _finite(one) else one for one in values]}
        mean = math.fsum(known) / len(known)
        deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in known) / len(known))
        same = len(set(known)) == 1
        return {
            "x_std": [
                one
                if one is None or not _finite(one)
                else 0.0
                if same
                else (one - mean) / deviation
                for one in values
            ]
        }


class TestLearntOneHot(TransformerContract):
    examples = 10
    tables_driven = 1

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(fs.OneHot, st.sampled_from(["s", "n", "b"]), size=st.integers(1, 3))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        (column,), size = transformer.columns, transformer.size
        values = [row[column] for row in rows]
        known = [one for one in values if one is not None]
        order = {one: one.encode() if isinstance(one, str) else one for one in known}
        ranked = sorted(order, key=lambda one: (-known.count(one), order[one]))[:size]
        chosen = [*ranked, *[object()] * (size - len(ranked))]
        return {
            f"{column}_one_hot[{place}]": [int(one is not None and one == wanted) for one in values]
            for place, wanted in enumerate(chosen)
        }


def counts(texts: list[str]) -> Any:
    return [[len(one), one.count("a") + 0.5] for one in texts]


class TestEmbed(TransformerContract):
    examples = 10
    tables_driven = 1

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path))

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.Embed, st.just("s"), st.just(counts), st.just(2), batch_size=st.integers(1, 4),
            cache=st.booleans(),
        )  # fmt: skip

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        made = [None if row["s"] is None else counts([row["s"]])[0] for row in rows]
        return {
            f"s_embedded[{place}]": [math.nan if one is None else one[place] for one in made]
            for place in range(2)
        }


class TestFromArray(TransformerContract):
    examples = 10
    tables_driven = 1
    array: ClassVar[Any] = np.arange(6, dtype=np.int16).reshape(3, 2)

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "topics.npy"
        np.save(self.path, self.array)

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(lambda index: fs.FromArray(self.path, index), st.sampled_from(["n", "g"]))

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Columns:
        wanted = [row[transformer.index] for row in rows]
        held = [None if one is None or not 0 <= one < 3 else self.array[one] for one in wanted]
        return {
            f"topics[{place}]": [0 if one is None else int(one[place]) for one in held]
            for place in range(2)
        }


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value) if not isinstance(value, str) else True
