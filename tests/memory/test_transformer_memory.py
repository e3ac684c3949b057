"""What transformers take is what their models say: measured <= projected <= 2 x measured.

Each measurement runs in a process of its own, on partitions that are narrow, wide, of strings, of lists,
and whose keys are skewed or all different; of a verb by itself, and of a build's whole tasks.

One class is held to another upper bound: a summary that keeps rows or values, of data with far fewer
groups, values, or rows within the window than rows. Before it is computed, nothing tells how few: what is
recorded of a partition (rows, the bytes of each column, the widest row) is the same if each row is a group of
its own. So such data have a twin, the same in all that is recorded, of which everything is kept; and the
one projection, which both share, is at most twice what the twin takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import narwhals as nw
import numpy as np
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.errors import InvalidInputError
from featurestore.plan.projection import SUMMARIZE
from featurestore.testing.memory_contract import MIB, SOURCE, Case, Finding, find
from featurestore.testing.memory_shapes import (
    SHAPES,
    TWINS,
    shape_schema,
    shape_table,
)
from featurestore.testing.memory_tasks import find_tasks, make_tables
from featurestore.transforms.base import Scope, Transformer
from featurestore.transforms.calendar import PARTS
from featurestore.transforms.extent import Extent
from featurestore.transforms.running import Running
from featurestore.transforms.selectors import matching
from featurestore.units import Duration

FIXED: Final = 16 * MIB
"""What a small call may take beyond its model: arenas and threads' stacks of the libraries."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's high-water mark")

