"""XGBoost: external-memory training over the pages of a pack.

XGBoost passes over the data several times while it builds its quantised cache; each pass reads the
same pages of the pack in table order, so transforms never run again. A page is one new float32 array
(XGBoost uses the array object as a cache key): numeric columns, categorical codes with feature type
``c``, and tensors flattened to one column per element, in the order of the dataset's schema. NaN is
missing. Of a ranking (``group=``) a page ends where a query does, as XGBoost takes each page's queries
for others than those of the page before.

The trade-off: few large pages are fast and cost that much memory; XGBoost's own cache lies on disk
and may be larger than the raw floats. It is removed with the matrix.
"""

from __future__ import annotations

import atexit
import math
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xgboost

from featurestore.dataset.batch import (
    NUMERIC,
    TARGETS,
    Batch,
    DatasetSchema,
    HostArray,
    Role,
)
from featurestore.errors import DefinitionError, InvalidInputError, UnsupportedError
from featurestore.units import parse_bytes
from training.loading.held import HeldRows
from training.loading.memory import Projection, page_terms
from training.loading.pack import Pack
from training.loading.queries import Queries, first_of_each, measure_queries, queries_of
from training.loading.scratch import scratch_directory

if TYPE_CHECKING:
    from training.loading.loader import Loader

__all__ = [
    "XGBoostPages",
    "dmatrix",
    "feature_columns",
    "page",
    "predict_batches",
    "told",
    "xgboost",
]

DEFAULT_PAGE_BYTES: Final = 128 * 2**20
_CHECKED_ROWS: Final = 4096
_EXACT_CODES: Final = 2**24


def feature_columns(schema: DatasetSchema) -> tuple[list[str], list[str]]:
    """Return names and XGBoost types (``q`` quantitative, ``c`` categorical) of a page's columns.

    Raises
    ------
    DefinitionError
        If a categorical input has more codes than float32 tells apart.
    """
    names, types = [], []
    for one in schema.inputs:
        if one.role is Role.CATEGORICAL and (one.cardinality or 0) > _EXACT_CODES:
            raise DefinitionError(
                f"categorical input {one.name!r} has {one.cardinality} codes; XGBoost tells "
                f"{_EXACT_CODES} apart",
                "give Categorify a maximum size, or encode the column as numbers",
            )
        width = math.prod(one.shape)
        names += [one.name] if not one.shape else [f"{one.name}_{i}" for i in range(width)]
        types += ["c" if one.role is Role.CATEGORICAL else "q"] * width
    if not names:
        raise DefinitionError("a dataset without features cannot train a model")
    return names, types


def page(batch: Batch, schema: DatasetSchema) -> HostArray:
    """Return the inputs of some rows as one new float32 array ``[rows, columns]``.

    Raises
    ------
    InvalidInputError
        If a value is infinite, or too large for float32: XGBoost takes none of these.
    """
    out = np.empty((batch.rows, len(feature_columns(schema)[0])), dtype=np.float32)
    for where, values in _places(batch, schema):
        out[:, where] = values
    infinite = np.zeros(out.shape[1], dtype=bool)
    for start in range(0, len(out), _CHECKED_ROWS):
        infinite |= np.isinf(out[start : start + _CHECKED_ROWS]).any(axis=0)
    if infinite.any():
        names = [
            name for name, bad in zip(feature_columns(schema)[0], infinite, strict=True) if bad
        ]
        raise InvalidInputError(
            f"columns {names[:5]} hold infinity or values beyond float32, which XGBoost does not take",
            "clip them or make them null with fs.Expression, or leave the columns out",
        )
    return out


def _places(batch: Batch, schema: DatasetSchema) -> Iterator[tuple[slice, HostArray]]:
    """Yield which columns of a page come from which values; neighbouring numeric columns at once."""
    position = numeric = 0
    for is_numeric, group in groupby(schema.inputs, lambda one: one.role is Role.NUMERIC):
        several = list(group)
        if is_numeric:
            width = len(several)
            yield (
                slice(position, position + width),
                batch.inputs[NUMERIC][:, numeric : numeric + width],
            )
            numeric, position = numeric + width, position + width
            continue
        for one in several:
            width = math.prod(one.shape)
            values = batch.inputs[one.name].reshape(batch.rows, width)
            yield slice(position, position + width), values
            position += width


