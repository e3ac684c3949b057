"""Pipeline: fitted transformers in sequence, learnt from one set of rows and applied to any.

A :class:`Pipeline` is a specification; a :class:`FittedPipeline` adds the schema it starts from and
what each step learnt. Always true: it has as many rows out as in, in the same order, and applying it
to one row gives what applying it to the whole table gives. Steps that do not depend on each other
share a pass over the data, so there are as many passes as fitted steps in a chain.

Trade-off: only transformers that need no other rows when applied (scope none and fit) can be steps;
windows and joins are features of a table, where their history is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import pyarrow as pa

from featurestore.engines.protocol import Engine
from featurestore.errors import CorruptionError, DefinitionError, FormatError, SchemaError
from featurestore.fingerprint import Json, digest, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.storage.states import decode_state, encode_state
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
    Transformer,
    transformer_from_spec,
)
from featurestore.transforms.frames import from_frame, like_frame, to_arrow

_T = TypeVar("_T")
_SPEC_VERSION = 1


@dataclass(frozen=True, slots=True, init=False)
class Pipeline:
    """Transformers applied one after the other.

    Each step sees the columns as the earlier steps left them; a step whose outputs have its inputs'
    names replaces those columns.

    Parameters
    ----------
    *steps : Transformer
        Of scope none or fit.

    Raises
    ------
    DefinitionError
        If a step needs other rows when it is applied.

    Examples
    --------
    >>> from featurestore import Categorify, Impute, Standardize
    >>> pipeline = Pipeline(Impute("x"), Standardize("x"), Categorify("c"))
    >>> schema = TableSchema((Field("x", pa.float32()), Field("c", pa.string())))
    >>> [(one.name, str(one.type)) for one in pipeline.schema_after(schema)]
    [('x', 'float'), ('c', 'int32')]
    >>> pipeline.passes(schema)
    [[0, 2], [1]]
    """

    steps: tuple[Transformer, ...]

    def __init__(self, *steps: Transformer) -> None:
        for step in steps:
            if not isinstance(step, Transformer):
                raise DefinitionError(
                    f"{step!r} is not a transformer", "give fs.Impute(...), fs.Standardize(...)"
                )
            if isinstance(step, SourceTransformer) or step.scope not in (Scope.NONE, Scope.FIT):
                reads = "another table" if isinstance(step, SourceTransformer) else "other rows"
                raise DefinitionError(
                    f"{type(step).__name__} reads {reads} when it is applied, which a pipeline "
                    "cannot give it",
                    "add it to the table as a feature: table.add(...)",
                )
        object.__setattr__(self, "steps", tuple(steps))

    # --- what depends on what ----------------------------------------------------------------------

    def schemas(self, schema: TableSchema) -> tuple[TableSchema, ...]:
        """Return the schema before each step, and after the last.

        Raises
        ------
        SchemaError, DefinitionError
            If a step cannot work on the columns that earlier ones leave, or scales category codes.
        """
        out, codes = [schema], set[str]()
        for step in self.steps:
            before, made = out[-1], step.outputs(out[-1])
            _refuse_codes(step, codes.intersection(step.quantities(before)))
            codes -= {one.name for one in made}
            codes |= set(step.codes(before))
            out.append(before.with_fields(made))
        return tuple(out)

    def schema_after(self, schema: TableSchema) -> TableSchema:
        """Return the schema after all steps. Raises as :meth:`schemas` does."""
        return self.schemas(schema)[-1]

    def needs(self, schema: TableSchema) -> tuple[frozenset[int], ...]:
        """Return, for each step, the earlier steps that what it learns depends on.

        Directly or through others; for a step that learns nothing, those its inputs depend on.
        """
        makers: dict[str, frozenset[int]] = {}
        out = []
        for i, (step, before) in enumerate(zip(self.steps, self.schemas(schema)[:-1], strict=True)):
            out.append(_union(makers, step.learns_from(before)))
            made = _union(makers, step.inputs(before)) | {i}
            makers |= {one.name: made for one in step.outputs(before)}
        return tuple(out)

    def reads(self, schema: TableSchema) -> tuple[tuple[str, ...], ...]:
        """Return, for each step, the original columns it is applied to, through earlier steps too."""
        return tuple(
            tuple(name for name in schema.names if name in read)
            for read, _ in self._original(schema)
        )

    def learns_from(self, schema: TableSchema) -> tuple[tuple[str, ...], ...]:
        """Return, for each step, the original columns it learns from, through earlier steps too.

        Those that ``schema`` does not have come last: a label that only learning sees.
        """
        return tuple(
            (*(name for name in schema.names if name in read), *sorted(read - {*schema.names}))
            for _, read in self._original(schema)
        )

    def _original(self, schema: TableSchema) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Return, for each step, the original columns of what it is applied to and learns from."""
        sources = {name: frozenset([name]) for name in schema.names}
        out = []
        for step, before in zip(self.steps, self.schemas(schema)[:-1], strict=True):
            learnt = step.learns_from(before)
            unseen = frozenset(name for name in learnt if name not in before)
            applied = _union(sources, step.inputs(before))
            out.append((applied, _union(sources, learnt) | unseen))
            sources |= {one.name: applied for one in step.outputs(before)}
        return out

    def passes(self, schema: TableSchema) -> list[list[int]]:
        """Return the positions of the fitted steps, grouped by the pass that learns them.

        Steps of one pass depend only on steps of earlier passes (and on steps without a state).
        """
        levels: list[int] = []
        out: list[list[int]] = []
        for i, needed in enumerate(self.needs(schema)):
            fitted = [levels[one] + (self.steps[one].scope is Scope.FIT) for one in needed]
            levels.append(max(fitted, default=0))
            if self.steps[i].scope is Scope.FIT:
                while len(out) <= levels[i]:
                    out.append([])
                out[levels[i]].append(i)
        return out

    # --- fitting -----------------------------------------------------------------------------------

    def start(self, schema: TableSchema) -> FittedPipeline:
        """Return the pipeline with nothing learnt yet, to be fitted step by step."""
        unknown = [None if step.scope is Scope.FIT else EMPTY_STATE for step in self.steps]
        return FittedPipeline(self, schema, tuple(unknown))

    def fit_partitions(self, partitions: Sequence[Partition], engine: Engine) -> FittedPipeline:
        """Return the pipeline fitted to partitions that are in memory, in order.

        Raises
        ------
        DefinitionError
            If there is nothing to learn from.
        """
        if not partitions:
            raise DefinitionError("a pipeline cannot be fitted without rows", "give some")
        fitted = self.start(partitions[0].schema)
        for group in self.passes(partitions[0].schema):
            for i in group:
                step = self.steps[i]
                parts = [fitted.summarize_step(i, one, engine) for one in partitions]
                fitted = fitted.with_state(i, step.finish(reduce(step.combine, parts, EMPTY_STATE)))
        return fitted

    def fit(self, frame: Any, y: Any = None) -> FittedPipeline:
        """Learn from one frame in memory (pandas, Polars, pyarrow, anything Narwhals reads).

        Parameters
        ----------
        frame : frame
            Scalar columns only; there is no key and no time.
        y : ignored
            There for interfaces that pass it.

        Returns
        -------
        FittedPipeline
            The pipeline itself is not changed.

        Examples
        --------
        >>> from featurestore import Standardize
        >>> fitted = Pipeline(Standardize("x")).fit(pa.table({"x": [1.0, 3.0]}))
        >>> fitted.transform(pa.table({"x": [2.0, 5.0]}))["x"].to_pylist()
        [0.0, 3.0]
        """
        from featurestore.engines.selection import get_engine

        engine = get_engine("polars")
        return self.fit_partitions([from_frame(frame, engine)], engine)

    def fit_transform(self, frame: Any, y: Any = None) -> Any:
        """Learn from one frame in memory and return it after all steps.

        As ``fit(frame).transform(frame)``, except that a step which tells rows that it learnt from apart
        does so: ``TargetEncode`` gives them values out of fold.

        Parameters
        ----------
        frame : frame
            As for :meth:`fit`.
        y : ignored
            There for interfaces that pass it.
        """
        return self.fit(frame)._transformed(frame, learnt_from=True)

    # --- identity ----------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Return the fingerprint of what the steps do, nothing learnt included."""
        return fingerprint("pipeline", [step.fingerprint() for step in self.steps])

    def spec(self) -> dict[str, Json]:
        """Return the specification as JSON: ``{"kind", "version", "steps"}``."""
        steps: list[Json] = [step.spec() for step in self.steps]
        return {"kind": "Pipeline", "version": _SPEC_VERSION, "steps": steps}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline that :meth:`spec` described. Runs no code of the spec's.

        Raises
        ------
        FormatError
            If it is not one, or newer than this package.
        """
        steps = spec.get("steps") if isinstance(spec, Mapping) else None
        if not isinstance(steps, list | tuple) or not all(isinstance(o, Mapping) for o in steps):
            raise FormatError(f"{spec!r} is not a stored pipeline")
        if spec.get("kind") != "Pipeline" or spec.get("version") != _SPEC_VERSION:
            raise FormatError(
                f"the stored pipeline is a {spec.get('kind')} of version {spec.get('version')}, this "
                f"package reads Pipeline {_SPEC_VERSION}",
                "upgrade featurestore",
            )
        return cls(*(transformer_from_spec(step) for step in steps))


@dataclass(frozen=True, slots=True)
class FittedPipeline:
    """A pipeline, the columns it starts from, and what its steps learnt.

    Parameters
    ----------
    pipeline : Pipeline
    schema_in : TableSchema
    states : tuple of State or None
        One per step: finished, ``{}`` for steps that learn nothing, None for what is still unknown.

    Raises
    ------
    DefinitionError
        If the number of states is not that of the steps, or the steps do not fit the schema.
    """

    pipeline: Pipeline
    schema_in: TableSchema
    states: tuple[State | None, ...]
    # Derived once: resolving a schema can run an expression on an empty frame.
    _schemas: tuple[TableSchema, ...] = field(init=False, repr=False, compare=False)
    _needs: tuple[frozenset[int], ...] = field(init=False, repr=False, compare=False)
    _reads: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.states) != len(self.pipeline.steps):
            raise DefinitionError(
                f"{len(self.states)} states for {len(self.pipeline.steps)} steps",
                "give one state per step",
            )
        object.__setattr__(self, "_schemas", self.pipeline.schemas(self.schema_in))
        object.__setattr__(self, "_needs", self.pipeline.needs(self.schema_in))
        reads = (name for one in self.pipeline.reads(self.schema_in) for name in one)
        object.__setattr__(self, "_reads", tuple(dict.fromkeys(reads)))

    @property
    def schema_out(self) -> TableSchema:
        """The columns after the last step."""
        return self._schemas[-1]

    @property
    def complete(self) -> bool:
        """Whether every step knows what it has to know."""
        return all(state is not None for state in self.states)

    # --- fitting step by step ----------------------------------------------------------------------

    def summarize_step(self, i: int, partition: Partition, engine: Engine) -> State:
        """Return what step ``i`` learns from one partition of the original columns.

        The steps it depends on are applied on the way; they must be fitted. ``combine`` the results
        of all partitions, ``finish`` that, and hand it to :meth:`with_state`.

        Raises
        ------
        DefinitionError
            If a step it depends on is not fitted yet.
        """
        needed = sorted(self._needs[i])
        before = self._run(needed, replace(partition, learnt_from=True), engine)
        seen = Partition(before.frame, self._schemas[i], before.tensors)
        return self.pipeline.steps[i].summarize(seen, engine)

    def with_state(self, i: int, state: State) -> FittedPipeline:
        """Return the pipeline with the finished state of step ``i``."""
        states = (*self.states[:i], state, *self.states[i + 1 :])
        return FittedPipeline(self.pipeline, self.schema_in, states)

    # --- applying ----------------------------------------------------------------------------------

    def apply(self, partition: Partition, engine: Engine) -> Partition:
        """Return the partition after all steps; rows and other columns stay as they are.

        Raises
        ------
        DefinitionError
            If a step is not fitted yet.
        SchemaError
            If a column that it reads is missing or has another type than when it was fitted.
        """
        _check_columns(partition, self._reads, self.schema_in)
        return self._run(range(len(self.states)), partition, engine)

    def _run(self, positions: Sequence[int], partition: Partition, engine: Engine) -> Partition:
        for i in positions:
            state, step = self.states[i], self.pipeline.steps[i]
            if state is None:
                raise DefinitionError(
                    f"step {i} ({type(step).__name__}) of the pipeline is not fitted yet",
                    "fit the pipeline first",
                )
            seen = replace(partition, schema=self._schemas[i])
            partition = seen.replace(step.apply(seen, state, engine), self._schemas[i + 1])
        return partition

    def transform(self, frame: Any) -> Any:
        """Return a frame in memory after all steps, as a frame of the library it came in.

        Tensors come as columns of arrays, ``fixed_size_list`` in Arrow. The index of a pandas frame is
        not kept; columns of types that a store cannot hold are refused.

        Raises
        ------
        SchemaError
            If a column that a step reads is missing or of another type.
        """
        return self._transformed(frame, learnt_from=False)

    def _transformed(self, frame: Any, learnt_from: bool) -> Any:
        from featurestore.engines.selection import get_engine

        engine = get_engine("polars")
        part = replace(from_frame(frame, engine, self.schema_in), learnt_from=learnt_from)
        made = self.apply(part, engine)
        kept = [
            name
            for name in self.schema_out.names
            if name in made.tensors or name in made.frame.columns
        ]
        return like_frame(frame, to_arrow(made, kept, engine))

    def get_feature_names_out(self, input_features: object = None) -> tuple[str, ...]:
        """Return the names of the columns after all steps, in order.

        Parameters
        ----------
        input_features : ignored
            There for interfaces that pass it.
        """
        return self.schema_out.names

    def cardinalities(self) -> Mapping[str, int]:
        """Return, for each column that holds codes after all steps, how many codes there are."""
        out: dict[str, int] = {}
        befores = self._schemas[:-1]
        for step, state, before in zip(self.pipeline.steps, self.states, befores, strict=True):
            for one in step.outputs(before):
                out.pop(one.name, None)
            if state is not None:
                out.update({**step.code_counts(before), **step.cardinalities(state)})
        return out

    # --- identity ----------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the steps, the columns they start from and what they learnt."""
        fields: list[Json] = [one.to_json() for one in self.schema_in]
        states: list[Json] = [
            None if state is None else digest(encode_state(state)) for state in self.states
        ]
        return fingerprint("fitted pipeline", self.pipeline.fingerprint(), fields, states)

    def to_json(self) -> dict[str, Json]:
        """Return everything but the states; store those with :meth:`encode_states`."""
        return {
            "pipeline": self.pipeline.spec(),
            "fields": [one.to_json() for one in self.schema_in],
            "key": list(self.schema_in.key),
            "time": self.schema_in.time,
            "fitted": [state is not None for state in self.states],
            "states": digest(self.encode_states()),
        }

    def encode_states(self) -> bytes:
        """Return what the steps learnt as bytes (``storage.states``)."""
        named = {
            f"{i}/{name}": table
            for i, state in enumerate(self.states)
            for name, table in (state or {}).items()
        }
        return encode_state(named)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], states: bytes) -> FittedPipeline:
        """Return the pipeline from :meth:`to_json` and :meth:`encode_states`.

        Raises
        ------
        FormatError, CorruptionError
            If either is not what this package wrote.
        """
        try:
            pipeline = Pipeline.from_spec(value["pipeline"])
            fields = tuple(Field.from_json(one) for one in value["fields"])
            schema = TableSchema(fields, tuple(value["key"]), value["time"])
            fitted = list(value["fitted"])
            recorded = value.get("states")  # not in what version 0.1 stored
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"this is not a stored fitted pipeline: {error!r}") from error
        if recorded not in (None, digest(states)):
            raise CorruptionError(
                f"these states are of another pipeline: their digest is {digest(states)}, not {recorded!r}",
                "keep the files of a pipeline together, as they were written",
            )
        found: list[dict[str, pa.Table]] = [{} for _ in fitted]
        for key, table in decode_state(states).items():
            position, _, name = key.partition("/")
            if not position.isdecimal() or int(position) >= len(found):
                raise CorruptionError(f"the states of a pipeline name step {position!r}")
            found[int(position)][name] = table
        known = zip(fitted, found, strict=True)
        return cls(pipeline, schema, tuple(state if one else None for one, state in known))


def _union(sets: Mapping[str, frozenset[_T]], names: Sequence[str]) -> frozenset[_T]:
    return frozenset[_T]().union(*(sets.get(name, frozenset()) for name in names))


def _refuse_codes(step: Transformer, codes: set[str]) -> None:
    if codes:
        raise DefinitionError(
            f"{type(step).__name__} would take category codes {sorted(codes)} for numbers",
            "put it before Categorify, or leave them out: numeric() - by_name(...)",
        )


def _check_columns(partition: Partition, reads: Sequence[str], schema: TableSchema) -> None:
    held = {*partition.frame.columns, *partition.tensors}
    for name in reads:
        if name not in held:
            raise SchemaError(
                f"the pipeline reads column {name!r}, which is not there",
                f"columns are {[*partition.frame.columns, *partition.tensors]}",
            )
        if name in partition.schema and partition.schema[name].type != schema[name].type:
            raise SchemaError(
                f"column {name!r} has type {partition.schema[name].type}; the pipeline was fitted "
                f"to {schema[name].type}",
                "cast the column",
            )
