"""A random stream of operations on one store, and a plain model of what they give.

For tests that kill a process in the middle of the stream: each operation is a value that travels as
JSON, :func:`carry_out` does it to a store, :func:`after` does it to the model, and :func:`mismatch`
says how a store differs from a model.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import narwhals as nw
import polars as pl

from featurestore.store import FeatureStore
from featurestore.testing.store_operations import open_store
from featurestore.transforms.base import Transformer
from featurestore.transforms.expression import Expression
from featurestore.transforms.lag import Lag

Step: TypeAlias = "Mapping[str, Any]"
Row: TypeAlias = "tuple[str, int, float]"

KEYS: Final = ("a", "b", "c")
HOUR: Final = 3_600_000
PARTITION_BYTES: Final = 24 * 20
KINDS: Final = (
    "append",
    "replace",
    "delete",
    "add",
    "drop",
    "build",
    "compact",
    "tag",
    "untag",
    "gc",
    "ingest",
    "drop table",
    "repair",
)


@dataclass(frozen=True, slots=True)
class Model:
    """What the store holds.

    Parameters
    ----------
    rows : tuple of (key, hour, x)
        Of the table ``rows``, by hour and key.
    features : frozenset of str
        ``times_<n>`` or ``lag_<n>``.
    fresh : frozenset of str
        Features whose values must be there.
    tags : mapping of str to int
        To the number of rows in the tagged version.
    sides : mapping of str to int
        Other tables, and their rows.
    """

    rows: tuple[Row, ...] = ()
    features: frozenset[str] = frozenset()
    fresh: frozenset[str] = frozenset()
    tags: Mapping[str, int] = field(default_factory=dict)
    sides: Mapping[str, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The hour after the last row."""
        return self.rows[-1][1] + 1 if self.rows else 0


def choose(model: Model, rng: random.Random) -> Step:
    """Return an operation that is possible."""
    while True:
        kind = rng.choice(KINDS)
        step = _chosen(kind, model, rng)
        if step is not None:
            return {"kind": kind, **step}


def _chosen(kind: str, model: Model, rng: random.Random) -> dict[str, Any] | None:
    start = model.rows[0][1] if model.rows else 0
    middle = rng.randint(start, max(start, model.end - 1))
    match kind:
        case "append":
            return {"rows": _random_rows(model.end, rng.randint(5, 25), rng)}
        case "replace" if model.rows:
            width = rng.randint(1, 10)
            return {
                "range": [middle, middle + width],
                "rows": _random_rows(middle, width, rng),
            }
        case "delete" if len(model.rows) > 40:
            return {"before": middle} if rng.random() < 0.7 else {"key": rng.choice(KEYS)}
        case "add" if len(model.features) < 4:
            return {"feature": f"{rng.choice(['times', 'lag'])}_{rng.randint(1, 3)}"}
        case "drop" if model.features:
            return {"feature": rng.choice(sorted(model.features))}
        case "compact":
            return {
                "merge": rng.random() < 0.5,
                "bytes": rng.choice([PARTITION_BYTES, 4 * PARTITION_BYTES]),
            }
        case "tag":
            return {"name": rng.choice(["one", "two"])}
        case "untag" if model.tags:
            return {"name": rng.choice(sorted(model.tags))}
        case "ingest" if len(model.sides) < 2:
            name = min({"left", "right"} - model.sides.keys())
            return {"name": name, "rows": _random_rows(0, rng.randint(5, 25), rng)}
        case "drop table" if model.sides:
            return {"name": rng.choice(sorted(model.sides))}
        case "build" | "gc" | "repair":
            return {}
    return None


def _random_rows(start: int, hours: int, rng: random.Random) -> list[Row]:
    """Return at least one row of some hours, each with a new value."""
    found = [
        (key, hour, float(rng.randrange(1000)))
        for hour in range(start, start + hours)
        for key in KEYS
        if rng.random() < 0.6
    ]
    return found or [("a", start, float(rng.randrange(1000)))]


def after(model: Model, step: Step) -> Model:
    """Return what there is after an operation."""
    match step["kind"]:
        case "append":
            return _with_rows(model, (*model.rows, *_rows(step)))
        case "replace":
            first, stop = step["range"]
            kept = [row for row in model.rows if not first <= row[1] < stop]
            return _with_rows(model, (*kept, *_rows(step)))
        case "delete":
            kept = [row for row in model.rows if not _deleted(row, step)]
            return model if len(kept) == len(model.rows) else _with_rows(model, kept)
        case "add":
            name = step["feature"]
            return replace(model, features=model.features | {name}, fresh=model.fresh | {name})
        case "drop":
            gone = {step["feature"]}
            return replace(model, features=model.features - gone, fresh=model.fresh - gone)
        case "build":
            return replace(model, fresh=model.features)
        case "tag":
            return replace(model, tags={**model.tags, step["name"]: len(model.rows)})
        case "untag":
            return replace(model, tags=_without(model.tags, step["name"]))
        case "ingest":
            return replace(model, sides={**model.sides, step["name"]: len(step["rows"])})
        case "drop table":
            return replace(model, sides=_without(model.sides, step["name"]))
    return model  # compact, gc and repair change nothing that is seen


