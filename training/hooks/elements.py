"""Elements: a batch as frameworks take it, ``(inputs, label)``, or ``(inputs,)`` without a label.

Of several labels, ``label`` is a dict. Where batches have weights, elements are ``(inputs, label, weight)``. Nothing is learnt from rows
without a label: they have none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.dataset.batch import Batch, HostArray
from featurestore.errors import InvalidInputError
from training.loading.ragged_inputs import ragged_arrays


def element(batch: Batch, *, narrow: bool = True) -> tuple[Any, ...]:
    """Return a batch as ``(inputs, label)``, with its weight if it has one, or ``(inputs,)``.

    ``narrow`` is as in :func:`label_dtype`.

    Raises
    ------
    InvalidInputError
        If a label does not fit that type.
    """
    inputs: dict[str, HostArray] = dict(batch.inputs)
    for name, lists in batch.lists.items():
        inputs |= ragged_arrays(name, lists)
    label: HostArray | dict[str, HostArray]
    if batch.label is not None:
        label = _as_label(batch.label, narrow)
    elif batch.labels:
        label = {name: _as_label(one, narrow) for name, one in batch.labels.items()}
    else:
        return (inputs,)
    return (inputs, label) if batch.weight is None else (inputs, label, batch.weight)


def _as_label(values: HostArray, narrow: bool) -> HostArray:
    dtype = label_dtype(values.dtype, narrow=narrow)
    with np.errstate(over="ignore"):
        made = values.astype(dtype, copy=False)
    if values.dtype.kind == "f":
        lost = values.dtype.itemsize > 4 and bool((np.isinf(made) & np.isfinite(values)).any())
    else:
        lost = values.dtype == np.uint64 and bool((made < 0).any())
    if lost:
        raise InvalidInputError(
            f"a label holds {values.max()}, beyond {dtype}, under which models get it",
            "scale or clip the label",
        )
    return made


def label_dtype(dtype: np.dtype[Any], *, narrow: bool = True) -> np.dtype[Any]:
    """Return the type under which losses get a label: float32, int32, or int64 where needed.

    With ``narrow=False`` integers are int64 always.

    Examples
    --------
    >>> label_dtype(np.dtype("uint8")), label_dtype(np.dtype("uint8"), narrow=False)
    (dtype('int32'), dtype('int64'))
    """
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32 if narrow and np.can_cast(dtype, np.int32) else np.int64)
