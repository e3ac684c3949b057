"""Function: features from a plain Python function of a frame.

Always true: the function sees only rows of its partition (and declared history), its result is
checked row by row count, column by column and type by type, and its definition changes when the code
it runs changes. Trade-off: the function is stored by reference, so it has to be importable, or
defined again, to build more values; opening a store never runs it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from math import prod
from typing import Any, Final, TypeAlias

import narwhals as nw
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engines.protocol import Engine, Frame
from featurestore.errors import DefinitionError, SchemaError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import (
    Field,
    TableSchema,
    normalise_type,
    time_steps,
    type_from_text,
    type_to_text,
)
from featurestore.transforms.base import (
    EMPTY_STATE,
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    decode,
    encode,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import copied_bytes, is_varying, state_rows
from featurestore.transforms.function_ref import FunctionRef
from featurestore.transforms.function_result import (
    Result,
    call,
    conform,
    read_array,
    read_columns,
    types_of,
)
from featurestore.transforms.selectors import Selection, normalise_selection, resolve
from featurestore.units import Duration

FRAMES: Final = ("narwhals", "pandas", "polars")
_TIME: Final = "__fs_time"
TypeLike: TypeAlias = "pa.DataType | str"
Types: TypeAlias = "TypeLike | Mapping[str, TypeLike] | None"


@dataclass(frozen=True, init=False)
class Function(Transformer):
    """What a function makes of a frame, as columns or as one tensor.

    Scope: none; prefix if ``lookback`` is declared. State: the input rows of the last ``lookback``.
    Boundary rule: without ``lookback`` a value may depend on its own row only; with it, on rows of
    ``[time - lookback, time]`` of the whole table, whatever their key.
    Null rule: the function's own. With ``frame="pandas"`` NaN and null are the same on return; in
    NumPy arrays NaN is a value.
    Memory: twice the inputs, history included, and the outputs are set aside for the function; for pandas
    the inputs once more, and 64 bytes for each string. To summarise, the rows of the state twice.

    Parameters
    ----------
    fn : callable
        ``fn(frame, **params)``: takes a frame of the inputs, returns a series, a frame, a dict of
        columns, or with ``shape`` an array. Must not depend on anything but its arguments, and must
        give rows in the order it got them. Not called for partitions without rows.
    inputs : str, sequence of str or Selector
        Scalar columns; the frame has them in this order.
    output : str or sequence of str, optional
        Names of the outputs. Not given: the function's name for a series or array, else the names of
        the frame or dict that it returns.
    frame : {"narwhals", "pandas", "polars"}
        What it takes. ``"pandas"`` is cuDF on a GPU; ``"polars"`` runs on a CPU only.
    dtypes : Arrow type, its name, or mapping of output names to these, optional
        Types of the outputs. Not given: found by :meth:`bind`.
    shape : tuple of int, optional
        The result is one array ``[rows, *shape]``, kept as a tensor.
    lookback : str, timedelta, Duration or int, optional
        How far back in time values depend on other rows; an integer for integer times.
    params : mapping, optional
        Keyword arguments: numbers, strings, lists, mappings. Part of the definition.

    Raises
    ------
    DefinitionError
        If the function has no source or uses what has no fingerprint; when applied, if its result
        has other rows, columns or types than expected.

    Examples
    --------
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("delay", pa.int64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"delay": [3, 40]})), schema)
    >>> def late(df, minutes):
    ...     return df["delay"] > minutes
    >>> feature = Function(late, inputs="delay", params={"minutes": 15}).bind(part, engine)
    >>> feature.outputs(schema)
    (Field(name='late', type=DataType(bool), shape=None),)
    >>> feature.apply(part, {}, engine).frame["late"].to_list()
    [False, True]
    """

    function: FunctionRef
    columns: Selection
    output: tuple[str, ...] | None
    frame: str
    dtypes: tuple[tuple[str, str], ...]
    shape: tuple[int, ...] | None
    lookback: Duration | int | None
    params: Mapping[str, Any]
    found: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        fn: Callable[..., Any] | FunctionRef,
        inputs: Selection,
        output: str | Sequence[str] | None = None,
        frame: str = "narwhals",
        dtypes: Types = None,
        shape: Sequence[int] | None = None,
        lookback: str | dt.timedelta | Duration | int | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        ref = fn if isinstance(fn, FunctionRef) else FunctionRef.of(fn)
        names = _output_names(output, ref, shape)
        span = (
            lookback if lookback is None or isinstance(lookback, int) else Duration.parse(lookback)
        )
        values: dict[str, Any] = {
            "function": ref,
            "columns": normalise_selection(inputs),
            "output": names,
            "frame": frame,
            "dtypes": _declared_types(dtypes, names, ref.name),
            "shape": None if shape is None else tuple(int(size) for size in shape),
            "lookback": span,
            # Through JSON and back, so that the function gets today what it gets after a reload.
            "params": decode(encode(dict(params or {}))),
            "found": (),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if frame not in FRAMES:
            raise DefinitionError(f"frame={frame!r} is not known", f"choose from {list(FRAMES)}")
        if shape is not None and (not shape or min(shape) < 1):
            raise DefinitionError(f"shape={shape!r} is not a shape", "give sizes of at least 1")
        if isinstance(span, int) and span < 0:
            raise DefinitionError(f"lookback={span} is negative", "give how far back it looks")

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    @property
    def name(self) -> str:
        """What messages call it: its output, or the function's name."""
        return self.output[0] if self.output and len(self.output) == 1 else self.function.name

    @property
    def scope(self) -> Scope:
        return Scope.NONE if self.lookback is None else Scope.PREFIX

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS if self.lookback is None else Slicing.TIMES

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        names = self._columns(schema)
        if self.lookback is not None:
            self.reach(schema)
            names = tuple(dict.fromkeys((*names, *([schema.time] if schema.time else []))))
        return names

    def _columns(self, schema: TableSchema) -> tuple[str, ...]:
        names = resolve(self.columns, schema)
        tensors = [name for name in names if schema[name].is_tensor]
        if tensors or not names:
            raise SchemaError(
                f"feature {self.name!r} takes tensors {tensors}"
                if tensors
                else f"feature {self.name!r} takes no column",
                "name at least one scalar column in inputs=",
            )
        return names

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        types = {**dict(self.found), **dict(self.dtypes)}
        names = self.output if self.output is not None else tuple(types)
        missing = [name for name in names if name not in types]
        if missing or not names:
            raise DefinitionError(
                f"the types of feature {self.name!r} are not known yet",
                "call bind(sample, engine), or declare dtypes=",
            )
        return tuple(Field(name, type_from_text(types[name]), self.shape) for name in names)

    def reach(self, schema: TableSchema) -> int | None:
        if self.lookback is None:
            return None
        if schema.time is None:
            raise DefinitionError(
                f"feature {self.name!r} declares lookback={self.lookback}, and the table has no time",
                "ingest the table with time=, or leave lookback out",
            )
        return time_steps(self.lookback, schema.time_unit, schema.time)

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        together = extent.input_bytes + extent.state_bytes
        outputs = self.output_bytes(schema, extent)
        # What the function itself takes nobody knows: twice what it sees is set aside, and its result.
        return 2 * together + outputs + self._converted(schema, extent)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        types = {*dict(self.found), *dict(self.dtypes)}
        if self.output is None or types >= set(self.output):
            return Transformer.output_bytes(self, schema, extent)
        # Not bound to a sample yet: any of them may be a text, or numbers of any shape.
        widest = max(
            extent.input_bytes + 8 * extent.rows, 17 * extent.rows * prod(self.shape or ())
        )
        return len(self.output) * widest

    def _converted(self, schema: TableSchema, extent: Extent) -> int:
        """Return what the frame for pandas takes: a copy, numbers with nulls and texts made wider."""
        if self.frame != "pandas":
            return 0
        names = self._columns(schema)
        rows = extent.rows + state_rows(schema, names, extent)
        texts = sum(is_varying(schema[name].type) for name in names)
        return extent.input_bytes + extent.state_bytes + rows * (len(names) + 64 * texts)

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        if self.lookback is None:
            return 0
        columns = self._columns(schema)
        return copied_bytes(schema, columns, extent) + 9 * extent.rows + 1024  # and each row's time

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        # All rows as Arrow, then those of them that are recent.
        return 2 * self.state_bytes(schema, extent) + 8 * extent.rows

    # --- types found by running it ------------------------------------------------------------------

    def bind(self, sample: Partition, engine: Engine) -> Function:
        """Return the feature with the types that its outputs have on a sample.

        Raises
        ------
        DefinitionError
            If the sample is empty, or an output is null throughout and has no declared type.
        """
        declared = dict(self.dtypes)
        if self.output is not None and declared.keys() >= set(self.output):
            return self
        if sample.rows == 0:
            raise DefinitionError(
                f"feature {self.name!r} cannot be tried out on a sample without rows",
                "declare dtypes=",
            )
        result = self._run(self._frame(sample), engine)
        names = [self.name] if result.frame is None else list(result.frame.columns)
        unknown = sorted(set(declared) - set(names))
        if unknown:
            raise DefinitionError(
                f"dtypes names {unknown}, feature {self.name!r} returned {names}",
                "name columns that the function returns",
            )
        if result.frame is not None:
            open_ = [one for one in names if one not in declared]
            result = replace(result, frame=result.frame.select(open_))
        found = types_of(result, self.name, engine)
        types = {one: declared.get(one) or type_to_text(found[one]) for one in names}
        bound = object.__new__(type(self))
        for one in fields_of(self):
            object.__setattr__(bound, one.name, getattr(self, one.name))
        object.__setattr__(bound, "found", tuple(types.items()))
        return bound

    def bound(self, sample: Partition, engine: Engine) -> Function:
        """Return the feature with the types that its outputs have on a sample: :meth:`bind`."""
        return self.bind(sample, engine)

    # --- the three verbs -------------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        """Return the rows within ``lookback`` of the partition's last time."""
        reach, time = self.reach(partition.schema), partition.schema.time
        if reach is None or time is None or partition.rows == 0:
            return EMPTY_STATE
        rows = engine.to_arrow(self._frame(partition))
        steps, _ = engine.values(partition.frame[time])
        table = rows.append_column(_TIME, pa.array(engine.to_host(steps), pa.int64()))
        return _recent({"rows": table, "reach": pa.table({"steps": pa.array([reach], pa.int64())})})

    def combine(self, earlier: State, later: State) -> State:
        if not earlier or not later:
            return earlier or later
        rows = pa.concat_tables([earlier["rows"], later["rows"]])
        return _recent({"rows": rows, "reach": later["reach"]})

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        fields = self.outputs(partition.schema)
        rows = partition.rows
        if rows == 0:
            return _empty(fields, engine)
        frame = self._frame(partition)
        if state and self.lookback is not None:
            history = self._history(partition, state, engine)
            frame = nw.concat([history, frame], how="vertical")
        result = conform(self._run(frame, engine).tail(rows), fields, self.name, engine)
        if result.array is not None:
            return Columns(tensors={fields[0].name: result.array})
        return Columns(result.frame)

    def _frame(self, partition: Partition) -> Frame:
        return partition.frame.select(list(self._columns(partition.schema)))

    def _history(self, partition: Partition, state: State, engine: Engine) -> Frame:
        time, reach = partition.schema.time, self.reach(partition.schema)
        assert time is not None and reach is not None  # noqa: PT018 - reach() made sure
        steps, _ = engine.values(partition.frame[time])
        table = state["rows"]
        table = table.filter(pc.greater_equal(table[_TIME], int(steps[0]) - reach))
        return engine.from_arrow(table.drop_columns([_TIME]))

    def _run(self, frame: Frame, engine: Engine) -> Result:
        function = self.function.resolve()
        native, value = call(function, self.name, frame, self.frame, self.params, engine)
        if self.shape is not None:
            return read_array(value, self.name, len(frame), self.shape, engine)
        return read_columns(value, native, self.name, len(frame), self.output, engine)

    # --- identity --------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Return the fingerprint of the definition; comments, module and found types do not count."""
        params: dict[str, Json] = {
            one.name: encode(getattr(self, one.name))
            for one in fields_of(self)
            if one.name not in ("function", "found")
        }
        return fingerprint(
            "definition", type(self).__name__, self.version, self.function.code, params
        )

    def code(self) -> str | None:
        """Return the fingerprint of the function's code as it was when it was defined."""
        return self.function.code

    def current_code(self) -> str | None:
        """Return :meth:`current_code_fingerprint`."""
        return self.current_code_fingerprint()

    def unknown_code(self) -> DefinitionError | None:
        """Return why the function's source cannot be looked at; see ``FunctionRef``."""
        return self.function.unknown_code()

    def current_code_fingerprint(self) -> str | None:
        """Return the fingerprint of the function's code as it is in this process now.

        Differs from ``function.code`` when the code changed since it was stored; None when the
        function is not loaded here. Imports nothing.
        """
        return self.function.current_code()


