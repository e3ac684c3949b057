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
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xgboost

from featurestore.arguments import whole_number
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


@dataclass(frozen=True, slots=True)
class PagePlan:
    """How the rows of a pack are handed over, and what that takes.

    Parameters
    ----------
    pack : Pack or HeldRows
        In table order.
    cache : Path
        Where XGBoost's files go.
    page_rows : int
        Rows of a page at most.
    queries : Queries, optional
        Of a ranking; pages end where they do.
    memory : Projection
        What handing over pages takes; what XGBoost itself allocates is not in it.
    """

    pack: Pack | HeldRows
    cache: Path
    page_rows: int
    queries: Queries | None
    memory: Projection

    @classmethod
    def of(
        cls,
        loader: Loader,
        page_bytes: int | str | None = None,
        limit: int | None = None,
        reserved: int | None = None,
    ) -> PagePlan:
        """Return the plan for a loader's rows; parameters and errors are those of :class:`XGBoostPages`.

        ``limit`` and ``reserved`` are bytes of the process that hands over pages, this one's if not given.
        """
        pack, schema = rows_of(loader), loader.schema
        limit = loader.memory_limit if limit is None else limit
        reserved = loader.reserved_bytes if reserved is None else reserved
        columns = len(feature_columns(schema)[0])
        size = min(DEFAULT_PAGE_BYTES, max(0, limit - reserved) // 2)
        size = size if page_bytes is None else parse_bytes(page_bytes)
        rows = min(loader.rows, max(1, size // (4 * columns)))
        # A view asks the kernel for its rows, all arrays of them: of no use without queries.
        ids, group = None if schema.group is None else pack.view(0, pack.rows).group, schema.group
        count, longest = (0, 0) if ids is None else measure_queries(ids, loader.rows)
        rows = max(rows, longest)
        others = sum(math.prod(one.shape) for one in schema.columns if one.role in TARGETS)
        memory = Projection(
            "handing pages to XGBoost",
            limit,
            reserved,
            page_terms(columns, rows, others, count),
            "use a smaller page_bytes",
        )
        memory.require()
        queries = None
        if ids is not None and group is not None:
            queries = queries_of(ids, loader.rows, group.name)
        return cls(pack, loader.cache_directory, rows, queries, memory)


def rows_of(loader: Loader) -> Pack | HeldRows:
    """Return all rows of a loader's part in table order, where they can be read again and again.

    Raises
    ------
    InvalidInputError, UnsupportedError
        If it has none, gives sequences or a share of the rows, or does not keep them.
    """
    if loader.rows == 0:
        raise InvalidInputError("a dataset part without rows cannot train a model")
    loader.ragged.refuse("XGBoost", padded=True)
    table = loader.in_table_order()
    if table.window is not None:
        raise InvalidInputError(
            f"XGBoost learns from rows, not from sequences of {table.window.rows}",
            "leave window= out, and add Lag or Rolling features",
        )
    ranks = loader.steps.ranks
    if ranks.world > 1:
        raise UnsupportedError(
            f"XGBoost learns from all rows, and this loader is rank {ranks.rank} of {ranks.world}",
            "give the loader as it was before shard(); over a cluster use training.hooks.xgboost_dask",
        )
    rows = table.samples
    if not isinstance(rows, Pack | HeldRows):
        raise InvalidInputError(
            "XGBoost passes over the rows several times; without a pack each pass would read and "
            "transform them again",
            "leave pack=False out, or use hold='memory' if the part fits",
        )
    return rows


class PackPages(xgboost.DataIter):  # type: ignore[misc]
    """A run of a pack's rows as XGBoost's data iterator, with a directory for its cache files.

    Parameters
    ----------
    pack : Pack or HeldRows
        In table order.
    cache : Path
        Where XGBoost's files go.
    page_rows : int
    rows : (int, int), optional
        The first row and the one after the last; all if not given. No query is cut.
    queries : Queries, optional
    """

    def __init__(
        self,
        pack: Pack | HeldRows,
        cache: Path,
        page_rows: int,
        rows: tuple[int, int] | None = None,
        queries: Queries | None = None,
    ) -> None:
        super().__init__()  # first: its finaliser needs what it sets
        self._give(pack, cache, page_rows, rows, queries)

    def _give(
        self,
        pack: Pack | HeldRows,
        cache: Path,
        page_rows: int,
        rows: tuple[int, int] | None = None,
        queries: Queries | None = None,
    ) -> None:
        self._pack, self._page_rows, self._queries = pack, page_rows, queries
        self._first, self._stop = (0, pack.rows) if rows is None else rows
        self._names, self._types = feature_columns(pack.schema)
        self._next_row = self._first
        _remove_empty()
        self.cache_directory = scratch_directory(cache)
        _LEFT[self.cache_directory] = weakref.ref(self)
        self.cache_prefix = str(self.cache_directory / "cache")

    def next(self, input_data: Callable[..., Any]) -> bool:
        """Give XGBoost the next page; False after the last."""
        start = self._next_row
        if start >= self._stop:
            return False
        stop = min(start + self._page_rows, self._stop)
        stop = stop if self._queries is None else self._queries.end(stop)
        # Not copied first: a page is the only copy of its rows.
        batch = self._pack.view(start, stop)
        input_data(
            data=page(batch, self._pack.schema),
            feature_names=self._names,
            feature_types=self._types,
            **told(batch, self._queries, start),
        )
        self._next_row = stop
        return True

    def reset(self) -> None:
        """Start again at the first row."""
        self._next_row = self._first


class XGBoostPages(PackPages):
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
    UnsupportedError
        For one rank's share.
    MemoryLimitError
        If pages of this size do not fit the loader's memory limit; see ``memory``.
    """

    def __init__(self, loader: Loader, page_bytes: int | str | None = None) -> None:
        xgboost.DataIter.__init__(self)  # first: its finaliser needs what it sets
        self.plan = PagePlan.of(loader, page_bytes)
        self._give(self.plan.pack, self.plan.cache, self.plan.page_rows, None, self.plan.queries)

    @property
    def memory(self) -> Projection:
        """What handing over pages takes; what XGBoost itself allocates is not in it."""
        return self.plan.memory


_LEFT: Final[dict[Path, weakref.ref[PackPages]]] = {}
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
    if _LEFT:
        # Matrices that live to the end are freed after this, and XGBoost would warn that its files are gone.
        xgboost.set_config(verbosity=0)
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
        The same in all matrices and in the training parameters; at least 2.
    page_bytes : int or str, optional
        See :class:`XGBoostPages`.
    nthread : int, optional

    Returns
    -------
    xgboost.ExtMemQuantileDMatrix
        Its cache file is removed when it and the Boosters trained on it are garbage collected,
        the directory at the next matrix or at exit.
    """
    max_bin = whole_number(max_bin, "max_bin", 2)
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
