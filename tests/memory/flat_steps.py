"""One operation on one table of a store, in a process of its own, after the same on a small table.

    python flat_steps.py OPERATION FOLDER SIZE

The tables are ``warm_readings`` and ``warm_quotes``, and those that begin with ``SIZE``. The last line
written is a JSON object: the process's ``peak`` during the operation and how much it held before
(``start``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import narwhals as nw

import featurestore as fs
from featurestore.allocators import release_freed
from featurestore.execution.sites import own_site
from featurestore.transforms.base import Transformer
from featurestore.watermark import watermark

MIB = 2**20
LIMIT = "600MiB"
SORTING = 64 * MIB
"""What is left of the limit where rows are sorted, which fills all that is left: the smaller table too."""
READ_ROWS = 10_000

Work = Callable[[fs.FeatureStore, Path, str], object]


def doubled(frame: nw.DataFrame) -> nw.Series:  # type: ignore[type-arg]
    return frame["x1"] * 2


TRANSFORMERS: dict[str, Callable[[str], Transformer]] = {
    "expression": lambda _: fs.Expression(ratio=nw.col("x0") / nw.col("x1")),
    "calendar": lambda _: fs.Calendar(),
    "function": lambda _: fs.Function(doubled, "x1", output="doubled", dtypes="float64"),
    "rolling": lambda _: fs.Rolling("x1", by="sensor", window="30s", stats=["mean", "std"]),
    "lag": lambda _: fs.Lag("x2", by="sensor"),
    "cross_section": lambda _: fs.CrossSection("x3", ["rank"]),
    "as_of": lambda size: fs.AsOfJoin(f"{size}_quotes", columns=["quote"], by="sensor"),
    "lookup": lambda _: fs.Lookup("sensors", columns=["weight"], by="sensor"),
    "categorify": lambda _: fs.Categorify("place", suffix="_code"),
    "standardize": lambda _: fs.Standardize(["x0", "x1"], suffix="_std"),
    "impute": lambda _: fs.Impute(["x0", "x1"], suffix="_full"),
    "expanding": lambda _: fs.Expanding("x1", by="sensor"),
    "ewm": lambda _: fs.EWM("x1", 20, by="sensor"),
    "median": lambda _: fs.Rolling("x1", 20, stats=["median"], by="sensor"),
    "expanding_target": lambda _: fs.ExpandingTarget("place", "label"),
    "forward": lambda _: fs.Forward("x2", "30s", stats="mean", by="sensor"),
    "as_of_aggregate": lambda size: fs.AsOfAggregate(f"{size}_quotes", "quote", "60s", by="sensor"),
    "as_of_window": lambda size: fs.AsOfWindow(f"{size}_quotes", "quote", 4, by="sensor"),
    "rank": lambda _: fs.Rank("x3"),
    "text_hash": lambda _: fs.TextHash("place", 64),
    "one_hot": lambda _: fs.OneHot("place", size=16),
    # Two folds: of more, the smaller table has not all categories in each, and its state is smaller.
    "target_encode": lambda _: fs.TargetEncode("place", "label", folds=2, suffix="_target"),
    "group_stats": lambda _: fs.GroupStats("x1", by="place"),
    "quantile_transform": lambda _: fs.QuantileTransform(["x0", "x1"], suffix="_even"),
    "pca": lambda _: fs.PCA(["x0", "x1", "x2"], 2),
    "tf_idf": lambda _: fs.TfIdf("place", 64, unit="characters"),
}
LEARNING = (
    "categorify", "standardize", "impute", "one_hot", "target_encode", "group_stats",
    "quantile_transform", "pca", "tf_idf",
)  # fmt: skip


def build(name: str) -> Work:
    def work(store: fs.FeatureStore, folder: Path, size: str) -> object:
        one = TRANSFORMERS[name](size)
        fit_on = "all" if name in LEARNING else None
        return store.table(f"{size}_readings").add(one, fit_on=fit_on)

    return work


def wide(store: fs.FeatureStore, folder: Path, size: str) -> object:
    """A feature of a table of many columns and small partitions, with all that is known of each."""
    return store.table(f"{size}_wide").add(fs.Expression(ratio=nw.col("x0") / nw.col("x1")))


def fit(store: fs.FeatureStore, folder: Path, size: str) -> object:
    columns = [f"x{one}" for one in range(8)]
    pipeline = fs.Pipeline(fs.Standardize(columns), fs.Categorify("place"))
    data = store.table(f"{size}_readings").dataset([*columns, "place"], pipeline=pipeline)
    return data.pipeline


def read(store: fs.FeatureStore, folder: Path, size: str) -> object:
    table = store.table(f"{size}_readings")
    middle = table.rows // 2
    return table.read(["sensor", "time", "x3"], slice(middle, middle + READ_ROWS))


def verify(store: fs.FeatureStore, folder: Path, size: str) -> object:
    # Of all tables: so each size has a store of its own.
    store = fs.FeatureStore.open(folder / f"store_{size}", memory_limit=LIMIT, workers=2)
    report = store.verify()
    assert report.ok
    return report


def pack(store: fs.FeatureStore, folder: Path, size: str) -> object:
    """Learn a pipeline and write a pack; its pages are not mapped yet."""
    import training

    columns = [f"x{one}" for one in range(8)]
    pipeline = fs.Pipeline(fs.Impute(columns), fs.Standardize(columns))
    data = store.table(f"{size}_readings").dataset(columns, "label", pipeline=pipeline)
    return training.Loader(data.all, 1024, "global", cache=folder / "packs").pack


def compact(store: fs.FeatureStore, folder: Path, size: str) -> object:
    return store.table(f"{size}_readings").compact("6MiB")


def delete(store: fs.FeatureStore, folder: Path, size: str) -> object:
    return store.table(f"{size}_readings").delete(nw.col("x0") < 0)


def replace(store: fs.FeatureStore, folder: Path, size: str) -> object:
    # All but the first file: every eighth row goes, and each partition gives way.
    source = [str(one) for one in sorted((folder / size).glob("readings-*.parquet"))[1:]]
    within = store.with_limit(own_site("polars", 2).reserved_bytes + SORTING)
    return within.table(f"{size}_readings").replace(source, (None, None))


OPERATIONS: dict[str, Work] = {
    **{name: build(name) for name in TRANSFORMERS},
    **{one.__name__: one for one in (wide, fit, pack, read, verify, compact, delete, replace)},
}


def main() -> None:
    name, folder, size = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    store = fs.FeatureStore.open(folder / "store", memory_limit=LIMIT, workers=2, scratch=folder)
    OPERATIONS[name](store, folder, "warm")
    release_freed()
    with watermark() as mark:
        OPERATIONS[name](store, folder, size)
    print(json.dumps({"peak": mark.peak_bytes, "start": mark.start_bytes}))


if __name__ == "__main__":
    main()
