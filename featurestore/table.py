"""A table: rows with a key and a time, ingested columns, and features.

Methods here read what exists, decide, and hand over: planning to ``plan``, work to ``execution``,
rows to ``ingest``, selections to ``dataset``. A table follows the newest version of its store
unless the store is a checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from featurestore.dataset.dataset import Dataset
from featurestore.dataset.view import TableView
from featurestore.errors import InvalidInputError, SchemaError
from featurestore.execution.collecting import collect_rows, dask_frame
from featurestore.execution.publish import append_partitions
from featurestore.execution.serving import compute_features
from featurestore.execution.states import Available
from featurestore.features import FeatureSet
from featurestore.ingest.partitioner import write_partitions
from featurestore.ingest.sources import open_source
from featurestore.plan.definition import FeatureDefinition
from featurestore.plan.lineage import lineage
from featurestore.plan.table_files import TableFiles
from featurestore.report.progress import ingest_progress
from featurestore.report.tables import BuildPlan, BuildReport, TableStatus, TableSummary
from featurestore.schema import Field, TableSchema
from featurestore.session import Session
from featurestore.storage.records import BASE_GROUP
from featurestore.times import from_steps
from featurestore.transforms.base import Scope, Transformer
from featurestore.transforms.function import feature_from

if TYPE_CHECKING:
    import narwhals as nw

    from featurestore.dataset.split import Split
    from featurestore.transforms.pipeline import Pipeline


class Table:
    """One table of a store; see :meth:`FeatureStore.table`."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

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
        files = self._files()
        kinds = {BASE_GROUP: "ingested"}
        kinds |= {one.group: type(one.transformer).__name__ for one in files.graph.features()}
        columns = tuple(
            (one.name, _type_text(one), kinds[files.graph.owners[one.name]]) for one in files.schema
        )
        stored = sum(
            file.bytes
            for entries in files.entries.values()
            for entry in entries.values()
            for file in entry.all_files()
        )
        return TableSummary(
            self._name,
            files.rows,
            len(files.base),
            columns,
            files.entry.key,
            files.entry.time,
            _time_range(files),
            stored,
        )

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
        self._session.require_writable()
        files = self._files()
        base = files.groups[BASE_GROUP]
        newest = max((one.time_max for one in files.base if one.time_max is not None), default=None)
        with (
            open_source(source, types=types) as opened,
            ingest_progress(f"append to {self._name}") as report,
        ):
            entries = write_partitions(
                self._session.objects,
                opened,
                files.entry,
                schema=base.fields,
                after=newest,
                first_sequence=len(files.base),
                memory_limit=self._session.memory_left(),
                on_progress=report,
                existing=files.base,
            )
        change = append_partitions(self._session.objects, self._name, base, entries)
        self._session.commit(f"append to {self._name}", change, entries)
        return sum(one.rows for one in entries)

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
        wanted = self.columns if columns is None else columns
        names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        view = self._view(names)
        return collect_rows(view.partitions, self._session.place, view.schema, names, rows, as_)

    def to_dask(self, columns: Sequence[str] | None = None) -> Any:
        """Return a Dask DataFrame over the partitions, pandas-backed (cuDF with that engine).

        One Dask partition per partition; features must be built.
        """
        names = self.columns if columns is None else tuple(columns)
        view = self._view(names)
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
        view = self._view([column])
        return tuple(one.zarr(self._session.objects, column) for one in view.partitions)

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
        files = self._files()
        with open_source(source) as opened:
            return compute_features(
                self._session.place, files, self._session.sources(files), opened, tuple(columns)
            )

    # --- features ------------------------------------------------------------------------------

    def add(
        self, *transformers: Transformer, fit_on: Any = None, replace: bool = False
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
        if not transformers:
            raise InvalidInputError("add was given no transformer", "pass at least one")
        for one in transformers:
            if not isinstance(one, Transformer):
                raise InvalidInputError(
                    f"{one!r} is no transformer",
                    "pass fs.Expression(...), fs.Rolling(...) and the like; use "
                    "@table.feature(...) for a plain function",
                )
        fitted = [one.scope is Scope.FIT for one in transformers]
        if fit_on is not None and not any(fitted):
            raise InvalidInputError(
                f"fit_on={fit_on!r} was given and none of the transformers learns anything",
                "leave fit_on out",
            )
        definitions = [
            FeatureDefinition(one, fit_on if learns else None)
            for one, learns in zip(transformers, fitted, strict=True)
        ]
        return self._features.add(definitions, replace)

    def feature(
        self,
        function: Callable[..., Any] | None = None,
        *,
        replace: bool = False,
        **options: Any,
    ) -> Any:
        """Define a feature by a plain function of a frame; ``build`` computes it.

        Used as ``@table.feature(inputs=["dep_delay"], output="late")``. Options are those of
        :class:`~featurestore.Function`: ``inputs``, ``output``, ``frame``, ``dtypes``, ``shape``,
        ``lookback``, ``params``.

        Returns
        -------
        callable
            The function, unchanged.
        """

        def define(function: Callable[..., Any]) -> Callable[..., Any]:
            self._features.define([FeatureDefinition(feature_from(function, **options))], replace)
            return function

        return define if function is None else define(function)

    def plan(self) -> BuildPlan:
        """Return what :meth:`build` would do and what it would cost; computes nothing."""
        return self._features.plan()

    def build(self) -> BuildReport:
        """Compute everything that is missing or stale; resume what an interrupted build finished.

        Raises
        ------
        MemoryLimitError
            Before anything is computed.
        """
        return self._features.build()

    def status(self) -> TableStatus:
        """Return for each feature how many partitions are fresh, stale (and why) or missing."""
        return self._features.status()

    def cardinalities(self, *columns: str) -> dict[str, int]:
        """Return for each column that holds codes of a stored vocabulary how many there may be."""
        return self._features.cardinalities(self._files(), columns)

    def lineage(self, *columns: str) -> dict[str, str]:
        """Return for each column the fingerprint of its definition and of all that it reads.

        Two tables, or two versions of one, compute a column alike exactly where these are equal.
        """
        files = self._files()
        return lineage(files, self._session.sources(files), columns)

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
        self._features.drop(columns)

    # --- datasets ------------------------------------------------------------------------------------------------

    def dataset(
        self,
        features: Any,
        label: str | None = None,
        *,
        where: nw.Expr | None = None,
        split: Split | None = None,
        pipeline: Pipeline | None = None,
    ) -> Dataset:
        """Select features, label, rows and splits at the current snapshot; reads no values yet.

        Parameters
        ----------
        features : str, sequence of str or selector
            In the order models get them.
        label : str, optional
        where : narwhals.Expr, optional
            A row-wise condition; rows for which it is false or null are left out.
        split : TimeSplit or HashSplit, optional
            Without it all rows are in ``dataset.all``.
        pipeline : Pipeline, optional
            Learnt on the training part only.

        Raises
        ------
        NotReadyError
            If values of these columns are missing or stale.
        """
        # One snapshot for all that the dataset will ever read.
        files = self._files()
        return Dataset(
            partial(self._view_of, files),
            files.schema,
            features,
            label,
            where=where,
            split=split,
            pipeline=pipeline,
        )

    # --- pieces --------------------------------------------------------------------------------

    @property
    def _features(self) -> FeatureSet:
        return FeatureSet(self._session, self._name)

    def _files(self) -> TableFiles:
        return self._session.files(self._name)

    def _view(self, columns: Sequence[str]) -> TableView:
        return self._view_of(self._files(), columns)

    def _view_of(self, files: TableFiles, columns: Sequence[str]) -> TableView:
        """Return a view of columns whose values are all fresh."""
        for name in columns:
            files.schema[name]
        self._features.require_fresh(files, columns)
        available = Available(files, {})
        place = self._session.place
        return TableView(
            store=self._session.objects,
            snapshot=files.snapshot,
            table=self._name,
            schema=files.schema,
            partitions=tuple(available.at(n, columns) for n in range(len(files.base))),
            engine_name=place.engine,
            memory_limit=place.memory_limit,
            executor=place.executor,
            cardinalities=self._features.cardinalities(files, columns),
            lineage=lineage(files, self._session.sources(files), columns),
        )


def _type_text(field: Field) -> str:
    return f"{field.type} {list(field.shape)}" if field.shape is not None else str(field.type)


def _time_range(files: TableFiles) -> tuple[str, str] | None:
    times = [
        (one.time_min, one.time_max)
        for one in files.base
        if one.time_min is not None and one.time_max is not None
    ]
    if not times or files.schema.time is None:
        return None
    type_ = files.schema[files.schema.time].type
    return from_steps(times[0][0], type_), from_steps(times[-1][1], type_)
