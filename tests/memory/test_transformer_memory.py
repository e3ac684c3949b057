"""What transformers take is what their models say: measured <= projected <= 2 x measured.

Each measurement runs in a process of its own, on partitions that are narrow, wide, of strings, of lists,
and whose keys are skewed or all different. Models bound what is possible; so the lower side is held where
data reach that bound: a state of every row, rows about as wide as the widest.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import narwhals as nw
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.errors import InvalidInputError
from featurestore.testing.memory_contract import MIB, SOURCE, Case, Finding, find
from featurestore.testing.memory_shapes import SHAPES, shape_schema, shape_table
from featurestore.testing.memory_tasks import find_tasks
from featurestore.transforms.base import Transformer
from featurestore.transforms.calendar import PARTS
from featurestore.transforms.extent import Extent
from featurestore.transforms.selectors import matching

FIXED: Final = 16 * MIB
"""What a small call may take beyond its model: arenas and threads' stacks of the libraries."""
LARGE: Final = 32 * MIB
"""From here on a model may say at most twice what is taken."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's high-water mark")

ROWS: Final = {
    "narrow": 2_400_000, "skewed": 2_400_000, "distinct": 1_600_000,
    "wide": 60_000, "strings": 900_000, "lists": 500_000,
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A case; ``tight``: the data reach the bounds, so that the lower side is held as well."""

    transformer: Transformer
    shape: str
    verb: str = "apply"
    tight: bool = True

    def __str__(self) -> str:
        kind = type(self.transformer).__name__
        strategy = getattr(self.transformer, "strategy", "")
        frame = getattr(self.transformer, "frame", "")
        return "-".join(one for one in (kind, strategy, frame, self.shape, self.verb) if one)


def ratio_of(df: Any) -> Any:
    """Return a column that takes a few others on the way."""
    return (df["x"] * 2 + df["y"]) / (df["x"] - df["n"])


WIDE: Final = matching("x[0-9]+")
QUICK: Final = (
    Held(fs.Rolling("x", "1h", ["mean", "std", "count"]), "narrow"),
    Held(fs.Rolling("x", 5, ["mean"]), "distinct"),
    Held(fs.Rolling("x", "7d", ["max"]), "narrow", "summarize"),
    Held(fs.Rolling(WIDE, "1h", ["mean"]), "wide"),
    Held(fs.Lag(["s", "c"]), "strings"),
    Held(fs.Lag("v"), "lists"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}, max_age="30d"), "distinct"),
    Held(fs.AsOfJoin(SOURCE, ["s"], by={"k": "k"}), "strings"),
    Held(fs.Lookup(SOURCE, ["v"], by={"k": "k"}), "lists"),
    Held(fs.CrossSection("x", ["rank", "zscore"], by="k"), "distinct"),
    Held(fs.Standardize(), "wide"),
    Held(fs.Impute(["x", "n"]), "narrow"),
    Held(fs.Categorify("k"), "distinct"),
    Held(fs.Calendar("t", PARTS), "narrow"),
    Held(fs.Expression(a=nw.col("s").str.to_uppercase()), "strings"),
    Held(fs.Function(ratio_of, ["x", "n", "y"], "made", dtypes="float64"), "narrow"),
)
FULL: Final = (
    *(
        Held(fs.Rolling("x", window, ["mean", "std", "count"]), shape)
        for window in ("1h", "7d", 5)
        for shape in ("narrow", "skewed", "distinct")
    ),
    *(Held(fs.Rolling("x", "7d", ["max"]), shape, "summarize") for shape in ("skewed", "distinct")),
    Held(fs.Rolling("x", 5, ["max"]), "distinct", "summarize"),
    Held(fs.Rolling("x", 5, ["max"]), "narrow", "summarize", tight=False),
    *(Held(fs.Lag(["x", "n"], [1, 3]), shape) for shape in ("narrow", "skewed", "distinct")),
    Held(fs.Lag(WIDE), "wide"),
    Held(fs.Lag(["x", "n"]), "distinct", "summarize"),
    Held(fs.Lag(["s", "c"]), "strings", "summarize", tight=False),
    Held(fs.Lag("v"), "lists", "summarize", tight=False),
    *(
        Held(kind(SOURCE, ["x"], by={"k": "k"}), shape)
        for kind in (fs.AsOfJoin, fs.Lookup)
        for shape in ("narrow", "skewed", "distinct")
    ),
    Held(fs.AsOfJoin(SOURCE, ["v"], by={"k": "k"}), "lists"),
    Held(fs.AsOfJoin(SOURCE, WIDE, by={"k": "k"}), "wide"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}), "distinct", "summarize"),
    Held(fs.AsOfJoin(SOURCE, ["s"], by={"k": "k"}), "strings", "summarize", tight=False),
    Held(fs.Lookup(SOURCE, ["s"], by={"k": "k"}), "strings"),
    Held(fs.Lookup(SOURCE, WIDE, by={"k": "k"}), "wide"),
    *(Held(fs.CrossSection(["x", "n"], ["rank", "zscore"]), one) for one in ("narrow", "skewed")),
    Held(fs.CrossSection(WIDE, ["rank"]), "wide"),
    Held(fs.Standardize(["x", "n", "y"]), "narrow"),
    Held(fs.Standardize(["x", "n", "y"]), "narrow", "summarize"),
    Held(fs.Impute(), "wide"),
    Held(fs.Impute(["x", "y"], indicator=True), "narrow"),
    Held(fs.Impute(["x"]), "narrow", "summarize"),
    Held(fs.Impute("x", strategy="constant", value=0.0), "narrow"),
    Held(fs.Impute(["s", "c"], strategy="constant", value="unknown"), "strings"),
    Held(fs.Impute("c", strategy="most_frequent"), "strings"),
    Held(fs.Impute("k", strategy="most_frequent"), "distinct", "summarize"),
    Held(fs.Categorify("k"), "narrow"),
    Held(fs.Categorify("k"), "distinct", "summarize"),
    Held(fs.Categorify("k"), "skewed", "summarize", tight=False),
    Held(fs.Categorify("s"), "strings"),
    Held(fs.Categorify("s"), "strings", "summarize"),
    Held(fs.Calendar("t", ("month", "week"), cyclical=True, timezone="Asia/Kolkata"), "narrow"),
    Held(fs.Calendar("t", "week"), "narrow"),
    Held(fs.Expression(a=nw.col("x") * nw.col("n") + nw.col("y"), b=nw.col("x") > 0), "narrow"),
    Held(
        fs.Expression(**{f"o{one}": nw.col(f"x{one:03d}") * 2 for one in range(500)}), "wide"
    ),
    *(
        Held(fs.Function(ratio_of, ["x", "n", "y"], "made", frame, dtypes="float64"), "narrow")
        for frame in ("polars", "pandas")
    ),
    Held(fs.Function(ratio_of, ["x", "n", "y"], "made", dtypes="float64", lookback="7d"), "narrow"),
)  # fmt: skip


