"""What a transformer's verb takes, measured, beside what its model says.

Each measurement runs in a process of its own: an allocator keeps what it freed, so a process that
worked before would hide what the next call takes. The inputs are made here and travel as Arrow files;
the new process reads them, runs the verb once on a few rows (modules, thread pools and pages of
libraries are loaded then), and measures the kernel's high-water mark around the call.

Always true: what is measured is what the verb adds to inputs and state that are in memory; outputs are
kept until the measurement ends.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from featurestore.allocators import release_freed
from featurestore.engines.protocol import Engine
from featurestore.engines.selection import get_engine
from featurestore.errors import InvalidInputError
from featurestore.fingerprint import Json
from featurestore.profiling.sampler import measure
from featurestore.schema import TableSchema
from featurestore.storage.row_width import widest_row
from featurestore.storage.states import decode_state, encode_state
from featurestore.testing.memory_shapes import shape_schema, shape_table
from featurestore.transforms.base import (
    EMPTY_STATE,
    Partition,
    Scope,
    SourceTransformer,
    State,
    Transformer,
    transformer_from_spec,
)
from featurestore.transforms.extent import Extent

MIB: Final = 2**20
SOURCE: Final = "other"
WARM_ROWS: Final = 5000


@dataclass(frozen=True, slots=True)
class Case:
    """One verb of one transformer on one partition.

    Parameters
    ----------
    transformer : Transformer
        One that reads another table reads the one called ``SOURCE``.
    shape : str
        Of :data:`~featurestore.testing.memory_shapes.SHAPES`; the other table has the same.
    rows : int
    verb : {"apply", "summarize"}
    source_rows : int
        Rows of the other table, if one is read.
    """

    transformer: Transformer
    shape: str
    rows: int
    verb: str = "apply"
    source_rows: int = 0

    @property
    def schema(self) -> TableSchema:
        return shape_schema(self.shape, {SOURCE: shape_schema(self.shape)})


@dataclass(frozen=True, slots=True)
class Finding:
    """What was measured and what was said; all in bytes.

    Parameters
    ----------
    measured : int
        What the verb added at its peak, its result included.
    projected : int
        What its models say: memory and outputs of ``apply``, memory of ``summarize``.
    result, result_bound : int
        Arrow bytes of the outputs or the state, and the most that the models allow.
    extent : Extent
    """

    measured: int
    projected: int
    result: int
    result_bound: int
    extent: Extent

    @property
    def ratio(self) -> float:
        """Projected by measured."""
        return self.projected / max(self.measured, 1)


def find(case: Case, folder: Path) -> Finding:
    """Measure a case in a fresh process.

    Parameters
    ----------
    case : Case
    folder : Path
        An empty one; holds the inputs meanwhile.

    Raises
    ------
    InvalidInputError
        If the process fails; the message has what it wrote.
    """
    extent = prepare(case, folder)
    told = {"spec": case.transformer.spec(), "shape": case.shape, "verb": case.verb}
    (folder / "case.json").write_text(json.dumps(told))
    found = in_fresh_process("featurestore.testing.memory_contract", str(folder))
    one, schema = case.transformer, case.schema
    if case.verb == "apply":
        bound = one.output_bytes(schema, extent)
        projected = one.memory(schema, extent) + bound
    else:
        bound = one.summary_bytes(schema, extent)
        projected = one.summarize_memory(schema, extent)
    return Finding(found["measured"], projected, found["result"], bound, extent)


def in_fresh_process(module: str, *arguments: str) -> Mapping[str, Any]:
    """Return the JSON that ``python -m module arguments`` writes as its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InvalidInputError(f"{module} {arguments} ended with {done.returncode}: {done.stderr}")
    out: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


