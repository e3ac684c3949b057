"""Means of targets by category, of all folds and without each: what target encoding looks up.

Always true: the mean without a fold is of exact sums of the other folds' rows, so that no target of the fold
enters it, by however little. Drawn towards the mean of all rows, the fewer rows there are the more:
``(count * mean + smoothing * prior) / (count + smoothing)``.

Source: D. Micci-Barreca, "A preprocessing scheme for high-cardinality categorical attributes in classification
and prediction problems", 2001.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.exact_sums import merge_runs, ratio
from featurestore.transforms.base import State
from featurestore.transforms.group_sums import HostArray, first_of_group, keys_of, sums_of

PRIOR: Final = "prior"


@dataclass(frozen=True, slots=True)
class FoldMeans:
    """How means are taken of sums by category and fold, whose last key is the fold.

    Parameters
    ----------
    targets : int
        How many are measured.
    folds : int
    smoothing : float
        How many rows the mean of all counts for.
    """

    targets: int
    folds: int
    smoothing: float

    def of(self, state: State) -> State:
        """Return the priors, and for each kind of category its values of all folds, and without each.

        Parameters
        ----------
        state : State
            ``prior`` (of one category, all rows) and ``by_0``, ``by_1``, ...

        Returns
        -------
        State
            ``prior``: ``fold`` (-1 for none left out) and ``value_<target>``. ``all_<n>``: ``key_0``, ... and
            values. ``rest_<n>``: also ``fold``, for each category and fold with rows: its values without
            this fold.
        """
        prior = [self._prior(state[PRIOR], number) for number in range(self.targets)]
        made = {PRIOR: _values({"fold": np.arange(-1, self.folds, dtype=np.int32)}, prior)}
        for name in state:
            if name != PRIOR:
                number = name.removeprefix("by_")
                whole, rest = self._of_categories(state[name], prior)
                made |= {f"all_{number}": whole, f"rest_{number}": rest}
        return made

    def _prior(self, sums: pa.Table, number: int) -> HostArray:
        """Return the mean of all rows, and of all without each fold; NaN where there is none."""
        out = np.full(self.folds + 1, np.nan)
        have = sums[keys_of(sums)[-1]].to_numpy()
        begins = np.zeros(min(1, len(have)), dtype=np.int64)
        for at in range(self.folds + 1):
            mean, count = _means(sums, number, begins, None if at == 0 else have != at - 1)
            if len(count) and count[0]:
                out[at] = mean[0]
        return out

    def _of_categories(
        self, sums: pa.Table, prior: Sequence[HostArray]
    ) -> tuple[pa.Table, pa.Table]:
        *keys, fold = keys_of(sums)
        folds = sums[fold].to_numpy()
        begins = np.flatnonzero(first_of_group(sums, keys))
        category = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(folds))))
        whole, rest = [], []
        for number, means in enumerate(prior):
            mean, count = _means(sums, number, begins)
            whole.append(self._drawn(mean, count, means[0]))
            without = np.empty(len(folds))
            for one in np.unique(folds).tolist():
                mean, count = _means(sums, number, begins, folds != one)
                here = folds == one
                without[here] = self._drawn(mean, count, means[one + 1])[category[here]]
            rest.append(without)
        categories = sums.select(keys).take(pa.array(begins))
        return (
            _values(dict(zip(keys, categories.columns, strict=True)), whole),
            _values({**{key: sums[key] for key in keys}, "fold": sums[fold]}, rest),
        )

    def _drawn(self, mean: HostArray, count: HostArray, prior: float) -> HostArray:
        with np.errstate(all="ignore"):
            drawn = (count * mean + self.smoothing * prior) / (count + self.smoothing)
            share = count / (count + self.smoothing)  # sums near the largest float64 overflow
            drawn = np.where(np.isfinite(drawn), drawn, share * mean + (1 - share) * prior)
        return np.where(count == 0, prior, drawn)


def _means(
    sums: pa.Table, number: int, begins: HostArray, chosen: HostArray | None = None
) -> tuple[HostArray, HostArray]:
    """Return mean and count of runs of adjacent groups; of no values, both are 0."""
    counts = sums[f"count_{number}"].to_numpy()
    if chosen is not None:
        counts = np.where(chosen, counts, 0)
    if not len(counts):
        return np.zeros(0), np.zeros(0)
    count = np.add.reduceat(counts, begins).astype(np.float64)
    merged = merge_runs(sums_of(sums, "sum", number), begins, chosen)
    return np.where(count > 0, ratio(merged, np.maximum(count, 1.0)), 0.0), count


def _values(columns: Mapping[str, Any], values: Sequence[HostArray]) -> pa.Table:
    made = {f"value_{number}": pa.array(one) for number, one in enumerate(values)}
    return pa.table({**columns, **made})
