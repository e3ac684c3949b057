"""Operations on two tables, each with what it does to the model of both.

An operation is one commit or several: what is published after some of them is modelled as well, so
an operation that fails halfway leaves a world that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import narwhals as nw
import polars as pl
from hypothesis import strategies as st

from featurestore.store import FeatureStore
from featurestore.testing.table_model import (
    FEATURES,
    JOINS,
    READS,
    VARIED,
    WINDOWS,
    Model,
    World,
    definition,
    made_rows,
    moment,
)
from featurestore.testing.tables import plus_one

Effect = Callable[[World], World]
TABLES: Final = tuple(FEATURES)
MOST_ROWS: Final = {"rows": 40, "other": 24}
SIZES: Final = (140, 600, 2000, 10**6)
FIRST_ROWS: Final = {"rows": 24, "other": 14}


@dataclass(frozen=True)
class Operation:
    """One thing to do.

    Parameters
    ----------
    text : str
        For messages.
    table : str
        The table it is about.
    steps : tuple of (callable, callable)
        Each gets the store and commits at most once; then what it does to the model.
    refused : bool
        Whether the store, as the model is, cannot do it.
    """

    text: str
    table: str
    steps: tuple[tuple[Callable[[FeatureStore], Any], Effect], ...]
    refused: bool = False

    def __repr__(self) -> str:
        return self.text


def on_table(
    table: str, text: str, do: Callable[[Any], Any], effect: Callable[[Model], Model]
) -> Operation:
    """Return an operation of one commit on one table."""
    step = (
        lambda store: do(store.table(table)),
        lambda world: world.put(table, effect(world.table(table))),
    )
    return Operation(f"{table}: {text}", table, (step,))


def append(world: World, table: str, count: int, seed: int, gap: int) -> Operation:
    start = world.table(table).newest_hour + 1 + gap
    more = made_rows(table, count, seed, start + start % 2)
    return on_table(
        table,
        f"append {count} rows after a gap of {gap}",
        lambda handle: handle.append(more),
        lambda now: now.with_rows(now.rows, more),
    )


def add(world: World, table: str, names: tuple[str, ...]) -> Operation:
    before = world.table(table)

    def do(handle: Any) -> None:
        if names == ("more",):  # defined only; a build computes it
            handle.feature(plus_one, inputs="x", output="more")
            return
        made = [definition(name, before.variant) for name in names]
        handle.add(*made, fit_on="all" if "std_n" in names else None)

    # The same definition again defines nothing, so somebody's drop meanwhile comes after it.
    new = frozenset(names) - before.features
    operation = on_table(
        table,
        f"add {', '.join(names)}",
        do,
        lambda now: replace(now, features=now.features | new),
    )
    there = world.rows.features | world.other.features | set(names)
    return replace(operation, refused=any(READS.get(one, one) not in there for one in names))


def redefine(world: World, table: str, by: int) -> Operation:
    name, variant = VARIED[table], world.table(table).variant % 12 + by
    return on_table(
        table,
        f"{name} becomes variant {variant}",
        lambda handle: handle.add(definition(name, variant), replace=True),
        lambda now: replace(now, features=now.features | {name}, variant=variant),
    )


def drop(world: World, table: str, name: str) -> Operation:
    operation = on_table(
        table,
        f"drop {name}",
        lambda handle: handle.drop(name),
        lambda now: replace(now, features=now.features - {name}),
    )
    return replace(operation, refused=bool(world.readers(name)))


def replace_rows(world: World, table: str, at: int, width: int, count: int, seed: int) -> Operation:
    model = world.table(table)
    first = at % (model.newest_hour + 2)
    inside = pl.col(model.time).is_between(moment(first), moment(first + width), closed="left")
    made = made_rows(table, max(count, 1), seed, first - first % 2).head(count)
    new = made.filter(inside).sort(model.time, model.key)
    return on_table(
        table,
        f"replace hours {first} to {first + width} by {len(new)} rows",
        lambda handle: handle.replace(new, (moment(first), moment(first + width))),
        lambda now: now.with_rows(now.rows.filter(~inside), new),
    )


def delete(world: World, table: str, modulus: int, rest: int) -> Operation:
    gone = world.table(table).rows.filter(pl.col("id") // 10 % modulus == rest)["id"].implode()
    return on_table(
        table,
        f"delete where id / 10 % {modulus} is {rest}",
        lambda handle: handle.delete(nw.col("id") // 10 % modulus == rest),
        # Rows that come meanwhile stay, whether or not the condition is true for them.
        lambda now: now.with_rows(now.rows.filter(~pl.col("id").is_in(gone))),
    )


def build(table: str) -> Operation:
    return on_table(table, "build", lambda handle: handle.build(), lambda now: now)


def build_all() -> Operation:
    """Build the table that is read, then the one that reads it."""
    steps = tuple(step for table in ("other", "rows") for step in build(table).steps)
    return Operation("build all", "rows", steps)


def compact(table: str, size: int, merge_groups: bool) -> Operation:
    return on_table(
        table,
        f"compact to {size} bytes{' and merge groups' * merge_groups}",
        lambda handle: handle.compact(size, merge_groups),
        lambda now: now,
    )


def ingested(table: str, seed: int, size: int, key: str = "k", time: str = "t") -> Operation:
    model = Model(made_rows(table, FIRST_ROWS[table], seed, 0), key=key, time=time)
    model = model.with_rows(model.rows)
    step = (
        lambda store: store.ingest(table, model.rows, key=key, time=time, partition_bytes=size),
        lambda world: world.put(table, model),
    )
    return Operation(f"ingest {table} by {key}, {time}, seed {seed}", table, (step,))


def anew(world: World, table: str, seed: int, size: int, key: str, time: str) -> Operation:
    """Drop a table and those features of the other that read it; ingest it with other rows."""
    if table == "rows":
        key, time = "k", "t"
    before: tuple[Any, ...] = ()
    read = tuple(sorted(world.rows.features & set(JOINS))) if table == "other" else ()
    if read:
        before = on_table(
            "rows",
            "drop joins",
            lambda handle: handle.drop(*read),
            lambda now: replace(now, features=now.features - set(read)),
        ).steps
    model = world.table(table)
    gone = (
        lambda store: store.drop(table),
        lambda world: world.put(table, replace(model, features=frozenset(), key="", time="")),
    )
    last = ingested(table, seed, size, key, time)
    return Operation(f"drop, {last}", table, (*before, gone, *last.steps))


FAMILIES: Final = 3 * ("rows", "features") + 2 * ("build", "files") + ("tables",)
"""Kinds of operations, as often as they are drawn."""


def drawn_operation(draw: Callable[[Any], Any], world: World) -> Operation:
    """Draw an operation on a world."""
    table = draw(st.sampled_from(["rows", "rows", "other"]))
    family = draw(st.sampled_from(FAMILIES))
    chosen: Callable[[], Operation] = draw(st.sampled_from(_choices(draw, world, table)[family]))
    return chosen()


def _choices(
    draw: Callable[[Any], Any], world: World, table: str
) -> dict[str, list[Callable[[], Operation]]]:
    model = world.table(table)
    features = sorted(model.features)
    number, seed, gap = st.integers(0, 60), st.integers(0, 9), st.sampled_from([0, 3, 40])
    size, few, several = st.sampled_from(SIZES), st.integers(1, 3), st.integers(1, 6)
    several_names = [WINDOWS, JOINS] if table == "rows" else [FEATURES["other"]]
    names = st.sampled_from([(one,) for one in FEATURES[table]]) | st.sampled_from(several_names)
    more = [lambda: append(world, table, draw(several), draw(seed), draw(gap))]
    fewer = [lambda: drop(world, table, draw(st.sampled_from(features)))]
    return {
        "rows": [
            *(more if len(model.rows) < MOST_ROWS[table] else ()),
            lambda: replace_rows(
                world, table, draw(number), draw(several), draw(several) - 1, draw(seed)
            ),
            lambda: delete(world, table, draw(st.sampled_from([3, 5, 9])), draw(few)),
        ],
        "features": [
            *[lambda: add(world, table, draw(names))] * 3,
            lambda: redefine(world, table, draw(few)),
            *(fewer if features else ()),
        ],
        "files": [lambda: compact(table, draw(size), draw(st.booleans())), lambda: build(table)],
        "build": [build_all],
        "tables": [
            lambda: anew(
                world,
                table,
                draw(seed),
                draw(size),
                draw(st.sampled_from("kl")),
                draw(st.sampled_from("tu")),
            )
        ],
    }
