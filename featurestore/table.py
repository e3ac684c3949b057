"""A table: rows with a key and a time, ingested columns, and features.

Methods here read what exists, decide, and hand over: planning to ``plan``, work to ``execution``,
rows to ``ingest``, selections to ``dataset``. A table follows the newest version of its store
unless the store is a checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.arguments import column_names
from featurestore.compaction import compact
from featurestore.dataset.dataset import Dataset
from featurestore.errors import SchemaError
from featurestore.execution.collecting import collect_rows, dask_frame
from featurestore.execution.serving import compute_features
from featurestore.features import FeatureSet, definitions_of
from featurestore.ingest.sources import open_source
from featurestore.inspection import Inspection
from featurestore.plan.definition import FeatureDefinition
from featurestore.plan.lineage import definitions, lineage
from featurestore.plan.table_files import TableFiles
from featurestore.report.plans import BuildPlan
from featurestore.report.summary import summary_of
from featurestore.report.tables import (
    BuildReport,
    CompactReport,
    RowsReport,
    TableStatus,
    TableSummary,
)
from featurestore.rows import RowSet
from featurestore.schema import TableSchema
from featurestore.session import Session
from featurestore.transforms.base import Transformer
from featurestore.transforms.function import feature_from

if TYPE_CHECKING:
    import narwhals as nw

    from featurestore.dataset.split import Split
    from featurestore.transforms.pipeline import Pipeline


class Table(Inspection):
    """One table of a store; see :meth:`FeatureStore.table`."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def store_url(self) -> str:
        """Where the store is that it belongs to."""
        return self._session.objects.url

    @property
    def schema(self) -> TableSchema:
        """All columns, ingested and features, built or not."""
        return self._session.snapshot().schema(self._name)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.schema.names

    @property
    def key(self) -> tuple[str, ...]:
        return self._session.snapshot().table(self._name).key

    @property
    def time(self) -> str | None:
        return self._session.snapshot().table(self._name).time

    @property
    def rows(self) -> int:
        return self._files().rows

    @property
    def partitions(self) -> int:
        return len(self._files().base)

    @property
    def version(self) -> int:
        """The version of the store this table is at."""
        return self._session.snapshot().version

    def describe(self) -> TableSummary:
        """Return rows, partitions, columns, time range and size on disk."""
        return summary_of(self._files())

    def __repr__(self) -> str:
        return str(self.describe())

    def _repr_html_(self) -> str:
        return self.describe()._repr_html_()

    def __len__(self) -> int:
        return self.rows

    # --- rows ------------------------------------------------------------------------------------------------

    def append(self, source: Any, *, types: dict[str, str] | None = None) -> int:
        """Add rows as new partitions; features are missing there until ``build``.

        Parameters
        ----------
        source : path, glob, list of them, or object with ``__arrow_c_stream__``
            With the table's ingested columns.
        types : mapping of str to str, optional
            As in ``FeatureStore.ingest``.

        Returns
        -------
        int
            Rows appended.

        Raises
        ------
        LateRowsError
            If rows are not newer than the newest partition.
        InvalidInputError
            For every other fault of the data; the table is then exactly as before.
        """
        return self._rows.append(source, types)

    def replace(
        self,
        source: Any,
        time_range: tuple[Any, Any],
        *,
        types: dict[str, str] | None = None,
    ) -> RowsReport:
        """Let the rows with ``start <= time < stop`` give way to those of ``source``.

        Only partitions that hold such times are written again; features are missing there, and
        stale where they look back on them, until ``build``. A source without rows deletes the range;
        a range without rows gets some. Older versions and datasets keep the old rows.

        Parameters
        ----------
        source : path, glob, list of them, or object with ``__arrow_c_stream__``
            With the table's ingested columns and times in the range only.
        time_range : (start, stop)
            Each ISO 8601 text, date, datetime, integer for an integer time column, or None for an
            open end.
        types : mapping of str to str, optional
            As in ``FeatureStore.ingest``.

        Returns
        -------
        RowsReport

        Raises
        ------
        InvalidInputError
            For a table without time, rows outside the range, and every other fault of the data; the
            table is then exactly as before.
        ConflictError
            If rows of these partitions changed, or rows were added in the range, meanwhile.
        """
        return self._rows.replace(source, time_range, types)

    def delete(self, where: nw.Expr) -> RowsReport:
        """Remove the rows for which a condition is true; where it is null or false they stay.

        Only partitions that hold such rows are written again, as with :meth:`replace`. Rows that
        somebody appends meanwhile are not looked at. Nothing is published if no row matches.

        Parameters
        ----------
        where : narwhals.Expr
            A row-wise condition on ingested columns or features that are built.

        Returns
        -------
        RowsReport

        Raises
        ------
        NotPartitionIndependentError
            If the condition looks at other rows.
        NotReadyError
            If a feature in it is missing or stale.
        MemoryLimitError
            Before anything is written.
        ConflictError
            If rows of these partitions changed meanwhile.
        """
        return self._rows.delete(where)

    def compact(
        self, partition_bytes: int | str | None = None, merge_groups: bool = False
    ) -> CompactReport:
        """Merge adjacent small partitions; rows, order, values and what is fresh stay as they are.

        Features that are missing or stale in a part are left missing where parts became one.
        Interrupted, it goes on where it was when it is run again. Older versions, and whoever reads
        them, are not touched; ``gc`` frees the old files when no kept version names them.

        Parameters
        ----------
        partition_bytes : int or str, optional
            Largest size in memory of the ingested columns of partitions that become one; the table's
            target if not given.
        merge_groups : bool
            Whether the scalar columns of all features go into one file per partition, so that reading
            many of them opens one file instead of many. Without it, features get files of their own
            where partitions are merged.

        Returns
        -------
        CompactReport

        Raises
        ------
        MemoryLimitError
            If a merge does not fit the memory limit; before anything is written.
        ConflictError
            If others changed the same partitions again and again meanwhile.
        """
        return compact(self._session, self._name, partition_bytes, merge_groups)

    def read(
        self,
        columns: str | Sequence[str] | None = None,
        rows: slice | None = None,
        as_: str = "polars",
    ) -> Any:
        """Return columns in table order, in memory.

        Parameters
        ----------
        columns : str or sequence of str, optional
            All columns if not given; features must be built.
        rows : slice, optional
            Positions in the table; step 1.
        as_ : {"polars", "pandas", "arrow", "narwhals", "cudf"}
            Tensor columns come as fixed-size lists.

        Raises
        ------
        MemoryLimitError
            If it would exceed the memory limit.
        NotReadyError
            If values are missing or stale.
        """
        with self._session.holding_newest() as (session, snapshot):
            files = session.files(self._name, snapshot)
            names = files.schema.names if columns is None else column_names(columns)
            view = FeatureSet(session, self._name).view(files, names)
            return collect_rows(view.partitions, session.place, view.schema, names, rows, as_)

    def to_dask(self, columns: Sequence[str] | None = None) -> Any:
        """Return a Dask DataFrame over the partitions, pandas-backed (cuDF with that engine).

        One Dask partition per partition; features must be built.
        """
        with self._session.holding_newest() as (session, snapshot):
            files = session.files(self._name, snapshot)
            names = files.schema.names if columns is None else column_names(columns)
            view = self._features.view(files, names)
            self._session.hold(snapshot).keep()  # nobody knows when the graph is computed
            return dask_frame(view.partitions, self._session.place, view.schema, names)

    def tensor(self, column: str) -> tuple[Any, ...]:
        """Return a tensor column as read-only ``zarr.Array``s, one per partition; reads nothing yet.

        Raises
        ------
        SchemaError
            If it is no tensor column.
        NotReadyError
            If values are missing or stale.
        """
        if not self.schema[column].is_tensor:
            raise SchemaError(f"column {column!r} is no tensor", "use read() for scalar columns")
        with self._session.holding_newest() as (session, snapshot):
            view = self._features.view(session.files(self._name, snapshot), [column])
            self._session.hold(snapshot).keep()  # arrays read when they are indexed
            return tuple(one.zarr(session.objects, column) for one in view.partitions)

    def compute(self, source: Any, columns: Sequence[str]) -> Any:
        """Return features of rows that are not in the table, as if they came right after it.

        States come from the table's rows that are older than the oldest of the new ones; the new
        rows see each other as appended rows would.

        Parameters
        ----------
        source : path, glob, list of them, or object with ``__arrow_c_stream__``
            With the ingested columns that the features read, key and time.
        columns : sequence of str
            Features or ingested columns.

        Returns
        -------
        polars.DataFrame
            Key, time and ``columns``, one row per row of ``source``, in its order.
        """
        names = column_names(columns)
        with (
            self._session.holding_newest() as (session, snapshot),
            open_source(source, scratch=session.place.scratch) as opened,
        ):
            files = session.files(self._name, snapshot)
            return compute_features(session.place, files, session.sources(files), opened, names)

    # --- features ------------------------------------------------------------------------------

    def add(
        self,
        *transformers: Transformer,
        fit_on: Any = None,
        replace: bool = False,
        memory_limit: int | str | None = None,
    ) -> BuildReport:
        """Define features and compute them: only what is missing, in one visible commit.

        Parameters
        ----------
        *transformers : Transformer
            May use each other's outputs, in any order.
        fit_on : ``"all"`` or (start, stop), optional
            For fitted transformers: the rows they learn from. Required for them.
        replace : bool
            Whether features that give columns of the same names are replaced.
        memory_limit : int or str, optional
            Of this call; the store's if not given.

        Returns
        -------
        BuildReport

        Raises
        ------
        NameTakenError
            If a column exists and ``replace`` is false. The same definition again is no error: it
            computes what is still missing.
        DependencyCycleError, NotPartitionIndependentError, SchemaError, DefinitionError
        MemoryLimitError
            Before anything is computed.
        """
        return self._limited(memory_limit).add(definitions_of(transformers, fit_on), replace)

    def feature(
        self,
        function: Callable[..., Any] | None = None,
        *,
        replace: bool = False,
        **options: Any,
    ) -> Any:
        """Define a feature by a plain function of a frame, returned unchanged; ``build`` computes it.

        Used as ``@table.feature(inputs=["dep_delay"], output="late")``. Options are those of
        :class:`~featurestore.Function`: ``inputs``, ``output``, ``frame``, ``dtypes``, ``shape``,
        ``lookback``, ``params``.
        """

        def define(function: Callable[..., Any]) -> Callable[..., Any]:
            self._features.define([FeatureDefinition(feature_from(function, **options))], replace)
            return function

        return define if function is None else define(function)

    def plan(self) -> BuildPlan:
        """Return what :meth:`build` would do and what it would cost; computes nothing."""
        return self._features.plan()

    def build(self, memory_limit: int | str | None = None) -> BuildReport:
        """Compute everything that is missing or stale; resume what an interrupted build finished.

        Parameters
        ----------
        memory_limit : int or str, optional
            Of this call; the store's if not given. For others, see ``FeatureStore.with_limit``.

        Raises
        ------
        MemoryLimitError
            Before anything is computed.
        """
        return self._limited(memory_limit).build()

    def status(self) -> TableStatus:
        """Return for each feature how many partitions are fresh, stale (and why) or missing."""
        return self._features.status()

    def cardinalities(self, *columns: str) -> dict[str, int]:
        """Return for each column that holds codes of a stored vocabulary how many there may be."""
        return self._features.cardinalities(self._files(), column_names(columns))

    def lineage(self, *columns: str) -> dict[str, str]:
        """Return for each column the fingerprint of its definition and of all that it reads.

        Two tables, or two versions of one, compute a column alike exactly where these are equal.
        """
        files = self._files()
        return lineage(files, self._session.sources(files), column_names(columns))

    def definitions(self, *columns: str) -> dict[str, Any]:
        """Return the definitions of all features that columns are computed from, as plain JSON.

        Returns
        -------
        dict
            By table, inputs before what reads them; ingested columns have none.
        """
        files = self._files()
        return definitions(files, self._session.sources(files), column_names(columns))

    def drop(self, *columns: str) -> None:
        """Remove features; their files stay until ``gc`` while older versions name them.

        Parameters
        ----------
        *columns : str
            Columns of features. A feature with several columns goes as a whole, so all its columns
            must be named.

        Raises
        ------
        InvalidInputError
            For ingested columns, for part of a feature, and while another feature reads it.
        """
        self._features.drop(column_names(columns))

    # --- datasets ------------------------------------------------------------------------------------------------

    def dataset(
        self,
        features: Any,
        label: str | Sequence[str] | None = None,
        *,
        where: nw.Expr | None = None,
        split: Split | None = None,
        pipeline: Pipeline | None = None,
        weight: str | None = None,
        group: str | None = None,
        base_margin: str | None = None,
    ) -> Dataset:
        """Select features, labels, rows and splits at the current snapshot; reads no values yet.

        Parameters
        ----------
        features : str, selector, or sequence of both in the order models get them
        label : str or sequence of str, optional
        where : narwhals.Expr, optional
            A row-wise condition; rows for which it is false or null are left out.
        split : TimeSplit or HashSplit, optional
            Without it all rows are in ``dataset.all``.
        pipeline : Pipeline, optional
            Learnt on the training part only.
        weight, group, base_margin : str, optional
            How much each row counts when a model learns, the query of a ranking that it belongs to, and
            what raw predictions begin from; see :class:`Dataset`.

        Raises
        ------
        NotReadyError
            If values of these columns are missing or stale.
        """
        snapshot, lease = self._session.newest_held()  # one for all it reads, held as long as used
        files = self._session.files(self._name, snapshot)
        return Dataset(
            partial(self._features.view, files, lease=lease), files.schema, features, label,
            where=where, split=split, pipeline=pipeline, weight=weight, group=group,
            base_margin=base_margin,
        )  # fmt: skip

    @property
    def _rows(self) -> RowSet:
        return RowSet(self._session, self._name)

    @property
    def _features(self) -> FeatureSet:
        return FeatureSet(self._session, self._name)

    def _limited(self, memory_limit: int | str | None) -> FeatureSet:
        return FeatureSet(self._session.limited(memory_limit), self._name)

    def _files(self) -> TableFiles:
        return self._session.files(self._name)
