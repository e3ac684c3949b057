"""What ``memory.py`` measures: one function for each step and tool, each run in a fresh process.

The data are those of ``measuring.write_data``: ``entity``, ``time`` and ``x0``... in time order, and a second
table ``quotes`` of a tenth of the times with one value. Steps that add features write them; peers write a
Parquet file with the new columns. A tool that has no such step has no function for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from measuring import DASK, OURS, PANDAS, caged, measured

BATCH_ROWS = 4096
ROUNDS = 3
SETTINGS = {"tree_method": "hist", "max_bin": 64, "max_depth": 4, "seed": 0}

Arguments = dict[str, Any]
Case = Callable[[Arguments], dict[str, Any]]


def doubled(frame: Any) -> Any:
    return frame["x1"] * 2


# --- featurestore --------------------------------------------------------------------------------------


def store_ingest(arguments: Arguments) -> dict[str, Any]:
    import polars as pl

    import featurestore as fs

    store = fs.FeatureStore.create(arguments["store"], memory_limit=arguments["memory_limit"])
    size = {"partition_bytes": arguments["partition_bytes"]}
    store.ingest("quotes", arguments["quotes"], key="entity", time="time", **size)
    weights = {"entity": list(range(1000)), "weight": [0.5] * 1000}
    types = {"entity": pl.Int32, "weight": pl.Float64}
    store.ingest("entities", pl.DataFrame(weights, schema=types), key="entity")
    source = arguments["source"]
    return _ours(lambda: store.ingest("data", source, key="entity", time="time", **size), arguments)


def _ours(
    work: Callable[[], object], arguments: Arguments, more: Sequence[str] = ()
) -> dict[str, Any]:
    with caged(arguments["memory_limit"]):
        return measured(work, [*OURS, *more])


def _table(arguments: Arguments) -> Any:
    import featurestore as fs

    place = arguments["store"]
    return fs.FeatureStore.open(place, memory_limit=arguments["memory_limit"]).table("data")


def _transformer(name: str) -> Any:
    import narwhals as nw

    import featurestore as fs

    return {
        "expression": lambda: fs.Expression(ratio=nw.col("x0") / nw.col("x1")),
        "function": lambda: fs.Function(doubled, "x1", output="doubled", dtypes="float64"),
        "calendar": fs.Calendar,
        "rolling": lambda: fs.Rolling(
            "x2", by="entity", window="10s", stats=["mean", "std"], closed="left"
        ),
        "lag": lambda: fs.Lag("x2", by="entity"),
        "rank": lambda: fs.CrossSection("x3", ["rank"]),
        "as-of join": lambda: fs.AsOfJoin(
            "quotes", columns=["x0"], by="entity", rename={"x0": "quote"}
        ),
        "lookup": lambda: fs.Lookup("entities", columns=["weight"], by="entity"),
        "categorify": lambda: fs.Categorify("entity", suffix="_code"),
        "standardize": lambda: fs.Standardize(["x0", "x1"], suffix="_std"),
        "impute": lambda: fs.Impute(["x0", "x1"], suffix="_full"),
        "expanding": lambda: fs.Expanding("x2", by="entity"),
        "forward": lambda: fs.Forward("x2", "10s", stats="mean", by="entity"),
        "as-of window": lambda: fs.AsOfWindow(
            "quotes", "x0", 4, by="entity", rename={"x0": "quotes"}
        ),
        "quantiles": lambda: fs.QuantileTransform(["x0", "x1"], suffix="_even"),
        "target encode": lambda: fs.TargetEncode("entity", "x0", suffix="_target"),
        "group statistics": lambda: fs.GroupStats("x1", by="entity"),
        "components": lambda: fs.PCA(["x0", "x1", "x2"], 2),
    }[name]()


def store_add(name: str, arguments: Arguments) -> dict[str, Any]:
    table, one = _table(arguments), _transformer(name)
    fit_on = "all" if name in LEARNING else None
    return _ours(lambda: table.add(one, fit_on=fit_on), arguments)


def _dataset(arguments: Arguments, label: str | None = None) -> Any:
    import featurestore as fs

    table = _table(arguments)
    names = [one for one in table.columns if one.startswith("x") and one[1:].isdigit()]
    names = [one for one in names if one != label]
    return table.dataset(names, label, pipeline=fs.Pipeline(fs.Standardize(names)))


def store_fit(arguments: Arguments) -> dict[str, Any]:
    return _ours(lambda: _dataset(arguments).pipeline, arguments)


def store_load(arguments: Arguments) -> dict[str, Any]:
    import training

    def work() -> None:
        loader = training.Loader(
            _dataset(arguments).all, BATCH_ROWS, shuffle=True, seed=0, cache=arguments["packs"]
        )
        rows = sum(batch.rows for batch in loader)
        if rows != arguments["rows"]:
            raise SystemExit(f"{rows} rows were loaded of {arguments['rows']}")

    return _ours(work, arguments)


def store_xgboost(arguments: Arguments) -> dict[str, Any]:
    import xgboost

    import training
    from training.hooks.xgboost import dmatrix

    def work() -> None:
        loader = training.Loader(
            _dataset(arguments, "x0").all, BATCH_ROWS, cache=arguments["packs"]
        )
        matrix = dmatrix(loader, max_bin=SETTINGS["max_bin"], page_bytes="16MiB")
        xgboost.train(SETTINGS, matrix, ROUNDS, verbose_eval=False)

    return _ours(work, arguments, ["xgboost"])


# --- pandas --------------------------------------------------------------------------------------------


def _pandas(work: Callable[[Any, Arguments], Any], arguments: Arguments) -> dict[str, Any]:
    import pandas as pd

    def whole() -> None:
        made = work(pd.read_parquet(arguments["source"]), arguments)
        if isinstance(made, pd.DataFrame):
            made.to_parquet(arguments["target"])

    with caged(arguments["memory_limit"]):
        return measured(whole, PANDAS)


def pandas_rolling(frame: Any, arguments: Arguments) -> Any:
    window = frame.set_index("time").groupby("entity")["x2"].rolling("10s", closed="left")
    return window.agg(["mean", "std"]).reset_index()


def pandas_as_of(frame: Any, arguments: Arguments) -> Any:
    import pandas as pd

    quotes = pd.read_parquet(arguments["quotes"]).rename(columns={"x0": "quote"})
    return pd.merge_asof(frame, quotes, on="time", by="entity")


def pandas_load(frame: Any, arguments: Arguments) -> None:
    import numpy as np

    values = frame[[name for name in frame.columns if name.startswith("x")]]
    scaled = ((values - values.mean()) / values.std()).to_numpy(dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(scaled))
    for start in range(0, len(order), BATCH_ROWS):
        scaled[order[start : start + BATCH_ROWS]].sum()


def pandas_xgboost(frame: Any, arguments: Arguments) -> None:
    import xgboost

    names = [name for name in frame.columns if name.startswith("x") and name != "x0"]
    matrix = xgboost.QuantileDMatrix(frame[names], frame["x0"], max_bin=SETTINGS["max_bin"])
    xgboost.train(SETTINGS, matrix, ROUNDS, verbose_eval=False)


def _fitted(frame: Any, arguments: Arguments) -> Any:
    numbers = frame[[name for name in frame.columns if name.startswith("x")]]
    return numbers.mean(), numbers.std()


def _scaled(frame: Any, arguments: Arguments) -> Any:
    two = frame[["x0", "x1"]]
    return (two - two.mean()) / two.std()


def _ratio(frame: Any, arguments: Arguments) -> Any:
    return (frame["x0"] / frame["x1"]).to_frame("ratio")


PANDAS_STEPS: dict[str, Callable[[Any, Arguments], Any]] = {
    "ingest": lambda frame, _: frame.sort_values(["time", "entity"]),
    "expression": _ratio,
    "rolling": pandas_rolling,
    "lag": lambda frame, _: frame.groupby("entity")["x2"].shift().to_frame("lag"),
    "rank": lambda frame, _: frame.groupby("time")["x3"].rank(pct=True).to_frame("rank"),
    "as-of join": pandas_as_of,
    "categorify": lambda frame, _: frame["entity"].astype("category").cat.codes.to_frame("code"),
    "standardize": _scaled,
    "fit": _fitted,
    "load": pandas_load,
    "xgboost": pandas_xgboost,
}


# --- dask.dataframe ------------------------------------------------------------------------------------


def _dask(work: Callable[[Any, Arguments], Any], arguments: Arguments) -> dict[str, Any]:
    import dask
    import dask.dataframe as dd

    def whole() -> None:
        # As many bytes as the store's partitions have, as far as row groups allow.
        blocks = dd.read_parquet(
            arguments["source"], split_row_groups="adaptive", blocksize=arguments["partition_bytes"]
        )
        made = work(blocks, arguments)
        if hasattr(made, "to_parquet"):
            made.to_parquet(arguments["target"] + ".dask")

    with caged(arguments["memory_limit"]), dask.config.set(scheduler="threads"):
        return measured(whole, DASK)


def dask_as_of(blocks: Any, arguments: Arguments) -> Any:
    import dask.dataframe as dd

    quotes = dd.read_parquet(arguments["quotes"]).rename(columns={"x0": "quote"})
    return dd.merge_asof(
        blocks.set_index("time", sorted=True),
        quotes.set_index("time", sorted=True),
        left_index=True,
        right_index=True,
        by="entity",
    )


def dask_rolling(blocks: Any, arguments: Arguments) -> Any:
    import pandas as pd

    def windows(frame: Any) -> Any:
        ordered = frame[["time", "x2"]].sort_values("time").set_index("time")
        return ordered.rolling("10s", closed="left").mean()

    index = pd.DatetimeIndex([], name="time")
    meta = pd.DataFrame({"x2": pd.Series(dtype="float64", index=index)})
    narrow = blocks[["entity", "time", "x2"]]
    return narrow.groupby("entity", group_keys=False).apply(windows, meta=meta)


def dask_load(blocks: Any, arguments: Arguments) -> None:
    import numpy as np

    values = blocks[[name for name in blocks.columns if name.startswith("x")]]
    scaled = (values - values.mean()) / values.std()
    # The order is mixed within blocks only.
    for number in range(scaled.npartitions):
        block = scaled.get_partition(number).compute().sample(frac=1, random_state=0)
        for start in range(0, len(block), BATCH_ROWS):
            block.iloc[start : start + BATCH_ROWS].to_numpy(dtype=np.float32).sum()


def _dask_fitted(blocks: Any, arguments: Arguments) -> None:
    import dask

    dask.compute(*_fitted(blocks, arguments))


DASK_STEPS: dict[str, Callable[[Any, Arguments], Any]] = {
    "ingest": lambda blocks, _: blocks.sort_values(["time", "entity"]),
    "expression": _ratio,
    "rolling": dask_rolling,
    "as-of join": dask_as_of,
    "categorify": lambda blocks, _: blocks[["entity"]].categorize(["entity"]),
    "standardize": _scaled,
    "fit": _dask_fitted,
    "load": dask_load,
}


# --- all -----------------------------------------------------------------------------------------------

LEARNING = (
    "categorify", "standardize", "impute", "quantiles", "target encode", "group statistics",
    "components",
)  # fmt: skip
FAMILIES = (
    "expression", "function", "calendar", "rank", "rolling", "lag", "expanding", "forward",
    "as-of join", "as-of window", "lookup", *LEARNING,
)  # fmt: skip
STEPS = ("ingest", *FAMILIES, "fit", "load", "xgboost")
TOOLS = ("featurestore", "pandas", "dask")

_OURS: dict[str, Case] = {
    "ingest": store_ingest,
    **{name: partial(store_add, name) for name in FAMILIES},
    "fit": store_fit,
    "load": store_load,
    "xgboost": store_xgboost,
}
CASES: dict[str, Case] = {
    **{f"featurestore {name}": case for name, case in _OURS.items()},
    **{f"pandas {name}": partial(_pandas, work) for name, work in PANDAS_STEPS.items()},
    **{f"dask {name}": partial(_dask, work) for name, work in DASK_STEPS.items()},
}
"""Run by name; a store's cases in this order, as the first makes the store."""
