"""Where rows are among known ones: numbered together, which works on every engine.

Always true: a row with a null is nowhere, as no known row has one. The trade-off: known rows and others
are copied side by side; an engine that can look up directly does, where that takes less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import narwhals as nw

from featurestore.engines.protocol import Array, Engine, Frame

NOWHERE: Final = -1
KNOWN_TEXTS: Final = 8
"""Texts are looked up directly among known ones of which there are at most one for so many rows."""


def found_by_codes(engine: Engine, frame: Frame, columns: Sequence[str], known: Frame) -> Array:
    """Return what :meth:`Engine.find` does, by codes of known rows and others together."""
    xp, size = engine.xp, len(known)
    both = nw.concat([known.select(*columns), frame.select(*columns)], how="vertical")
    groups = engine.codes(both, columns)
    at = xp.full(len(both), NOWHERE, dtype=xp.int32)
    del both
    at[groups[:size]] = xp.arange(size, dtype=xp.int32)
    return at[groups[size:]]
