"""Drift: how far the distribution of a column is from that of a tagged version."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.arguments import whole_number
from featurestore.errors import InvalidInputError
from featurestore.expectations.expectation import ColumnExpectation, is_number, require_numbers
from featurestore.expectations.tally import Tally
from featurestore.schema import Field

_PSI_FLOOR: Final = 1e-4
"""The least share of a bin, so that an empty one has a logarithm (the usual choice)."""


@dataclass(frozen=True)
class ExpectDrift(ColumnExpectation):
    """The distribution of a column is like that of a tagged version.

    The population stability index (Siddiqi 2006): ``sum((p - q) * ln(p / q))`` over ten bins of about
    equal shares in the reference, and one of missing values; a bin has a share of 0.0001 at least. It is
    read as: below 0.1 no change, above 0.25 a large one. ``ks`` is the largest difference of the
    distribution functions at the edges of the bins: the Kolmogorov-Smirnov statistic at these places.
    Bins and shares are kept with the expectation when it is stated, so that the tag may go.

    Parameters
    ----------
    column : str
        Of numbers.
    tag : str
        Of the version that has the reference.
    psi, ks : float, optional
        The largest that are as expected.
    least : int
        With fewer rows than this, nothing is judged: chance alone would be taken for drift.
    edges, shares : sequence of float
        Found when it is stated.
    """

    tag: str = ""
    psi: float | None = 0.25
    ks: float | None = None
    least: int = 1000
    edges: Sequence[float] = ()
    shares: Sequence[float] = ()
    kind: ClassVar[str] = "drift"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "least", whole_number(self.least, "least"))
        object.__setattr__(self, "edges", tuple(self.edges))
        object.__setattr__(self, "shares", tuple(self.shares))
        if not self.tag:
            raise InvalidInputError(
                f"the drift of {self.column!r} is of nothing", "name the tag of a version: tag="
            )
        if self.psi is None and self.ks is None:
            raise InvalidInputError("neither psi= nor ks= was given", "give one of them")
        for name, one in (("psi", self.psi), ("ks", self.ks)):
            if one is not None and not (is_number(one) and 0 <= one < math.inf):
                raise InvalidInputError(f"{name}={one!r} is no limit", "give a number from 0 on")

    def as_asked(self) -> ExpectDrift:
        return replace(self, edges=(), shares=())

    def _check_type(self, found: Field) -> None:
        require_numbers(found)

    def _bins(self, values: pa.ChunkedArray) -> tuple[int, ...]:
        return bins_of(values, self.edges)

    def judge(self, tally: Tally) -> tuple[float | None, float | None, str]:
        if tally.rows < max(self.least, 1) or not self.shares:
            return None, self.psi if self.psi is not None else self.ks, ""
        found = np.array(tally.bins) / tally.rows
        psi = population_stability(np.array(self.shares), found)
        ks = largest_difference(np.array(self.shares), found)
        wrong = []
        if self.psi is not None and psi > self.psi:
            wrong.append(f"PSI {psi:.3g} against tag {self.tag!r}, at most {self.psi}")
        if self.ks is not None and ks > self.ks:
            wrong.append(f"KS {ks:.3g} against tag {self.tag!r}, at most {self.ks}")
        by_psi = self.psi is not None
        return (psi if by_psi else ks), (self.psi if by_psi else self.ks), " and ".join(wrong)


def bins_of(values: pa.ChunkedArray, edges: Sequence[float]) -> tuple[int, ...]:
    """Return how many values each bin has: up to each edge, above the last, and missing ones."""
    numbers = values.cast(pa.float64(), safe=False).drop_null().to_numpy()
    known = numbers[~np.isnan(numbers)]
    places = np.searchsorted(np.asarray(edges), known, side="left")
    counts = np.bincount(places, minlength=len(edges) + 1)
    return (*(int(one) for one in counts), len(values) - len(known))


def population_stability(reference: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Return the population stability index of two distributions over the same bins."""
    p, q = np.maximum(reference, _PSI_FLOOR), np.maximum(found, _PSI_FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def largest_difference(reference: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """Return the largest difference of two distribution functions at the bins' edges, of known values."""
    known, other = reference[:-1], found[:-1]
    if not known.sum() > 0 or not other.sum() > 0:
        return 0.0 if known.sum() == other.sum() else 1.0
    steps = np.cumsum(known) / known.sum() - np.cumsum(other) / other.sum()
    return float(np.abs(steps).max())
