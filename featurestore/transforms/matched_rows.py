"""The other table's rows as they travel to a match, and the keys of both sides as numbers.

Rows are Arrow tables with columns ``by_0, ...``, ``time`` (as-of only), ``column_0, ...`` and ``available`` (if
there is such a column). Keys that are texts may be dictionaries (:mod:`~featurestore.engines.coded`).

Always true: which rows match depends on neither how keys are held nor how they are numbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.coded import Coded, as_dictionary, codes_alike
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.transforms.base import Partition, State
from featurestore.transforms.tails import TIME, by_names, column_name

if TYPE_CHECKING:
    from featurestore.transforms.matching import Matching

ROWS: Final = "rows"
"""The name of the other table's rows in a state."""
AVAILABLE: Final = "available"
"""The column of a state that says when its rows became known."""


def source_frame(
    engine: Engine,
    partition: Partition,
    by: Sequence[str],
    columns: Sequence[str],
    time: str | None,
    available: str | None = None,
) -> tuple[Frame, Coded]:
    """Return a partition of the other table, reduced to what a match needs of it.

    Rows with a null among the ``by`` columns match nothing and are left out, as are those that never
    became known.

    Parameters
    ----------
    engine : Engine
    partition : Partition
    by, columns : sequence of str
        Key columns, and those that are taken.
    time, available : str, optional

    Returns
    -------
    Frame
    mapping of str to pyarrow.DictionaryArray
        Keys that are not in the frame.
    """
    named = zip(by_names(len(by)), by, strict=True)
    keys = {one: name for one, name in named if name not in partition.coded}
    others = {column_name(i): name for i, name in enumerate(columns)}
    chosen = {**keys, TIME: time, **others, AVAILABLE: available}
    frame = partition.frame.select(
        *(nw.col(old).alias(new) for new, old in chosen.items() if old is not None)
    )
    coded = {
        new: partition.coded[old]
        for new, old in zip(by_names(len(by)), by, strict=True)
        if old in partition.coded
    }
    valid = all_valid(engine, frame, [*keys, *([] if available is None else [AVAILABLE])])
    for one in coded.values():
        if one.null_count:
            valid &= engine.from_host(np.asarray(one.is_valid()))
    if bool(valid.all()):
        return frame, coded
    kept = engine.xp.flatnonzero(valid)
    index = pa.array(engine.to_host(kept))
    return engine.take(frame, kept), {new: one.take(index) for new, one in coded.items()}


def source_rows(engine: Engine, frame: Frame, coded: Coded) -> State:
    """Return the rows of :func:`source_frame` as they travel."""
    table = engine.to_arrow(frame)
    if coded:
        plain = dict(zip(table.column_names, table.columns, strict=True))
        keys = by_names(len(coded) + sum(one.startswith("by_") for one in plain))
        held = {**plain, **coded}
        table = pa.table({name: held[name] for name in dict.fromkeys((*keys, *plain))})
    return {ROWS: table}


def gather_rows(states: Sequence[State]) -> State:
    """Return states with rows put one after the other; a key that is a dictionary in some is so in all."""
    tables = [one[ROWS] for one in states if ROWS in one]
    fields = [field for one in tables for field in one.schema]
    coded = {field.name for field in fields if pa.types.is_dictionary(field.type)}
    return {ROWS: pa.concat_tables(_encoded(one, coded) for one in tables)} if tables else {}


def _encoded(table: pa.Table, coded: set[str]) -> pa.Table:
    for name in coded:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, as_dictionary(table[name]))
    return table


def matched_codes(
    engine: Engine, partition: Partition, right: Frame, coded: Coded, matching: Matching
) -> tuple[Array, Array, Array]:
    """Return group codes of left and right rows, and which left rows have no null in their key."""
    xp, count = engine.xp, len(matching.left)
    names, left, rows = by_names(count), partition.frame, partition.rows
    if not count:
        codes = xp.zeros(rows + len(right), dtype=xp.int64)
        return codes[:rows], codes[rows:], xp.ones(rows, dtype=xp.bool_)
    ours, theirs = [], []
    for name, own, other in zip(names, matching.left, matching.state_names, strict=True):
        if own in partition.coded:
            there = coded.get(other)
            if there is None:
                texts = engine.to_arrow(right.select(other))[other]
                there = as_dictionary(texts).combine_chunks()
            (codes, valid), (further, known) = codes_alike(partition.coded[own], there)
            if count == 1:
                return codes, further, valid
            ours.append(engine.column(name, codes, valid, pa.int64()))
            theirs.append(engine.column(name, further, known, pa.int64()))
            continue
        ours.append(left[own].alias(name))
        if other in coded:
            texts = pa.table({other: coded[other].dictionary_decode()})
            theirs.append(engine.from_arrow(texts)[other].alias(name))
        else:
            theirs.append(right[other].alias(name))
    for place, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        if one.dtype != two.dtype:  # integers of different widths: others are not comparable
            ours[place], theirs[place] = one.cast(nw.Int64), two.cast(nw.Int64)
    frames = [
        nw.concat([one.to_frame() for one in side], how="horizontal") for side in (ours, theirs)
    ]
    codes = engine.codes(nw.concat(frames, how="vertical"), names)
    return codes[:rows], codes[rows:], all_valid(engine, frames[0], names)


def all_valid(engine: Engine, frame: Frame, columns: Sequence[str]) -> Array:
    """Return which rows have no null in these columns; NaN is not a null on any engine."""
    valid = engine.xp.ones(len(frame), dtype=engine.xp.bool_)
    for name in columns:
        column = frame[name]
        text = column.dtype in (nw.String, nw.Categorical, nw.Enum, nw.Binary)
        valid &= (
            engine.from_host(~column.is_null().to_numpy()) if text else engine.values(column)[1]
        )
    return valid
