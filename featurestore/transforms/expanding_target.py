"""ExpandingTarget: categories as the mean of the label over their earlier rows, which leaks nothing.

Always true: a row's value depends on rows of earlier times only, so it can be stored for all rows before
any split is chosen. Trade-off: early rows know little; smoothing draws them towards the mean of all rows so
far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.exact_folds import EXACT_SUM, FINITE, exact_numbers
from featurestore.engines.exact_sums import check_rows
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.running import WHOLE, Fold, wide_numbers
from featurestore.engines.time_views import Sorted, View
from featurestore.engines.windows import canonical
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.event_time import Span
from featurestore.transforms.extent import Extent
from featurestore.transforms.folded_column import Seen
from featurestore.transforms.footprint import handed_extent, kept_rows, row_bits
from featurestore.transforms.grouping import By
from featurestore.transforms.keyed import Keys
from featurestore.transforms.matched_rows import all_valid
from featurestore.transforms.naming import Renaming, normalise_renaming
from featurestore.transforms.running import Running
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.statistics import is_whole, made_fields
from featurestore.transforms.tails import TAIL, TIME, key_rows

_SCANNED: Final = 4
"""An exact sum has more numbers, which are scanned place by place: as much as so many that a tree folds."""


@dataclass(frozen=True)
class TargetSums(Running):
    """Count and sum of the finite values of a label over a group's rows of earlier times.

    Scope ``prefix``. What :class:`ExpandingTarget` is made of; the outputs ``count`` and ``sum`` are float64.

    Parameters
    ----------
    label : str
    by, lag
        As of ``ExpandingTarget``.
    """

    label: str
    _: KW_ONLY
    by: By = None
    closed: str = "right"
    lag: Span | None = None
    prefix: str | None = None
    rename: Renaming = None

    def sources(self, schema: TableSchema) -> tuple[str, ...]:
        if not schema[self.label].is_numeric:
            raise SchemaError(
                f"ExpandingTarget cannot learn from label {self.label!r} of type "
                f"{schema[self.label].type}",
                "name a numeric or boolean column",
            )
        return (self.label,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        return (Field("count", pa.float64()), Field("sum", pa.float64()))

    def fold_names(self, schema: TableSchema, source: str) -> tuple[str, ...]:
        return ("count", "whole" if is_whole(schema[source].type) else "exact")

    def fold(self, name: str) -> Fold:
        return {one.name: one for one in (FINITE, WHOLE, EXACT_SUM)}[name]

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        (count,) = seen["count"]
        every = xp.ones(count.shape[0], dtype=xp.bool_)
        yield count.astype(xp.float64), every
        if "whole" in seen:
            yield wide_numbers(xp, seen["whole"]), every
            return
        check_rows(int(count.max()) if count.shape[0] else 0)
        yield exact_numbers(xp, seen["exact"]), every

    def _numbers(self, schema: TableSchema) -> tuple[int, int, int]:
        total, source, fold = super()._numbers(schema)
        return total, source, min(fold, _SCANNED)

    def _view(self, xp: Any, rows: Sorted, end: Array | None, schema: TableSchema) -> View:
        return View.earlier(xp, rows) if end is None else super()._view(xp, rows, end, schema)


@dataclass(frozen=True)
class ExpandingTarget(Transformer):
    """The mean of a label over the earlier rows of the same category.

    Scope ``prefix``. Leak-free target encoding for data with time: no row sees its own label, or one of its
    own or a later time.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Categories: strings, integers or booleans; each column is encoded by itself.
    label : str
        A numeric or boolean column (booleans count as 0 and 1).
    smoothing : float
        How many rows with the mean of all earlier rows are added to each category; 0 for none.
    lag : str or timedelta, optional
        How long after a row's time its label is known: a row at ``t`` sees labels of rows up to
        ``t - lag``. Needs a timestamp or date as time.
    prefix, rename : optional
        Change the names ``<input>_target_<label>``.

    Notes
    -----
    *Null rule.* Rows whose label is null, NaN or infinite are not learnt from. A null category gives null. One
    without earlier rows gets the mean of all earlier rows; null where there are none either.
    *Boundary rule.* Rows of one time never see each other: a row sees strictly earlier times, and with a
    ``lag`` those up to ``t - lag``. *Types.* float64.

    *State.* Count and exact sum per category, and of all rows, one row each; with a ``lag``, the rows of the
    last ``lag`` too. *Memory.* To apply, 350
    bytes per row and 100 per row of the state, where labels are integers or booleans 160 per row.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.
    LimitError
        If a category has 2**31 rows or more, and labels are floats.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine = PolarsEngine()
    >>> table = pa.table({"t": [1, 2, 2, 3], "shop": ["a", "a", "b", "a"], "late": [1, 0, 1, 0]})
    >>> fields = tuple(Field(one.name, one.type) for one in table.schema)
    >>> part = Partition(engine.from_arrow(table), TableSchema(fields, (), "t"))
    >>> means = ExpandingTarget("shop", "late", smoothing=0.0)
    >>> means.apply(part, {}, engine).frame.to_dict(as_series=False)
    {'shop_target_late': [None, 1.0, 1.0, 0.5]}
    """

    version: ClassVar[int] = 2  # 1 added up floats in the order of a tree

    columns: Selection
    label: str
    _: KW_ONLY
    smoothing: float = 10.0
    lag: Span | None = None
    prefix: str | None = None
    rename: Renaming = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "rename", normalise_renaming(self.rename))
        number = isinstance(self.smoothing, int | float) and not isinstance(self.smoothing, bool)
        if not number or not math.isfinite(self.smoothing) or self.smoothing < 0:
            raise DefinitionError(
                f"ExpandingTarget has smoothing={self.smoothing!r}",
                "give a number of rows, 0 or more",
            )
        put(self, "smoothing", float(self.smoothing))
        if not isinstance(self.label, str):
            raise DefinitionError(
                f"ExpandingTarget has label={self.label!r}", "name one numeric or boolean column"
            )
        put(self, "lag", self._sums(()).lag)

    @property
    def scope(self) -> Scope:
        return Scope.PREFIX

    @property
    def slicing(self) -> Slicing:
        return Slicing.TIMES

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        for name in names:
            one = schema[name]
            if one.is_tensor or not (one.is_string or is_whole(one.type)):
                raise SchemaError(
                    f"ExpandingTarget cannot take column {name!r} of type {one.type} for categories",
                    "name string, integer or boolean columns",
                )
        return names

    def _sums(self, by: Sequence[str]) -> TargetSums:
        return TargetSums(self.label, by=list(by), lag=self.lag)

    @property
    def _total(self) -> TargetSums:
        return self._sums(())

    def _every(self, schema: TableSchema) -> list[TargetSums]:
        """Return the sums that are needed: of all rows, and by each column."""
        return [self._total, *(self._sums([one]) for one in self._columns(schema))]

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = [one.inputs(schema) for one in self._every(schema)]
        return tuple(dict.fromkeys(name for some in names for name in some))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        made = [(f"{name}_target_{self.label}", pa.float64()) for name in self._columns(schema)]
        return made_fields(made, self.prefix, self.rename, "ExpandingTarget")

    @property
    def is_keyed(self) -> bool:
        return True

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        rows = key_rows(engine, partition.frame, self._columns(partition.schema))
        each = [rows.select([name]).rename_columns(["by_0"]) for name in rows.column_names]
        return _side_by_side([pa.table({TIME: [0]}), *each], keys=True)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        every = [one.summarize(partition, engine) for one in self._every(partition.schema)]
        return {TAIL: _side_by_side([one[TAIL] for one in every])} if every[0] else {}

    def combine(self, earlier: State, later: State) -> State:
        return self._total.combine(earlier, later)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        total, *every = self._every(schema)
        keys = key_rows(engine, partition.frame, self._columns(schema))

        def sums(part: int, one: TargetSums) -> tuple[Array, Array]:
            frame = one.apply(partition, _part(state, part, keys), engine).frame
            assert frame is not None
            return engine.values(frame["count"])[0], engine.values(frame["sum"])[0]

        rows, sum_ = sums(0, total)
        out: list[Series] = []
        known = rows > 0
        with np.errstate(all="ignore"):
            mean = sum_ / xp.maximum(rows, 1.0)
            columns = zip(self._columns(schema), self.outputs(schema), every, strict=True)
            for number, (name, field, one) in enumerate(columns, 1):
                count, sum_ = sums(number, one)
                weight = count + self.smoothing
                made = (sum_ + self.smoothing * mean) / xp.where(weight > 0, weight, 1.0)
                valid = known & all_valid(engine, partition.frame, [name])
                made = canonical(xp, xp.where(count > 0, made, mean), valid)
                out.append(engine.column(field.name, made, valid, field.type))
        return Columns(partition.frame.select(*out) if out else None)

    # --- what it costs -----------------------------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        every = [
            one.memory(schema, extent) + one.output_bytes(schema, extent)
            for one in self._every(schema)
        ]
        # The total's sums, its mean, and what is made of one column's; its part of the state, apart.
        return max(every) + 60 * extent.rows + extent.state_bytes

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        every = self._every(schema)
        apart = max(
            one.summarize_memory(schema, extent) - one.state_bytes(schema, extent) for one in every
        )
        return apart + self.state_bytes(schema, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        size, bits = 0, 32 + sum(row_bits(schema[name].type) + 1 for name in self._columns(schema))
        for one in self._every(schema):
            kept = one.most_kept_rows(schema)
            by = one.by or ()
            rows = kept_rows(schema, by, extent.rows if kept is None else kept, extent)
            apart = sum(row_bits(schema[name].type) + 1 for name in by)
            size += one.state_bytes(schema, extent) + rows * (bits - apart) // 8 + 1
        return size

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        kept, columns = self._total.most_kept_rows(schema), self._columns(schema)
        if kept is None:
            return extent
        further = 1 + self._total.part_bytes(schema)
        names = (*columns, cast("str", schema.time))
        rows = kept * (1 + len(columns) * extent.rows)
        return handed_extent(schema, names, rows, extent, further)

    def state_fingerprint(self) -> str:
        return replace(self, smoothing=0.0, prefix=None, rename=None).fingerprint()


def _side_by_side(tables: Sequence[pa.Table], *, keys: bool = False) -> pa.Table:
    """Return states of sums, of all rows and by each column, as one: which it is becomes part of the key.

    ``by_0`` says it, 0 for all rows; ``by_1, by_2, ...`` are the columns, null where it is not theirs.
    """
    types = [table.schema.field("by_0").type for table in tables[1:]]
    out = []
    for part, table in enumerate(tables):
        size = table.num_rows
        columns = {"by_0": pa.array(np.full(size, part, np.int32))}
        for other, type_ in enumerate(types, 1):
            columns[f"by_{other}"] = table["by_0"] if other == part else pa.nulls(size, type_)
        rest = [name for name in table.column_names if not name.startswith("by_") and not keys]
        out.append(pa.table({**columns, **{name: table[name] for name in rest}}))
    return pa.concat_tables(out)


def _part(state: State, part: int, keys: pa.Table) -> State:
    """Return the sums of all rows (0), or those by a column of the categories that some rows have."""
    if TAIL not in state:
        return state
    table = state[TAIL]
    columns = {"by_0": table[f"by_{part}"]} if part else {}
    rest = {name: table[name] for name in table.column_names if not name.startswith("by_")}
    chosen = pa.table({**columns, **rest}).filter(pc.equal(table["by_0"], part))
    if part:
        chosen = Keys(pa.table({"by_0": keys[f"by_{part - 1}"]})).among(chosen)
    return {TAIL: chosen}
