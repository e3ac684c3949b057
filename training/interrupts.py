"""Ctrl-C that waits until the step under way is done, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Notes the first Ctrl-C inside :meth:`noted`; a second one interrupts at once.

    Examples
    --------
    >>> interrupts = Interrupts()
    >>> try:
    ...     with interrupts.noted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("saves", interrupts.asked)
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    saves True
    interrupted
    """

    def __init__(self) -> None:
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        """Whether there was one."""
        return self._asked.is_set()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note Ctrl-C inside the block, and raise it at its end at the latest; outside the main
        thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = signal.getsignal(signal.SIGINT)

        def first(*_: Any) -> None:
            self._asked.set()
            signal.signal(signal.SIGINT, usual)

        signal.signal(signal.SIGINT, first)
        try:
            yield
            self.raise_asked()
        finally:
            signal.signal(signal.SIGINT, usual)

    def raise_asked(self) -> None:
        """Raise KeyboardInterrupt if one was noted, once."""
        if self._asked.is_set():
            self._asked.clear()
            raise KeyboardInterrupt
