"""OneHot: a column per category that says where it is.

Always true: the columns that come out follow from the definition, so that a model's inputs have one shape.
Trade-off: one column per category; use ``Categorify`` and an embedding where there are hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.engines.finding import NOWHERE
from featurestore.engines.protocol import Array, Engine, Series
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import Columns, Partition, Scope, Slicing, State
from featurestore.transforms.columnwise import side_by_side
from featurestore.transforms.count_learner import CountLearner
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes, is_text, rounding_bytes, state_rows
from featurestore.transforms.hash_buckets import check_hashable
from featurestore.transforms.learnt_rows import positions, positions_memory
from featurestore.transforms.naming import normalise_renaming, output_names
from featurestore.transforms.selectors import Selection, normalise_selection, resolve, strings
from featurestore.transforms.value_counts import (
    check_countable,
    counting_memory,
    counts_bytes,
    counts_fingerprint,
    most_frequent,
    most_frequent_first,
    require_rows,
    summarize_counts,
)

_STRINGS: Final = strings()
Category: TypeAlias = "bool | int | str"


@dataclass(frozen=True)
class OneHot(CountLearner):
    """For each of some categories, whether a row has it.

    Scope: none; fit with ``size``. State: none; with ``size`` every distinct value with its count. Null rule: a
    null has none of the categories: false (or 0) throughout, and so is a value that is no category.
    Boundary rule: a value depends on its own row only; with ``size`` also on the counts of all rows of the fit scope.
    Output: bool columns ``<input>_<category>``, never null; or, with ``tensor``, one ``uint8 [categories]``
    per input. With ``size`` always a tensor ``uint8 [size]``: the most frequent value first, by value among
    equals, and zeros at the end if there are fewer.
    Memory: 5 bytes per row, of integers 3 and one without nulls, for one category at
    a time.
    With ``size`` 61 bytes (105 for strings) per row; to learn, as much as ``Categorify``.

    Parameters
    ----------
    columns : str, sequence of str or Selector
        Strings, integers or booleans.
    categories : sequence of str, int or bool
        Of the columns' type, each once.
    size : int, optional
        Instead of categories: how many to learn of each column.
    tensor : bool
        Whether all categories of a column come as one tensor, ``<input>_one_hot``.
    min_count : int
        How often a value must occur to be learnt.
    prefix, suffix, rename : optional
        Change the names.

    Raises
    ------
    DefinitionError
        Without categories, or with one twice; with both categories and ``size``.
    SchemaError
        For columns of other types than the categories.

    Examples
    --------
    >>> from featurestore.engines.polars import PolarsEngine
    >>> engine, schema = PolarsEngine(), TableSchema((Field("c", pa.string()),))
    >>> part = Partition(engine.from_arrow(pa.table({"c": ["a", "b", None, "x"]})), schema)
    >>> OneHot("c", ["a", "b"]).apply(part, {}, engine).frame.to_dict(as_series=False)
    {'c_a': [True, False, False, False], 'c_b': [False, True, False, False]}
    """

    columns: Selection = _STRINGS
    categories: Sequence[Category] = ()
    _: KW_ONLY
    size: int | None = None
    tensor: bool = False
    min_count: int = 1
    prefix: str = ""
    suffix: str = ""
    rename: Any = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "columns", normalise_selection(self.columns))
        put(self, "rename", normalise_renaming(self.rename) or ())
        given = () if isinstance(self.categories, str) else tuple(self.categories)
        put(self, "categories", given)
        if self.size is not None:
            self._check_learnt()
            return
        kinds = {type(one) for one in given}
        if len(kinds) != 1 or not kinds < {bool, int, str} or len(set(given)) != len(given):
            raise DefinitionError(
                f"OneHot has categories={given!r}",
                "give a list of strings, of integers or of booleans, each once",
            )

    def _check_learnt(self) -> None:
        sizes = (self.size, self.min_count)
        if self.categories or any(type(one) is not int or one < 1 for one in sizes):
            raise DefinitionError(
                f"OneHot has categories={self.categories!r}, size={self.size!r} and "
                f"min_count={self.min_count!r}",
                "give categories, or how many are to be learnt: numbers from 1",
            )
        object.__setattr__(self, "tensor", True)

    @property
    def scope(self) -> Scope:
        return Scope.NONE if self.size is None else Scope.FIT

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        if self.size is not None:
            for name in names:
                check_countable(schema[name], "OneHot")
            return names
        kind = type(self.categories[0])
        for name in names:
            one = schema[name]
            check_hashable(one, "OneHot")
            held = str if one.is_string else bool if pa.types.is_boolean(one.type) else int
            if held is not kind:
                raise SchemaError(
                    f"column {name!r} is {one.type}, and OneHot has categories of {kind.__name__}",
                    "use a OneHot for the columns of each type",
                )
        return names

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        names, size = self.inputs(schema), self.size or len(self.categories)
        if self.tensor:
            made = self._named([f"{name}_one_hot" for name in names])
            return tuple(Field(one, pa.uint8(), (size,)) for one in made)
        made = self._named([f"{name}_{one}" for name in names for one in self.categories])
        return tuple(Field(one, pa.bool_()) for one in made)

    def _named(self, defaults: Sequence[str]) -> tuple[str, ...]:
        return output_names(defaults, self.prefix, self.rename, "OneHot", self.suffix)

    # --- learning --------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        return summarize_counts(partition, self.inputs(partition.schema), engine)

    def narrow(self, state: State) -> State:
        return most_frequent(state, self.size, self.min_count)

    def most_kept(self, table: str) -> int | None:
        return self.size

    def finish(self, state: State) -> State:
        """Return, per column, the learnt values in order of their places."""
        require_rows(state)
        ranked = {one: most_frequent_first(state[one], self.min_count) for one in state}
        return {
            name: pa.table({"value": values.slice(0, self.size).combine_chunks()})
            for name, values in ranked.items()
        }

    # --- applying --------------------------------------------------------------------------------

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        schema, xp = partition.schema, engine.xp
        targets = iter(self.outputs(schema))
        columns, tensors = [], {}
        for name in self.inputs(schema):
            values = partition.frame[name]
            if self.size is not None:
                tensors[next(targets).name] = _places(values, state[name], self.size, engine)
                continue
            if self.tensor:
                out = xp.empty((partition.rows, len(self.categories)), dtype=xp.uint8)
                for i, one in enumerate(self.categories):
                    out[:, i] = _has(values, one, schema[name], engine)
                tensors[next(targets).name] = out
                continue
            for one in self.categories:
                there = _has(values, one, schema[name], engine)
                columns.append(engine.column(next(targets).name, there, None, pa.bool_()))
        return Columns(side_by_side(columns), tensors)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        if self.size is not None:
            learnt = {
                one: min(self.size, state_rows(schema, [one], extent))
                for one in self.inputs(schema)
            }
            looking = (positions_memory(schema, [k], extent.rows, n) for k, n in learnt.items())
            # Its tensor does not exist yet while a column's values are looked up.
            return max(max(looking, default=0) - self.size * extent.rows, 21 * extent.rows)
        columns = [one for one in self.outputs(schema) if not one.is_tensor]
        kinds = [schema[name].type for name in self.inputs(schema)]
        # Numbers without their nulls, and which rows have a category.
        each = [5 if is_text(one) else 3 + one.bit_width // 8 for one in kinds]
        return max(each, default=0) * extent.rows + rounding_bytes(columns, extent.rows)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))

    @property
    def summarizes_in_engine(self) -> bool:
        return True

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        return counting_memory(schema, self.inputs(schema), extent)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return 0 if self.size is None else counts_bytes(schema, self.inputs(schema), extent)

    def state_fingerprint(self) -> str:
        return (
            super().state_fingerprint() if self.size is None else counts_fingerprint(self.columns)
        )


def _places(values: Series, learnt: pa.Table, size: int, engine: Engine) -> Array:
    """Return a one where each row's value stands among the learnt ones."""
    xp = engine.xp
    at = positions(values.to_frame(), [values.name], learnt, engine)
    out = xp.zeros((len(values), size), dtype=xp.uint8)
    rows = xp.nonzero(at != NOWHERE)[0]
    out[rows, at[rows]] = 1
    return out


def _has(values: Series, category: Category, one: Field, engine: Engine) -> Array:
    """Return where a column has a category."""
    xp = engine.xp
    if one.is_string:
        there, known = engine.values(values == category)
        return there & known
    numbers, valid = engine.values(values)
    if isinstance(category, int) and not isinstance(category, bool):
        limits = np.iinfo(numbers.dtype)
        if not limits.min <= category <= limits.max:
            return xp.zeros_like(valid)
    there = numbers == numbers.dtype.type(category)
    there &= valid
    return there