def _label(values: HostArray) -> HostArray:
    label = values.astype(np.float32)
    if not np.isfinite(label).all():
        raise InvalidInputError(
            "the label holds infinity or values beyond float32, which XGBoost does not take",
            "clip it, or leave these rows out with where=",
        )
    return label


def told(batch: Batch, queries: Queries | None = None, start: int = 0) -> dict[str, HostArray]:
    """Return what XGBoost is told of rows in table order beside their inputs.

    Parameters
    ----------
    batch : Batch
    queries : Queries, optional
        Of the pack that the rows are from; none is cut.
    start : int
        The first of the rows.

    Returns
    -------
    dict
        ``label`` float32 ``[rows]`` or ``[rows, labels]``; ``weight`` float32 ``[rows]``, of a ranking
        ``[queries]``; ``qid`` uint32 ``[rows]``; ``base_margin`` float32 ``[rows]`` or
        ``[rows, classes]``: those of them that there are.
    """
    found: dict[str, HostArray] = {}
    if batch.label is not None:
        found["label"] = _label(batch.label)
    elif batch.labels:
        found["label"] = np.stack([_label(one) for one in batch.labels.values()], axis=1)
    if batch.base_margin is not None:
        found["base_margin"] = np.ascontiguousarray(batch.base_margin)
    if batch.weight is not None:
        found["weight"] = np.ascontiguousarray(batch.weight)
    if queries is not None:
        stop = start + batch.rows
        found["qid"] = queries.numbers(start, stop)
        if batch.weight is not None:
            within = queries.within(start, stop) - start
            found["weight"] = first_of_each(batch.weight, within, "the weight")
    return found