def held(one: Held, rows: int, folder: Path) -> Finding:
    found = find(Case(one.transformer, one.shape, rows, one.verb, rows // 2), folder)
    print(f"{one}: {found}")
    assert found.result <= found.result_bound, "the output or state is larger than its model"
    return found


def hold(one: Held, rows: int, folder: Path) -> None:
    found = held(one, rows, folder)
    assert found.measured <= found.projected
    if one.tight and found.measured >= LARGE:
        assert found.projected <= 2 * found.measured


@linux
@pytest.mark.parametrize("one", QUICK, ids=str)
def test_measured_within_projected_and_that_within_twice(one: Held, tmp_path: Path) -> None:
    hold(one, ROWS[one.shape] // 2, tmp_path)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("one", FULL, ids=[f"{number}-{one}" for number, one in enumerate(FULL)])
def test_every_transformer_and_shape(one: Held, tmp_path: Path) -> None:
    hold(one, ROWS[one.shape], tmp_path)


TASKS: Final = (
    (fs.Rolling("x", "1h", ["mean", "std", "count"]), "narrow", 1_200_000),
    (fs.Lag("x"), "distinct", 1_600_000),
    (fs.Lag("v"), "lists", 400_000),
    (fs.AsOfJoin(SOURCE, ["s"], by={"k": "k"}, prefix="other_"), "strings", 600_000),
    (fs.Rolling(WIDE, "1h", ["max"]), "wide", 60_000),
    (fs.Expression(a=nw.col("s").str.to_uppercase()), "strings", 600_000),
)


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("transformer", "shape", "rows"),
    TASKS,
    ids=[type(one).__name__ + "-" + s for one, s, _ in TASKS],
)
def test_whole_tasks_stay_within_what_is_projected(
    transformer: Transformer, shape: str, rows: int, tmp_path: Path
) -> None:
    found = find_tasks(transformer, shape, rows, tmp_path)
    print(found)
    assert found
    for one in found:
        assert one.measured <= one.projected
    applied = found[-1]
    assert applied.measured >= LARGE
    assert applied.projected <= 2 * applied.measured


@linux
def test_a_small_partition_takes_little_more_than_its_model(tmp_path: Path) -> None:
    one = Held(fs.Rolling("x", "1h", ["mean"]), "narrow")
    found = held(one, 20_000, tmp_path)
    assert found.measured <= found.projected + FIXED


# --- models alone ---------------------------------------------------------------------------------


def transformers() -> list[Any]:
    found = {str(one): one for one in (*QUICK, *FULL)}
    return [pytest.param(one, id=name) for name, one in sorted(found.items())]


def extent_of(one: Held, rows: int, factor: int = 1) -> Extent:
    sizes = {f.name: 8 * rows * factor for f in shape_schema(one.shape)}
    return Extent(
        rows * factor, sizes, 200, 8 * rows * factor, rows * factor, 8 * rows * factor, 200
    )


def models(one: Held, extent: Extent) -> list[int]:
    schema = shape_schema(one.shape, {SOURCE: shape_schema(one.shape)})
    verbs = ("memory", "summarize_memory", "state_bytes", "output_bytes")
    return [getattr(one.transformer, verb)(schema, extent) for verb in verbs]


@pytest.mark.parametrize("one", transformers())
def test_models_of_nothing_and_of_huge_partitions(one: Held) -> None:
    nothing = models(one, Extent(0))
    assert all(type(size) is int and 0 <= size <= MIB for size in nothing)
    huge = models(one, extent_of(one, 10**15))
    assert all(type(size) is int and size >= 0 for size in huge)


@pytest.mark.parametrize("one", transformers())
def test_models_grow_with_the_partition(one: Held) -> None:
    small, large = models(one, extent_of(one, 10_000)), models(one, extent_of(one, 10_000, 7))
    # Sizes are rounded per column.
    assert all(a <= b <= 7 * a + 64 * 2**10 for a, b in zip(small, large, strict=True))


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_shapes_have_their_rows_in_order_of_time(shape: str) -> None:
    table = shape_table(shape, 50, start=8)
    times = table["t"].cast(pa.int64()).to_pylist()
    assert table.num_rows == 50
    assert times == sorted(times)
    assert times[0] == 2_000_000
    assert table.equals(shape_table(shape, 50, start=8))
    assert shape_schema(shape).names == tuple(table.column_names)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="there is no shape"):
        shape_table("round", 1)
