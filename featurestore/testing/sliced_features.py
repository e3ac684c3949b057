"""A table with one partition far larger than the others, and features that can be built in its slices.

The functions are module-level, so that a fresh process finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.transforms.base import Transformer
from featurestore.transforms.expression import Expression
from featurestore.transforms.forward import Forward
from featurestore.transforms.function import Function
from featurestore.transforms.lag import Lag
from featurestore.transforms.standardize import Standardize
from featurestore.transforms.window import Rolling


def rows(counts: Sequence[int], wide: int, seed: int = 0) -> pa.Table:
    """Return rows of as many times as there are counts, in time order.

    Columns: ``t`` integer, ``x y z w`` float64, ``text`` short strings, one of them in the middle of
    ``wide`` bytes.

    Parameters
    ----------
    counts : sequence of int
        Rows of each time.
    wide : int
    seed : int
    """
    random = np.random.default_rng(seed)
    total = sum(counts)
    texts = np.char.add("word ", random.integers(0, 99, total).astype(str)).astype(object)
    texts[total // 2] = "x" * wide
    columns: dict[str, Any] = {"t": np.repeat(np.arange(len(counts)), counts)}
    columns |= {name: random.random(total) for name in "xyzw"}
    return pa.table({**columns, "text": pa.array(texts, pa.string())})


def vector(frame: Any) -> Any:
    return np.stack([frame[name].to_numpy() for name in "xyzw"], axis=1).astype(np.float32)


FEATURES: Final[Mapping[str, Callable[[], Transformer]]] = {
    "numbers": lambda: Expression(
        sum=nw.col("x") * nw.col("y") + nw.col("z"), difference=nw.col("w") - nw.col("x")
    ),
    "tensor": lambda: Function(vector, ["x", "y", "z", "w"], "vector", shape=(4,)),
    "learnt": lambda: Standardize(["x", "y", "z"], prefix="s_"),
    "lagged": lambda: Lag(["x", "y"], [1, 3], by=[]),
    "rolled": lambda: Rolling("x", 4, stats=["sum"], by=[], closed="left"),
    "ahead": lambda: Forward(["z", "w"], 2, stats=["value", "sum"], by=[]),
    "texts": lambda: Expression(length=nw.col("text").str.len_chars()),
}
OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {"learnt": {"fit_on": "all"}}
