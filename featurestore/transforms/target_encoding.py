"""TargetEncode: categories as the mean of a target, out of fold where the target was learnt from.

Always true: a row of the fit scope gets a value that no target of its own fold entered, its own least of
all; folds are a hash of the row's key and time, so that they, and with them all values, are the same
however rows are cut. Trade-off: a sum per category and fold is kept, not just one per category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import narwhals as nw
import numpy as np
import pyarrow as pa

from featurestore.engines.finding import NOWHERE
from featurestore.engines.hashing import HASH_VERSION, hash_columns
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, State, encode
from featurestore.transforms.columnwise import check_numeric, side_by_side
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import state_rows
from featurestore.transforms.group_learner import GroupLearner
from featurestore.transforms.group_sums import (
    VERSION,
    Measures,
    group_sums_bytes,
    group_sums_memory,
    sum_by_group,
)
from featurestore.transforms.grouping import By, normalise_by
from featurestore.transforms.learnt_rows import positions, positions_memory
from featurestore.transforms.naming import normalise_renaming, output_names
from featurestore.transforms.out_of_fold import PRIOR, FoldMeans
from featurestore.transforms.selectors import Selection, normalise_selection, resolve, strings
from featurestore.transforms.value_counts import check_countable, require_rows

_STRINGS: Final = strings()
_FOLD: Final = "__fs_fold"
_ALL: Final = "__fs_all"
_SUMS: Final = Measures()
_MOST_FOLDS: Final = 1000


@dataclass(frozen=True)
class TargetEncode(GroupLearner):
    """Replace a category by the mean of a target over the rows that have it, drawn towards the mean of all.

    ``value = (sum + smoothing * prior) / (count + smoothing)``, where ``sum`` and ``count`` are of the target over
    the rows with this category, and ``prior`` is its mean over all rows. A row that was learnt from gets
    the statistics, prior included, of the other folds alone: it would see its own target otherwise. Rows of
    validation and test parts, and rows that are served, get those of the whole fit scope.

    Scope: fit. State: for each category and fold 44 bytes per target, the category and 12 bytes; merged by ranges of
    categories where that does not fit memory. Boundary rule: all rows of the fit scope; folds are
    ``hash(fold_by) % folds``, so that rows of one key and time are in one fold. Null rule: a null category gives
    null, as does one in any of the columns with ``jointly``; targets that are null, NaN or infinite are not
    learnt from. A category that was not learnt gives the prior; a prior of no targets is null.
    Output: float64. Sums are exact for integers, and for floats within a factor of 2**50 of each other; values are
    the same bits for every partitioning.
    Memory: about 80 bytes (130 for strings) per row and per learnt category, for one column at a time. To learn,
    about 140 bytes per row and the state.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Strings, integers or booleans.
    targets : str or sequence of str
        Numbers or booleans; in the pipeline of a dataset the label, which only learning sees.
    jointly : bool
        Whether the columns together are one category; else each is encoded by itself.
    smoothing : float
        How many rows the prior counts for; 0 or more.
    folds : int
        At least 2.
    seed : int
        Another seed gives other folds.
    fold_by : str or sequence of str, optional
        What folds are hashed from; the table's key and time if not given.
    prefix, suffix, rename
        Outputs are named ``<column>_<target>_mean``, jointly ``<column>_<column>_<target>_mean``.

    Raises
    ------
    DefinitionError
        If the table has neither key nor time and ``fold_by`` is not given.
    SchemaError
        For columns or targets of other types.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("c", pa.string()), Field("id", pa.int64()), Field("y", pa.int64())))
    >>> rows = pa.table({"c": ["a", "a", "a", "b"], "id": [1, 2, 3, 4], "y": [1, 0, 1, 1]})
    >>> part = Partition(engine.from_arrow(rows), schema)
    >>> code = TargetEncode("c", "y", smoothing=1.0, fold_by="id")
    >>> state = code.finish(code.summarize(part, engine))
    >>> code.apply(part, state, engine).frame["c_y_mean"].to_list()
    [0.6875, 0.6875, 0.6875, 0.875]
    >>> learnt = code.apply(replace(part, learnt_from=True), state, engine).frame["c_y_mean"].to_list()
    >>> [round(one, 3) for one in learnt]
    [0.556, 1.0, 0.5, 0.5]
    """

    columns: Selection = _STRINGS
    targets: str | Sequence[str] = ()
    jointly: bool = field(default=False, kw_only=True)
    smoothing: float = field(default=10.0, kw_only=True)
    folds: int = field(default=5, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    fold_by: By = field(default=None, kw_only=True)
    prefix: str = field(default="", kw_only=True)
    suffix: str = field(default="", kw_only=True)
    rename: Any = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("columns", normalise_selection(self.columns))
        put("targets", (self.targets,) if isinstance(self.targets, str) else tuple(self.targets))
        put("fold_by", normalise_by(self.fold_by))
        put("rename", normalise_renaming(self.rename) or ())
        put("smoothing", float(self.smoothing))
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise DefinitionError(
                f"TargetEncode has targets={list(self.targets)}", "name one or more, each once"
            )
        if not 0 <= self.smoothing < np.inf:
            raise DefinitionError(f"smoothing={self.smoothing} is not 0 or more", "give say 10.0")
        if type(self.folds) is not int or not 2 <= self.folds <= _MOST_FOLDS:
            raise DefinitionError(
                f"folds={self.folds!r} is not from 2 to {_MOST_FOLDS}", "5 or 10 will do"
            )
        if self.fold_by == ():
            raise DefinitionError("fold_by=[] gives one fold", "name columns that tell rows apart")

    # --- what it is ------------------------------------------------------------------------------

    @property
    def tells_learnt_rows(self) -> bool:
        return True

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            check_countable(schema[name], "TargetEncode")
        taught = sorted(set(names) & set(self.targets))
        if taught:
            raise DefinitionError(
                f"TargetEncode would encode {taught} by themselves", "leave them out of the columns"
            )
        return names

    def _groupings(self, schema: TableSchema) -> tuple[tuple[str, ...], ...]:
        """Return the columns whose values are a category, for each kind of category."""
        names = self._columns(schema)
        return (names,) if self.jointly and names else tuple((name,) for name in names)

    def _fold_by(self, schema: TableSchema) -> tuple[str, ...]:
        given = normalise_by(self.fold_by)
        names = (*schema.key, *([schema.time] if schema.time else ())) if given is None else given
        if not names:
            raise DefinitionError(
                "TargetEncode folds rows by key and time, and this table has neither",
                "name columns that tell rows apart with fold_by=",
            )
        for name in names:
            if schema[name].is_tensor or pa.types.is_list(schema[name].type):
                raise SchemaError(
                    f"TargetEncode cannot fold by {name!r} of type {schema[name].type}",
                    "name scalar columns",
                )
        return tuple(names)

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        time = () if schema.time is None else (schema.time,)
        return tuple(dict.fromkeys((*self._columns(schema), *self._fold_by(schema), *time)))

    def learns_from(self, schema: TableSchema) -> tuple[str, ...]:
        for name in self.targets:
            if name in schema:
                check_numeric(schema[name], "TargetEncode")
        return tuple(dict.fromkeys((*self.inputs(schema), *self.targets)))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        defaults = [
            f"{'_'.join(names)}_{target}_mean"
            for names in self._groupings(schema)
            for target in self.targets
        ]
        made = output_names(defaults, self.prefix, self.rename, "TargetEncode", self.suffix)
        return tuple(Field(name, pa.float64()) for name in made)

    # --- learning --------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        schema = partition.schema
        frame = partition.frame.with_columns(self._fold(partition.frame, schema, engine))
        one = engine.column(
            _ALL, engine.xp.zeros(len(frame), dtype=engine.xp.int8), None, pa.int8()
        )
        groupings = self._groupings(schema)
        state = {
            f"by_{number}": self._sums(frame, names, engine)
            for number, names in enumerate(groupings)
        }
        if groupings:
            # As many keys as the others have, so that all are in the same order.
            same = [one.alias(f"{_ALL}_{number}") for number in range(len(groupings[0]))]
            known = frame.with_columns(*same)
            state[PRIOR] = self._sums(known, [column.name for column in same], engine)
        return state

    def _fold(self, frame: Frame, schema: TableSchema, engine: Engine) -> nw.Series[Any]:
        xp = engine.xp
        hashed = hash_columns(engine, frame, self._fold_by(schema), self.seed)
        folds = (hashed % xp.uint64(self.folds)).astype(xp.int32)
        return engine.column(_FOLD, folds, None, pa.int32())

    def _sums(self, frame: Frame, keys: Sequence[str], engine: Engine) -> pa.Table:
        known = frame.select(*dict.fromkeys((*keys, _FOLD, *self.targets)))
        if any(known[name].null_count() for name in keys):
            known = known.drop_nulls(list(keys))
        measured = [known[name] for name in self.targets]
        return sum_by_group(known, [*keys, _FOLD], measured, _SUMS, engine)

    def finish(self, state: State) -> State:
        """Return means of categories, of all folds and without each: those of :class:`FoldMeans`."""
        require_rows(state)
        return FoldMeans(len(self.targets), self.folds, self.smoothing).of(state)

    # --- applying --------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, frame, xp = partition.schema, partition.frame, engine.xp
        fields, learnt = iter(self.outputs(schema)), partition.learnt_from
        if learnt is True:
            learnt = xp.ones(len(frame), dtype=bool)
        told = learnt is not False and bool(learnt.any())
        if told:
            frame = frame.with_columns(self._fold(frame, schema, engine))
        out = []
        for number, names in enumerate(self._groupings(schema)):
            at = _found(frame, names, state[f"all_{number}"], engine)
            known = xp.ones(len(frame), dtype=bool)
            for name in names:
                missing, _ = engine.values(frame[name].is_null())
                known &= ~missing
            rest = None
            if told:
                rest = _found(frame, (*names, _FOLD), state[f"rest_{number}"], engine)
                rest = xp.where(learnt, rest, NOWHERE)
            for target in range(len(self.targets)):
                value = f"value_{target}"
                prior = state[PRIOR][value][0].as_py()
                made = _taken(state[f"all_{number}"][value], at, prior, engine)
                if rest is not None:
                    own = _taken(state[f"rest_{number}"][value], rest, None, engine)
                    made = xp.where(rest == NOWHERE, made, own)
                one = next(fields)
                out.append(engine.column(one.name, made, known & ~xp.isnan(made), one.type))
        return Columns(side_by_side(out))

    # --- what it costs -----------------------------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        outputs = 9 * extent.rows * len(self.outputs(schema))
        return outputs + max(
            (self._encoding_bytes(schema, names, extent) for names in self._groupings(schema)),
            default=0,
        )

    def _encoding_bytes(self, schema: TableSchema, names: tuple[str, ...], extent: Extent) -> int:
        # The second search, with the fold, beside what the first one found.
        learnt = state_rows(schema, names, extent)
        together = extent.rows + learnt
        looking = positions_memory(schema, names, extent.rows, learnt) + 4 * together
        return looking + (0 if len(names) > 1 else 16 * together) + 9 * extent.rows

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        state = self.state_bytes(schema, extent)
        working = [
            group_sums_memory(schema, names, len(self.targets), _SUMS, extent)
            - group_sums_bytes(schema, names, len(self.targets), _SUMS, extent)
            for names in self._groupings(schema)
        ]
        return state + max(working, default=0) + 24 * extent.rows

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 2**16 * len(self.targets) + sum(
            group_sums_bytes(schema, names, len(self.targets), _SUMS, extent) + 4 * extent.rows
            for names in self._groupings(schema)
        )

    def state_fingerprint(self) -> str:
        learnt = (self.columns, self.targets, self.jointly, self.folds, self.seed, self.fold_by)
        return fingerprint("target sums", VERSION, HASH_VERSION, [encode(one) for one in learnt])


def _found(frame: Frame, names: Sequence[str], learnt: pa.Table, engine: Engine) -> Array:
    return positions(frame, names, learnt.select(range(len(names))), engine)


def _taken(values: pa.ChunkedArray, at: Array, missing: float | None, engine: Engine) -> Array:
    """Return values by position, NaN for none."""
    known = engine.from_host(np.append(values.to_numpy(), np.nan if missing is None else missing))
    return known[at]