class XGBoostPages(xgboost.DataIter):  # type: ignore[misc]
    """The rows of a loader's part in table order, as XGBoost's data iterator.

    Parameters
    ----------
    loader : Loader
    page_bytes : int or str, optional
        Size of a page's float32 array: 128 MiB, or half of what the loader's memory limit leaves if
        that is less. Of a ranking a page holds the longest query at least.

    Raises
    ------
    InvalidInputError
        If the part has no rows, they are not kept (``pack=False``), or a query of its group is not one
        run of rows.
    MemoryLimitError
        If pages of this size do not fit the loader's memory limit; see ``memory``.
    """

    def __init__(self, loader: Loader, page_bytes: int | str | None = None) -> None:
        super().__init__()  # first: its finaliser needs what it sets
        if loader.rows == 0:
            raise InvalidInputError("a dataset part without rows cannot train a model")
        if loader.window is not None:
            raise InvalidInputError(
                f"XGBoost learns from rows, not from sequences of {loader.window.rows}",
                "leave window= out, and add Lag or Rolling features",
            )
        if loader.steps.ranks.world > 1:
            raise UnsupportedError(
                f"XGBoost's external memory is of one process, and this loader is rank "
                f"{loader.steps.ranks.rank} of {loader.steps.ranks.world}",
                "give it the loader that is not sharded; over several processes train with "
                "training.hooks.xgboost_dask",
            )
        self._loader = loader = loader.in_table_order()
        rows = loader.samples
        if not isinstance(rows, Pack | HeldRows):
            raise InvalidInputError(
                "XGBoost passes over the rows several times; without a pack each pass would read and "
                "transform them again",
                "leave pack=False out, or use hold='memory' if the part fits",
            )
        self._rows = rows
        self._names, self._types = feature_columns(loader.schema)
        half = max(0, loader.memory_limit - loader.reserved_bytes) // 2
        size = min(DEFAULT_PAGE_BYTES, half) if page_bytes is None else parse_bytes(page_bytes)
        self._page_rows = min(loader.rows, max(1, size // (4 * len(self._names))))
        self._queries, self._query_count = None, 0
        ids, group = rows.view(0, rows.rows).group, loader.schema.group
        if ids is None or group is None:
            self.memory.require()
        else:
            self._query_count, longest = measure_queries(ids, loader.rows)
            self._page_rows = max(self._page_rows, longest)
            self.memory.require()
            self._queries = queries_of(ids, loader.rows, group.name)
        self._next_row = 0
        _remove_empty()
        self.cache_directory = scratch_directory(loader.cache_directory)
        _LEFT[self.cache_directory] = weakref.ref(self)
        self.cache_prefix = str(self.cache_directory / "cache")

    @property
    def memory(self) -> Projection:
        """What handing over pages takes; what XGBoost itself allocates is not in it."""
        loader = self._loader
        others = sum(math.prod(one.shape) for one in loader.schema.columns if one.role in TARGETS)
        terms = page_terms(len(self._names), self._page_rows, others, self._query_count)
        return Projection(
            "handing pages to XGBoost",
            loader.memory_limit,
            loader.reserved_bytes,
            terms,
            "use a smaller page_bytes",
        )

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Give XGBoost the next page; False after the last."""
        start = self._next_row
        if start >= self._loader.rows:
            return False
        stop = min(start + self._page_rows, self._loader.rows)
        stop = stop if self._queries is None else self._queries.end(stop)
        # Not copied first: a page is the only copy of its rows.
        batch = self._rows.view(start, stop)
        input_data(
            data=page(batch, self._loader.schema),
            feature_names=self._names,
            feature_types=self._types,
            **told(batch, self._queries, start),
        )
        self._next_row = stop
        return True

    def reset(self) -> None:
        """Start again at the first row."""
        self._next_row = 0


_LEFT: Final[dict[Path, weakref.ref[XGBoostPages]]] = {}
"""Cache directories not removed yet, and the iterators they were made for.

XGBoost deletes its file when the matrix is freed, and a Booster trained on the matrix keeps it; only
then is the directory empty and may go.
"""


def _remove_empty() -> None:
    for path, pages in list(_LEFT.items()):
        if pages() is None:
            with suppress(OSError):  # XGBoost's file is still in it
                path.rmdir()
                del _LEFT[path]


@atexit.register
def _remove_all() -> None:
    for path in _LEFT:
        shutil.rmtree(path, ignore_errors=True)


def dmatrix(
    loader: Loader,
    ref: Any = None,
    *,
    max_bin: int = 256,
    page_bytes: int | str | None = None,
    nthread: int | None = None,
) -> Any:
    """Return an ``xgboost.ExtMemQuantileDMatrix`` over a loader's rows in table order.

    Parameters
    ----------
    loader : Loader
    ref : DMatrix, optional
        The training matrix, for validation data: both are cut at the same quantiles.
    max_bin : int
        The same in all matrices and in the training parameters.
    page_bytes : int or str, optional
        See :class:`XGBoostPages`.
    nthread : int, optional

    Returns
    -------
    xgboost.ExtMemQuantileDMatrix
        Its cache file is removed when it and the Boosters trained on it are garbage collected,
        the directory at the next matrix or at exit.
    """
    pages = XGBoostPages(loader, page_bytes)
    matrix = xgboost.ExtMemQuantileDMatrix(
        pages, ref=ref, max_bin=max_bin, enable_categorical=True, nthread=nthread
    )
    weakref.finalize(matrix, _remove_empty)
    return matrix


def predict_batches(booster: Any, batches: Iterator[Batch], schema: DatasetSchema) -> HostArray:
    """Return predictions for batches, in their order, a batch at a time in memory.

    Those of a dataset with a base margin begin from it, as in training.

    Returns
    -------
    float32 array [rows] or [rows, classes]

    Raises
    ------
    InvalidInputError
        If the model was trained upon a base margin, and a batch has none.
    """
    names, types = feature_columns(schema)
    found = []
    for batch in batches:
        if schema.base_margin is not None and batch.base_margin is None:
            raise InvalidInputError(
                f"predictions begin from base_margin {schema.base_margin.name!r}, which the rows lack",
                "give it as a column of the rows",
            )
        matrix = xgboost.DMatrix(
            page(batch, schema),
            base_margin=batch.base_margin,
            feature_names=names,
            feature_types=types,
            enable_categorical=True,
        )
        found.append(booster.predict(matrix))
    return np.concatenate(found) if found else np.empty(0, dtype=np.float32)
