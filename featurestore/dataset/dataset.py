"""Datasets: features, a label, rows and splits of a table at one snapshot. Lazy.

Making a dataset reads metadata only and checks everything that can be checked without values. The
pipeline is fitted on the training part, never on more, when something first needs it; what it
learnt is kept in the store, so the next dataset like it finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING

from featurestore.dataset.assembly import unknown_value
from featurestore.dataset.batch import DatasetSchema, Role
from featurestore.dataset.columns import DatasetColumns, dataset_columns, refuse_future
from featurestore.dataset.learned import LearnedColumns
from featurestore.dataset.part import Part
from featurestore.dataset.picture import SplitPicture, split_picture
from featurestore.dataset.selection import Selection, condition
from featurestore.dataset.split import ALL, TEST, TRAIN, VALID, Split
from featurestore.dataset.targets import Targets, resolve_targets
from featurestore.dataset.view import TableView
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.fingerprint import Json
from featurestore.markup import Markup, html_table, strip
from featurestore.schema import TableSchema
from featurestore.transforms.expression_json import StoredExpression
from featurestore.transforms.pipeline import FittedPipeline, Pipeline

if TYPE_CHECKING:
    import narwhals as nw


class Dataset:
    """Features, label and rows of a table, in parts.

    Made by ``Table.dataset``.

    Parameters
    ----------
    view : callable
        Gives a view of the table for some columns, whose values it has found complete.
    schema : TableSchema
        Of the whole table.
    features : str, selector, or sequence of both
        In the order models get them. Selectors leave out key, time and what is named below.
    label : str or sequence of str, optional
        A numeric or boolean column, or several; never null in the selected rows.
    where : narwhals.Expr, optional
        A row-wise condition; rows for which it is false or null are left out.
    split : Split, optional
        Without it all rows are in ``all``. One of several folds has its parts in ``folds``.
    pipeline : Pipeline, optional
        Learnt on the training part only; on ``all`` without a split.
    weight : str, optional
        A numeric column, finite and not negative: how much each row counts.
    group : str, optional
        A column of integers, dates or times, the key and the time included: rows with equal values
        belong to one query of a ranking.
    base_margin : str, optional
        A numeric column, or a tensor with one number for each class, finite: what the raw predictions
        of a model begin from.

    Raises
    ------
    SchemaError
        If a column does not exist.
    DefinitionError
        If a feature has no form that a model understands, or looks into the future, as the base margin
        may not either; if a label, weight, group or base margin has nulls; if the split does not fit
        the table.
    NotReadyError
        If values are missing or stale.
    """

    def __init__(
        self,
        view: Callable[[Sequence[str]], TableView],
        schema: TableSchema,
        features: object,
        label: str | Sequence[str] | None = None,
        *,
        where: nw.Expr | None = None,
        split: Split | None = None,
        pipeline: Pipeline | None = None,
        weight: str | None = None,
        group: str | None = None,
        base_margin: str | None = None,
    ) -> None:
        self._make_view = view
        self._arguments = (features, label, where, pipeline, weight, group, base_margin)
        self._split = split
        self._table_schema = schema
        targets = resolve_targets(schema, label, weight, group, base_margin)
        self._columns = dataset_columns(features, targets, schema, pipeline)
        self._where = None if where is None else condition(where, schema)
        self._selections = _selections(split, schema, self._where)
        self._view = view(self._needed(schema))
        # A prediction begins from the base margin, so it must be known by then as features are.
        known = (*self._columns.features, *([] if base_margin is None else [base_margin]))
        refuse_future(known, self._view.snapshot, self._view.table)
        self._check_targets()
        learnt_from = self._selections.get(TRAIN, self._selections.get(ALL))
        self._lesson = (
            None
            if learnt_from is None
            else LearnedColumns(self._columns, self._view, learnt_from, self._name())
        )
        self._made: dict[str, Part] = {}
        self._lock = Lock()

    # --- parts -----------------------------------------------------------------------------------------

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its parts: those of the split, or ``all``."""
        return tuple(self._selections)

    def part(self, name: str) -> Part:
        """Return a part by name.

        Raises
        ------
        NotFoundError
            If the split has no such part.
        """
        if name not in self._selections:
            raise NotFoundError(
                f"the dataset has no part {name!r}, its parts are {list(self._selections)}",
                self._remedy(name),
            )
        with self._lock:
            if name not in self._made:
                self._made[name] = Part(self._learned, self._view, name, self._selections[name])
            return self._made[name]

    @property
    def train(self) -> Part:
        """The rows to learn from."""
        return self.part(TRAIN)

    @property
    def valid(self) -> Part:
        """The rows to tune on."""
        return self.part(VALID)

    @property
    def test(self) -> Part:
        """The rows to judge by."""
        return self.part(TEST)

    @property
    def all(self) -> Part:
        """All rows, for a dataset without a split."""
        return self.part(ALL)

    @property
    def folds(self) -> tuple[Dataset, ...]:
        """One dataset for each evaluation the split consists of; itself if there is only one."""
        if self._split is None or self._selections:
            return (self,)
        features, label, where, pipeline, weight, group, base_margin = self._arguments
        return tuple(
            Dataset(
                self._make_view, self._table_schema, features, label,
                where=where, split=fold, pipeline=pipeline, weight=weight, group=group,
                base_margin=base_margin,
            )
            for fold in self._split.folds()
        )  # fmt: skip

    @property
    def lineage(self) -> Mapping[str, str]:
        """For each column that it reads, the fingerprint of what it is computed from."""
        return dict(self._view.lineage)

    # --- columns ---------------------------------------------------------------------------------------

    @property
    def columns(self) -> DatasetColumns:
        """Its columns before, in and after the pipeline."""
        return self._columns

    @property
    def features(self) -> tuple[str, ...]:
        """The table's columns it was asked for, in that order."""
        return self._columns.features

    @property
    def label(self) -> str | None:
        """The name of the label, if there is exactly one."""
        return self._columns.label

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of all labels."""
        return self._columns.labels

    @property
    def weight(self) -> str | None:
        """The name of the column that says how much each row counts."""
        return self.targets.weight

    @property
    def targets(self) -> Targets:
        """The names of all that a model is told beside its features."""
        return self._columns.targets

    @property
    def table(self) -> str:
        """The name of its table."""
        return self._view.table

    @property
    def snapshot_id(self) -> str:
        """The snapshot its values come from."""
        return self._view.snapshot.id

    @property
    def schema(self) -> DatasetSchema:
        """The columns as a model sees them, after the pipeline; fits it on first use."""
        return self._learned.schema

    @property
    def split(self) -> Split | None:
        """How rows are divided."""
        return self._split

    # --- pipeline --------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> FittedPipeline:
        """The pipeline with what it learnt from the training part; fitted on first use.

        Raises
        ------
        DefinitionError
            If there are no rows to learn from.
        """
        return self._learned.pipeline

    # --- pieces ----------------------------------------------------------------------------------------

    @property
    def _learned(self) -> LearnedColumns:
        if self._lesson is None:
            raise DefinitionError(
                f"each of the {len(self.folds)} folds of this dataset learns for itself",
                "take them one by one: for fold in dataset.folds",
            )
        return self._lesson

    def _remedy(self, part: str) -> str:
        if self._split is None:
            return "pass split=fs.TimeSplit(...) or fs.HashSplit(...)"
        if not self._selections:
            return "take its folds one by one: for fold in dataset.folds"
        return f"give the split a boundary or a share for {part!r}"

    def describe(self) -> dict[str, Json]:
        """Return what it consists of as JSON, for run folders and reports."""
        return {
            "table": self.table,
            "snapshot": self.snapshot_id,
            "features": list(self.features),
            "label": self._asked_label(),
            **{
                str(role): name
                for name, role in self.targets.roles.items()
                if role is not Role.LABEL
            },
            "where": None if self._where is None else self._where.to_json(),
            "split": None if self._split is None else self._split.spec(),
            "parts": list(self.parts),
        }

    def picture(self) -> SplitPicture:
        """Return how its split divides the table over time; nothing is read.

        Examples
        --------
        ``print(table.dataset(features, label="y", split=fs.TimeSplit(valid="2024-01-01")).picture())``
        """
        kind = "no split" if self._split is None else type(self._split).__name__
        folds = [None] if self._split is None else self._split.folds()
        return split_picture(
            f"table {self.table!r}, {kind}",
            [_selections(one, self._table_schema, self._where) for one in folds],
            self._table_schema,
            [(one.base.time_min, one.base.time_max) for one in self._view.partitions],
        )

    def __repr__(self) -> str:
        return f"<{self._name()}>"

    def _repr_html_(self) -> str:
        roles = {name: str(role) for name, role in self.targets.roles.items()}
        named = [*dict.fromkeys((*self.features, *roles))]
        schema = self._table_schema
        columns = [(name, schema[name].type, roles.get(name, "feature")) for name in named]
        parts = [(name, self._picture(name)) for name in self.parts]
        return html_table(self._name(), ("column", "type", "role"), columns) + (
            html_table("rows by partition, in table order", ("part", ""), parts) if parts else ""
        )

    def _picture(self, part: str) -> Markup:
        """Return which partitions a part has rows of: all of theirs, some, or none; reads nothing."""
        words = {"all": "bar", "some": "part", "none": "none"}
        selection = self._selections[part]
        found = [
            words[selection.covers(one.base.time_min, one.base.time_max)]
            for one in self._view.partitions
        ]
        runs = [(state, sum(1 for _ in some)) for state, some in groupby(found)]
        said = ", ".join(f"{found.count(state)} partitions {word}" for word, state in words.items())
        return strip(runs, said)

    def _name(self) -> str:
        of = f"{self.table!r} at {self.snapshot_id.split('-')[0]}"
        return f"dataset of {of}: {len(self.features)} features, label {self._asked_label()!r}"

    def _asked_label(self) -> Json:
        return list(self.labels) if len(self.labels) > 1 else self.label

    def _needed(self, schema: TableSchema) -> tuple[str, ...]:
        wanted = list(self._columns.reads)
        # All folds of a split select by the same columns.
        fold = None if self._split is None else self._split.folds()[0]
        for selection in _selections(fold, schema, self._where).values():
            wanted += selection.columns(schema)
        return tuple(dict.fromkeys(wanted))

    def _check_targets(self) -> None:
        """Refuse nulls of targets that are certain to be selected, from recorded counts."""
        for name, role in self.targets.roles.items():
            if not self._table_schema[name].is_tensor:  # which have none
                self._check_known(name, role)

    def _check_known(self, name: str, role: Role) -> None:
        nulls = rows = 0
        for selection in self._selections.values():
            for i, within in self._view.touching(selection):
                if within.everything:
                    nulls += self._view.partitions[i].nulls(name)
                    rows += self._view.partitions[i].rows
        if nulls:
            raise unknown_value(role, name, nulls, 0, rows)


def _selections(
    split: Split | None, schema: TableSchema, where: StoredExpression | None
) -> dict[str, Selection]:
    """Return the rows of each part."""
    if split is None:
        return {ALL: Selection(where=where)}
    return {part: split.rows(part, schema).with_where(where) for part in split.parts()}
