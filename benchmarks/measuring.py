"""What the benchmarks share: data, cases in fresh processes, tables, pictures.

A case is a function of one JSON-able argument, run by name in a fresh interpreter, so that no case
sees memory or caches that another left behind. It says when its imports are done by entering
``fs.measure`` itself; what it returns is written to a file and read back here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parent / "out"
MIB = 2**20
_CHUNK_ROWS = 65_536

# pyarrow imports pandas, where it is installed, as soon as it makes an array.
OURS = (
    "polars", "dask.threaded", "pyarrow.parquet", "zarr", "rich.progress", "pandas",
    "featurestore.table",
)  # fmt: skip
PANDAS = ("pandas", "pyarrow.parquet")
DASK = ("dask.dataframe", "dask.threaded", "pyarrow.parquet")
POLARS = ("polars",)

Case = Callable[[dict[str, Any]], dict[str, Any]]


def write_data(
    path: Path, rows: int, columns: int, entities: int = 1000, seed: int = 0, *, label: bool = False
) -> Path:
    """Write a Parquet file: ``entity``, ``time`` (seconds, ascending) and ``x0``... (float32).

    With ``label`` also ``y`` (float32): 1 where the first column and the last, and noise, sum to more
    than 0. Row groups of 64k rows are made one at a time, so any number of rows takes little memory.
    """
    random = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(columns)]
    fields = [
        ("entity", pa.int32()),
        ("time", pa.timestamp("ms")),
        *((n, pa.float32()) for n in names),
        *([("y", pa.float32())] if label else []),
    ]
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, _CHUNK_ROWS):
            count = min(_CHUNK_ROWS, rows - start)
            # One row per entity and second: (entity, time) is unique.
            position = np.arange(start, start + count)
            values = random.standard_normal((columns, count), dtype=np.float32)
            arrays = [
                pa.array((position % entities).astype(np.int32)),
                pa.array(position // entities * 1000).cast(pa.timestamp("ms")),
                *(pa.array(one) for one in values),
            ]
            if label:
                score = values[0] + values[-1] + random.standard_normal(count, dtype=np.float32)
                arrays.append(pa.array((score > 0).astype(np.float32)))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return path


def stored_files(store: str) -> list[str]:
    """Return the Parquet files of table ``data`` without features, in order of its rows."""
    return sorted(str(one) for one in Path(store, "data").rglob("*.parquet"))


def tree_bytes(path: Path) -> int:
    """Return the bytes of all files below a directory, or of one file."""
    if path.is_file():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def run_case(
    script: str, case: str, arguments: Mapping[str, Any], seconds: float | None = None
) -> dict[str, Any]:
    """Run one case of a script in a fresh process and return its result.

    A case that fails, also by running out of memory or of ``seconds``, gives ``{"error": ...}``.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        command = [sys.executable, script, "--case", case, "--arguments", json.dumps(arguments)]
        root = str(Path(__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            done = subprocess.run(
                [*command, "--answer", answer.name],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"stopped: it was not done after {seconds:.0f} seconds"}
        if done.returncode == -signal.SIGKILL:
            return {"error": "killed: it took more memory than the limit"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return {"error": lines[-1][:300]}
        result: dict[str, Any] = json.loads(Path(answer.name).read_text(encoding="utf-8"))
        return result


def parse(
    parser: argparse.ArgumentParser, cases: Mapping[str, Case], small: str
) -> argparse.Namespace | None:
    """Parse the command line; or be the fresh process: run its case, write what it returns, give None.

    Parameters
    ----------
    parser : ArgumentParser
        With the script's own options.
    cases : mapping of str to function
    small : str
        What ``--small`` measures, for ``--help``.
    """
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument("--case", choices=cases, help=argparse.SUPPRESS)
    parser.add_argument("--arguments", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.case:
        return given
    result = cases[given.case](json.loads(given.arguments))
    Path(given.answer).write_text(json.dumps(result), encoding="utf-8")
    return None


def described(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is a script's docstring as it stands."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawTextHelpFormatter)


def measured(work: Callable[[], Any], imports: Sequence[str]) -> dict[str, Any]:
    """Run ``work`` and return seconds, and peak memory above what the process had before.

    ``imports`` names what the work would import on the way: modules are no memory of the work.
    """
    import featurestore as fs

    for name in imports:
        import_module(name)
    with fs.measure() as meter:
        work()
    one = meter.result
    before = one.samples[0].anonymous if one.samples else 0
    return {
        "seconds": one.seconds,
        "peak_bytes": one.peak_bytes,
        "added_bytes": one.added_bytes,
        "anonymous_bytes": one.peak_anonymous,
        "added_anonymous_bytes": max(0, one.peak_anonymous - before),
        "method": one.method,
    }


@contextmanager
def caged(limit: str) -> Iterator[None]:
    """Let no more memory be had than a limit, so that what asks for more ends and the machine does not.

    The kernel kills the process where it keeps limits; elsewhere it gets no more private memory than
    that.
    """
    import resource

    import featurestore as fs
    from featurestore.errors import EnforcementWarning
    from featurestore.units import parse_bytes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnforcementWarning)
        enforcement = fs.enforced(limit)
    with enforcement:
        if not enforcement.active:
            size = parse_bytes(limit)
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        yield


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(str(one) for one in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def save(name: str, configuration: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Path:
    """Write results, with what they were measured on, to ``benchmarks/out/<name>.json``."""
    OUT.mkdir(exist_ok=True)
    packages = ("polars", "pandas", "pyarrow", "numpy", "zarr")
    machine = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {one: version(one) for one in packages},
    }
    path = OUT / f"{name}.json"
    content = {"configuration": configuration, "machine": machine, "results": list(results)}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def figure(width: float = 9, height: float = 4) -> Any:
    """Return an empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    return made