def feature_from(
    fn: Callable[..., Any],
    inputs: Selection,
    output: str | Sequence[str] | None = None,
    frame: str = "narwhals",
    dtypes: Types = None,
    shape: Sequence[int] | None = None,
    lookback: str | dt.timedelta | Duration | int | None = None,
    params: Mapping[str, Any] | None = None,
) -> Function:
    """Return the :class:`Function` that a decorated function stands for.

    As ``Function``, except that without ``output`` the one output has the function's name.
    """
    named = fn.__name__ if output is None else output
    return Function(fn, inputs, named, frame, dtypes, shape, lookback, params)


def _output_names(
    output: str | Sequence[str] | None, ref: FunctionRef, shape: Sequence[int] | None
) -> tuple[str, ...] | None:
    if output is None:
        return None if shape is None else (ref.name,)
    names = (output,) if isinstance(output, str) else tuple(output)
    if not names or len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise DefinitionError(f"output={output!r} does not name columns", "give distinct names")
    if shape is not None and len(names) > 1:
        raise DefinitionError(
            f"a function with shape= gives one tensor, not {list(names)}", "name one output"
        )
    return names


def _declared_types(
    dtypes: Types, output: tuple[str, ...] | None, name: str
) -> tuple[tuple[str, str], ...]:
    if dtypes is None:
        return ()
    if not isinstance(dtypes, Mapping):
        if output is not None and len(output) > 1:
            raise DefinitionError(
                f"one type for outputs {list(output)}", "give dtypes={'name': type, ...}"
            )
        dtypes = {output[0] if output else name: dtypes}
    unknown = sorted(set(dtypes) - set(output)) if output is not None else []
    if unknown:
        raise DefinitionError(f"dtypes names {unknown}, which are no outputs", f"{output}")
    return tuple((key, _type_text(one)) for key, one in dtypes.items())


def _type_text(type_: TypeLike) -> str:
    return type_to_text(normalise_type(type_from_text(type_) if isinstance(type_, str) else type_))


def _recent(state: State) -> State:
    rows, reach = state["rows"], state["reach"]["steps"][0].as_py()
    newest = pc.max(rows[_TIME]).as_py()
    kept = rows.filter(pc.greater_equal(rows[_TIME], newest - reach)).combine_chunks()
    return {"rows": kept, "reach": state["reach"]}


def _empty(fields: Sequence[Field], engine: Engine) -> Columns:
    if fields[0].shape is not None:
        dtype = fields[0].type.to_pandas_dtype()
        return Columns(tensors={fields[0].name: engine.xp.zeros((0, *fields[0].shape), dtype)})
    schema = pa.schema([(one.name, one.type) for one in fields])
    return Columns(engine.from_arrow(schema.empty_table()))
