"""Tables that are meant to break a memory limit, and features that meet what is hostile in them.

One partition 50 times the others (of many times, or all of one); a text of 100 MB; a million distinct keys in one
partition; ten thousand columns; a key of nine rows in ten. Each comes with two tables to be joined: ``other``
(key, time, values) and ``static`` (key, values). The functions are module-level, so that a fresh process
finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import narwhals as nw
import numpy as np
import numpy.typing as npt
import pyarrow as pa

import featurestore as fs
from featurestore.transforms.base import Transformer

TABLE: Final = "hostile"
SECOND: Final = 1_000_000
"""In the steps of the time column."""
SAMPLED: Final = 40
FLOATS: Final = 6000
INTEGERS: Final = 4000
LONG_TEXT: Final = 100_000_000


# --- the tables --------------------------------------------------------------------------------------


def plain(rows: int, keys: int, columns: int = 4, seed: int = 0) -> dict[str, Any]:
    """Return the columns of rows one second apart: time, a key that repeats, numbers, some of them null."""
    random = np.random.default_rng(seed)
    numbers = {f"x{one}": random.normal(size=rows) for one in range(columns)}
    last = f"x{columns - 1}"
    numbers[last] = pa.array(numbers[last], mask=random.random(rows) < 0.2)
    return {
        "t": pa.array(SECOND * np.arange(rows), pa.timestamp("us")),
        "k": key_names(random.integers(0, keys, rows)),
        **numbers,
        "row": np.arange(rows),
    }


def key_names(numbers: Any) -> pa.Array:
    return pa.array(np.char.add("key-", np.asarray(numbers).astype(str)))


def heavy_partition(store: fs.FeatureStore, size: str | None) -> None:
    """One partition of 50 times the rows of the others."""
    few, many = 12_000, 600_000
    table = pa.table(plain(many + 4 * few, 2000))
    first = table.slice(0, many)
    store.ingest(TABLE, first, key="k", time="t", partition_bytes=size or "256MiB")
    for start in range(many, table.num_rows, few):
        store.table(TABLE).append(table.slice(start, few))


def heavy_time(store: fs.FeatureStore, size: str | None) -> None:
    """One partition of 50 times the rows of the others, all of one time."""
    counts = [12_000] * 3 + [600_000] + [12_000] * 3
    columns = plain(sum(counts), 2000)
    times = np.repeat(np.arange(len(counts)), counts)
    columns["t"] = pa.array(SECOND * times, pa.timestamp("us"))
    table = pa.table(columns).sort_by([("t", "ascending"), ("k", "ascending")])
    # Where rows share time and key, their order is the source's.
    table = table.set_column(
        table.column_names.index("row"), "row", pa.array(np.arange(len(times)))
    )
    size = size or "900KiB"
    store.ingest(TABLE, table, key="k", time="t", partition_bytes=size, duplicates="keep")


def long_text(store: fs.FeatureStore, size: str | None) -> None:
    """A text of 100 MB among short ones."""
    rows = 2000
    texts = [f"text {one % 100}" for one in range(rows)]
    texts[rows // 2] = "x" * LONG_TEXT
    table = pa.table({**plain(rows, 500), "text": pa.array(texts)})
    store.ingest(TABLE, table, key="k", time="t", partition_bytes=size or "32KiB")


def many_keys(store: fs.FeatureStore, size: str | None) -> None:
    """A million distinct keys in one partition, and some rows of the same keys after it."""
    rows, more = 1_000_000, 50_000
    columns = plain(rows + more, 2)
    columns["k"] = key_names(np.concatenate([np.arange(rows), 20 * np.arange(more)]))
    table = pa.table(columns)
    first = table.slice(0, rows)
    store.ingest(TABLE, first, key="k", time="t", partition_bytes=size or "256MiB")
    store.table(TABLE).append(table.slice(rows))


def many_columns(store: fs.FeatureStore, size: str | None) -> None:
    """Ten thousand columns."""
    rows, random = 200, np.random.default_rng(5)
    columns = plain(rows, 10, 1)
    columns |= {f"x{one}": random.normal(size=rows) for one in range(FLOATS)}
    columns |= {f"c{one}": random.integers(0, 5, rows, np.int32) for one in range(INTEGERS)}
    size = size or "4MiB"
    store.ingest(TABLE, pa.table(columns), key="k", time="t", partition_bytes=size)


def heavy_key(store: fs.FeatureStore, size: str | None) -> None:
    """One key that has nine rows in ten."""
    rows = 600_000
    columns = plain(rows, 2000)
    keys = np.where(np.arange(rows) % 10 < 9, 0, np.arange(rows) % 5000)
    columns["k"] = key_names(keys)
    size = size or "32MiB"
    store.ingest(TABLE, pa.table(columns), key="k", time="t", partition_bytes=size)


SETS: Final[Mapping[str, Callable[[fs.FeatureStore, str | None], None]]] = {
    one.__name__: one
    for one in (heavy_partition, heavy_time, long_text, many_keys, many_columns, heavy_key)
}


def write_set(name: str, folder: Path, partition_bytes: str | None = None) -> None:
    """Make a store with a hostile table, and those to be joined, in ``folder / "store"``.

    Parameters
    ----------
    name : str
        Of ``SETS``.
    folder : Path
    partition_bytes : str, optional
        Of the hostile table, if not its own.
    """
    store = fs.FeatureStore.create(folder / "store", memory_limit="12GiB")
    SETS[name](store, partition_bytes)
    rows = store.table(TABLE).read(as_="arrow")
    assert isinstance(rows, pa.Table)
    values = value_columns(name)
    size = "32MiB"
    other = rows.select(["t", "k", *values])
    store.ingest("other", other, key="k", time="t", partition_bytes=size, duplicates="keep")
    _, first = np.unique(rows["k"].to_numpy(zero_copy_only=False), return_index=True)
    static = rows.take(np.sort(first)).select(["k", *values])
    store.ingest("static", static, key="k", partition_bytes=size)


def value_columns(name: str) -> list[str]:
    """Return the columns of a set that work is done on."""
    if name == "many_columns":
        return [f"x{one}" for one in range(FLOATS)]
    return ["text"] if name == "long_text" else ["x0", "x3"]


# --- their features ------------------------------------------------------------------------------------


def text_length(frame: Any) -> Any:
    return frame["text"].str.len_chars()


def together(frame: Any) -> Any:
    return np.stack([frame[name].to_numpy() for name in frame.columns], axis=1).astype(np.float32)


def transformer(family: str, name: str) -> Transformer:
    """Return one of a family that works on what is hostile in a set, or beside it.

    Its outputs are called ``made``, or after their inputs with ``_made`` behind; those of a calendar
    ``t_minute`` and ``t_weekday``.
    """
    values, text = value_columns(name), name == "long_text"
    numbers = ["x0"] if text else values
    if family == "expression":
        made = {f"{one}_made": nw.col(one) * 2 + 1 for one in numbers}
        lengths = {f"{one}_made": nw.col(one).str.len_chars() for one in values}
        return fs.Expression(**(lengths if text else made))
    if family == "function":
        if text:
            return fs.Function(text_length, "text", output="made")
        return fs.Function(together, numbers, "made", shape=(len(numbers),))
    categories = [f"c{one}" for one in range(INTEGERS)]
    others: dict[str, Callable[[], Transformer]] = {
        "rolling": lambda: fs.Rolling(
            numbers, by="k", window="90s", stats=["sum"], rename=_made(numbers, "sum_1m30s")
        ),
        "lag": lambda: fs.Lag(values, by="k", rename=_made(values, "lag_1")),
        "as_of": lambda: fs.AsOfJoin("other", columns=values, by="k", lag="1s", rename=_named(values)),
        "lookup": lambda: fs.Lookup("static", columns=values, by="k", rename=_named(values)),
        "cross_section": lambda: fs.CrossSection(numbers, ["rank"], rename=_made(numbers, "rank")),
        "calendar": lambda: fs.Calendar(parts=("minute", "weekday")),
        "standardize": lambda: fs.Standardize(numbers, suffix="_made"),
        "impute": lambda: fs.Impute(list(dict.fromkeys([*numbers[:-1], "x3"])), suffix="_made"),
        "categorify": lambda: fs.Categorify(
            categories if name == "many_columns" else "text" if text else "k", suffix="_made"
        ),
    }  # fmt: skip
    return others[family]()


def _named(columns: Sequence[str]) -> dict[str, str]:
    return {one: f"{one}_made" for one in columns}


def _made(columns: Sequence[str], ending: str) -> dict[str, str]:
    return {f"{one}_{ending}": f"{one}_made" for one in columns}


FAMILIES: Final = (
    "expression", "function", "rolling", "lag", "as_of", "lookup", "cross_section", "calendar",
    "standardize", "impute", "categorify",
)  # fmt: skip
LEARNT: Final = ("standardize", "impute", "categorify")


def sampled(rows: int) -> npt.NDArray[np.int64]:
    """Return the rows that are looked at: the middle one and its neighbours, the last, and some more."""
    random = np.random.default_rng(9).integers(0, rows, SAMPLED)
    middle = [rows // 2 - 1, rows // 2, rows // 2 + 1]
    return np.unique([*random, *middle, 0, rows - 1])


def shown(columns: Sequence[str]) -> list[str]:
    """Return the columns that are looked at: of many the first and the last."""
    return [*columns[:3], *columns[-3:]] if len(columns) > 6 else list(columns)
