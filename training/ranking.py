"""How good a ranking is: the normalised discounted cumulative gain of its queries."""

from __future__ import annotations

import math

import numpy as np

from featurestore.dataset.batch import HostArray


def ndcg(label: HostArray, score: HostArray, group: HostArray) -> float:
    """Return the mean over queries of the NDCG of all their rows.

    Parameters
    ----------
    label : array [rows]
        How relevant each row is, from 0 on.
    score : array [rows]
        Rows of a query are ranked by it, highest first; of equal ones the earlier row.
    group : array [rows]
        The query of each row, each one run of rows.

    Returns
    -------
    float
        In [0, 1]; NaN without rows. A query without relevant rows counts 1, as in XGBoost.

    Notes
    -----
    Gain ``2^label - 1``, discount ``log2(rank + 1)`` (Burges et al., 2005). Sums run in float64.

    Examples
    --------
    >>> float(ndcg(np.array([1, 0, 0, 2]), np.array([0.9, 0.1, 0.8, 0.2]), np.array([7, 7, 8, 8])))
    0.8154648767857288
    """
    if not len(label):
        return math.nan
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    rows = np.diff(np.append(starts, len(label)))
    query = np.repeat(np.arange(len(starts), dtype=np.int32), rows)
    discount = 1 / np.log2(np.arange(len(label)) - np.repeat(starts, rows) + 2)
    gain = np.exp2(np.asarray(label, dtype=np.float64)) - 1

    def gained(by: HostArray) -> HostArray:
        found: HostArray = np.add.reduceat(gain[np.lexsort((-by, query))] * discount, starts)
        return found

    best = gained(gain)
    return float(np.where(best > 0, gained(score) / np.where(best > 0, best, 1), 1.0).mean())