def prepare(case: Case, folder: Path) -> Extent:
    """Write the inputs of a case, and the state that ``apply`` is handed; return how large they are."""
    engine, schema, one = get_engine("polars"), case.schema, case.transformer
    table = shape_table(case.shape, case.rows, start=case.rows)
    sources, source_bytes = [], 0
    if isinstance(one, SourceTransformer):
        sources = [shape_table(case.shape, case.source_rows, seed=1, start=case.rows)]
        source_bytes = sum(sources[0][name].nbytes for name in one.source_inputs(schema))
    state = EMPTY_STATE
    if case.verb == "apply":
        state = _state(one, table, sources, schema, engine)
    (folder / "state").write_bytes(encode_state(state))
    names = one.learns_from(schema) if case.verb == "summarize" else one.inputs(schema)
    if isinstance(one, SourceTransformer) and case.verb == "summarize":
        table, names = sources[0], one.source_inputs(schema)
    with pa.ipc.new_file(str(folder / "table"), table.select(names).schema) as writer:
        writer.write_table(table.select(names).combine_chunks())
    held = sum(one.nbytes for one in state.values())
    return Extent(
        table.num_rows,
        {name: table[name].nbytes for name in names},
        widest_row=widest_row(table.select(names)),
        state_bytes=0 if sources else held,
        source_rows=case.source_rows if case.verb == "apply" else 0,
        source_bytes=source_bytes if case.verb == "apply" else 0,
        state_rows=0 if sources else case.rows,
        source_widest_row=max((widest_row(one) for one in sources), default=0),
    )


def _state(
    one: Transformer,
    table: pa.Table,
    sources: list[pa.Table],
    schema: TableSchema,
    engine: Engine,
) -> State:
    """Return what ``apply`` is handed on a table: of earlier rows, of the table itself, of others."""
    if isinstance(one, SourceTransformer):
        parts = [Partition(engine.from_arrow(other), schema.source(SOURCE)) for other in sources]
        return one.gather(EMPTY_STATE, [one.rows(part, engine) for part in parts])
    if one.scope is Scope.NONE:
        return EMPTY_STATE
    partition = Partition(engine.from_arrow(table), schema)
    if one.scope is Scope.FIT:
        return one.finish(one.summarize(partition, engine))
    # The rows before or after, which have other times: an equal table an extent earlier or later.
    ahead = one.scope is Scope.SUFFIX
    return one.summarize(Partition(_moved(partition, engine, ahead), schema), engine)


def _moved(partition: Partition, engine: Engine, ahead: bool) -> Any:
    table = engine.to_arrow(partition.frame)
    times = table["t"].cast(pa.int64())
    span = times[-1].as_py() - times[0].as_py() + 1
    by = pa.scalar(span if ahead else -span)
    moved = pa.compute.add(times, by).cast(pa.timestamp("us"))
    return engine.from_arrow(table.set_column(table.column_names.index("t"), "t", moved))


def settle() -> None:
    """Give back what was freed, so that a measurement begins with what is in use."""
    gc.collect()
    release_freed()


def _measured(folder: Path) -> dict[str, Json]:
    """Measure the case of a folder in this process."""
    told = json.loads((folder / "case.json").read_text())
    engine, one = get_engine("polars"), transformer_from_spec(told["spec"])
    schema = shape_schema(told["shape"], {SOURCE: shape_schema(told["shape"])})
    own = schema
    if isinstance(one, SourceTransformer) and told["verb"] == "summarize":
        own = schema.source(SOURCE)

    few = shape_table(told["shape"], WARM_ROWS)
    warm = Partition(engine.from_arrow(few), own)
    if told["verb"] == "summarize":
        one.summarize(warm, engine)
    else:
        made = one.apply(warm, _state(one, few, [few], schema, engine), engine)
        assert made.frame is not None or made.tensors
        if made.frame is not None:
            engine.to_arrow(made.frame)
    del few, warm

    with pa.ipc.open_file(str(folder / "table")) as file:
        table = file.read_all()
    partition = Partition(engine.from_arrow(table), own)
    state = decode_state((folder / "state").read_bytes())
    del table
    settle()
    with measure(interval=1) as meter:
        if told["verb"] == "summarize":
            learnt = one.summarize(partition, engine)
        else:
            # As a training part is encoded, which takes more than other rows do.
            columns = one.apply(replace(partition, learnt_from=True), state, engine)
            arrow = None if columns.frame is None else engine.to_arrow(columns.frame)
    if told["verb"] == "summarize":
        result = sum(table.nbytes for table in learnt.values())
    else:
        result = sum(int(array.nbytes) for array in columns.tensors.values())
        result += 0 if arrow is None else arrow.nbytes
    return {"measured": meter.result.added_bytes, "result": result}


if __name__ == "__main__":
    print(json.dumps(_measured(Path(sys.argv[1]))))
