"""How many steps Keras runs in one call into TensorFlow: measured on a copy of the model.

More steps a call spare Keras' own work between steps, which small models notice; callbacks, checkpoints and
Ctrl-C then come after so many steps. What is measured is a model that is thrown away, on batches
read without moving the loader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from training.hooks.keras import KerasBatches

CANDIDATES: Final = (1, 4, 16, 64)
_MEASURED_STEPS: Final = 64
_PATIENCE_SECONDS: Final = 5.0
_WORTH: Final = 0.97
"""A larger number is chosen only if its step takes at most this share of the time."""


def measured(build: Callable[[int], Any], batches: KerasBatches) -> int:
    """Return the number of steps per execution whose step takes least, smaller ones preferred.

    Parameters
    ----------
    build : function
        From steps per execution to a compiled model.
    batches : KerasBatches
    """
    from training.hooks.tf_data import repeated

    loader = batches.loader
    candidates = [one for one in CANDIDATES if one <= max(1, len(loader) // 2)]
    data = repeated(batches.element(loader.batch(0, 0)), batches.signature())
    seconds: dict[int, float] = {}
    started = time.perf_counter()
    for one in candidates:
        model = build(one)
        model.fit(data, steps_per_epoch=2 * one, shuffle=False, verbose=0)  # compiles
        began = time.perf_counter()
        steps = max(1, _MEASURED_STEPS // one) * one
        model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
        seconds[one] = (time.perf_counter() - began) / steps
        if time.perf_counter() - started > _PATIENCE_SECONDS * len(seconds):
            break
    return chosen(seconds)


def chosen(seconds: Mapping[int, float]) -> int:
    """Return the least number that no larger one beats by much.

    Examples
    --------
    >>> chosen({1: 10.0, 4: 8.0, 16: 7.9, 64: 7.9}), chosen({1: 10.0, 4: 9.9})
    (4, 1)
    """
    best = min(seconds)
    for one in sorted(seconds):
        if seconds[one] < _WORTH * seconds[best]:
            best = one
    return best
