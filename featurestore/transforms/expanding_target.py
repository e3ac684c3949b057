"""ExpandingTarget: categories as the mean of the label over their earlier rows, which leaks nothing.

Always true: a row's value depends on rows of earlier times only, so it can be stored for all rows before
any split is chosen. Trade-off: early rows know little; smoothing draws them towards the mean of all rows so
far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.running import COUNT, SUM, WHOLE, Fold, Leaves, wide_numbers
from featurestore.engines.time_trees import Parts
from featurestore.engines.time_views import Own, View
from featurestore.engines.windows import Groups, canonical
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State, Transformer
from featurestore.transforms.event_time import Span
from featurestore.transforms.extent import Extent
from featurestore.transforms.naming import Renaming, normalise_renaming, output_names
from featurestore.transforms.running import Running, Seen
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.transforms.statistics import is_whole
from featurestore.transforms.tails import Extended

_TOTAL: Final = "total"


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
        return ("count", "whole" if is_whole(schema[source].type) else "sum")

    def fold(self, name: str) -> Fold:
        chosen = {"count": COUNT, "whole": WHOLE, "sum": SUM}[name]
        return replace(chosen, leaves=_of_finite(chosen.leaves))

    def results(
        self, xp: Any, schema: TableSchema, source: str, seen: Seen, times: Array
    ) -> Iterator[tuple[Array, Array]]:
        (count,) = seen["count"]
        every = xp.ones(count.shape[0], dtype=xp.bool_)
        yield count.astype(xp.float64), every
        yield wide_numbers(xp, seen["whole"]) if "whole" in seen else seen["sum"][0] + 0.0, every

    def _view(
        self, xp: Any, groups: Groups, times: Array, rows: Extended, schema: TableSchema
    ) -> View:
        if self.lag is not None:
            return super()._view(xp, groups, times, rows, schema)
        own: Own = rows.own(groups.order)
        return View.earlier(xp, groups, times, own)


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
    *Null rule.* Rows whose label is null, NaN or infinite are not learnt from. Null is a category. A category
    without earlier rows gets the mean of all earlier rows; null where there are none either.
    *Boundary rule.* Rows of one time never see each other: a row sees strictly earlier times, and with a
    ``lag`` those up to ``t - lag``. *Types.* float64.

    *State.* Count and sum per category, and of all rows: one row each for labels of integers or booleans; for
    floats up to two per category for each bit of the time span, some 20 in practice; with a ``lag``, the rows
    of the last ``lag`` too. *Memory.* To apply, 250 bytes per row, and per row of the state.

    Raises
    ------
    DefinitionError
        For a table without time column, or a parameter that is not as above.

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

    columns: Selection
    label: str
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

    def _every(self, schema: TableSchema) -> dict[str, TargetSums]:
        """Return the sums that are needed, by the name of their part of a state."""
        names = self._columns(schema)
        return {_TOTAL: self._total, **{f"c{i}": self._sums([one]) for i, one in enumerate(names)}}

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = [one.inputs(schema) for one in self._every(schema).values()]
        return tuple(dict.fromkeys(name for some in names for name in some))

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        defaults = [f"{name}_target_{self.label}" for name in self._columns(schema)]
        names = output_names(defaults, self.prefix, self.rename, "ExpandingTarget")
        return tuple(Field(name, pa.float64()) for name in names)

    def summarize(self, partition: Partition, engine: Engine) -> State:
        every = self._every(partition.schema).items()
        return {
            f"{part}_{name}": table
            for part, one in every
            for name, table in one.summarize(partition, engine).items()
        }

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        parts = dict.fromkeys(name.split("_")[0] for name in later)
        return {
            f"{part}_{name}": table
            for part in parts
            for name, table in self._total.combine(_part(earlier, part), _part(later, part)).items()
        }

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp

        def sums(part: str, one: TargetSums) -> tuple[Array, Array]:
            frame = one.apply(partition, _part(state, part), engine).frame
            assert frame is not None
            return engine.values(frame["count"])[0], engine.values(frame["sum"])[0]

        every = self._every(schema)
        total = sums(_TOTAL, every.pop(_TOTAL))
        out: list[Series] = []
        valid = total[0] > 0
        with np.errstate(all="ignore"):
            mean = total[1] / xp.maximum(total[0], 1.0)
            for field, (part, one) in zip(self.outputs(schema), every.items(), strict=True):
                count, sum_ = sums(part, one)
                weight = count + self.smoothing
                made = (sum_ + self.smoothing * mean) / xp.where(weight > 0, weight, 1.0)
                made = canonical(xp, xp.where(count > 0, made, mean), valid)
                out.append(engine.column(field.name, made, valid, field.type))
        return Columns(partition.frame.select(*out) if out else None)

    # --- what it costs -----------------------------------------------------------------------------

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        every = [
            one.memory(schema, extent) + one.output_bytes(schema, extent)
            for one in self._every(schema).values()
        ]
        # The total's sums, its mean, and what is made of one column's.
        return max(every) + 40 * extent.rows

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        every = self._every(schema).values()
        apart = max(
            one.summarize_memory(schema, extent) - one.state_bytes(schema, extent) for one in every
        )
        return apart + self.state_bytes(schema, extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(one.state_bytes(schema, extent) for one in self._every(schema).values())

    def state_fingerprint(self) -> str:
        return replace(self, smoothing=0.0, prefix=None, rename=None).fingerprint()


def _of_finite(leaves: Leaves) -> Leaves:
    def made(xp: Any, values: Array, valid: Array, times: Array) -> Parts:
        if values.dtype.kind == "f":
            valid = valid & xp.isfinite(values)
        return leaves(xp, values, valid, times)

    return made


def _part(state: State, part: str) -> State:
    """Return the tables of one part of a state, by their own names."""
    return {
        name[len(part) + 1 :]: one for name, one in state.items() if name.startswith(f"{part}_")
    }