ROWS: Final = {
    "narrow": 2_400_000, "skewed": 2_400_000, "late": 1_600_000, "distinct": 1_600_000,
    "wide": 60_000, "strings": 900_000, "lists": 500_000,
}  # fmt: skip
ROWS_OF_TASKS: Final = {
    "narrow": 1_200_000, "skewed": 1_200_000, "late": 1_200_000, "distinct": 1_200_000,
    "wide": 60_000, "strings": 600_000, "words": 600_000, "lists": 400_000,
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A case."""

    transformer: Transformer
    shape: str
    verb: str = "apply"

    @property
    def twin(self) -> Held:
        """The case that no recorded number tells from this one, and that keeps every row or value.

        Itself, if nothing is kept, or everything is.
        """
        one, schema = self.transformer, shape_schema(self.shape, {SOURCE: shape_schema(self.shape)})
        if one.scope is Scope.NONE or one.state_bytes(schema, extent_of(self, 100_000)) < MIB:
            return self
        if isinstance(one, fs.Rolling) and not isinstance(one.window, int):
            # Of time: seven days are all there are.
            return replace(self, transformer=replace(one, window="7d"))
        if isinstance(one, fs.Forward) and not isinstance(one.ahead, int):
            # Or all there are in the second partition, and some windows of the first are complete.
            ahead = Duration.parse("42h" if self.verb == "task" else "7d")
            shorter = cast("Duration", one.ahead).nanoseconds < ahead.nanoseconds
            return replace(self, transformer=replace(one, ahead=ahead)) if shorter else self
        if isinstance(one, fs.TfIdf):
            return replace(self, shape="distinct-words")
        return replace(self, shape=TWINS.get(self.shape, self.shape))

    @property
    def as_one_group(self) -> Held | None:
        """The case with all rows in one group, where nobody knows whether they are; None elsewhere.

        Groups are worked on some at a time, which takes far less.
        """
        if not isinstance(self.transformer, Running | fs.Rolling):
            return None
        return replace(self, transformer=replace(cast("Any", self.transformer), by=[]))

    def __str__(self) -> str:
        kind = type(self.transformer).__name__
        strategy = getattr(self.transformer, "strategy", "")
        frame = getattr(self.transformer, "frame", "")
        return "-".join(one for one in (kind, strategy, frame, self.shape, self.verb) if one)


def ratio_of(df: Any) -> Any:
    """Return a column that takes a few others on the way: once and a half what the function sees.

    What a function takes nobody knows; a model sets aside twice what it sees.
    """
    double = df["x"] * 2
    above = double + df["y"]
    below = df["x"] - df["n"]
    return above / below


def measures(texts: Any) -> Any:
    """Return eight numbers of each text: what an encoder gives, without what it takes."""
    out = np.empty((len(texts), 8), dtype=np.float32)
    for i, one in enumerate(texts):
        out[i] = len(one)
    return out


WIDE: Final = matching("x[0-9]+")
QUICK: Final = (
    Held(fs.Rolling("x", "1h", stats=["mean", "std", "count"]), "narrow"),
    Held(fs.Rolling("x", 5, stats=["mean"]), "distinct"),
    Held(fs.Rolling("x", "7d", stats=["max"]), "narrow", "summarize"),
    Held(fs.Rolling(WIDE, "1h", stats=["mean"]), "wide"),
    Held(fs.Rolling("x", "1h", stats=["median"]), "narrow"),
    Held(fs.Diff(["x", "n"], [1, 3]), "narrow"),
    Held(fs.Expanding("x", ["mean", "std"]), "narrow"),
    Held(fs.EWM("x", 20, stats=["std"]), "distinct", "summarize"),
    Held(fs.CumCount(), "narrow"),
    Held(fs.ExpandingTarget("k", "x"), "distinct"),
    Held(fs.Lag(["s", "c"]), "strings"),
    Held(fs.Lag("v"), "lists"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}, max_age="30d"), "distinct"),
    Held(fs.AsOfJoin(SOURCE, ["s"], by={"k": "k"}), "strings"),
    Held(fs.AsOfAggregate(SOURCE, "x", "1h", stats="max", by={"k": "k"}, available="a"), "late"),
    Held(fs.AsOfWindow(SOURCE, ["x", "n"], 4, by={"k": "k"}), "narrow"),
    Held(fs.Lookup(SOURCE, ["v"], by={"k": "k"}), "lists"),
    Held(fs.CrossSection("x", ["rank", "zscore"], by="k"), "distinct"),
    Held(fs.Rank("x", "dense", by="k", ascending=False), "distinct"),
    Held(fs.Winsorize("x", deviations=2.0, within="time"), "narrow"),
    Held(fs.Clip(["x", "n"], -1, 1), "narrow"),
    Held(fs.Bucketize("x", [-1.0, 0.0, 1.0]), "narrow"),
    Held(fs.Hash("k", 1000), "distinct"),
    Held(fs.OneHot("c", ["c1", "c2"]), "strings"),
    Held(fs.ListPad("v", 50), "lists"),
    Held(fs.TextHash("s", 1000, length=40), "strings"),
    Held(fs.Standardize(), "wide"),
    Held(fs.MinMax(["x", "n"]), "narrow"),
    Held(fs.RobustScale(["x", "n"]), "narrow", "summarize"),
    Held(fs.QuantileTransform(["x", "y"], distribution="normal"), "narrow"),
    Held(fs.QuantileBin(["x", "n"]), "narrow"),
    Held(fs.Winsorize(["x", "n"]), "narrow"),
    Held(fs.PCA(["x", "n", "y"]), "narrow"),
    Held(fs.Impute(["x", "n"]), "narrow"),
    Held(fs.Categorify("k"), "distinct"),
    Held(fs.FrequencyEncode("k"), "distinct"),
    Held(fs.TargetEncode("k", "x"), "distinct"),
    Held(fs.GroupStats("x", by="k", stats=["mean", "std"]), "distinct"),
    Held(fs.Calendar("t", parts=PARTS), "narrow"),
    Held(fs.Expression(a=nw.col("s").str.to_uppercase()), "strings"),
    Held(fs.Function(ratio_of, ["x", "n", "y"], "made", dtypes="float64"), "narrow"),
    Held(fs.Embed("s", measures, 8, cache=False), "strings"),
    Held(fs.Forward("x", "1h", stats=["return", "mean"]), "narrow"),
    Held(fs.Forward(["s", "c"], 5), "strings"),
    Held(fs.PctChange("x"), "distinct"),
    Held(fs.TimeSince(), "skewed"),
    Held(fs.Demean("x", by="k"), "distinct"),
    Held(fs.ZScore("x"), "narrow"),
    Held(fs.Log("x"), "narrow"),
    Held(fs.Cast(["x", "n"], "float32"), "narrow"),
    Held(fs.HashCross(["k", "n"], 1000), "skewed"),
)
FULL: Final = (
    *(
        Held(fs.Rolling("x", window, stats=["mean", "std", "count"]), shape)
        for window in ("1h", "7d", 5)
        for shape in ("narrow", "skewed", "distinct")
    ),
    *(Held(fs.Rolling("x", "7d", stats=["max"]), shape, "summarize") for shape in ("skewed", "distinct")),
    Held(fs.Rolling("x", 5, stats=["max"]), "distinct", "summarize"),
    Held(fs.Rolling("x", 5, stats=["max"]), "narrow", "summarize"),
    Held(fs.Rolling("x", 50, stats=["q0.9", "median"]), "skewed"),
    Held(fs.Rolling("x", "7d", stats=["median"]), "distinct"),
    Held(fs.Diff(["x", "n"]), "distinct"),
    Held(fs.Diff(WIDE), "wide"),
    Held(fs.PctChange("x"), "narrow"),
    Held(fs.Expanding("x", ["mean", "std"]), "distinct"),
    Held(fs.Expanding("x", ["min", "last"], lag="1h"), "skewed"),
    Held(fs.Expanding(WIDE), "wide"),
    Held(fs.Expanding("x", ["mean", "std"]), "narrow", "summarize"),
    Held(fs.Expanding("n", ["sum", "max"]), "narrow", "summarize"),
    Held(fs.EWM("x", 20, stats=["mean", "std"]), "narrow"),
    Held(fs.EWM("x", "1h", adjust=False), "skewed"),
    Held(fs.EWM("x", 20, stats=["std"], adjust=False), "distinct"),
    Held(fs.EWM("x", "1h", stats=["mean"]), "narrow", "summarize"),
    Held(fs.CumCount(), "strings"),
    Held(fs.CumCount(), "strings", "summarize"),
    Held(fs.TimeSince(), "narrow"),
    Held(fs.TimeSince(), "distinct"),
    Held(fs.TimeSince(), "distinct", "summarize"),
    Held(fs.ExpandingTarget("k", "n"), "narrow"),
    Held(fs.CumCount(by=[]), "narrow"),
    Held(fs.ExpandingTarget("k", "x", lag="1h"), "skewed"),
    Held(fs.ExpandingTarget("k", "x"), "distinct", "summarize"),
    *(Held(fs.Lag(["x", "n"], [1, 3]), shape) for shape in ("narrow", "skewed", "distinct")),
    Held(fs.Lag(WIDE), "wide"),
    Held(fs.Lag(["x", "n"]), "distinct", "summarize"),
    Held(fs.Lag(["s", "c"]), "strings", "summarize"),
    Held(fs.Lag("v"), "lists", "summarize"),
    *(
        Held(fs.Forward("x", ahead, stats=["value", "difference", "std", "count"]), shape)
        for ahead in ("1h", "7d", 5)
        for shape in ("narrow", "skewed", "distinct")
    ),
    Held(fs.Forward(WIDE, 1, stats="return"), "wide"),
    Held(fs.Forward("v", 2), "lists"),
    Held(fs.Forward("s", "1h"), "strings"),
    Held(fs.Forward("x", "7d"), "narrow", "summarize"),
    Held(fs.Forward(["x", "n"], 5), "distinct", "summarize"),
    Held(fs.Forward(["s", "c"], 5), "strings", "summarize"),
    *(
        Held(kind(SOURCE, ["x"], by={"k": "k"}), shape)
        for kind in (fs.AsOfJoin, fs.Lookup)
        for shape in ("narrow", "skewed", "distinct")
    ),
    Held(fs.AsOfJoin(SOURCE, ["v"], by={"k": "k"}), "lists"),
    Held(fs.AsOfJoin(SOURCE, WIDE, by={"k": "k"}), "wide"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}), "distinct", "summarize"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}, available="a"), "late"),
    Held(fs.AsOfJoin(SOURCE, ["x"], by={"k": "k"}, available="a"), "late", "summarize"),
    Held(fs.Lookup(SOURCE, ["x"], by={"k": "k"}, lag="0s"), "narrow"),
    *(
        Held(fs.AsOfAggregate(SOURCE, "x", "7d", stats=["mean", "std", "count"], by={"k": "k"}), shape)
        for shape in ("narrow", "skewed", "distinct")
    ),
    Held(fs.AsOfWindow(SOURCE, "x", 8, by={"k": "k"}, length=True), "distinct"),
    Held(fs.AsOfWindow(SOURCE, "x", 8, by={"k": "k"}, available="a"), "late"),
    Held(fs.AsOfWindow(SOURCE, "x", 4, by={"k": "k"}), "distinct", "summarize"),
    Held(fs.AsOfJoin(SOURCE, ["s"], by={"k": "k"}), "strings", "summarize"),
    Held(fs.Lookup(SOURCE, ["s"], by={"k": "k"}), "strings"),
    Held(fs.Lookup(SOURCE, WIDE, by={"k": "k"}), "wide"),
    *(Held(fs.CrossSection(["x", "n"], ["rank", "zscore"]), one) for one in ("narrow", "skewed")),
    Held(fs.CrossSection(WIDE, ["rank"]), "wide"),
    Held(fs.Rank(["x", "n"]), "narrow"),
    Held(fs.ZScore(["x", "n"]), "skewed"),
    Held(fs.ZScore(WIDE), "wide"),
    Held(fs.Demean(["x", "y"], by="k"), "narrow"),
    Held(fs.Clip(WIDE, -1, 1), "wide"),
    Held(fs.Log(["x", "n", "y"], "signed"), "narrow"),
    Held(fs.Bucketize(["x", "n"], [-1.0, 0.0, 1.0]), "narrow"),
    Held(fs.Cast(["x", "n", "y"], "float32", overflow="null"), "narrow"),
    Held(fs.Cast("x", "int8", overflow="null"), "narrow"),
    Held(fs.Hash(["s", "c"], 1000), "strings"),
    Held(fs.HashCross(["k", "n"], 1000), "narrow"),
    Held(fs.HashCross(["s", "c"], 1000), "strings"),
    Held(fs.OneHot("c", ["c1", "c2"], tensor=True), "strings"),
    Held(fs.OneHot("n", list(range(8))), "narrow"),
    Held(fs.ListPad("v", 20, keep="last"), "lists"),
    Held(fs.TextHash("s", 60), "strings"),
    Held(fs.TextHash("s", 1000, length=100, unit="characters", ngrams=(2, 3)), "strings"),
    Held(fs.Winsorize(["x", "y"], within="time", by="k"), "distinct"),
    Held(fs.QuantileBin(["x", "n"], within="time"), "narrow"),
    Held(fs.QuantileBin(["x", "n"], within="time", by="k"), "distinct"),
    Held(fs.Standardize(["x", "n", "y"]), "narrow"),
    Held(fs.Standardize(["x", "n", "y"]), "narrow", "summarize"),
    Held(fs.MinMax(), "wide"),
    Held(fs.RobustScale("x"), "narrow"),
    Held(fs.RobustScale(WIDE), "wide", "summarize"),
    Held(fs.QuantileBin("y"), "narrow", "summarize"),
    Held(fs.Winsorize("x", deviations=3.0), "narrow", "summarize"),
    Held(fs.PCA(["x", "n", "y"], 2, tensor=True), "narrow"),
    Held(fs.PCA(["x", "n", "y"]), "narrow", "summarize"),
    Held(fs.PCA(WIDE, 4), "wide"),
    Held(fs.PCA(WIDE, 4), "wide", "summarize"),
    Held(fs.Impute(["x", "n"], "median"), "narrow"),
    Held(fs.Impute(), "wide"),
    Held(fs.Impute(["x", "y"], indicator=True), "narrow"),
    Held(fs.Impute(["x"]), "narrow", "summarize"),
    Held(fs.Impute("x", strategy="constant", fill_value=0.0), "narrow"),
    Held(fs.Impute(["s", "c"], strategy="constant", fill_value="unknown"), "strings"),
    Held(fs.Impute("c", strategy="most_frequent"), "strings"),
    Held(fs.Impute("k", strategy="most_frequent"), "distinct", "summarize"),
    Held(fs.Categorify("k"), "narrow"),
    Held(fs.Categorify("k"), "distinct", "summarize"),
    Held(fs.Categorify("k"), "skewed", "summarize"),
    Held(fs.Categorify("s"), "strings"),
    Held(fs.Categorify("s"), "strings", "summarize"),
    Held(fs.FrequencyEncode("s", share=True), "strings"),
    Held(fs.TargetEncode("k", ["x", "n"]), "distinct", "summarize"),
    Held(fs.TargetEncode(["k", "n"], "x", jointly=True), "narrow", "summarize"),
    Held(fs.TargetEncode(["k", "n"], "x", jointly=True), "narrow"),
    Held(fs.TargetEncode("k", "x"), "skewed"),
    Held(fs.GroupStats("x", by="k", stats=["mean", "std"]), "distinct", "summarize"),
    Held(fs.GroupStats(["x", "n"], by="k", stats=["min", "max", "count"]), "distinct", "summarize"),
    Held(fs.GroupStats("x", by="k"), "skewed"),
    Held(fs.TfIdf("s", 64), "strings"),
    Held(fs.OneHot("k", size=8), "narrow"),
    Held(fs.Categorify(["k", "n"], shared=[["k"]], oov_buckets=8, max_size=500), "narrow"),
    Held(fs.GroupStats("x", by=["k", "n"]), "narrow"),
    Held(fs.Calendar("t", parts=("month", "week"), cyclical=True, timezone="Asia/Kolkata"), "narrow"),
    Held(fs.Calendar("t", parts=("week",)), "narrow"),
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
    found = most = held(one, rows, folder)
    assert found.measured <= found.projected
    if one.verb == "summarize" and one.twin != one:
        most = held(one.twin, rows, folder)
        assert (most.projected, most.extent) == (found.projected, found.extent)
        assert most.measured <= most.projected
    if one.verb == "apply" and one.as_one_group is not None:
        together = held(one.as_one_group, rows, folder)
        assert together.measured <= together.projected
        most = max(found, together, key=lambda each: each.measured)
    assert found.projected <= 2 * most.measured


@linux
@pytest.mark.parametrize("one", QUICK, ids=str)
def test_measured_within_projected_and_that_within_twice(one: Held, tmp_path: Path) -> None:
    hold(one, ROWS[one.shape] // 2, tmp_path)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("one", FULL, ids=[f"{number}-{one}" for number, one in enumerate(FULL)])
def test_every_transformer_and_shape(one: Held, tmp_path: Path) -> None:
    hold(one, ROWS[one.shape], tmp_path)


def tasks() -> list[Any]:
    """Return each transformer and shape once, whichever verb it is there for."""
    found: dict[tuple[str, str], Held] = {}
    for one in (*QUICK, *FULL):
        found.setdefault((json.dumps(one.transformer.spec()), one.shape), one)
    cases = [Held(beside_inputs(one), one.shape, "task") for one in found.values()]
    return [pytest.param(one, id=f"{number}-{one}") for number, one in enumerate(cases)]


def beside_inputs(one: Held) -> Transformer:
    """Return its transformer with names for outputs that the table does not have yet."""
    schema = shape_schema(one.shape, {SOURCE: shape_schema(one.shape)})
    taken = any(field.name in schema for field in one.transformer.outputs(schema))
    renamed: Transformer = (
        replace(cast("Any", one.transformer), prefix="made_") if taken else one.transformer
    )
    return renamed


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where the tables of a shape are; they are made once."""

    @cache
    def made(shape: str) -> Path:
        folder = tmp_path_factory.mktemp(shape)
        make_tables(shape, ROWS_OF_TASKS[shape.removeprefix("distinct-")], folder)
        return folder

    return made


@linux
@pytest.mark.slow
@pytest.mark.parametrize("one", tasks())
def test_whole_tasks_stay_within_what_is_projected(
    one: Held, tables: Callable[[str], Path]
) -> None:
    cases = [one, *(other for other in (one.twin, one.as_one_group) if other not in (one, None))]
    found = [find_tasks(case.transformer, tables(case.shape)) for case in cases if case is not None]
    print(f"{one}: {found}")
    for task in (task for tasks in found for task in tasks):
        assert task.measured <= task.projected
    summaries = [[task for task in tasks if task.step == SUMMARIZE] for tasks in found]
    applied = [[task for task in tasks if task.step != SUMMARIZE] for tasks in found]
    assert len(applied[0]) == 2  # one per partition
    for same in zip(*applied, strict=True):
        # What is recorded does not say how rows are grouped, or which of the texts they take.
        assert any(task.projected <= 2 * task.measured for task in same)
    of_twin = summaries[1 if one.twin != one else 0]
    for task, other in zip(summaries[0], of_twin, strict=True):
        assert other.projected == task.projected
        assert task.projected <= 2 * other.measured


@linux
def test_a_small_partition_takes_little_more_than_its_model(tmp_path: Path) -> None:
    one = Held(fs.Rolling("x", "1h", stats=["mean"]), "narrow")
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
