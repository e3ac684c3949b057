"""Memory of a run, ours and the framework's apart: what ``memory.json`` in a run folder says.

A framework allocates as it likes: its libraries when it is imported, then weights, buffers and graphs
while it fits. None of that is under ``memory_limit``; so it is measured, and what this package holds
beside it is projected.

Always true: pages of mapped packs are left out, the kernel takes them back. Trade-off: what the framework
takes is the peak less what was held before it was imported and less what feeding is projected to take,
so it is an estimate from below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from featurestore.execution.events import FRAMEWORK, step
from featurestore.fingerprint import Json
from featurestore.limits import resident_bytes
from featurestore.watermark import watermark
from training.loading.loader import Loader
from training.loading.memory import Projection, Term
from training.loading.pack import mapped_bytes
from training.metrics import judging_bytes

JUDGED_BATCHES: Final = 4
"""Batches whose rows a model is handed at once while it is judged."""


def held_bytes() -> int:
    """Return what this process holds now, pages of mapped packs left out."""
    return max(0, resident_bytes() - mapped_bytes())


def judging(
    loader: Loader, task: str, classes: int | None, beside: tuple[Term, ...] = ()
) -> Projection:
    """Return what judging a model on a loader's rows takes beside the model.

    Labels and predictions of all rows are held at once, and rows as arrays and as the page made of them;
    and what is held ``beside``.
    """
    rows = loader.part.rows
    batch = min(rows, JUDGED_BATCHES * loader.batch_size)
    terms = (
        Term(
            f"labels and predictions of {rows} rows",
            judging_bytes(task, rows, classes),
        ),
        Term(f"{batch} rows", 2 * batch * loader.sample_bytes),
        *beside,
    )
    return Projection(
        "judging the model",
        loader.memory_limit,
        loader.reserved_bytes,
        terms,
        "split so that no part has as many rows, or use a smaller batch_size",
    )


class RunMemory:
    """Collects what a run takes as it goes on.

    Parameters
    ----------
    loaders : iterable of Loader
        All that the run feeds from. Their projections are taken here, before packs are written.
    others : iterable of Projection
        Of what else the run does: judging the model, loaders beside each other.
    """

    def __init__(self, loaders: Iterable[Loader], others: Iterable[Projection] = ()) -> None:
        plans = [one.memory() for one in loaders]
        self._limit = min(one.limit for one in plans)
        self._projected = max([*(one.peak for one in plans), *(one.peak for one in others)])
        self._feeding = max(one.activities[-1].added for one in plans)
        self._marks: dict[str, int] = {}

    @property
    def limit(self) -> int:
        """The memory limit of the loaders, in bytes."""
        return self._limit

    @contextmanager
    def importing(self, framework: str) -> Iterator[None]:
        """Announce and measure the import of a framework."""
        self._marks["before_framework"] = held_bytes()
        with step(f"import {framework}", 1, memory_limit=self._limit, kind=FRAMEWORK) as advance:
            yield
            advance(1)
        self._marks["framework_imported"] = held_bytes()

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Measure the peak while the framework builds a model and fits it."""
        with watermark() as mark:
            yield
            mapped = mapped_bytes()
        self._marks["fit_peak"] = max(0, mark.peak_bytes - mapped)

    def to_json(self) -> dict[str, Json]:
        """Return all figures in bytes.

        ``memory_limit`` and ``projected_peak`` are this package's; ``before_framework``,
        ``framework_imported`` and ``fit_peak`` are what the process held, measured; ``framework`` is
        what of the peak is the framework's.
        """
        before, peak = self._marks.get("before_framework", 0), self._marks.get("fit_peak", 0)
        return {
            "memory_limit": self._limit,
            "projected_peak": self._projected,
            **self._marks,
            "framework": max(0, peak - before - self._feeding),
        }
