"""Where the values of rows are among learnt ones: what encoders by category share.

Always true: null was never learnt, so a row with a null in one of the columns is nowhere. Trade-off: what
looking up takes is built for each partition, and no index is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from featurestore.engines.finding import KNOWN_TEXTS
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.schema import TableSchema
from featurestore.transforms.footprint import VIEW, grouping_bytes, is_text
from featurestore.transforms.statistics import is_whole

_LEARNT_TEXT: Final = 24
"""What a learnt text takes as the engine's own, beside its characters."""
_FOUND: Final = 48
_KNOWN: Final = 260
"""What a text takes that is looked up directly, and a learnt one among which it is."""


def positions(frame: Frame, columns: Sequence[str], learnt: pa.Table, engine: Engine) -> Array:
    """Return for each row where its values are among the learnt ones.

    Parameters
    ----------
    frame : Frame
    columns : sequence of str
        At least one.
    learnt : pyarrow.Table
        As many columns, in that order and of these types; rows are different from each other, without nulls.
    engine : Engine

    Returns
    -------
    Array
        ``int32 [rows]``, ``NOWHERE`` for a row that was not learnt.
    """
    known = engine.from_arrow(learnt.rename_columns(list(columns)))
    return engine.find(frame, columns, known)


def positions_memory(schema: TableSchema, columns: Sequence[str], rows: int, learnt: int) -> int:
    """Return what :func:`positions` takes of some rows, its result included.

    Parameters
    ----------
    schema : TableSchema
    columns : sequence of str
    rows, learnt : int
        Rows that are looked up, and learnt ones.
    """
    if len(columns) == 1 and is_text(schema[columns[0]].type) and learnt * KNOWN_TEXTS <= rows:
        return _FOUND * rows + _KNOWN * learnt
    texts = sum(is_text(schema[name].type) for name in columns)
    together = rows + learnt
    if all(is_whole(schema[name].type) for name in columns):
        # Numbered one column after the other, of which each is copied when its turn comes.
        return 8 * together + grouping_bytes(schema, columns[:1], together)
    joined = (8 * len(columns) + (VIEW - 8) * texts) * together + _LEARNT_TEXT * texts * learnt
    return joined + max(grouping_bytes(schema, columns, together), 12 * together + 4 * rows)
