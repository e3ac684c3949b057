"""States as they are handed over: whole, or of a keyed one what has the keys of some rows."""

from __future__ import annotations

import pyarrow as pa

from featurestore.storage.states import StateStore
from featurestore.transforms.base import State
from featurestore.transforms.keyed import Keys, rows_among


def state_among(states: StateStore, key: str, keys: pa.Table | None) -> State:
    """Return a state that was computed before.

    Parameters
    ----------
    states : StateStore
    key : str
    keys : pyarrow.Table, optional
        As ``Transformer.keys`` gives them: of a keyed state only rows that have one of them, with no more of it
        in memory than a part.

    Raises
    ------
    StateLostError
    """
    return states.require(key) if keys is None else rows_among(states.parts(key), Keys(keys))