def _rows(step: Step) -> list[Row]:
    return [(key, hour, x) for key, hour, x in step["rows"]]


def _with_rows(model: Model, rows: Any) -> Model:
    """Rows changed: which features are still fresh depends on the partitions; only build says."""
    return replace(
        model, rows=tuple(sorted(rows, key=lambda row: (row[1], row[0]))), fresh=frozenset()
    )


def _deleted(row: Row, step: Step) -> bool:
    return bool(row[1] < step["before"] if "before" in step else row[0] == step["key"])


def _without(mapping: Mapping[str, int], name: str) -> dict[str, int]:
    return {key: value for key, value in mapping.items() if key != name}


# --- the same to a store --------------------------------------------------------------------------------


def begin(path: Path) -> None:
    """Make the store that a stream starts from: a table with one row, an hour before all others."""
    store = FeatureStore.create(path, workers=1, memory_limit="4GiB")
    store.ingest("rows", _frame(FIRST.rows), key="k", time="t", partition_bytes=PARTITION_BYTES)


FIRST: Final = Model(rows=(("a", -1, 0.0),))


def carry_out(store: FeatureStore, step: Step) -> None:
    """Do an operation."""
    table = store.table("rows")
    match step["kind"]:
        case "append":
            table.append(_frame(step["rows"]))
        case "replace":
            first, stop = (_time(hour) for hour in step["range"])
            table.replace(_frame(step["rows"]), (first, stop))
        case "delete" if "before" in step:
            table.delete(nw.col("t") < _time(step["before"]))
        case "delete":
            table.delete(nw.col("k") == step["key"])
        case "add":
            table.add(_transformer(step["feature"]))
        case "drop":
            table.drop(step["feature"])
        case "build":
            table.build()
        case "compact":
            table.compact(step["bytes"], merge_groups=step["merge"])
        case "tag":
            store.tag(step["name"])
        case "untag":
            store.untag(step["name"])
        case "gc":
            store.gc(safety_age="0s", keep_versions=3)
        case "ingest":
            store.ingest(step["name"], _frame(step["rows"]), key="k", time="t")
        case "drop table":
            store.drop(step["name"])
        case "repair":
            store.repair()


def _time(hour: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1) + dt.timedelta(hours=hour)  # noqa: DTZ001 - the column has no zone


def _frame(rows: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "k": [row[0] for row in rows],
            "t": [row[1] * HOUR for row in rows],
            "x": [row[2] for row in rows],
        },
        schema={"k": pl.String, "t": pl.Datetime("ms"), "x": pl.Float64},
    )


def _transformer(feature: str) -> Transformer:
    kind, _, number = feature.partition("_")
    if kind == "times":
        return Expression(**{feature: nw.col("x") * int(number)})
    return Lag("x", periods=int(number), by="k", rename={f"x_lag_{number}": feature})


# --- comparing ------------------------------------------------------------------------------------------


def mismatch(path: Path, model: Model) -> str:
    """Return how a store differs from a model, or nothing."""
    store = open_store(path)
    if set(store.tables()) != {"rows", *model.sides}:
        return f"tables are {store.tables()}, not {sorted(model.sides)} and rows"
    for name, count in model.sides.items():
        if store.table(name).rows != count:
            return f"table {name!r} has {store.table(name).rows} rows, not {count}"
    if store.tags().keys() != model.tags.keys():
        return f"tags are {store.tags()}, not {model.tags}"
    for name, count in model.tags.items():
        found = store.checkout(name).table("rows").read(["x"]).height
        if found != count:
            return f"tag {name!r} has {found} rows, not {count}"
    return _rows_mismatch(store, model)


def _rows_mismatch(store: FeatureStore, model: Model) -> str:
    table = store.table("rows")
    if set(table.columns) != {"k", "t", "x", *model.features}:
        return f"columns are {table.columns}, features should be {sorted(model.features)}"
    ready = {name for one in table.status().features if one.is_fresh for name in one.columns}
    if not model.fresh <= ready:
        return f"features {sorted(model.fresh - ready)} should be fresh"
    names = ["k", "t", "x", *sorted(ready)]
    found = table.read(names).sort("t", "k")
    expected = _frame(model.rows).with_columns(_expected(name) for name in sorted(ready))
    if not found.equals(expected.select(names)):
        return f"rows are {found}, not {expected}"
    return ""


def _expected(feature: str) -> pl.Expr:
    kind, _, number = feature.partition("_")
    x = pl.col("x")
    value = x * int(number) if kind == "times" else x.shift(int(number)).over("k")
    return value.alias(feature)
