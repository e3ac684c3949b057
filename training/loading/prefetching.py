"""Batches made ahead of who asks for them, in one thread: bounded, in order, and gone with the iteration.

Always true: at most ``ahead`` batches are waiting or being made; an error comes where its batch would
have, as itself; nothing runs after the iteration ended, however it ended: at its last batch, by an
error, an interrupt, a ``break``, or with the last reference to it.

Trade-off: ending waits for the batch that is being made, as no thread can be stopped in its middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final, TypeVar

T = TypeVar("T")
_THREAD: Final = "featurestore-batches"


def prefetched(items: Generator[T, None, None], ahead: int) -> Iterator[T]:
    """Yield what a generator yields, of which a thread makes the next ``ahead`` meanwhile.

    The thread begins with the first item that is asked for; the generator is closed when it has ended.

    Parameters
    ----------
    items : generator
    ahead : int
        At least 1.

    Examples
    --------
    >>> list(prefetched((one * one for one in range(4)), ahead=2))
    [0, 1, 4, 9]
    """
    waiting: deque[Future[tuple[T, ...]]] = deque()
    with closing(items), ThreadPoolExecutor(1, _THREAD) as thread:
        try:
            # Each asks for one item: no thread ever waits for a consumer that is gone.
            waiting.extend(thread.submit(_next, items) for _ in range(ahead))
            while made := waiting.popleft().result():
                waiting.append(thread.submit(_next, items))
                yield made[0]
        finally:
            for one in waiting:
                one.cancel()


def _next(items: Iterator[T]) -> tuple[T, ...]:
    """Return the next item by itself; nothing if there is none."""
    for one in items:
        return (one,)
    return ()
