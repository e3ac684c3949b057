"""What stays resident after work is done and its results are dropped, for each allocator in play.

Three allocators share a process: Arrow's pool (mimalloc, jemalloc or the C library's), Polars' own
(jemalloc, linked into it), and the C library's malloc, which NumPy uses. Each keeps freed pages for later, by
rules of its own. Every case runs in a fresh process: a first, small run loads modules and starts
threads; then the same work over a file three times, with nothing kept; then what is left is given
back in several ways, one after the other, and measured after each.

    python benchmarks/allocators.py [--small] [--megabytes N]

Writes a table to the terminal, and ``allocators.json`` to ``benchmarks/out``.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from measuring import MIB, described, parse, print_table, run_case, save

from featurestore.allocators import release_freed
from featurestore.profiling.probe import memory_of
from featurestore.watermark import watermark

REPEATS: Final = 3
Work = Callable[[Path, Path], None]

# What a user may set before Python starts; nothing here is set by the package.
SETTINGS: Final[dict[str, dict[str, str]]] = {
    "defaults": {},
    "Arrow: jemalloc": {"ARROW_DEFAULT_MEMORY_POOL": "jemalloc"},
    "Arrow: system": {"ARROW_DEFAULT_MEMORY_POOL": "system"},
    "Polars: no decay": {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"},
}


def write_file(path: Path, megabytes: int, seed: int = 0) -> Path:
    """Write a Parquet file of floats and strings that takes about so much memory when decoded."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, rows = np.random.default_rng(seed), max(1000, megabytes * MIB // 100)
    columns: dict[str, Any] = {f"x{i}": pa.array(random.standard_normal(rows)) for i in range(8)}
    columns["key"] = pa.array(random.integers(0, rows // 50 + 1, rows))
    columns["name"] = pa.array([f"name-{one:012d}" for one in random.integers(0, rows, rows)])
    pq.write_table(pa.table(columns), path, row_group_size=65_536)
    return path


def store_of(source: Path) -> Path:
    return source.with_suffix(".store")


def write_store(source: Path) -> None:
    """Make a store of a file's rows beside it."""
    import featurestore as fs

    store = fs.FeatureStore.create(store_of(source), memory_limit="1GiB")
    store.ingest("data", str(source), key="key", duplicates="keep", partition_bytes="8MiB")


# --- the work ------------------------------------------------------------------------------------


def arrow_read(source: Path, _: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        file.read()


def arrow_read_one_thread(source: Path, _: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)


def arrow_write(source: Path, out: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file, pq.ParquetWriter(out, file.schema_arrow) as writer:
        for batch in file.iter_batches():
            writer.write_batch(batch)


def polars_read(source: Path, _: Path) -> None:
    import polars as pl

    pl.read_parquet(source)


def polars_sort(source: Path, _: Path) -> None:
    import polars as pl

    pl.scan_parquet(source).sort("name").collect()


def polars_group(source: Path, _: Path) -> None:
    import polars as pl

    pl.scan_parquet(source).group_by("key").agg(pl.all().exclude("name").mean()).collect()


def numpy_temporaries(source: Path, _: Path) -> None:
    import numpy as np

    count = source.stat().st_size // 64
    for power in range(4):
        parts = [np.ones(max(1, count >> power)) for _ in range(8)]
        np.sort(np.concatenate(parts))


def python_strings(source: Path, _: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        file.read(columns=["name"]).column("name").to_pylist()


def in_threads(source: Path, out: Path) -> None:
    """The first read and a sort, in threads that end: the way tasks run."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(work, source, out) for work in (arrow_read, polars_sort) * 2]:
            one.result()


def store_ingest(source: Path, out: Path) -> None:
    """Sorted by way of scratch space: the rows of the file are in no order."""
    import featurestore as fs

    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        store = fs.FeatureStore.create(folder, memory_limit="1GiB")
        store.ingest("data", str(source), key="key", duplicates="keep", partition_bytes="8MiB")


def store_features(source: Path, _: Path) -> None:
    """Two columns of a table that was made before."""
    import narwhals as nw

    import featurestore as fs

    table = fs.FeatureStore.open(store_of(source), memory_limit="1GiB").table("data")
    table.add(fs.Expression(twice=nw.col("x0") * 2, joined=nw.col("name") + "-"))
    table.drop("twice", "joined")


WORK: Final[dict[str, Work]] = {
    "Arrow reads Parquet": arrow_read,
    "Arrow reads row groups": arrow_read_one_thread,
    "Arrow writes Parquet": arrow_write,
    "Polars reads Parquet": polars_read,
    "Polars sorts": polars_sort,
    "Polars groups": polars_group,
    "NumPy temporaries": numpy_temporaries,
    "Python strings": python_strings,
    "four threads": in_threads,
    "ingest": store_ingest,
    "a feature": store_features,
}


# --- the measurement -----------------------------------------------------------------------------


def after(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run one kind of work; return its peak, and what is resident after each way to give memory back."""
    import pyarrow as pa

    source, tiny, out = (Path(arguments[one]) for one in ("source", "tiny", "out"))
    work = WORK[arguments["work"]]
    work(tiny, out)
    release_freed()
    gc.collect()
    before = resident()
    started = time.perf_counter()
    with watermark() as mark:
        for _ in range(REPEATS):
            work(source, out)
    seconds = time.perf_counter() - started
    gc.collect()
    kept = {"peak": mark.added_bytes, "after": resident() - before}
    pa.default_memory_pool().release_unused()
    kept["release_unused"] = resident() - before
    started = time.perf_counter()
    release_freed()
    release_seconds = time.perf_counter() - started
    kept["release_freed"] = resident() - before
    # By then Polars has given back what it does by itself.
    time.sleep(2)
    release_freed()
    kept["2 s later"] = resident() - before
    return {"seconds": seconds, "kept": kept, "release_seconds": release_seconds}


def resident() -> int:
    anonymous, _, shared = memory_of(os.getpid())
    return anonymous + shared


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="Size of the data, decoded.")
    given = parse(parser, {"after": after}, "4 MB, the defaults only: shows that it works.")
    if given is None:
        return
    megabytes = 4 if given.small else given.megabytes
    settings = {"defaults": SETTINGS["defaults"]} if given.small else SETTINGS
    results = []
    with tempfile.TemporaryDirectory() as folder:
        source = write_file(Path(folder) / "data.parquet", megabytes)
        tiny = write_file(Path(folder) / "tiny.parquet", 0)
        write_store(source)
        write_store(tiny)
        places = {"source": str(source), "tiny": str(tiny), "out": f"{folder}/out.parquet"}
        for setting, variables in settings.items():
            for work in WORK:
                found = _case({**places, "work": work}, variables)
                results.append({"setting": setting, "work": work, **found})
    configuration = {"megabytes": megabytes, "repeats": REPEATS, "settings": settings}
    _print(megabytes, results)
    print(f"written: {save('allocators', configuration, results)}")


def _case(arguments: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    """Run a case with more variables in its environment."""
    held = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        return run_case(__file__, "after", arguments)
    finally:
        for name, value in held.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _print(megabytes: int, results: list[dict[str, Any]]) -> None:
    ways = ["peak", "after", "release_unused", "release_freed", "2 s later"]
    rows = []
    for one in results:
        cells: list[str] = [one.get("error", "")]
        if "error" not in one:
            cells = [f"{one['kept'][way] / MIB:.1f}" for way in ways]
            cells += [f"{one['seconds']:.2f}", f"{one['release_seconds'] * 1e3:.1f}"]
        rows.append([one["setting"], one["work"], *cells])
    headings = ["setting", "work", *ways, "seconds", "ms to release"]
    print_table(f"MiB that stay resident after work on {megabytes} MB, three times", headings, rows)


if __name__ == "__main__":
    main()
