"""Two operations at once, exactly: one is published between the work and the commit of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featurestore.session import Session
from featurestore.storage.commit_log import CommitLog
from featurestore.store import FeatureStore
from featurestore.table import Table

Meanwhile = Callable[[Callable[[], Any]], None]
"""Takes what is to happen right before the next commit of any log."""


class InterleavedLog(CommitLog):
    """A log before whose first ``commit`` or ``tag`` something else happens."""

    commits = 0
    _before: Callable[[], Any] | None = None

    def let_happen(self, before: Callable[[], Any]) -> None:
        """Call ``before`` once, right before the next commit or tag."""
        self._before = before

    def _once(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()

    def commit(self, *given: Any, **named: Any) -> Any:
        self.commits += 1
        self._once()
        return super().commit(*given, **named)

    def tag(self, *given: Any, **named: Any) -> Any:
        self._once()
        return super().tag(*given, **named)


class PausingStore:
    """An object store before whose first call of some methods something else happens.

    Parameters
    ----------
    store : ObjectStore
    calls : tuple of str
        Names of methods.
    before : callable
    """

    def __init__(self, store: Any, calls: tuple[str, ...], before: Callable[[], Any]) -> None:
        self._store, self._calls = store, calls
        self._before: Callable[[], Any] | None = before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in self._calls:
            return method

        def paused(*given: Any, **named: Any) -> Any:
            before, self._before = self._before, None
            if before is not None:
                before()
            return method(*given, **named)

        return paused


def interleaved(
    url: str, before: Callable[[], Any], pause: tuple[str, ...] = ()
) -> tuple[FeatureStore, InterleavedLog]:
    """Open a store in whose next commit something else comes first.

    Parameters
    ----------
    url : str
    before : callable
        Runs once, right before the store's next commit or tag.
    pause : tuple of str
        Before the first of these calls of its log's object store instead: for operations that
        change files without a commit.
    """
    opened = FeatureStore.open(url, workers=1)._session
    objects = PausingStore(opened.objects, pause, before) if pause else opened.objects
    log = InterleavedLog.open(objects)
    assert isinstance(log, InterleavedLog)
    if not pause:
        log.let_happen(before)
    return FeatureStore(Session(log, opened.place)), log


def another(table: Table) -> Table:
    """Return the same table, opened once more as another process would."""
    return FeatureStore.open(table._session.objects.url, workers=1).table(table.name)
