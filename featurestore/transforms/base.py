"""The three verbs: what every transformer is.

    summarize(partition)    -> state       one partition, no other knowledge
    combine(earlier, later) -> state       associative; the empty state is its identity
    apply(partition, state) -> columns     row count and order unchanged

A transformer is a *specification*: an immutable value that names no engine and holds no data. What
it learns is a *state*, a value of its own (a mapping from names to Arrow tables). ``scope`` says
which state ``apply`` receives:

* ``none``: nothing.
* ``fit``: ``finish(combine(...))`` over all partitions of the fit scope.
* ``prefix``: ``combine`` over all earlier partitions within ``reach``; the empty state first.
* ``suffix``: ``look_ahead`` at ``combine`` over all later partitions within ``reach``; for labels.

A :class:`SourceTransformer` reads another table: its ``summarize`` and ``rows`` run on that table's
partitions, and ``apply`` receives what ``gather`` made of them.

Always true: ``apply`` gives the same values however rows are cut into partitions.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import Any, ClassVar, Final, Self, TypeAlias

import pyarrow as pa

from featurestore.engines.coded import Coded
from featurestore.engines.protocol import Array, Engine, Frame
from featurestore.errors import DefinitionError, FormatError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.extent import Extent
from featurestore.transforms.parameters import decode, encode, register_codec
from featurestore.transforms.registry import register, transformer_from_spec
from featurestore.transforms.signature import check_arguments

State: TypeAlias = "Mapping[str, pa.Table]"
"""What a transformer learnt. The empty mapping is the identity of every ``combine``."""

EMPTY_STATE: Final[State] = {}


class Scope(StrEnum):
    """Which rows a value may depend on besides its own."""

    NONE = "none"
    FIT = "fit"
    PREFIX = "prefix"
    SUFFIX = "suffix"


class Slicing(StrEnum):
    """Where a partition may be cut for a transformer, so that it is processed in slices.

    ``rows``: anywhere. ``times``: between two times, as values depend on other rows of one time.
    ``none``: nowhere, as nobody vouches for its values.
    """

    ROWS = "rows"
    TIMES = "times"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Partition:
    """Some columns of one partition, in memory.

    Parameters
    ----------
    frame : Frame
        The scalar columns; rows are in table order (time, then key).
    schema : TableSchema
        The schema of the table (all its columns, also those that were not read).
    tensors : mapping of str to Array
        Tensor columns, first dimension the rows.
    learnt_from : Array or bool
        Which rows the state that ``apply`` gets was learnt from, said to transformers that ask for it
        (``tells_learnt_rows``): all, none, as of rows that are served, or those of a mask ``bool [rows]``.
    coded : mapping of str to pyarrow.DictionaryArray
        Text columns that are here instead of in the frame, which may have no column, hence no row, then:
        those that whoever gets the partition only compares (``Transformer.compared``).
    """

    frame: Frame
    schema: TableSchema
    tensors: Mapping[str, Array] = field(default_factory=dict)
    learnt_from: Array | bool = False
    coded: Coded = field(default_factory=dict)

    @property
    def rows(self) -> int:
        if len(self.frame.columns):
            return len(self.frame)
        if self.coded:
            return len(next(iter(self.coded.values())))
        return int(next(iter(self.tensors.values())).shape[0]) if self.tensors else 0

    def replace(self, columns: Columns, schema: TableSchema) -> Partition:
        """Return the partition with columns replaced (same name) or added."""
        frame = self.frame
        if columns.frame is not None and len(columns.frame.columns):
            frame = frame.with_columns(*(columns.frame[name] for name in columns.frame.columns))
        tensors = {**self.tensors, **columns.tensors}
        drop = [name for name in columns.tensors if name in frame.columns]
        kept = frame.drop(drop) if drop else frame
        return Partition(kept, schema, tensors, self.learnt_from, self.coded)


@dataclass(frozen=True, slots=True)
class Columns:
    """What ``apply`` returns: exactly the columns of ``outputs``, one row per input row."""

    frame: Frame | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Transformer(ABC):
    """A specification of one or more output columns.

    Subclasses are frozen dataclasses whose fields are the parameters. They are registered under
    their class name, which together with ``version`` identifies them in stores; raise ``version``
    when the values they produce change.
    """

    version: ClassVar[int] = 1
    stored_as: ClassVar[Mapping[str, str]] = {}
    """Parameters that stores hold under another word, so that definitions keep their fingerprints."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        check_arguments(cls, args, kwargs)  # here, as each subclass has an ``__init__`` of its own
        return super().__new__(cls)

    # --- what it is ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """Which state ``apply`` receives."""

    @abstractmethod
    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns of its own table that it reads, key and time included if it needs them.

        Raises
        ------
        SchemaError
            If a column it names does not exist or has the wrong type.
        DefinitionError
            If it cannot work on such a table (a window without a time column).
        """

    @abstractmethod
    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        """Return the columns it produces, in order. Raises as ``inputs`` does."""

    def learns_from(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns that ``summarize`` reads: ``inputs``, unless it learns from others.

        A label, which ``apply`` must not see, is named here only. In the pipeline of a dataset,
        ``schema`` does not have the label, and the partitions that ``summarize`` gets do.
        """
        return self.inputs(schema)

    def codes(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the outputs that number the values of a vocabulary: names, not quantities."""
        return ()

    def quantities(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the inputs that it takes for quantities; codes among them are refused."""
        return ()

    def compared(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the inputs of which ``apply`` only asks which rows have equal values.

        Texts among them may come as dictionaries (``Partition.coded``).
        """
        return ()

    @property
    def tells_learnt_rows(self) -> bool:
        """Whether rows that the state was learnt from get other values than further rows.

        ``apply`` is then told which those are (``Partition.learnt_from``). ``inputs`` has the time column, if
        there is one, as a fit scope may be a range of times.
        """
        return False

    def bound(self, sample: Partition, engine: Engine) -> Transformer:
        """Return it with what can only be known by running it on some rows, as output types."""
        return self

    # --- what it does --------------------------------------------------------------------------

    def summarize(self, partition: Partition, engine: Engine) -> State:
        """Return what this partition contributes to the state."""
        raise NotImplementedError(f"{type(self).__name__} has scope {self.scope}")

    def combine(self, earlier: State, later: State) -> State:
        """Return the state of two adjacent runs of rows; ``{}`` on either side returns the other."""
        raise NotImplementedError(f"{type(self).__name__} has scope {self.scope}")

    def finish(self, state: State) -> State:
        """Return what ``apply`` wants of a combined ``fit`` state (a vocabulary of its counts)."""
        return state

    def state_order(self) -> tuple[str, ...]:
        """Return the columns, if any, by ranges of which states can be combined where they are large.

        Every table of a state is then in their order, ascending, nulls last, and ``combine`` treats each
        table by itself and each of its keys by itself. None of them is a floating-point column.
        """
        return ()

    def combine_all(self, states: Sequence[State]) -> State:
        """Return what ``combine`` makes of adjacent runs of rows, from the first on."""
        return reduce(self.combine, states, EMPTY_STATE)

    def narrow(self, state: State) -> State:
        """Return a range of a combined state without what ``finish`` drops whatever the others hold."""
        return state

    def most_kept(self, table: str) -> int | None:
        """Return the most rows that ``narrow`` leaves of a table of a state; None if there is no such number."""
        return None

    @property
    def is_keyed(self) -> bool:
        """Whether its prefix state is rows by key (:mod:`keyed`), so that it may be larger than memory."""
        return False

    def keys(self, partition: Partition, engine: Engine) -> pa.Table:
        """Return the key of each row, in columns as a keyed state has them (or those that it matches)."""
        raise NotImplementedError(f"{type(self).__name__} has no keyed state")

    def handed(self, schema: TableSchema, extent: Extent) -> Extent:
        """Return the extent with the most of a keyed state that belongs to the keys of its rows."""
        return extent

    def look_ahead(self, later: State, own: State, horizon: int | None) -> tuple[State, int | None]:
        """Return what a partition needs of the suffix state after it, and until when it looks.

        Less than the whole: what is left is the same bits whatever comes after the rows it looks at.

        Parameters
        ----------
        later : State
            ``combine`` of the partitions after it; with a ``reach``, perhaps of some beyond.
        own : State
            ``summarize`` of the partition itself; empty for a transformer with a ``reach``.
        horizon : int, optional
            For a transformer with a ``reach``: the newest time of the table that it may know of.

        Returns
        -------
        State
        int, optional
            Without a ``reach``: rows after this time can no longer change its values. None if they can.
        """
        return later, None

    @abstractmethod
    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        """Return the output columns for a partition."""

    # --- what it costs and how far it looks ----------------------------------------------------

    @property
    def slicing(self) -> Slicing:
        """Where a partition that is too large may be cut, for ``summarize`` as for ``apply``."""
        return Slicing.NONE

    def reach(self, schema: TableSchema) -> int | None:
        """Return how far back a prefix state matters, or ahead a suffix state; None: for ever.

        In steps of the time column.
        """
        return None

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        """Return the bytes ``apply`` needs at its peak on top of what is counted for it anyway.

        That is its inputs, the other table's rows, the state and the outputs, as Arrow bytes; texts and
        lists that the engine makes exist twice, as its own and as Arrow's.
        """
        varying = any(row_width(one) is None for one in self.outputs(schema))
        return extent.input_bytes + (self.output_bytes(schema, extent) if varying else 0)

    def summarize_memory(self, schema: TableSchema, extent: Extent) -> int:
        """Return the bytes ``summarize`` needs at its peak on top of its inputs, its result included."""
        return 2 * extent.input_bytes

    def state_bytes(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most Arrow bytes that the (combined) state of such rows can have."""
        return 0 if self.scope is Scope.NONE else extent.input_bytes

    @property
    def summarizes_in_engine(self) -> bool:
        """Whether ``summarize`` works in an engine's own memory, which is given back some time later."""
        return False

    def summary_bytes(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most Arrow bytes of what ``summarize`` returns for such rows in one piece.

        Less than ``state_bytes`` where a combined state may keep more than one that is made at once.
        """
        return self.state_bytes(schema, extent)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        """Return the most Arrow bytes of the outputs.

        Columns of varying width (strings, lists) are taken to be as wide as all inputs together.
        """
        return sum(
            extent.input_bytes + 8 * extent.rows if width is None else width * extent.rows
            for width in map(row_width, self.outputs(schema))
        )

    def cardinalities(self, state: State) -> Mapping[str, int]:
        """Return, for each categorical output, the number of codes it may take (``[0, n)``)."""
        return {}

    def code_counts(self, schema: TableSchema) -> Mapping[str, int]:
        """Return ``cardinalities`` as far as the definition alone says them (a number of buckets)."""
        return {}

    # --- identity --------------------------------------------------------------------------------

    def spec(self) -> dict[str, Json]:
        """Return the specification as JSON: ``{"kind", "version", "params"}``."""
        names, stored = [one.name for one in dataclasses.fields(self)], self.stored_as
        params = {stored.get(one, one): encode(getattr(self, one)) for one in names}
        return {"kind": type(self).__name__, "version": type(self).version, "params": params}

    def fingerprint(self) -> str:
        """Return the fingerprint of the definition: kind, version, parameters, code."""
        return fingerprint("definition", self.spec())

    def code(self) -> str | None:
        """Return the fingerprint of the code it was defined with; None if it has none of its own."""
        return None

    def current_code(self) -> str | None:
        """Return the fingerprint of the code this definition would run in this process now.

        None if it has no code of its own or the code is not loaded here. Imports nothing.
        """
        return None

    def unknown_code(self) -> DefinitionError | None:
        """Return why nobody can tell whether its code, which is loaded here, changed.

        None if that can be told, or the code is looked at when it is loaded. Values that are there
        may be read all the same; none are computed.
        """
        return None

    def state_fingerprint(self) -> str:
        """Return the fingerprint of what ``summarize`` and ``combine`` depend on.

        Transformers whose states serve several parameterisations narrow this down.
        """
        return self.fingerprint()


@dataclass(frozen=True)
class UnknownTransformer(Transformer):
    """Stands for a stored definition that this process does not know: readable, not rebuildable.

    Parameters
    ----------
    stored : mapping
        The specification as it is in the store.
    problem : FormatError
        Why it is not known.
    """

    stored: Mapping[str, Any]
    problem: FormatError

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        raise self.problem

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        raise self.problem

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        raise self.problem

    def spec(self) -> dict[str, Json]:
        return dict(self.stored)


@dataclass(frozen=True, slots=True)
class SourceWindow:
    """Which rows of another table a partition needs, in steps of that table's time column.

    Parameters
    ----------
    lower, upper : int, optional
        Rows with ``lower <= time <= upper`` must be there; None is unbounded. Rows outside may be
        there too and must not change the result.
    carry : bool
        Whether the combined ``summarize`` of everything below ``lower`` is needed as well.
    """

    lower: int | None
    upper: int | None
    carry: bool


class SourceTransformer(Transformer):
    """A transformer whose state comes from another table, named by ``source_table``."""

    @property
    def scope(self) -> Scope:
        return Scope.PREFIX

    @property
    @abstractmethod
    def source_table(self) -> str:
        """The name of the other table."""

    @abstractmethod
    def source_inputs(self, schema: TableSchema) -> tuple[str, ...]:
        """Return the columns of the other table that it reads (``schema`` is that of its own)."""

    def source_compared(self, schema: TableSchema) -> tuple[str, ...]:
        """Return those of ``source_inputs`` that ``rows`` takes as dictionaries too."""
        return ()

    @abstractmethod
    def source_window(
        self, schema: TableSchema, time_min: int | None, time_max: int | None
    ) -> SourceWindow:
        """Return what a partition whose times lie in ``[time_min, time_max]`` needs."""

    @abstractmethod
    def rows(self, partition: Partition, engine: Engine) -> State:
        """Return one of the other table's partitions, reduced to what ``apply`` needs of it."""

    @abstractmethod
    def gather(self, carry: State, rows: Sequence[State]) -> State:
        """Return the state for ``apply``: the carry, then the rows in table order."""


def row_width(field: Field) -> int | None:
    """Return the bytes of one row's value of a column, its null mark included; None if they vary."""
    if pa.types.is_boolean(field.type):
        width = 1
    else:
        try:
            width = field.type.bit_width // 8
        except ValueError:
            return None
    return math.prod((width, *field.shape)) if field.shape is not None else width + 1


def concat_states(states: Sequence[State]) -> State:
    """Return states put one after the other, table by table."""
    names = dict.fromkeys(name for state in states for name in state)
    return {
        name: pa.concat_tables([state[name] for state in states if name in state]) for name in names
    }


__all__ = [
    "EMPTY_STATE", "Columns", "Partition", "Scope", "Slicing", "SourceTransformer", "SourceWindow", "State",
    "Transformer", "concat_states", "decode", "encode", "register_codec",
    "transformer_from_spec",
]  # fmt: skip
